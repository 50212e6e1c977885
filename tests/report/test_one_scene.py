"""One scene with truth: its intervals are over its frames, every text says so, nothing judges more.

The twin has the same losses over as many scenes.
"""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_reports import made_report, made_row, made_truth

from vggt_deploy.compare.baseline import changes
from vggt_deploy.compare.gate import check_gate
from vggt_deploy.compare.gates import Gates, Limits, Protocol
from vggt_deploy.compare.loss import ENOUGH_SCENES, loss
from vggt_deploy.compare.paired import Difference, TruthLoss
from vggt_deploy.compare.recommend import recommend
from vggt_deploy.compare.report import ComparisonReport, Row
from vggt_deploy.compare.state import Folder
from vggt_deploy.compare.truth import TruthMetrics
from vggt_deploy.report.csv_table import csv_text
from vggt_deploy.report.experiment import experiment_text
from vggt_deploy.report.experiment_analysis import truth_findings
from vggt_deploy.report.languages import ENGLISH, speaker
from vggt_deploy.report.languages.speaker import ORIGINAL
from vggt_deploy.report.markdown import markdown_text
from vggt_deploy.report.page_tables import lost_cell
from vggt_deploy.report.question_sections import scene_notes
from vggt_deploy.report.summary import summary_text
from vggt_deploy.report.truth_sections import loss_grids

FRAMES = 6
LABEL = "onnxruntime/int8_pc_sym"
NOTE = (
    f"Where the truth is known of one scene alone, the 95 % intervals of what was lost are over "
    f"its {FRAMES} frames: they say what other frames of this scene might give, nothing of other "
    "scenes, and with few frames they are too narrow."
)


def framed(worse_by: float) -> TruthMetrics:
    """A scene with numbers for each of its frames; errors of 0 to 25 degrees, and so much more."""
    truth = made_truth(60.0)
    errors = np.linspace(0.0, 25.0, FRAMES * (FRAMES - 1) // 2) + worse_by
    abs_rel = np.linspace(0.1, 0.2, FRAMES) + worse_by / 100.0
    assert truth.pose is not None
    assert truth.depth is not None
    return replace(
        truth,
        pose=replace(
            truth.pose,
            auc_30=float(np.mean(np.clip(1.0 - errors / 30.0, 0.0, 1.0)) * 100.0),
            errors_deg=tuple(errors.tolist()),
        ),
        depth=replace(
            truth.depth,
            abs_rel=float(abs_rel.mean()),
            frame_pixels=(10,) * FRAMES,
            frame_abs_rel=tuple(abs_rel.tolist()),
            frame_abs_rel_affine=tuple(abs_rel.tolist()),
        ),
    )


def report_of(scenes: int) -> ComparisonReport:
    reference = [framed(0.0)] * scenes
    rows = (
        made_row("torch/fp32", truth=reference, error=0.0),
        made_row(LABEL, truth=[framed(2.0)] * scenes, reference=reference, samples=(40.0,) * 5),
    )
    return made_report(*rows, recommendations=recommend(rows, random_weights=False))


ONE, TWO = report_of(1), report_of(2)


def lost(report: ComparisonReport, name: str) -> Difference:
    found = getattr(report.rows[1].truth_loss, name)
    assert isinstance(found, Difference)
    return found


def test_what_has_an_interval_of_one_scene() -> None:
    assert (lost(ONE, "auc_30").n, lost(ONE, "auc_30").over) == (FRAMES, "frames")
    assert lost(ONE, "auc_30").low is not None
    assert lost(ONE, "abs_rel").low == pytest.approx(0.02)
    assert lost(ONE, "point_error").low is None
    assert lost(TWO, "auc_30").over == "scenes"


# --- every text says over what


def test_the_notes_say_so() -> None:
    assert scene_notes(ONE) == [NOTE]
    (twin,) = scene_notes(TWO)
    assert twin.startswith("The truth is known of 2 scenes")
    few = made_report(
        made_row("torch/fp32", truth=[made_truth(60.0)]),
        made_row(LABEL, truth=[made_truth(50.0)], reference=[made_truth(60.0)]),
    )
    (none,) = scene_notes(few)
    assert none.startswith("The truth is known of one scene: what was lost there has no interval")


def test_a_number_of_one_scene_among_several_is_noted_as_well() -> None:
    """Two scenes with cameras, one with depth: one interval is over frames, the other over both."""
    blind = replace(framed(0.0), depth=None, points=None)
    rows = (
        made_row("torch/fp32", truth=[framed(0.0), blind]),
        made_row(LABEL, truth=[framed(2.0), blind], reference=[framed(0.0), blind]),
    )
    assert rows[1].truth_loss is not None
    assert rows[1].truth_loss.auc_30 is not None
    assert rows[1].truth_loss.abs_rel is not None
    assert (rows[1].truth_loss.auc_30.over, rows[1].truth_loss.abs_rel.over) == ("scenes", "frames")
    first, second = scene_notes(made_report(*rows))
    assert first == NOTE
    assert second.startswith("The truth is known of 2 scenes")


def test_the_tables_say_so() -> None:
    poses, depth, points = loss_grids(ONE, ENGLISH)
    assert poses.rows[0][2].endswith(f", {FRAMES} frames")
    assert depth.rows[0][2].endswith(f", {FRAMES} frames")
    assert points.rows[0][2] == "-"
    assert not any("frames" in cell for grid in loss_grids(TWO, ENGLISH) for cell in grid.rows[0])
    assert lost_cell(lost(ONE, "auc_30"), "auc_30").small.endswith(f", over {FRAMES} frames")
    assert "frames" not in lost_cell(lost(TWO, "auc_30"), "auc_30").small


def test_the_analysis_says_so() -> None:
    poses, *_, points, _ = truth_findings(ONE, ENGLISH)
    assert poses.startswith(
        f"AUC@30: Intervals over the {FRAMES} frames of one scene: worse than PyTorch FP32, "
        f"interval above 0: {LABEL}"
    )
    assert "of one scene this has no interval" in points
    assert not any("by chance alone" in text for text in truth_findings(ONE, ENGLISH))
    two = truth_findings(TWO, ENGLISH)
    assert not any("frames" in text for text in two)
    assert any("by chance alone" in text for text in two)


def flat(text: str) -> str:
    return " ".join(text.replace(">", " ").split())


@pytest.mark.parametrize("text", [summary_text, markdown_text])
def test_whole_texts_say_so(text: Any) -> None:
    assert NOTE in flat(text(ONE))
    assert NOTE not in flat(text(TWO))


def test_the_experiment_report_says_so(tmp_path: Path) -> None:
    assert NOTE in flat(experiment_text(ONE, Folder(tmp_path)))
    assert NOTE not in flat(experiment_text(TWO, Folder(tmp_path)))


def test_the_chinese_says_so() -> None:
    (note,) = scene_notes(ONE, speaker("zh"))
    assert f"该场景的 {FRAMES} 帧重采样" in note
    text = summary_text(ONE, "zh")
    assert f"，{FRAMES} 帧" in text
    assert ORIGINAL not in "".join(truth_findings(ONE, speaker("zh")))


def test_the_csv_tells_scenes_from_frames() -> None:
    one, two = (list(csv.DictReader(io.StringIO(csv_text(report))))[1] for report in (ONE, TWO))
    assert one["lost_auc_30_percent_scenes"] == "1"
    assert one["lost_auc_30_percent_frames"] == str(FRAMES)
    assert one["lost_point_error_frames"] == ""
    assert (two["lost_auc_30_percent_scenes"], two["lost_auc_30_percent_frames"]) == ("2", "")


def test_the_advice_says_so() -> None:
    said = next(item.reason for item in ONE.recommendations if item.purpose == "best accuracy")
    assert "of one scene, above 0 is worse (intervals over its frames): AUC@30 +" in said
    said = next(item.reason for item in TWO.recommendations if item.purpose == "best accuracy")
    assert "of 2 scenes, above 0 is worse: AUC@30 +" in said


# --- many frames are no scenes


def judged(over: Any) -> Row:
    """Far from FP32, and by the truth of 8 scenes, or of 8 frames of one, no worse."""
    none = dict.fromkeys(("auc_30", "auc_5", "auc_3", "abs_rel_affine", "overall_m", "f_score"))
    better = Difference(8, 0.0, -0.001, 0.001, over)
    found = TruthLoss(**none, abs_rel=better, point_error=better)
    row = made_row(LABEL, error=0.05)
    return replace(row, truth_loss=found, truth=made_row(LABEL, truth=[framed(0.0)]).truth)


def test_frames_do_not_let_the_truth_judge_alone() -> None:
    assert ENOUGH_SCENES <= 8
    for over, passes in (("scenes", True), ("frames", False)):
        row = judged(over)
        geometry = row.geometry
        assert geometry is not None
        found = loss(replace(row, geometry=replace(geometry, pose=None)))
        assert found is not None
        assert (found[0] <= 1.0) is passes


def test_frames_do_not_pass_a_gate_for_scenes() -> None:
    gates = Gates(Protocol("vggt-nano", 8, 4, 84, 112), {LABEL: Limits(abs_rel=0.01)})
    for over, verdict in (("scenes", "within"), ("frames", "not measured")):
        reference = made_row("torch/fp32", truth=[framed(0.0)] * 8, error=0.0)
        result = check_gate(made_report(reference, judged(over)), gates)
        (line,) = [line for line in result.checked if line.label == LABEL]
        assert line.verdict == verdict
    assert "abs_rel is known of 1 scenes" in line.reason


def test_frames_do_not_tell_a_change_since_a_baseline() -> None:
    """Every frame of the one scene got worse, and it stays one scene: shown, not judged."""
    rows = (
        ONE.rows[0],
        made_row(LABEL, truth=[framed(6.0)], reference=[framed(0.0)], samples=(40.0,) * 5),
    )
    found = changes(ONE, made_report(*rows))
    (row,) = [each for each in found.variants if each.label == LABEL]
    (auc,) = [each for each in row.changes if each.quantity == "auc_30"]
    assert auc.change is not None
    assert auc.change < -10.0
    assert (auc.n_old, auc.n_new, auc.low, auc.high) == (1, 1, None, None)
    assert auc.verdict == "not comparable"
