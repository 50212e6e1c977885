"""The plots: as many panels and bars as there are numbers, and every text inside the picture."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_reports import failed_row, made_report, made_row, made_truth
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from vggt_deploy.compare.report import ComparisonReport
from vggt_deploy.report.plots import draw_plots, plots_figure, spread_out

LONG = "onnxruntime/int8_pc_sym+static+w=mse+a=p99.9+apart+smooth=0.5"
SCHEMES = ("fp16", "int8_pc_sym", "int8_pc_sym+dynamic", "int4_g128", "int4_g128+gptq", "mixed")


def with_truth(*labels: str) -> ComparisonReport:
    """Sizes, losses and times that differ from variant to variant."""
    base = [made_truth(50.0 + i) for i in range(5)]
    rows = [made_row("torch/fp32", truth=base, error=0.0)]
    for i, label in enumerate(labels):
        lost = [made_truth(50.0 + j - i - 0.1 * j, abs_rel=0.1 + 0.01 * i) for j in range(5)]
        rows.append(
            made_row(
                label,
                truth=lost,
                reference=base,
                disk_bytes=1_000_000 * (i + 1),
                error=0.002 * (i + 1),
            )
        )
    return made_report(*rows)


def texts_outside(figure: Figure) -> list[str]:
    """Texts that the picture cuts off."""
    figure.draw_without_rendering()
    outside = []
    for text in figure.findobj(Text):
        box = text.get_window_extent()
        if text.get_text() and text.get_visible() and box.width > 0:
            inside = figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
            if not (inside and figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1):
                outside.append(text.get_text())
    return outside


@pytest.mark.parametrize(
    "labels",
    [
        (LONG,),
        (*(f"{r}/{s}" for r in ("onnxruntime", "tensorrt-rtx") for s in SCHEMES), LONG),
    ],
)
def test_no_label_is_cut_off(labels: tuple[str, ...]) -> None:
    report = with_truth(*labels)
    figure = plots_figure(report)
    assert texts_outside(figure) == []
    scatter = [axes for axes in figure.axes if "size of artifacts" in axes.get_title()]
    assert len(scatter) == 2
    assert all(len(axes.texts) == len(labels) for axes in scatter)
    assert all(axes.get_position().width > 0.08 for axes in figure.axes)
    # Twin: a label that the layout does not know of is noticed.
    scatter[0].texts[0].set_text("x" * 400)
    scatter[0].texts[0].set_in_layout(False)
    assert texts_outside(figure) == ["x" * 400]


def test_labels_do_not_overlap() -> None:
    figure = plots_figure(with_truth(*(f"onnxruntime/{s}" for s in SCHEMES), LONG))
    figure.draw_without_rendering()
    axes = next(axes for axes in figure.axes if axes.get_title().startswith("Accuracy against"))
    boxes = sorted((text.get_window_extent() for text in axes.texts), key=lambda box: box.y0)
    assert all(low.y1 <= high.y0 + 1.0 for low, high in pairwise(boxes))


def test_six_panels_and_nine_with_the_truth() -> None:
    assert len(plots_figure(made_report(made_row("torch/fp32"))).axes) == 6
    assert len(plots_figure(with_truth(LONG)).axes) == 9


def test_a_bar_for_each_number_and_its_value_beside_it() -> None:
    report = made_report(
        made_row("torch/fp32", samples=(1234.0, 1234.5)),
        made_row("onnxruntime/int8_pc_sym", samples=(98.7, 98.7)),
        failed_row("torch/int4_g128"),
    )
    latency = plots_figure(report).axes[1]
    assert [bar.get_width() for bar in latency.patches] == [1234.25, 98.7]
    assert [text.get_text() for text in latency.texts] == ["1234", "98.7"]
    assert [tick.get_text() for tick in latency.get_yticklabels()] == ["fp32", "int8_pc_sym"]


def test_noisy_times_are_called_so() -> None:
    row = made_row("torch/fp32")
    assert row.measured is not None
    busy = replace(row, measured=replace(row.measured, others_cpus=1.5))
    assert plots_figure(made_report(row)).axes[1].get_title() == "Latency, 5 calls, 2 threads"
    assert "(noisy: " in plots_figure(made_report(busy)).axes[1].get_title()


def test_what_nobody_measured_is_said() -> None:
    (text,) = plots_figure(made_report(made_row("torch/fp32"))).axes[2].texts
    assert text.get_text() == "not measured"


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=60), st.floats(0.001, 0.3))
def test_spread_out_keeps_the_order_the_gap_and_the_room(values: list[float], gap: float) -> None:
    wanted = sorted(values)
    heights = spread_out(wanted, gap)
    room = min(gap, 1.0 / len(wanted))
    assert all(b - a >= room - 1e-9 for a, b in pairwise(heights))
    assert heights[0] >= -1e-9
    assert heights[-1] <= 1 + 1e-9


def test_labels_stay_where_they_are_if_there_is_room() -> None:
    assert spread_out([0.2, 0.5, 0.9], 0.1) == pytest.approx([0.2, 0.5, 0.9])
    # Two that want the same place share the way.
    assert spread_out([0.5, 0.5], 0.1) == pytest.approx([0.45, 0.55])
    assert spread_out([0.0, 0.0], 0.1) == pytest.approx([0.05, 0.15])
    assert np.ptp(spread_out([1.0] * 100, 0.1)) == pytest.approx(0.99)


def test_the_plots_grow_with_the_number_of_variants(tmp_path: Path) -> None:
    few, many = (
        plots_figure(with_truth(*(["onnxruntime/fp16"] * count))).get_size_inches()
        for count in (2, 30)
    )
    assert many[0] == few[0]
    assert many[1] > 1.3 * few[1]
    report = replace(made_report(made_row("torch/fp32")), folder=tmp_path)
    picture = Image.open(draw_plots(report))
    assert picture.size == (2400, 984)
    assert np.asarray(picture).min() < 50  # something is drawn
