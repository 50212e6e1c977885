"""What a variant lost against PyTorch FP32 by the truth, scene by scene, and how sure that is.

Both ran on the same scenes, so the differences are taken scene by scene before anything is
averaged: how hard a scene is cancels out. The interval is the percentile bootstrap over scenes:
RESAMPLES times as many scenes are drawn with replacement, and the middle 95 % of the means are
the interval. It says what other scenes of the same kind might give, not what another kind would.
The draws have a fixed seed, so the same scenes give the same interval. With a handful of scenes
it is too narrow (it knows no scene that it was not given); of one scene there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np

from vggt_deploy.compare.truth import TruthMetrics
from vggt_deploy.compare.truth_clouds import LOSS_TOLERANCE_M, CloudTruth
from vggt_deploy.errors import CompareError
from vggt_deploy.typed_json import decode

RESAMPLES = 10_000
CONFIDENCE = 0.95
_SEED = 20250405


@dataclass(frozen=True)
class Difference:
    """Mean over n scenes of what was lost: above 0 is worse than PyTorch FP32, below is better.

    low, high: the 95 % interval of that mean; None for a single scene.
    """

    n: int
    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class TruthLoss:
    """Losses by the truth, all with the sign that above 0 is worse; None: no scene has the number.

    auc_*           AUC of PyTorch FP32 minus that of the variant, points of percent
    abs_rel         AbsRel of the variant minus that of PyTorch FP32, after the median scale
    abs_rel_affine  the same after scale and shift
    point_error     the same of the median point error relative to the scene's size
    overall_m       the same of the mean of accuracy and completeness, metres
    f_score         F-score at LOSS_TOLERANCE_M of PyTorch FP32 minus that of the variant, points of
                    percent
    """

    auc_30: Difference | None
    auc_5: Difference | None
    auc_3: Difference | None
    abs_rel: Difference | None
    abs_rel_affine: Difference | None
    point_error: Difference | None
    overall_m: Difference | None
    f_score: Difference | None

    def to_json(self) -> dict[str, Any]:
        """A dict for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: object) -> TruthLoss:
        """The inverse; CompareError where it is something else."""
        return cast("TruthLoss", decode(cls, data, "truth_loss", _refuse))


def _cloud(scene: TruthMetrics) -> CloudTruth | None:
    return scene.points.cloud if scene.points else None


def _f_score(cloud: CloudTruth) -> float:
    """At the tolerance of the losses, percent."""
    return next(s.f_score for s in cloud.scores if s.threshold_m == LOSS_TOLERANCE_M)


# What stands in a TruthLoss: the number of one scene, so that more of it is worse.
_WORSE: dict[str, Callable[[TruthMetrics], float | None]] = {
    "auc_30": lambda scene: -scene.pose.auc_30 if scene.pose else None,
    "auc_5": lambda scene: -scene.pose.auc_5 if scene.pose else None,
    "auc_3": lambda scene: -scene.pose.auc_3 if scene.pose else None,
    "abs_rel": lambda scene: scene.depth.abs_rel if scene.depth else None,
    "abs_rel_affine": lambda scene: scene.depth.abs_rel_affine if scene.depth else None,
    "point_error": lambda scene: scene.points.median_relative if scene.points else None,
    "overall_m": lambda scene: cloud.overall_m if (cloud := _cloud(scene)) else None,
    "f_score": lambda scene: -_f_score(cloud) if (cloud := _cloud(scene)) else None,
}


def truth_loss(variant: Sequence[TruthMetrics], reference: Sequence[TruthMetrics]) -> TruthLoss:
    """What the variant lost against the reference, over the same scenes in the same order."""
    pairs = list(zip(variant, reference, strict=True))
    losses: dict[str, Difference | None] = {}
    for name, worse in _WORSE.items():
        differences = [
            ours - theirs
            for a, b in pairs
            if (ours := worse(a)) is not None and (theirs := worse(b)) is not None
        ]
        losses[name] = mean_with_interval(differences) if differences else None
    return TruthLoss(**losses)


def mean_with_interval(values: Sequence[float]) -> Difference:
    """The mean of one or more values, and its bootstrap interval; the same each time."""
    data = np.asarray(values, dtype=np.float64)
    mean = float(data.mean())
    if len(data) == 1:
        return Difference(1, mean, None, None)
    drawn = np.random.default_rng(_SEED).integers(0, len(data), (RESAMPLES, len(data)))
    tail = 50.0 * (1.0 - CONFIDENCE)
    low, high = np.percentile(data[drawn].mean(axis=1), [tail, 100.0 - tail])
    return Difference(len(data), mean, float(low), float(high))


def _refuse(problem: str) -> CompareError:
    return CompareError(problem, "it was not written by this version; run it again")
