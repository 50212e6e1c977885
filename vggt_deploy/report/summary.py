"""`comparison_summary.txt`: the report as aligned plain text, for a terminal or a mail.

A dash is a quantity that the row can't have; why is said below the tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.cells import cell_len

from vggt_deploy.artifact import write_text
from vggt_deploy.compare.recommend import ENOUGH_SCENES, GATES, TRUTH_GATES, Gate
from vggt_deploy.compare.report import SUMMARY_NAME, ComparisonReport, Said
from vggt_deploy.report.baseline_text import baseline_lines
from vggt_deploy.report.cost_sections import (
    cost_grid,
    failure_lines,
    slower_lines,
    support_lines,
)
from vggt_deploy.report.engine_sections import engine_grid, engine_notes, not_run_lines
from vggt_deploy.report.fp32_sections import geometry_grid, tensor_grid
from vggt_deploy.report.how_sections import how_entries, measured_notes
from vggt_deploy.report.languages import ENGLISH, Language, Speaker, speaker
from vggt_deploy.report.question_sections import question_lines
from vggt_deploy.report.text import entry, pad, wrap
from vggt_deploy.report.truth_sections import truth_sections

LINE = 115
_PURPOSE = 15
_HOW = 92


def write_summary(report: ComparisonReport, language: Language = "en") -> Path:
    """Write comparison_summary.txt into the report's folder."""
    path = report.folder / SUMMARY_NAME
    write_text(path, summary_text(report, language))
    return path


def summary_text(report: ComparisonReport, language: Language = "en") -> str:
    """The whole text."""
    say = speaker(language)
    sections = [
        (say("Recommendation"), recommendation_lines(report, say)),
        (say("Size and speed"), cost_grid(report, say).plain()),
        (say("Engines"), [*engine_grid(report, say).plain(), *engine_notes(report, say)]),
        (say("Slower than FP32"), slower_lines(report, say)),
        (say("Changes since the baseline"), _changes(report, say)),
        *truth_sections(report, say),
        (say("Geometry against PyTorch FP32"), geometry_grid(report, say).plain()),
        *(
            (say("{name} against PyTorch FP32", name=name), tensor_grid(report, name, say).plain())
            for name in report.reference.accuracy
        ),
        (say("Failed or refused"), failure_lines(report, say)),
        (say("Not run here"), not_run_lines(report, say)),
        (say("What the runtimes make of the schemes"), support_lines(report, say)),
        (say("How to read it"), _how(report, say)),
    ]
    head = _section(say("vggt-deploy comparison"), question_lines(report, say))
    parts = [head, *(_section(title, lines) for title, lines in sections)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(title: str, lines: Sequence[str]) -> str:
    return "\n".join([title, "=" * cell_len(title), *lines]) if lines else ""


def recommendation_lines(report: ComparisonReport, say: Speaker = ENGLISH) -> list[str]:
    """The advice, each with its reason, and the gates that it was given by."""
    lines = []
    for item in report.recommendations:
        purpose = say.titled(say.recorded(item.purpose), "").rstrip()
        lines.append(f"{pad(purpose, _PURPOSE)} {item.label or say('none')}")
        reason = say.said(item.said) if item.said else say.recorded(item.reason)
        lines += [f"{'':<{_PURPOSE}} {line}" for line in wrap(reason, 100)]
    return [*lines, *(line for text in gate_notes(report, say) for line in wrap(text, LINE))]


def gate_notes(report: ComparisonReport, say: Speaker = ENGLISH) -> list[str]:
    """What the advice was held against."""
    if report.random_weights:
        return [say("No gates were applied (random weights).")]
    if not report.reference.finite:
        return [say("No gates were applied (PyTorch FP32 itself is not finite).")]
    notes = [say("Gates, against PyTorch FP32: {gates}.", gates=_named(GATES, say))]
    if report.reference.truth is not None:
        notes.append(
            say(
                "By the truth: {gates}; of {n} scenes or more, these alone.",
                gates=_named(TRUTH_GATES, say),
                n=ENOUGH_SCENES,
            )
        )
    return notes


def _named(gates: Sequence[Gate], say: Speaker) -> str:
    return say.semicolon.join(f"{say.said([Said(gate.name)])} ≤ {gate.limit:g}" for gate in gates)


def _changes(report: ComparisonReport, say: Speaker) -> list[str]:
    return baseline_lines(report.baseline, say) if report.baseline is not None else []


def _how(report: ComparisonReport, say: Speaker) -> list[str]:
    lines = []
    entries = how_entries(report, say)
    name_width = max(cell_len(name) for name, _ in entries)
    for name, text in entries:
        lines += entry(name, text, name_width=name_width + 1, width=_HOW)
    return [*lines, *(line for note in measured_notes(report, say) for line in wrap(note, LINE))]
