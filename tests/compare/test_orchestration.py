"""The sweep with fake workers: what fails becomes a row, and the rest goes on."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import time
from threading import Event
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_comparison import FAKE_WORKER
from PIL import Image

from vggt_deploy.compare import read_report
from vggt_deploy.compare.report import SCHEMA
from vggt_deploy.compare.rows import Sweep
from vggt_deploy.compare.variants import Variant
from vggt_deploy.errors import CompareError, ImageError, UsageError

ALL = [
    "torch/fp32",
    "torch/int8_pc_sym",
    "torch/int4_g128",
    "onnxruntime/fp32",
    "onnxruntime/int8_pc_sym",
    "onnxruntime/int4_g128",
]


def test_a_whole_comparison(fake: Any) -> None:
    report = fake.run(draw=True)
    assert [row.label for row in report.rows] == ALL
    assert all(row.status == "done" for row in report.rows)
    for name in ("comparison_report.json", "comparison_summary.txt", "comparison_plots.png"):
        assert (fake.folder / name).stat().st_size > 0
    row = report.row("onnxruntime/int8_pc_sym")
    assert row.measured.disk_bytes == 1_000_000
    assert row.measured.disk_kind == "artifact folder"
    against = report.ratios(row)
    assert against.compression == 4.0
    assert against.speedup_torch_fp32 == pytest.approx(102.0 / 42.0)
    assert against.speedup_onnxruntime_fp32 == pytest.approx(102.0 / 42.0)
    assert row.accuracy["depth"].mae == pytest.approx(1e-3 * np.sqrt(2 / np.pi), rel=0.05)
    held = report.row("torch/int8_pc_sym")
    assert held.measured.disk_bytes is None
    assert held.measured.held_bytes == 4_000_000
    assert report.ratios(held).compression is None
    assert report.reference.measured.disk_kind == "checkpoint file"
    pictures = {path.name for path in (fake.folder / "depth").glob("*.png")}
    assert pictures == {"000_img0.png", "001_img1.png", "002_img2.png"}
    assert (fake.folder / "depth" / "onnxruntime-int4_g128" / "001_img1.png").is_file()


def test_the_report_reads_back_as_it_was_written(fake: Any) -> None:
    report = fake.run(schemes="int8_pc_sym")
    again = read_report(fake.folder)
    assert again.to_json() == report.to_json()
    assert again.rows == report.rows


def test_a_report_of_a_newer_schema_is_refused(fake: Any) -> None:
    fake.run(schemes="fp32")
    path = fake.folder / "comparison_report.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data | {"schema": SCHEMA + 1}))
    with pytest.raises(CompareError, match=f"schema {SCHEMA + 1}"):
        read_report(path)
    del data["rows"]
    path.write_text(json.dumps(data))
    with pytest.raises(CompareError, match="no whole report"):
        read_report(path)


@pytest.mark.parametrize(
    "behaviour, words",
    [
        ("segfault", "SIGSEGV"),
        ("killed", "ran out of memory"),
        ("hang", "time limit"),
        ("exit 3", "code 3: about to: exit 3"),
        ("silent", "left no answer"),
        ("garbage", "not JSON"),
        ("wrong answer", "does not fit"),
        ("deploy error", "no such thing"),
        ("missing library", "a_library_that_nobody_has"),
        ("wrong shape", "has shape"),
        ("truncated outputs", "can't be read"),
    ],
)
def test_a_variant_that_fails_is_a_row(fake: Any, behaviour: str, words: str) -> None:
    fake.plan({"torch/int8_pc_sym": behaviour})
    report = fake.run(runtimes="torch", timeout_s=2.0 if behaviour == "hang" else 30.0)
    failed, after = report.rows[1:]
    assert failed.status == "failed"
    assert failed.failure is not None
    assert words in failed.failure.message
    assert failed.measured is None
    assert after.status == "done"
    summary = (fake.folder / "comparison_summary.txt").read_text()
    assert words in summary
    recommended = {item.label for item in report.recommendations}
    assert "torch/int8_pc_sym" not in recommended


def test_a_failed_export_fails_its_row_alone(fake: Any) -> None:
    fake.plan({"export/int8_pc_sym": "killed"})
    report = fake.run(runtimes="onnxruntime")
    assert [row.status for row in report.rows] == ["done", "done", "failed", "done"]
    assert report.rows[2].failure.stage == "export"


def test_the_scheme_table_refuses_without_starting_anything(fake: Any) -> None:
    report = fake.run(schemes="bf16", runtimes="onnxruntime")
    row = report.rows[1]
    assert row.status == "refused"
    assert "BF16" in row.failure.message
    assert not any("bf16" in call for call in fake.calls())


def test_without_the_reference_there_is_no_report(fake: Any) -> None:
    fake.plan({"torch/fp32": "killed"})
    with pytest.raises(CompareError, match=r"reference, failed: killed by signal 9"):
        fake.run()
    assert not (fake.folder / "comparison_report.json").exists()
    fake.plan({})
    assert fake.run(resume=True).reference.status == "done"


def test_a_model_that_cannot_be_read_stops_before_anything_is_written(fake: Any) -> None:
    fake.plan({"model": "deploy error"})
    with pytest.raises(CompareError, match="no such thing") as caught:
        fake.run()
    assert caught.value.fix == "make one"
    assert not fake.folder.exists()


def test_nan_is_reported_and_never_recommended(fake: Any) -> None:
    fake.plan({"onnxruntime/int8_pc_sym": "nan"})
    report = fake.run(draw=True)
    row = report.row("onnxruntime/int8_pc_sym")
    assert row.status == "done"
    assert not row.finite
    assert row.accuracy["depth"].mae is None
    assert row.geometry.depth is None
    assert all(item.label != row.label for item in report.recommendations)
    text = (fake.folder / "comparison_summary.txt").read_text()
    assert "1 of" in text
    json.loads((fake.folder / "comparison_report.json").read_text())


def test_one_picture(fake: Any) -> None:
    report = fake.run(schemes="int8_pc_sym", runtimes="torch", max_images=1)
    pose = report.rows[1].geometry.pose
    assert pose.pairs == 0
    assert pose.rotation is None


def test_only_some_outputs(fake: Any) -> None:
    report = fake.run(schemes="int8_pc_sym", runtimes="torch", outputs=("pose",), draw=True)
    assert set(report.rows[1].accuracy) == {"pose_enc"}
    assert report.rows[1].geometry.depth is None
    assert (fake.folder / "comparison_plots.png").is_file()


def test_bad_pictures(fake: Any) -> None:
    (fake.images / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    with pytest.raises(ImageError, match=r"broken\.jpg"):
        fake.run(runtimes="torch", schemes="fp32")
    report = fake.run(runtimes="torch", schemes="fp32", skip_bad_images=True)
    assert report.question["images"]["frames"] == 3
    assert "broken.jpg" in (fake.folder / "comparison_summary.txt").read_text()


@pytest.mark.parametrize(
    "wrong",
    [
        {"repeats": 0},
        {"warmup": -1},
        {"threads": 0},
        {"timeout_s": 0.0},
        {"outputs": ()},
        {"outputs": ("normals",)},
        {"schemes": "int9"},
    ],
)
def test_wrong_requests_start_nothing(fake: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        fake.run(**wrong)
    assert fake.calls() == []


def test_pictures_with_one_name_do_not_overwrite_each_other(fake: Any) -> None:
    Image.open(fake.images / "img0.png").save(fake.images / "img0.jpg")
    fake.run(schemes="int8_pc_sym", runtimes="torch", draw=True)
    assert len(list((fake.folder / "depth").glob("*.png"))) == 4


def test_the_parent_imports_no_torch(fake: Any) -> None:
    """In a fresh interpreter: comparing starts workers, and loads none of their libraries."""
    code = f"""
        import sys
        from vggt_deploy.compare import compare
        from rich.console import Console
        compare(
            "fake-model", {str(fake.images)!r}, output_dir={str(fake.folder)!r},
            schemes="int8_pc_sym", runtimes="onnxruntime,tensorrt-rtx", device="rtx4090",
            width=56, threads=1, console=Console(quiet=True),
            worker_command=({sys.executable!r}, {str(FAKE_WORKER)!r},
                            {str(fake.plan_path)!r}),
        )
        heavy = {{"torch", "onnx", "onnxruntime", "onnxscript", "tensorrt_rtx", "cuda"}}
        heavy &= sys.modules.keys()
        assert not heavy, heavy
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=120)


def test_what_finished_beside_the_one_that_ends_the_sweep_is_kept() -> None:
    """One raises, and while its end is on its way another one finishes: that row comes first."""
    first, second, third = (Variant("torch", name, "float") for name in ("fp32", "fp16", "bf16"))
    go, raised = Event(), Event()
    stopped: list[bool] = []

    def measure(variant: Variant) -> Any:
        if variant == second:
            go.wait(30.0)
            raise CompareError("the store is full", "free some space")
        if variant == third:
            raised.wait(30.0)
        return variant.label

    executor: Any = SimpleNamespace(width=3, stop=lambda: stopped.append(True))
    nothing: Any = None
    sweep = Sweep(nothing, nothing, nothing, nothing, executor, nothing)
    each = sweep._each([first, second, third], measure)
    assert next(each) == (first, "torch/fp32")
    go.set()
    deadline = time.monotonic() + 30.0
    while sum(future_of(each, variant).done() for variant in (second, third)) < 2:
        if future_of(each, second).done():
            raised.set()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert next(each) == (third, "torch/bf16")
    with pytest.raises(CompareError, match="the store is full"):
        next(each)
    assert stopped == []  # nothing was running any more


def future_of(each: Any, variant: Variant) -> Any:
    """What the suspended generator waits for."""
    futures = each.gi_frame.f_locals["futures"]
    return next(future for future, asked in futures.items() if asked == variant)
