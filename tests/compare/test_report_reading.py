"""comparison_report.json as anyone may hand it over: whole, or an error that says what is wrong."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vggt_deploy.compare import ComparisonReport, read_report
from vggt_deploy.compare.asked import check_question
from vggt_deploy.compare.baseline import changes
from vggt_deploy.errors import CompareError, DeployError
from vggt_deploy.report.summary import summary_text

GONE = object()
JUNK = (None, "x", -1, {})


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in the JSON; of a list the first item stands for all."""
    yield at
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*at, key))
    elif isinstance(value, list) and value:
        yield from places(value[0], (*at, 0))


def changed(data: Any, at: tuple[Any, ...], junk: Any) -> Any:
    """A copy with something else at that place, or without it."""
    copied = copy.deepcopy(data)
    inner = copied
    for key in at[:-1]:
        inner = inner[key]
    if junk is GONE:
        del inner[at[-1]]
    else:
        inner[at[-1]] = junk
    return copied


@pytest.fixture
def report(fake: Any) -> ComparisonReport:
    """With a refused and a failed row, and a baseline: itself."""
    fake.plan({"torch/int4_g128": "segfault"})
    first = fake.run(schemes="int8_pc_sym,int4_g128,bf16")
    found: ComparisonReport = fake.run(
        schemes="int8_pc_sym,int4_g128,bf16", overwrite=True, baseline=first.folder
    )
    return found


def test_what_was_written_is_read(report: ComparisonReport) -> None:
    assert read_report(report.folder) == report
    assert read_report(report.folder / "comparison_report.json") == report


def test_damage_anywhere_is_an_error_or_does_no_harm(
    report: ComparisonReport, tmp_path: Path
) -> None:
    whole = json.loads((report.folder / "comparison_report.json").read_text())
    path = tmp_path / "damaged.json"
    refused = accepted = 0
    for number, at in enumerate(places(whole)):
        if not at or at[0] in ("folder", "schema"):
            continue
        for junk in (GONE, JUNK[number % len(JUNK)]):
            path.write_text(json.dumps(changed(whole, at, junk)))
            try:
                read = read_report(path)
            except CompareError:
                refused += 1
                continue
            accepted += 1
            changes(read, report)
    assert refused > 300
    assert accepted > 50  # a number for a number, a text for a text


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "is not JSON"),
        ("[]", "has schema None"),
        ('{"schema": 5', "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ('{"schema": 5, "schema": 5}', "is not JSON"),
        ('{"schema": NaN}', "is not JSON"),
        ('{"schema": 5}', "lacks the field"),
    ],
)
def test_what_is_no_report_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(CompareError, match=said):
        read_report(path)


def test_a_field_more_is_refused(report: ComparisonReport) -> None:
    path = report.folder / "comparison_report.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data | {"more": 1}))
    with pytest.raises(CompareError, match="unknown field 'more'"):
        read_report(path)
    data["rows"][0]["more"] = 1
    path.write_text(json.dumps(data))
    with pytest.raises(CompareError, match=r"rows\[0\] has an unknown field 'more'"):
        read_report(path)


def test_a_question_may_hold_more_and_not_less(report: ComparisonReport) -> None:
    def refuse(problem: str) -> DeployError:
        return CompareError(problem, "")

    check_question(report.question | {"more": 1}, refuse)
    for name in ("threads", "images", "scenes", "calibration", "model", "layers", "device"):
        less = {key: value for key, value in report.question.items() if key != name}
        with pytest.raises(CompareError, match=name):
            check_question(less, refuse)


def test_a_damaged_baseline_costs_no_measurement(fake: Any, tmp_path: Path) -> None:
    old = fake.run().folder.rename(tmp_path / "old")
    path = old / "comparison_report.json"
    data = json.loads(path.read_text())
    del data["question"]["threads"]
    path.write_text(json.dumps(data))
    fake.calls()
    with pytest.raises(CompareError, match="threads"):
        fake.run(baseline=old)
    assert fake.calls() == []


def test_a_report_that_was_read_can_be_told(report: ComparisonReport) -> None:
    assert summary_text(read_report(report.folder)) == summary_text(report)
