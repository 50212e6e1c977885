"""The published JSON Schema: up to date, fulfilled by every report, refusing what is no report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from made_reports import failed_row, made_report, made_row, made_truth

from vggt_deploy.compare.baseline import changes
from vggt_deploy.compare.recommend import recommend
from vggt_deploy.compare.report import REPORT_NAME, write_report
from vggt_deploy.report.schema import schema_text


@pytest.fixture(scope="module")
def published() -> Draft202012Validator:
    """The committed schema."""
    path = Path(__file__).parents[2] / "compare" / "comparison_report.schema.json"
    schema = json.loads(path.read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def problems(schema: Draft202012Validator, data: Any) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in schema.iter_errors(data)]


@pytest.fixture
def written(tmp_path: Path) -> dict[str, Any]:
    """comparison_report.json with all kinds of rows, truth, advice and a baseline."""
    truth = [made_truth(60.0), made_truth(80.0)]
    rows = (
        made_row("torch/fp32", truth=truth, error=0.0),
        made_row("onnxruntime/int8_pc_sym+dynamic", truth=truth),
        made_row("torch/int8_pc_sym", disk_bytes=None),
        failed_row("torch/int4_g128"),
        failed_row("tensorrt/fp16", "not run", "no CUDA device"),
    )
    advice = recommend(rows, random_weights=False)
    report = made_report(*rows, folder=tmp_path, recommendations=advice)
    report = replace(report, baseline=changes(report, report))
    write_report(report)
    data: dict[str, Any] = json.loads((tmp_path / REPORT_NAME).read_text(encoding="utf-8"))
    return data


def test_the_published_schema_is_that_of_the_dataclasses() -> None:
    path = Path(__file__).parents[2] / "compare" / "comparison_report.schema.json"
    assert path.read_text(encoding="utf-8") == schema_text(), (
        "run: python -m vggt_deploy.report.schema > compare/comparison_report.schema.json"
    )


def test_a_report_with_everything_in_it_fits(
    published: Draft202012Validator, written: dict[str, Any]
) -> None:
    assert problems(published, written) == []
    row = written["rows"][1]
    assert row["label"] == "onnxruntime/int8_pc_sym+dynamic"
    assert row["ratios"]["compression"] == 4.0


@pytest.mark.parametrize(
    "place, value",
    [
        (("rows", 1, "measured", "latency", "median_ms"), "fast"),
        (("rows", 1, "status"), "nearly done"),
        (("rows", 1, "ratios", "compression"), "4x"),
        (("rows", 1, "label"), None),
        (("rows", 3, "failure", "tail"), "one line"),
        (("rows", 0, "truth", "auc_30"), "70 %"),
        (("rows", 0, "scenes", 0, "truth", "points", "cloud", "scores"), None),
        (("schema",), 4),
        (("environment", "cpu_flags"), "avx2"),
        (("question", "scenes", 0, "files", 0, "sha256"), "abc"),
        (("question", "threads"), 0),
        (("protocol", "masks"), 3),
        (("recommendations", 0, "purpose"), "everything"),
        (("baseline", "variants", 0, "changes", 0, "verdict"), "good"),
    ],
)
def test_a_wrong_value_is_refused_where_it_stands(
    published: Draft202012Validator, written: dict[str, Any], place: tuple[Any, ...], value: Any
) -> None:
    holder: Any = written
    for key in place[:-1]:
        holder = holder[key]
    assert place[-1] in holder or isinstance(place[-1], int)
    holder[place[-1]] = value
    first, *_ = problems(published, written)
    # An optional record is "this or null": the error stands at it.
    assert first.startswith("$." + str(place[0]))


@pytest.mark.parametrize("where", [(), ("rows", 1), ("rows", 1, "measured"), ("environment",)])
def test_a_field_more_or_less_is_refused(
    published: Draft202012Validator, written: dict[str, Any], where: tuple[Any, ...]
) -> None:
    holder: Any = written
    for key in where:
        holder = holder[key]
    holder["one_more"] = 1
    assert problems(published, written)
    del holder["one_more"]
    assert not problems(published, written)
    for name in list(holder):
        value = holder.pop(name)
        assert problems(published, written), name
        holder[name] = value


@pytest.mark.parametrize("plan", [{}, {"torch/int4_g128": "segfault", "torch/int8_pc_sym": "nan"}])
def test_what_a_comparison_writes_fits(
    fake: Any, published: Draft202012Validator, plan: dict[str, str]
) -> None:
    fake.plan(plan)
    report = fake.run()
    data = json.loads((fake.folder / REPORT_NAME).read_text(encoding="utf-8"))
    assert problems(published, data) == []
    assert {row["status"] for row in data["rows"]} == ({"done", "failed"} if plan else {"done"})
    assert len(data["rows"]) == len(report.rows)
