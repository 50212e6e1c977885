"""What to use, and why: rules over the measured rows, no judgement beyond them.

The loss of a row, and the gates that it is held against, are those of `loss.py`.

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

from collections.abc import Iterable

from vggt_deploy.compare.loss import (
    ENOUGH_SCENES,
    GATES,
    LEAST_AUC_30,
    PAIRS_LOST,
    TRUTH_GATES,
    Gate,
    difference,
    loss,
)
from vggt_deploy.compare.paired import Difference
from vggt_deploy.compare.report import Purpose, Recommendation, Row, Said, ratios

__all__ = [
    "ENOUGH_SCENES",
    "GATES",
    "LEAST_AUC_30",
    "TRUTH_GATES",
    "Gate",
    "loss",
    "recommend",
    "slower_than",
    "surely_faster",
    "timed_together",
]


def _by_truth(row: Row) -> Said | None:
    """What the truth says of a row, for the reader of its recommendation."""
    quantities = (
        (Said.of("AUC@30"), difference(row, "auc_30")),
        (Said.of("AbsRel"), difference(row, "abs_rel")),
        (Said.of("points"), difference(row, "point_error")),
    )
    found = [(name, lost) for name, lost in quantities if lost is not None]
    if not found:
        return None
    n = max(lost.n for _, lost in found)
    lost = tuple(_quantity(name, lost) for name, lost in found)
    if n == 1:
        return Said.of("Lost by the truth of one scene, above 0 is worse: {lost}.", lost=lost)
    return Said.of(
        "Lost by the truth of {n} scenes, above 0 is worse: {lost}.", n=str(n), lost=lost
    )


def _quantity(name: Said, lost: Difference) -> Said:
    mean = f"{lost.mean:+.2g}"
    if lost.low is None or lost.high is None:
        return Said.of("{name} {mean}", name=name, mean=mean)
    interval = {"low": f"{lost.low:+.2g}", "high": f"{lost.high:+.2g}"}
    return Said.of("{name} {mean} ({low} to {high})", name=name, mean=mean, **interval)


def recommend(rows: tuple[Row, ...], *, random_weights: bool) -> tuple[Recommendation, ...]:
    """The four recommendations; `rows[0]` is PyTorch FP32, which is always measured."""
    usable = [row for row in rows if row.measured is not None and row.accuracy and row.finite]
    artifacts = [row for row in usable if row.runtime != "torch"]
    within = [row for row in artifacts if random_weights or _passes(row)]
    here, away = timed_together(usable, rows[0])
    timed = [row for row in within if row in here]
    return (
        _production(timed, here, [row for row in artifacts if row in here], random_weights, away),
        _edge(within, usable, artifacts, random_weights),
        _accuracy(usable, random_weights),
        _fastest(here, random_weights, away),
    )


def timed_together(rows: Iterable[Row], reference: Row) -> tuple[list[Row], list[Row]]:
    """Rows timed on the kind of machine that the reference was timed on, and the others, whose
    times are never held against it.
    """
    rows = list(rows)
    here = [row for row in rows if row.machine == reference.machine]
    return here, [row for row in rows if row not in here]


def _advice(purpose: Purpose, label: str | None, *said: Said | None) -> Recommendation:
    """A recommendation of the sentences that there are."""
    sentences = tuple(one for one in said if one is not None)
    return Recommendation(purpose, label, " ".join(one.text() for one in sentences), sentences)


def _caveat(random_weights: bool) -> Said | None:
    if not random_weights:
        return None
    return Said.of(
        "Accuracy was not judged: the weights are random: accuracy on random weights is not "
        "evidence."
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
    together = (r for r in _fp32(rows) if r is not row and r.machine == row.machine)
    return tuple(other.label for other in together if _median(other) <= _median(row))


def surely_faster(row: Row, rows: Iterable[Row]) -> bool:
    """Whether the median is below the fastest call of every FP32 variant."""
    others = [r.measured for r in _fp32(rows) if r is not row]
    return all(_median(row) < other.latency.min_ms for other in others if other is not None)


def _spread(row: Row, other: Row) -> Said | None:
    """A warning where the difference of two medians is smaller than their spread."""
    assert row.measured is not None
    assert other.measured is not None
    spread = max(row.measured.latency.iqr_ms, other.measured.latency.iqr_ms)
    if abs(_median(row) - _median(other)) > spread:
        return None
    return Said.of(
        "The difference is within the spread of the samples (IQR): measure with more repeats."
    )


def _unknown(row: Row, usable: Iterable[Row]) -> Said | None:
    """A warning where the runtime's own FP32 was not measured, so nothing was held against it."""
    own = f"{row.runtime}/fp32"
    if row.label == own or any(other.label == own for other in usable):
        return None
    return Said.of(
        "{own} was not measured: whether this is faster than that is not known; add fp32.", own=own
    )


def _elsewhere(away: list[Row]) -> Said | None:
    """A warning where rows were timed on another kind of machine than PyTorch FP32."""
    if not away:
        return None
    return Said.of(
        "Timed on another kind of machine, so not held against these: {labels}.",
        labels=tuple(Said.of("{label}", label=row.label) for row in away),
    )


def _named(name: str) -> Said:
    """The name of a gate, or of what stands for one: all of them are in the catalogues."""
    count = name.removesuffix(PAIRS_LOST)
    return Said(name) if count == name else Said.of("{n} pairs lost their baseline", n=count)


def _none_within(artifacts: list[Row]) -> Said:
    if not artifacts:
        return Said.of("no artifact ran: only PyTorch variants have numbers.")
    ranked = [(found[0], row.label, found[1]) for row in artifacts if (found := loss(row))]
    if not ranked:
        return Said.of("no accuracy was measured for any artifact.")
    value, label, name = min(ranked)
    return Said.of(
        "no artifact is within the gates: the nearest is {label}, {value} x the gate ({name}).",
        label=label,
        value=f"{value:.3g}",
        name=_named(name),
    )


def _production(
    within: list[Row],
    usable: list[Row],
    artifacts: list[Row],
    random_weights: bool,
    away: list[Row],
) -> Recommendation:
    caveat = (_caveat(random_weights), _elsewhere(away))
    fast = [row for row in within if row.scheme != "fp32" and surely_faster(row, usable)]
    if fast:
        return _fast_enough(fast, usable, random_weights, away)
    floats = [row for row in within if row.scheme == "fp32"]
    if floats:
        chosen = min(floats, key=_median)
        why = (
            Said.of("no other artifact is surely faster than FP32 on this machine.")
            if random_weights
            else Said.of(
                "no other artifact is within the gates and surely faster than FP32 on this machine."
            )
        )
        own = Said.of("This one is the FP32 artifact, median {ms} ms.", ms=f"{_median(chosen):.4g}")
        return _advice("production", chosen.label, why, own, *caveat)
    if within:
        why = Said.of("no artifact is surely faster than FP32 in PyTorch on this machine.")
        return _advice("production", None, why, *caveat)
    return _advice("production", None, _none_within(artifacts), _elsewhere(away))


def _fast_enough(
    fast: list[Row], usable: list[Row], random_weights: bool, away: list[Row]
) -> Recommendation:
    """Of the artifacts that are surely faster than FP32: the fastest, or a smaller one as fast."""
    best = min(_median(row) for row in fast)
    chosen = min((row for row in fast if _median(row) <= 1.02 * best), key=_bytes)
    nearest = min(_fp32(usable), key=_median)
    facts = Said.of(
        "median {median} ms, {times} x the speed of {nearest}, {size} MB on disk",
        median=f"{_median(chosen):.4g}",
        times=f"{_median(nearest) / _median(chosen):.2f}",
        nearest=nearest.label,
        size=f"{_bytes(chosen) / 1e6:.4g}",
    )
    why = (
        Said.of("the fastest artifact measured: {facts}.", facts=facts)
        if random_weights
        else Said.of("the fastest artifact within the gates: {facts}.", facts=facts)
    )
    warnings = (_spread(chosen, nearest), _unknown(chosen, usable), _elsewhere(away))
    judged = _caveat(random_weights) or _by_truth(chosen)
    return _advice("production", chosen.label, why, *warnings, judged)


def _edge(
    within: list[Row], usable: list[Row], artifacts: list[Row], random_weights: bool
) -> Recommendation:
    if not within:
        return _advice("edge", None, _none_within(artifacts))
    chosen = min(within, key=_bytes)
    facts: tuple[Said, ...] = (Said.of("{size} MB", size=f"{_bytes(chosen) / 1e6:.4g}"),)
    times = ratios(chosen, tuple(usable)).compression
    if times is not None:
        facts += (Said.of("{times} x smaller than FP32", times=f"{times:.2f}"),)
    why = (
        Said.of("the smallest artifact that ran: {facts}.", facts=facts)
        if random_weights
        else Said.of("the smallest artifact within the gates: {facts}.", facts=facts)
    )
    slower = tuple(Said.of("{label}", label=label) for label in slower_than(chosen, usable))
    speed = Said.of(
        "It is slower than {them} on this machine: chosen for its size alone.", them=slower
    )
    judged = _caveat(random_weights) or _by_truth(chosen)
    return _advice("edge", chosen.label, why, speed if slower else None, judged)


def _accuracy(usable: list[Row], random_weights: bool) -> Recommendation:
    ranked = [(f, row) for row in usable if row.scheme != "fp32" and (f := loss(row))]
    if not ranked:
        why = Said.of("no variant but FP32 has accuracy numbers.")
        return _advice("best accuracy", None, why)
    (value, name), row = min(ranked, key=lambda item: (item[0][0], item[1].label))
    least = Said.of(
        "the smallest loss of those that are not FP32: {value} x the gate ({name}).",
        value=f"{value:.3g}",
        name=_named(name),
    )
    if not random_weights:
        return _advice("best accuracy", row.label, least, _by_truth(row))
    why = Said.of("the weights are random: accuracy on random weights is not evidence.")
    alone = Said.of("The numbers alone: {label} has {least}", label=row.label, least=least)
    return _advice("best accuracy", None, why, alone)


def _fastest(usable: list[Row], random_weights: bool, away: list[Row]) -> Recommendation:
    order = sorted(usable, key=_median)
    chosen = order[0]
    said: list[Said | None] = [
        Said.of("the lowest median latency: {ms} ms.", ms=f"{_median(chosen):.4g}")
    ]
    if len(order) > 1:
        after = order[1]
        said += [
            Said.of("Next: {label}, {ms} ms.", label=after.label, ms=f"{_median(after):.4g}"),
            _spread(chosen, after),
        ]
    if chosen.scheme == "fp32":
        said.append(Said.of("No scheme is faster than FP32 on this machine."))
    elif not surely_faster(chosen, usable):
        said.append(
            Said.of(
                "Not surely faster than FP32: single calls of FP32 took no longer. Measure again, "
                "with more repeats, on a quiet machine."
            )
        )
    said += [_unknown(chosen, usable), _elsewhere(away)]
    found = loss(chosen)
    if not random_weights and chosen.scheme != "fp32" and found is not None and found[0] > 1.0:
        said.append(
            Said.of(
                "It is outside the gates: {value} x the gate ({name}).",
                value=f"{found[0]:.3g}",
                name=_named(found[1]),
            )
        )
    return _advice("fastest here", chosen.label, *said, _caveat(random_weights))
