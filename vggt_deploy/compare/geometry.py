"""What quantization does to the geometry: relative poses, depth and world points against FP32.

Cameras are world-to-camera [R | t] as `vggt_deploy.geometry` decodes them. For two frames i < j

    R_ij = R_j R_i^T          t_ij = t_j - R_ij t_i

and for the variant a and the reference b, in float64:

    rotation error       angle of M = R_ij(b)^T R_ij(a), as atan2(|vee(M - M^T)| / 2,
                         (trace M - 1) / 2): the arccos form loses angles under 0.01 degrees
    direction error      angle between t_ij(a) and t_ij(b), as atan2(|cross|, dot)
    depth AbsRel         mean |s a - b| / b with s = median(b) / median(a): one scale for the scene,
                         since VGGT predicts one scene in one frame of reference
    delta 1.25           part of the pixels with max(s a / b, b / (s a)) < 1.25
    point distance       |p(a) - p(b)| per pixel, mean and median; relative = divided by the scene
                         size, the median distance of the reference's points from their median point

No baseline, no direction: a pair whose reference baseline is below 1e-3 of the longest baseline of
the scene is left out of the direction error and counted in `pairs_without_baseline`. A pair whose
baseline vanished in the variant alone has lost its direction: it is counted in `pairs_lost` and has
no angle, so a count above zero says that the mean is too kind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggt_deploy.geometry import pose_encoding_to_camera, unproject_depth

MIN_BASELINE = 1e-3  # of the longest baseline of the reference
VANISHED = 1e-9  # of the longest baseline of the reference

Array = NDArray[np.float64]
Outputs = Mapping[str, NDArray[np.floating]]


@dataclass(frozen=True)
class Angles:
    """Mean, median and maximum of angles in degrees over n pairs."""

    n: int
    mean_deg: float
    median_deg: float
    max_deg: float


@dataclass(frozen=True)
class PoseErrors:
    """Relative pose over all pairs of frames; None where no pair has the quantity."""

    pairs: int
    rotation: Angles | None
    direction: Angles | None
    pairs_without_baseline: int
    pairs_lost: int


@dataclass(frozen=True)
class DepthErrors:
    """Depth after median alignment. `scale` is what the variant was multiplied with."""

    pixels: int
    pixels_left_out: int
    scale: float
    abs_rel: float
    delta_125: float


@dataclass(frozen=True)
class PointErrors:
    """Distance between the same pixel's point in both; no alignment."""

    points: int
    mean: float
    median: float
    scene_size: float
    mean_relative: float | None
    median_relative: float | None


@dataclass(frozen=True)
class GeometryMetrics:
    """`points`: of the point head. `depth_points`: depth unprojected by the predicted cameras."""

    pose: PoseErrors | None = None
    depth: DepthErrors | None = None
    points: PointErrors | None = None
    depth_points: PointErrors | None = None
    notes: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """A dict for JSON."""
        return asdict(self)


def rotation_angles_deg(a: Array, b: Array) -> Array:
    """Angle between rotations a and b, [..., 3, 3] -> [...] degrees."""
    m = np.swapaxes(b, -1, -2) @ a
    vee = np.stack(
        [m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]], -1
    )
    sine = np.linalg.norm(vee, axis=-1) / 2.0
    cosine = (np.trace(m, axis1=-2, axis2=-1) - 1.0) / 2.0
    return np.asarray(np.degrees(np.arctan2(sine, cosine)), dtype=np.float64)


def direction_angles_deg(a: Array, b: Array) -> Array:
    """Angle between vectors a and b, [..., 3] -> [...] degrees; both must be longer than zero."""
    # Unit length first: the products of two tiny baselines would underflow.
    a = a / np.linalg.norm(a, axis=-1, keepdims=True)
    b = b / np.linalg.norm(b, axis=-1, keepdims=True)
    cross = np.linalg.norm(np.cross(a, b), axis=-1)
    return np.asarray(np.degrees(np.arctan2(cross, np.sum(a * b, axis=-1))), dtype=np.float64)


def relative_poses(extrinsics: Array) -> tuple[Array, Array]:
    """World-to-camera [S, 3, 4] -> R_ij [P, 3, 3], t_ij [P, 3] of all pairs i < j."""
    pairs = list(combinations(range(len(extrinsics)), 2))
    i = np.asarray([p[0] for p in pairs], dtype=np.intp)
    j = np.asarray([p[1] for p in pairs], dtype=np.intp)
    rotation = extrinsics[j, :, :3] @ np.swapaxes(extrinsics[i, :, :3], -1, -2)
    translation = extrinsics[j, :, 3] - np.einsum("pij,pj->pi", rotation, extrinsics[i, :, 3])
    return rotation, translation


def _angles(values: Array) -> Angles | None:
    if values.size == 0:
        return None
    return Angles(
        n=int(values.size),
        mean_deg=float(values.mean()),
        median_deg=float(np.median(values)),
        max_deg=float(values.max()),
    )


def pose_errors(variant: Array, reference: Array) -> PoseErrors:
    """Relative pose errors of world-to-camera matrices [S, 3, 4]."""
    rotation_a, t_a = relative_poses(variant.astype(np.float64))
    rotation_b, t_b = relative_poses(reference.astype(np.float64))
    length_a, length_b = np.linalg.norm(t_a, axis=-1), np.linalg.norm(t_b, axis=-1)
    longest = float(length_b.max()) if length_b.size else 0.0
    has_baseline = (length_b > 0.0) & (length_b >= MIN_BASELINE * longest)
    lost = has_baseline & (length_a <= VANISHED * longest)
    usable = has_baseline & ~lost
    return PoseErrors(
        pairs=len(t_b),
        rotation=_angles(rotation_angles_deg(rotation_a, rotation_b)),
        direction=_angles(direction_angles_deg(t_a[usable], t_b[usable])),
        pairs_without_baseline=int(np.count_nonzero(~has_baseline)),
        pairs_lost=int(np.count_nonzero(lost)),
    )


def depth_errors(variant: Array, reference: Array) -> DepthErrors | None:
    """AbsRel and delta 1.25 of depth maps of any one shape; None when no reference depth is > 0.

    Pixels whose reference depth is not positive are left out and counted; a variant depth that is
    not positive stays in and fails delta 1.25.
    """
    a, b = variant.astype(np.float64).ravel(), reference.astype(np.float64).ravel()
    valid = b > 0.0
    left_out = int(b.size - np.count_nonzero(valid))
    a, b = a[valid], b[valid]
    if b.size == 0 or float(np.median(a)) <= 0.0:
        return None
    scale = float(np.median(b) / np.median(a))
    a = a * scale
    inside = (a > 0.0) & (a < 1.25 * b) & (b < 1.25 * a)
    return DepthErrors(
        pixels=int(b.size),
        pixels_left_out=left_out,
        scale=scale,
        abs_rel=float(np.mean(np.abs(a - b) / b)),
        delta_125=float(np.mean(inside)),
    )


def point_errors(variant: Array, reference: Array) -> PointErrors:
    """Distances of points [..., 3]."""
    a, b = variant.astype(np.float64).reshape(-1, 3), reference.astype(np.float64).reshape(-1, 3)
    distance = np.linalg.norm(a - b, axis=-1)
    size = float(np.median(np.linalg.norm(b - np.median(b, axis=0), axis=-1)))
    mean, median = float(distance.mean()), float(np.median(distance))
    return PointErrors(
        points=len(b),
        mean=mean,
        median=median,
        scene_size=size,
        mean_relative=mean / size if size > 0.0 else None,
        median_relative=median / size if size > 0.0 else None,
    )


def geometry_metrics(
    variant: Outputs, reference: Outputs, height: int, width: int
) -> GeometryMetrics:
    """All geometry that the outputs allow; arrays as the model gives them, batch of 1.

    What is missing, or not finite, is None and named in `notes`.
    """
    notes: dict[str, str] = {}
    usable: set[str] = set()
    for name in ("pose_enc", "depth", "world_points"):
        if name not in variant or name not in reference:
            notes[name] = "not among the outputs"
        elif not np.isfinite(variant[name]).all() or not np.isfinite(reference[name]).all():
            notes[name] = "holds NaN or infinite values"
        else:
            usable.add(name)
    pose, depth, points, unprojected = None, None, None, None
    cameras: list[tuple[Array, Array]] = []
    if "pose_enc" in usable:
        for outputs in (variant, reference):
            pose_enc = outputs["pose_enc"].astype(np.float64)
            extrinsic, intrinsic = pose_encoding_to_camera(pose_enc, height, width)
            cameras.append((np.asarray(extrinsic)[0], np.asarray(intrinsic)[0]))
        pose = pose_errors(cameras[0][0], cameras[1][0])
        if pose.pairs == 0:
            notes["pose"] = "one image has no pair"
    if "depth" in usable:
        depth = depth_errors(variant["depth"][0], reference["depth"][0])
        if depth is None:
            notes["depth"] = "no positive depth to align with"
    if "world_points" in usable:
        points = point_errors(variant["world_points"][0], reference["world_points"][0])
    if {"pose_enc", "depth"} <= usable:
        clouds = [
            unproject_depth(outputs["depth"][0, ..., 0].astype(np.float64), *camera)
            for outputs, camera in zip((variant, reference), cameras, strict=True)
        ]
        if all(np.isfinite(cloud).all() for cloud in clouds):
            unprojected = point_errors(np.asarray(clouds[0]), np.asarray(clouds[1]))
        else:
            notes["depth_points"] = "the predicted cameras put points at infinity"
    return GeometryMetrics(pose, depth, points, unprojected, notes)


def mean_geometry(scenes: Sequence[GeometryMetrics]) -> GeometryMetrics:
    """One GeometryMetrics for several scenes: counts are added, maxima are maxima, the rest means.

    What one scene lacks all of them lack: a mean without a scene that broke would be too kind. Only
    the angles of a scene whose reference has none (one picture, no baseline) are passed over.
    """
    if len(scenes) == 1:
        return scenes[0]
    notes: dict[str, str] = {}
    for key in dict.fromkeys(key for scene in scenes for key in scene.notes):
        told = [scene.notes[key] for scene in scenes if key in scene.notes]
        notes[key] = f"{told[0]} ({len(told)} of {len(scenes)} scenes)"
    poses = [scene.pose for scene in scenes]
    pose = None
    if all(poses):
        pose = PoseErrors(
            pairs=sum(p.pairs for p in poses if p),
            rotation=_mean_angles([p.rotation for p in poses if p]),
            direction=_mean_angles([p.direction for p in poses if p]),
            pairs_without_baseline=sum(p.pairs_without_baseline for p in poses if p),
            pairs_lost=sum(p.pairs_lost for p in poses if p),
        )
    return GeometryMetrics(
        pose=pose,
        depth=_mean_depth([scene.depth for scene in scenes]),
        points=_mean_points([scene.points for scene in scenes]),
        depth_points=_mean_points([scene.depth_points for scene in scenes]),
        notes=notes,
    )


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _mean_angles(scenes: Sequence[Angles | None]) -> Angles | None:
    found = [angles for angles in scenes if angles is not None]
    if not found:
        return None
    return Angles(
        n=sum(angles.n for angles in found),
        mean_deg=_mean([angles.mean_deg for angles in found]),
        median_deg=_mean([angles.median_deg for angles in found]),
        max_deg=max(angles.max_deg for angles in found),
    )


def _mean_depth(scenes: Sequence[DepthErrors | None]) -> DepthErrors | None:
    found = [depth for depth in scenes if depth is not None]
    if len(found) < len(scenes):
        return None
    return DepthErrors(
        pixels=sum(depth.pixels for depth in found),
        pixels_left_out=sum(depth.pixels_left_out for depth in found),
        scale=_mean([depth.scale for depth in found]),
        abs_rel=_mean([depth.abs_rel for depth in found]),
        delta_125=_mean([depth.delta_125 for depth in found]),
    )


def _mean_points(scenes: Sequence[PointErrors | None]) -> PointErrors | None:
    found = [points for points in scenes if points is not None]
    if len(found) < len(scenes):
        return None
    means = [p.mean_relative for p in found if p.mean_relative is not None]
    medians = [p.median_relative for p in found if p.median_relative is not None]
    return PointErrors(
        points=sum(points.points for points in found),
        mean=_mean([points.mean for points in found]),
        median=_mean([points.median for points in found]),
        scene_size=_mean([points.scene_size for points in found]),
        mean_relative=_mean(means) if len(means) == len(found) else None,
        median_relative=_mean(medians) if len(medians) == len(found) else None,
    )
