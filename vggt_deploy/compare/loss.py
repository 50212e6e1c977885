"""What a variant lost, as one number: its worst quantity over the most that it may be.

The loss of a row is the worst of these quantities, each divided by its gate, so that a loss of at
most 1 passes every gate:

    depth AbsRel                      0.02
    1 - depth delta 1.25              0.01
    relative rotation, mean           0.5 degrees
    translation direction, mean       2 degrees
    world points, mean / scene size   0.02 (from the point head)

Where the truth is known these gates hold too, on what was lost against PyTorch FP32 (mean over the
scenes, `paired.TruthLoss`):

    AUC@30                            1 point of percent
    AUC@5                             2 points of percent
    depth AbsRel                      0.005
    world points / scene size         0.005

and from 5 scenes on they stand alone for what they judge (AUC for poses, AbsRel for depth, points
for points): a variant may be far from FP32 and no worse. Of fewer scenes chance alone could pass
one, however many frames they have, so both kinds hold there; and for poses where FP32 itself has
less than 20 points of AUC@30: who has nothing loses nothing, however wrong its poses are.

The gates are a convention of this tool (small beside VGGT's own error on benchmarks), not a law,
and other ones than those of gates.toml, which are measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from vggt_deploy.compare.paired import Difference
from vggt_deploy.compare.report import Row

Part = Literal["pose", "depth", "points"]
ENOUGH_SCENES = 5  # from here on the truth alone judges
PAIRS_LOST = " pairs lost their baseline"
LEAST_AUC_30 = 20.0  # of FP32, points of percent: below it AUC has too little to lose to judge


@dataclass(frozen=True)
class Gate:
    """One quantity of a row, what it is about, and the most it may be."""

    name: str
    limit: float
    part: Part
    value: Callable[[Row], float | None]


def _abs_rel(row: Row) -> float | None:
    return row.geometry.depth.abs_rel if row.geometry and row.geometry.depth else None


def _delta(row: Row) -> float | None:
    return 1.0 - row.geometry.depth.delta_125 if row.geometry and row.geometry.depth else None


def _angle(row: Row, kind: str) -> float | None:
    pose = row.geometry.pose if row.geometry else None
    angles = (pose.rotation if kind == "rotation" else pose.direction) if pose else None
    return angles.mean_deg if angles else None


def _points(row: Row) -> float | None:
    return row.geometry.points.mean_relative if row.geometry and row.geometry.points else None


def difference(row: Row, quantity: str) -> Difference | None:
    """One quantity of its `truth_loss`."""
    found: Difference | None = getattr(row.truth_loss, quantity, None)
    return found


def _mean_lost(row: Row, quantity: str) -> float | None:
    found = difference(row, quantity)
    return found.mean if found is not None else None


GATES = (
    Gate("depth AbsRel", 0.02, "depth", _abs_rel),
    Gate("1 - depth delta 1.25", 0.01, "depth", _delta),
    Gate("rotation, degrees", 0.5, "pose", partial(_angle, kind="rotation")),
    Gate("translation direction, degrees", 2.0, "pose", partial(_angle, kind="direction")),
    Gate("world points / scene size", 0.02, "points", _points),
)
TRUTH_GATES = (
    Gate("AUC@30 lost", 1.0, "pose", partial(_mean_lost, quantity="auc_30")),
    Gate("AUC@5 lost", 2.0, "pose", partial(_mean_lost, quantity="auc_5")),
    Gate("AbsRel lost", 0.005, "depth", partial(_mean_lost, quantity="abs_rel")),
    Gate("points lost / scene size", 0.005, "points", partial(_mean_lost, quantity="point_error")),
)
# What of a TruthLoss judges each part.
_JUDGES: dict[Part, str] = {"pose": "auc_30", "depth": "abs_rel", "points": "point_error"}


def loss(row: Row) -> tuple[float, str] | None:
    """The worst quantity over its gate, and its name; None when none was measured."""
    by_truth = {
        part
        for part, quantity in _JUDGES.items()
        if (lost := difference(row, quantity)) is not None
        and lost.scenes >= ENOUGH_SCENES
        and (part != "pose" or _reference_auc_30(row) >= LEAST_AUC_30)
    }
    gates = [*(gate for gate in GATES if gate.part not in by_truth), *TRUTH_GATES]
    found = [(v / g.limit, g.name) for g in gates if (v := g.value(row)) is not None]
    pairs = row.geometry.pose.pairs_lost if row.geometry and row.geometry.pose else 0
    if pairs and "pose" not in by_truth:  # the truth counts them as 180 degrees
        return float("inf"), f"{pairs}{PAIRS_LOST}"
    return max(found) if found else None


def _reference_auc_30(row: Row) -> float:
    """AUC@30 of PyTorch FP32 on the row's scenes: what the row has and what it lost."""
    lost = _mean_lost(row, "auc_30")
    own = row.truth.auc_30 if row.truth is not None else None
    return 0.0 if lost is None or own is None else own + lost
