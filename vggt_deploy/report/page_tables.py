"""The tables of report.html: the variants at a glance, and those of the texts, made sortable.

The first table has a fixed number of decimals in each column, so that its numbers can be compared
by eye; the ones below it are those of the summary, digit for digit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vggt_deploy.compare.decimals import lost_text, lost_told
from vggt_deploy.compare.paired import Difference
from vggt_deploy.compare.report import ComparisonReport, Row
from vggt_deploy.pages.blocks import Cell, Column, Table
from vggt_deploy.pages.blocks import Row as Line
from vggt_deploy.pages.page import capital
from vggt_deploy.report.text import Grid, fixed

NOT_MEASURED = "-"
_BADGES = {"failed": "bad", "refused": "warn", "not run": "warn"}


@dataclass(frozen=True)
class _Measure:
    """One column of the first table: `cell` gives what stands in it, None: no row has it."""

    column: Column
    cell: Callable[[ComparisonReport, Row], Cell]
    there: Callable[[Row], bool]


def variant_table(report: ComparisonReport) -> Table:
    """All variants: what they cost, how good they are, what became of them."""
    used = [m for m in _MEASURES if any(m.there(row) for row in report.rows)]
    if len({row.machine for row in report.rows if row.measured is not None}) > 1:
        used.append(_MACHINE)
    columns = (
        Column("Variant", about="runtime / scheme + activations + treatment", number=False),
        *(measure.column for measure in used),
        Column("Status", number=False),
    )
    lines = [
        Line(
            (_variant_cell(report, row), *(m.cell(report, row) for m in used), _status_cell(row)),
            _mark(report, row),
        )
        for row in report.rows
    ]
    return Table("variants", "All variants", columns, tuple(lines))


def advised(report: ComparisonReport) -> dict[str, list[str]]:
    """Label -> what it is recommended for."""
    found: dict[str, list[str]] = {}
    for item in report.recommendations:
        if item.label is not None:
            found.setdefault(item.label, []).append(item.purpose)
    return found


def reason_of(row: Row) -> str:
    """Why a row has no numbers, on one line; "" for one that has."""
    if row.failure is None:
        return ""
    return " ".join(f"{row.failure.stage}: {row.failure.message}".split())


def _variant_cell(report: ComparisonReport, row: Row) -> Cell:
    said = []
    if row.label == report.reference.label:
        said.append("the reference")
    said += advised(report).get(row.label, [])
    if row.failure is not None:
        said.append(reason_of(row))
    return Cell(row.label, row.label, small=", ".join(said), dot=row.runtime)


def _status_cell(row: Row) -> Cell:
    if row.status == "done" and not row.finite:
        return Cell("NaN or inf", "done, not finite", badge="bad")
    return Cell(row.status, row.status, badge=_BADGES.get(row.status, ""))


def _mark(report: ComparisonReport, row: Row) -> str:
    if row.label == report.reference.label:
        return "reference"
    return "" if row.status == "done" else "failed"


def _cell(value: float | None, digits: int, small: str = "") -> Cell:
    return Cell(fixed(value, digits) if value is not None else NOT_MEASURED, value, small)


def _disk(_: ComparisonReport, row: Row) -> Cell:
    value = row.disk_bytes / 1e6 if row.disk_bytes is not None else None
    held = row.measured.held_bytes if row.measured else None
    small = f"{held / 1e6:.2f} held" if held and row.runtime == "torch" else ""
    return _cell(value, 2, small)


def _smaller(report: ComparisonReport, row: Row) -> Cell:
    return _cell(report.ratios(row).compression, 2)


def _latency(_: ComparisonReport, row: Row) -> Cell:
    if row.measured is None:
        return _cell(None, 1)
    latency = row.measured.latency
    spread = f"{latency.min_ms:.1f} to {latency.p90_ms:.1f}" if latency.n > 1 else "one call"
    return _cell(latency.median_ms, 1, spread)


def _faster(report: ComparisonReport, row: Row) -> Cell:
    return _cell(report.ratios(row).speedup_torch_fp32, 2)


def _auc(_: ComparisonReport, row: Row) -> Cell:
    return _cell(row.truth.auc_30 if row.truth else None, 2)


def _abs_rel(_: ComparisonReport, row: Row) -> Cell:
    return _cell(row.truth.abs_rel if row.truth else None, 4)


def _lost(name: str) -> Callable[[ComparisonReport, Row], Cell]:
    def cell(report: ComparisonReport, row: Row) -> Cell:
        if row.label == report.reference.label:
            return Cell(NOT_MEASURED, None)
        found: Difference | None = getattr(row.truth_loss, name, None)
        return lost_cell(found, name)

    return cell


def lost_cell(found: Difference | None, name: str) -> Cell:
    """What was lost of a quantity of `TruthLoss`, with its interval, as all texts write it.

    Strong where the interval leaves no doubt of the sign in these decimals.
    """
    if found is None:
        return Cell(NOT_MEASURED, None)
    mean = lost_text(name, found.mean)
    if found.low is None or found.high is None:
        return Cell(mean, found.mean, "one scene")
    small = f"{lost_text(name, found.low)} to {lost_text(name, found.high)}"
    if found.over == "frames":
        small += f", over {found.n} frames"
    return Cell(mean, found.mean, small, strong=lost_told(name, found) != 0)


def _rotation(_: ComparisonReport, row: Row) -> Cell:
    pose = row.geometry.pose if row.geometry else None
    return _cell(pose.rotation.mean_deg if pose and pose.rotation else None, 3)


def _depth(_: ComparisonReport, row: Row) -> Cell:
    depth = row.geometry.depth if row.geometry else None
    return _cell(depth.abs_rel if depth else None, 5)


def _points(_: ComparisonReport, row: Row) -> Cell:
    points = row.geometry.points if row.geometry else None
    return _cell(points.mean_relative if points else None, 5)


_MACHINE = _Measure(
    Column(
        "Machine",
        about="what it was timed on; times of different ones are not compared",
        number=False,
    ),
    lambda _, row: Cell(row.machine or NOT_MEASURED, row.machine),
    lambda row: row.machine is not None,
)
_MEASURES = (
    _Measure(
        Column("On disk", "MB", "all bytes of the artifact or engine; held: in memory, PyTorch"),
        _disk,
        lambda row: row.disk_bytes is not None,
    ),
    _Measure(
        Column("Smaller", "times", "FP32 bytes of the same weights / bytes on disk"),
        _smaller,
        lambda row: row.disk_bytes is not None and row.runtime != "torch",
    ),
    _Measure(
        Column(
            "Latency", "ms", "median of whole calls; below it the fastest and the 90th percentile"
        ),
        _latency,
        lambda row: row.measured is not None,
    ),
    _Measure(
        Column("Faster", "times", "median of PyTorch FP32 / this median: under 1 is slower"),
        _faster,
        lambda row: row.measured is not None,
    ),
    _Measure(
        Column("AUC@30", "%", "relative poses against the truth; more is better"),
        _auc,
        lambda row: row.truth is not None and row.truth.auc_30 is not None,
    ),
    _Measure(
        Column(
            "AUC@30 lost", "points", "against PyTorch FP32 on the same scenes; above 0 is worse"
        ),
        _lost("auc_30"),
        lambda row: row.truth_loss is not None and row.truth_loss.auc_30 is not None,
    ),
    _Measure(
        Column("AbsRel", "of depth", "depth against the truth after one scale per scene"),
        _abs_rel,
        lambda row: row.truth is not None and row.truth.abs_rel is not None,
    ),
    _Measure(
        Column("AbsRel lost", "of depth", "against PyTorch FP32 on the same scenes"),
        _lost("abs_rel"),
        lambda row: row.truth_loss is not None and row.truth_loss.abs_rel is not None,
    ),
    _Measure(
        Column("Rotation", "deg to FP32", "mean over pairs of views, against PyTorch FP32"),
        _rotation,
        lambda row: bool(row.geometry and row.geometry.pose and row.geometry.pose.rotation),
    ),
    _Measure(
        Column("Depth", "to FP32", "AbsRel against PyTorch FP32, not the truth"),
        _depth,
        lambda row: bool(row.geometry and row.geometry.depth),
    ),
    _Measure(
        Column("Points", "to FP32", "mean distance over the scene's size, to PyTorch FP32"),
        _points,
        lambda row: bool(row.truth is None and row.geometry and row.geometry.points),
    ),
)


def grid_table(
    id_: str, label: str, grid: Grid, *, verbatim: Sequence[str] = (), words: Sequence[str] = ()
) -> Table:
    """A table of the texts, with what it is sorted by read back from its own cells.

    verbatim: titles that are names, such as those of scenes; others begin with a capital letter
    words: titles of columns of text, besides the first ones
    """
    numbers = [i >= grid.left and name not in words for i, name in enumerate(grid.header)]
    columns = tuple(
        Column(name if name in verbatim else capital(name), number=number)
        for name, number in zip(grid.header, numbers, strict=True)
    )
    rows = tuple(
        Line(
            tuple(
                Cell(text, _sort_key(text, not number))
                for text, number in zip(cells, numbers, strict=True)
            )
        )
        for cells in grid.rows
    )
    return Table(id_, label, columns, rows)


def _sort_key(text: str, word: bool) -> float | str | None:
    """The number that a cell begins with, be it a ratio ("x 0.7"); None for a dash: sorted last."""
    if word:
        return text
    first = text.removeprefix("x ").split(" ", 1)[0].removesuffix("%")
    try:
        return float(first)
    except ValueError:
        return None if text == NOT_MEASURED else text
