"""The CSV files: every variant, every number, the same columns always."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_reports import failed_row, made_report, made_row, made_truth

from vggt_deploy.compare.report import ComparisonReport
from vggt_deploy.report.csv_table import csv_text, scenes_csv_text, variant_line, write_csv

LABEL = "onnxruntime/int8_pc_sym"


def read(text: str) -> list[dict[str, str]]:
    lines = list(csv.DictReader(io.StringIO(text, newline="")))
    assert all(None not in line and None not in line.values() for line in lines)  # none ragged
    return lines


def example() -> ComparisonReport:
    truth = [made_truth(60.0), made_truth(80.0, abs_rel=0.3)]
    lost = [made_truth(58.0), made_truth(77.0, abs_rel=0.35)]
    return made_report(
        made_row("torch/fp32", truth=truth, error=0.0, disk_bytes=8_000_000),
        made_row(LABEL, truth=lost, reference=truth, samples=(40.0, 50.0, 60.0)),
        failed_row("torch/int4_g128"),
    )


def test_one_line_for_each_variant_with_its_numbers() -> None:
    lines = read(csv_text(example()))
    assert [line["variant"] for line in lines] == ["torch/fp32", LABEL, "torch/int4_g128"]
    line = lines[1]
    expected = {
        "status": "done",
        "machine": "A CPU, 2 CPUs",
        "disk_bytes": "2000000",
        "compression_x": "4.0",
        "latency_median_ms": "50.0",
        "latency_count": "3",
        "speedup_torch_fp32_x": "2.04",
        "speedup_onnxruntime_fp32_x": "",
        "truth_auc_30_percent": "67.5",
        "truth_f_score_20cm_percent": "18.0",
        "lost_auc_30_percent": "2.5",
        "lost_auc_30_percent_scenes": "2",
        "fp32_rotation_mean_deg": "0.1",
        "fp32_depth_abs_rel": "0.01",
        "tensor_depth_mae": "0.01",
        "tensor_pose_enc_ssim": "",
        "tensor_world_points_mae": "",
        "export_seconds": "",
        "failure": "",
    }
    assert {name: line[name] for name in expected} == expected
    assert float(line["lost_abs_rel"]) == pytest.approx(0.025)


def test_a_failed_variant_has_its_reason_and_no_numbers() -> None:
    line = read(csv_text(example()))[2]
    filled = {name: value for name, value in line.items() if value}
    assert filled == {
        "variant": "torch/int4_g128",
        "runtime": "torch",
        "scheme": "int4_g128",
        "activations": "float",
        "status": "failed",
        "support": "real",
        "failure_stage": "measure",
        "failure": "ended with SIGSEGV",
    }


def test_one_line_for_each_variant_and_scene() -> None:
    lines = read(scenes_csv_text(example()))
    assert [(line["variant"], line["scene"]) for line in lines] == [
        (label, f"scene_{i}") for label in ("torch/fp32", LABEL) for i in range(2)
    ]
    line = lines[3]
    assert line["truth_pose_auc_30_percent"] == "77.0"
    assert line["truth_depth_abs_rel"] == "0.35"
    assert line["truth_cloud_recall_50cm_percent"] == "40.0"
    assert line["truth_points_median_m"] == "0.05"
    assert line["fp32_depth_abs_rel"] == "0.01"


def test_the_columns_do_not_depend_on_what_was_measured() -> None:
    bare = made_report(failed_row("torch/fp32"))
    for text in (csv_text, scenes_csv_text):
        assert text(bare).split("\n")[0] == text(example()).split("\n")[0]
    assert len(scenes_csv_text(bare).splitlines()) == 1


def test_every_number_of_the_json_is_there() -> None:
    """Each number of a row in JSON, lists and notes left out, stands in one of the two files."""
    report = example()
    row = report.to_json()["rows"][1]
    cells = {
        float(value)
        for text in (csv_text(report), scenes_csv_text(report))
        for line in read(text)
        for value in line.values()
        if value and value.replace(".", "", 1).replace("-", "").replace("e", "").isdigit()
    }
    numbers = {n for n in _numbers(row) if n == n}
    assert numbers <= cells
    assert numbers | {12345.0} > numbers  # twin: a number that is nowhere is noticed
    assert not numbers | {12345.0} <= cells


def _numbers(value: Any) -> set[float]:
    if isinstance(value, dict):
        left_out = ("samples_ms", "warmup_ms", "threshold_m", "alignment")
        return set().union(*(_numbers(v) for k, v in value.items() if k not in left_out))
    if isinstance(value, list | tuple):
        return set().union(*map(_numbers, value))
    return {float(value)} if type(value) in (int, float) else set()


@pytest.mark.parametrize("name", ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(A1)", "\t=1"])
def test_no_text_is_run_as_a_formula(name: str) -> None:
    report = made_report(made_row("torch/fp32"), failed_row(LABEL, message=name))
    assert read(csv_text(report))[1]["failure"] == f"'{' '.join(name.split())}"


@settings(max_examples=50, deadline=None)
@given(st.text(st.characters(codec="utf-8"), max_size=40))
def test_any_text_stays_in_its_cell(text: str) -> None:
    report = made_report(made_row("torch/fp32"), failed_row(LABEL, message=text))
    lines = read(csv_text(report))
    assert len(lines) == 2
    plain = " ".join(text.split())
    assert lines[1]["failure"] == (f"'{plain}" if plain[:1] in ("=", "+", "-", "@") else plain)


def test_a_negative_number_stays_a_number() -> None:
    line = variant_line(example(), example().rows[1]) | {"lost_auc_30_percent": -2.5}
    assert line["lost_auc_30_percent"] == -2.5
    truth, better = [made_truth(60.0)], [made_truth(70.0)]
    rows = (made_row("torch/fp32", truth=truth), made_row(LABEL, truth=better, reference=truth))
    assert read(csv_text(made_report(*rows)))[1]["lost_auc_30_percent"] == "-10.0"


def test_both_files_are_written(tmp_path: Path) -> None:
    report = replace(example(), folder=tmp_path)
    paths = write_csv(report)
    assert [path.name for path in paths] == ["comparison_report.csv", "comparison_scenes.csv"]
    assert paths[0].read_bytes().decode() == csv_text(report)
    assert b"\r" not in paths[1].read_bytes()


def test_a_comparison_with_fake_workers(fake: Any) -> None:
    fake.plan({"torch/int4_g128": "segfault"})
    report = fake.run()
    lines = {line["variant"]: line for line in read(csv_text(report))}
    assert set(lines) == {row.label for row in report.rows}
    assert "SIGSEGV" in lines["torch/int4_g128"]["failure"]
    measured = report.row(LABEL)
    assert float(lines[LABEL]["latency_median_ms"]) == measured.measured.latency.median_ms
    assert int(lines[LABEL]["export_bytes_total"]) == measured.export.bytes_total
