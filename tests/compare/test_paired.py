"""Losses by the truth: paired over scenes, with an interval that is the same each time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from vggt_deploy.compare.paired import Difference, TruthLoss, mean_with_interval, truth_loss
from vggt_deploy.compare.truth import (
    CloudScore,
    CloudTruth,
    DepthTruth,
    PointTruth,
    PoseTruth,
    TruthMetrics,
)
from vggt_deploy.compare.truth_clouds import LOSS_TOLERANCE_M, TOLERANCES_M
from vggt_deploy.errors import CompareError


def scene(
    auc_30: float, abs_rel: float | None = None, overall_m: float | None = None
) -> TruthMetrics:
    """One scene; its affine AbsRel is half of AbsRel, its F-scores and the point error, whose mean
    is thrice its median, follow from `overall_m`.
    """
    pose = PoseTruth(
        pairs=6,
        auc_3=auc_30 / 3,
        auc_5=auc_30 / 2,
        auc_30=auc_30,
        **dict.fromkeys(("rra_5", "rra_15", "rra_30", "rta_5", "rta_15", "rta_30"), 50.0),
        rotation_median_deg=1.0,
        direction_median_deg=1.0,
        pairs_without_baseline=0,
    )
    depth = None
    if abs_rel is not None:
        depth = DepthTruth(10, 1.0, abs_rel, 1.0, 1.0, 0.0, abs_rel / 2, 1.0)
    points = None
    if overall_m is not None:
        scores = tuple(CloudScore(t, 0.0, 0.0, 100.0 * (t - overall_m)) for t in TOLERANCES_M)
        cloud = CloudTruth(
            0.01, 10, 0, 10, overall_m, overall_m, overall_m, overall_m, overall_m, scores
        )
        mean, median = 6.0 * overall_m, 2.0 * overall_m
        points = PointTruth(10, mean, median, 1.0, mean, median, None, cloud)
    return TruthMetrics(pose, depth, points)


def test_above_zero_is_worse_for_every_quantity() -> None:
    reference = [scene(80.0, 0.1, 0.05), scene(40.0, 0.3, 0.07)]
    worse = [scene(79.0, 0.11, 0.06), scene(37.0, 0.33, 0.08)]
    found = truth_loss(worse, reference)
    assert found.auc_30 is not None
    assert found.auc_5 is not None
    assert found.abs_rel is not None
    assert (found.auc_30.n, found.auc_30.mean) == (2, 2.0)
    assert found.auc_5.mean == pytest.approx(1.0)
    assert found.abs_rel.mean == pytest.approx(0.02)
    assert found.abs_rel_affine is not None
    assert found.overall_m is not None
    assert found.f_score is not None
    assert found.abs_rel_affine.mean == pytest.approx(0.01)
    assert found.overall_m.mean == pytest.approx(0.01)
    assert found.f_score.mean == pytest.approx(1.0)  # 1 cm nearer is 1 percent less, see `scene`
    assert found.point_error is not None
    assert found.point_error.mean == pytest.approx(0.02)  # of medians, not of means
    assert found.auc_3 is not None
    assert found.auc_3.mean == pytest.approx(2.0 / 3.0)
    better = truth_loss(reference, worse)
    assert better.auc_30 is not None
    assert better.auc_30.mean == -2.0


def test_the_f_score_is_the_one_at_the_tolerance_of_the_losses() -> None:
    """The twin: only that tolerance's score is worse, then only another's."""

    def other(tolerance: float) -> TruthMetrics:
        points = scene(50.0, None, 0.1).points
        assert points is not None
        assert points.cloud is not None
        scores = tuple(
            replace(score, f_score=score.f_score - 5.0 * (score.threshold_m == tolerance))
            for score in points.cloud.scores
        )
        return TruthMetrics(points=replace(points, cloud=replace(points.cloud, scores=scores)))

    reference = [scene(50.0, None, 0.1)]
    for tolerance, lost in ((LOSS_TOLERANCE_M, 5.0), (0.5, 0.0)):
        found = truth_loss([other(tolerance)], reference).f_score
        assert found is not None
        assert found.mean == pytest.approx(lost)


def test_pairing_takes_out_how_hard_a_scene_is() -> None:
    """The same two points everywhere: no spread, though the scenes spread from 10 to 90."""
    levels = np.linspace(10.0, 90.0, 9)
    found = truth_loss([scene(a - 2.0) for a in levels], [scene(a) for a in levels]).auc_30
    assert found is not None
    assert (found.low, found.high) == pytest.approx((2.0, 2.0))
    unpaired = mean_with_interval(list(levels))
    assert unpaired.low is not None
    assert unpaired.high is not None
    assert unpaired.high - unpaired.low > 20.0


def test_the_interval_is_deterministic_and_near_the_normal_one() -> None:
    values = list(np.random.default_rng(5).normal(1.0, 2.0, 64))
    found = mean_with_interval(values)
    assert found == mean_with_interval(values)
    assert found.low is not None
    assert found.high is not None
    half = 1.96 * np.std(values) / 8.0
    assert found.low == pytest.approx(found.mean - half, abs=0.12)
    assert found.high == pytest.approx(found.mean + half, abs=0.12)
    shifted = mean_with_interval([value + 7.0 for value in values])
    assert shifted.low == pytest.approx(found.low + 7.0)


def test_the_interval_covers_the_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(11)
    covered = 0
    for _ in range(60):
        found = mean_with_interval(list(rng.normal(0.0, 1.0, 20)))
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 0.0 <= found.high
    assert 50 <= covered <= 60


def test_one_scene_has_no_interval() -> None:
    assert mean_with_interval([0.5]) == Difference(1, 0.5, None, None)


def test_scenes_that_lack_a_number_are_not_in_its_mean() -> None:
    reference = [scene(80.0, 0.1), scene(40.0)]
    found = truth_loss([scene(70.0, 0.2), scene(40.0)], reference)
    assert found.auc_30 is not None
    assert found.abs_rel is not None
    assert (found.auc_30.n, found.abs_rel.n) == (2, 1)


def test_other_scenes_can_not_be_paired() -> None:
    with pytest.raises(ValueError, match="longer"):
        truth_loss([scene(1.0)], [scene(1.0), scene(2.0)])


def test_json_both_ways() -> None:
    found = truth_loss([scene(70.0, 0.2)], [scene(80.0, 0.1)])
    assert TruthLoss.from_json(found.to_json()) == found
    with pytest.raises(CompareError, match="unknown field"):
        TruthLoss.from_json(found.to_json() | {"auc_10": None})
