"""Predicted world points of one scene against the true ones, after one similarity.

The points are those of the point head, at the pixels whose true depth is known; the true ones are
unprojected from that depth. The similarity (scale, proper rotation, translation, never a
reflection) is Umeyama's least squares over all of these pixels, pixel by pixel (IEEE TPAMI 13(4),
1991, equations 39 to 42). It is not robust: a few points that are far off pull it, and no outlier
is dropped, since what a variant got wrong is what is asked here.

    per pixel   distance of a pixel's point to its true point, in metres and relative to the scene's
                size: the median distance of the true points from their median point
    as clouds   `truth_clouds`: the same points, nearest neighbours instead of the same pixel

A point that is not finite takes no part in the alignment and is as far off as the scene is large.
That is the most that it can cost, while a finite point that is far off costs its whole distance and
pulls the alignment besides: by the mean, `rms_m` and the clouds' means a network that gives NaN
where it is lost looks better than one that gives nonsense there. `notes` and the report count the
NaN; the median, which the losses take, forgives both alike.

Lengths are in the unit of the scene's calibration, which is taken for metres: ETH3D's and the
rendered scenes' are, that of a folder with COLMAP text may be anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vggt_deploy.compare.truth_clouds import CloudTruth, cloud_truth

FEWEST_POINTS = 3  # a similarity needs a triangle

Array = NDArray[np.float64]


class Truth(Protocol):
    """What is known of a scene: `vggt_deploy.data.ground_truth.GroundTruth`, or alike.

    extrinsic [S, 3, 4] world-to-camera, intrinsic [S, 3, 3] at the size of the network's maps,
    depth [S, H, W] in metres along the optical axis, inf where unknown; None: no depth at all;
    rays [S, H, W, 2] x / z and y / z at the centre of each pixel, NaN where a pixel has none; None:
    pinhole cameras, the rays are those of `intrinsic`.
    """

    @property
    def extrinsic(self) -> NDArray[np.floating[Any]]: ...
    @property
    def intrinsic(self) -> NDArray[np.floating[Any]]: ...
    @property
    def depth(self) -> NDArray[np.floating[Any]] | None: ...
    @property
    def rays(self) -> NDArray[np.floating[Any]] | None: ...


@dataclass(frozen=True)
class Alignment:
    """x -> scale rotation x + translation, from the prediction's frame to the truth's, metres.

    rotation: 9 numbers, row by row; rms_m: what is left over, root mean square over the pixels.
    """

    scale: float
    rotation: tuple[float, ...]
    translation: tuple[float, ...]
    rms_m: float


@dataclass(frozen=True)
class PointTruth:
    """Distances in metres after alignment, and relative to the scene's size.

    scene_size: median distance of the true points from their median point.
    alignment: None where fewer than 3 points are finite, so that none could be found.
    cloud: None where it was not asked for.
    """

    points: int
    mean: float
    median: float
    scene_size: float
    mean_relative: float
    median_relative: float
    alignment: Alignment | None
    cloud: CloudTruth | None


@dataclass(frozen=True)
class Similarity:
    """x -> scale rotation x + translation."""

    scale: float
    rotation: Array
    translation: Array

    def apply(self, points: Array) -> Array:
        """[N, 3] -> [N, 3]."""
        return np.asarray(self.scale * points @ self.rotation.T + self.translation)


def point_truth(
    predicted: NDArray[np.floating[Any]], true: Array, notes: dict[str, str], *, clouds: bool
) -> PointTruth | None:
    """Points [N, 3] of the pixels whose truth is known; None: the scene has no size."""
    a = predicted.astype(np.float64)
    finite = np.isfinite(a).all(axis=-1)
    size = float(np.median(np.linalg.norm(true - np.median(true, axis=0), axis=-1)))
    if size <= 0.0:
        notes["points"] = "all true points are one: the scene has no size"
        return None
    distance = np.full(len(a), size)
    aligned = np.empty((0, 3))
    alignment = None
    if np.count_nonzero(finite) >= FEWEST_POINTS:
        similarity = umeyama(a[finite], true[finite])
        aligned = similarity.apply(a[finite])
        distance[finite] = np.linalg.norm(aligned - true[finite], axis=-1)
        rms = float(np.sqrt(np.mean(distance[finite] ** 2)))
        alignment = _recorded(similarity, rms)
    if not finite.all():
        bad = np.count_nonzero(~finite)
        notes["points"] = f"{bad} of {len(a)} points are not finite: counted as off by its size"
    mean, median = float(distance.mean()), float(np.median(distance))
    cloud = cloud_truth(aligned, len(a) - len(aligned), true, size) if clouds else None
    return PointTruth(len(a), mean, median, size, mean / size, median / size, alignment, cloud)


def umeyama(source: Array, target: Array) -> Similarity:
    """The similarity that brings source [N, 3] nearest to target [N, 3], by least squares.

    A source of one single point has no scale: it is 0, and all goes to the target's mean.
    """
    mean_source, mean_target = source.mean(axis=0), target.mean(axis=0)
    a, b = source - mean_source, target - mean_target
    left, singular, right = np.linalg.svd(b.T @ a / len(a))
    # The last axis is flipped where the best orthogonal matrix would be a reflection.
    signs = np.array([1.0, 1.0, 1.0 if np.linalg.det(left @ right) > 0 else -1.0])
    rotation = left * signs @ right
    variance = float(np.mean(np.sum(a * a, axis=1)))
    scale = float(singular @ signs) / variance if variance > 0.0 else 0.0
    return Similarity(scale, rotation, mean_target - scale * rotation @ mean_source)


def true_points(truth: Truth) -> Array:
    """World points [S, H, W, 3] of the true depth; NaN where it, or the pixel's ray, is unknown.

    X = R^T (z [x, y, 1] - t), with [x, y, 1] the ray of the pixel: of a pinhole camera K^-1 [u +
    0.5, v + 0.5, 1], as the centre of the pixel of column u and row v lies at (u + 0.5, v + 0.5) in
    COLMAP's coordinates.
    """
    assert truth.depth is not None  # `truth_metrics` has seen to it
    frames, height, width = truth.depth.shape
    points = np.empty((frames, height, width, 3))
    for frame in range(frames):
        depth = truth.depth[frame].astype(np.float64)
        depth = np.where(np.isfinite(depth) & (depth > 0), depth, np.nan)
        extrinsic = truth.extrinsic[frame].astype(np.float64)
        rays = np.ones((height, width, 3))
        if truth.rays is None:
            rays = _pinhole_rays(truth.intrinsic[frame].astype(np.float64), height, width)
        else:
            rays[..., :2] = truth.rays[frame]
        # Row vectors: (x - t)^T R = (R^T (x - t))^T.
        points[frame] = (rays * depth[..., None] - extrinsic[:, 3]) @ extrinsic[:, :3]
    return points


def _pinhole_rays(intrinsic: Array, height: int, width: int) -> Array:
    """[H, W, 3]: [x, y, 1] of each pixel's centre."""
    v, u = np.mgrid[:height, :width] + 0.5
    return np.asarray(np.stack([u, v, np.ones_like(u)], axis=-1) @ np.linalg.inv(intrinsic).T)


def _recorded(similarity: Similarity, rms_m: float) -> Alignment:
    return Alignment(
        scale=similarity.scale,
        rotation=tuple(float(value) for value in similarity.rotation.ravel()),
        translation=tuple(float(value) for value in similarity.translation),
        rms_m=rms_m,
    )
