"""sensitivity.png: a heat map, units down, measures across, one panel for each format.

A column's colour goes from white (nothing lost, or gained) to dark (the largest loss of that
measure in any panel), so columns are compared with themselves and panels with each other; the
numbers stand in the cells while there is room. Grey: not measured, or not a format for that unit.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vggt_deploy.sensitivity.table import MEASURES, Entry, SensitivityTable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PICTURE_NAME = "sensitivity.png"
MOST_NUMBERED = 60
MOST_NAMED = 160
INCH_PER_ROW = 0.26
INCH_PER_ROW_WITHOUT_NUMBERS = 0.12
INCH_PER_COLUMN = 0.95
GREY = "#c8c8c8"
TITLES = {
    "local_error": "local\nerror",
    "auc3": "AUC@3\nlost",
    "auc5": "AUC@5\nlost",
    "auc30": "AUC@30\nlost",
    "pose_deg": "pose\ndeg",
    "pose_median_deg": "pose\nmedian deg",
    "abs_rel": "depth\nAbsRel",
    "point_error": "point\nerror",
    "same3": "from FP32\nAUC@3",
    "same5": "from FP32\nAUC@5",
    "output_mse": "output\nmse",
}

Grid = NDArray[np.float64]


def draw(table: SensitivityTable, folder: Path) -> Path:
    """Write the picture into the folder."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = ("local_error", *MEASURES[table.reference])
    units = list(dict.fromkeys(entry.unit for entry in table.entries))
    grids = {form: _grid(table, form, units, columns) for form in table.formats}
    numbered = len(units) <= MOST_NUMBERED
    row = INCH_PER_ROW if numbered else INCH_PER_ROW_WITHOUT_NUMBERS
    names = max(len(unit) for unit in units) * 0.075
    figure = Figure(
        figsize=(
            names + 1.5 + INCH_PER_COLUMN * len(columns) * len(grids),
            2.4 + row * len(units),
        ),
        layout="constrained",
    )
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(grids), sharey=True, squeeze=False)[0]
    most = _largest(list(grids.values()))
    shade: Any = None
    for axis, (form, grid) in zip(axes, grids.items(), strict=True):
        shade = _panel(axis, grid, most, columns, units, numbered=numbered)
        axis.set_title(form, fontsize=11)
    bar = figure.colorbar(shade, ax=axes.tolist(), shrink=0.6, pad=0.01, ticks=[0.0, 0.5, 1.0])
    bar.set_label("part of the column's largest")
    figure.suptitle(_title(table), fontsize=11)
    path = folder / PICTURE_NAME
    partial = folder / f".{PICTURE_NAME}"
    figure.savefig(partial, dpi=110, format="png")
    partial.replace(path)
    return path


def _title(table: SensitivityTable) -> str:
    reference = "against the truth" if table.reference == "truth" else "against FP32's outputs"
    count = len(table.scenes)
    return (
        f"{table.model.config}: one {table.by} at a time in integers, the rest FP32, "
        f"{table.activations} activations\nincrease over FP32 {reference}, "
        f"mean over {count} scene{'' if count == 1 else 's'} of "
        f"{table.height} x {table.width}; grey: not measured, or no such format"
    )


def _grid(table: SensitivityTable, form: str, units: list[str], columns: tuple[str, ...]) -> Grid:
    """[units, columns]; NaN where nothing was measured."""
    grid = np.full((len(units), len(columns)), np.nan)
    for entry in table.entries:
        if entry.format == form:
            grid[units.index(entry.unit)] = [_value(entry, name) for name in columns]
    return grid


def _value(entry: Entry, name: str) -> float:
    value = entry.local_error if name == "local_error" else (entry.loss or {}).get(name)
    return math.nan if value is None else value


def _largest(grids: list[Grid]) -> Grid:
    """[columns]: the largest loss of each measure; 1 where nothing is lost at all."""
    stacked = np.concatenate(grids)
    most = np.max(np.where(np.isnan(stacked), 0.0, stacked), axis=0)
    return np.where(most > 0, most, 1.0)


def _panel(
    axis: Axes,
    grid: Grid,
    most: Grid,
    columns: tuple[str, ...],
    units: list[str],
    *,
    numbered: bool,
) -> Any:
    from matplotlib import colormaps

    colours = colormaps["OrRd"].with_extremes(bad=GREY)
    shares = np.clip(grid / most, 0.0, 1.0)
    shade = axis.imshow(
        np.ma.masked_invalid(shares), aspect="auto", cmap=colours, vmin=0.0, vmax=1.0
    )
    axis.set_xticks(range(len(columns)), [TITLES[name] for name in columns], fontsize=7)
    axis.xaxis.tick_top()
    if len(units) <= MOST_NAMED:
        axis.set_yticks(range(len(units)), units, fontsize=7 if numbered else 4)
    if numbered:
        for (row, column), value in np.ndenumerate(grid):
            if not np.isnan(value):
                axis.text(
                    column,
                    row,
                    f"{value:.2g}",
                    ha="center",
                    va="center",
                    fontsize=6,
                    color="white" if shares[row, column] > 0.6 else "black",
                )
    return shade
