"""Losses by the truth: paired over scenes, with an interval that is the same each time."""

from __future__ import annotations

import numpy as np
import pytest

from vggt_deploy.compare.paired import Difference, TruthLoss, mean_with_interval, truth_loss
from vggt_deploy.compare.truth import DepthTruth, PoseTruth, TruthMetrics
from vggt_deploy.errors import CompareError


def scene(auc_30: float, abs_rel: float | None = None) -> TruthMetrics:
    depth = None if abs_rel is None else DepthTruth(10, 1.0, abs_rel, 1.0)
    return TruthMetrics(PoseTruth(6, auc_30 / 3, auc_30 / 2, auc_30, 1.0, 1.0, 0), depth)


def test_above_zero_is_worse_for_every_quantity() -> None:
    reference = [scene(80.0, 0.1), scene(40.0, 0.3)]
    worse = [scene(79.0, 0.11), scene(37.0, 0.33)]
    found = truth_loss(worse, reference)
    assert found.auc_30 is not None
    assert found.auc_5 is not None
    assert found.abs_rel is not None
    assert (found.auc_30.n, found.auc_30.mean) == (2, 2.0)
    assert found.auc_5.mean == pytest.approx(1.0)
    assert found.abs_rel.mean == pytest.approx(0.02)
    assert found.point_error is None
    better = truth_loss(reference, worse)
    assert better.auc_30 is not None
    assert better.auc_30.mean == -2.0


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
