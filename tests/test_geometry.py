"""Cameras and points against values worked out by hand, and round trips."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vggt_deploy.geometry import (
    camera_to_pose_encoding,
    pose_encoding_to_camera,
    quaternion_to_rotation,
    rotation_to_quaternion,
    unproject_depth,
)

# A quarter turn about z: x goes to y, y to -x.
QUARTER_Z = np.array([0, 0, np.sqrt(0.5), np.sqrt(0.5)])
QUARTER_Z_MATRIX = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1.0]])


def test_quaternion_by_hand():
    np.testing.assert_allclose(quaternion_to_rotation(QUARTER_Z), QUARTER_Z_MATRIX, atol=1e-15)
    # Scalar first would be another rotation: the order is x y z w.
    scalar_first = np.roll(QUARTER_Z, 1)
    assert np.abs(quaternion_to_rotation(scalar_first) - QUARTER_Z_MATRIX).max() > 0.5


@pytest.mark.parametrize("length", [0.1, 3.0])
def test_a_quaternion_need_not_be_a_unit_vector(length: float):
    rotation = quaternion_to_rotation(QUARTER_Z * length)
    np.testing.assert_allclose(rotation, QUARTER_Z_MATRIX, atol=1e-15)


def test_camera_by_hand():
    # 90 degrees vertically: f = half the height. tan(fov_w / 2) = 2: f = a quarter of the width.
    pose = np.array([1.0, 2, 3, *QUARTER_Z, np.pi / 2, 2 * np.arctan(2.0)])
    extrinsic, intrinsic = pose_encoding_to_camera(pose, height=100, width=200)
    np.testing.assert_allclose(extrinsic[:, :3], QUARTER_Z_MATRIX, atol=1e-15)
    np.testing.assert_allclose(extrinsic[:, 3], [1, 2, 3])
    np.testing.assert_allclose(intrinsic, [[50, 0, 100], [0, 50, 50], [0, 0, 1]])
    swapped = pose[[*range(7), 8, 7]]
    assert np.abs(pose_encoding_to_camera(swapped, 100, 200)[1] - intrinsic).max() > 10


def test_no_field_of_view_is_an_infinite_focal_length():
    pose = np.array([0.0, 0, 0, 0, 0, 0, 1, 0, 0])
    _, intrinsic = pose_encoding_to_camera(pose, 10, 10)
    assert np.isposinf(intrinsic[0, 0])
    assert np.isposinf(intrinsic[1, 1])


finite = st.floats(-3, 3, allow_subnormal=False)
angle = st.floats(0.1, 3.0)


@given(
    st.lists(finite, min_size=3, max_size=3),
    st.lists(finite, min_size=4, max_size=4).filter(lambda q: np.linalg.norm(q) > 1e-2),
    st.tuples(angle, angle),
)
def test_pose_encoding_round_trip(
    translation: list[float], quaternion: list[float], fov: tuple[float, float]
):
    pose = np.array([translation + quaternion + list(fov)] * 2)
    extrinsic, intrinsic = pose_encoding_to_camera(pose, 42, 56)
    assert extrinsic.shape == (2, 3, 4)
    rotation = extrinsic[0, :, :3]
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1)
    back = camera_to_pose_encoding(extrinsic, intrinsic, 42, 56)
    np.testing.assert_allclose(back[:, :3], pose[:, :3])
    np.testing.assert_allclose(back[:, 7:], pose[:, 7:], rtol=1e-9)
    unit = pose[0, 3:7] / np.linalg.norm(pose[0, 3:7])
    assert abs(unit @ back[0, 3:7]) == pytest.approx(1, abs=1e-9)  # q and -q are one rotation
    assert back[0, 6] >= 0


@pytest.mark.parametrize("axis", range(3))
def test_half_turns_have_a_quaternion(axis: int):
    """W is zero there: a formula that divides by w fails."""
    half_turn = 2 * np.outer(np.eye(3)[axis], np.eye(3)[axis]) - np.eye(3)
    quaternion = rotation_to_quaternion(half_turn)
    np.testing.assert_allclose(np.abs(quaternion), np.eye(4)[axis], atol=1e-12)


def test_unproject_by_hand():
    depth = np.array([[[2.0, 4.0, 6.0], [1.0, 1.0, 1.0]]])
    intrinsic = np.array([[[2.0, 0, 1], [0, 4.0, 1], [0, 0, 1]]])
    extrinsic = np.concatenate([QUARTER_Z_MATRIX, [[1.0], [2.0], [3.0]]], axis=1)[None]
    points = unproject_depth(depth, extrinsic, intrinsic)
    assert points.shape == (1, 2, 3, 3)
    # Pixel (u 2, v 0), d 6: camera ((2-1)*6/2, (0-1)*6/4, 6) = (3, -1.5, 6); minus t is
    # (2, -3.5, 3); R^T turns back, (x, y) -> (y, -x) = (-3.5, -2).
    np.testing.assert_allclose(points[0, 0, 2], [-3.5, -2.0, 3.0])
    # Pixel (u 0, v 1), d 1: camera (-0.5, 0, 1); minus t = (-1.5, -2, -2); turned (-2, 1.5).
    np.testing.assert_allclose(points[0, 1, 0], [-2.0, 1.5, -2.0])


def test_unprojected_points_project_back_to_their_pixels():
    rng = np.random.default_rng(0)
    pose = np.array([[0.3, -0.2, 0.5, 0.2, -0.1, 0.3, 1.7, 0.9, 1.1]])
    extrinsic, intrinsic = pose_encoding_to_camera(pose, 14, 28)
    depth = rng.uniform(1, 5, (1, 14, 28)).astype(np.float32)
    points = unproject_depth(depth, extrinsic, intrinsic)
    assert points.dtype == np.float32
    rotation, translation = extrinsic[0, :, :3], extrinsic[0, :, 3]
    camera = points[0] @ rotation.T + translation
    pixel = camera @ intrinsic[0].T
    pixel = pixel[..., :2] / pixel[..., 2:]
    v, u = np.mgrid[:14, :28]
    np.testing.assert_allclose(camera[..., 2], depth[0], atol=1e-5)
    np.testing.assert_allclose(pixel, np.stack([u, v], axis=-1), atol=1e-4)
    # World from camera instead of camera from world does not.
    wrong = (points[0] - translation) @ rotation
    assert np.abs(wrong[..., 2] - depth[0]).max() > 0.1
