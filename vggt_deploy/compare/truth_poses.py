"""Predicted cameras of one scene against the true ones, over all pairs of frames i < j.

    relative poses   `geometry.relative_poses`: the origin of the world is gone, and of the baseline
                     only the direction is compared. The sign of a baseline counts: flipped is 180
                     degrees (VGGT's evaluation forgives a flip)
    error of a pair  the larger of the angle between the rotations and that between the baselines
    AUC@T            100 mean(max(0, 1 - e / T)), the exact area under the recall curve up to T
                     degrees. VGGT's evaluation sums bins of one degree and counts a whole bin from
                     its lower end, which gives more, the more so the smaller T is
    RRA@T, RTA@T     percent of the pairs whose rotation, or direction, is off by less than T
                     degrees: each by itself, so that a table shows which of the two is wrong

A pose that is not finite, or a baseline that vanished in the prediction, makes 180 degrees for its
pairs. A pair whose true baseline is below 1e-3 of the longest has no direction: its error is that
of the rotation, it is not in RTA, and `pairs_without_baseline` counts it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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

WORST_ANGLE_DEG = 180.0

Array = NDArray[np.float64]


@dataclass(frozen=True)
class PoseTruth:
    """All pairs of frames; auc_*, rra_* and rta_* in percent, 100 is perfect.

    rta_*, direction_median_deg: None where no pair has a true baseline.
    errors_deg: of each pair, in the order of (0, 1), (0, 2), ..., (1, 2), ...; degrees. From these
        its frames can be drawn again (`paired`).
    """

    pairs: int
    auc_3: float
    auc_5: float
    auc_30: float
    rra_5: float
    rra_15: float
    rra_30: float
    rta_5: float | None
    rta_15: float | None
    rta_30: float | None
    rotation_median_deg: float
    direction_median_deg: float | None
    pairs_without_baseline: int
    errors_deg: tuple[float, ...] = ()


def pose_truth(
    pose_enc: NDArray[np.floating[Any]],
    true: NDArray[np.floating[Any]],
    notes: dict[str, str],
) -> PoseTruth:
    """Pose encodings [S, 9] against the true cameras, world-to-camera [S, 3, 4]; S of 2 or more."""
    pose = pose_enc.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):  # a quaternion of zeros
        rotation = quaternion_to_rotation(pose[:, 3:7])
    extrinsic = np.concatenate([rotation, pose[:, :3, None]], axis=-1)
    bad = np.count_nonzero(~np.isfinite(extrinsic).all(axis=(-2, -1)))
    if bad:
        notes["pose"] = f"{bad} of {len(pose)} poses are not finite: 180 degrees for their pairs"
    rotations, directions = _pair_angles(extrinsic, true)
    errors = np.fmax(rotations, directions)
    known = directions[~np.isnan(directions)]
    return PoseTruth(
        pairs=len(errors),
        auc_3=auc(errors, 3.0),
        auc_5=auc(errors, 5.0),
        auc_30=auc(errors, 30.0),
        rra_5=_percent_below(rotations, 5.0),
        rra_15=_percent_below(rotations, 15.0),
        rra_30=_percent_below(rotations, 30.0),
        rta_5=_percent_below(known, 5.0) if known.size else None,
        rta_15=_percent_below(known, 15.0) if known.size else None,
        rta_30=_percent_below(known, 30.0) if known.size else None,
        rotation_median_deg=float(np.median(rotations)),
        direction_median_deg=float(np.median(known)) if known.size else None,
        pairs_without_baseline=int(np.count_nonzero(np.isnan(directions))),
        errors_deg=tuple(float(error) for error in errors),
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
    return float(np.mean(pair_scores(errors_deg, threshold_deg)))


def pair_scores(errors_deg: NDArray[np.floating[Any]], threshold_deg: float) -> Array:
    """What each error [P] adds to the AUC, in percent: AUC is the mean of these."""
    errors = np.where(np.isfinite(errors_deg), errors_deg, np.inf)
    return np.asarray(100.0 * np.clip(1.0 - errors / threshold_deg, 0.0, 1.0))


def _percent_below(errors_deg: Array, threshold_deg: float) -> float:
    return float(100.0 * np.mean(errors_deg < threshold_deg))


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
