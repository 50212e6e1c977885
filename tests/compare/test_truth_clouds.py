"""Accuracy, completeness and F-score of clouds: by hand, and against a search without a tree."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from vggt_deploy.compare.truth_clouds import (
    TOLERANCES_M,
    VOXEL_M,
    CloudScore,
    CloudTruth,
    cloud_truth,
    nearest,
    thinned,
)

Array = NDArray[np.float64]
SIZE = 3.0  # of the scene, metres


def cloud(predicted: list[list[float]], true: list[list[float]], missing: int = 0) -> CloudTruth:
    points = np.asarray(predicted, np.float64).reshape(-1, 3)
    return cloud_truth(points, missing, np.asarray(true, np.float64), SIZE)


def score(found: CloudTruth, threshold_m: float) -> CloudScore:
    return next(each for each in found.scores if each.threshold_m == threshold_m)


def brute(points: Array, others: Array) -> Array:
    """Nearest neighbours by all distances."""
    return np.asarray(np.linalg.norm(points[:, None] - others[None], axis=-1).min(axis=1))


def test_clouds_by_hand() -> None:
    """Three true points; two are found, off by 3 cm and 0.15 m, and a fourth stands 1 m away."""
    true = [[0.0, 0, 0], [1.0, 0, 0], [2.0, 0, 0]]
    found = cloud([[0.03, 0, 0], [1.0, 0.15, 0], [0.0, 0, 1.0]], true)
    assert (found.predicted_points, found.true_points, found.not_finite) == (3, 3, 0)
    assert found.accuracy_mean_m == pytest.approx((0.03 + 0.15 + 1.0) / 3)
    assert found.accuracy_median_m == pytest.approx(0.15)
    last = math.hypot(1.0, 0.15)  # from (2, 0, 0) to (1, 0.15, 0)
    assert found.completeness_mean_m == pytest.approx((0.03 + 0.15 + last) / 3)
    assert found.completeness_median_m == pytest.approx(0.15)
    assert found.overall_m == pytest.approx((found.accuracy_mean_m + found.completeness_mean_m) / 2)
    assert [each.threshold_m for each in found.scores] == list(TOLERANCES_M)
    third, two_thirds = pytest.approx(100 / 3), pytest.approx(200 / 3)
    assert score(found, 0.02) == CloudScore(0.02, 0.0, 0.0, 0.0)
    at_5_cm, at_20_cm = score(found, 0.05), score(found, 0.2)
    assert (at_5_cm.precision, at_5_cm.recall, at_5_cm.f_score) == (third, third, third)
    assert (at_20_cm.precision, at_20_cm.recall, at_20_cm.f_score) == (two_thirds,) * 3


def test_the_two_sides_are_told_apart() -> None:
    """Half of the scene, perfectly: accurate and incomplete; with much beside it: the reverse."""
    true = [[float(x), 0.0, 0.0] for x in range(4)]
    half = cloud(true[:2], true)
    assert (half.accuracy_mean_m, half.completeness_mean_m) == (0.0, pytest.approx(3 / 4))
    assert (score(half, 0.1).precision, score(half, 0.1).recall) == (100.0, 50.0)
    assert score(half, 0.1).f_score == pytest.approx(200 / 3)
    more = cloud([*true, *([float(x), 5.0, 0.0] for x in range(4))], true)
    assert (more.accuracy_mean_m, more.completeness_mean_m) == (2.5, 0.0)
    assert (score(more, 0.1).precision, score(more, 0.1).recall) == (50.0, 100.0)
    assert score(more, 0.1).f_score == pytest.approx(200 / 3)


def test_a_cloud_that_is_the_truth() -> None:
    true = np.random.default_rng(0).uniform(-2, 2, (500, 3))
    found = cloud_truth(true.copy(), 0, true, SIZE)
    assert (found.accuracy_mean_m, found.completeness_mean_m, found.overall_m) == (0.0, 0.0, 0.0)
    assert all(each.f_score == 100.0 for each in found.scores)


def test_the_threshold_itself_is_not_within() -> None:
    true = [[0.0, 0.0, 0.0]]
    assert score(cloud([[0.5, 0.0, 0.0]], true), 0.5).precision == 0.0
    assert score(cloud([[0.499, 0.0, 0.0]], true), 0.5).precision == 100.0
    # Nor for the true points: of two the nearest prediction is just at 0.5 m of one.
    both = [[0.0, 0.0, 0.0], [0.5, 0.0, 0.0]]
    at = score(cloud([[0.0, 0.0, 0.0]], both), 0.5)
    assert (at.precision, at.recall) == (100.0, 50.0)
    nearer = score(cloud([[0.001, 0.0, 0.0]], both), 0.5)
    assert (nearer.precision, nearer.recall) == (100.0, 100.0)


def test_points_that_are_not_finite_are_misses() -> None:
    """Two right points and two that are none: precision a half, accuracy half of the scene's size;
    what was found stays found.
    """
    true = [[0.0, 0, 0], [1.0, 0, 0], [2.0, 0, 0], [3.0, 0, 0]]
    found, without = cloud(true[:2], true, missing=2), cloud(true[:2], true)
    assert (found.predicted_points, found.not_finite) == (4, 2)
    assert found.accuracy_mean_m == pytest.approx(2 * SIZE / 4)
    assert found.completeness_mean_m == without.completeness_mean_m
    assert (score(found, 0.1).precision, score(found, 0.1).recall) == (50.0, 50.0)
    assert score(without, 0.1).precision == 100.0


def test_a_miss_is_no_hit_in_a_tiny_scene_either() -> None:
    """The scene is smaller than the largest tolerance: its size as a distance would be within."""
    true = np.array([[0.0, 0, 0], [0.1, 0, 0]])
    found = cloud_truth(true, 2, true, 0.05)
    assert score(found, 0.5).precision == 50.0


def test_nothing_predicted_at_all() -> None:
    found = cloud([], [[0.0, 0, 0], [1.0, 0, 0]], missing=4)
    assert (found.accuracy_mean_m, found.completeness_mean_m, found.overall_m) == (SIZE,) * 3
    assert all(each == CloudScore(each.threshold_m, 0.0, 0.0, 0.0) for each in found.scores)


def test_thinning_by_hand() -> None:
    """Two points in one cube become their mean; a neighbour across the cube's wall stays."""
    points = np.array([[0.001, 0.0, 0.0], [0.009, 0.002, 0.0], [0.011, 0.0, 0.0], [-0.001, 0, 0]])
    found = thinned(points, 0.01)
    expected = np.array([[-0.001, 0.0, 0.0], [0.005, 0.001, 0.0], [0.011, 0.0, 0.0]])
    assert found[np.argsort(found[:, 0])] == pytest.approx(expected)
    assert len(thinned(points, 0.1)) == 2


@given(st.integers(0, 2**32 - 1), st.integers(1, 200))
def test_thinning_keeps_one_mean_for_each_cube(seed: int, count: int) -> None:
    points = np.random.default_rng(seed).uniform(-0.05, 0.05, (count, 3))
    found = thinned(points, VOXEL_M)
    cubes: dict[tuple[int, ...], list[Array]] = {}
    for point in points:
        cubes.setdefault(tuple(math.floor(x / VOXEL_M) for x in point), []).append(point)
    means = np.array([np.mean(cubes[key], axis=0) for key in sorted(cubes)])
    assert found == pytest.approx(means)
    shuffled = np.random.default_rng(0).permutation(points)
    assert thinned(shuffled, VOXEL_M) == pytest.approx(found)


@given(st.integers(0, 2**32 - 1))
def test_nearest_is_that_of_all_distances(seed: int) -> None:
    rng = np.random.default_rng(seed)
    points, others = rng.normal(size=(60, 3)), rng.normal(size=(40, 3))
    assert nearest(points, others) == pytest.approx(brute(points, others))
    assert nearest(others, points) == pytest.approx(brute(others, points))


def test_a_wall_that_many_pixels_saw_does_not_outvote_the_rest() -> None:
    """1000 pixels on one square centimetre, right, and 10 elsewhere, wrong by 1 m."""
    rng = np.random.default_rng(0)
    near = np.column_stack([rng.uniform(0.0, 0.009, (1000, 2)), np.full(1000, 0.005)])
    far = np.column_stack([np.arange(10) + 5.0, np.zeros((10, 2))])
    true = np.concatenate([near, far])
    wrong = np.concatenate([near, far + np.array([0.0, 1.0, 0.0])])
    found = cloud_truth(wrong, 0, true, SIZE)
    assert found.accuracy_mean_m == pytest.approx(10 / 11, rel=0.01)
    assert brute(wrong, true).mean() < 0.02  # without thinning


def test_absurd_distances_stay_numbers() -> None:
    """float32's largest values, as a broken layer gives them: no overflow, no wrapped cube."""
    true = np.array([[0.0, 0, 0], [1.0, 0, 0], [2.0, 0, 0]])
    found = cloud_truth(np.array([[3e38, 0, 0], [-3e38, 1e30, 0], [0.0, 0, 0]]), 0, true, SIZE)
    assert found.predicted_points == 3
    assert math.isfinite(found.accuracy_mean_m)
    assert found.completeness_mean_m == pytest.approx(1.0)
    assert score(found, 0.01).precision == pytest.approx(100 / 3)


def test_moving_the_prediction_away_makes_every_number_worse() -> None:
    true = np.random.default_rng(1).uniform(0, 1, (400, 3))
    away = np.array([0.0, 0.0, 1.0])
    steps = [cloud_truth(true + shift * away, 0, true, SIZE) for shift in (0.0, 0.3, 0.9)]
    for a, b in pairwise(steps):
        assert a.accuracy_mean_m < b.accuracy_mean_m
        assert a.completeness_mean_m < b.completeness_mean_m
        assert score(a, 0.1).f_score > score(b, 0.1).f_score
