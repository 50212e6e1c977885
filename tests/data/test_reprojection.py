"""Preprocessing moves intrinsics with the pixels: points of a real scene, reprojected.

Features of the stored photographs are triangulated with their calibration. Where the same features
are found in the network's picture must be where the moved calibration projects the points: two
measurements that share no code with the placement of pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from vggt_deploy.data.eth3d import read_scene
from vggt_deploy.data.ground_truth import ground_truth
from vggt_deploy.data.images import Mode, load_images

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Features:
    """Points [N, 2] in pixels, the first centre at 0.5, and descriptors [N, 128]."""

    at: Doubles
    descriptors: NDArray[Any]


@dataclass(frozen=True)
class Known:
    """World points of a scene, and their features in the first of two pictures."""

    paths: tuple[Path, ...]
    points: Doubles
    seen: Features


# scikit-image enlarges a picture twice before it looks, and its positions are a quarter of a pixel
# too far right and down for that: seen below, where the picture is turned.
BIAS = 0.25


def features_of(grey: NDArray[Any]) -> Features:
    sift = pytest.importorskip("skimage.feature", reason="needs scikit-image").SIFT()
    sift.detect_and_extract(grey)
    return Features(sift.positions[:, ::-1] + 0.5 - BIAS, sift.descriptors)


def matches_of(a: Features, b: Features) -> NDArray[np.int64]:
    from skimage.feature import match_descriptors

    matches: NDArray[np.int64] = match_descriptors(
        a.descriptors, b.descriptors, max_ratio=0.75, cross_check=True
    )
    return matches


def project(points: Doubles, k: Doubles, pose: Doubles) -> Doubles:
    homogeneous = (points @ pose[:, :3].T + pose[:, 3]) @ k.T
    return np.asarray(homogeneous[:, :2] / homogeneous[:, 2:])


def triangulate(matrices: list[Doubles], at: list[Doubles]) -> Doubles:
    """World points [N, 3] by the linear method, from two matrices [3, 4] and points [N, 2]."""
    out = []
    for index in range(len(at[0])):
        rows = [
            p[index, axis] * m[2] - m[axis]
            for m, p in zip(matrices, at, strict=True)
            for axis in (0, 1)
        ]
        x = np.linalg.svd(np.array(rows))[2][-1]
        out.append(x[:3] / x[3])
    return np.array(out)


@pytest.fixture(scope="module")
def terrace(shared_data: Path) -> Known:
    folder = shared_data / "data" / "eth3d" / "terrace"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    frames = read_scene(folder).frames
    seen = []
    for frame in frames:
        with Image.open(frame.path) as picture:
            seen.append(features_of(np.asarray(picture.convert("L")) / 255))
    matches = matches_of(seen[0], seen[1])
    at = [seen[i].at[matches[:, i]] for i in (0, 1)]
    cameras = [(frame.camera.intrinsic(), frame.extrinsic) for frame in frames]
    points = triangulate([k @ pose for k, pose in cameras], at)
    off = [
        np.linalg.norm(project(points, k, pose) - p, axis=1)
        for (k, pose), p in zip(cameras, at, strict=True)
    ]
    good = np.max(off, axis=0) < 0.5
    assert good.sum() > 100
    return Known(
        tuple(frame.path for frame in frames),
        points[good],
        Features(at[0][good], seen[0].descriptors[matches[good, 0]]),
    )


def test_features_are_where_they_are_said_to_be(terrace: Known) -> None:
    """In a picture that is turned by half a turn, x becomes width - x."""
    with Image.open(terrace.paths[0]) as picture:
        grey = np.asarray(picture.convert("L").resize((372, 248))) / 255
    plain, turned = features_of(grey), features_of(grey[::-1, ::-1].copy())
    pairs = matches_of(plain, turned)
    sums = plain.at[pairs[:, 0]] + turned.at[pairs[:, 1]]
    assert np.abs(np.median(sums, axis=0) - (372, 248)).max() < 0.05


@pytest.mark.parametrize(
    "mode, width, height", [("crop", 518, 224), ("pad", 518, 518), ("crop", 448, 420)]
)
def test_points_of_the_scene_fall_on_their_features(
    terrace: Known, mode: Mode, width: int, height: int
) -> None:
    """Cut at top and bottom; padded to a square; padded below the picture's own shape."""
    batch = load_images(terrace.paths, mode=mode, width=width, height=height)
    truth = ground_truth(batch.paths, batch.placements, height, width)
    assert truth is not None
    found = features_of(batch.pixels[0].mean(axis=0))
    pairs = matches_of(terrace.seen, found)
    assert len(pairs) > 50
    points, at = terrace.points[pairs[:, 0]], found.at[pairs[:, 1]]

    def off(k: Doubles) -> Doubles:
        """Median of what the projection has too much, in the network's pixels: x and y."""
        return np.asarray(np.median(project(points, k, truth.extrinsic[0]) - at, axis=0))

    matrix, spot = truth.intrinsic[0], batch.placements[0]
    assert np.abs(off(matrix)).max() < 0.08
    # Twins: centres of pixels at whole numbers, in the network's picture or in the stored one.
    for shift in (-0.5, 0.5 * spot.scale_x):
        half = matrix.copy()
        half[:2, 2] += shift
        assert np.abs(off(half)).min() > 0.25
    # A scale that is 2 % off on one side; a matrix that was not moved with crop or padding.
    assert np.abs(off(matrix * [[1.0], [1.02], [1.0]])).max() > 0.5
    still = matrix.copy()
    still[:2, 2] -= (spot.left, spot.top)
    assert np.abs(off(still)).max() > 5
