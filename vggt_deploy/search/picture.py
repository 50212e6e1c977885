"""`pareto.png`: what was lost against size, each point measured, and what the prediction said.

Left the output_mse, by which assignments are found, logarithmic; right a loss of geometry with its
95 % interval. Standard schemes are named dots; the found recipes are a line. A thin mark joins each
found recipe with what was predicted for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vggt_deploy.search.choices import MSE
from vggt_deploy.search.records import PICTURE_NAME, Point, SearchResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Of Okabe and Ito: told apart under every common colour blindness.
STANDARD, FOUND, CHOSEN = "#0072B2", "#D55E00", "#009E73"
DPI = 120
_WORDS = {
    "auc3": "AUC@3 lost, points",
    "auc5": "AUC@5 lost, points",
    "auc30": "AUC@30 lost, points",
    "same3": "agreement with FP32's poses lost, AUC@3, points",
    "same5": "agreement with FP32's poses lost, AUC@5, points",
    "pose_deg": "mean pose error gained, degrees",
    "pose_median_deg": "median pose error gained, degrees",
    "abs_rel": "depth AbsRel gained",
    "point_error": "point error gained, of the scene's size",
    MSE: "output_mse: squared relative error of the outputs",
}


def draw(result: SearchResult, folder: Path) -> Path:
    """Write pareto.png into the folder."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16.0, 7.0), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _panel(left, result, MSE)
    if _having(result, MSE, ("standard", "front", "round")):  # there is no log axis of nothing
        left.set_yscale("log")
    _panel(right, result, second_measure(result))
    right.axhline(0.0, color="0.6", linewidth=0.8)
    figure.suptitle(_title(result), fontsize=12)
    path = folder / PICTURE_NAME
    figure.savefig(path, dpi=DPI)
    return path


def second_measure(result: SearchResult) -> str:
    """The geometry that the right panel shows: a budget's, or agreement with FP32's poses."""
    asked = [name for name in result.budgets.max_drop if name != MSE]
    if asked:
        return asked[0]
    # By the truth, a network whose own poses are coarse seems to lose nothing.
    return "same5"


def _title(result: SearchResult) -> str:
    scenes = len(result.scenes)
    against = "the truth" if result.reference == "truth" else "FP32's own outputs"
    return (
        f"{result.model.spec}, {scenes} scene{'s' if scenes > 1 else ''} of {result.height} x "
        f"{result.width} against {against}, activations {result.activations}, floats "
        f"{result.precision}: lower left is better"
    )


def _panel(axes: Axes, result: SearchResult, measure: str) -> None:
    standard = _having(result, measure, ("standard",))
    found = sorted(_having(result, measure, ("front", "round")), key=lambda point: point.bytes)
    axes.set_xlabel("weights as stored, MB")
    axes.set_ylabel(_WORDS[measure])
    axes.grid(visible=True, color="0.92")
    axes.set_axisbelow(True)
    # By loss, so that neighbours in height put their names on different sides of their dots.
    ordered = sorted(standard, key=lambda point: _lost(point, measure))
    for place, point in enumerate(ordered):
        left = place % 2 == 0
        axes.annotate(
            point.name, (_mb(point), _lost(point, measure)), xytext=(-6 if left else 6, 4),
            textcoords="offset points", fontsize=8, color=STANDARD,
            horizontalalignment="right" if left else "left",
        )  # fmt: skip
    axes.margins(x=0.12)
    _points(axes, standard, measure, STANDARD, "o", "standard schemes")
    axes.plot(
        [_mb(point) for point in found], [_lost(point, measure) for point in found],
        color=FOUND, linewidth=1.0,
    )  # fmt: skip
    _points(axes, found, measure, FOUND, "s", "found by the search, measured")
    told = [(p, p.predicted[measure]) for p in found if p.predicted and p.predicted[measure] > 0]
    axes.scatter(
        [_mb(point) for point, _ in told], [value for _, value in told],
        color=FOUND, marker="_", s=60, label="the same, predicted",
    )  # fmt: skip
    index = result.chosen if result.chosen is not None else result.nearest
    if index is not None and measure in (result.points[index].loss or {}):
        word = "recipe.toml" if result.chosen is not None else "nearest.toml"
        point = result.points[index]
        axes.scatter(
            [_mb(point)], [_lost(point, measure)],
            facecolors="none", edgecolors=CHOSEN, s=170, linewidths=2.0, label=word,
        )  # fmt: skip
    if result.budgets.max_bytes is not None:
        axes.axvline(result.budgets.max_bytes / 1e6, color=CHOSEN, linestyle="--", linewidth=1.0)
    if measure in result.budgets.max_drop:
        axes.axhline(result.budgets.max_drop[measure], color=CHOSEN, linestyle="--", linewidth=1.0)
    axes.legend(fontsize=8)


def _points(
    axes: Axes, points: Sequence[Point], measure: str, colour: str, marker: str, label: str
) -> None:
    lost = [_lost(point, measure) for point in points]
    # The output_mse spans decades: its intervals would be longer than the axis.
    with_interval = measure != MSE and all(measure in point.interval for point in points)
    errors = None
    if with_interval and points:
        ends = [point.interval[measure] for point in points]
        errors = [
            [max(0.0, value - low) for value, (low, _) in zip(lost, ends, strict=True)],
            [max(0.0, high - value) for value, (_, high) in zip(lost, ends, strict=True)],
        ]
    axes.errorbar(
        [_mb(point) for point in points], lost, yerr=errors, fmt=marker, color=colour,
        markersize=5, elinewidth=0.7, capsize=2, label=label,
    )  # fmt: skip


def _having(result: SearchResult, measure: str, kinds: Sequence[str]) -> list[Point]:
    """The points that were measured; FP32, which loses nothing, has no place on a log axis."""
    return [
        point
        for point in result.points
        if point.kind in kinds
        and point.loss is not None
        and measure in point.loss
        and not (measure == MSE and point.loss[measure] <= 0)
    ]


def _mb(point: Point) -> float:
    return point.bytes / 1e6


def _lost(point: Point, measure: str) -> float:
    assert point.loss is not None  # `_having` has seen to it
    return point.loss[measure]
