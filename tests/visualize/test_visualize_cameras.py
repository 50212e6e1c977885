"""Where cameras are drawn: at C = -R^T t, looking along +z, as wide as they see."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from vggt_deploy.visualize.cameras import (
    Cameras,
    camera_centres,
    cameras_of,
    frustum,
    frustum_length,
    scene_size,
)
from vggt_deploy.visualize.page import field_of_view

if TYPE_CHECKING:
    from conftest import Truth

HEIGHT, WIDTH = 56, 84
# A quarter turn to the right about y: what lay at +x is straight ahead.
TURNED = np.array([[0.0, 0.0, -1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
CENTRE = np.array([2.0, -1.0, 3.0])
LENS = np.array([[42.0, 0.0, 42.0], [0.0, 28.0, 28.0], [0.0, 0.0, 1.0]])  # 90 x 90 degrees
EXTRINSIC = np.hstack([TURNED, -(TURNED @ CENTRE)[:, None]])


def one(extrinsic: NDArray[Any] = EXTRINSIC, lens: NDArray[Any] = LENS) -> Cameras:
    none = np.empty((0, 3))
    return cameras_of(
        extrinsic[None], lens[None], height=HEIGHT, width=WIDTH, names=("a.png",), points=none
    )


def test_a_turned_camera_by_hand() -> None:
    cameras = one()
    np.testing.assert_allclose(cameras.centres[0], CENTRE)
    np.testing.assert_allclose(cameras.forward[0], [1, 0, 0])
    # Its right is the world's -z, its down the world's +y, its front 2 away the world's +x.
    corners = frustum(EXTRINSIC, LENS, HEIGHT, WIDTH, 2.0)
    offsets = np.array([[0, 0, 0], [2, -2, 2], [2, -2, -2], [2, 2, -2], [2, 2, 2]])
    np.testing.assert_allclose(corners, CENTRE + offsets, atol=1e-12)
    transposed = np.hstack([TURNED.T, EXTRINSIC[:, 3:]])
    assert np.abs(one(transposed).centres[0] - CENTRE).max() > 1  # the twin
    assert np.abs(one(transposed).forward[0] - [1, 0, 0]).max() > 1


def test_frusta_hold_what_the_cameras_see(truth: Truth) -> None:
    cameras = cameras_of(
        truth.extrinsic,
        truth.intrinsic,
        height=HEIGHT,
        width=WIDTH,
        names=tuple(truth.names),
        points=truth.points.reshape(-1, 3),
    )
    assert cameras.with_frustum == [0, 1, 2]
    assert cameras.notes == ()
    for index in range(3):
        seen = truth.points[index].reshape(-1, 3).astype(np.float64)
        assert inside(cameras.frusta[index], seen) == 1.0
        turned = truth.extrinsic[index].copy()
        turned[:, :3] = turned[:, :3].T
        wrong = frustum(turned, truth.intrinsic[index], HEIGHT, WIDTH, cameras.length)
        if index:  # the first camera is the world: its R is the identity
            assert inside(wrong, seen) < 0.95  # the twin


def inside(corners: NDArray[Any], points: NDArray[Any]) -> float:
    """Share of points on the inner side of all four planes through the tip."""
    tip, around = corners[0], corners[1:] - corners[0]
    middle = around.mean(axis=0)
    normals = np.cross(around, np.roll(around, -1, axis=0))
    normals *= np.sign(normals @ middle)[:, None]
    return float(((points - tip) @ normals.T >= -1e-4).all(axis=1).mean())


def test_the_field_of_view_is_read_off_the_frustum() -> None:
    lens = LENS.copy()
    lens[1, 1] = HEIGHT / 2 / np.tan(np.radians(20))
    assert field_of_view(one(lens=lens), 0) == pytest.approx((90.0, 40.0))


def test_a_wide_camera_stays_small() -> None:
    lens = LENS.copy()
    lens[[0, 1], [0, 1]] = WIDTH / 2 / np.tan(np.radians(85)), HEIGHT / 2 / np.tan(np.radians(80))
    cameras = one(lens=lens)
    slant = np.linalg.norm(cameras.frusta[0, 1:] - cameras.frusta[0, 0], axis=-1)
    np.testing.assert_allclose(slant, 2 * cameras.length)
    assert field_of_view(cameras, 0) == pytest.approx((170.0, 160.0))


@pytest.mark.parametrize("focal", [np.inf, -np.inf, np.nan, -5.0, 0.0])
def test_what_is_no_pinhole_camera_has_no_frustum(focal: float) -> None:
    lens = LENS.copy()
    lens[0, 0] = focal
    cameras = one(lens=lens)
    assert cameras.with_frustum == []
    assert len(cameras.centres) == 1
    assert "a.png: its field of view" in cameras.notes[0]


@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3))
def test_centres_and_sizes_go_with_the_world(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    rotation = np.linalg.qr(rng.normal(size=(4, 3, 3)))[0]
    rotation *= np.sign(np.linalg.det(rotation))[:, None, None]
    centres = rng.normal(size=(4, 3)) * scale
    shift = -np.einsum("sij,sj->si", rotation, centres)
    extrinsic = np.concatenate([rotation, shift[..., None]], axis=-1)
    np.testing.assert_allclose(camera_centres(extrinsic), centres, atol=1e-9 * scale)
    none = np.empty((0, 3))
    assert scene_size(centres, none) == pytest.approx(
        float(np.linalg.norm(np.ptp(centres, axis=0)))
    )
    assert frustum_length(centres * 7, none) == pytest.approx(7 * frustum_length(centres, none))


def test_sizes_of_almost_nothing_are_sizes() -> None:
    none = np.empty((0, 3))
    assert scene_size(np.zeros((0, 3)), none) == 1.0
    assert scene_size(np.zeros((3, 3)), none) == 1.0
    assert frustum_length(np.zeros((3, 3)), none) > 0
    outlier = np.vstack([np.random.default_rng(0).uniform(-1, 1, (1000, 3)), [[1e6, 0, 0]]])
    assert scene_size(np.zeros((1, 3)), outlier) < 4
