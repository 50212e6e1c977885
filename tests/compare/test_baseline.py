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
from made_reports import failed_row, made_calls, made_report, made_row, made_truth

from vggt_deploy.compare import significance
from vggt_deploy.compare.baseline import Change, Changes, changes
from vggt_deploy.compare.report import ComparisonReport, Row
from vggt_deploy.compare.significance import compare_pairs, compare_samples, holm
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
    old, new = two({"samples": made_calls(100, 20)}, {"samples": made_calls(130, 20, seed=1)})
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


@pytest.mark.parametrize(
    "quantity, lost, verdict",
    [
        ("auc_30", {"auc_30": 1e-6}, "unchanged"),
        ("auc_30", {"auc_30": 0.004}, "unchanged"),
        ("auc_30", {"auc_30": 0.006}, "worse"),
        ("abs_rel", {"abs_rel": 4e-5}, "unchanged"),
        ("abs_rel", {"abs_rel": 6e-5}, "worse"),
        ("point_error", {"point_error": 4e-5}, "unchanged"),
        ("point_error", {"point_error": 6e-5}, "worse"),
    ],
)
def test_what_is_below_the_last_place_by_the_truth_is_unchanged(
    quantity: str, lost: dict[str, float], verdict: str
) -> None:
    """Thirteen scenes that all lost a little: told from none, whatever it is."""

    def thirteen(auc_30: float = 0.0, abs_rel: float = 0.0, point_error: float = 0.0) -> Any:
        return [
            made_truth(10.0 + 6 * i - auc_30, 0.1 + abs_rel, 0.05 + point_error) for i in range(13)
        ]

    found = change(changes(*two({"truth": thirteen()}, {"truth": thirteen(**lost)})), quantity)
    assert found.p_adjusted is not None
    assert found.p_adjusted < 0.01
    assert found.verdict == verdict
    assert found.moved == (verdict == "worse")
    if verdict == "unchanged":
        least = "0.005" if quantity == "auc_30" else "0.00005"
        assert found.reason == f"told from none, but below {least}"


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
        ("ratio", 1.01, 1.005, 1.015, False),
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
