"""What the numbers of a report say of size and speed, as sentences; see `experiment_analysis`.

A variant with NaN or infinite outputs is named for neither: what it costs buys nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from vggt_deploy.compare.report import ComparisonReport, Row
from vggt_deploy.compare.speed import Times, median, slower_than, surely_faster
from vggt_deploy.report.languages import Speaker
from vggt_deploy.report.question_sections import report_times
from vggt_deploy.report.text import fixed, megabytes

AS_SMALL = 1.01  # times the smallest


def measured_rows(report: ComparisonReport) -> list[Row]:
    """Rows that ran here."""
    return [row for row in report.rows if row.measured is not None]


def artifacts_of(report: ComparisonReport) -> list[Row]:
    """Artifacts and engines that ran, which have a size on disk."""
    return [row for row in measured_rows(report) if row.runtime != "torch" and row.disk_bytes]


def bytes_on_disk(row: Row) -> int:
    """Of an artifact or engine."""
    assert row.disk_bytes is not None
    return row.disk_bytes


def labels_of(rows: Sequence[Row], say: Speaker) -> str:
    """Their names in a row."""
    return say.joined([row.label for row in rows])


def size_findings(report: ComparisonReport, say: Speaker) -> list[str]:
    """What is smallest."""
    ran = artifacts_of(report)
    artifacts = [row for row in ran if row.finite]
    if not ran:
        return [say("No artifact ran: PyTorch variants have no size on disk of their own.")]
    if not artifacts:
        return _without(ran, say)
    smallest = min(artifacts, key=bytes_on_disk)
    found = [_smallest(smallest, report.ratios(smallest).compression, say)]
    near = [
        row
        for row in artifacts
        if row is not smallest and bytes_on_disk(row) <= AS_SMALL * bytes_on_disk(smallest)
    ]
    if near:
        found.append(say("Within 1 % of that size: {labels}.", labels=labels_of(near, say)))
    larger = [row for row in artifacts if (report.ratios(row).compression or 1.0) < 1.0]
    if larger:
        found.append(
            say("Larger than the FP32 weights in memory: {labels}.", labels=labels_of(larger, say))
        )
    return [*found, *_without(ran, say)]


def _smallest(row: Row, times: float | None, say: Speaker) -> str:
    """times: FP32 bytes of the same weights over its own; None: not known."""
    size = megabytes(row.disk_bytes)
    if times is None:
        return say(
            "The smallest artifact of those that ran is {label}: {mb} MB.",
            label=row.label,
            mb=size,
        )
    if times < 1.0:
        return say(
            "The smallest artifact of those that ran is {label}: {mb} MB, {times} x as large as "
            "the FP32 weights in memory.",
            label=row.label,
            mb=size,
            times=fixed(1.0 / times),
        )
    return say(
        "The smallest artifact of those that ran is {label}: {mb} MB, {times} x smaller than the "
        "FP32 weights in memory.",
        label=row.label,
        mb=size,
        times=fixed(times),
    )


def _without(rows: Sequence[Row], say: Speaker) -> list[str]:
    """Who is named for nothing, and why."""
    bad = [row for row in rows if not row.finite]
    if not bad:
        return []
    return [
        say("Left out, with NaN or infinite outputs: {labels}.", labels=labels_of(bad, say)),
    ]


def speed_findings(report: ComparisonReport, say: Speaker) -> list[str]:
    """What is fastest, and what of it is sure."""
    times = report_times(report)
    finite = [row for row in times.rows if row.finite]
    if not finite:
        return _without(times.rows, say)
    return [
        _fastest(min(finite, key=median), report.reference, say),
        *_parted(times, say),
        *_without(times.rows, say),
        *_unknown_fp32(report, say),
    ]


def _fastest(row: Row, reference: Row, say: Speaker) -> str:
    if median(row) >= median(reference):
        return say(
            "No variant is faster than PyTorch FP32 ({ms} ms).", ms=fixed(median(reference), 1)
        )
    return say(
        "The lowest median latency is that of {label}: {ms} ms, {times} x the speed of PyTorch "
        "FP32 ({reference} ms).",
        label=row.label,
        ms=fixed(median(row), 1),
        times=fixed(median(reference) / median(row)),
        reference=fixed(median(reference), 1),
    )


def _parted(times: Times, say: Speaker) -> list[str]:
    """The variants that are not FP32: surely faster, faster by the median alone, not faster."""
    others = [row for row in times.rows if row.scheme != "fp32" and row.finite]
    sure = [row for row in others if surely_faster(row, times)]
    slower = [row for row in others if slower_than(row, times.rows)]
    unsure = [row for row in others if row not in sure and row not in slower]
    parts = (
        (
            sure,
            say("Surely faster than every FP32 variant measured, median below their fastest call"),
        ),
        (unsure, say("Faster than every FP32 variant by the median, not surely")),
        (slower, say("Not faster than at least one FP32 variant measured")),
    )
    return [
        say(
            "{what} ({n} of {all}): {labels}.",
            what=sentence,
            n=len(rows),
            all=len(others),
            labels=labels_of(rows, say),
        )
        for rows, sentence in parts
        if rows
    ]


def _unknown_fp32(report: ComparisonReport, say: Speaker) -> list[str]:
    """Runtimes whose own FP32 is not there to be held against."""
    timed = measured_rows(report)
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
