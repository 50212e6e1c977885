"""What changed since a baseline, as people read it: what was found, and why the rest was not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from made_reports import failed_row, made_report, made_row, made_truth

from vggt_deploy.compare.baseline import Change, Changes, changes
from vggt_deploy.compare.report import ComparisonReport, Row
from vggt_deploy.report.baseline_text import (
    baseline_how,
    baseline_lines,
    baseline_verdicts,
    quantity_name,
    shown,
    told_grid,
)
from vggt_deploy.report.languages import speaker

LABEL = "onnxruntime/int8_pc_sym"
FAST = (43.0, 40.0, 45.0, 41.0, 44.0, 42.0)
SLOW = (63.0, 60.0, 65.0, 61.0, 64.0, 62.0)


def report(*rows: Row, samples: Sequence[float] = FAST, shift: float = 0.0) -> ComparisonReport:
    truth = [made_truth(30.0 + 5.0 * i) for i in range(8)]
    lost = [made_truth(30.0 + 5.0 * i - shift * (1 + i / 100)) for i in range(8)]
    first = made_row("torch/fp32", truth=truth, error=0.0)
    return made_report(first, made_row(LABEL, truth=lost, samples=samples), *rows)


def test_what_got_worse_stands_first_with_its_numbers() -> None:
    found = changes(report(samples=SLOW), report(samples=FAST, shift=3.0))
    rows = told_grid(found).rows
    assert [row[:5] for row in rows] == [
        (LABEL, "AUC@30", "worse", "47.50", "44.40"),
        (LABEL, "median latency, ms", "better", "62.50", "42.50"),
    ]
    auc, latency = (row[5:] for row in rows)
    assert auc[0] == "-3.11"
    assert latency[0] == "x 0.680"
    low, _, high = latency[1].partition(" to ")
    assert float(low) < 0.68 < float(high)
    assert all(float(cells[2]) <= 0.05 for cells in (auc, latency))


def test_the_lines_of_the_summary() -> None:
    lines = baseline_lines(changes(report(samples=SLOW), report(samples=FAST, shift=3.0)))
    text = "\n".join(lines)
    assert text.startswith("Against the report of 2025-01-01T00:00:00Z (vggt-nano, A CPU, 2 CPUs)")
    assert "Scenes in common: 8." in text
    assert "Quantities: 1 worse, 1 better" in text
    assert "Mann-Whitney" in text
    assert "if the machine changed all variants" in " ".join(lines)
    assert max(map(len, lines)) <= 120


def test_a_loss_in_too_few_scenes_is_shown_and_not_judged() -> None:
    def of(shift: float) -> ComparisonReport:
        base, lost = ([made_truth(a - s) for a in (40.0, 60.0, 80.0)] for s in (0.0, shift))
        return made_report(made_row("torch/fp32", truth=base), made_row(LABEL, truth=lost))

    found = changes(of(0.0), of(20.0))
    (row,) = told_grid(found).rows
    assert row[:6] == (LABEL, "AUC@30", "not judged", "60.00", "40.00", "-20.00")
    assert row[-1] == "-"
    lines = baseline_verdicts(found)
    assert lines[0].startswith("Quantities: 0 worse, 0 better")
    assert lines[1].startswith("Not judged: what moved here")
    # What did not move is no row, judged or not.
    assert told_grid(changes(of(0.0), of(0.0))).rows == ()
    both_ways = [made_truth(auc) for auc in (30.0, 65.0, 81.0)]
    mixed = made_report(of(0.0).rows[0], made_row(LABEL, truth=both_ways))
    assert told_grid(changes(of(0.0), mixed)).rows == ()


def test_nothing_changed_shows_no_table() -> None:
    same = changes(report(), report())
    assert told_grid(same).rows == ()
    text = "\n".join(baseline_lines(same))
    assert "0 worse, 0 better" in text
    assert "p (Holm)" not in text
    assert "Tests: 1, one family (Holm)" in text


def test_nothing_tested_says_so() -> None:
    rows = [made_row("torch/fp32"), made_row(LABEL, samples=(40.0, 41.0))]
    text = " ".join(baseline_lines(changes(made_report(*rows), made_report(*rows))))
    assert "No quantity was tested: what could be compared is the same in both." in text
    assert "Mann-Whitney" not in text


def test_what_was_not_tested_names_the_reasons_that_there_were() -> None:
    """Noise alone, nothing in common, or too few scenes: each is said, and no other."""
    old, new = (
        made_report(made_row("torch/fp32"), made_row(LABEL, samples=samples))
        for samples in (FAST, SLOW)
    )
    measured = new.rows[1].measured
    assert measured is not None
    noisy = replace(new.rows[1], measured=replace(measured, others_cpus=1.5))
    found = changes(old, replace(new, rows=(new.rows[0], noisy)))
    text = baseline_how(found)
    assert text.startswith(
        "No quantity was tested: noisy times now: other processes kept CPUs busy. Sizes"
    )
    single = made_report(made_row("torch/fp32"))
    assert "no variant timed beside PyTorch FP32" in baseline_how(changes(single, single))
    few = [made_report(made_row("torch/fp32", truth=[made_truth(a)])) for a in (40.0, 60.0)]
    assert "too few to tell: 1 scenes" in baseline_how(changes(*few))
    assert "noisy" not in baseline_how(changes(*few))
    for one in (found, changes(single, single), changes(*few)):
        assert "No quantity" not in baseline_how(one, speaker("zh"))


def test_tiny_differences_by_the_truth_are_written_as_none() -> None:
    """In the decimals of every other text, without an exponent."""
    one = Change(
        "abs_rel", "", "less", "difference", 0.1, 0.1, 2.4e-8, -3e-6, 1.2e-4, 3, 3, None, None,
        "worse",
    )  # fmt: skip
    side = changes(report(), report())
    found = replace(side, variants=(replace(side.variants[1], changes=(one,)),))
    (row,) = told_grid(found).rows
    assert row[3:7] == ("0.10000", "0.10000", "0.00000", "0.00000 to +0.00012")


def test_what_came_went_and_broke() -> None:
    old = report(made_row("torch/mixed"), made_row("torch/int4_g128"))
    new = report(failed_row("torch/int4_g128"), made_row("torch/bf16"))
    lines = baseline_verdicts(changes(old, new))
    assert lines[0] == (
        "Variants: 1 broke, 0 came to work, 1 not in the new report, 1 not in the old one."
    )
    assert lines[1] == "before done, now failed: torch/int4_g128"
    back = baseline_verdicts(changes(new, old))
    assert back[0].startswith("Variants: 0 broke, 1 came to work")
    assert "before failed, now done: torch/int4_g128" in back
    assert "not in the old report: torch/bf16" in lines
    assert "not in the new report: torch/mixed" in lines
    assert len(baseline_verdicts(changes(old, old))) == 1


def test_why_something_is_not_comparable_stands_once_with_its_count() -> None:
    new = report()
    other = replace(new, question={**new.question, "threads": 1})
    lines = baseline_verdicts(changes(new, other))
    assert lines[1:] == [
        "Not comparable: median latency, ms, 2 times: other threads: 2 before, 1 now."
    ]


def test_the_machine_is_named_as_such() -> None:
    """Everything takes 1.5 times as long: no variant is worse, and the notes say why."""
    old, new = (
        made_report(
            made_row("torch/fp32", samples=[times * 2 * x for x in FAST]),
            made_row(LABEL, samples=[times * x for x in FAST]),
        )
        for times in (1.0, 1.5)
    )
    found = changes(old, new)
    (row,) = told_grid(found).rows
    assert row[:3] == ("torch/fp32", "median latency, ms", "not judged")
    text = "\n".join(baseline_lines(found))
    assert "Quantities: 0 worse, 0 better" in text
    assert "torch/fp32 itself takes 1.5 times as long as before: that is the machine" in text
    assert "PyTorch FP32" not in "\n".join(baseline_lines(found, speaker("zh"))).split("延迟：")[0]


@pytest.mark.parametrize(
    "quantity, unit, value, name, text",
    [
        ("disk_bytes", "bytes", 1_234_567.0, "on disk, MB", "1.23"),
        ("latency_ms", "ms", 12.345, "median latency, ms", "12.35"),
        ("auc_30", "%", 51.0, "AUC@30", "51.00"),
        ("f_score", "%", None, "F-score @ 0.2 m", "-"),
        ("abs_rel", "", 0.0123456, "AbsRel by the truth", "0.01235"),
        ("fp32/depth_conf", "", 1e-7, "depth_conf against FP32", "1e-07"),
        ("fp32/depth_abs_rel", "", 0.5, "depth AbsRel against FP32", "0.5"),
    ],
)
def test_names_and_units(
    quantity: str, unit: str, value: float | None, name: str, text: str
) -> None:
    change = Change(
        quantity, unit, "less", "ratio", value, value, 1.0, None, None, 1, 1, None, None,
        "unchanged",
    )  # fmt: skip
    assert quantity_name(change) == name
    assert shown(change, value) == text


def test_in_chinese() -> None:
    """Every sentence has its translation; names, numbers and units stay."""
    old = report(made_row("torch/mixed"), made_row("torch/int4_g128"), samples=SLOW)
    new = report(failed_row("torch/int4_g128"), made_row("torch/bf16"), samples=FAST, shift=3.0)
    found: list[Changes] = [changes(old, new), changes(old, old)]
    single = made_report(made_row("torch/fp32", samples=(50.0,)))
    found.append(changes(single, single))
    for one in found:
        text = "\n".join(baseline_lines(one, speaker("zh")))
        assert "Quantities" not in text
        assert "Against" not in text
    assert "x 0.680" in "\n".join(baseline_lines(found[0], speaker("zh")))
