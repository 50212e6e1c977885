"""The plain-text summary: aligned, complete, and honest about what was not measured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from made_reports import made_report, made_row, made_truth

from vggt_deploy.compare.baseline import changes
from vggt_deploy.compare.state import Folder
from vggt_deploy.report.experiment import experiment_text
from vggt_deploy.report.question_sections import (
    calibration_notes,
    machine_notes,
    scene_notes,
    timing_notes,
)
from vggt_deploy.report.summary import summary_text, write_summary
from vggt_deploy.report.text import megabytes, number, table, wrap


def test_a_table_is_aligned() -> None:
    lines = table(("name", "n"), [("a", "1"), ("longer", "1000")])
    assert lines == ["name       n", "------  ----", "a          1", "longer  1000"]


def test_numbers() -> None:
    assert number(None) == "-"
    assert number(0.000123456) == "0.0001235"
    assert megabytes(1_234_567) == "1.23"
    assert megabytes(None) == "-"
    assert wrap("one two three", 8) == ["one two", "three"]


def test_every_row_and_every_output_is_there(fake: Any) -> None:
    fake.plan({"torch/int4_g128": "segfault"})
    report = fake.run(schemes="fp32,int8_pc_sym,int4_g128,bf16")
    text = summary_text(report)
    for row in report.rows:
        assert row.label in text
    for name in ("pose_enc", "depth_conf", "world_points_conf"):
        assert f"{name} against PyTorch FP32" in text
    assert "SIGSEGV" in text
    assert "about to: segfault" in text
    assert "refused (scheme table)" in text
    assert "identical" in text
    assert "Cross entropy is not applicable" in text
    assert "1 threads" not in text
    assert "threads   1 for every variant" in text
    ours = [line for line in text.splitlines() if not line.startswith("made ")]  # with our command
    assert max(map(len, ours)) < 250


def test_a_comparison_without_a_finite_row_has_a_report(fake: Any) -> None:
    """As of a checkpoint with one NaN: the sweep runs, nothing is advised, and it says why."""
    labels = ["torch/fp32", "torch/int8_pc_sym", "onnxruntime/fp32", "onnxruntime/int8_pc_sym"]
    fake.plan(dict.fromkeys(labels, "nan"))
    report = fake.run(schemes="fp32,int8_pc_sym")
    assert [(row.label, row.status) for row in report.rows] == [(one, "done") for one in labels]
    assert not any(row.finite for row in report.rows)
    text = summary_text(report)
    assert text.count("no variant has finite outputs.") == 4
    assert "PyTorch FP32 itself has NaN or infinite outputs" in " ".join(text.split())
    assert "No gates were applied (PyTorch FP32 itself is not finite)." in text
    experiment = experiment_text(report, Folder(report.folder))
    assert experiment.count("no variant has finite outputs.") == 4


def test_slower_variants_are_named(fake: Any) -> None:
    text = summary_text(fake.run())
    section = text.split("Slower than FP32\n")[1].split("\n\n")[0]
    assert "onnxruntime/int4_g128" in section
    assert "int8_pc_sym" not in section  # 42 ms against 102


def test_times_of_a_busy_machine_are_called_noisy(fake: Any) -> None:
    report = fake.run()
    quiet = timing_notes(report)
    assert not any("NOISY" in note for note in quiet)
    busy_row = next(row for row in report.rows if row.label == "onnxruntime/int8_pc_sym")
    assert busy_row.measured is not None
    busy_row = replace(busy_row, measured=replace(busy_row.measured, others_cpus=1.5))
    rows = tuple(busy_row if row.label == busy_row.label else row for row in report.rows)
    (note,) = [note for note in timing_notes(replace(report, rows=rows)) if "NOISY" in note]
    assert "1.5 CPUs, onnxruntime/int8_pc_sym" in note


def test_too_few_calls_are_named(fake: Any) -> None:
    assert any("Fewer than 3" in note for note in timing_notes(fake.run(repeats=1)))


def test_what_was_read_is_said(fake: Any) -> None:
    """Why there is no truth, and what static activations were calibrated on, stand nowhere else."""
    report = fake.run()
    text = " ".join(summary_text(report).split())
    assert report.notes
    for note in report.notes:
        assert " ".join(note.split()) in text
    assert "truth: none, " in text


def test_calibration_on_what_is_compared_is_said(fake: Any) -> None:
    report = fake.run()
    hashes = [file["sha256"] for scene in report.question["scenes"] for file in scene["files"]]

    def notes(images: dict[str, str] | None) -> list[str]:
        calibration = None if images is None else {"images": images}
        return calibration_notes(
            replace(report, question={**report.question, "calibration": calibration})
        )

    assert notes(None) == notes({"a.jpg": "0" * 64}) == []
    (note,) = notes({"a.jpg": "0" * 64, "renamed.jpg": hashes[0]})
    assert f"calibrated on 1 of the {len(hashes)} pictures" in note


TRUTH = [made_truth(60.0), made_truth(80.0)]
WORSE = [made_truth(50.0, abs_rel=0.2), made_truth(72.0, abs_rel=0.3)]
TWO = (
    made_row("torch/fp32", truth=TRUTH, error=0.0),
    made_row("onnxruntime/int8_pc_sym", truth=WORSE, reference=TRUTH),
)


def section(text: str, title: str) -> str:
    """From the title to the next one."""
    return text.split(f"{title}\n{'=' * len(title)}\n")[1].split("\n==")[0]


def test_by_the_truth() -> None:
    text = section(summary_text(made_report(*TWO)), "Against the truth")
    poses, depth, points = text.split("\n\ndepth:")[0], *text.split("depth:")[1].split("points:")
    assert "RRA@30  RRA@15  RRA@5  RTA@30  RTA@15  RTA@5" in poses
    assert "int8_pc_sym 2 61.00 30.50 18.30 61.00" in " ".join(poses.split())
    assert "AbsRel, scale and shift" in depth
    assert "0.2000" in depth  # 0.8 of 0.25
    for name in ("accuracy m", "completeness m", "overall m", "F-score @ 0.01 m"):
        assert name in points
    for part in (poses, depth, points):
        assert "protocol: the first 4 pictures; " in part
    assert "no masks" not in poses
    assert "no masks" in depth


def test_each_scene_and_the_mean() -> None:
    text = section(summary_text(made_report(*TWO)), "Scene by scene, against the truth")
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "variant scene_0 scene_1 mean" in lines
    assert "onnxruntime/int8_pc_sym 50.00 72.00 61.00" in lines
    assert "onnxruntime/int8_pc_sym 0.2000 0.3000 0.2500" in lines


def test_without_truth_there_is_no_word_of_it() -> None:
    text = summary_text(made_report(made_row("torch/fp32"), made_row("torch/int8_pc_sym")))
    assert "the truth\n" not in text
    assert "AUC" not in text


def test_changes_since_a_baseline() -> None:
    report = made_report(*TWO)
    assert "Changes since" not in summary_text(report)
    compared = replace(report, baseline=changes(report, report))
    text = section(summary_text(compared), "Changes since the baseline")
    assert "Scenes in common: 2." in text
    assert "相对旧报告的变化\n" in summary_text(compared, "zh")


def test_few_scenes_and_other_machines_are_noted() -> None:
    assert "known of 2 scenes" in scene_notes(made_report(*TWO))[0]
    many = made_row("torch/fp32", truth=[made_truth(60.0)] * 5)
    assert scene_notes(made_report(many)) == scene_notes(made_report(made_row("torch/fp32"))) == []
    away = replace(TWO[1], machine="another CPU")
    (note,) = machine_notes(made_report(TWO[0], away))
    assert "onnxruntime/int8_pc_sym was timed on another kind of machine" in note
    assert machine_notes(made_report(*TWO)) == []


def test_the_summary_is_written_in_chinese(tmp_path: Any) -> None:
    path = write_summary(made_report(*TWO, folder=tmp_path), "zh")
    text = path.read_text(encoding="utf-8")
    assert text.startswith("vggt-deploy 对比报告\n====================\n模型")
    assert "逐场景结果" in text
