"""The parts of report.html that are words and small tables: advice, facts, sensitivity, changes."""

from __future__ import annotations

from dataclasses import dataclass

from vggt_deploy.compare.baseline import Changes
from vggt_deploy.compare.report import ComparisonReport, Recommendation
from vggt_deploy.pages.blocks import Facts, Table
from vggt_deploy.pages.page import capital
from vggt_deploy.report.baseline_text import (
    baseline_how,
    baseline_notes,
    baseline_verdicts,
    told_grid,
)
from vggt_deploy.report.engine_sections import engine_grid, engine_notes
from vggt_deploy.report.fp32_sections import geometry_grid, tensor_grid
from vggt_deploy.report.how_sections import how_entries, measured_notes
from vggt_deploy.report.languages import ENGLISH
from vggt_deploy.report.page_tables import grid_table, lost_cell
from vggt_deploy.report.question_sections import machine_facts, subject_facts
from vggt_deploy.report.truth_sections import (
    Part,
    loss_grids,
    part_of_truth,
    protocol_text,
    remarks,
    scene_grids,
)
from vggt_deploy.sensitivity.table import MEASURES, Entry, SensitivityTable


@dataclass(frozen=True)
class Advice:
    """One recommendation with the numbers that it is about: (name, value, unit, what it means)."""

    purpose: str
    label: str | None
    figures: tuple[tuple[str, str, str, str], ...]
    reason: str


@dataclass(frozen=True)
class Titled:
    """Tables under one small heading, with what to know about them."""

    title: str
    tables: tuple[Table, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class HeatCell:
    """A number and how dark it is, 0..100: its part of the column's largest."""

    text: str
    sort: float | None
    percent: int


@dataclass(frozen=True)
class HeatRow:
    """One unit in one format."""

    unit: str
    layers: int
    format: str
    cells: tuple[HeatCell, ...]


@dataclass(frozen=True)
class Heat:
    """The table of sensitivity: what quantizing one unit alone costs."""

    lead: str
    columns: tuple[str, ...]
    rows: tuple[HeatRow, ...]


def advice(report: ComparisonReport) -> tuple[Advice, ...]:
    """The recommendations, in the order of the report."""
    return tuple(_advice(report, item) for item in report.recommendations)


def _advice(report: ComparisonReport, item: Recommendation) -> Advice:
    row = report.row(item.label) if item.label is not None else None
    figures: list[tuple[str, str, str, str]] = []
    if row is not None:
        ratios = report.ratios(row)
        if row.disk_bytes is not None:
            smaller = f"{ratios.compression:.2f} x smaller" if ratios.compression else ""
            figures.append(("on disk", f"{row.disk_bytes / 1e6:.2f}", "MB", smaller))
        if row.measured is not None:
            faster = ratios.speedup_torch_fp32
            times = f"{faster:.2f} x the speed of torch/fp32" if faster else ""
            figures.append(("latency", f"{row.measured.latency.median_ms:.1f}", "ms", times))
        lost = row.truth_loss.auc_30 if row.truth_loss is not None else None
        if lost is not None:
            cell = lost_cell(lost, "auc_30")
            figures.append(("AUC@30 lost", cell.text, "points", cell.small))
        elif row.geometry and row.geometry.depth:
            value = f"{row.geometry.depth.abs_rel:.2g}"
            figures.append(("depth to FP32", value, "AbsRel", ""))
    return Advice(item.purpose, item.label, tuple(figures), item.reason)


def truth_parts(report: ComparisonReport) -> tuple[Titled, ...]:
    """Means over scenes, with their protocol; nothing where no truth is known."""
    if report.reference.truth is None:
        return ()
    titles: tuple[tuple[Part, str], ...] = (
        ("poses", "Poses"),
        ("depth", "Depth"),
        ("points", "Points"),
    )
    parts = []
    for part, title in titles:
        grids = part_of_truth(report, part, ENGLISH)
        tables = tuple(
            grid_table(f"truth-{part}-{i}", f"{title} against the truth", grid)
            for i, grid in enumerate(grids)
        )
        if tables:
            protocol = protocol_text(report, part, ENGLISH)
            parts.append(Titled(title, tables, (capital(protocol),)))
    losses = loss_grids(report, ENGLISH)
    if losses:
        tables = tuple(
            grid_table(f"loss-{i}", "Lost by the truth against PyTorch FP32", grid)
            for i, grid in enumerate(losses)
        )
        text = (
            "The same numbers scene by scene against PyTorch FP32: above 0 is worse. Behind each "
            "the 95 % interval of the mean; where it holds 0, the loss is not told from none."
        )
        parts.append(Titled("Lost against PyTorch FP32", tables, (text,)))
    return tuple(parts)


def scene_parts(report: ComparisonReport) -> tuple[Titled, ...]:
    """Of several scenes, each quantity scene by scene, and its mean."""
    if report.reference.truth is None:
        return ()
    return tuple(
        Titled(
            name,
            tuple(
                grid_table(
                    f"scenes-{i}-{k}", f"{name}, scene by scene", grid, verbatim=report.scenes
                )
                for k, grid in enumerate(grids)
            ),
        )
        for i, (name, grids) in enumerate(scene_grids(report, ENGLISH))
    )


def truth_remarks(report: ComparisonReport) -> tuple[str, ...]:
    """What the truth does not say, and what was counted as worst."""
    return tuple(remarks(report, ENGLISH)) if report.reference.truth is not None else ()


def fp32_parts(report: ComparisonReport) -> tuple[Titled, ...]:
    """Everything that is measured against PyTorch FP32."""
    parts = []
    geometry = geometry_grid(report, ENGLISH)
    if geometry.rows:
        table = grid_table("geometry", "Geometry against PyTorch FP32", geometry)
        parts.append(Titled("Geometry", (table,)))
    for name in report.reference.accuracy:
        grid = tensor_grid(report, name, ENGLISH)
        if grid.rows:
            slug = "".join(c if c.isalnum() else "-" for c in name)
            table = grid_table(f"tensor-{slug}", f"{name} against PyTorch FP32", grid)
            parts.append(Titled(f"Output {name}", (table,)))
    return tuple(parts)


def engine_part(report: ComparisonReport) -> Titled | None:
    """What was built; None where no engine was."""
    grid = engine_grid(report, ENGLISH)
    if not grid.rows:
        return None
    # What the products compute in, the last column, is text.
    table = grid_table("engines-table", "Engines", grid, words=grid.header[-1:])
    return Titled("Engines", (table,), tuple(engine_notes(report, ENGLISH)))


def change_part(found: Changes) -> Titled:
    """What changed since a baseline; an empty table where nothing is told from chance."""
    grid = told_grid(found, ENGLISH)
    tables = (grid_table("changes-table", "What changed", grid),) if grid.rows else ()
    notes = (
        *baseline_notes(found, ENGLISH),
        *baseline_verdicts(found, ENGLISH),
        baseline_how(found, ENGLISH),
    )
    return Titled("Changes", tables, notes)


def environment_facts(report: ComparisonReport) -> Facts:
    """What was asked, on what machine, with which versions; and what was read."""
    entries = [*subject_facts(report), *machine_facts(report)]
    entries += [("read", ENGLISH.recorded(note)) for note in report.notes]
    return Facts(tuple((capital(name), text) for name, text in entries))


def how_facts(report: ComparisonReport) -> Facts:
    """How each number was measured, and by which protocol."""
    entries = how_entries(report)
    if report.reference.truth is not None:
        entries.append(("protocol", report.protocol.line))
    return Facts(tuple((capital(name), capital(text)) for name, text in entries))


def how_notes(report: ComparisonReport) -> tuple[str, ...]:
    """What single measurements noted."""
    return tuple(measured_notes(report))


_HEAT_TITLES = {
    "local_error": "local error",
    "auc3": "AUC@3 lost",
    "auc5": "AUC@5 lost",
    "auc30": "AUC@30 lost",
    "pose_deg": "pose, deg",
    "pose_median_deg": "pose median, deg",
    "abs_rel": "depth AbsRel",
    "point_error": "points / size",
    "same3": "100 - AUC@3 to FP32",
    "same5": "100 - AUC@5 to FP32",
    "output_mse": "output MSE",
}


def heat(table: SensitivityTable) -> Heat:
    """Units down, measures across; a column's colour goes up to its own largest loss."""
    names = ("local_error", *MEASURES[table.reference])
    used = [n for n in names if any(_loss(entry, n) is not None for entry in table.entries)]
    most = {n: max((_loss(entry, n) or 0.0 for entry in table.entries), default=0.0) for n in used}
    against = "the truth" if table.reference == "truth" else "the outputs of FP32"
    scenes = f"{len(table.scenes)} scene{'' if len(table.scenes) == 1 else 's'}"
    lead = (
        f"{table.model.config}: one {table.by} at a time in integers, all else FP32, "
        f"{table.activations} activations; what is lost by {against}, mean over {scenes} of "
        f"{table.height} x {table.width}. Above 0 is worse; a colour is the part of its column's "
        "largest. A dash was not measured."
    )
    rows = tuple(
        HeatRow(
            entry.unit,
            len(entry.layers),
            entry.format,
            tuple(_heat_cell(_loss(entry, n), most[n]) for n in used),
        )
        for entry in table.entries
    )
    return Heat(lead, tuple(_HEAT_TITLES[n] for n in used), rows)


def _loss(entry: Entry, name: str) -> float | None:
    return entry.local_error if name == "local_error" else (entry.loss or {}).get(name)


def _heat_cell(value: float | None, most: float) -> HeatCell:
    if value is None:
        return HeatCell("-", None, 0)
    percent = round(100.0 * min(1.0, max(0.0, value / most))) if most > 0.0 else 0
    return HeatCell(f"{value:.3g}", value, percent)
