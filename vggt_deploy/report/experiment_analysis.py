"""What the numbers of a report say, as sentences: each stands only where its condition holds.

size      smallest artifact; which others are as small
speed     surely faster than every FP32 variant (median below their fastest call), faster by the
          median alone, not faster
accuracy  by the truth: which losses are told from none by their interval; against PyTorch FP32:
          which rows are within the gates; what a treatment of the weights changed
trade     which artifacts no other one beats in size, speed and accuracy at once
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vggt_deploy.compare.loss import loss
from vggt_deploy.compare.paired import CONFIDENCE, Difference
from vggt_deploy.compare.report import ComparisonReport, Row
from vggt_deploy.compare.speed import median, slower_than, surely_faster
from vggt_deploy.compare.truth_clouds import LOSS_TOLERANCE_M
from vggt_deploy.report.languages import Speaker
from vggt_deploy.report.question_sections import report_times
from vggt_deploy.report.text import fixed, megabytes, number, signed

AS_SMALL = 1.01  # times the smallest


def _timed(report: ComparisonReport) -> list[Row]:
    return [row for row in report.rows if row.measured is not None]


def _artifacts(report: ComparisonReport) -> list[Row]:
    """Finished artifacts and engines, which have a size on disk."""
    return [row for row in _timed(report) if row.runtime != "torch" and row.disk_bytes]


def _bytes(row: Row) -> int:
    assert row.disk_bytes is not None
    return row.disk_bytes


def _labels(rows: Sequence[Row], say: Speaker) -> str:
    return say.joined([row.label for row in rows])


def size_findings(report: ComparisonReport, say: Speaker) -> list[str]:
    """What is smallest."""
    artifacts = _artifacts(report)
    if not artifacts:
        return [say("No artifact ran: PyTorch variants have no size on disk of their own.")]
    smallest = min(artifacts, key=_bytes)
    times = report.ratios(smallest).compression
    size = megabytes(smallest.disk_bytes)
    if times is None:
        found = [say("The smallest artifact is {label}: {mb} MB.", label=smallest.label, mb=size)]
    else:
        found = [
            say(
                "The smallest artifact is {label}: {mb} MB, {times} x smaller than the FP32 "
                "weights in memory.",
                label=smallest.label,
                mb=size,
                times=fixed(times),
            )
        ]
    near = [
        row
        for row in artifacts
        if row is not smallest and _bytes(row) <= AS_SMALL * _bytes(smallest)
    ]
    if near:
        found.append(say("Within 1 % of that size: {labels}.", labels=_labels(near, say)))
    larger = [row for row in artifacts if (report.ratios(row).compression or 1.0) < 1.0]
    if larger:
        found.append(
            say("Larger than the FP32 weights in memory: {labels}.", labels=_labels(larger, say))
        )
    return found


def speed_findings(report: ComparisonReport, say: Speaker) -> list[str]:
    """What is fastest, and what of it is sure."""
    times = report_times(report)
    timed = times.rows
    others = [row for row in timed if row.scheme != "fp32"]
    fastest = min(timed, key=median)
    reference = report.reference
    found = []
    if fastest is not reference:
        found.append(
            say(
                "The lowest median latency is that of {label}: {ms} ms, {times} x the speed of "
                "PyTorch FP32 ({reference} ms).",
                label=fastest.label,
                ms=fixed(median(fastest), 1),
                times=fixed(median(reference) / median(fastest)),
                reference=fixed(median(reference), 1),
            )
        )
    else:
        found.append(
            say("No variant is faster than PyTorch FP32 ({ms} ms).", ms=fixed(median(fastest), 1))
        )
    sure = [row for row in others if surely_faster(row, times)]
    slower = [row for row in others if slower_than(row, timed)]
    unsure = [row for row in others if row not in sure and row not in slower]
    for rows, sentence in (
        (
            sure,
            say("Surely faster than every FP32 variant measured, median below their fastest call"),
        ),
        (unsure, say("Faster than every FP32 variant by the median, not surely")),
        (slower, say("Not faster than at least one FP32 variant measured")),
    ):
        if rows:
            found.append(
                say(
                    "{what} ({n} of {all}): {labels}.",
                    what=sentence,
                    n=len(rows),
                    all=len(others),
                    labels=_labels(rows, say),
                )
            )
    return [*found, *_unknown_fp32(report, say)]


def _unknown_fp32(report: ComparisonReport, say: Speaker) -> list[str]:
    """Runtimes whose own FP32 is not there to be held against."""
    timed = _timed(report)
    runtimes = dict.fromkeys(row.runtime for row in timed)
    labels = {row.label for row in timed}
    return [
        say(
            "{own} was not measured: what of the speed is the runtime's and what the scheme's is "
            "not known.",
            own=f"{runtime}/fp32",
        )
        for runtime in runtimes
        if f"{runtime}/fp32" not in labels
    ]


def truth_findings(report: ComparisonReport, say: Speaker) -> list[str]:
    """Which losses by the truth have an interval without 0; nothing where no truth is known, or the
    weights are random.
    """
    if report.random_weights:
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
            found.append(say.titled(name, say.sentences(_told(losses, least, say))))
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


def _told(losses: Sequence[tuple[Row, Difference]], least: float, say: Speaker) -> list[str]:
    """One quantity: whose interval is above 0, whose below, whose holds it.

    least: half of the last place of the tables. What is less (the rounding of another runtime) is
    nothing, however sure.
    """
    if all(lost.low is None for _, lost in losses):
        row, lost = max(losses, key=lambda item: item[1].mean)
        if signed(lost.mean) == "0" or lost.mean < 0.0:
            return [say("of one scene this has no interval; nothing was lost there.")]
        return [
            say(
                "of one scene this has no interval; the largest loss is that of {label} ({lost}).",
                label=row.label,
                lost=signed(lost.mean),
            )
        ]
    over = [lost.n for _, lost in losses if lost.over == "frames"]
    said = [say("Intervals over the {n} frames of one scene:", n=min(over))] if over else []
    large = [(row, lost) for row, lost in losses if abs(lost.mean) >= least]
    worse = [(row, lost) for row, lost in large if lost.low is not None and lost.low > 0.0]
    better = [(row, lost) for row, lost in large if lost.high is not None and lost.high < 0.0]
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
        named = _with_intervals(worse, say)
        parts.append(say("worse than PyTorch FP32, interval above 0: {rows}.", rows=named))
    if better:
        named = _with_intervals(better, say)
        parts.append(say("better than PyTorch FP32, interval below 0: {rows}.", rows=named))
    if rest:
        parts.append(
            say("Not told from none, or below {least}: the other {n}.", least=f"{least:g}", n=rest)
        )
    return parts


def _with_intervals(losses: Sequence[tuple[Row, Difference]], say: Speaker) -> str:
    return say.joined(
        [
            say(
                "{label} {mean} ({low} to {high})",
                label=row.label,
                mean=signed(lost.mean),
                low=signed(lost.low or 0.0),
                high=signed(lost.high or 0.0),
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
        for row in _timed(report)
        if row.scheme != "fp32" and row.finite and (worst := loss(row)) is not None
    ]
    if not judged:
        return []
    judged.sort(key=lambda item: (item[0], item[1].label))
    inside = [row for value, row in judged if value <= 1.0]
    outside = [(value, row) for value, row in judged if value > 1.0]
    found = []
    if inside:
        found.append(
            say(
                "Within the gates, nearest first ({n} of {all}): {labels}.",
                n=len(inside),
                all=len(judged),
                labels=_labels(inside, say),
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
    bad = [row for row in _timed(report) if not row.finite]
    if bad:
        found.append(say("NaN or infinite outputs: {labels}.", labels=_labels(bad, say)))
    return found


def treatment_findings(report: ComparisonReport, say: Speaker) -> list[str]:
    """What treating the weights changed, beside the same variant without."""
    if report.random_weights:
        return []
    found = []
    for row in _timed(report):
        plain = report.row(replace(row.variant, treatment="").label) if row.treatment else None
        if plain is None or plain.measured is None:
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
    here = [row for row in _artifacts(report) if row in timed]
    if report.random_weights:
        points = [(row, (_bytes(row), median(row))) for row in here if row.finite]
        front = _labels(_front(points), say)
        text = say("Not beaten in size and median latency at once: {labels}.", labels=front)
        return [text] if len(points) > 1 else []
    judged = [
        (row, (_bytes(row), median(row), found[0]))
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
            labels=_labels(_front(judged), say),
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
                    labels=_labels(rows, say),
                )
            )
    return found
