"""The experiment report: whole, of measured numbers, each sentence only where it is true."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from made_experiments import FP32, report_of, row, truths
from made_reports import failed_row, made_report, made_row, made_truth
from markdown_it import MarkdownIt
from markdown_it.token import Token

from vggt_deploy.compare.report import EXPERIMENT_NAME, ComparisonReport
from vggt_deploy.compare.state import Folder
from vggt_deploy.report.experiment import escaped, experiment_text, write_experiment
from vggt_deploy.report.languages import ENGLISH
from vggt_deploy.report.truth_sections import SCENES_A_TABLE, loss_grids, scene_grids


def text_of(report: ComparisonReport, folder: Path = Path("nowhere"), language: Any = "en") -> str:
    return experiment_text(report, Folder(folder), language)


FULL = report_of(
    FP32,
    row("onnxruntime/int8_pc_sym"),
    row("onnxruntime/int4_g128", mb=1.0, auc_30=(50.0, 61.0, 72.0), error=0.3),
    failed_row("torch/mixed"),
    failed_row("tensorrt/fp16", "not run", "no CUDA device"),
)


def test_the_parts_in_their_order() -> None:
    titles = [line for line in text_of(FULL).splitlines() if line.startswith("#")]
    assert titles[0] == "# Experiment report: vggt-nano"
    parts = [title.split()[1:] for title in titles if title.startswith("## ")]
    names = ("Set-up", "Environment", "Results", "Analysis", "Conclusion")
    assert parts == [[str(i), name] for i, name in enumerate(names, 1)]
    chinese = [line for line in text_of(FULL, language="zh").splitlines() if line.startswith("#")]
    assert len(chinese) == len(titles)
    assert chinese[1:2] == ["## 1 实验设置"]


def parsed(text: str) -> list[Token]:
    """As GitHub reads it, HTML and all."""
    tokens = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(text)
    return [one for token in tokens for one in (token, *(token.children or ()))]


def test_it_is_markdown_with_tables_and_nothing_odd() -> None:
    tokens = parsed(text_of(FULL))
    kinds = {token.type for token in tokens}
    assert kinds.isdisjoint({"html_block", "html_inline", "link_open", "code_block", "s_open"})
    tables = sum(token.type == "table_open" for token in tokens)
    assert tables == len(re.findall(r"^\| :-", text_of(FULL), re.MULTILINE)) >= 14
    headings = [token.tag for token in tokens if token.type == "heading_open"]
    assert headings.count("h1") == 1
    assert headings.count("h2") == 5


def test_numbers_are_those_of_the_report() -> None:
    lines = text_of(FULL).splitlines()
    measured = FULL.rows[1].measured
    assert measured is not None
    costs = next(
        line for line in lines if line.startswith("| onnxruntime/int8_pc_sym | 2.00 | 4 |")
    )
    assert f"| {measured.latency.median_ms:.1f} | {measured.latency.p90_ms:.1f} |" in costs
    poses = next(line for line in lines if line.startswith("| onnxruntime/int4_g128 | 3 | 61.00 |"))
    assert poses.count("|") == 14
    truth = FULL.rows[2].truth
    assert truth is not None
    assert truth.accuracy_m is not None
    assert any(f"| {truth.accuracy_m:.4f} |" in line for line in lines)


def test_every_table_by_the_truth_names_its_protocol() -> None:
    protocol = FULL.protocol
    text = text_of(FULL)
    for own in (protocol.poses, protocol.depth, protocol.points):
        assert re.search(rf"^protocol: {protocol.frames};.*{own}$", text, re.MULTILINE)
    assert text.count(protocol.masks) == 3  # set-up, depth, points


def test_scenes_stand_each_and_with_their_mean() -> None:
    (name, grids), *_ = scene_grids(FULL, ENGLISH)
    assert name == "AUC@30"
    (grid,) = grids
    assert grid.header == ("variant", "scene_0", "scene_1", "scene_2", "mean")
    assert grid.rows[2] == ("onnxruntime/int4_g128", "50.00", "61.00", "72.00", "61.00")
    assert len(grid.rows) == 3  # rows without numbers have none here
    single = made_report(made_row("torch/fp32", truth=truths(60.0)))
    assert scene_grids(single, ENGLISH) == []


def test_many_scenes_make_several_tables() -> None:
    count = 2 * SCENES_A_TABLE + 1
    aucs = [float(i) for i in range(count)]
    (_, grids), *_ = scene_grids(made_report(made_row("torch/fp32", truth=truths(*aucs))), ENGLISH)
    shown = [cell for grid in grids for cell in grid.rows[0][1:]]
    assert shown == [*(f"{auc:.2f}" for auc in aucs), f"{sum(aucs) / count:.2f}"]
    assert [grid.header[-1] == "mean" for grid in grids] == [False, False, True]


def test_losses_have_their_intervals() -> None:
    poses, *_ = loss_grids(FULL, ENGLISH)
    assert poses.header[:3] == ("variant", "AUC@30", "95 %")
    assert [cells[0] for cells in poses.rows] == [
        "onnxruntime/int8_pc_sym",
        "onnxruntime/int4_g128",
    ]
    assert poses.rows[0][1:3] == ("0.00", "0.00 to 0.00")
    assert poses.rows[1][1:3] == ("+9.00", "+8.00 to +10.00")


def test_pictures_that_are_there_are_shown(tmp_path: Path) -> None:
    assert "Pictures" not in text_of(FULL, tmp_path)
    (tmp_path / "comparison_plots.png").touch()
    (tmp_path / "depth").mkdir()
    (tmp_path / "depth" / "000_a (1).png").touch()
    report = replace(FULL, folder=tmp_path)
    path = write_experiment(report, Folder(tmp_path), "zh")
    assert path == tmp_path / EXPERIMENT_NAME
    text = path.read_text(encoding="utf-8")
    assert "](comparison_plots.png)" in text
    assert "](depth/000_a%20%281%29.png)" in text


def test_what_was_not_measured_is_not_there() -> None:
    blind = report_of(made_row("torch/fp32"), made_row("onnxruntime/int8_pc_sym"))
    text = text_of(blind)
    assert "truth\n" not in text.replace("No truth", "")
    assert "No truth is known here" in text
    assert "AUC@" not in text
    assert "No truth is known here" not in text_of(FULL)


def test_hostile_names_stay_text() -> None:
    """A scene may be called whatever a folder may, and an error may say anything."""
    name = "<script>|`x`[a](b)*c*&lt;\n# d ~~e~~"
    hostile = made_row("torch/fp32", truth=[made_truth(60.0), made_truth(70.0)])
    scenes = tuple(replace(scene, name=name) for scene in hostile.scenes)
    rows = (replace(hostile, scenes=scenes), failed_row("torch/mixed", message=name))
    text = text_of(made_report(*rows, notes=(name,), recommendations=()))
    tokens = parsed(text)
    shown = [token.content for token in tokens if token.type == "inline"]
    assert any(token.content == name.replace("\n", " ") for token in parsed(escaped(name)))
    assert len(shown) > 50
    kinds = {token.type for token in tokens}
    harmful = {"html_block", "html_inline", "link_open", "em_open", "s_open", "code_inline"}
    assert kinds.isdisjoint(harmful)
    assert harmful & {token.type for token in parsed(name)}  # unescaped it would be
    assert escaped("int8_pc_sym") == "int8_pc_sym"
