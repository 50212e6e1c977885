"""The plain-text summary: aligned, complete, and honest about what was not measured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vggt_deploy.report.question_sections import calibration_notes, timing_notes
from vggt_deploy.report.summary import summary_text
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
