"""What the depth pictures and the plots show, by their pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from vggt_deploy.report import pictures
from vggt_deploy.report.pictures import (
    BAD,
    LEAST_TILE_WIDTH,
    _coloured,
    _enlarged,
    _fit,
    _range,
    _sheet,
)


def _tile(sheet: Image.Image, column: int, tile_width: int) -> np.ndarray:
    """The pixels of one tile of the only row."""
    x = pictures.GAP + column * (tile_width + pictures.GAP)
    height = tile_width * 40 // 60
    top = sheet.height - pictures.GAP - height
    return np.asarray(sheet)[top : top + height, x : x + tile_width]


def test_the_difference_is_white_where_equal_blue_nearer_red_farther() -> None:
    image = np.full((40, 60, 3), 128, dtype=np.uint8)
    reference = np.tile(np.linspace(1.0, 2.0, 60), (40, 1))
    variant = reference.copy()
    variant[:, :20] -= 0.1
    variant[:, 40:] += 0.1
    sheet = _sheet(image, reference, {"torch/int8_pc_sym": variant}, 60)
    difference = _tile(sheet, 3, 60).astype(int)
    assert (difference[20, 30] > 235).all()
    red, _, blue = difference[20, 10]
    assert blue > red + 50
    red, _, blue = difference[20, 50]
    assert red > blue + 50
    assert (_tile(sheet, 0, 60) == 128).all()
    assert not (_tile(sheet, 1, 60) == _tile(sheet, 2, 60)).all()


def test_equal_depths_give_equal_tiles() -> None:
    image = np.zeros((40, 60, 3), dtype=np.uint8)
    reference = np.tile(np.linspace(1.0, 2.0, 60), (40, 1))
    sheet = _sheet(image, reference, {"a": reference.copy()}, 60)
    assert (_tile(sheet, 1, 60) == _tile(sheet, 2, 60)).all()
    assert (_tile(sheet, 3, 60) > 235).all()


def test_values_that_are_not_finite_are_magenta() -> None:
    values = np.array([[0.0, np.nan], [np.inf, 1.0]])
    colours = _coloured(values, (0.0, 1.0), "viridis")
    assert tuple(colours[0, 1]) == BAD
    assert tuple(colours[1, 0]) == BAD
    assert tuple(colours[0, 0]) != BAD


@pytest.mark.parametrize(
    "values", [np.full((2, 2), 3.0), np.full((2, 2), np.nan), np.zeros((2, 2))]
)
def test_a_range_is_never_empty(values: np.ndarray) -> None:
    low, high = _range(values, 2.0, 98.0)
    assert high > low


def test_long_labels_are_cut_to_the_picture() -> None:
    from PIL import ImageFont

    font: Any = ImageFont.load_default(13)
    cut = _fit("a label that is much too long for its picture", 100, font)
    assert font.getlength(cut) <= 100
    assert cut.endswith("...")
    assert _fit("short", 100, font) == "short"


@pytest.mark.parametrize("width", [14, 112, 219, 220, 518])
def test_a_small_picture_is_enlarged_until_the_titles_fit(width: int) -> None:
    from PIL import ImageFont

    tile = _enlarged(width)
    assert tile % width == 0
    assert LEAST_TILE_WIDTH <= tile < LEAST_TILE_WIDTH + width
    font: Any = ImageFont.load_default(max(13, tile // 28))
    for title in ("depth, PyTorch FP32", "depth in the network's units"):
        assert _fit(title, tile, font) == title
    small: Any = ImageFont.load_default(13)  # twin: as wide as the smallest of pictures
    assert _fit("depth, PyTorch FP32", 112, small) != "depth, PyTorch FP32"
