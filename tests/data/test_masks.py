"""Masks are bit flags, read strictly; what was dropped is said in words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from PIL import Image

from vggt_deploy.data.masks import EVERY_BIT, MaskUse, check_bits, read_mask
from vggt_deploy.errors import SceneError, UsageError


def save(path: Path, flags: NDArray[np.uint8], mode: str = "L") -> Path:
    Image.fromarray(flags).convert(mode).save(path, format="PNG")
    return path


@settings(deadline=None)
@given(arrays.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_every_byte_comes_back(
    tmp_path_factory: pytest.TempPathFactory, flags: NDArray[np.uint8]
) -> None:
    path = save(tmp_path_factory.getbasetemp() / "mask.png", flags)
    np.testing.assert_array_equal(read_mask(path, flags.shape[1], flags.shape[0]), flags)


FLAGS = np.arange(12, dtype=np.uint8).reshape(3, 4)


def test_rows_and_columns_are_not_swapped(tmp_path: Path) -> None:
    path = save(tmp_path / "mask.png", FLAGS)
    with pytest.raises(SceneError, match="has 4 x 3 pixels, its camera 3 x 4"):
        read_mask(path, 3, 4)


@pytest.mark.parametrize("mode", ["RGB", "P", "1", "LA", "I;16"])
def test_pictures_whose_values_are_no_flags_are_refused(tmp_path: Path, mode: str) -> None:
    with pytest.raises(SceneError, match=r"no 8-bit grey picture \(Pillow's mode "):
        read_mask(save(tmp_path / "mask.png", FLAGS, mode), 4, 3)


@pytest.mark.parametrize("keep", [0, 20, 60])
def test_a_truncated_mask_is_refused(tmp_path: Path, keep: int) -> None:
    noise = np.random.default_rng(0).integers(0, 4, (3, 400), dtype=np.uint8)
    path = save(tmp_path / "mask.png", noise)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(SceneError, match=r"mask\.png can't be read as a mask") as caught:
        read_mask(path, 400, 3)
    assert "remove it" in caught.value.fix


def test_a_jpeg_under_a_masks_name_is_refused(tmp_path: Path) -> None:
    """Its values would be near the flags, and not the flags."""
    Image.fromarray(FLAGS).save(tmp_path / "mask.png", format="JPEG")
    with pytest.raises(SceneError, match="can't be read as a mask"):
        read_mask(tmp_path / "mask.png", 4, 3)


@pytest.mark.parametrize("bits", [0, 1, 2, EVERY_BIT])
def test_flags_that_masks_have(bits: int) -> None:
    check_bits(bits)
    text = MaskUse(bits, 3, 70).text
    assert ("dropped" in text) == bool(bits)
    assert [str(bit) in text for bit in (1, 2)] == [bool(bits & 1), bool(bits & 2)]
    assert ("70 pixels" in MaskUse(bits, 3, 70).note) == bool(bits)


@pytest.mark.parametrize("bits", [-1, 4, 7])
def test_flags_that_masks_do_not_have(bits: int) -> None:
    with pytest.raises(UsageError, match=f"no mask bits {bits}"):
        check_bits(bits)
