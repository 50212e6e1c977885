"""From a batch of images to predictions with geometry: cameras from the pose encoding, points.

The points of a frame are its depth unprojected through its camera, which the authors of VGGT found
better than the point head; without depth or pose they are the point head's.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vggt_deploy.data.images import ImageBatch
from vggt_deploy.engines.runtime import Session
from vggt_deploy.geometry import pose_encoding_to_camera, unproject_depth

Array = NDArray[np.float32]
Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class PointMap:
    """A world point for every pixel.

    xyz: [S, H, W, 3], in the first camera's frame, OpenCV axes, the network's own unit
    confidence: [S, H, W], above 1, higher is better
    """

    xyz: Array
    confidence: Array
    source: Literal["depth", "point head"]


@dataclass(frozen=True)
class Predictions:
    """What the network said about S images, and what follows from it.

    outputs: as the session gives them, [1, S, ...]
    extrinsic: [S, 3, 4] camera-from-world, or None without a pose output
    intrinsic: [S, 3, 3] in pixels of the network's input, or None without a pose output
    forward_ms: wall-clock time of this one call
    """

    outputs: dict[str, Array]
    extrinsic: Doubles | None
    intrinsic: Doubles | None
    points: PointMap | None
    forward_ms: float


def predict(session: Session, batch: ImageBatch) -> Predictions:
    """Run the batch once."""
    started = time.perf_counter()
    outputs = session.run(batch.pixels[None])
    forward_ms = (time.perf_counter() - started) * 1e3
    return derive(outputs, batch.height, batch.width, forward_ms)


def derive(outputs: Mapping[str, Array], height: int, width: int, forward_ms: float) -> Predictions:
    """Cameras and points from raw outputs of any runtime."""
    extrinsic: Doubles | None = None
    intrinsic: Doubles | None = None
    if "pose_enc" in outputs:
        extrinsic, intrinsic = pose_encoding_to_camera(outputs["pose_enc"][0], height, width)
    points: PointMap | None = None
    if extrinsic is not None and intrinsic is not None and "depth" in outputs:
        xyz = unproject_depth(outputs["depth"][0, ..., 0], extrinsic, intrinsic)
        points = PointMap(xyz.astype(np.float32, copy=False), outputs["depth_conf"][0], "depth")
    elif "world_points" in outputs:
        points = PointMap(outputs["world_points"][0], outputs["world_points_conf"][0], "point head")
    return Predictions(dict(outputs), extrinsic, intrinsic, points, forward_ms)
