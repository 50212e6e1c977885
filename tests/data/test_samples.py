"""The sample pictures: the same for the same seed, textured, and views of one scene."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from vggt_deploy.data.folders import find_images
from vggt_deploy.data.images import load_images
from vggt_deploy.data.samples import write_sample_images
from vggt_deploy.errors import UsageError

SIZE = (160, 120)


def pixels(path: Path) -> NDArray[np.float64]:
    with Image.open(path) as opened:
        return np.asarray(opened, dtype=np.float64)


def test_deterministic_by_seed(tmp_path: Path) -> None:
    first = write_sample_images(tmp_path / "a", 2, 3, SIZE)
    second = write_sample_images(tmp_path / "b", 2, 3, SIZE)
    other = write_sample_images(tmp_path / "c", 2, 4, SIZE)
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]
    assert np.abs(pixels(first[0]) - pixels(other[0])).mean() > 5


def test_folder_and_loader_take_them(tmp_path: Path) -> None:
    paths = write_sample_images(tmp_path / "new" / "folder", 3, size=SIZE)
    assert find_images(tmp_path).paths == paths
    assert load_images(paths).pixels.shape == (3, 3, 392, 518)


def test_looks_like_a_scene(tmp_path: Path) -> None:
    """Contrast and colour, yet smooth (not noise); neighbours alike, the ends less so."""
    views = [pixels(p) for p in write_sample_images(tmp_path, 5, size=SIZE)]
    for view in views:
        assert view.std() > 30
        steps = np.abs(np.diff(view, axis=1)).mean()
        shuffled = np.random.default_rng(0).permuted(view, axis=1)
        assert steps < 0.4 * np.abs(np.diff(shuffled, axis=1)).mean()
        assert (view == 255).mean() < 0.02
    near = np.abs(views[0] - views[1]).mean()
    far = np.abs(views[0] - views[4]).mean()
    assert 3 < near < far


def test_nothing_to_write(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        write_sample_images(tmp_path, 0)
    with pytest.raises(UsageError):
        write_sample_images(tmp_path, 1, size=(0, 10))
