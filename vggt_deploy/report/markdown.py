"""`comparison_report.md`: the report as a comment on a pull request would have it.

GitHub's Markdown: advice, one table of all variants, what changed since a baseline, and the rest
folded away. The only HTML in it is <details>. Whatever comes from outside (names of models, scenes
and files, messages) is escaped, so that it can't become a table cell, a tag, a picture or a
mention. (An address stays one: GitHub makes a link of it.)
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from vggt_deploy.artifact import write_text
from vggt_deploy.compare.baseline import Changes
from vggt_deploy.compare.decimals import lost_text
from vggt_deploy.compare.paired import Difference, TruthLoss
from vggt_deploy.compare.report import (
    MARKDOWN_NAME,
    REPORT_NAME,
    SUMMARY_NAME,
    ComparisonReport,
    Row,
)
from vggt_deploy.report.baseline_text import (
    baseline_counts,
    baseline_how,
    baseline_notes,
    baseline_reasons,
    told_grid,
)
from vggt_deploy.report.question_sections import machine_facts, notes, subject_facts
from vggt_deploy.report.text import Grid, fixed, megabytes, number

_NO_BREAK = "\u00a0"  # an interval on three lines is hard to read
MOST_CHANGES = 30  # rows of the table of changes; a comment has 65536 characters at most
_SPECIAL = re.compile(r"[\\`*\[\]<>~&]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|^[#+-]")
_MENTION = re.compile(r"(?<![A-Za-z0-9])@(?=[A-Za-z0-9])")


def write_markdown(report: ComparisonReport) -> Path:
    """Write comparison_report.md into the report's folder."""
    path = report.folder / MARKDOWN_NAME
    write_text(path, markdown_text(report))
    return path


def markdown_text(report: ComparisonReport) -> str:
    """The whole text."""
    parts = [
        [f"## Comparison of {code(report.question['model']['spec'])}"],
        [_asked(report)],
        "\n>\n".join(f"> {escape(note)}" for note in notes(report)).splitlines(),
        _recommendations(report),
        variants_grid(report).markdown(),
        [f"Protocol: {escape(report.protocol.line)}."] if report.reference.truth else [],
        _failures(report),
        _baseline(report.baseline) if report.baseline is not None else [],
        _folded("Environment", _environment(report)),
        [f"All numbers: `{REPORT_NAME}`; how each was measured: `{SUMMARY_NAME}`."],
    ]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def _asked(report: ComparisonReport) -> str:
    """What was run, on what, in one line."""
    images, scenes = report.question["images"], len(report.scenes)
    threads = report.question["threads"]
    pictures = "1 picture" if images["frames"] == 1 else f"{images['frames']} pictures"
    where = f" of each of {scenes} scenes" if scenes > 1 else ""
    return (
        f"{pictures}{where}, {images['height']} x {images['width']} pixels, "
        f"{threads} thread{'' if threads == 1 else 's'}, {escape(report.environment.cpu)}."
    )


def escape(text: str) -> str:
    """The text on one line, with nothing in it that Markdown or GitHub would act upon."""
    text = _SPECIAL.sub(lambda found: f"\\{found.group()}", " ".join(text.split()))
    return _MENTION.sub("@\u2060", text)  # a word joiner: looks the same, names nobody


def code(text: str) -> str:
    """The text as a code span, whatever backticks are in it."""
    text = " ".join(text.split()) or " "
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    blank = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{blank}{text}{blank}{fence}"


def variants_grid(report: ComparisonReport) -> Grid:
    """One line for each variant: size, speed, and the truth, or without one the errors."""
    by_truth = report.reference.truth is not None
    accuracy = (
        ("AUC@30, %", "lost [95 %]", "AbsRel", "lost [95 %]")
        if by_truth
        else ("rotation, deg", "direction, deg", "depth AbsRel", "points")
    )
    header = ("variant", "MB", "x smaller", "median ms", "x faster", *accuracy)
    rows = []
    for row in report.rows:
        ratios, measured = report.ratios(row), row.measured
        rows.append(
            (
                code(row.label),
                megabytes(row.disk_bytes),
                fixed(ratios.compression),
                fixed(measured.latency.median_ms, 1) if measured else row.status,
                fixed(ratios.speedup_torch_fp32),
                *(_by_truth(row, report.reference) if by_truth else _against_fp32(row)),
            )
        )
    return Grid(header, tuple(rows))


def _by_truth(row: Row, reference: Row) -> tuple[str, ...]:
    truth, lost = row.truth, row.truth_loss if row is not reference else None
    return (
        fixed(truth.auc_30 if truth else None),
        _lost("auc_30", lost),
        fixed(truth.abs_rel if truth else None, 4),
        _lost("abs_rel", lost),
    )


def _lost(quantity: str, loss: TruthLoss | None) -> str:
    """Written as in all other texts."""
    lost: Difference | None = getattr(loss, quantity, None)
    if lost is None:
        return "-"
    mean = lost_text(quantity, lost.mean)
    if lost.low is None or lost.high is None:
        return mean
    interval = f"[{lost_text(quantity, lost.low)}, {lost_text(quantity, lost.high)}]"
    over = f" ({lost.n} frames)" if lost.over == "frames" else ""
    return f"{mean} {interval}{over}".replace(" ", _NO_BREAK)


def _against_fp32(row: Row) -> tuple[str, ...]:
    geometry = row.geometry
    if geometry is None:
        return ("-",) * 4
    pose, depth, points = geometry.pose, geometry.depth, geometry.points
    rotation, direction = (pose.rotation, pose.direction) if pose else (None, None)
    return (
        number(rotation.mean_deg if rotation else None, 3),
        number(direction.mean_deg if direction else None, 3),
        number(depth.abs_rel if depth else None, 3),
        number(points.mean_relative if points else None, 3),
    )


def _recommendations(report: ComparisonReport) -> list[str]:
    return [
        f"- **{item.purpose}**: {code(item.label) if item.label else 'none'}. "
        f"{escape(_capital(item.reason))}"
        for item in report.recommendations
    ]


def _capital(text: str) -> str:
    """A reason as a sentence; names of variants keep their case."""
    first = text.partition(" ")[0]
    return _ended(text if "/" in first else text[:1].upper() + text[1:])


def _ended(text: str) -> str:
    """With a full stop."""
    text = text.strip()
    return text if text.endswith(".") else f"{text}."


def _failures(report: ComparisonReport) -> list[str]:
    lines = []
    for row in report.rows:
        if row.failure is None:
            continue
        what = escape(_ended(row.failure.message))
        fix = f" Fix: {escape(_ended(row.failure.fix))}" if row.failure.fix else ""
        lines.append(f"- {code(row.label)}: {row.status} ({row.failure.stage}): {what}{fix}")
    return _folded(f"{len(lines)} without numbers", lines) if lines else []


def _baseline(found: Changes) -> list[str]:
    grid = told_grid(found)
    rows = tuple((code(row[0]), *row[1:]) for row in grid.rows[:MOST_CHANGES])
    left = len(grid.rows) - len(rows)
    details = [*baseline_notes(found), *baseline_reasons(found), baseline_how(found)]
    parts = [
        ["### Changed since the baseline"],
        [f"- {escape(text)}" for text in baseline_counts(found)],
        Grid(grid.header, rows, grid.left).markdown(),
        [f"{left} more changes are in `{SUMMARY_NAME}`."] if left else [],
        _folded("How it was compared", [f"- {escape(text)}" for text in details]),
    ]
    return "\n\n".join("\n".join(part) for part in parts if part).split("\n")


def _environment(report: ComparisonReport) -> list[str]:
    facts = [*subject_facts(report), *machine_facts(report)]
    facts += [("read", note) for note in report.notes]
    return [f"- {name}: {escape(text)}" for name, text in facts]


def _folded(title: str, lines: Sequence[str]) -> list[str]:
    """GitHub reads Markdown inside of it only after an empty line."""
    return ["<details>", f"<summary>{title}</summary>", "", *lines, "", "</details>"]
