"""What changed since an earlier report: found where there is something, silent where not."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_reports import failed_row, made_report, made_row, made_truth

from vggt_deploy.compare import significance
from vggt_deploy.compare.baseline import Change, Changes, changes
from vggt_deploy.compare.report import ComparisonReport, Row
from vggt_deploy.compare.significance import compare_pairs, compare_samples, holm, ratio_of_medians
from vggt_deploy.compare.truth import TruthMetrics
from vggt_deploy.errors import CompareError

LABEL = "onnxruntime/int8_pc_sym"
LEVELS = (10.0, 20.0, 35.0, 40.0, 55.0, 60.0, 75.0, 90.0)  # AUC of eight scenes


def change(found: Changes, quantity: str, label: str = LABEL) -> Change:
    (variant,) = [variant for variant in found.variants if variant.label == label]
    (one,) = [one for one in variant.changes if one.quantity == quantity]
    return one


def two(
    old: dict[str, Any], new: dict[str, Any], **question: Any
) -> tuple[ComparisonReport, ComparisonReport]:
    """Reports of FP32 and of one variant, made with these arguments of `made_row`."""
    reports = []
    for arguments, changed in ((old, {}), (new, question)):
        truth = arguments.get("truth", ())
        rows = (made_row("torch/fp32", error=0.0, truth=truth), made_row(LABEL, **arguments))
        reports.append(made_report(*rows, **changed))
    return reports[0], reports[1]


def calls(median: float, n: int = 20, seed: int = 0, spread: float = 0.05) -> list[float]:
    """Timed calls with the skewed noise that latencies have."""
    drawn = np.random.default_rng(seed).lognormal(math.log(median), spread, n)
    return [float(value) for value in drawn]


# -- nothing changed ----------------------------------------------------------------------------


def test_a_report_against_itself_is_unchanged() -> None:
    truth = [made_truth(level) for level in LEVELS]
    old, new = two({"truth": truth}, {"truth": truth})
    found = changes(old, new)
    assert {one.verdict for variant in found.variants for one in variant.changes} == {"unchanged"}
    assert {variant.status for variant in found.variants} == {"unchanged"}
    assert len(found.scenes) == len(LEVELS)
    assert (found.left_out, found.notes) == ((), ())
    quantities = {one.quantity for one in found.variants[1].changes}
    assert quantities >= {
        "disk_bytes", "latency_ms", "auc_30", "abs_rel", "point_error", "f_score", "fp32/depth",
        "fp32/rotation", "fp32/direction", "fp32/depth_abs_rel", "fp32/point_error",
    }  # fmt: skip


def test_it_comes_back_from_json() -> None:
    old, new = two({"samples": calls(100)}, {"samples": calls(130, seed=1)})
    found = changes(old, new)
    data = json.loads(json.dumps(found.to_json()))
    assert Changes.from_json(data) == found
    data["tests"] = "many"
    with pytest.raises(CompareError, match=r"baseline\.tests is str, expected int"):
        Changes.from_json(data)


def noise(rng: np.random.Generator) -> tuple[ComparisonReport, ComparisonReport]:
    """Two reports whose numbers come from one distribution: four variants, seven scenes."""
    reports = []
    labels = ("torch/fp32", "torch/fp16", "torch/int8_pc_sym", LABEL)
    for _ in range(2):
        rows = [
            made_row(
                label,
                samples=[float(x) for x in rng.lognormal(4.0, 0.05, 10)],
                truth=[made_truth(float(level + rng.normal(0, 3))) for level in LEVELS[:7]],
            )
            for label in labels
        ]
        reports.append(made_report(*rows))
    return reports[0], reports[1]


def test_false_alarms_are_no_more_than_the_level_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any alarm among all tests of two reports, in 5 % of them at most; without Holm in more."""
    monkeypatch.setattr(significance, "RESAMPLES", 200)  # the intervals decide nothing
    rng = np.random.default_rng(3)
    alarms, unadjusted, runs = 0, 0, 50
    for _ in range(runs):
        found = changes(*noise(rng))
        tested = [o for v in found.variants for o in v.changes if o.p is not None]
        assert found.tests == len(tested) > 4
        alarms += any(one.verdict in ("better", "worse") for one in tested)
        unadjusted += any(one.p is not None and one.p <= 0.05 for one in tested)
    assert alarms <= 0.05 * runs + 3 * math.sqrt(0.05 * 0.95 * runs)
    assert unadjusted > 0.15 * runs


# -- latency ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_a_fifth_slower_is_found(seed: int) -> None:
    old, new = two({"samples": calls(100, seed=seed)}, {"samples": calls(120, seed=seed + 100)})
    found = change(changes(old, new), "latency_ms")
    assert found.verdict == "worse"
    assert found.change == pytest.approx(1.2, rel=0.06)
    assert found.low is not None
    assert found.high is not None
    assert 1.0 < found.low < found.change < found.high
    assert found.p is not None
    assert found.p_adjusted is not None
    assert found.p <= found.p_adjusted <= 0.05
    back = change(changes(new, old), "latency_ms")
    assert back.verdict == "better"
    assert back.change == pytest.approx(1 / found.change)


def test_what_is_real_but_small_is_unchanged() -> None:
    old, new = two(
        {"samples": calls(100, 60, spread=0.001)},
        {"samples": calls(101, 60, seed=1, spread=0.001)},
    )
    found = change(changes(old, new), "latency_ms")
    assert found.p is not None
    assert found.p < 1e-6
    assert found.verdict == "unchanged"
    assert "below 2 %" in found.reason


def test_three_calls_can_not_tell() -> None:
    old, new = two({"samples": (100, 101, 102)}, {"samples": (200, 201, 202)})
    found = changes(old, new)
    one = change(found, "latency_ms")
    assert (one.verdict, one.p) == ("not comparable", None)
    assert one.reason.startswith("too few to tell: 3 calls")
    assert one.change == pytest.approx(201 / 101)
    assert found.tests == 1  # of FP32, which has five calls in both


def test_many_variants_of_few_calls_can_hardly_tell_and_say_so() -> None:
    """Complete separation of five calls against five: enough for one test, not for ten."""

    def reports(count: int) -> Changes:
        labels = ("torch/fp32", "torch/fp16", "torch/bf16", "torch/mixed", "torch/int8_pc_sym",
                  "torch/int8_pt_sym", "torch/int8_pc_asym", "torch/int4_g128", LABEL)  # fmt: skip
        labels = (labels[0], *labels[-count:])
        old, new = (
            made_report(*(made_row(x, samples=[start + i for i in range(5)]) for x in labels))
            for start in (100.0, 200.0)
        )
        return changes(old, new)

    assert change(reports(1), "latency_ms").verdict == "worse"
    found = change(reports(8), "latency_ms")
    assert found.verdict == "unchanged"
    assert found.reason == "5 calls among 9 tests can hardly tell any change"


@pytest.mark.parametrize(
    "changed, reason",
    [
        ({"threads": 1}, "other threads: 2 before, 1 now"),
        (
            {"images": {"mode": "crop", "frames": 5, "height": 84, "width": 112}},
            "another number of pictures: 4 before, 5 now",
        ),
        (
            {"images": {"mode": "crop", "frames": 4, "height": 84, "width": 126}},
            "another size: 84 x 112 before, 84 x 126 now",
        ),
        ({"outputs": ["depth"]}, "other outputs: pose, depth, points before, depth now"),
        ({"device": {"name": "rtx4090", "gpu": "A Card"}}, "another GPU: None before, A Card now"),
    ],
)
def test_latency_is_not_compared_between_unlike_runs(changed: dict[str, Any], reason: str) -> None:
    old, new = two({"samples": calls(100)}, {"samples": calls(200)}, **changed)
    found = change(changes(old, new), "latency_ms")
    assert (found.verdict, found.reason, found.change) == ("not comparable", reason, None)


def test_latency_is_not_compared_between_machines() -> None:
    old, new = two({"samples": calls(100)}, {"samples": calls(200)})
    rows = tuple(replace(row, machine="Another CPU, 8 CPUs") for row in new.rows)
    found = change(changes(old, replace(new, rows=rows)), "latency_ms")
    assert found.verdict == "not comparable"
    assert found.reason == "another machine: A CPU, 2 CPUs before, Another CPU, 8 CPUs now"
    flags = replace(new, environment=replace(new.environment, cpu_flags=("avx2", "avx512f")))
    assert "avx512f" in change(changes(old, flags), "latency_ms").reason


@pytest.mark.parametrize("side, when", [(0, "before"), (1, "now")])
def test_noisy_times_are_shown_but_not_judged(side: int, when: str) -> None:
    reports = list(two({"samples": calls(100)}, {"samples": calls(200)}))
    row = reports[side].rows[1]
    assert row.measured is not None
    for busy, verdict in ((0.19, "worse"), (1.3, "not comparable")):
        noisy = replace(row, measured=replace(row.measured, others_cpus=busy))
        reports[side] = replace(reports[side], rows=(reports[side].rows[0], noisy))
        found = change(changes(*reports), "latency_ms")
        assert found.verdict == verdict
        assert found.change == pytest.approx(2.0, rel=0.05)
    assert found.reason == f"noisy times {when}: other processes kept CPUs busy"


def test_the_reference_that_got_slower_is_named() -> None:
    reports = [
        made_report(
            made_row("torch/fp32", samples=calls(median, seed=seed)),
            made_row(LABEL, samples=calls(median / 2, seed=seed + 7)),
        )
        for seed, median in enumerate((100.0, 150.0))
    ]
    (note,) = changes(*reports).notes
    assert note.startswith("torch/fp32 itself takes 1.5")
    assert changes(reports[0], reports[0]).notes == ()


_CALLS = st.lists(st.floats(1.0, 1e4), min_size=1, max_size=12)
_OPPOSITE = {"better": "worse", "worse": "better"}


@settings(max_examples=40, deadline=None)
@given(_CALLS, _CALLS, st.integers(1, 10**9), st.integers(1, 10**9), st.floats(0, 1))
def test_the_other_way_round_it_is_the_opposite(
    before: list[float], after: list[float], small: int, large: int, error: float
) -> None:
    old, new = two(
        {"samples": before, "disk_bytes": small, "error": error},
        {"samples": after, "disk_bytes": large, "error": 0.1},
    )
    there, back = changes(old, new), changes(new, old)
    assert there.tests == back.tests
    for one, other in zip(there.variants[1].changes, back.variants[1].changes, strict=True):
        assert one.quantity == other.quantity
        assert other.verdict == _OPPOSITE.get(one.verdict, one.verdict)
        assert (other.old, other.new, other.p) == (one.new, one.old, pytest.approx(one.p))


# -- size ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size, verdict",
    [(2_000_000, "unchanged"), (2_000_012, "unchanged"), (2_010_000, "worse"), (1.9e6, "better")],
)
def test_size(size: float, verdict: str) -> None:
    found = change(changes(*two({}, {"disk_bytes": int(size)})), "disk_bytes")
    assert found.verdict == verdict
    assert found.p is None


def test_what_has_no_size_has_no_change_of_size() -> None:
    found = changes(*two({"disk_bytes": None}, {}))
    assert all(one.quantity != "disk_bytes" for one in found.variants[1].changes)


# -- by the truth -------------------------------------------------------------------------------


def scenes(shift: float, seed: int | None = None) -> list[TruthMetrics]:
    """Eight scenes; every one lost about the same."""
    rng = np.random.default_rng(seed)
    return [made_truth(float(level - shift + rng.normal(0, 0.1))) for level in LEVELS]


def test_a_loss_in_every_scene_is_found_however_hard_the_scenes_are() -> None:
    found = change(changes(*two({"truth": scenes(0.0, 1)}, {"truth": scenes(2.0, 2)})), "auc_30")
    assert found.verdict == "worse"
    assert found.change == pytest.approx(-2.0, abs=0.15)
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.change < found.high < 0.0
    assert (found.n_old, found.n_new, found.kind) == (8, 8, "difference")
    better = change(changes(*two({"truth": scenes(2.0, 1)}, {"truth": scenes(0.0, 2)})), "auc_30")
    assert better.verdict == "better"


def test_less_abs_rel_is_better() -> None:
    before = [made_truth(50.0, abs_rel=0.1 + 0.01 * i) for i in range(8)]
    after = [made_truth(50.0, abs_rel=0.07 + 0.0101 * i) for i in range(8)]
    assert change(changes(*two({"truth": before}, {"truth": after})), "abs_rel").verdict == "better"
    assert change(changes(*two({"truth": after}, {"truth": before})), "abs_rel").verdict == "worse"


def test_three_scenes_are_shown_but_can_not_tell() -> None:
    old, new = two({"truth": scenes(0.0)[:3]}, {"truth": scenes(20.0)[:3]})
    found = change(changes(old, new), "auc_30")
    assert found.verdict == "not comparable"
    assert found.reason == "too few to tell: 3 scenes, no outcome gives p of 0.05 or less"
    assert found.change == pytest.approx(-20.0, abs=0.5)
    assert found.low is not None


def test_scenes_are_paired_by_their_pictures() -> None:
    """In another order and under other names: the same pairs."""
    old, new = two({"truth": scenes(0.0, 1)}, {"truth": scenes(2.0, 2)})
    asked = [{**scene, "name": f"renamed_{i}"} for i, scene in enumerate(new.question["scenes"])]
    turned = replace(
        new,
        question={**new.question, "scenes": asked[::-1]},
        rows=tuple(replace(row, scenes=row.scenes[::-1]) for row in new.rows),
    )
    before, after = (change(changes(old, report), "auc_30") for report in (new, turned))
    assert after.change == pytest.approx(before.change)
    assert changes(old, turned).scenes == tuple(f"renamed_{i}" for i in range(7, -1, -1))


def test_scenes_that_one_report_lacks_are_left_out() -> None:
    old, new = two({"truth": scenes(0.0)}, {"truth": scenes(0.0)})
    asked = [dict(scene) for scene in new.question["scenes"]]
    asked[0]["pixels_sha256"] = "f" * 64
    asked[1]["truth"] = {**asked[1]["truth"], "sha256": "e" * 64}
    asked[2]["files"] = [{**file, "sha256": "d" * 64} for file in asked[2]["files"]]
    found = changes(old, replace(new, question={**new.question, "scenes": asked}))
    assert found.scenes == tuple(f"scene_{i}" for i in range(3, 8))
    assert found.left_out == (
        "scene_0: the same pictures, read to other pixels",
        "scene_1: the same pictures, another truth",
        "scene_2: the old report has no scene of these pictures",
        "scene_2: the new report has no scene of these pictures",
    )
    assert change(found, "auc_30").n_new == 5
    depth = change(found, "fp32/depth")
    assert depth.verdict == "not comparable"
    assert "not the same ones" in depth.reason


def test_another_protocol_is_not_compared() -> None:
    old, new = two({"truth": scenes(0.0)}, {"truth": scenes(0.0)})
    other = replace(new, protocol=replace(new.protocol, masks="bits 1 and 2"))
    found = change(changes(old, other), "auc_30")
    assert (found.verdict, found.reason) == (
        "not comparable", "other masks: no masks before, bits 1 and 2 now",
    )  # fmt: skip
    assert change(changes(old, other), "latency_ms").verdict == "unchanged"


def test_random_weights_are_no_evidence() -> None:
    old, new = two({"truth": scenes(0.0)}, {"truth": scenes(9.0)})
    model = {**new.question["model"], "kind": "random"}
    found = changes(old, replace(new, question={**new.question, "model": model}))
    for quantity in ("auc_30", "fp32/depth", "fp32/rotation"):
        assert change(found, quantity).reason == "random weights: accuracy is no evidence"


@pytest.mark.parametrize(
    "kind, change_, low, high, moved",
    [
        ("difference", -2.0, -3.0, -1.0, True),
        ("difference", -2.0, -3.0, 1.0, False),
        ("difference", -2.0, None, None, True),
        ("difference", 0.0, None, None, False),
        ("ratio", 1.5, 1.2, 1.7, True),
        ("ratio", 1.5, 0.9, 1.7, False),
        ("ratio", 1.01, None, None, False),
        ("ratio", 0.5, None, None, True),
        ("ratio", None, None, None, False),
    ],
)
def test_what_moved(
    kind: Any, change_: float | None, low: float | None, high: float | None, moved: bool
) -> None:
    one = Change(
        "latency_ms", "ms", "less", kind, 1.0, 1.0, change_, low, high, 1, 1, None, None,
        "not comparable",
    )  # fmt: skip
    assert one.moved == moved


# -- against FP32, status, notes ----------------------------------------------------------------


@pytest.mark.parametrize(
    "old, new, verdict",
    [
        (0.01, 0.0102, "unchanged"),
        (0.01, 0.02, "worse"),
        (0.02, 0.01, "better"),
        (1e-7, 9e-7, "unchanged"),
        (1e-7, 1e-3, "worse"),
    ],
)
def test_errors_against_fp32(old: float, new: float, verdict: str) -> None:
    found = changes(*two({"error": old}, {"error": new}))
    assert change(found, "fp32/depth").verdict == verdict
    assert change(found, "fp32/depth_abs_rel").verdict == verdict


def test_values_that_became_nan_are_worse() -> None:
    old, new = two({}, {})
    broken = replace(new.rows[1].accuracy["depth"], nonfinite_variant=3, relative_l2=None)
    rows = (new.rows[0], replace(new.rows[1], accuracy={"depth": broken}))
    worse = change(changes(old, replace(new, rows=rows)), "fp32/depth")
    assert (worse.verdict, worse.new, worse.reason) == ("worse", None, "NaN or infinite values now")
    assert change(changes(replace(new, rows=rows), old), "fp32/depth").verdict == "better"


def status_of(old: Row | None, new: Row | None) -> tuple[str, str]:
    first = made_row("torch/fp32")
    reports = [made_report(first, *([row] if row else [])) for row in (old, new)]
    variant = changes(*reports).variants[-1]
    return variant.status, variant.presence


def test_what_became_of_a_variant() -> None:
    works, fails, absent = made_row(LABEL), failed_row(LABEL), failed_row(LABEL, "not run")
    assert status_of(works, fails) == ("worse", "both")
    assert status_of(fails, works) == ("better", "both")
    assert status_of(fails, fails) == ("unchanged", "both")
    assert status_of(works, absent) == ("not comparable", "both")
    assert status_of(None, works) == ("not comparable", "appeared")
    assert status_of(works, None) == ("not comparable", "disappeared")


def test_what_else_differs_is_noted() -> None:
    old, new = two({}, {}, precision="fp16")
    model = {**new.question["model"], "sha256": "b" * 64}
    versions = {"torch": "2.10", "numpy": "2.0"}
    other = replace(
        new,
        question={**new.question, "model": model},
        environment=replace(new.environment, versions=versions),
    )
    assert changes(old, other).notes == (
        f"other weights: {'a' * 16} before, {'b' * 16} now",
        "another float type: None before, fp16 now",
        "numpy not there before, 2.0 now",
        "torch 2.9 before, 2.10 now",
    )


# -- the tests themselves -----------------------------------------------------------------------


def test_p_values_by_hand() -> None:
    # 3 scenes, all worse: 2 of the 8 ways to put signs are as extreme.
    assert compare_pairs([1.0, 2.0, 3.0]).p == pytest.approx(0.25)
    # 1 + 2 - 3 = 0: nothing is less extreme.
    assert compare_pairs([1.0, 2.0, -3.0]).p == pytest.approx(1.0)
    # 8 scenes with one small one the other way: 2 (1 + 1) of 256.
    assert compare_pairs([-0.5, *range(1, 8)]).p == pytest.approx(4 / 256)
    # Zeros say nothing.
    assert compare_pairs([0.0, 0.0, 1.0, 2.0, 3.0]) == compare_pairs([1.0, 2.0, 3.0])
    # 5 calls against 5, all apart: 2 of C(10, 5) = 252.
    assert compare_samples([1, 2, 3, 4, 5], [6, 7, 8, 9, 10]).p == pytest.approx(2 / 252)
    assert compare_samples([1.0] * 5, [1.0] * 4).p == 1.0
    # Ties: the normal approximation would give 0.004.
    assert compare_samples([1.0] * 5, [2.0] * 5).p == pytest.approx(2 / 252)


@pytest.mark.parametrize("differences", [[], [1.0], [0.0, 0.0]])
def test_one_scene_tells_nothing(differences: Sequence[float]) -> None:
    found = compare_pairs(differences)
    assert found.p == 1.0
    assert not found.can_tell


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_never_helps_and_keeps_the_order(values: list[float]) -> None:
    adjusted = holm(values)
    assert all(p <= a <= 1.0 for p, a in zip(values, adjusted, strict=True))
    assert adjusted[values.index(min(values))] == min(1.0, len(values) * min(values))
    pairs = sorted(zip(values, adjusted, strict=True))
    assert all(a[1] <= b[1] for a, b in pairwise(pairs))


def test_the_ratio_covers_the_true_one_about_as_often_as_it_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(significance, "RESAMPLES", 500)
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(200):
        _, low, high = ratio_of_medians(
            rng.normal(100, 5, 25).tolist(), rng.normal(120, 5, 25).tolist()
        )
        assert low is not None
        assert high is not None
        inside += low <= 1.2 <= high
    assert 0.88 * 200 <= inside <= 200
    assert ratio_of_medians([1.0], [2.0]) == (2.0, None, None)
