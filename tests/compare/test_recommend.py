"""The rules of the advice, one by one, on rows made by hand."""

from __future__ import annotations

import re
from dataclasses import fields, replace

import pytest

from vggt_deploy.compare.geometry import Angles, DepthErrors, GeometryMetrics, PoseErrors
from vggt_deploy.compare.latency import summarize
from vggt_deploy.compare.measures import Measured
from vggt_deploy.compare.metrics import TensorMetrics
from vggt_deploy.compare.paired import Difference, TruthLoss
from vggt_deploy.compare.recommend import loss, recommend, slower_than
from vggt_deploy.compare.report import Recommendation, Row
from vggt_deploy.compare.speed import FEWEST_CALLS, surely_faster, times_of
from vggt_deploy.compare.truth import TruthMean
from vggt_deploy.report.languages import ENGLISH, speaker
from vggt_deploy.report.languages.speaker import ORIGINAL


def make_row(
    label: str, ms: float, *, mb: float | None = None, abs_rel: float = 0.0, spread: float = 0.0
) -> Row:
    runtime, _, scheme = label.partition("/")
    measured = Measured(
        latency=summarize([ms - spread, ms - spread, ms, ms + spread, ms + spread]),
        load_ms=1.0,
        peak_rss_bytes=1,
        peak_rss_source="VmHWM",
        libraries_rss_bytes=1,
        disk_bytes=None if mb is None else round(mb * 1e6),
        disk_kind=None if mb is None else "artifact folder",
        held_bytes=4_000_000_000 if label == "torch/fp32" else None,
        others_cpus=None,
    )
    geometry = GeometryMetrics(depth=DepthErrors(1, 0, 1.0, abs_rel, 1.0))
    accuracy = {"depth": TensorMetrics(1, 0, 0, mae=abs_rel)}
    return Row(runtime, scheme, "float", "done", "real", None, None, measured, accuracy, geometry)


ROWS = (
    make_row("torch/fp32", 200.0),
    make_row("onnxruntime/fp32", 100.0, mb=4000.0),
    make_row("onnxruntime/int8_pc_sym", 50.0, mb=1000.0, abs_rel=0.004),
    make_row("onnxruntime/int8_pt_sym", 40.0, mb=990.0, abs_rel=0.05),
    make_row("onnxruntime/int4_g128", 120.0, mb=600.0, abs_rel=0.015),
    make_row("torch/int8_pc_sym", 300.0, abs_rel=0.0039),
)


def advice(rows: tuple[Row, ...], *, random_weights: bool = False) -> dict[str, Recommendation]:
    found = recommend(rows, random_weights=random_weights)
    assert len(found) == 4
    return {item.purpose: item for item in found}


def test_the_ordinary_case() -> None:
    found = advice(ROWS)
    assert found["production"].label == "onnxruntime/int8_pc_sym"
    assert "2.00 x the speed of onnxruntime/fp32" in found["production"].reason
    assert found["edge"].label == "onnxruntime/int4_g128"
    assert "slower than onnxruntime/fp32" in found["edge"].reason
    assert "size alone" in found["edge"].reason
    assert found["best accuracy"].label == "torch/int8_pc_sym"
    assert found["fastest here"].label == "onnxruntime/int8_pt_sym"
    assert "outside the gates: 2.5 x" in found["fastest here"].reason


def test_slower_than_either_fp32_is_never_for_speed() -> None:
    """Faster than PyTorch FP32 (200) is not enough: ONNX Runtime FP32 takes 100."""
    rows = (ROWS[0], ROWS[1], ROWS[4])
    found = advice(rows)
    assert found["production"].label == "onnxruntime/fp32"
    assert found["fastest here"].label == "onnxruntime/fp32"
    assert "No scheme is faster" in found["fastest here"].reason
    assert slower_than(ROWS[4], rows) == ("onnxruntime/fp32",)
    without = advice((ROWS[0], ROWS[4]))
    assert without["production"].label == "onnxruntime/int4_g128"
    for purpose in ("production", "fastest here"):
        assert "onnxruntime/fp32 was not measured" in without[purpose].reason
        assert "was not measured" not in found[purpose].reason


def test_nothing_in_the_gates() -> None:
    found = advice((ROWS[0], ROWS[3]))
    assert found["production"].label is None
    assert "2.5 x the gate (depth AbsRel)" in found["production"].reason
    assert found["edge"].label is None


def test_no_artifact_at_all() -> None:
    found = advice((ROWS[0], ROWS[5]))
    assert found["production"].label is None
    assert "no artifact ran" in found["production"].reason
    assert found["fastest here"].label == "torch/fp32"


def test_random_weights_are_no_evidence() -> None:
    found = advice(ROWS, random_weights=True)
    assert found["best accuracy"].label is None
    assert "not evidence" in found["best accuracy"].reason
    assert found["production"].label == "onnxruntime/int8_pt_sym"  # speed alone, and it says so
    assert all("not evidence" in item.reason for item in found.values())
    assert all("within the gates" not in item.reason for item in found.values())


def test_a_row_with_nan_is_never_chosen() -> None:
    broken = {"depth": TensorMetrics(10, 1, 0)}
    rows = (*ROWS[:2], replace(ROWS[2], accuracy=broken))
    assert all(item.label != ROWS[2].label for item in advice(rows).values())
    assert any(item.label == ROWS[2].label for item in advice(ROWS).values())


def test_a_row_without_latency_or_without_accuracy_is_ignored() -> None:
    """As of an engine that could only be built: nothing of it is measured or advised."""
    best = ROWS[2]
    for without in (replace(best, accuracy={}, geometry=None), replace(best, measured=None)):
        for random_weights in (True, False):
            rows = (*ROWS[:2], without)
            found = advice(rows, random_weights=random_weights)
            assert all(item.label != best.label for item in found.values())
            assert found == advice(ROWS[:2], random_weights=random_weights)
    assert advice((*ROWS[:2], best), random_weights=True)["edge"].label == best.label


def test_a_median_is_not_enough_for_production() -> None:
    """FP32 took 100 ms in the median, but 90 ms once: 95 ms is not surely faster, 89 is."""
    noisy = make_row("onnxruntime/fp32", 100.0, mb=4000.0, spread=10.0)
    near = make_row("onnxruntime/int8_pc_sym", 95.0, mb=1000.0)
    found = advice((ROWS[0], noisy, near))
    assert found["production"].label == noisy.label
    assert found["fastest here"].label == near.label
    assert "Not surely faster" in found["fastest here"].reason
    sure = make_row("onnxruntime/int8_pc_sym", 89.0, mb=1000.0)
    found = advice((ROWS[0], noisy, sure))
    assert found["production"].label == sure.label
    assert "Not surely" not in found["fastest here"].reason


def test_a_difference_within_the_spread_is_said() -> None:
    near = make_row("onnxruntime/int8_pc_sym", 97.0, mb=1000.0, spread=10.0)
    assert "within the spread" in advice((*ROWS[:2], near))["production"].reason
    assert "within the spread" not in advice(ROWS)["production"].reason


def test_of_two_equally_fast_the_smaller() -> None:
    small = make_row("onnxruntime/int8_pc_asym", 50.9, mb=500.0)
    assert advice((*ROWS[:3], small))["production"].label == small.label
    slow = make_row("onnxruntime/int8_pc_asym", 52.0, mb=500.0)
    assert advice((*ROWS[:3], slow))["production"].label == ROWS[2].label


def test_loss_is_the_worst_quantity_over_its_gate() -> None:
    angles = Angles(n=1, mean_deg=1.0, median_deg=1.0, max_deg=1.0)
    pose = PoseErrors(1, angles, angles, 0, 0)
    depth = DepthErrors(1, 0, 1.0, 0.004, 1.0)
    row = replace(ROWS[2], geometry=GeometryMetrics(pose=pose, depth=depth))
    assert loss(row) == (pytest.approx(2.0), "rotation, degrees")
    assert loss(ROWS[2]) == (pytest.approx(0.2), "depth AbsRel")
    assert loss(replace(row, geometry=None)) is None
    lost = replace(row, geometry=GeometryMetrics(pose=replace(pose, pairs_lost=1)))
    found = loss(lost)
    assert found is not None
    assert found[0] == float("inf")


# --- by the truth


def lost(n: int = 8, **means: float) -> TruthLoss:
    """Losses over n scenes; quantities that are not named were not measured."""
    names = [field.name for field in fields(TruthLoss)]
    return TruthLoss(
        **{k: Difference(n, means[k], means[k] - 0.1, means[k] + 0.1) if k in means else None
           for k in names}
    )  # fmt: skip


def truth(auc_30: float) -> TruthMean:
    """A variant's own numbers by the truth; only AUC@30 is looked at."""
    none = dict.fromkeys(field.name for field in fields(TruthMean))
    return TruthMean(**{**none, "auc_30": auc_30})  # type: ignore[arg-type]


FAR = ROWS[3]  # 2.5 x the gate of AbsRel against FP32, and the fastest


def test_far_from_fp32_and_no_worse_by_the_truth() -> None:
    judged = replace(FAR, truth_loss=lost(abs_rel=0.001))
    assert loss(judged) == (pytest.approx(0.2), "AbsRel lost")
    assert advice((*ROWS[:3], judged))["production"].label == FAR.label
    assert advice((*ROWS[:3], FAR))["production"].label == ROWS[2].label


def test_near_fp32_and_worse_by_the_truth() -> None:
    judged = replace(ROWS[2], truth_loss=lost(auc_30=3.0, auc_5=1.0, abs_rel=0.0))
    assert loss(judged) == (pytest.approx(3.0), "AUC@30 lost")
    assert advice((*ROWS[:2], judged))["production"].label == ROWS[1].label


def test_of_few_scenes_both_must_hold() -> None:
    """Chance alone could pass one: the distance to FP32 stays in force, and the truth counts."""
    few = replace(FAR, truth_loss=lost(4, abs_rel=0.0))
    assert loss(few) == (pytest.approx(2.5), "depth AbsRel")
    assert loss(replace(FAR, truth_loss=lost(5, abs_rel=0.0)))[0] == 0.0  # type: ignore[index]
    bad = replace(ROWS[2], truth_loss=lost(1, abs_rel=0.02))
    assert loss(bad) == (pytest.approx(4.0), "AbsRel lost")


def test_the_truth_judges_only_what_it_knows() -> None:
    """Poses are known, depth is not: the depth against FP32 still counts."""
    judged = replace(FAR, truth_loss=lost(auc_30=0.0, auc_5=0.0, auc_3=0.0))
    assert loss(judged) == (pytest.approx(2.5), "depth AbsRel")


def test_lost_pairs_count_where_the_truth_does_not() -> None:
    geometry = GeometryMetrics(pose=PoseErrors(1, None, None, 0, 1))
    row = replace(ROWS[2], geometry=geometry)
    assert loss(row)[0] == float("inf")  # type: ignore[index]
    judged = replace(row, truth=truth(60.0), truth_loss=lost(auc_30=0.5, auc_5=0.5))
    assert loss(judged) == (pytest.approx(0.5), "AUC@30 lost")


@pytest.mark.parametrize("own, alone", [(0.0, False), (19.4, False), (19.6, True), (60.0, True)])
def test_poses_that_had_nothing_to_lose_are_held_against_fp32(own: float, alone: bool) -> None:
    """With an AUC of 0 for FP32 any poses at all would lose nothing."""
    far = Angles(n=1, mean_deg=90.0, median_deg=90.0, max_deg=90.0)
    geometry = GeometryMetrics(pose=PoseErrors(1, far, far, 0, 0))
    row = replace(ROWS[2], geometry=geometry, truth=truth(own))
    judged = replace(row, truth_loss=lost(auc_30=0.5, auc_5=0.0))
    expected = (0.5, "AUC@30 lost") if alone else (180.0, "rotation, degrees")
    assert loss(judged) == (pytest.approx(expected[0]), expected[1])


def test_a_recommendation_says_what_was_lost() -> None:
    judged = replace(ROWS[2], truth_loss=lost(auc_30=0.25, abs_rel=-0.001))
    reason = advice((*ROWS[:2], judged))["production"].reason
    assert "of 8 scenes" in reason
    assert "AUC@30 +0.25 (+0.15 to +0.35), AbsRel -0.00100 (-0.10100 to +0.09900)" in reason
    assert "truth" not in advice(ROWS)["production"].reason
    random = advice((*ROWS[:2], judged), random_weights=True)["production"].reason
    assert "Lost by the truth" not in random


def broken(row: Row) -> Row:
    """Its outputs hold NaN."""
    accuracy = {k: replace(v, nonfinite_variant=1) for k, v in row.accuracy.items()}
    return replace(row, accuracy=accuracy)


# --- said in another language, and of several machines


CASES = {
    "ordinary": ROWS,
    "only slower": (ROWS[0], ROWS[1], ROWS[4]),
    "FP32 of PyTorch alone": (ROWS[0], ROWS[5]),
    "none within": (ROWS[0], ROWS[3]),
    "nothing": (ROWS[0],),
    "noisy": (*ROWS[:2], make_row("onnxruntime/int8_pc_sym", 97.0, mb=1000.0, spread=10.0)),
    "by the truth": (*ROWS[:2], replace(ROWS[2], truth_loss=lost(auc_30=0.25, abs_rel=-0.001))),
    "of one scene": (*ROWS[:2], replace(ROWS[2], truth_loss=lost(1, point_error=0.002))),
    "pairs lost": (
        ROWS[0],
        replace(ROWS[2], geometry=GeometryMetrics(pose=PoseErrors(1, None, None, 0, 1))),
    ),
    "not faster than PyTorch": (
        make_row("torch/fp32", 30.0), make_row("onnxruntime/int8_pc_sym", 50.0, mb=1000.0),
    ),
    "elsewhere": (*ROWS[:2], replace(ROWS[2], machine="another CPU, 4 CPUs")),
    "all elsewhere": (ROWS[0], replace(ROWS[2], machine="another CPU, 4 CPUs")),
    "no finite one": tuple(broken(row) for row in ROWS),
    "no finite artifact": (ROWS[0], broken(ROWS[2])),
    "finite elsewhere": (broken(ROWS[0]), replace(ROWS[2], machine="another CPU, 4 CPUs")),
    "FP32 not finite": (broken(ROWS[0]), *ROWS[1:]),
    "larger": (ROWS[0], make_row("onnxruntime/int8_pc_sym", 50.0, mb=4080.0)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("random_weights", [False, True])
def test_every_reason_can_be_said_in_chinese(name: str, random_weights: bool) -> None:
    """The same sentences, the same numbers, and no template that has no translation."""
    chinese = speaker("zh")
    for item in recommend(CASES[name], random_weights=random_weights):
        assert item.said
        assert item.reason == ENGLISH.said(item.said)
        text = chinese.said(item.said)
        assert ORIGINAL not in text
        assert "{" not in text
        numbers = [sorted(re.findall(r"\d+\.\d+", said)) for said in (item.reason, text)]
        assert numbers[0] == numbers[1]
        assert [label for label in LABELS if label in item.reason] == [
            label for label in LABELS if label in text
        ]


LABELS = sorted({row.label for rows in CASES.values() for row in rows})


def test_times_of_another_machine_are_held_against_nothing() -> None:
    """It may be the fastest: on which machine, is not the question."""
    away = replace(ROWS[3], machine="another CPU, 64 CPUs")
    found = advice((*ROWS[:3], away))
    assert found["fastest here"].label == ROWS[2].label
    assert found["production"].label == ROWS[2].label
    for purpose in ("fastest here", "production"):
        assert "another kind of machine" in found[purpose].reason
        assert away.label in found[purpose].reason
    here = advice(ROWS[:4])
    assert here["fastest here"].label == away.label
    assert "another kind" not in here["fastest here"].reason


def test_size_and_accuracy_know_no_machine() -> None:
    away = replace(ROWS[4], machine="another CPU, 64 CPUs")
    found = advice((*ROWS[:3], away))
    assert found["edge"].label == away.label
    assert "slower than" not in found["edge"].reason  # than FP32 of another machine: not known
    assert "slower than" in advice((*ROWS[:3], ROWS[4]))["edge"].reason
    assert slower_than(away, ROWS[:3]) == ()


# --- what is not sure


def test_of_too_few_calls_nothing_is_surely_faster() -> None:
    """Two calls that took the same time say nothing of the third."""

    def timed(row: Row, calls: int) -> Row:
        assert row.measured is not None
        latency = summarize([row.measured.latency.median_ms] * calls)
        return replace(row, measured=replace(row.measured, latency=latency))

    for calls, label in ((FEWEST_CALLS, ROWS[2].label), (FEWEST_CALLS - 1, ROWS[1].label)):
        found = advice(tuple(timed(row, calls) for row in ROWS[:3]))
        assert found["production"].label == label
        assert found["fastest here"].label == ROWS[2].label
        for purpose in ("production", "fastest here"):
            few = "Fewer than 3 calls were timed" in found[purpose].reason
            assert few == (calls < FEWEST_CALLS)


@pytest.mark.parametrize("disturbed", [0, 1, 2])
def test_beside_other_work_nothing_is_surely_faster(disturbed: int) -> None:
    """Whether FP32 or the variant was disturbed: the one may look slow, the other may be slow."""

    def beside(row: Row, cpus: float) -> Row:
        assert row.measured is not None
        return replace(row, measured=replace(row.measured, others_cpus=cpus))

    rows = tuple(beside(row, 1.0 if i == disturbed else 0.1) for i, row in enumerate(ROWS[:3]))
    noisy = recommend(rows, random_weights=False, quiet_cpus=0.2)
    assert noisy[0].label == ROWS[1].label
    for item in (noisy[0], noisy[3]):
        assert "Other processes kept CPUs busy while 1 of 3 variants were timed" in item.reason
    quiet = recommend(rows, random_weights=False, quiet_cpus=2.0)
    assert quiet[0].label == ROWS[2].label
    assert "Other processes" not in quiet[0].reason


def quiet(row: Row) -> Row:
    assert row.measured is not None
    return replace(row, measured=replace(row.measured, others_cpus=0.0))


def test_where_fp32_was_disturbed_nothing_can_be_sure() -> None:
    """Everything is held against it; a disturbed variant makes only itself unsure."""

    def noisy(label: str) -> Recommendation:
        noised = tuple(
            replace(row, measured=replace(row.measured, others_cpus=1.0))
            if row.label == label and row.measured is not None
            else row
            for row in map(quiet, ROWS)
        )
        return recommend(noised, random_weights=False, quiet_cpus=0.2)[3]

    reference = noisy("torch/fp32").reason
    assert "1 of 6 variants were timed, among them torch/fp32, which the others" in reference
    assert "so nothing is surely faster" in reference
    assert "none of these" not in reference
    itself = noisy("onnxruntime/int8_pt_sym").reason
    assert "so none of these is surely faster" in itself
    assert "so nothing" not in itself


def test_whether_others_worked_may_be_not_known() -> None:
    """As where there is no /proc/stat: it counts as quiet, and the rows are named."""
    known = tuple(quiet(row) for row in ROWS)
    found = times_of(known, known[0], 0.2)
    assert (found.untold, found.noisy) == ((), ())
    assert surely_faster(known[2], found)
    found = times_of((known[0], *ROWS[1:]), known[0], 0.2)
    assert found.untold == ROWS[1:]
    assert found.noisy == ()
    assert surely_faster(ROWS[2], found)


# --- outputs that are not finite


@pytest.mark.parametrize("random_weights", [False, True])
def test_no_row_is_finite(random_weights: bool) -> None:
    found = advice(tuple(broken(row) for row in ROWS), random_weights=random_weights)
    for item in found.values():
        assert (item.label, item.reason) == (None, "no variant has finite outputs.")
    alone = advice((broken(ROWS[0]), ROWS[2]), random_weights=random_weights)
    assert alone["fastest here"].label == ROWS[2].label


def test_fp32_with_nan_is_still_held_against() -> None:
    """For time and for size (before, the first finite row stood for it); accuracy is not judged."""
    rows = (broken(ROWS[0]), *ROWS[1:])
    found, blind = advice(rows), advice(ROWS, random_weights=True)
    for purpose, item in found.items():
        assert item.label == blind[purpose].label
        assert "accuracy against it is not evidence" in item.reason
        assert "accuracy against it" not in advice(ROWS)[purpose].reason
    assert found["best accuracy"].label is None
    assert "6.67 x smaller than FP32" in found["edge"].reason
    slow = make_row("onnxruntime/int8_pc_sym", 250.0, mb=1000.0)
    for reference in (ROWS[0], broken(ROWS[0])):
        of_slow = advice((reference, slow))
        assert of_slow["production"].label is None
        assert "slower than torch/fp32" in of_slow["edge"].reason


def test_artifacts_with_nan_did_run() -> None:
    rows = (ROWS[0], broken(ROWS[2]), broken(ROWS[4]), broken(ROWS[5]))
    found = advice(rows)
    labels = f"{ROWS[2].label}, {ROWS[4].label}"
    for purpose in ("production", "edge"):
        assert found[purpose].label is None
        assert found[purpose].reason.startswith(
            f"all artifacts that ran have NaN or infinite outputs: {labels}."
        )
    assert f"have NaN or infinite outputs: {labels}, {ROWS[5].label}." in (
        found["best accuracy"].reason
    )
    assert found["fastest here"].label == ROWS[0].label


def test_artifacts_that_were_timed_elsewhere_did_run() -> None:
    away = tuple(replace(row, machine="another CPU, 64 CPUs") for row in (ROWS[2], ROWS[3]))
    reason = advice((ROWS[0], *away))["production"].reason
    assert reason.startswith("no artifact within the gates was timed on the kind of machine")
    assert "not held against these: " + ", ".join(row.label for row in away) in reason
    random = advice((ROWS[0], *away), random_weights=True)["production"].reason
    assert random.startswith("no artifact was timed on the kind of machine")
    outside = advice((ROWS[0], away[1]))["production"].reason
    assert outside.startswith(f"no artifact is within the gates: the nearest is {ROWS[3].label}")
    none_here = advice((broken(ROWS[0]), *away))["fastest here"]
    assert none_here.label is None
    assert none_here.reason.startswith("no variant with finite outputs was timed on the kind")


@pytest.mark.parametrize(
    "mb, said", [(4080.0, "1.02 x as large as FP32"), (3900.0, "1.03 x smaller than FP32")]
)
def test_what_is_larger_is_not_called_smaller(mb: float, said: str) -> None:
    row = make_row("onnxruntime/int8_pc_sym", 50.0, mb=mb)
    reason = advice((ROWS[0], row))["edge"].reason
    assert said in reason
    assert ("smaller than" in reason) == (mb < 4000.0)
