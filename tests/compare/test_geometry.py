"""Pose, depth and point errors: known changes give known numbers, wrong conventions do not."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from vggt_deploy.compare.geometry import (
    GeometryMetrics,
    depth_errors,
    direction_angles_deg,
    geometry_metrics,
    point_errors,
    pose_errors,
    relative_poses,
    rotation_angles_deg,
)
from vggt_deploy.typed_json import decode, parse

Array = NDArray[np.float64]


def rotation(axis: str, degrees: float) -> Array:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    matrix = np.eye(3)
    matrix[i, i] = matrix[j, j] = c
    matrix[i, j], matrix[j, i] = -s, s
    return matrix


def camera(r: Array, centre: tuple[float, float, float]) -> Array:
    """World-to-camera [3, 4] of a camera at `centre`."""
    return np.concatenate([r, -r @ np.array(centre)[:, None]], axis=1)


SCENE = np.stack(
    [
        camera(np.eye(3), (0.0, 0.0, 0.0)),
        camera(rotation("y", 20.0), (1.0, 0.0, 0.0)),
        camera(rotation("x", -15.0), (0.5, 0.7, -0.2)),
    ]
)


@pytest.mark.parametrize("angle", [1e-6, 1e-3, 0.5, 90.0, 179.0])
def test_rotation_angle(angle: float) -> None:
    turned = rotation("z", angle) @ rotation("x", 33.0)
    found = rotation_angles_deg(turned[None], rotation("x", 33.0)[None])
    assert found[0] == pytest.approx(angle, rel=1e-6, abs=1e-12)


def test_arccos_would_lose_small_angles() -> None:
    """The twin: the usual arccos of the trace is wrong at a microdegree."""
    m = rotation("z", 1e-6)
    arccos = math.degrees(math.acos(min(1.0, (np.trace(m) - 1.0) / 2.0)))
    assert arccos != pytest.approx(1e-6, rel=0.1)


def test_direction_angle() -> None:
    a, b = np.array([[1.0, 0.0, 0.0]]), np.array([[1.0, 1.0, 0.0]])
    assert direction_angles_deg(a, b)[0] == pytest.approx(45.0)
    assert direction_angles_deg(a, -a)[0] == pytest.approx(180.0)
    assert direction_angles_deg(1e-100 * a, b)[0] == pytest.approx(45.0)


def test_equal_cameras_have_no_error() -> None:
    errors = pose_errors(SCENE, SCENE)
    assert errors.pairs == 3
    assert errors.rotation is not None
    assert errors.direction is not None
    assert errors.rotation.max_deg < 1e-9
    assert errors.direction.max_deg < 1e-5


def test_one_turned_camera() -> None:
    """Turning camera 1 in place by 2 degrees: its two pairs are off by 2, the third is not."""
    turned = SCENE.copy()
    turned[1] = rotation("z", 2.0) @ SCENE[1]
    errors = pose_errors(turned, SCENE)
    assert errors.rotation is not None
    assert errors.rotation.n == 3
    assert errors.rotation.mean_deg == pytest.approx(4.0 / 3.0)
    assert errors.rotation.max_deg == pytest.approx(2.0)


def test_one_moved_camera() -> None:
    """Two cameras, the second moved from (1, 0, 0) to (1, 1, 0): 45 degrees, no rotation error."""
    reference = np.stack([camera(np.eye(3), (0, 0, 0)), camera(rotation("y", 9.0), (1, 0, 0))])
    moved = np.stack([camera(np.eye(3), (0, 0, 0)), camera(rotation("y", 9.0), (1, 1, 0))])
    errors = pose_errors(moved, reference)
    assert errors.rotation is not None
    assert errors.direction is not None
    assert errors.rotation.max_deg < 1e-9
    assert errors.direction.mean_deg == pytest.approx(45.0)


@given(st.floats(-180, 180), st.floats(0.1, 10.0), st.tuples(*[st.floats(-5, 5)] * 3))
def test_world_frame_and_scale_do_not_matter(
    turn: float, scale: float, shift: tuple[float, float, float]
) -> None:
    """X' = s R X + t: the same scene in other coordinates has the same relative poses."""
    r, t = rotation("y", turn), np.array(shift)
    moved = SCENE.copy()
    moved[:, :, :3] = SCENE[:, :, :3] @ r.T
    moved[:, :, 3] = scale * SCENE[:, :, 3] - np.einsum("sij,j->si", moved[:, :, :3], t)
    errors = pose_errors(moved, SCENE)
    assert errors.rotation is not None
    assert errors.direction is not None
    assert errors.rotation.max_deg < 1e-6
    assert errors.direction.max_deg < 1e-4


def test_camera_to_world_by_mistake_shows() -> None:
    """The twin of the tests above: inverted matrices are not taken for the same poses."""
    inverted = SCENE.copy()
    inverted[:, :, :3] = np.swapaxes(SCENE[:, :, :3], 1, 2)
    inverted[:, :, 3] = -np.einsum("sij,sj->si", inverted[:, :, :3], SCENE[:, :, 3])
    errors = pose_errors(inverted, SCENE)
    assert errors.direction is not None
    assert errors.direction.max_deg > 5.0


def test_relative_pose_maps_points_between_cameras() -> None:
    r, t = relative_poses(SCENE)
    point = np.array([0.3, -0.2, 4.0])
    in_first = SCENE[0, :, :3] @ point + SCENE[0, :, 3]
    in_second = SCENE[1, :, :3] @ point + SCENE[1, :, 3]
    assert r[0] @ in_first + t[0] == pytest.approx(in_second)


def test_no_baseline_no_direction() -> None:
    standing = np.stack([SCENE[0], camera(rotation("y", 5.0), (0, 0, 0)), SCENE[1]])
    errors = pose_errors(SCENE, standing)
    assert errors.pairs == 3
    assert errors.pairs_without_baseline == 1
    assert errors.direction is not None
    assert errors.direction.n == 2


def test_a_baseline_that_vanished_is_counted_as_lost() -> None:
    collapsed = SCENE.copy()
    collapsed[:, :, 3] = 0.0
    errors = pose_errors(collapsed, SCENE)
    assert errors.pairs_lost == 3
    assert errors.direction is None
    assert errors.rotation is not None


def test_all_cameras_in_one_place() -> None:
    standing = SCENE.copy()
    standing[:, :, 3] = 0.0
    errors = pose_errors(SCENE, standing)
    assert errors.pairs_without_baseline == 3
    assert errors.pairs_lost == 0
    assert errors.direction is None


def test_one_image_has_no_pairs() -> None:
    errors = pose_errors(SCENE[:1], SCENE[:1])
    assert errors.pairs == 0
    assert errors.rotation is None
    assert errors.direction is None


def test_depth_by_hand() -> None:
    """Median alignment: b / a medians 4 / 2 = 2; 2 a = (2, 4, 12); errors 0, 0, 4 / 8."""
    errors = depth_errors(np.array([1.0, 2.0, 6.0]), np.array([2.0, 4.0, 8.0]))
    assert errors is not None
    assert errors.scale == 2.0
    assert errors.abs_rel == pytest.approx(0.5 / 3.0)
    assert errors.delta_125 == pytest.approx(2.0 / 3.0)
    unaligned = np.mean(np.abs(np.array([1.0, 2.0, 6.0]) - [2.0, 4.0, 8.0]) / [2.0, 4.0, 8.0])
    assert errors.abs_rel != pytest.approx(unaligned)


def test_depth_counts_what_it_leaves_out() -> None:
    errors = depth_errors(np.array([1.0, 1.0, -3.0, 1.0]), np.array([1.0, 1.0, 1.0, 0.0]))
    assert errors is not None
    assert errors.pixels == 3
    assert errors.pixels_left_out == 1
    assert errors.delta_125 == pytest.approx(2.0 / 3.0)  # the negative one fails, and stays in
    assert depth_errors(np.array([1.0]), np.array([0.0])) is None


def test_points_by_hand() -> None:
    """Reference at x = 0, 1, 2, 3, 10: median 2, distances 2, 1, 0, 1, 8: scene size 1."""
    reference = np.zeros((5, 3))
    reference[:, 0] = [0.0, 1.0, 2.0, 3.0, 10.0]
    variant = reference.copy()
    variant[:, 1] = [0.0, 0.0, 0.1, 0.2, 0.7]
    errors = point_errors(variant, reference)
    assert errors.scene_size == 1.0
    assert errors.mean == pytest.approx(0.2)
    assert errors.median == pytest.approx(0.1)
    assert errors.mean_relative == pytest.approx(0.2)
    scaled = point_errors(10 * variant, 10 * reference)
    assert scaled.mean == pytest.approx(2.0)
    assert scaled.mean_relative == pytest.approx(0.2)


def test_points_in_one_place_have_no_size() -> None:
    errors = point_errors(np.ones((4, 3)), np.zeros((4, 3)))
    assert errors.mean_relative is None


def _outputs() -> dict[str, NDArray[np.float32]]:
    pose = np.zeros((1, 2, 9), dtype=np.float32)
    pose[0, 1, 0] = 0.5
    pose[..., 6] = 1.0
    pose[..., 7:] = 1.0
    depth = 2.0 + np.random.default_rng(0).random((1, 2, 14, 28, 1), dtype=np.float32)
    return {"pose_enc": pose, "depth": depth, "world_points": np.repeat(depth, 3, -1)}


def test_everything_together() -> None:
    reference = _outputs()
    same = geometry_metrics(reference, reference, 14, 28)
    assert same.depth is not None
    assert same.depth.abs_rel == 0.0
    assert same.points is not None
    assert same.points.mean == 0.0
    assert same.depth_points is not None
    assert same.depth_points.mean == 0.0
    other = _outputs()
    other["pose_enc"][0, 1, 1] = 0.5
    changed = geometry_metrics(other, reference, 14, 28)
    assert changed.pose is not None
    assert changed.pose.direction is not None
    assert changed.pose.direction.mean_deg == pytest.approx(45.0, abs=1e-4)
    assert changed.depth_points is not None
    assert changed.depth_points.mean == pytest.approx(0.25, abs=1e-5)  # one camera of two, by 0.5
    assert decode(GeometryMetrics, parse(json.dumps(asdict(changed))), "", ValueError) == changed


def test_missing_and_broken_outputs_are_named() -> None:
    reference = _outputs()
    broken = _outputs()
    broken["depth"][0, 0, 0, 0] = np.nan
    del broken["world_points"]
    found = geometry_metrics(broken, reference, 14, 28)
    assert found.depth is None
    assert found.depth_points is None
    assert found.points is None
    assert found.pose is not None
    assert "NaN" in found.notes["depth"]
    assert "not among" in found.notes["world_points"]
