"""The parts of the texts that are about size, speed, and what did not work."""

from __future__ import annotations

from vggt_deploy.compare.report import ComparisonReport, Row
from vggt_deploy.compare.speed import slower_than
from vggt_deploy.report.languages import Speaker
from vggt_deploy.report.text import Grid, fixed, megabytes, number, pad, wrap

MAX_LINE = 160
_LABEL = 34


def cost_grid(report: ComparisonReport, say: Speaker) -> Grid:
    """Size, latency and its spread, and what the export took, of every row."""
    header = say.each(
        "variant", "disk MB", "x smaller", "held MB", "load s", "peak MB",
        "median ms", "p90", "min", "mean", "std", "IQR", "n", "x torch", "x ORT", "export s",
        "peak MB",
    )  # fmt: skip
    rows = []
    for row in report.rows:
        measured, export, against = row.measured, row.export, report.ratios(row)
        size = (row.label, megabytes(row.disk_bytes), number(against.compression, 3))
        if measured is None:
            status = say.recorded(row.status)
            rows.append((*size, "-", "-", "-", status, *["-"] * (len(header) - 7)))
            continue
        latency = measured.latency
        times = (latency.median_ms, latency.p90_ms, latency.min_ms, latency.mean_ms)
        rows.append(
            (
                *size,
                megabytes(measured.held_bytes),
                fixed(measured.load_ms / 1e3),
                fixed(measured.peak_rss_bytes / 1e6, 0),
                *(fixed(value, 1) for value in times),
                fixed(latency.std_ms, 1),
                fixed(latency.iqr_ms, 1),
                str(latency.n),
                fixed(against.speedup_torch_fp32),
                fixed(against.speedup_onnxruntime_fp32),
                fixed(export.seconds if export else None, 1),
                fixed(export.peak_rss_bytes / 1e6 if export else None, 0),
            )
        )
    return Grid(header, tuple(rows))


def slower_groups(report: ComparisonReport) -> dict[tuple[str, ...], list[str]]:
    """FP32 variants -> the variants that are not faster than these, by medians."""
    measured = [row for row in report.rows if row.measured is not None]
    groups: dict[tuple[str, ...], list[str]] = {}
    for row in measured:
        them = slower_than(row, measured) if row.scheme != "fp32" else ()
        if them:
            groups.setdefault(them, []).append(row.label)
    return groups


def slower_lines(report: ComparisonReport, say: Speaker) -> list[str]:
    """Variants by the FP32 variants that they are not faster than."""
    lines = []
    for them, labels in slower_groups(report).items():
        lines.append(say("slower than {them}:", them=say.joined(them)))
        lines += [f"    {line}" for line in wrap(say.joined(labels), 110)]
    return lines


def failure_lines(report: ComparisonReport, say: Speaker) -> list[str]:
    """Rows that failed or were refused, why, and the last that a crashed process wrote."""
    lines = []
    for row in report.rows:
        failure = row.failure
        if failure is None or row.status == "not run":
            continue
        lines.append(failure_line(row, say))
        if failure.fix:
            lines.append("    " + say.titled(say("fix"), say.recorded(failure.fix)))
        elif row.status == "failed":
            lines += [f"    | {line[:MAX_LINE]}" for line in failure.tail[-5:]]
    return lines


def failure_line(row: Row, say: Speaker) -> str:
    """What happened to a row that has no numbers."""
    assert row.failure is not None
    return say(
        "{label}: {status} ({stage}): {message}",
        label=row.label,
        status=say.recorded(row.status),
        stage=say.recorded(row.failure.stage),
        message=say.recorded(row.failure.message),
    )


def support_lines(report: ComparisonReport, say: Speaker) -> list[str]:
    """What each runtime makes of a scheme, where it is not simply that."""
    return [
        f"{pad(row.label, _LABEL)} {say.recorded(row.support)}"
        for row in report.rows
        if row.support != "real"
    ]
