"""The analysis of the experiment report: each sentence goes, or turns, where the numbers do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_experiments import FP32, report_of, row, truths
from made_reports import failed_row, made_row

from vggt_deploy.compare.report import Row
from vggt_deploy.report.experiment_analysis import (
    by_chance,
    failure_findings,
    gate_findings,
    trade_findings,
    treatment_findings,
    truth_findings,
)
from vggt_deploy.report.experiment_costs import size_findings, speed_findings
from vggt_deploy.report.experiment_limits import limit_findings, unmeasured_findings
from vggt_deploy.report.languages import ENGLISH, speaker
from vggt_deploy.report.summary import gate_notes

FULL = report_of(
    FP32,
    row("onnxruntime/int8_pc_sym"),
    row("onnxruntime/int4_g128", mb=1.0, auc_30=(50.0, 61.0, 72.0), error=0.3),
    failed_row("torch/mixed"),
    failed_row("tensorrt/fp16", "not run", "no CUDA device"),
)


def one(found: Sequence[str], start: str) -> str:
    """The sentence that begins so, which must be there once."""
    (sentence,) = [text for text in found if text.startswith(start)]
    return sentence


def none(found: Sequence[str], part: str) -> bool:
    return not any(part in text for text in found)


def test_the_smallest() -> None:
    small, large = row("onnxruntime/int4_g128", mb=1.0), row("onnxruntime/int8_pc_sym", mb=2.0)
    found = size_findings(report_of(FP32, small, large), ENGLISH)
    (sentence,) = found
    assert sentence == (
        "The smallest artifact of those that ran is onnxruntime/int4_g128: 1.00 MB, 8.00 x smaller "
        "than the FP32 weights in memory."
    )
    near = row("onnxruntime/int8_pc_sym", mb=1.009)
    (within,) = size_findings(report_of(FP32, small, near), ENGLISH)[1:]
    assert within == "Within 1 % of that size: onnxruntime/int8_pc_sym."
    huge = row("onnxruntime/int8_pc_sym", mb=9.0)
    (larger,) = size_findings(report_of(FP32, small, huge), ENGLISH)[1:]
    assert larger == "Larger than the FP32 weights in memory: onnxruntime/int8_pc_sym."
    torch_alone = report_of(FP32, row("torch/int8_pc_sym", mb=None))
    assert "No artifact ran" in size_findings(torch_alone, ENGLISH)[0]


@pytest.mark.parametrize(
    "ms, start",
    [
        ((50.0, 51.0, 52.0), "Surely faster"),  # FP32: 100 to 104
        ((50.0, 101.0, 150.0), "Faster than every FP32 variant by the median, not surely"),
        ((150.0, 151.0, 152.0), "Not faster than at least one"),
    ],
)
def test_speed_is_sure_or_not(ms: Sequence[float], start: str) -> None:
    found = speed_findings(report_of(FP32, row("torch/int8_pc_sym", ms)), ENGLISH)
    sentence = one(found, start)
    assert sentence.endswith("(1 of 1): torch/int8_pc_sym.")
    assert len(found) == 2


def test_the_fastest_is_named_or_nobody_is() -> None:
    fast = speed_findings(report_of(FP32, row("torch/int8_pc_sym", (51.0,) * 3)), ENGLISH)
    assert "that of torch/int8_pc_sym: 51.0 ms, 2.00 x the speed of PyTorch FP32 (102.0" in fast[0]
    slow = speed_findings(report_of(FP32, row("torch/int8_pc_sym", (510.0,) * 3)), ENGLISH)
    assert slow[0] == "No variant is faster than PyTorch FP32 (102.0 ms)."


def test_a_runtime_without_its_own_fp32_is_said() -> None:
    rows = (FP32, row("onnxruntime/int8_pc_sym"))
    assert one(speed_findings(report_of(*rows), ENGLISH), "onnxruntime/fp32 was not measured")
    known = speed_findings(report_of(*rows, row("onnxruntime/fp32")), ENGLISH)
    assert none(known, "was not measured")


def test_times_of_another_machine_are_not_compared() -> None:
    fast = row("onnxruntime/int8_pc_sym", (1.0, 1.0, 1.0))
    away = replace(fast, machine="another CPU, 64 CPUs")
    assert "int8_pc_sym" in speed_findings(report_of(FP32, fast), ENGLISH)[0]
    found = speed_findings(report_of(FP32, away), ENGLISH)
    assert found[0].startswith("No variant is faster")
    assert none(found, "int8_pc_sym")
    assert one(limit_findings(report_of(FP32, away), ENGLISH), "onnxruntime/int8_pc_sym was timed")


def told(*auc_30: float) -> list[str]:
    report = report_of(FP32, row("torch/int8_pc_sym", auc_30=auc_30), row("torch/int4_g128"))
    return truth_findings(report, ENGLISH)


def test_losses_are_told_by_their_intervals() -> None:
    worse = one(told(50.0, 61.0, 72.0), "AUC@30")
    assert worse == (
        "AUC@30: worse than PyTorch FP32, interval above 0: torch/int8_pc_sym +9.00 (+8.00 to "
        "+10.00). Not told from none, or below 0.005: the other 1."
    )
    better = one(told(70.0, 81.0, 92.0), "AUC@30")
    assert "better than PyTorch FP32, interval below 0: torch/int8_pc_sym -11.00" in better
    assert "worse" not in better
    mixed = one(told(50.0, 81.0, 80.0), "AUC@30")
    assert mixed == "AUC@30: no loss of 0.005 or more is told from none (2 intervals)."
    rounding = one(
        told(59.999, 69.999, 79.999), "AUC@30"
    )  # as of another runtime: sure, and nothing
    assert rounding == mixed


def test_how_many_intervals_leave_out_0_by_chance() -> None:
    assert one(told(50.0, 61.0, 72.0), "Where nothing was lost").startswith(
        "Where nothing was lost at all, at least 25 % of these 8 intervals, about 2, would"
    )
    assert by_chance(2) == 0.5
    assert by_chance(3) == 0.25
    assert by_chance(13) == pytest.approx(0.05)


@given(st.integers(2, 6), st.integers(0, 2**32 - 1))
def test_chance_is_no_more_than_what_comes_of_it(scenes: int, seed: int) -> None:
    """Scenes that lean to one side have an interval that leaves out 0."""
    import numpy as np

    from vggt_deploy.compare.paired import mean_with_interval

    values = np.random.default_rng(seed).exponential(size=scenes) + 1e-6
    found = mean_with_interval(values.tolist())
    assert found.low is not None
    assert found.low > 0.0


def test_of_one_scene_nothing_is_told() -> None:
    reference = truths(60.0)
    rows = (
        made_row("torch/fp32", truth=reference),
        made_row("torch/int8_pc_sym", truth=truths(50.0), reference=reference),
    )
    found = truth_findings(report_of(*rows), ENGLISH)
    assert found[0] == (
        "AUC@30: of one scene this has no interval; the largest loss is that of torch/int8_pc_sym "
        "(+10.00)."
    )
    assert none(found, "intervals")
    assert one(limit_findings(report_of(*rows), ENGLISH), "The truth is known of one scene")
    same = (rows[0], made_row("torch/int8_pc_sym", truth=reference, reference=reference))
    assert truth_findings(report_of(*same), ENGLISH)[0].endswith("nothing was lost there.")
    assert truth_findings(report_of(*rows, random=True), ENGLISH) == []
    assert truth_findings(report_of(made_row("torch/fp32")), ENGLISH) == []


def test_the_gates_part_the_variants() -> None:
    good, bad = row("onnxruntime/int8_pc_sym"), row("onnxruntime/int4_g128", error=0.04)
    found = gate_findings(report_of(FP32, good, bad), ENGLISH)
    assert found == [
        "Within the gates, smallest loss first (1 of 2): onnxruntime/int8_pc_sym.",
        "Outside the gates (1 of 2), loss over its gate: onnxruntime/int4_g128 (4 x).",
    ]
    assert len(gate_findings(report_of(FP32, good), ENGLISH)) == 1
    (random,) = gate_findings(report_of(FP32, good, bad, random=True), ENGLISH)
    assert "not evidence" in random


def test_nan_is_said() -> None:
    good = row("onnxruntime/int8_pc_sym")
    depth = replace(good.accuracy["depth"], nonfinite_variant=3)
    bad = replace(good, accuracy={**good.accuracy, "depth": depth})
    assert one(gate_findings(report_of(FP32, good, bad), ENGLISH), "NaN or infinite outputs")
    assert none(gate_findings(report_of(FP32, good), ENGLISH), "NaN")


@pytest.mark.parametrize(
    "with_it, without, verb",
    [(0.01, 0.04, "loses less than"), (0.04, 0.01, "loses more than"), (0.01, 0.01, "as much as")],
)
def test_what_a_treatment_changed(with_it: float, without: float, verb: str) -> None:
    plain = row("onnxruntime/int4_g128", error=without)
    treated = row("onnxruntime/int4_g128+gptq", error=with_it)
    (sentence,) = treatment_findings(report_of(FP32, plain, treated), ENGLISH)
    assert sentence.startswith("onnxruntime/int4_g128+gptq")
    assert verb in sentence
    assert treatment_findings(report_of(FP32, treated), ENGLISH) == []
    assert treatment_findings(report_of(FP32, plain, treated, random=True), ENGLISH) == []


def test_who_is_beaten_is_not_on_the_front() -> None:
    small = row("onnxruntime/int4_g128", (90.0,) * 3, mb=1.0, error=0.009)
    fast = row("onnxruntime/int8_pc_sym", (50.0,) * 3, mb=2.0, error=0.008)
    beaten = row("onnxruntime/mixed", (91.0,) * 3, mb=1.5, error=0.0095)
    (sentence,) = trade_findings(report_of(FP32, small, fast, beaten), ENGLISH)
    assert sentence.startswith("Of the 3 artifacts within the gates")
    assert sentence.endswith(": onnxruntime/int4_g128, onnxruntime/int8_pc_sym.")
    spared = row("onnxruntime/mixed", (91.0,) * 3, mb=1.5, error=0.001)  # the most accurate
    (sentence,) = trade_findings(report_of(FP32, small, fast, spared), ENGLISH)
    assert "onnxruntime/mixed" in sentence
    outside = row("onnxruntime/mixed", (1.0,) * 3, mb=0.1, error=0.5)
    (sentence,) = trade_findings(report_of(FP32, small, fast, outside), ENGLISH)
    assert "onnxruntime/mixed" not in sentence
    (sentence,) = trade_findings(report_of(FP32, small, fast, outside, random=True), ENGLISH)
    assert sentence == "Not beaten in size and median latency at once: onnxruntime/mixed."
    assert trade_findings(report_of(FP32, small), ENGLISH) == []


def test_rows_without_numbers_are_counted() -> None:
    found = failure_findings(FULL, ENGLISH)
    assert found == ["failed (1 of 5): torch/mixed.", "not run (1 of 5): tensorrt/fp16."]
    assert failure_findings(report_of(FP32), ENGLISH) == []
    assert failure_findings(FULL, speaker("zh"))[0] == "失败（1/5）：torch/mixed。"


def test_limits_hold_only_where_they_do() -> None:
    large = report_of(FP32)
    model = {**large.question["model"], "config": "vggt-1b"}
    large = replace(large, question={**large.question, "model": model})
    small = limit_findings(report_of(FP32), ENGLISH)
    assert one(small, "The architecture is vggt-nano")
    assert none(limit_findings(large, ENGLISH), "architecture")
    weak = report_of(made_row("torch/fp32", truth=truths(5.0, 6.0)))
    assert one(limit_findings(weak, ENGLISH), "PyTorch FP32 itself has an AUC@30 of 5.5")
    assert none(small, "too little to lose")
    assert one(small, "The truth is known of 3 scenes")
    many = report_of(made_row("torch/fp32", truth=truths(*(60.0,) * 5)))
    assert none(limit_findings(many, ENGLISH), "The truth is known of")


def test_what_was_not_measured_is_named() -> None:
    found = unmeasured_findings(report_of(FP32, row("torch/int8_pc_sym")), ENGLISH)
    assert one(found, "Latency of the scenes after the first")
    assert one(found, "Size on disk of quantized PyTorch variants")
    assert none(found, "Outputs")
    assert one(found, "The exporter's own check")
    single = report_of(made_row("torch/fp32"), outputs=["pose"], verify=True)
    assert unmeasured_findings(single, ENGLISH) == [
        "Outputs that were not asked for: depth, points."
    ]


def test_noisy_times_are_not_sure() -> None:
    fast = row("onnxruntime/int8_pc_sym")
    assert fast.measured is not None
    noisy = replace(fast, measured=replace(fast.measured, others_cpus=1.0))
    assert one(speed_findings(report_of(FP32, fast), ENGLISH), "Surely faster")
    found = speed_findings(report_of(FP32, noisy), ENGLISH)
    assert none(found, "Surely faster")
    assert one(found, "Faster than every FP32 variant by the median, not surely")


# --- what is not finite, larger, or not here


def broken(one: Row) -> Row:
    """Its outputs hold NaN."""
    accuracy = {k: replace(v, nonfinite_variant=1) for k, v in one.accuracy.items()}
    return replace(one, accuracy=accuracy)


def test_what_is_not_finite_is_named_for_no_merit() -> None:
    good = row("onnxruntime/int8_pc_sym", (90.0, 91.0, 92.0), mb=2.0)
    bad = row("onnxruntime/int4_g128", (10.0, 11.0, 12.0), mb=1.0)
    for findings in (size_findings, speed_findings):
        whole = findings(report_of(FP32, good, bad), ENGLISH)
        assert bad.label in whole[0]
        assert none(whole, "Left out")
        found = findings(report_of(FP32, good, broken(bad)), ENGLISH)
        assert good.label in found[0]
        left = one(found, "Left out, with NaN or infinite outputs")
        assert left.endswith(f": {bad.label}.")
        assert [text for text in found if bad.label in text] == [left]
    all_bad = report_of(broken(FP32), broken(good), broken(bad))
    assert size_findings(all_bad, ENGLISH) == [
        f"Left out, with NaN or infinite outputs: {good.label}, {bad.label}."
    ]
    assert speed_findings(all_bad, ENGLISH) == [
        f"Left out, with NaN or infinite outputs: {FP32.label}, {good.label}, {bad.label}."
    ]
    assert trade_findings(all_bad, ENGLISH) == []


def test_fp32_with_nan_is_still_held_against() -> None:
    slow = row("torch/int8_pc_sym", (150.0, 151.0, 152.0))
    found = speed_findings(report_of(broken(FP32), slow), ENGLISH)
    assert found[0] == "No variant is faster than PyTorch FP32 (102.0 ms)."
    assert one(found, "Not faster than at least one")
    fast = speed_findings(report_of(broken(FP32), row("torch/int8_pc_sym")), ENGLISH)
    assert one(fast, "Surely faster")


def test_against_fp32_with_nan_nothing_is_lost_and_nothing_is_judged() -> None:
    rows = (row("onnxruntime/int8_pc_sym"), row("onnxruntime/int8_pc_sym+gptq", error=0.3))
    sound, unsound = report_of(FP32, *rows), report_of(broken(FP32), *rows)
    for findings in (truth_findings, treatment_findings):
        assert findings(sound, ENGLISH)
        assert findings(unsound, ENGLISH) == []
    assert gate_findings(unsound, ENGLISH) == ["NaN or infinite outputs: torch/fp32."]
    assert one(limit_findings(unsound, ENGLISH), "PyTorch FP32 itself has NaN or infinite outputs")
    assert none(limit_findings(sound, ENGLISH), "PyTorch FP32 itself has NaN")
    assert gate_notes(unsound) == ["No gates were applied (PyTorch FP32 itself is not finite)."]
    assert one(gate_notes(sound), "Gates, against PyTorch FP32")
    weak = made_row("torch/fp32", truth=truths(5.0))
    assert one(limit_findings(report_of(weak), ENGLISH), "PyTorch FP32 itself has an AUC@30")
    assert none(limit_findings(report_of(broken(weak)), ENGLISH), "has an AUC@30")


def test_a_treatment_is_not_held_against_nan() -> None:
    plain = row("onnxruntime/int4_g128", error=0.04)
    treated = row("onnxruntime/int4_g128+gptq", error=0.01)
    assert len(treatment_findings(report_of(FP32, plain, treated), ENGLISH)) == 1
    for rows in ((broken(plain), treated), (plain, broken(treated))):
        assert treatment_findings(report_of(FP32, *rows), ENGLISH) == []


def test_what_is_larger_is_not_called_smaller() -> None:
    (large, _) = size_findings(report_of(FP32, row("onnxruntime/int8_pc_sym", mb=8.16)), ENGLISH)
    assert large == (
        "The smallest artifact of those that ran is onnxruntime/int8_pc_sym: 8.16 MB, 1.02 x as "
        "large as the FP32 weights in memory."
    )
    (small,) = size_findings(report_of(FP32, row("onnxruntime/int8_pc_sym", mb=7.9)), ENGLISH)
    assert "1.01 x smaller than" in small


def test_of_several_machines_not_all_times_are_of_one() -> None:
    here = row("onnxruntime/int8_pc_sym")
    away = replace(here, machine="another CPU, 64 CPUs")
    same = limit_findings(report_of(FP32, here), ENGLISH)
    assert one(same, "All times are of the CPU of one machine")
    several = limit_findings(report_of(FP32, away), ENGLISH)
    assert none(several, "of one machine")
    assert one(several, "All times are of CPUs: on other ones")


def test_whether_others_worked_may_be_not_known() -> None:
    fast = row("onnxruntime/int8_pc_sym")
    assert fast.measured is not None
    untold = replace(fast, measured=replace(fast.measured, others_cpus=None))
    note = one(limit_findings(report_of(FP32, untold), ENGLISH), "Whether other processes kept")
    assert "not known here (1 of 2 variants): these times count as quiet" in note
    assert none(limit_findings(report_of(FP32, fast), ENGLISH), "Whether other processes")
    assert one(speed_findings(report_of(FP32, untold), ENGLISH), "Surely faster")
