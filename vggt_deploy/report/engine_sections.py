"""The parts of the texts that are about engines: what was built, and what could not be run."""

from __future__ import annotations

from vggt_deploy.compare.report import ComparisonReport
from vggt_deploy.report.languages import Speaker
from vggt_deploy.report.text import Grid, megabytes, wrap


def engine_grid(report: ComparisonReport, say: Speaker) -> Grid:
    """What was built, whether or not it could be run here."""
    header = say.each(
        "variant", "plan MB", "weights MB", "packed MB", "build s", "build peak MB of host",
        "network ms", "GPU MB", "proof",
    )  # fmt: skip
    rows = []
    for row in report.rows:
        build, gpu = row.build, row.measured.gpu if row.measured else None
        if build is None:
            continue
        memory = gpu.engine_bytes + gpu.buffer_bytes if gpu else None
        rows.append(
            (
                row.label,
                megabytes(build.plan_bytes),
                megabytes(build.weights_bytes),
                megabytes(build.packed_bytes),
                f"{build.seconds:.1f}",
                f"{build.peak_rss_bytes / 1e6:.0f}",
                f"{gpu.network_ms:.2f}" if gpu else say.recorded(row.status),
                f"{memory / 1e6:.0f}" if memory is not None else "-",
                say.recorded(build.proof),
            )
        )
    return Grid(header, tuple(rows))


def engine_notes(report: ComparisonReport, say: Speaker) -> list[str]:
    """What was accepted knowingly, what was cut off the device profile."""
    return [
        say.titled(row.label, say.recorded(note))
        for row in report.rows
        if row.build is not None
        for note in row.build.notes
    ]


def not_run_lines(report: ComparisonReport, say: Speaker) -> list[str]:
    """Rows that nothing is wrong with, by what is missing here."""
    groups: dict[tuple[str, str | None], list[str]] = {}
    for row in report.rows:
        if row.status == "not run" and row.failure is not None:
            key = (row.failure.message, row.failure.fix)
            groups.setdefault(key, []).append(row.label)
    lines = []
    for (message, fix), labels in groups.items():
        lines.append(say.titled(say("not run"), say.recorded(message)))
        lines += [f"    {line}" for line in wrap(say.joined(labels), 110)]
        if fix:
            lines.append("    " + say.titled(say("to run them"), say.recorded(fix)))
    return lines
