"""A few hundred points of a scene with their observations, from depth and cameras.

They are what structure from motion would find if it made no error: a pixel's point is projected
into every view, and counts as seen where the depth there agrees. COLMAP's points3D.txt holds them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vggt_deploy.data.colmap import ColmapPoint, Observation
from vggt_deploy.geometry import Doubles

POINTS_PER_SCENE = 400
# How far the depth at the projected point may be from the point's own: what stands before it is
# further away than that, and the nearest pixel of a slanted surface nearer.
_SAME_SURFACE = 0.02
_GOLDEN = (5**0.5 - 1) / 2


def scene_points(
    images: NDArray[np.uint8],
    depth: NDArray[np.float32],
    extrinsic: Doubles,
    intrinsic: Doubles,
    count: int = POINTS_PER_SCENE,
) -> tuple[tuple[ColmapPoint, ...], tuple[tuple[Observation, ...], ...]]:
    """At most `count` points, ids from 1, and the observations of each view (image ids from 1).

    Points are pixels on a regular pattern over all views. A point that one view alone sees is left
    out, as structure from motion would not know it (unless there is one view). The coordinates of
    an observation are the exact projection, so a point's reprojection error is zero.
    """
    views = len(depth)
    observations: list[list[Observation]] = [[] for _ in range(views)]
    points: list[ColmapPoint] = []
    for view in range(views):
        rows, columns = _pattern(depth[view], max(1, count // views))
        world = _unproject(rows, columns, depth[view], extrinsic[view], intrinsic[view])
        seen = [_project(world, depth[k], extrinsic[k], intrinsic[k]) for k in range(views)]
        for index, position in enumerate(world):
            viewers = [k for k in range(views) if k == view or seen[k][1][index]]
            if len(viewers) < min(2, views):
                continue
            track = []
            for k in viewers:
                x, y = seen[k][0][index]
                track.append((k + 1, len(observations[k])))
                observations[k].append(Observation(float(x), float(y), len(points) + 1))
            px, py, pz = (float(value) for value in position)
            red, green, blue = (int(c) for c in images[view, rows[index], columns[index]])
            points.append(
                ColmapPoint(len(points) + 1, (px, py, pz), (red, green, blue), 0.0, tuple(track))
            )
    return tuple(points), tuple(map(tuple, observations))


def _pattern(depth: NDArray[np.float32], count: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows and columns of at most `count` pixels with depth, spread over the picture."""
    rows, columns = np.nonzero(np.isfinite(depth))
    if len(rows) > count:
        # Multiples of the golden ratio, modulo 1, spread evenly and form no columns.
        picks = np.unique((np.arange(count) * _GOLDEN % 1 * len(rows)).astype(np.intp))
        rows, columns = rows[picks], columns[picks]
    return rows, columns


def _unproject(
    rows: NDArray[np.intp],
    columns: NDArray[np.intp],
    depth: NDArray[np.float32],
    extrinsic: Doubles,
    intrinsic: Doubles,
) -> Doubles:
    """World points [N, 3] of pixel centres: X = R^T (z K^-1 [u + 0.5, v + 0.5, 1] - t)."""
    pixels = np.stack([columns + 0.5, rows + 0.5, np.ones(len(rows))])
    camera = np.linalg.solve(intrinsic, pixels) * depth[rows, columns].astype(np.float64)
    world: Doubles = (camera.T - extrinsic[:, 3]) @ extrinsic[:, :3]
    return world


def _project(
    world: Doubles, depth: NDArray[np.float32], extrinsic: Doubles, intrinsic: Doubles
) -> tuple[Doubles, NDArray[np.bool_]]:
    """Points [N, 3] -> pixel coordinates [N, 2], and whether the view sees them [N]."""
    height, width = depth.shape
    camera = world @ extrinsic[:, :3].T + extrinsic[:, 3]
    z = camera[:, 2]
    ahead = z > 0
    homogeneous = camera @ intrinsic.T
    xy: Doubles = homogeneous[:, :2] / np.where(ahead, z, 1.0)[:, None]
    # Rounded against the border, a point outside must not count as inside.
    inside = ahead & (xy >= 0).all(axis=1) & (xy[:, 0] < width) & (xy[:, 1] < height)
    column = np.where(inside, xy[:, 0], 0).astype(np.intp)
    row = np.where(inside, xy[:, 1], 0).astype(np.intp)
    same = np.abs(depth[row, column].astype(np.float64) - z) < _SAME_SURFACE * np.abs(z)
    return xy, np.asarray(inside & same)
