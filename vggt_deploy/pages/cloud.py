"""Points and cameras for the 3D view, packed small: 6 bytes a point, 3 its colour.

The clouds of one view are the same pixels in the same order, computed by different variants, so
that they share their colours and can be held against each other point by point. All are quantised
in one box, 65534 steps along each side:

    q = round((x - low) / (high - low) * 65534), unsigned 16 bit, little endian, x y z interleaved
    65535 = no point here: not finite, or outside the box

Half a step is the largest error, 1/131068 of the box. Coordinates are those of the cameras:
OpenCV's axes, x right, y down, z forward from the first one.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggt_deploy.errors import UsageError
from vggt_deploy.pages.colours import ramp

STEPS = 65534
NOTHING = 65535
# The box holds the middle of the first cloud, this much wider on each side: points that a network
# throws far away would make all others one dot.
INNER_PERCENTILES = (1.0, 99.0)
MARGIN = 0.2
OTHERS_MARGIN = 0.4  # of the longest side: how far the box goes for cameras of further clouds
MOST_CORNER = 2.5  # depths; the corner of a picture of 133 degrees
FRUSTUM_PART = 0.05  # of the box's diagonal: how deep a camera is drawn

Floats = NDArray[np.floating[Any]]
Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Cameras:
    """S cameras in their order: extrinsic [S, 3, 4] world to camera, intrinsic [S, 3, 3] for
    pictures of height x width pixels, and a name for each.
    """

    extrinsic: Doubles
    intrinsic: Doubles
    height: int
    width: int
    names: tuple[str, ...]


@dataclass(frozen=True)
class Cloud:
    """One cloud of a view: points [N, 3], the same pixels in all of them; NaN where there is none.

    note: said below the view while it is shown
    """

    name: str
    points: Floats
    cameras: Cameras | None
    note: str = ""


def every_nth(count: int, most: int) -> NDArray[np.int64]:
    """Indices of at most `most` of `count` things, evenly spread, always the same."""
    if count <= most:
        return np.arange(count, dtype=np.int64)
    return np.floor(np.arange(most, dtype=np.float64) * (count / most)).astype(np.int64)


def camera_centres(cameras: Cameras) -> Doubles:
    """C = -R^T t, [S, 3]."""
    rotation, translation = cameras.extrinsic[:, :, :3], cameras.extrinsic[:, :, 3]
    centres: Doubles = -np.einsum("sji,sj->si", rotation, translation)
    return centres


def frustum_corners(cameras: Cameras, depth: float) -> Doubles:
    """Where the rays through a picture's corners are at that depth, [S, 4, 3]: top left, top
    right, bottom right, bottom left. No further than MOST_CORNER depths from the camera.
    """
    w, h = cameras.width, cameras.height
    u, v = np.array([0.0, w, w, 0.0]), np.array([0.0, 0.0, h, h])
    k = cameras.intrinsic
    # Not by inverting K: a network may emit a field of view of zero, an infinite focal length.
    x = (u - k[:, 0, 2, None]) / k[:, 0, 0, None]
    y = (v - k[:, 1, 2, None]) / k[:, 1, 1, None]
    rays = np.stack([x, y, np.ones_like(x)], axis=-1) * depth
    # A field of view near 180 degrees, which a broken network may predict, would fill the view.
    length = np.linalg.norm(rays, axis=-1, keepdims=True)
    rays *= np.minimum(1.0, MOST_CORNER * depth / np.maximum(length, 1e-12))
    moved = rays - cameras.extrinsic[:, None, :, 3]
    world: Doubles = np.einsum("sji,scj->sci", cameras.extrinsic[:, :, :3], moved)
    return world


def pack_scene(
    clouds: Sequence[Cloud], colours: NDArray[np.uint8], unit: str = ""
) -> dict[str, Any]:
    """The clouds of one view and their colours [N, 3], as plain values for JSON.

    unit: of the coordinates, for the legend of distances

    Raises:
        UsageError: clouds of different lengths, or nothing to show.
    """
    if not clouds or any(cloud.points.shape != colours.shape for cloud in clouds):
        raise UsageError(
            "the clouds of one view are the same pixels, one colour each",
            "take the same pixels of every variant",
        )
    low, high = _box(clouds)
    depth = FRUSTUM_PART * float(np.linalg.norm(high - low))
    return {
        "low": low.tolist(),
        "step": ((high - low) / STEPS).tolist(),
        "count": len(colours),
        "unit": unit,
        "distances": _scale(),
        "colours": _base64(np.ascontiguousarray(colours, dtype=np.uint8)),
        "clouds": [_pack(cloud, low, high, depth) for cloud in clouds],
    }


def _box(clouds: Sequence[Cloud]) -> tuple[Doubles, Doubles]:
    """Around the middle of the first cloud with finite points and of all cameras; never flat."""
    for cloud in clouds:
        finite = cloud.points[np.isfinite(cloud.points).all(axis=1)]
        if len(finite):
            low, high = np.percentile(finite.astype(np.float64), INNER_PERCENTILES, axis=0)
            break
    else:
        low, high = np.full(3, -1.0), np.full(3, 1.0)
    low, high = low - MARGIN * (high - low), high + MARGIN * (high - low)
    # Where cameras stand belongs into the picture, but one that went astray does not make all else
    # small: beyond the box it is cut off.
    inner_low, inner_high, longest = low, high, float(np.max(high - low))
    for cloud in clouds:
        if cloud.cameras is None:
            continue
        room = longest * (1.0 if cloud is clouds[0] else OTHERS_MARGIN)
        centres = camera_centres(cloud.cameras)
        centres = centres[np.isfinite(centres).all(axis=1)]
        if len(centres):
            low = np.minimum(low, np.maximum(centres.min(axis=0), inner_low - room))
            high = np.maximum(high, np.minimum(centres.max(axis=0), inner_high + room))
    side = max(float(np.max(high - low)), 1e-6)
    flat = (high - low) < 1e-3 * side
    return np.where(flat, low - 0.5e-3 * side, low), np.where(flat, high + 0.5e-3 * side, high)


def quantised(points: Floats, low: Doubles, high: Doubles) -> NDArray[np.uint16]:
    """Points [N, 3] -> steps [N, 3]; NOTHING in all three where there is no point in the box."""
    values = points.astype(np.float64)
    with np.errstate(invalid="ignore"):
        inside = np.all((values >= low) & (values <= high), axis=1)
    steps = np.full(points.shape, NOTHING, dtype=np.uint16)
    part = (values[inside] - low) / (high - low)
    steps[inside] = np.round(part * STEPS).astype(np.uint16)
    return steps


def _pack(cloud: Cloud, low: Doubles, high: Doubles, depth: float) -> dict[str, Any]:
    steps = quantised(cloud.points, low, high)
    shown = int(np.count_nonzero(steps[:, 0] != NOTHING))
    finite = int(np.count_nonzero(np.isfinite(cloud.points).all(axis=1)))
    return {
        "name": cloud.name,
        "note": cloud.note,
        "points": _base64(steps.astype("<u2")),
        "shown": shown,
        "not_finite": len(steps) - finite,
        "outside": finite - shown,
        "cameras": _pack_cameras(cloud.cameras, depth) if cloud.cameras is not None else [],
    }


def _scale() -> list[tuple[float, str]]:
    """The colours of errors, as the plotting library takes them: part of the range, colour."""
    colours = ramp("error")[0]
    last = len(colours) - 1
    chosen = [*every_nth(last, 16).tolist(), last]
    return [(i / last, "#" + bytes(colours[i]).hex()) for i in chosen]


def _pack_cameras(cameras: Cameras, depth: float) -> list[dict[str, Any]]:
    centres, corners = camera_centres(cameras), frustum_corners(cameras, depth)
    return [
        {"name": name, "centre": centre.tolist(), "corners": corner.tolist()}
        for name, centre, corner in zip(cameras.names, centres, corners, strict=True)
        if np.isfinite(centre).all() and np.isfinite(corner).all()
    ]


def _base64(array: NDArray[Any]) -> str:
    return base64.b64encode(array.tobytes()).decode("ascii")
