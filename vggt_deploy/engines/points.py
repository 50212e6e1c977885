"""A point cloud that one can look at: which pixels become points, and the two files.

Kept are pixels that show the picture (not white padding), have a finite point, and whose confidence
is at or above the `conf_percentile` of all such pixels of the run. Above `max_points`, a random
subset is taken, the same for the same number of points.

`points.ply`: the first camera's frame, OpenCV axes (x right, y down, z forward), sRGB colours.
`points.glb`: glTF is y up, z towards the viewer: (x, y, z) -> (x, -y, -z); linear colours.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggt_deploy.engines.colour import linear_from_srgb
from vggt_deploy.engines.predict import PointMap
from vggt_deploy.errors import RuntimeUnavailableError, UsageError

GLTF_FROM_OPENCV = np.array([1.0, -1.0, -1.0], dtype=np.float32)
DEFAULT_CONF_PERCENTILE = 25.0
DEFAULT_MAX_POINTS = 1_000_000
_SUBSET_SEED = 0


@dataclass(frozen=True)
class PointCloud:
    """Points [N, 3] float32 (OpenCV axes) with sRGB colours [N, 3] in 0..1, and how they came.

    usable: pixels with a picture and a finite point; confident: those at or above `threshold`
    """

    xyz: NDArray[np.float32]
    rgb: NDArray[np.float32]
    source: str
    pixels: int
    usable: int
    confident: int
    threshold: float


@dataclass(frozen=True)
class PointLimits:
    """Which points are kept: the confidence percentile they must reach, and how many at most."""

    conf_percentile: float = DEFAULT_CONF_PERCENTILE
    max_points: int = DEFAULT_MAX_POINTS

    def __post_init__(self) -> None:
        if not 0 <= self.conf_percentile < 100:
            raise UsageError(
                f"conf_percentile is {self.conf_percentile}",
                "give 0 (keep every point) up to, but not including, 100",
            )
        if self.max_points < 1:
            raise UsageError(f"max_points is {self.max_points}", "give 1 or more")


def select_points(
    points: PointMap,
    pixels: NDArray[np.float32],
    picture: NDArray[np.bool_],
    limits: PointLimits,
) -> PointCloud:
    """Choose points: `pixels` [S, 3, H, W] give the colours, `picture` [S, H, W] where to look."""
    usable = picture & np.isfinite(points.xyz).all(axis=-1) & np.isfinite(points.confidence)
    confidences = points.confidence[usable]
    # "lower" returns a value that occurs: with all confidences equal every point is kept.
    threshold = (
        float(np.percentile(confidences, limits.conf_percentile, method="lower"))
        if confidences.size
        else float("nan")
    )
    kept = np.flatnonzero(usable & (points.confidence >= threshold))
    confident = kept.size
    if confident > limits.max_points:
        rng = np.random.Generator(np.random.PCG64(_SUBSET_SEED))
        kept = np.sort(rng.choice(kept, limits.max_points, replace=False, shuffle=False))
    colours = pixels.transpose(0, 2, 3, 1).reshape(-1, 3)
    return PointCloud(
        xyz=points.xyz.reshape(-1, 3)[kept].astype(np.float32),
        rgb=colours[kept],
        source=points.source,
        pixels=picture.size,
        usable=int(usable.sum()),
        confident=confident,
        threshold=threshold,
    )


def write_points(cloud: PointCloud, ply: Path, glb: Path) -> None:
    """Write both files; the cloud must not be empty."""
    trimesh = _import_trimesh()
    trimesh.PointCloud(cloud.xyz, colors=_rgba(cloud.rgb)).export(ply)
    scene = trimesh.Scene()
    linear = _rgba(linear_from_srgb(cloud.rgb))
    scene.add_geometry(trimesh.PointCloud(cloud.xyz * GLTF_FROM_OPENCV, colors=linear))
    scene.export(glb)


def _rgba(rgb: NDArray[np.floating]) -> NDArray[np.uint8]:
    opaque = np.ones((len(rgb), 1), dtype=rgb.dtype)
    rgba: NDArray[np.uint8] = np.rint(np.hstack([rgb, opaque]) * 255).astype(np.uint8)
    return rgba


def _import_trimesh() -> Any:
    try:
        import trimesh
    except ImportError as error:
        raise RuntimeUnavailableError(
            f"trimesh, which writes the point clouds, can't be imported: {error}",
            "pip install 'vggt-deploy[edge]' or [cpu]",
        ) from error
    return trimesh
