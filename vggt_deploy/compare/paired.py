"""What a variant lost against PyTorch FP32 by the truth, and how sure that is.

Both ran on the same pictures, so the differences are taken scene by scene (of one scene: frame by
frame) before anything is averaged: how hard a scene or a frame is cancels out. The interval is the
percentile bootstrap, the middle 95 % of RESAMPLES draws with replacement. The draws have a fixed
seed, so the same numbers give the same interval.

    over scenes   as many scenes as there are are drawn, and their differences averaged. It says
                  what other scenes of the same kind might give, not what another kind would.
    over frames   where one scene alone has the number. S of its S frames are drawn, the same for
                  the variant and for FP32; a frame that was drawn c times weighs c times:
                      AUC      a pair of frames i < j weighs c_i c_j. A draw without two different
                               frames has no pair, and is left out (of 3 frames 1 draw in 9, of 5 1
                               in 625). A frame and its copy make no pair: it would be perfect.
                      AbsRel   each of a frame's pixels weighs c_i; frames without true depth are
                               not drawn. The alignment stays that of the whole scene.
                  It says what other frames of this scene might give, and nothing of other scenes.
                  Medians and clouds are no mean over frames: they have no interval of one scene.

With a handful of scenes, or of frames, an interval is too narrow: it knows none that it was not
given. In a simulation (a normal effect of each frame, those of two frames and noise added up for
their pair, no loss in truth) the 95 % interval held 0 in 53, 79, 81, 88 and 93 of 100 cases with 3,
4, 5, 10 and 20 frames; that of depth in 76, 79, 83, 89 and 93. Of fewer than FEWEST_FRAMES frames
there is none: two have one pair, which is all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from vggt_deploy.compare.truth import TruthMetrics
from vggt_deploy.compare.truth_clouds import LOSS_TOLERANCE_M, CloudTruth
from vggt_deploy.compare.truth_poses import pair_scores
from vggt_deploy.errors import CompareError
from vggt_deploy.typed_json import decode

RESAMPLES = 10_000
CONFIDENCE = 0.95
FEWEST_FRAMES = 3
_SEED = 20250405

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """Mean of what was lost: above 0 is worse than PyTorch FP32, below is better.

    n: how many scenes it is the mean of; with `over` "frames": frames of the one scene that it is
        of, those with true depth for depth.
    low, high: the 95 % interval; None for a single scene whose number is no mean over frames.
    over: what was drawn for the interval.
    """

    n: int
    mean: float
    low: float | None
    high: float | None
    over: Literal["scenes", "frames"] = "scenes"

    @property
    def scenes(self) -> int:
        """How many scenes stand behind it, whatever the interval is over."""
        return self.n if self.over == "scenes" else 1


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


def losses(loss: TruthLoss | None) -> tuple[Difference, ...]:
    """Those that are known."""
    found = (getattr(loss, field.name) for field in fields(TruthLoss)) if loss else ()
    return tuple(each for each in found if each is not None)


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
_AUC_DEG = {"auc_30": 30.0, "auc_5": 5.0, "auc_3": 3.0}


def truth_loss(variant: Sequence[TruthMetrics], reference: Sequence[TruthMetrics]) -> TruthLoss:
    """What the variant lost against the reference, over the same scenes in the same order."""
    pairs = list(zip(variant, reference, strict=True))
    losses: dict[str, Difference | None] = {}
    for name, worse in _WORSE.items():
        known = [
            (a, b, ours - theirs)
            for a, b in pairs
            if (ours := worse(a)) is not None and (theirs := worse(b)) is not None
        ]
        if len(known) == 1:
            losses[name] = _of_one_scene(name, *known[0])
        else:
            losses[name] = mean_with_interval([lost for *_, lost in known]) if known else None
    return TruthLoss(**losses)


def mean_with_interval(values: Sequence[float]) -> Difference:
    """The mean of one or more values, one a scene, and its interval; the same each time."""
    data = np.asarray(values, dtype=np.float64)
    mean = float(data.mean())
    if len(data) == 1:
        return Difference(1, mean, None, None)
    drawn = np.random.default_rng(_SEED).integers(0, len(data), (RESAMPLES, len(data)))
    return Difference(len(data), mean, *_middle(data[drawn].mean(axis=1)))


def drawn_pairs(lost: Array, frames: int) -> Array:
    """Weighted means [R] of what pairs of frames lost [P], of the draws that have a pair.

    P = S (S - 1) / 2 for S `frames`, in the order of (0, 1), (0, 2), ..., (1, 2), ...
    """
    table = np.zeros((frames, frames))
    table[np.triu_indices(frames, 1)] = lost
    counts = _draws(frames)
    sums = ((counts @ table) * counts).sum(axis=1)
    weights = (frames**2 - (counts**2).sum(axis=1)) / 2.0
    paired = weights > 0.0
    return np.asarray(sums[paired] / weights[paired])


def drawn_pixels(lost: Array, pixels: Array) -> Array:
    """Weighted means [R] of what frames with these numbers of pixels lost per pixel, both [S]."""
    weights = _draws(len(pixels)) * pixels
    return np.asarray(weights @ lost / weights.sum(axis=1))


def _of_one_scene(name: str, ours: TruthMetrics, theirs: TruthMetrics, lost: float) -> Difference:
    """The difference, with an interval over the scene's frames where it is a mean over them."""
    found = None
    if name in _AUC_DEG:
        found = _auc_drawn(ours, theirs, _AUC_DEG[name])
    elif name in ("abs_rel", "abs_rel_affine"):
        found = _abs_rel_drawn(ours, theirs, f"frame_{name}")
    if found is None:
        return Difference(1, lost, None, None)
    frames, drawn = found
    return Difference(frames, lost, *_middle(drawn), over="frames")


def _auc_drawn(
    ours: TruthMetrics, theirs: TruthMetrics, threshold_deg: float
) -> tuple[int, Array] | None:
    """How many frames, and the differences of AUC of draws of them; None: too few."""
    assert ours.pose is not None  # `truth_loss` has seen to it
    assert theirs.pose is not None
    a, b = np.asarray(ours.pose.errors_deg), np.asarray(theirs.pose.errors_deg)
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} pairs are not of the same frames")
    frames = round((1.0 + (1.0 + 8.0 * len(a)) ** 0.5) / 2.0)  # P = S (S - 1) / 2
    if frames < FEWEST_FRAMES:
        return None
    lost = pair_scores(b, threshold_deg) - pair_scores(a, threshold_deg)
    return frames, drawn_pairs(lost, frames)


def _abs_rel_drawn(ours: TruthMetrics, theirs: TruthMetrics, name: str) -> tuple[int, Array] | None:
    """How many frames with true depth, and the differences of AbsRel of draws; None: too few."""
    assert ours.depth is not None  # `truth_loss` has seen to it
    assert theirs.depth is not None
    if ours.depth.frame_pixels != theirs.depth.frame_pixels:
        raise ValueError("the pixels with true depth are not those of the same frames")
    pixels = np.asarray(ours.depth.frame_pixels, dtype=np.float64)
    known = pixels > 0
    if np.count_nonzero(known) < FEWEST_FRAMES:
        return None
    a, b = (
        np.asarray(getattr(each, name), dtype=np.float64) for each in (ours.depth, theirs.depth)
    )
    return int(np.count_nonzero(known)), drawn_pixels((a - b)[known], pixels[known])


def _draws(frames: int) -> Array:
    """[RESAMPLES, S]: how often each of S frames was drawn, S times with replacement."""
    rng = np.random.default_rng(_SEED)
    return rng.multinomial(frames, np.full(frames, 1.0 / frames), RESAMPLES).astype(np.float64)


def _middle(drawn: Array) -> tuple[float, float]:
    """The ends of the middle 95 %."""
    tail = 50.0 * (1.0 - CONFIDENCE)
    low, high = np.percentile(drawn, [tail, 100.0 - tail])
    return float(low), float(high)


def _refuse(problem: str) -> CompareError:
    return CompareError(problem, "it was not written by this version; run it again")
