"""`experiment_report.md`: one comparison as an experiment, from what was asked to what follows.

    1 set-up   2 environment   3 results   4 analysis   5 conclusion

Tables are the summary's; the analysis is `experiment_analysis`: sentences that stand only where the
numbers make them true. What was not measured is named, never filled in.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from vggt_deploy.artifact import write_text
from vggt_deploy.compare.report import EXPERIMENT_NAME, PLOTS_NAME, ComparisonReport
from vggt_deploy.compare.state import Folder
from vggt_deploy.report.baseline_text import (
    baseline_how,
    baseline_notes,
    baseline_verdicts,
    told_grid,
)
from vggt_deploy.report.cost_sections import cost_grid, failure_line
from vggt_deploy.report.engine_sections import engine_grid, engine_notes, not_run_lines
from vggt_deploy.report.experiment_analysis import (
    failure_findings,
    gate_findings,
    trade_findings,
    treatment_findings,
    truth_findings,
)
from vggt_deploy.report.experiment_costs import size_findings, speed_findings
from vggt_deploy.report.experiment_limits import limit_findings, unmeasured_findings
from vggt_deploy.report.fp32_sections import geometry_grid, relative_grid
from vggt_deploy.report.how_sections import how_entries, measured_notes
from vggt_deploy.report.languages import Language, Speaker, speaker
from vggt_deploy.report.question_sections import machine_facts, subject_facts
from vggt_deploy.report.question_settings import setting_facts, variant_grid
from vggt_deploy.report.summary import gate_notes
from vggt_deploy.report.text import Grid
from vggt_deploy.report.truth_sections import (
    Part,
    loss_grids,
    part_of_truth,
    protocol_text,
    remarks,
    scene_grids,
)

Lines = list[str]
# What Markdown would take for its own; `_` stays, since inside of words GitHub leaves it alone.
_SPECIAL = re.compile(r"([\\`*\[\]<>|&#~])")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]+")


def write_experiment(report: ComparisonReport, folder: Folder, language: Language = "en") -> Path:
    """Write experiment_report.md; it shows the pictures that are in the folder by then."""
    path = folder.root / EXPERIMENT_NAME
    write_text(path, experiment_text(report, folder, language))
    return path


def experiment_text(report: ComparisonReport, folder: Folder, language: Language = "en") -> str:
    """The whole Markdown."""
    say = speaker(language)
    model = escaped(str(report.question["model"]["spec"]))
    blocks: list[Lines] = [
        [f"# {say('Experiment report: {model}', model=model)}"],
        [f"## 1 {say('Set-up')}"],
        *_setup(report, say),
        [f"## 2 {say('Environment')}"],
        _facts(machine_facts(report, say), say),
        [f"## 3 {say('Results')}"],
        *_results(report, folder, say),
        [f"## 4 {say('Analysis')}"],
        *_analysis(report, say),
        [f"## 5 {say('Conclusion')}"],
        *_conclusion(report, say),
    ]
    return "\n\n".join("\n".join(lines) for lines in blocks if lines) + "\n"


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, in one line."""
    return _SPECIAL.sub(r"\\\1", _CONTROL.sub(" ", text))


def _bullets(items: Sequence[str]) -> Lines:
    return [f"- {escaped(item)}" for item in items]


def _facts(facts: Sequence[tuple[str, str]], say: Speaker) -> Lines:
    """Name and value, as a table."""
    rows = tuple((escaped(name), escaped(value)) for name, value in facts)
    return Grid(say.each("what", "value"), rows, left=2).markdown()


def _grids(grids: Sequence[Grid]) -> list[Lines]:
    return [_grid(grid) for grid in grids]


def _grid(grid: Grid) -> Lines:
    header = tuple(map(escaped, grid.header))
    rows = tuple(tuple(map(escaped, row)) for row in grid.rows)
    return Grid(header, rows, grid.left).markdown()


def _titled(title: str, blocks: Sequence[Lines]) -> list[Lines]:
    """A sub-section, if there is anything in it."""
    blocks = [block for block in blocks if block]
    return [[f"### {escaped(title)}"], *blocks] if blocks else []


def _setup(report: ComparisonReport, say: Speaker) -> list[Lines]:
    protocol = report.protocol
    said = [
        say.titled(name, say.recorded(text))
        for name, text in (
            (say("frames"), protocol.frames),
            (say("masks"), protocol.masks),
            (say("poses"), protocol.poses),
            (say("depth"), protocol.depth),
            (say("points"), protocol.points),
        )
    ]
    return [
        _facts([*subject_facts(report, say), *setting_facts(report, say)], say),
        [say("Variants ({n}), PyTorch FP32 is the reference:", n=len(report.rows))],
        _grid(variant_grid(report, say)),
        *(
            _titled(say("Protocol of the numbers against the truth"), [_bullets(said)])
            if report.reference.truth is not None
            else ()
        ),
        *_titled(say("What was read"), [_bullets([say.recorded(note) for note in report.notes])]),
    ]


def _results(report: ComparisonReport, folder: Folder, say: Speaker) -> list[Lines]:
    failures = [
        failure_line(row, say)
        for row in report.rows
        if row.failure is not None and row.status != "not run"
    ]
    not_run = [line.strip() for line in not_run_lines(report, say)]
    return [
        *_titled(say("Size and speed"), [_grid(cost_grid(report, say))]),
        *_titled(
            say("Engines"),
            [_grid(engine_grid(report, say)), _bullets(engine_notes(report, say))],
        ),
        *_truth(report, say),
        *_titled(say("Changes since the baseline"), _changes(report, say)),
        *_titled(say("Geometry against PyTorch FP32"), [_grid(geometry_grid(report, say))]),
        *_titled(
            say("Relative error of each output against PyTorch FP32, |a - b| / |b|"),
            [_grid(relative_grid(report, say))],
        ),
        *_titled(say("Failed or refused"), [_bullets(failures)]),
        *_titled(say("Not run here"), [_bullets(not_run)]),
        *_titled(say("Pictures"), _pictures(report, folder, say)),
        *_titled(say("How each number was measured"), [_how(report, say)]),
    ]


def _changes(report: ComparisonReport, say: Speaker) -> list[Lines]:
    found = report.baseline
    if found is None:
        return []
    return [
        _bullets(baseline_notes(found, say)),
        _grid(told_grid(found, say)),
        _bullets([*baseline_verdicts(found, say), baseline_how(found, say)]),
    ]


def _truth(report: ComparisonReport, say: Speaker) -> list[Lines]:
    if report.reference.truth is None:
        return []
    titles: tuple[tuple[Part, str], ...] = (
        ("poses", say("Poses against the truth")),
        ("depth", say("Depth against the truth")),
        ("points", say("Points against the truth")),
    )
    blocks: list[Lines] = []
    for part, title in titles:
        grids = part_of_truth(report, part, say)
        if grids:
            protocol = [escaped(protocol_text(report, part, say))]
            blocks += _titled(title, [*_grids(grids), protocol])
    by_scene = [
        block
        for name, grids in scene_grids(report, say)
        for block in ([f"{escaped(name)}{say.colon.rstrip()}"], *_grids(grids))
    ]
    blocks += _titled(say("Scene by scene, against the truth"), by_scene)
    blocks += _titled(
        say("Lost by the truth, against PyTorch FP32"), _grids(loss_grids(report, say))
    )
    return [
        *blocks,
        *_titled(say("What the truth does not say"), [_bullets(remarks(report, say))]),
    ]


def _pictures(report: ComparisonReport, folder: Folder, say: Speaker) -> list[Lines]:
    """Those that are there, linked from the report's own folder."""
    found: list[Lines] = []
    if (folder.root / PLOTS_NAME).is_file():
        found.append(
            [f"![{escaped(say('size, latency and accuracy of all variants'))}]({PLOTS_NAME})"]
        )
    sheets = sorted((folder.root / "depth").glob("*.png"))
    if sheets:
        found.append([say("Depth of the first scene: picture, PyTorch FP32, variant, difference.")])
    for sheet in sheets:
        found.append([f"![{escaped(sheet.stem)}](depth/{quote(sheet.name)})"])
    return found


def _how(report: ComparisonReport, say: Speaker) -> Lines:
    entries = [
        f"- **{escaped(name)}**{say.colon}{escaped(text)}"
        for name, text in how_entries(report, say)
    ]
    return [*entries, *_bullets(measured_notes(report, say))]


def _analysis(report: ComparisonReport, say: Speaker) -> list[Lines]:
    return [
        *_titled(say("Size"), [_bullets(size_findings(report, say))]),
        *_titled(say("Speed"), [_bullets(speed_findings(report, say))]),
        *_titled(
            say("Accuracy by the truth, against PyTorch FP32"),
            [_bullets(truth_findings(report, say))],
        ),
        *_titled(
            say("Accuracy by the gates"),
            [_bullets([*gate_findings(report, say), *treatment_findings(report, say)])],
        ),
        *_titled(say("Trade-off"), [_bullets(trade_findings(report, say))]),
        *_titled(say("Without numbers"), [_bullets(failure_findings(report, say))]),
    ]


def _conclusion(report: ComparisonReport, say: Speaker) -> list[Lines]:
    advice = [
        f"- **{escaped(say.recorded(item.purpose))}**{say.colon}"
        f"{escaped(item.label or say('none'))}{say.colon}"
        f"{escaped(say.said(item.said) if item.said else say.recorded(item.reason))}"
        for item in report.recommendations
    ]
    return [
        advice,
        *_titled(
            say("Limits"), [_bullets([*limit_findings(report, say), *gate_notes(report, say)])]
        ),
        *_titled(say("Not measured"), [_bullets(unmeasured_findings(report, say))]),
    ]
