"""What the numbers of a report say, as sentences: each stands only where its condition holds.

size      smallest artifact that ran; which others are as small (`experiment_costs`)
speed     surely faster than every FP32 variant (median below their fastest call), faster by the
          median alone, not faster (`experiment_costs`)
accuracy  by the truth: which losses are told from none by their interval; against PyTorch FP32:
          which rows are within the gates; what a treatment of the weights changed
trade     which artifacts no other one beats in size, speed and accuracy at once
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vggt_deploy.compare.decimals import LOST_DECIMALS, lost_text, lost_told
from vggt_deploy.compare.loss import loss
from vggt_deploy.compare.paired import CONFIDENCE, Difference
from vggt_deploy.compare.report import ComparisonReport, Row
from vggt_deploy.compare.speed import median
from vggt_deploy.compare.truth_clouds import LOSS_TOLERANCE_M
from vggt_deploy.report.experiment_costs import (
    artifacts_of,
    bytes_on_disk,
    labels_of,
    measured_rows,
)
from vggt_deploy.report.languages import Speaker
from vggt_deploy.report.question_sections import report_times
from vggt_deploy.report.text import number


def truth_findings(report: ComparisonReport, say: Speaker) -> list[str]:
    """Which losses by the truth have an interval without 0; nothing where no truth is known, the
    weights are random, or PyTorch FP32 itself is not finite: who has nothing loses nothing.
    """
    if report.random_weights or not report.reference.finite:
        return []
    rows = [row for row in report.rows if row.truth_loss and row is not report.reference]
    quantities = (
        ("AUC@30", "auc_30", 0.005),
        (say("AbsRel, median scale"), "abs_rel", 0.00005),
        (say("points, median / size"), "point_error", 0.00005),
        (say("F-score @ {metres} m", metres=f"{LOSS_TOLERANCE_M:g}"), "f_score", 0.005),
    )
    found, intervals = [], []
    for name, key, least in quantities:
        losses = [(row, lost) for row in rows if (lost := getattr(row.truth_loss, key))]
        if losses:
            found.append(say.titled(name, say.sentences(_told(losses, key, least, say))))
            # Over frames alone how often chance does it is not known: pairs share their frames.
            intervals += [
                lost for _, lost in losses if lost.low is not None and lost.over == "scenes"
            ]
    if intervals:
        chance = by_chance(min(lost.n for lost in intervals))
        found.append(
            say(
                "Where nothing was lost at all, at least {percent} % of these {n} intervals, about "
                "{count}, would still lie beside 0 by chance alone.",
                percent=number(100.0 * chance, 3),
                n=len(intervals),
                count=round(chance * len(intervals)),
            )
        )
    return found


def by_chance(scenes: int) -> float:
    """The least part of the intervals of no loss that leave out 0: 5 % by their making, and all of
    those whose scenes lean to one side, which n scenes do with a chance of 2 / 2^n.
    """
    return max(1.0 - CONFIDENCE, 2.0 ** (1 - scenes))


def _told(
    losses: Sequence[tuple[Row, Difference]], quantity: str, least: float, say: Speaker
) -> list[str]:
    """One quantity: whose interval is above 0, whose below, whose holds it.

    quantity: a field of `TruthLoss`
    least: half of the last place of the tables. What is less (the rounding of another runtime) is
        nothing, however sure.
    """
    if all(lost.low is None for _, lost in losses):
        row, lost = max(losses, key=lambda item: item[1].mean)
        if round(lost.mean, LOST_DECIMALS[quantity]) <= 0.0:
            return [say("of one scene this has no interval; nothing was lost there.")]
        return [
            say(
                "of one scene this has no interval; the largest loss is that of {label} ({lost}).",
                label=row.label,
                lost=lost_text(quantity, lost.mean),
            )
        ]
    over = [lost.n for _, lost in losses if lost.over == "frames"]
    said = [say("Intervals over the {n} frames of one scene:", n=min(over))] if over else []
    large = [(row, lost) for row, lost in losses if abs(lost.mean) >= least]
    worse = [(row, lost) for row, lost in large if lost_told(quantity, lost) > 0]
    better = [(row, lost) for row, lost in large if lost_told(quantity, lost) < 0]
    rest = len(losses) - len(worse) - len(better)
    if not worse and not better:
        text = say(
            "no loss of {least} or more is told from none ({n} intervals).",
            least=f"{least:g}",
            n=rest,
        )
        return [*said, text]
    parts = said
    if worse:
        named = _with_intervals(worse, quantity, say)
        parts.append(say("worse than PyTorch FP32, interval above 0: {rows}.", rows=named))
    if better:
        named = _with_intervals(better, quantity, say)
        parts.append(say("better than PyTorch FP32, interval below 0: {rows}.", rows=named))
    if rest:
        parts.append(
            say("Not told from none, or below {least}: the other {n}.", least=f"{least:g}", n=rest)
        )
    return parts


def _with_intervals(losses: Sequence[tuple[Row, Difference]], quantity: str, say: Speaker) -> str:
    return say.joined(
        [
            say(
                "{label} {mean} ({low} to {high})",
                label=row.label,
                mean=lost_text(quantity, lost.mean),
                low=lost_text(quantity, lost.low or 0.0),
                high=lost_text(quantity, lost.high or 0.0),
            )
            for row, lost in losses
        ]
    )


def gate_findings(report: ComparisonReport, say: Speaker) -> list[str]:
    """Which rows are within the gates of the advice, and by how much the others are not."""
    if report.random_weights:
        return [
            say(
                "The weights are random, so accuracy was not judged: on random weights it is not "
                "evidence."
            )
        ]
    judged = [
        (worst[0], row)
        for row in (measured_rows(report) if report.reference.finite else ())
        if row.scheme != "fp32" and row.finite and (worst := loss(row)) is not None
    ]
    judged.sort(key=lambda item: (item[0], item[1].label))
    inside = [row for value, row in judged if value <= 1.0]
    outside = [(value, row) for value, row in judged if value > 1.0]
    found = []
    if inside:
        found.append(
            say(
                "Within the gates, smallest loss first ({n} of {all}): {labels}.",
                n=len(inside),
                all=len(judged),
                labels=labels_of(inside, say),
            )
        )
    if outside:
        named = say.joined(
            [
                say("{label} ({value} x)", label=row.label, value=number(value, 3))
                for value, row in outside
            ]
        )
        found.append(
            say(
                "Outside the gates ({n} of {all}), loss over its gate: {labels}.",
                n=len(outside),
                all=len(judged),
                labels=named,
            )
        )
    bad = [row for row in measured_rows(report) if not row.finite]
    if bad:
        found.append(say("NaN or infinite outputs: {labels}.", labels=labels_of(bad, say)))
    return found


def treatment_findings(report: ComparisonReport, say: Speaker) -> list[str]:
    """What treating the weights changed, beside the same variant without."""
    if report.random_weights or not report.reference.finite:
        return []
    found = []
    for row in measured_rows(report):
        plain = report.row(replace(row.variant, treatment="").label) if row.treatment else None
        if plain is None or plain.measured is None or not (plain.finite and row.finite):
            continue
        with_it, without = loss(row), loss(plain)
        if with_it is None or without is None:
            continue
        values = {
            "treated": row.label,
            "plain": plain.label,
            "a": number(with_it[0], 3),
            "b": number(without[0], 3),
        }
        if with_it[0] < without[0]:
            text = say(
                "{treated} loses less than {plain}: {a} x the gate instead of {b} x.", **values
            )
        elif with_it[0] > without[0]:
            text = say(
                "{treated} loses more than {plain}: {a} x the gate instead of {b} x.", **values
            )
        else:
            text = say("{treated} loses as much as {plain}: {a} x the gate.", **values)
        found.append(text)
    return found


def trade_findings(report: ComparisonReport, say: Speaker) -> list[str]:
    """Of the artifacts within the gates, those that no other one beats in size and speed at once,
    and with trained weights in loss as well.
    """
    timed = report_times(report).rows
    here = [row for row in artifacts_of(report) if row in timed]
    if report.random_weights or not report.reference.finite:
        points = [(row, (bytes_on_disk(row), median(row))) for row in here if row.finite]
        front = labels_of(_front(points), say)
        text = say("Not beaten in size and median latency at once: {labels}.", labels=front)
        return [text] if len(points) > 1 else []
    judged = [
        (row, (bytes_on_disk(row), median(row), found[0]))
        for row in here
        if row.finite and (found := loss(row)) is not None and found[0] <= 1.0
    ]
    if len(judged) < 2:
        return []
    return [
        say(
            "Of the {n} artifacts within the gates, not beaten in size, median latency and loss at "
            "once: {labels}.",
            n=len(judged),
            labels=labels_of(_front(judged), say),
        )
    ]


def _front(points: Sequence[tuple[Row, tuple[float, ...]]]) -> list[Row]:
    return [row for row, own in points if not any(_beats(other, own) for _, other in points)]


def _beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """As good everywhere, better somewhere."""
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def failure_findings(report: ComparisonReport, say: Speaker) -> list[str]:
    """How many rows have no numbers."""
    found = []
    for status in ("failed", "refused", "not run"):
        rows = [row for row in report.rows if row.status == status]
        if rows:
            found.append(
                say(
                    "{what} ({n} of {all}): {labels}.",
                    what=say.recorded(status),
                    n=len(rows),
                    all=len(report.rows),
                    labels=labels_of(rows, say),
                )
            )
    return found
