"""A network's outputs against the truth: relative poses, depth and world points of one scene.

Truth is in metres in a world of its own; the network's scene has another origin, orientation and
scale, so nothing is compared before these are taken out:

    poses   relative, for all pairs of frames i < j (`geometry.relative_poses`): the origin is gone,
            and of the baseline only the direction is compared. The error of a pair is the larger of
            the angle between the rotations and the angle between the baselines. The sign of a
            baseline counts: flipped is 180 degrees (VGGT's evaluation forgives a flip)
    AUC@T   100 mean(max(0, 1 - e / T)), the exact area under the recall curve up to T degrees.
            VGGT's evaluation sums bins of one degree and counts a whole bin from its lower end,
            which gives more, the more so the smaller T is
    depth   s a with one scale s = median(true) / median(predicted) for the whole scene, then
            AbsRel = mean |s a - b| / b, delta 1.25 = part with max(s a / b, b / (s a)) < 1.25
    points  of the point head, after the similarity that Umeyama gives for all valid pixels (IEEE
            TPAMI 13(4), 1991, equations 39 to 42): scale, proper rotation, translation, never a
            reflection. True points are unprojected from true depth; the centre of the pixel of
            column u and row v lies at (u + 0.5, v + 0.5), as COLMAP has it

Nothing that a network got wrong is left out. A pose that is not finite, or a baseline that vanished
in the prediction, makes 180 degrees for its pairs; a depth that is not finite counts as depth 0,
AbsRel 1; a point that is not finite is as far off as the scene is large. `notes` counts them.
What is left out is what the truth does not know: pixels without true depth, and the direction of a
pair whose true baseline is below 1e-3 of the longest (`pairs_without_baseline`; its error is that
of the rotation).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from vggt_deploy.compare.geometry import (
    MIN_BASELINE,
    VANISHED,
    direction_angles_deg,
    relative_poses,
    rotation_angles_deg,
)
from vggt_deploy.errors import CompareError
from vggt_deploy.geometry import quaternion_to_rotation
from vggt_deploy.typed_json import decode

WORST_ANGLE_DEG = 180.0
FEWEST_POINTS = 3  # a similarity needs a triangle

Array = NDArray[np.float64]
Outputs = Mapping[str, NDArray[np.floating[Any]]]


class Truth(Protocol):
    """What is known of a scene: `vggt_deploy.data.ground_truth.GroundTruth`, or alike.

    extrinsic [S, 3, 4] world-to-camera, intrinsic [S, 3, 3] at the size of the network's maps,
    depth [S, H, W] in metres along the optical axis, inf where unknown; None: no depth at all.
    """

    @property
    def extrinsic(self) -> NDArray[np.floating[Any]]: ...
    @property
    def intrinsic(self) -> NDArray[np.floating[Any]]: ...
    @property
    def depth(self) -> NDArray[np.floating[Any]] | None: ...


@dataclass(frozen=True)
class PoseTruth:
    """All pairs of frames; AUC in percent, 100 is perfect."""

    pairs: int
    auc_3: float
    auc_5: float
    auc_30: float
    rotation_median_deg: float
    direction_median_deg: float | None
    pairs_without_baseline: int


@dataclass(frozen=True)
class DepthTruth:
    """Pixels with true depth. `scale`: what the prediction was multiplied with, metres per unit."""

    pixels: int
    scale: float
    abs_rel: float
    delta_125: float


@dataclass(frozen=True)
class PointTruth:
    """Distances in metres after alignment, and relative to the scene's size.

    scene_size: median distance of the true points from their median point.
    """

    points: int
    mean: float
    median: float
    scene_size: float
    mean_relative: float
    median_relative: float


@dataclass(frozen=True)
class TruthMetrics:
    """One scene. None: not predicted or not known; `notes` says which, and counts bad values."""

    pose: PoseTruth | None = None
    depth: DepthTruth | None = None
    points: PointTruth | None = None
    notes: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """A dict for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: object) -> TruthMetrics:
        """The inverse; CompareError where it is something else."""
        return cast("TruthMetrics", decode(cls, data, "truth", _refuse))


@dataclass(frozen=True)
class TruthMean:
    """Means over scenes, each over those that have the number; how many stands beside them.

    point_error: mean over scenes of the median distance relative to the scene's size;
    point_error_mean: of the mean distance.
    """

    scenes: int
    pose_scenes: int
    depth_scenes: int
    point_scenes: int
    auc_3: float | None
    auc_5: float | None
    auc_30: float | None
    rotation_median_deg: float | None
    direction_median_deg: float | None
    abs_rel: float | None
    delta_125: float | None
    point_error: float | None
    point_error_mean: float | None

    def to_json(self) -> dict[str, Any]:
        """A dict for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: object) -> TruthMean:
        """The inverse; CompareError where it is something else."""
        return cast("TruthMean", decode(cls, data, "truth_mean", _refuse))


@dataclass(frozen=True)
class Similarity:
    """x -> scale rotation x + translation."""

    scale: float
    rotation: Array
    translation: Array

    def apply(self, points: Array) -> Array:
        """[N, 3] -> [N, 3]."""
        return np.asarray(self.scale * points @ self.rotation.T + self.translation)


def _refuse(problem: str) -> CompareError:
    return CompareError(problem, "it was not written by this version; run it again")


def truth_metrics(outputs: Outputs, truth: Truth) -> TruthMetrics:
    """All that outputs and truth allow; outputs as the network gives them, batch of 1.

    Raises:
        CompareError: outputs and truth differ in the number of views or in size.
    """
    notes: dict[str, str] = {}
    pose, depth, points = None, None, None
    if "pose_enc" not in outputs:
        notes["pose"] = "not among the outputs"
    elif len(truth.extrinsic) < 2:
        notes["pose"] = "one view has no pair"
    else:
        pose = _pose(outputs["pose_enc"][0], truth, notes)
    if truth.depth is None:
        notes["depth"] = notes["points"] = "no true depth"
        return TruthMetrics(pose, depth, points, notes)
    known = np.isfinite(truth.depth) & (truth.depth > 0)
    for name, key in (("depth", "depth"), ("points", "world_points")):
        if key not in outputs:
            notes[name] = "not among the outputs"
        elif np.count_nonzero(known) < FEWEST_POINTS:
            notes[name] = "no pixel with true depth"
        else:
            _same_shape(name, outputs[key].shape[1:4], truth.depth.shape)
            if name == "depth":
                depth = _depth(outputs[key][0, ..., 0][known], truth.depth[known], notes)
            else:
                points = _points(outputs[key][0][known], true_points(truth)[known], notes)
    return TruthMetrics(pose, depth, points, notes)


def mean_metrics(scenes: Sequence[TruthMetrics]) -> TruthMean:
    """Means over scenes; a scene that lacks a number is not in that number's mean."""
    poses = [scene.pose for scene in scenes if scene.pose is not None]
    depths = [scene.depth for scene in scenes if scene.depth is not None]
    points = [scene.points for scene in scenes if scene.points is not None]
    directions = [p.direction_median_deg for p in poses if p.direction_median_deg is not None]
    return TruthMean(
        scenes=len(scenes),
        pose_scenes=len(poses),
        depth_scenes=len(depths),
        point_scenes=len(points),
        auc_3=_mean([p.auc_3 for p in poses]),
        auc_5=_mean([p.auc_5 for p in poses]),
        auc_30=_mean([p.auc_30 for p in poses]),
        rotation_median_deg=_mean([p.rotation_median_deg for p in poses]),
        direction_median_deg=_mean(directions),
        abs_rel=_mean([d.abs_rel for d in depths]),
        delta_125=_mean([d.delta_125 for d in depths]),
        point_error=_mean([p.median_relative for p in points]),
        point_error_mean=_mean([p.mean_relative for p in points]),
    )


def pair_errors_deg(predicted: NDArray[np.floating[Any]], true: NDArray[np.floating[Any]]) -> Array:
    """World-to-camera [S, 3, 4] twice -> [P] degrees: the larger of rotation and direction."""
    rotation, direction = _pair_angles(predicted, true)
    return np.asarray(np.fmax(rotation, direction))


def auc(errors_deg: NDArray[np.floating[Any]], threshold_deg: float) -> float:
    """Exact area under the recall curve up to the threshold, in percent.

    Recall at angle x is the part of the errors not above x. Its integral from 0 to T, divided by T,
    is mean(max(0, 1 - e / T)). VGGT's `calculate_auc_np` adds up the cumulated histogram of
    one-degree bins instead, which is never less. An error that is not finite counts as beyond T.

    Raises:
        ValueError: no errors, or a threshold that is not positive.
    """
    if errors_deg.size == 0 or not threshold_deg > 0.0:
        raise ValueError(f"{errors_deg.size} errors up to {threshold_deg} degrees have no AUC")
    errors = np.where(np.isfinite(errors_deg), errors_deg, np.inf)
    return float(100.0 * np.mean(np.clip(1.0 - errors / threshold_deg, 0.0, 1.0)))


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
    """World points [S, H, W, 3] of the true depth; NaN where it is unknown.

    X = R^T (z K^-1 [u + 0.5, v + 0.5, 1] - t).
    """
    assert truth.depth is not None  # `truth_metrics` has seen to it
    frames, height, width = truth.depth.shape
    v, u = np.mgrid[:height, :width] + 0.5
    pixels = np.stack([u, v, np.ones_like(u)], axis=-1)
    points = np.empty((frames, height, width, 3))
    for frame in range(frames):
        depth = truth.depth[frame].astype(np.float64)
        depth = np.where(np.isfinite(depth) & (depth > 0), depth, np.nan)
        extrinsic = truth.extrinsic[frame].astype(np.float64)
        rays = pixels @ np.linalg.inv(truth.intrinsic[frame].astype(np.float64)).T
        # Row vectors: (x - t)^T R = (R^T (x - t))^T.
        points[frame] = (rays * depth[..., None] - extrinsic[:, 3]) @ extrinsic[:, :3]
    return points


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _same_shape(name: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if found != wanted:
        raise CompareError(
            f"The {name} output is {found}, the truth is {wanted} (views, rows, columns).",
            "make the truth for the very pictures and size that the network saw",
        )


def _pair_angles(
    predicted: NDArray[np.floating[Any]], true: NDArray[np.floating[Any]]
) -> tuple[Array, Array]:
    """Rotation and direction errors [P] in degrees; direction NaN where the truth has none."""
    if predicted.shape != true.shape:
        raise CompareError(
            f"The predicted cameras are {predicted.shape}, the true ones {true.shape}.",
            "make the truth for the very pictures that the network saw",
        )
    rotation_a, t_a = relative_poses(predicted.astype(np.float64))
    rotation_b, t_b = relative_poses(true.astype(np.float64))
    length_a, length_b = np.linalg.norm(t_a, axis=-1), np.linalg.norm(t_b, axis=-1)
    has_baseline = (length_b > 0.0) & (length_b >= MIN_BASELINE * length_b.max(initial=0.0))
    finite = np.isfinite(rotation_a).all(axis=(-2, -1)) & np.isfinite(length_a)
    longest = length_a[finite].max(initial=0.0)
    seen = finite & (length_a > VANISHED * longest)
    rotation = np.full(len(t_b), WORST_ANGLE_DEG)
    rotation[finite] = rotation_angles_deg(rotation_a[finite], rotation_b[finite])
    direction = np.where(has_baseline, WORST_ANGLE_DEG, np.nan)
    both = has_baseline & seen
    direction[both] = direction_angles_deg(t_a[both], t_b[both])
    return rotation, direction


def _pose(pose_enc: NDArray[np.floating[Any]], truth: Truth, notes: dict[str, str]) -> PoseTruth:
    """Pose encodings [S, 9] against the true cameras."""
    pose = pose_enc.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):  # a quaternion of zeros
        rotation = quaternion_to_rotation(pose[:, 3:7])
    extrinsic = np.concatenate([rotation, pose[:, :3, None]], axis=-1)
    bad = np.count_nonzero(~np.isfinite(extrinsic).all(axis=(-2, -1)))
    if bad:
        notes["pose"] = f"{bad} of {len(pose)} poses are not finite: 180 degrees for their pairs"
    rotations, directions = _pair_angles(extrinsic, truth.extrinsic)
    errors = np.fmax(rotations, directions)
    known = directions[~np.isnan(directions)]
    return PoseTruth(
        pairs=len(errors),
        auc_3=auc(errors, 3.0),
        auc_5=auc(errors, 5.0),
        auc_30=auc(errors, 30.0),
        rotation_median_deg=float(np.median(rotations)),
        direction_median_deg=float(np.median(known)) if known.size else None,
        pairs_without_baseline=int(np.count_nonzero(np.isnan(directions))),
    )


def _depth(
    predicted: NDArray[np.floating[Any]], true: NDArray[np.floating[Any]], notes: dict[str, str]
) -> DepthTruth:
    """Depths [N] of the pixels whose truth is known."""
    a, b = predicted.astype(np.float64), true.astype(np.float64)
    finite = np.isfinite(a)
    said = []
    if not finite.all():
        bad = np.count_nonzero(~finite)
        said.append(f"{bad} of {a.size} depths are not finite: counted as depth 0")
    middle = float(np.median(a[finite])) if finite.any() else 0.0
    scale = float(np.median(b)) / middle if middle > 0.0 else 0.0
    if finite.any() and middle <= 0.0:
        said.append("the median depth is not positive: counted as depth 0 everywhere")
    if said:
        notes["depth"] = "; ".join(said)
    a = np.where(finite, a, 0.0) * scale
    inside = (a > 0.0) & (a < 1.25 * b) & (b < 1.25 * a)
    return DepthTruth(
        pixels=int(b.size),
        scale=scale,
        abs_rel=float(np.mean(np.abs(a - b) / b)),
        delta_125=float(np.mean(inside)),
    )


def _points(
    predicted: NDArray[np.floating[Any]], true: Array, notes: dict[str, str]
) -> PointTruth | None:
    """Points [N, 3] of the pixels whose truth is known."""
    a = predicted.astype(np.float64)
    finite = np.isfinite(a).all(axis=-1)
    size = float(np.median(np.linalg.norm(true - np.median(true, axis=0), axis=-1)))
    if size <= 0.0:
        notes["points"] = "all true points are one: the scene has no size"
        return None
    distance = np.full(len(a), size)
    if np.count_nonzero(finite) >= FEWEST_POINTS:
        aligned = umeyama(a[finite], true[finite]).apply(a[finite])
        distance[finite] = np.linalg.norm(aligned - true[finite], axis=-1)
    if not finite.all():
        bad = np.count_nonzero(~finite)
        notes["points"] = f"{bad} of {len(a)} points are not finite: counted as off by its size"
    mean, median = float(distance.mean()), float(np.median(distance))
    return PointTruth(len(a), mean, median, size, mean / size, median / size)
