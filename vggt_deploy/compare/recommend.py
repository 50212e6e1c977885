"""What to use, and why: rules over the measured rows, no judgement beyond them.

The loss of a row, and the gates that it is held against, are those of `loss.py`.

    fastest here    lowest median latency of all rows with finite outputs
    best accuracy   lowest loss among the variants that are not FP32
    production      an artifact, within the gates, surely faster than every FP32 variant measured:
                    the fastest of these, the smaller one where two medians are within 2 %
    edge            an artifact, within the gates: the smallest on disk. If it is slower than FP32,
                    the reason says so: it is chosen for its size alone

What is surely faster, `speed.py` says: the median below the fastest single call of the other, of
enough calls, on a quiet machine.

A row with NaN or infinite outputs is never recommended, nor one without latency or accuracy (an
engine that could not be run here); where no row is finite nothing is. FP32 with such outputs still
takes the time and the space that the others are held against; their accuracy is then not judged.

A variant slower than an FP32 variant in the same run is never recommended for speed. On random
weights there are no gates, and nothing is recommended for its accuracy: such weights say nothing
about trained ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import get_args

from vggt_deploy.compare.decimals import lost_text
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
from vggt_deploy.compare.speed import (
    FEWEST_CALLS,
    Times,
    fp32,
    median,
    slower_than,
    surely_faster,
    times_of,
)

__all__ = [
    "ENOUGH_SCENES",
    "GATES",
    "LEAST_AUC_30",
    "TRUTH_GATES",
    "Gate",
    "loss",
    "recommend",
    "slower_than",
]


def _by_truth(row: Row) -> Said | None:
    """What the truth says of a row, for the reader of its recommendation."""
    quantities = (
        (Said.of("AUC@30"), "auc_30"),
        (Said.of("AbsRel"), "abs_rel"),
        (Said.of("points"), "point_error"),
    )
    found = [(*one, own) for one in quantities if (own := difference(row, one[1])) is not None]
    if not found:
        return None
    n = max(own.scenes for *_, own in found)
    over_frames = any(own.over == "frames" for *_, own in found)
    lost = tuple(_quantity(*one) for one in found)
    if n == 1 and over_frames:
        return Said.of(
            "Lost by the truth of one scene, above 0 is worse (intervals over its frames): {lost}.",
            lost=lost,
        )
    if n == 1:
        return Said.of("Lost by the truth of one scene, above 0 is worse: {lost}.", lost=lost)
    return Said.of(
        "Lost by the truth of {n} scenes, above 0 is worse: {lost}.", n=str(n), lost=lost
    )


def _quantity(name: Said, quantity: str, lost: Difference) -> Said:
    mean = lost_text(quantity, lost.mean)
    if lost.low is None or lost.high is None:
        return Said.of("{name} {mean}", name=name, mean=mean)
    interval = {"low": lost_text(quantity, lost.low), "high": lost_text(quantity, lost.high)}
    return Said.of("{name} {mean} ({low} to {high})", name=name, mean=mean, **interval)


def recommend(
    rows: tuple[Row, ...], *, random_weights: bool, quiet_cpus: float | None = None
) -> tuple[Recommendation, ...]:
    """The four recommendations; `rows[0]` is PyTorch FP32, which is always measured.

    quiet_cpus: more CPUs than these, kept busy by other processes, make a time unsure.
    """
    ran = [row for row in rows if row.measured is not None and row.accuracy]
    usable = [row for row in ran if row.finite]
    if not usable:
        return tuple(
            _advice(purpose, None, Said.of("no variant has finite outputs."))
            for purpose in get_args(Purpose)
        )
    unjudged = _no_evidence(rows[0], random_weights)
    within = [row for row in usable if row.runtime != "torch" and (unjudged or _passes(row))]
    times = times_of(ran, rows[0], quiet_cpus)
    return (
        _production(within, ran, times, unjudged),
        _edge(within, rows, ran, unjudged),
        _accuracy(ran, unjudged),
        _fastest(times, unjudged),
    )


def _advice(purpose: Purpose, label: str | None, *said: Said | None) -> Recommendation:
    """A recommendation of the sentences that there are."""
    sentences = tuple(one for one in said if one is not None)
    return Recommendation(purpose, label, " ".join(one.text() for one in sentences), sentences)


def _no_evidence(reference: Row, random_weights: bool) -> Said | None:
    """Why accuracy is not judged at all; None where it is."""
    if random_weights:
        return Said.of("the weights are random: accuracy on random weights is not evidence.")
    if not reference.finite:
        return Said.of(
            "PyTorch FP32 itself has NaN or infinite outputs: accuracy against it is not evidence."
        )
    return None


def _caveat(unjudged: Said | None) -> Said | None:
    return unjudged and Said.of("Accuracy was not judged: {why}", why=unjudged)


def _passes(row: Row) -> bool:
    found = loss(row)
    return found is not None and found[0] <= 1.0


def _bytes(row: Row) -> int:
    assert row.measured is not None
    assert row.measured.disk_bytes is not None
    return row.measured.disk_bytes


def _spread(row: Row, other: Row) -> Said | None:
    """A warning where the difference of two medians is smaller than their spread."""
    assert row.measured is not None
    assert other.measured is not None
    spread = max(row.measured.latency.iqr_ms, other.measured.latency.iqr_ms)
    if abs(median(row) - median(other)) > spread:
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


def _elsewhere(times: Times) -> Said | None:
    """A warning where rows were timed on another kind of machine than PyTorch FP32."""
    if not times.away:
        return None
    return Said.of(
        "Timed on another kind of machine, so not held against these: {labels}.",
        labels=_labels(times.away),
    )


def _labels(rows: Iterable[Row]) -> tuple[Said, ...]:
    return tuple(Said.of("{label}", label=row.label) for row in rows)


def _doubts(times: Times) -> tuple[Said, ...]:
    """Why nothing may be surely faster."""
    doubts: tuple[Said, ...] = ()
    if times.few:
        doubts += (
            Said.of(
                "Fewer than {least} calls were timed, so nothing is surely faster: measure with "
                "more repeats.",
                least=str(FEWEST_CALLS),
            ),
        )
    if times.noisy and (needed := fp32(times.noisy)):
        doubts += (
            Said.of(
                "Other processes kept CPUs busy while {n} of {all} variants were timed, among "
                "them {them}, which the others are held against, so nothing is surely faster: "
                "repeat on a quiet machine.",
                n=str(len(times.noisy)),
                all=str(len(times.rows)),
                them=_labels(needed),
            ),
        )
    elif times.noisy:
        doubts += (
            Said.of(
                "Other processes kept CPUs busy while {n} of {all} variants were timed, so none "
                "of these is surely faster: repeat on a quiet machine.",
                n=str(len(times.noisy)),
                all=str(len(times.rows)),
            ),
        )
    return doubts


def _named(name: str) -> Said:
    """The name of a gate, or of what stands for one: all of them are in the catalogues."""
    count = name.removesuffix(PAIRS_LOST)
    return Said(name) if count == name else Said.of("{n} pairs lost their baseline", n=count)


def _none_within(ran: list[Row]) -> Said:
    """Why no artifact is within the gates; where nothing is judged, why there is none."""
    artifacts = [row for row in ran if row.runtime != "torch"]
    if not artifacts:
        return Said.of("no artifact ran: only PyTorch variants have numbers.")
    finite = [row for row in artifacts if row.finite]
    if not finite:
        return Said.of(
            "all artifacts that ran have NaN or infinite outputs: {labels}.",
            labels=_labels(artifacts),
        )
    ranked = [(found[0], row.label, found[1]) for row in finite if (found := loss(row))]
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
    within: list[Row], ran: list[Row], times: Times, unjudged: Said | None
) -> Recommendation:
    timed = [row for row in within if row in times.rows]
    fast = [row for row in timed if row.scheme != "fp32" and surely_faster(row, times)]
    if fast:
        return _fast_enough(fast, times, unjudged)
    caveats = (*_doubts(times), _caveat(unjudged), _elsewhere(times))
    floats = [row for row in timed if row.scheme == "fp32"]
    if floats:
        chosen = min(floats, key=median)
        why = (
            Said.of("no other artifact is surely faster than FP32 on this machine.")
            if unjudged
            else Said.of(
                "no other artifact is within the gates and surely faster than FP32 on this machine."
            )
        )
        own = Said.of("This one is the FP32 artifact, median {ms} ms.", ms=f"{median(chosen):.4g}")
        return _advice("production", chosen.label, why, own, *caveats)
    if timed:
        why = Said.of("no artifact is surely faster than FP32 in PyTorch on this machine.")
        return _advice("production", None, why, *caveats)
    if within:
        why = (
            Said.of("no artifact was timed on the kind of machine that PyTorch FP32 was timed on.")
            if unjudged
            else Said.of(
                "no artifact within the gates was timed on the kind of machine that PyTorch FP32 "
                "was timed on."
            )
        )
        return _advice("production", None, why, _elsewhere(times))
    return _advice("production", None, _none_within(ran))


def _fast_enough(fast: list[Row], times: Times, unjudged: Said | None) -> Recommendation:
    """Of the artifacts that are surely faster than FP32: the fastest, or a smaller one as fast."""
    best = min(median(row) for row in fast)
    chosen = min((row for row in fast if median(row) <= 1.02 * best), key=_bytes)
    nearest = min(fp32(times.rows), key=median)
    facts = Said.of(
        "median {median} ms, {times} x the speed of {nearest}, {size} MB on disk",
        median=f"{median(chosen):.4g}",
        times=f"{median(nearest) / median(chosen):.2f}",
        nearest=nearest.label,
        size=f"{_bytes(chosen) / 1e6:.4g}",
    )
    why = (
        Said.of("the fastest artifact measured: {facts}.", facts=facts)
        if unjudged
        else Said.of("the fastest artifact within the gates: {facts}.", facts=facts)
    )
    warnings = (_spread(chosen, nearest), _unknown(chosen, times.rows), _elsewhere(times))
    judged = _caveat(unjudged) or _by_truth(chosen)
    return _advice("production", chosen.label, why, *warnings, judged)


def _edge(
    within: list[Row], rows: tuple[Row, ...], ran: list[Row], unjudged: Said | None
) -> Recommendation:
    if not within:
        return _advice("edge", None, _none_within(ran))
    chosen = min(within, key=_bytes)
    facts: tuple[Said, ...] = (Said.of("{size} MB", size=f"{_bytes(chosen) / 1e6:.4g}"),)
    times = ratios(chosen, rows).compression
    if times is not None and times < 1.0:
        facts += (Said.of("{times} x as large as FP32", times=f"{1.0 / times:.2f}"),)
    elif times is not None:
        facts += (Said.of("{times} x smaller than FP32", times=f"{times:.2f}"),)
    why = (
        Said.of("the smallest artifact that ran: {facts}.", facts=facts)
        if unjudged
        else Said.of("the smallest artifact within the gates: {facts}.", facts=facts)
    )
    slower = tuple(Said.of("{label}", label=label) for label in slower_than(chosen, ran))
    speed = Said.of(
        "It is slower than {them} on this machine: chosen for its size alone.", them=slower
    )
    judged = _caveat(unjudged) or _by_truth(chosen)
    return _advice("edge", chosen.label, why, speed if slower else None, judged)


def _accuracy(ran: list[Row], unjudged: Said | None) -> Recommendation:
    others = [row for row in ran if row.scheme != "fp32"]
    ranked = [(f, row) for row in others if row.finite and (f := loss(row))]
    if not ranked and others and not any(row.finite for row in others):
        bad = _labels(others)
        why = Said.of("all variants but FP32 have NaN or infinite outputs: {labels}.", labels=bad)
        return _advice("best accuracy", None, why)
    if not ranked:
        why = Said.of("no variant but FP32 has accuracy numbers.")
        return _advice("best accuracy", None, why)
    (value, name), row = min(ranked, key=lambda item: (item[0][0], item[1].label))
    least = Said.of(
        "the smallest loss of those that are not FP32: {value} x the gate ({name}).",
        value=f"{value:.3g}",
        name=_named(name),
    )
    if unjudged is None:
        return _advice("best accuracy", row.label, least, _by_truth(row))
    alone = Said.of("The numbers alone: {label} has {least}", label=row.label, least=least)
    return _advice("best accuracy", None, unjudged, alone)


def _fastest(times: Times, unjudged: Said | None) -> Recommendation:
    order = sorted((row for row in times.rows if row.finite), key=median)
    if not order:
        why = Said.of(
            "no variant with finite outputs was timed on the kind of machine that PyTorch FP32 was "
            "timed on."
        )
        return _advice("fastest here", None, why, _elsewhere(times))
    chosen = order[0]
    said: list[Said | None] = [
        Said.of("the lowest median latency: {ms} ms.", ms=f"{median(chosen):.4g}")
    ]
    if len(order) > 1:
        after = order[1]
        said += [
            Said.of("Next: {label}, {ms} ms.", label=after.label, ms=f"{median(after):.4g}"),
            _spread(chosen, after),
        ]
    if chosen.scheme == "fp32":
        said.append(Said.of("No scheme is faster than FP32 on this machine."))
    elif _doubts(times):
        said += _doubts(times)
    elif not surely_faster(chosen, times):
        said.append(
            Said.of(
                "Not surely faster than FP32: single calls of FP32 took no longer. Measure again, "
                "with more repeats, on a quiet machine."
            )
        )
    said += [_unknown(chosen, times.rows), _elsewhere(times)]
    found = loss(chosen)
    if not unjudged and chosen.scheme != "fp32" and found is not None and found[0] > 1.0:
        said.append(
            Said.of(
                "It is outside the gates: {value} x the gate ({name}).",
                value=f"{found[0]:.3g}",
                name=_named(found[1]),
            )
        )
    return _advice("fastest here", chosen.label, *said, _caveat(unjudged))
