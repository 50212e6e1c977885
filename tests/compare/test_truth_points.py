"""Points against the truth: the alignment that is recorded, rays of a lens, clouds on request."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
from numpy.typing import NDArray

from vggt_deploy.compare.truth import PointTruth, true_points, truth_metrics
from vggt_deploy.compare.truth_clouds import cloud_truth

Array = NDArray[np.float64]
HEIGHT, WIDTH = 14, 28
TURN = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])  # 90 degrees about z


@dataclass(frozen=True)
class Known:
    """Two cameras, one turned about its optical axis, before a slanted wall."""

    extrinsic: Array
    intrinsic: Array
    depth: NDArray[np.float32] | None
    rays: Array | None = None


@pytest.fixture
def truth() -> Known:
    extrinsic = np.stack([np.eye(3, 4), np.column_stack([TURN, [0.2, -0.1, 0.3]])])
    intrinsic = np.tile(np.array([[25.0, 0, 14.2], [0, 24.0, 6.9], [0, 0, 1]]), (2, 1, 1))
    depth = np.random.default_rng(1).uniform(2.0, 5.0, (2, HEIGHT, WIDTH)).astype(np.float32)
    depth[:, 0, :3] = np.inf
    return Known(extrinsic, intrinsic, depth)


def points_of(truth: Known, predicted: Array, *, clouds: bool = False) -> PointTruth:
    found = truth_metrics({"world_points": predicted[None]}, truth, clouds=clouds).points
    assert found is not None
    return found


def seen(truth: Known, scale: float, shift: tuple[float, float, float]) -> Array:
    """True points as a network in another world and unit would answer; 9 where nobody knows."""
    points = np.nan_to_num(true_points(truth), nan=9.0)
    return np.asarray(scale * points @ TURN.T + np.array(shift))


def test_the_alignment_is_recorded(truth: Known) -> None:
    """True = s R x + t undoes what was done to the points."""
    found = points_of(truth, seen(truth, 0.25, (1.0, 2.0, -3.0))).alignment
    assert found is not None
    assert found.scale == pytest.approx(4.0)
    assert np.reshape(found.rotation, (3, 3)) == pytest.approx(TURN.T)
    assert found.translation == pytest.approx(-4.0 * TURN.T @ np.array([1.0, 2.0, -3.0]))
    assert found.rms_m == pytest.approx(0.0, abs=1e-9)
    # Row by row: column by column it would not align.
    point = seen(truth, 0.25, (1.0, 2.0, -3.0))[1, 5, 7]
    rotation = np.reshape(found.rotation, (3, 3))
    there = found.scale * rotation @ point + found.translation
    assert there == pytest.approx(true_points(truth)[1, 5, 7])
    assert found.scale * rotation.T @ point + found.translation != pytest.approx(there)


def test_the_rest_of_the_alignment_is_a_root_mean_square(truth: Known) -> None:
    noise = np.random.default_rng(0).normal(0.0, 0.05, (2, HEIGHT, WIDTH, 3))
    found = points_of(truth, seen(truth, 1.0, (0, 0, 0)) + noise).alignment
    assert found is not None
    assert found.rms_m == pytest.approx(0.05 * math.sqrt(3), rel=0.05)


def test_an_outlier_pulls_the_alignment(truth: Known) -> None:
    """Umeyama's is no robust fit: one point far away moves all others. Said, and so it stays."""
    right = seen(truth, 1.0, (0, 0, 0))
    pulled = right.copy()
    pulled[0, 5, 5] += 100.0
    assert points_of(truth, right).median < 1e-9
    assert points_of(truth, pulled).median > 0.1


def test_no_alignment_without_three_points(truth: Known) -> None:
    predicted = np.full((2, HEIGHT, WIDTH, 3), np.nan)
    predicted[0, 5, 5:7] = 1.0
    found = points_of(truth, predicted, clouds=True)
    assert found.alignment is None
    assert found.cloud is not None
    assert found.cloud.not_finite == found.points == 2 * HEIGHT * WIDTH - 6
    assert found.mean_relative == pytest.approx(1.0)
    assert found.cloud.accuracy_mean_m == pytest.approx(found.scene_size)
    assert {score.f_score for score in found.cloud.scores} == {0.0}


# --- clouds


def test_clouds_are_of_the_aligned_points_where_the_truth_is_known(truth: Known) -> None:
    predicted = seen(truth, 0.25, (1.0, 2.0, -3.0))
    assert points_of(truth, predicted).cloud is None
    found = points_of(truth, predicted, clouds=True).cloud
    assert found is not None
    known = true_points(truth)[np.isfinite(true_points(truth)).all(axis=-1)]
    assert found.true_points == cloud_truth(known, 0, known, 1.0).true_points <= len(known)
    assert found.overall_m < 1e-9
    assert [score.f_score for score in found.scores] == [100.0] * 6


def test_clouds_forgive_a_swap_that_the_pixels_do_not(truth: Known) -> None:
    """Two pixels that answer each other's point: as a cloud the same, pixel by pixel not."""
    predicted = seen(truth, 1.0, (0, 0, 0))
    swapped = predicted.copy()
    swapped[0, 5, ::2], swapped[0, 5, 1::2] = predicted[0, 5, 1::2], predicted[0, 5, ::2]
    # The alignment moves a little, as it goes by pixels.
    right, wrong = (points_of(truth, each, clouds=True) for each in (predicted, swapped))
    assert right.cloud is not None
    assert wrong.cloud is not None
    assert wrong.mean > right.mean + 0.01
    assert wrong.cloud.overall_m < 0.5 * wrong.mean


def test_broken_points_are_misses_of_the_cloud(truth: Known) -> None:
    predicted = seen(truth, 1.0, (0, 0, 0))
    predicted[1, 7:] = np.nan
    found = points_of(truth, predicted, clouds=True).cloud
    assert found is not None
    assert found.not_finite == 7 * WIDTH
    fine = found.predicted_points - found.not_finite
    assert found.scores[-1].precision == pytest.approx(100 * fine / found.predicted_points)


# --- rays of a lens


def pinhole_rays(truth: Known) -> Array:
    v, u = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    rays = np.stack([(u - 14.2) / 25.0, (v - 6.9) / 24.0], axis=-1)
    return np.broadcast_to(rays, (2, HEIGHT, WIDTH, 2)).copy()


def test_rays_of_the_pinhole_camera_change_nothing(truth: Known) -> None:
    with_rays = replace(truth, rays=pinhole_rays(truth))
    assert true_points(with_rays) == pytest.approx(true_points(truth), nan_ok=True)


def test_rays_of_a_lens_give_its_points(truth: Known) -> None:
    """X = R^T (z [x, y, 1] - t), by hand for one pixel of the second camera."""
    rays = 0.9 * pinhole_rays(truth)
    rays[1, 3, 4] = (0.5, -0.25)
    rays[0, 2, 2] = np.nan  # outside of the lens
    assert truth.depth is not None
    found = true_points(replace(truth, rays=rays))
    z = float(truth.depth[1, 3, 4])
    in_camera = np.array([0.5 * z, -0.25 * z, z]) - truth.extrinsic[1, :, 3]
    assert found[1, 3, 4] == pytest.approx(truth.extrinsic[1, :, :3].T @ in_camera)
    assert np.isnan(found[0, 2, 2]).all()
    # The twin: taken for a pinhole camera, the points of a lens are off.
    assert np.nanmax(np.abs(found - true_points(truth))) > 0.05


def test_pixels_without_a_ray_are_not_known(truth: Known) -> None:
    rays = pinhole_rays(truth)
    rays[:, 10:] = np.nan
    lens = replace(truth, rays=rays)
    outputs = {
        "world_points": np.nan_to_num(true_points(lens), nan=9.0)[None],
        "depth": np.ones((1, 2, HEIGHT, WIDTH, 1)),
    }
    found = truth_metrics(outputs, lens)
    assert found.points is not None
    assert found.depth is not None
    assert found.points.points == found.depth.pixels == 2 * 10 * WIDTH - 6
    assert found.points.mean < 1e-9
