"""`comparison_plots.png`: size, latency, compression, depth MAE, depth PSNR, accuracy against size.

Five panels of horizontal bars, one bar for each variant that has the number, and one scatter plot.
Where the truth is known a third row follows: AUC@30 and AbsRel by the truth, and what was lost of
AUC@30 (of AbsRel, where no pose was asked for) against size, with its interval.
The height grows with the number of variants, so that forty labels stay readable. Colour is the
runtime; a hatched or dotted bar has 8-bit activations. Values stand at the bars: nothing has to be
read off an axis.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vggt_deploy.compare.contention import NOISY_SHARE
from vggt_deploy.compare.paired import Difference
from vggt_deploy.compare.report import PLOTS_NAME, ComparisonReport, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours of Okabe and Ito: told apart under every common colour blindness.
COLOURS = {
    "torch": "#0072B2",
    "onnxruntime": "#D55E00",
    "tensorrt": "#009E73",
    "tensorrt-rtx": "#CC79A7",
}
NAMES = {
    "torch": "PyTorch",
    "onnxruntime": "ONNX Runtime",
    "tensorrt": "TensorRT (GPU)",
    "tensorrt-rtx": "TensorRT-RTX (GPU)",
}
HATCHES = {"dynamic": "////", "static": "...."}
MARKERS = {
    "float": ("o", "dot"),
    "dynamic": ("D", "hatched, or diamond"),
    "static": ("s", "dotted, or square"),
}
LABEL_INCH = 0.16  # height of a label beside a scatter plot
INCH_PER_BAR = 0.21
FEWEST_BARS = 8  # a panel with one bar keeps room for this many, or the bar fills it
PANEL_FRAME = 0.9  # inches of a panel that title, ticks and axis labels take of its height
DPI = 120
# Of the lines from labels to their points.
_LEADER: dict[str, object] = {
    "arrowstyle": "-",
    "alpha": 0.6,
    "linewidth": 0.7,
    "shrinkB": 3,
    "relpos": (0, 0.5),
}

Value = Callable[[Row], float | None]


def draw_plots(report: ComparisonReport) -> Path:
    """Write comparison_plots.png into the report's folder."""
    path = report.folder / PLOTS_NAME
    plots_figure(report).savefig(path, dpi=DPI)
    return path


def plots_figure(report: ComparisonReport) -> Figure:
    """The figure, not drawn yet."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    # An engine that was built but not run has its size.
    rows = [row for row in report.rows if row.measured is not None or row.build is not None]
    panel = max(3.6, 1.1 + INCH_PER_BAR * len(rows))
    grid = 2 if report.reference.truth is None else 3
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08)
    figure = Figure(figsize=(20.0, grid * panel + 1.0), layout=layout)
    FigureCanvasAgg(figure)
    axes = figure.subplots(grid, 3)
    lines = [(_median(row), row.runtime) for row in rows if row.scheme == "fp32"]
    _bars(axes[0, 0], rows, _disk_mb, "on disk, MB", "Size of checkpoint, artifacts and engines")
    _bars(axes[0, 1], rows, _median, "median, ms", f"Latency, {_calls(report)}", lines)
    _bars(
        axes[0, 2], rows, lambda row: report.ratios(row).compression,
        "FP32 bytes / bytes on disk", "Compression",
    )  # fmt: skip
    _bars(axes[1, 0], rows, _depth_mae, "MAE", "Depth: mean absolute error against PyTorch FP32")
    _bars(
        axes[1, 1],
        rows,
        _depth_psnr,
        "PSNR, dB",
        "Depth: PSNR against PyTorch FP32 (more is better)",
    )
    _scatter(
        axes[1, 2],
        _points(rows, _abs_rel),
        "Accuracy against size of artifacts (lower left is better)",
        "depth AbsRel against PyTorch FP32",
        panel,
    )
    if grid == 3:
        _truth_panels(axes[2], rows, panel)
    _legend(figure, rows)
    figure.suptitle(_title(report), fontsize=13)
    return figure


def _calls(report: ComparisonReport) -> str:
    threads = report.question["threads"]
    limit = NOISY_SHARE * report.environment.usable_cpus
    noisy = any(row.measured and (row.measured.others_cpus or 0.0) > limit for row in report.rows)
    return (
        f"{report.question['repeats']} calls, {threads} thread{'s' if threads > 1 else ''}"
        f"{' (noisy: other processes were busy)' if noisy else ''}"
    )


def _title(report: ComparisonReport) -> str:
    images = report.question["images"]
    scenes = f" of each of {len(report.scenes)} scenes" if len(report.scenes) > 1 else ""
    title = (
        f"{report.question['model']['spec']}, {images['frames']} pictures{scenes}, "
        f"{images['height']} x {images['width']}, {report.environment.cpu}"
    )
    return f"{title}\nrandom weights: accuracy is no evidence" if report.random_weights else title


def _median(row: Row) -> float | None:
    return row.measured.latency.median_ms if row.measured else None


def _disk_mb(row: Row) -> float | None:
    return row.disk_bytes / 1e6 if row.disk_bytes is not None else None


def _depth_mae(row: Row) -> float | None:
    return row.accuracy["depth"].mae if "depth" in row.accuracy else None


def _depth_psnr(row: Row) -> float | None:
    return row.accuracy["depth"].psnr_db if "depth" in row.accuracy else None


def _abs_rel(row: Row) -> float | None:
    return row.geometry.depth.abs_rel if row.geometry and row.geometry.depth else None


def _true_auc(row: Row) -> float | None:
    return row.truth.auc_30 if row.truth else None


def _true_abs_rel(row: Row) -> float | None:
    return row.truth.abs_rel if row.truth else None


def _lost_auc(row: Row) -> Difference | None:
    return row.truth_loss.auc_30 if row.truth_loss else None


def _lost_abs_rel(row: Row) -> Difference | None:
    return row.truth_loss.abs_rel if row.truth_loss else None


def _truth_panels(axes: Sequence[Axes], rows: Sequence[Row], panel: float) -> None:
    """The third row; dashed lines are FP32, as in the panel of latencies."""
    fp32 = [row for row in rows if row.scheme == "fp32"]
    scenes = max((row.truth.scenes for row in rows if row.truth), default=0)
    over = f"mean of {scenes} scenes" if scenes > 1 else "one scene"
    _bars(
        axes[0], rows, _true_auc, "AUC@30, %", f"Poses by the truth, {over} (more is better)",
        [(_true_auc(row), row.runtime) for row in fp32],
    )  # fmt: skip
    _bars(
        axes[1], rows, _true_abs_rel, "AbsRel", f"Depth by the truth, {over} (less is better)",
        [(_true_abs_rel(row), row.runtime) for row in fp32],
    )  # fmt: skip
    poses = any(_lost_auc(row) for row in rows)
    lost, what = (
        (_lost_auc, "AUC@30 lost, points of percent") if poses else (_lost_abs_rel, "AbsRel lost")
    )
    frames = any(each.over == "frames" for row in rows if (each := lost(row)))
    bars = "95 %,\nover the frames of one scene" if frames else "95 %"
    _scatter(
        axes[2],
        _points(rows, lambda row: loss.mean if (loss := lost(row)) else None),
        "Lost by the truth against size of artifacts (lower left is better)",
        f"{what}\n(against PyTorch FP32; bars: {bars})",
        panel,
        lost,
    )


def _plot_label(row: Row) -> str:
    """The scheme alone: colour and legend say the runtime."""
    return row.label.partition("/")[2]


def _bars(
    axes: Axes,
    rows: Sequence[Row],
    value: Value,
    unit: str,
    title: str,
    lines: Sequence[tuple[float | None, str]] = (),
) -> None:
    """One bar per row that has the value, top to bottom in the order of the rows."""
    axes.set_title(title, fontsize=11)
    found = [(row, number) for row in rows if (number := value(row)) is not None]
    if not found:
        _nothing(axes)
        return
    numbers = [number for _, number in found]
    bars = axes.barh(
        range(len(found)),
        numbers,
        color=[COLOURS[row.runtime] for row, _ in found],
        height=0.72,
    )
    for bar, (row, _) in zip(bars, found, strict=True):
        if row.activations in HATCHES:
            bar.set_hatch(HATCHES[row.activations])
            bar.set_edgecolor("white")
    # White behind the numbers: the dashed lines of FP32 cross them.
    behind = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
    texts = [f"{number:.3g}" if number < 1000.0 else f"{number:.0f}" for number in numbers]
    axes.bar_label(bars, texts, padding=3, fontsize=8, bbox=behind)
    axes.set_yticks(range(len(found)), [_plot_label(row) for row, _ in found], fontsize=8)
    axes.set_ylim(max(len(found), FEWEST_BARS) - 0.4, -0.6)
    axes.set_xlim(0.0, (max(numbers) or 1.0) * 1.2)
    axes.set_xlabel(unit, fontsize=9)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    for position, runtime in lines:
        if position is not None:
            axes.axvline(position, color=COLOURS[runtime], linestyle="--", linewidth=1.2)


def _legend(figure: Figure, rows: Sequence[Row]) -> None:
    """One legend for all panels, below them."""
    from matplotlib.artist import Artist
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    present = [name for name in COLOURS if any(row.runtime == name for row in rows)]
    handles: list[Artist] = [Patch(facecolor=COLOURS[name], label=NAMES[name]) for name in present]
    handles += [
        Line2D(
            [], [], color=COLOURS[row.runtime], linestyle="--", label=f"{NAMES[row.runtime]} FP32"
        )
        for row in rows
        if row.scheme == "fp32" and row.measured is not None
    ]
    for activations, hatch in HATCHES.items():
        if any(row.activations == activations for row in rows):
            text = f"{MARKERS[activations][1]}: {activations} activations"
            handles.append(Patch(facecolor="grey", edgecolor="white", hatch=hatch, label=text))
    figure.legend(handles=handles, fontsize=10, loc="outside lower center", ncols=len(handles))


def _points(rows: Sequence[Row], value: Value) -> list[tuple[float, float, Row]]:
    """MB on disk, value and row of the artifacts and engines that have both, best first."""
    points = [
        (size, found, row)
        for row in rows
        if row.runtime != "torch"
        and (size := _disk_mb(row)) is not None
        and (found := value(row)) is not None
    ]
    return sorted(points, key=lambda point: (point[1], point[0]))


def _scatter(
    axes: Axes,
    points: Sequence[tuple[float, float, Row]],
    title: str,
    unit: str,
    panel: float,
    spread: Callable[[Row], Difference | None] = lambda row: None,
) -> None:
    """A value over bytes on disk, with its interval; the labels in a column beside the axes, whose
    height is `panel` inches with its frame.
    """
    axes.set_title(title, fontsize=11)
    if not points:
        _nothing(axes)
        return
    ends = [0.0]
    for size, value, row in points:
        marker, colour = MARKERS[row.activations][0], COLOURS[row.runtime]
        axes.plot(size, value, marker, color=colour, markersize=6, alpha=0.8)
        ends.append(value)
        found = spread(row)
        if found is not None and found.low is not None and found.high is not None:
            axes.plot([size, size], [found.low, found.high], color=colour, linewidth=1, alpha=0.6)
            ends += [found.low, found.high]
    low, high = min(ends), max(ends)
    room = (high - low) or 1.0
    low, high = low - 0.04 * room, high + 0.06 * room
    axes.set_xlim(0.0, max(size for size, _, _ in points) / 0.95)
    axes.set_ylim(low, high)
    axes.set_xlabel("artifact on disk, MB", fontsize=9)
    axes.set_ylabel(unit, fontsize=9)
    axes.grid(alpha=0.3)
    wanted = [(value - low) / (high - low) for _, value, _ in points]
    heights = spread_out(wanted, LABEL_INCH / (panel - PANEL_FRAME))
    for (size, value, row), height in zip(points, heights, strict=True):
        axes.annotate(
            f"{_plot_label(row)}  {value:.2g}",
            xy=(size, value),
            xytext=(1.06, height),
            textcoords="axes fraction",
            fontsize=8,
            va="center",
            arrowprops={"color": COLOURS[row.runtime], **_LEADER},
            annotation_clip=False,
        )


def spread_out(wanted: Sequence[float], gap: float) -> list[float]:
    """Heights from 0 to 1 in the same order, at least `gap` apart, as near as can be to `wanted`.

    wanted: ascending. The least squares of that are an isotonic regression of wanted - i gap. Where
    there is no room for such a gap it is what there is room for.
    """
    from scipy.optimize import isotonic_regression

    gap = min(gap, 1.0 / len(wanted))
    steps = gap * np.arange(len(wanted))
    near = np.asarray(isotonic_regression(np.asarray(wanted) - steps).x)
    return [float(x) for x in np.clip(near, 0.5 * gap, 1.0 - 0.5 * gap - steps[-1]) + steps]


def _nothing(axes: Axes) -> None:
    axes.text(0.5, 0.5, "not measured", ha="center", va="center", transform=axes.transAxes)
    axes.set_xticks([])
    axes.set_yticks([])
