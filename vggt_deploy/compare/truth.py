"""A network's outputs against the truth: relative poses, depth and world points of one scene.

Truth is in metres in a world of its own; the network's scene has another origin, orientation and
scale, so nothing is compared before these are taken out. The formulas stand with each part:

    poses   `truth_poses`: all pairs of frames, AUC, RRA and RTA
    depth   `truth_depth`: AbsRel and delta 1.25 after the median scale, and after scale and shift
    points  `truth_points`: the point head after the similarity of Umeyama, pixel by pixel, and
            `truth_clouds`: as clouds, accuracy, completeness and F-score

Nothing that a network got wrong is left out: a pose that is not finite is 180 degrees for its
pairs, a depth that is not finite is AbsRel 1, a point that is not finite is as far off as the scene
is large. `notes` counts them. What is left out is what the truth does not know: pixels without true
depth, and the direction of a pair without a true baseline.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from vggt_deploy.compare.truth_clouds import CloudScore, CloudTruth
from vggt_deploy.compare.truth_depth import DepthTruth, depth_truth
from vggt_deploy.compare.truth_points import (
    FEWEST_POINTS,
    Alignment,
    PointTruth,
    Truth,
    point_truth,
    true_points,
    umeyama,
)
from vggt_deploy.compare.truth_poses import PoseTruth, auc, pair_errors_deg, pose_truth
from vggt_deploy.errors import CompareError
from vggt_deploy.typed_json import decode

__all__ = [
    "Alignment",
    "CloudScore",
    "CloudTruth",
    "DepthTruth",
    "Outputs",
    "PointTruth",
    "PoseTruth",
    "ThresholdScore",
    "Truth",
    "TruthMean",
    "TruthMetrics",
    "auc",
    "mean_metrics",
    "pair_errors_deg",
    "true_points",
    "truth_metrics",
    "umeyama",
]

Array = NDArray[np.float64]
Outputs = Mapping[str, NDArray[np.floating[Any]]]


@dataclass(frozen=True)
class TruthMetrics:
    """One scene. None: not predicted or not known; `notes` says which, and counts bad values."""

    pose: PoseTruth | None = None
    depth: DepthTruth | None = None
    points: PointTruth | None = None
    notes: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """A dict for JSON, as it comes back from a file: lists, no tuples."""
        return cast("dict[str, Any]", json.loads(json.dumps(asdict(self))))

    @classmethod
    def from_json(cls, data: object) -> TruthMetrics:
        """The inverse; CompareError where it is something else."""
        return cast("TruthMetrics", decode(cls, data, "truth", _refuse))


@dataclass(frozen=True)
class ThresholdScore:
    """Mean F-score over scenes at one tolerance, percent."""

    threshold_m: float
    f_score: float


@dataclass(frozen=True)
class TruthMean:
    """Means over scenes, each over those that have the number; how many stands beside them.

    point_error: mean over scenes of the median distance relative to the scene's size;
    point_error_mean: of the mean distance. accuracy_m, completeness_m: of the mean distances.
    f_scores: empty where no scene has clouds.
    """

    scenes: int
    pose_scenes: int
    depth_scenes: int
    point_scenes: int
    auc_3: float | None
    auc_5: float | None
    auc_30: float | None
    rra_5: float | None
    rra_15: float | None
    rra_30: float | None
    rta_5: float | None
    rta_15: float | None
    rta_30: float | None
    rotation_median_deg: float | None
    direction_median_deg: float | None
    abs_rel: float | None
    delta_125: float | None
    abs_rel_affine: float | None
    delta_125_affine: float | None
    point_error: float | None
    point_error_mean: float | None
    accuracy_m: float | None
    completeness_m: float | None
    overall_m: float | None
    f_scores: tuple[ThresholdScore, ...]

    def to_json(self) -> dict[str, Any]:
        """A dict for JSON, as it comes back from a file: lists, no tuples."""
        return cast("dict[str, Any]", json.loads(json.dumps(asdict(self))))

    @classmethod
    def from_json(cls, data: object) -> TruthMean:
        """The inverse; CompareError where it is something else."""
        return cast("TruthMean", decode(cls, data, "truth_mean", _refuse))


def truth_metrics(outputs: Outputs, truth: Truth, *, clouds: bool = False) -> TruthMetrics:
    """All that outputs and truth allow; outputs as the network gives them, batch of 1.

    clouds: also nearest-neighbour distances of the points. They take seconds where the rest takes
    a tenth of one, so a training or a search that runs this a thousand times goes without.

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
        pose = pose_truth(outputs["pose_enc"][0], truth.extrinsic, notes)
    if truth.depth is None:
        notes["depth"] = notes["points"] = "no true depth"
        return TruthMetrics(pose, depth, points, notes)
    known = np.isfinite(truth.depth) & (truth.depth > 0)
    if truth.rays is not None:  # a pixel that the lens gives no ray has no true point
        known &= np.isfinite(truth.rays).all(axis=-1)
    for name, key in (("depth", "depth"), ("points", "world_points")):
        if key not in outputs:
            notes[name] = "not among the outputs"
        elif np.count_nonzero(known) < FEWEST_POINTS:
            notes[name] = "no pixel with true depth"
        else:
            _same_shape(name, outputs[key].shape[1:4], truth.depth.shape)
            if name == "depth":
                predicted = outputs[key][0, ..., 0][known]
                pixels = np.count_nonzero(known, axis=(1, 2)).tolist()
                depth = depth_truth(predicted, truth.depth[known], notes, pixels)
            else:
                right = true_points(truth)[known]
                points = point_truth(outputs[key][0][known], right, notes, clouds=clouds)
    return TruthMetrics(pose, depth, points, notes)


def mean_metrics(scenes: Sequence[TruthMetrics]) -> TruthMean:
    """Means over scenes; a scene that lacks a number is not in that number's mean."""
    poses = [scene.pose for scene in scenes if scene.pose is not None]
    depths = [scene.depth for scene in scenes if scene.depth is not None]
    points = [scene.points for scene in scenes if scene.points is not None]
    clouds = [each.cloud for each in points if each.cloud is not None]

    def mean(items: Sequence[Any], name: str) -> float | None:
        values = [value for item in items if (value := getattr(item, name)) is not None]
        return float(np.mean(values)) if values else None

    return TruthMean(
        scenes=len(scenes),
        pose_scenes=len(poses),
        depth_scenes=len(depths),
        point_scenes=len(points),
        auc_3=mean(poses, "auc_3"),
        auc_5=mean(poses, "auc_5"),
        auc_30=mean(poses, "auc_30"),
        rra_5=mean(poses, "rra_5"),
        rra_15=mean(poses, "rra_15"),
        rra_30=mean(poses, "rra_30"),
        rta_5=mean(poses, "rta_5"),
        rta_15=mean(poses, "rta_15"),
        rta_30=mean(poses, "rta_30"),
        rotation_median_deg=mean(poses, "rotation_median_deg"),
        direction_median_deg=mean(poses, "direction_median_deg"),
        abs_rel=mean(depths, "abs_rel"),
        delta_125=mean(depths, "delta_125"),
        abs_rel_affine=mean(depths, "abs_rel_affine"),
        delta_125_affine=mean(depths, "delta_125_affine"),
        point_error=mean(points, "median_relative"),
        point_error_mean=mean(points, "mean_relative"),
        accuracy_m=mean(clouds, "accuracy_mean_m"),
        completeness_m=mean(clouds, "completeness_mean_m"),
        overall_m=mean(clouds, "overall_m"),
        f_scores=_mean_scores(clouds),
    )


def _mean_scores(clouds: Sequence[CloudTruth]) -> tuple[ThresholdScore, ...]:
    """All clouds have the same tolerances, in the same order."""
    if not clouds:
        return ()
    return tuple(
        ThresholdScore(
            score.threshold_m,
            float(np.mean([cloud.scores[index].f_score for cloud in clouds])),
        )
        for index, score in enumerate(clouds[0].scores)
    )


def _same_shape(name: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if found != wanted:
        raise CompareError(
            f"The {name} output is {found}, the truth is {wanted} (views, rows, columns).",
            "make the truth for the very pictures and size that the network saw",
        )


def _refuse(problem: str) -> CompareError:
    return CompareError(problem, "it was not written by this version; run it again")
