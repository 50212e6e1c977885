"""What to use, and why: rules over the measured rows, no judgement beyond them.

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
one, so both kinds hold there; and for poses where FP32 itself has less than 20 points of AUC@30:
who has nothing loses nothing, however wrong its poses are.

The gates are a convention of this tool (small beside VGGT's own error on benchmarks), not a law,
and other ones than those of gates.toml, which are measured.

    fastest here    lowest median latency of all rows with finite outputs
    best accuracy   lowest loss among the variants that are not FP32
    production      an artifact, within the gates, surely faster than every FP32 variant measured:
                    the fastest of these, the smaller one where two medians are within 2 %
    edge            an artifact, within the gates: the smallest on disk. If it is slower than FP32,
                    the reason says so: it is chosen for its size alone

Surely faster: its median is below the fastest single call of the other. A median can be lifted by
whatever else ran on the machine; a single call can't be faster than the work takes.

A row with NaN or infinite outputs is never recommended, nor one without latency or accuracy (an
engine that could not be run here). A variant slower than an FP32 variant in the same run is never
recommended for speed. On random weights there are no gates, and nothing is recommended for its
accuracy: such weights say nothing about trained ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from vggt_deploy.compare.paired import Difference
from vggt_deploy.compare.report import Recommendation, Row, ratios

NOT_EVIDENCE = "the weights are random: accuracy on random weights is not evidence"


Part = Literal["pose", "depth", "points"]
ENOUGH_SCENES = 5  # from here on the truth alone judges
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


def _lost(row: Row, quantity: str) -> Difference | None:
    found: Difference | None = getattr(row.truth_loss, quantity, None)
    return found


def _mean_lost(row: Row, quantity: str) -> float | None:
    found = _lost(row, quantity)
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
        if (lost := _lost(row, quantity)) is not None
        and lost.n >= ENOUGH_SCENES
        and (part != "pose" or _reference_auc_30(row) >= LEAST_AUC_30)
    }
    gates = [*(gate for gate in GATES if gate.part not in by_truth), *TRUTH_GATES]
    found = [(v / g.limit, g.name) for g in gates if (v := g.value(row)) is not None]
    pairs = row.geometry.pose.pairs_lost if row.geometry and row.geometry.pose else 0
    if pairs and "pose" not in by_truth:  # the truth counts them as 180 degrees
        return float("inf"), f"{pairs} pairs lost their baseline"
    return max(found) if found else None


def _reference_auc_30(row: Row) -> float:
    """AUC@30 of PyTorch FP32 on the row's scenes: what the row has and what it lost."""
    lost = _mean_lost(row, "auc_30")
    own = row.truth.auc_30 if row.truth is not None else None
    return 0.0 if lost is None or own is None else own + lost


def _by_truth(row: Row) -> str:
    """What the truth says of a row, for the reader of its recommendation."""
    said = []
    for name, quantity in (("AUC@30", "auc_30"), ("AbsRel", "abs_rel"), ("points", "point_error")):
        lost = _lost(row, quantity)
        if lost is not None:
            interval = ""
            if lost.low is not None and lost.high is not None:
                interval = f" ({lost.low:+.2g} to {lost.high:+.2g})"
            said.append((lost.n, f"{name} {lost.mean:+.2g}{interval}"))
    if not said:
        return ""
    scenes = max(n for n, _ in said)
    what = f"{scenes} scenes" if scenes > 1 else "one scene"
    return f" Lost by the truth of {what}, above 0 is worse: {', '.join(text for _, text in said)}."


def recommend(rows: tuple[Row, ...], *, random_weights: bool) -> tuple[Recommendation, ...]:
    """The four recommendations; `rows[0]` is PyTorch FP32, which is always measured."""
    usable = [row for row in rows if row.measured is not None and row.accuracy and row.finite]
    artifacts = [row for row in usable if row.runtime != "torch"]
    within = [row for row in artifacts if random_weights or _passes(row)]
    caveat = f" Accuracy was not judged: {NOT_EVIDENCE}." if random_weights else ""
    return (
        _production(within, usable, artifacts, caveat),
        _edge(within, usable, artifacts, caveat),
        _accuracy(usable, random_weights),
        _fastest(usable, caveat),
    )


def _passes(row: Row) -> bool:
    found = loss(row)
    return found is not None and found[0] <= 1.0


def _median(row: Row) -> float:
    assert row.measured is not None
    return row.measured.latency.median_ms


def _bytes(row: Row) -> int:
    assert row.measured is not None
    assert row.measured.disk_bytes is not None
    return row.measured.disk_bytes


def _fp32(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row.scheme == "fp32"]


def slower_than(row: Row, rows: Iterable[Row]) -> tuple[str, ...]:
    """Labels of the FP32 variants that this one is not faster than."""
    return tuple(r.label for r in _fp32(rows) if r is not row and _median(r) <= _median(row))


def surely_faster(row: Row, rows: Iterable[Row]) -> bool:
    """Whether the median is below the fastest call of every FP32 variant."""
    others = [r.measured for r in _fp32(rows) if r is not row]
    return all(_median(row) < other.latency.min_ms for other in others if other is not None)


def _spread(row: Row, other: Row) -> str:
    """A warning where the difference of two medians is smaller than their spread."""
    assert row.measured is not None
    assert other.measured is not None
    spread = max(row.measured.latency.iqr_ms, other.measured.latency.iqr_ms)
    if abs(_median(row) - _median(other)) > spread:
        return ""
    return " The difference is within the spread of the samples (IQR): measure with more repeats."


def _unknown(row: Row, usable: Iterable[Row]) -> str:
    """A warning where the runtime's own FP32 was not measured, so nothing was held against it."""
    own = f"{row.runtime}/fp32"
    if row.label == own or any(other.label == own for other in usable):
        return ""
    return f" {own} was not measured: whether this is faster than that is not known; add fp32."


def _none_within(artifacts: list[Row]) -> str:
    if not artifacts:
        return "no artifact ran: only PyTorch variants have numbers."
    ranked = [(found[0], row.label, found[1]) for row in artifacts if (found := loss(row))]
    if not ranked:
        return "no accuracy was measured for any artifact."
    best = min(ranked)
    nearest = f"the nearest is {best[1]}, {best[0]:.3g} x the gate ({best[2]})"
    return f"no artifact is within the gates: {nearest}."


def _production(
    within: list[Row], usable: list[Row], artifacts: list[Row], caveat: str
) -> Recommendation:
    baselines = _fp32(usable)
    fast = [row for row in within if row.scheme != "fp32" and surely_faster(row, usable)]
    if fast:
        best = min(_median(row) for row in fast)
        chosen = min((row for row in fast if _median(row) <= 1.02 * best), key=_bytes)
        nearest = min(baselines, key=_median)
        reason = (
            f"the fastest artifact {'measured' if caveat else 'within the gates'}: "
            f"median {_median(chosen):.4g} ms, "
            f"{_median(nearest) / _median(chosen):.2f} x the speed of {nearest.label}, "
            f"{_bytes(chosen) / 1e6:.4g} MB on disk."
            f"{_spread(chosen, nearest)}{_unknown(chosen, usable)}{caveat or _by_truth(chosen)}"
        )
        return Recommendation("production", chosen.label, reason)
    floats = [row for row in within if row.scheme == "fp32"]
    if floats:
        chosen = min(floats, key=_median)
        gates = "" if caveat else "within the gates and "
        why = f"no other artifact is {gates}surely faster than FP32 on this machine"
        reason = f"{why}; this one is the FP32 artifact, median {_median(chosen):.4g} ms.{caveat}"
        return Recommendation("production", chosen.label, reason)
    if within:
        reason = f"no artifact is surely faster than FP32 in PyTorch on this machine.{caveat}"
        return Recommendation("production", None, reason)
    return Recommendation("production", None, _none_within(artifacts))


def _edge(
    within: list[Row], usable: list[Row], artifacts: list[Row], caveat: str
) -> Recommendation:
    if not within:
        return Recommendation("edge", None, _none_within(artifacts))
    chosen = min(within, key=_bytes)
    size = ratios(chosen, tuple(usable)).compression
    smaller = f", {size:.2f} x smaller than FP32" if size is not None else ""
    slower = slower_than(chosen, usable)
    speed = (
        f" It is slower than {' and '.join(slower)} on this machine: chosen for its size alone."
        if slower
        else ""
    )
    reason = (
        f"the smallest artifact {'that ran' if caveat else 'within the gates'}: "
        f"{_bytes(chosen) / 1e6:.4g} MB{smaller}.{speed}{caveat or _by_truth(chosen)}"
    )
    return Recommendation("edge", chosen.label, reason)


def _accuracy(usable: list[Row], random_weights: bool) -> Recommendation:
    ranked = [(f, row) for row in usable if row.scheme != "fp32" and (f := loss(row))]
    if not ranked:
        reason = "no variant but FP32 has accuracy numbers."
        return Recommendation("best accuracy", None, reason)
    (value, name), row = min(ranked, key=lambda item: (item[0][0], item[1].label))
    found = f"the smallest loss of those that are not FP32: {value:.3g} x the gate ({name})"
    if random_weights:
        reason = f"{NOT_EVIDENCE}. The numbers alone: {row.label} has {found}."
        return Recommendation("best accuracy", None, reason)
    return Recommendation("best accuracy", row.label, f"{found}.{_by_truth(row)}")


def _fastest(usable: list[Row], caveat: str) -> Recommendation:
    order = sorted(usable, key=_median)
    chosen = order[0]
    text = f"the lowest median latency: {_median(chosen):.4g} ms."
    if len(order) > 1:
        text += f" Next: {order[1].label}, {_median(order[1]):.4g} ms.{_spread(chosen, order[1])}"
    if chosen.scheme == "fp32":
        text += " No scheme is faster than FP32 on this machine."
    elif not surely_faster(chosen, usable):
        text += (
            " Not surely faster than FP32: single calls of FP32 took no longer. Measure again, with"
            " more repeats, on a quiet machine."
        )
    text += _unknown(chosen, usable)
    found = loss(chosen)
    if not caveat and chosen.scheme != "fp32" and found is not None and found[0] > 1.0:
        text += f" It is outside the gates: {found[0]:.3g} x the gate ({found[1]})."
    return Recommendation("fastest here", chosen.label, text + caveat)
