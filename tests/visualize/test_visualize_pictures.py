"""The PNGs: which way up the views are, what hides what, and which colour a value has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image

from vggt_deploy.engines.points import PointCloud
from vggt_deploy.pages.colours import BAD
from vggt_deploy.visualize.cameras import Cameras, cameras_of
from vggt_deploy.visualize.maps import PADDING, maps_of, write_map
from vggt_deploy.visualize.views import MAX_DRAWN_POINTS, VIEWS, drawn_subset, write_view

TOP, SIDE = VIEWS
RED, GREEN = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)


def cloud_of(*blocks: tuple[tuple[float, float, float], tuple[float, float, float]]) -> PointCloud:
    """Small cubes of 2000 points at (x, y, z), each in one colour."""
    rng = np.random.default_rng(0)
    xyz = [np.array(at) + rng.uniform(-0.05, 0.05, (2000, 3)) for at, _ in blocks]
    rgb = [np.tile(np.array(colour), (2000, 1)) for _, colour in blocks]
    return PointCloud(
        np.concatenate(xyz).astype(np.float32),
        np.concatenate(rgb).astype(np.float32),
        "depth",
        pixels=2000 * len(blocks),
        usable=2000 * len(blocks),
        confident=2000 * len(blocks),
        threshold=1.0,
    )


@pytest.fixture
def cameras() -> Cameras:
    """Two, at the origin and beside it, looking along +z."""
    extrinsic = np.zeros((2, 3, 4))
    extrinsic[:, :, :3] = np.eye(3)
    extrinsic[1, 0, 3] = -0.2
    lens = np.array([[10.0, 0, 10], [0, 10, 10], [0, 0, 1]])
    return cameras_of(
        extrinsic,
        np.stack([lens, lens]),
        height=20,
        width=20,
        names=("a", "b"),
        points=np.array([[-1.0, -1, -1], [1, 1, 1]]),
    )


def middle_of(path: Path, colour: tuple[float, float, float]) -> tuple[tuple[float, float], int]:
    """Where the pixels of that colour are, as shares of the picture (right, down), and how many."""
    with Image.open(path) as picture:
        rgb = np.asarray(picture.convert("RGB")).astype(int)
    found = np.abs(rgb - np.array(colour) * 255).sum(axis=-1) < 60
    down, right = np.nonzero(found)
    assert right.size
    return (right.mean() / rgb.shape[1], down.mean() / rgb.shape[0]), right.size


@pytest.mark.parametrize(
    "view, at", [(TOP, (1.0, 0.0, 1.0)), (SIDE, (0.0, -1.0, 1.0))], ids=["top", "side"]
)
def test_right_up_and_to_scale(
    cameras: Cameras, tmp_path: Path, view: object, at: tuple[float, float, float]
) -> None:
    """Red lies up right and green, at the opposite end, down left; a square room stays square."""
    x, y, z = at
    opposite = (-x, -y, -z)
    path = tmp_path / "view.png"
    write_view(path, view, cloud_of((at, RED), (opposite, GREEN)), cameras, title="t")  # type: ignore[arg-type]
    (red_right, red_down), _ = middle_of(path, RED)
    (green_right, green_down), _ = middle_of(path, GREEN)
    assert red_right > 0.8 > 0.3 > green_right
    assert red_down < 0.2 < 0.7 < green_down
    with Image.open(path) as picture:
        across = (red_right - green_right) * picture.width
        down = (green_down - red_down) * picture.height
    assert across == pytest.approx(down, rel=0.02)


@pytest.mark.parametrize(
    "view, near, far",
    [(TOP, (0.5, -0.6, 0.5), (0.5, 0.6, 0.5)), (SIDE, (0.6, 0.5, 0.5), (-0.6, 0.5, 0.5))],
    ids=["top", "side"],
)
@pytest.mark.parametrize("swapped", [False, True])
def test_what_is_nearer_hides_what_is_farther(
    cameras: Cameras,
    tmp_path: Path,
    view: object,
    near: tuple[float, float, float],
    far: tuple[float, float, float],
    swapped: bool,
) -> None:
    """From above, what lies higher (smaller y); from the right, what lies farther right."""
    blocks = [(near, RED), (far, GREEN)]
    path = tmp_path / "view.png"
    write_view(path, view, cloud_of(*(blocks[::-1] if swapped else blocks)), cameras, title="t")  # type: ignore[arg-type]
    with Image.open(path) as picture:
        rgb = np.asarray(picture.convert("RGB")).astype(int)
    red = (np.abs(rgb - [255, 0, 0]).sum(axis=-1) < 60).sum()
    green = (np.abs(rgb - [0, 255, 0]).sum(axis=-1) < 60).sum()
    assert red > 200
    assert green < red / 3


def test_a_subset_is_one_of_the_points_and_always_the_same() -> None:
    kept = drawn_subset(MAX_DRAWN_POINTS * 3, MAX_DRAWN_POINTS)
    assert len(np.unique(kept)) == MAX_DRAWN_POINTS
    assert kept.min() >= 0
    assert kept.max() < MAX_DRAWN_POINTS * 3
    np.testing.assert_array_equal(kept, drawn_subset(MAX_DRAWN_POINTS * 3, MAX_DRAWN_POINTS))
    np.testing.assert_array_equal(drawn_subset(5, 10), np.arange(5))


def ramp() -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    values = np.tile(np.linspace(1, 3, 100, dtype=np.float32), (2, 30, 1))
    values[0, 0, 0] = np.nan
    shown = np.ones(values.shape, dtype=bool)
    shown[1, :10] = False
    values[1, :10] = 1000  # on the padding: no business of the range
    return values, shown


def test_a_value_has_the_colour_of_the_bar(tmp_path: Path) -> None:
    values, shown = ramp()
    maps = maps_of("depth", values, shown, unit="u", title="depth")
    assert maps is not None
    assert (maps.limits.low, maps.limits.high) == pytest.approx((1.03, 2.97), abs=0.02)
    assert maps.not_finite == 1
    rgb = maps.coloured(0)
    part = (values[0, 5, 20] - maps.limits.low) / (maps.limits.high - maps.limits.low)
    expected = np.array(colormaps["viridis"](float(part))[:3]) * 255
    np.testing.assert_allclose(rgb[5, 20], expected, atol=1)
    assert tuple(rgb[0, 0]) == BAD
    assert (maps.coloured(1)[:10] == PADDING).all()
    assert not (maps.coloured(1)[10:] == PADDING).all(axis=-1).any()
    # The picture shows photograph and map, each pixel as a block of one colour.
    photograph = np.zeros((30, 100, 3), dtype=np.uint8)
    photograph[..., 0] = 200
    write_map(tmp_path / "map.png", maps, 0, photograph, "a name with $math$ in it" * 5)
    with Image.open(tmp_path / "map.png") as picture:
        drawn = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    colours = {tuple(colour) for colour in drawn.tolist()}
    assert {(200, 0, 0), BAD, tuple(rgb[5, 20].tolist())} <= colours


def test_no_finite_value_no_map() -> None:
    values, shown = ramp()
    values[shown] = np.nan
    assert maps_of("depth", values, shown, unit="u", title="depth") is None
    values[0, 3, 3] = 2.0
    one = maps_of("depth", values, shown, unit="u", title="depth")
    assert one is not None
    assert one.limits.low < one.limits.high
