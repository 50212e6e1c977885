"""Points and cameras for the 3D view: what is packed is what was given, to half a step."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vggt_deploy.errors import UsageError
from vggt_deploy.pages.cloud import (
    NOTHING,
    STEPS,
    Cameras,
    Cloud,
    camera_centres,
    every_nth,
    frustum_corners,
    pack_scene,
    quantised,
)

GREY = np.full((4, 3), 128, dtype=np.uint8)


def unpack(packed: dict[str, Any], number: int) -> np.ndarray:
    """As the page's script does: [N, 3], NaN where there is no point."""
    raw = np.frombuffer(base64.b64decode(packed["clouds"][number]["points"]), "<u2").reshape(-1, 3)
    points = np.asarray(packed["low"]) + raw * np.asarray(packed["step"])
    points[raw[:, 0] == NOTHING] = np.nan
    return points


def turned(degrees: float) -> np.ndarray:
    """About the axis down."""
    a = np.radians(degrees)
    return np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])


def camera() -> Cameras:
    """At (1, 2, 3), looking along +x."""
    rotation = turned(-90)
    translation = -rotation @ np.array([1.0, 2.0, 3.0])
    extrinsic = np.concatenate([rotation, translation[:, None]], axis=1)[None]
    intrinsic = np.array([[[100.0, 0, 50], [0, 100, 40], [0, 0, 1]]])
    return Cameras(extrinsic, intrinsic, 80, 100, ("a.png",))


def test_points_come_back_to_half_a_step() -> None:
    points = np.random.default_rng(0).normal(size=(2000, 3))
    packed = pack_scene([Cloud("a", points, None)], np.zeros((2000, 3), np.uint8))
    found = unpack(packed, 0)
    seen = np.isfinite(found).all(axis=1)
    assert seen.mean() > 0.97
    off = np.abs(found[seen] - points[seen])
    assert (off <= 0.5001 * np.asarray(packed["step"])).all()
    assert packed["clouds"][0]["shown"] == seen.sum()
    assert packed["clouds"][0]["outside"] == 2000 - seen.sum()
    # A wrong step would be seen.
    assert not (np.abs(0.99 * found[seen] - points[seen]) <= np.asarray(packed["step"])).all()


def test_what_is_no_point_is_left_out_and_counted() -> None:
    points = np.array([[0.0, 0, 0], [1, 1, 1], [np.nan, 0, 0], [0, np.inf, 0]])
    packed = pack_scene([Cloud("a", points, None)], GREY)
    cloud = packed["clouds"][0]
    assert (cloud["shown"], cloud["not_finite"], cloud["outside"]) == (2, 2, 0)
    assert np.isnan(unpack(packed, 0)[2:]).all()


def test_points_thrown_far_away_do_not_make_the_others_one_dot() -> None:
    points = np.random.default_rng(1).uniform(size=(1000, 3))
    points[0] = 1e9
    packed = pack_scene([Cloud("a", points, None)], np.zeros((1000, 3), np.uint8))
    assert max(packed["step"]) * STEPS < 2
    assert packed["clouds"][0]["outside"] == 1


@given(st.integers(0, 3000), st.integers(1, 500))
def test_every_nth_is_in_order_without_repeats_and_reaches_both_ends(count: int, most: int) -> None:
    chosen = every_nth(count, most)
    assert len(chosen) == min(count, most)
    assert (np.diff(chosen) > 0).all()
    if count:
        assert chosen[0] == 0
        assert count - chosen[-1] <= -(-count // most) + 1


@given(st.lists(st.tuples(*[st.floats(-2, 2, width=32)] * 3), min_size=1, max_size=50))
def test_no_point_of_the_box_takes_the_mark_of_none(values: list[tuple[float, ...]]) -> None:
    low, high = np.full(3, -2.0), np.full(3, 2.0)
    steps = quantised(np.array(values), low, high)
    assert (steps != NOTHING).all()
    assert (steps <= STEPS).all()


def test_a_camera_is_where_it_stands_and_looks_where_it_looks() -> None:
    one = camera()
    np.testing.assert_allclose(camera_centres(one), [[1, 2, 3]], atol=1e-12)
    corners = frustum_corners(one, 2.0)[0]
    # Along +x, two units deep, as wide as the picture: 100 / 100 and 80 / 100 of the depth.
    np.testing.assert_allclose(corners.mean(axis=0), [3, 2, 3], atol=1e-12)
    np.testing.assert_allclose(np.ptp(corners, axis=0), [0, 1.6, 2.0], atol=1e-12)
    assert corners[0, 1] < corners[3, 1]  # the picture's top is up, and up is -y

    turned_over = Cameras(
        np.concatenate([one.extrinsic[:, :, :3].swapaxes(1, 2), one.extrinsic[:, :, 3:]], axis=2),
        one.intrinsic, one.height, one.width, one.names,
    )  # fmt: skip
    assert not np.allclose(camera_centres(turned_over), [[1, 2, 3]])


def test_corners_are_seen_at_the_corners() -> None:
    one = camera()
    corners = frustum_corners(one, 0.7)[0]
    seen = corners @ one.extrinsic[0, :, :3].T + one.extrinsic[0, :, 3]
    pixels = (seen / seen[:, 2:]) @ one.intrinsic[0].T
    np.testing.assert_allclose(pixels[:, :2], [[0, 0], [100, 0], [100, 80], [0, 80]], atol=1e-9)


def test_an_infinite_focal_length_draws_no_width() -> None:
    one = camera()
    far = Cameras(one.extrinsic, one.intrinsic.copy(), one.height, one.width, one.names)
    far.intrinsic[:, 0, 0] = np.inf
    corners = frustum_corners(far, 1.0)[0]
    assert np.isfinite(corners).all()
    assert np.ptp(corners[:, 2]) == pytest.approx(0.0)


def test_a_camera_that_is_not_finite_is_not_drawn() -> None:
    one = camera()
    broken = Cameras(one.extrinsic * np.nan, one.intrinsic, one.height, one.width, one.names)
    packed = pack_scene([Cloud("a", np.zeros((4, 3)), broken)], GREY)
    assert packed["clouds"][0]["cameras"] == []


def test_a_camera_gone_astray_does_not_make_all_else_small() -> None:
    one = camera()
    points = np.random.default_rng(2).uniform(size=(1000, 3))
    near = pack_scene([Cloud("a", points, one)], np.zeros((1000, 3), np.uint8))
    far = Cameras(one.extrinsic.copy(), one.intrinsic, one.height, one.width, one.names)
    far.extrinsic[0, :, 3] = 1e6
    astray = pack_scene([Cloud("a", points, far)], np.zeros((1000, 3), np.uint8))
    assert max(near["step"]) * STEPS > 2  # a camera near by is inside
    assert max(astray["step"]) * STEPS < 6
    both = pack_scene(
        [Cloud("a", points, None), Cloud("b", points, far)], np.zeros((1000, 3), np.uint8)
    )
    assert max(both["step"]) * STEPS < 2.5


def test_a_camera_that_sees_nearly_all_around_is_drawn_small() -> None:
    one = camera()
    wide = Cameras(one.extrinsic, one.intrinsic.copy(), one.height, one.width, one.names)
    wide.intrinsic[:, [0, 1], [0, 1]] = 1e-3
    off = frustum_corners(wide, 1.0)[0] - camera_centres(wide)[0]
    np.testing.assert_allclose(np.linalg.norm(off, axis=1), 2.5, rtol=1e-9)


def test_clouds_of_one_view_are_the_same_pixels() -> None:
    with pytest.raises(UsageError, match="same pixels"):
        pack_scene([Cloud("a", np.zeros((3, 3)), None)], GREY)
    with pytest.raises(UsageError, match="same pixels"):
        pack_scene([], GREY)
