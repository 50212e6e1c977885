"""`accuracy.png`: what each row lost, with its interval, one panel for each measure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.accuracy_report import BOTH, COLUMNS, Finding, Report
from bench.accuracy_rows import FP32

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colours of Okabe and Ito: told apart under every common colour blindness.
COLOURS = {"ours": "#0072B2", "prepared": "#009E73", "modelopt": "#D55E00"}
MARKERS = {"ours": "o", "prepared": "^", "modelopt": "s"}
PANELS = ("output_error", "auc30", "abs_rel", "point_error")
DPI = 120
_INCH_PER_ROW = 0.24


def draw(report: Report, title: str, path: Path) -> bool:
    """Write the picture; False, and no picture, where no row but FP32 was measured."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    measured = [one for one in report.findings if one.row.label != FP32 and one.scenes(BOTH)]
    if not measured:
        return False
    height = 2.2 + _INCH_PER_ROW * len(measured)
    figure = Figure(figsize=(18.0, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(PANELS), sharey=True)
    titles = {key: name for key, name, _ in COLUMNS}
    for panel, measure in zip(axes, PANELS, strict=True):
        _panel(panel, report, measured, measure, titles[measure])
    axes[0].set_yticks(range(len(measured)), [one.row.label for one in measured], fontsize=8)
    axes[0].set_ylim(len(measured) - 0.4, -0.6)
    if all(report.numbers[one.row.label, BOTH]["output_error"].lost > 0 for one in measured):
        axes[0].set_xscale("log")  # from 8 bit to 4 bit it grows by a factor, not by a sum
    for label, colour in COLOURS.items():
        if any(one.row.step == label for one in measured):
            axes[0].plot([], [], MARKERS[label], color=colour, label=_NAMES[label])
    figure.legend(loc="outside lower center", ncols=len(COLOURS), fontsize=10)
    figure.suptitle(title, fontsize=12)
    figure.savefig(path, dpi=DPI)
    return True


_NAMES = {
    "ours": "vggt-deploy",
    "prepared": "vggt-deploy, trained",
    "modelopt": "NVIDIA ModelOpt",
}


def _panel(
    axes: Axes, report: Report, measured: Sequence[Finding], measure: str, title: str
) -> None:
    axes.set_title(title, fontsize=11)
    for y, finding in enumerate(measured):
        number = report.numbers[finding.row.label, BOTH].get(measure)
        if number is None:
            continue
        colour, marker = COLOURS[finding.row.step], MARKERS[finding.row.step]
        axes.plot(number.lost, y, marker, color=colour, markersize=5)
        if number.interval is not None:
            axes.plot(number.interval, (y, y), color=colour, linewidth=1.4, alpha=0.7)
    _bands(axes, measured)
    if measure != "output_error":
        axes.axvline(0.0, color="0.4", linewidth=0.8, linestyle="--")
    if measure != "output_error":  # that one may become logarithmic
        axes.locator_params(axis="x", nbins=5)
    axes.set_xlabel("against FP32 on the same scenes; bars: 95 %", fontsize=8)
    axes.grid(axis="x", alpha=0.3)


def _bands(axes: Axes, measured: Sequence[Finding]) -> None:
    """Rows of the same bits on the same ground."""
    order = list(dict.fromkeys(one.row.bits for one in measured))
    for y, finding in enumerate(measured):
        if order.index(finding.row.bits) % 2:
            axes.axhspan(y - 0.5, y + 0.5, color="0.94", linewidth=0, zorder=0)
