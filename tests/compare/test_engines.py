"""Engines in a comparison: built for a device, measured where there is one, "not run" elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from vggt_deploy.build.profiles import load_profile
from vggt_deploy.compare import compare, making, pipeline, read_report, rows
from vggt_deploy.compare.devices import ask_device
from vggt_deploy.compare.jobs import LayerPatterns, MeasureJob, ModelQuestion
from vggt_deploy.compare.measures import BuildMeasure, GpuMeasure
from vggt_deploy.compare.report import ComparisonReport
from vggt_deploy.compare.subjects import make_subject
from vggt_deploy.compare.variants import Variant, parse_variants
from vggt_deploy.engines.tensorrt import timing
from vggt_deploy.errors import CompareError, UsageError
from vggt_deploy.manifest import read_manifest, write_manifest
from vggt_deploy.records import FramesRange
from vggt_deploy.report.summary import summary_text

RTX = "tensorrt-rtx/int8_pc_sym"
ASKED: dict[str, Any] = {
    "schemes": "int8_pc_sym",
    "runtimes": "onnxruntime,tensorrt-rtx",
    "device": "rtx4090",
}


def section(text: str, title: str) -> str:
    """The lines of one section of a summary; empty where there is none."""
    _, found, rest = text.partition(f"\n\n{title}\n{'=' * len(title)}\n")
    return rest.partition("\n\n")[0] if found else ""


# --- with fake workers


def test_an_engine_is_a_row_like_the_others(fake: Any) -> None:
    report = fake.run(**ASKED, draw=True)
    assert fake.calls() == [
        "identify model",
        "measure torch/fp32",
        "export export/int8_pc_sym",  # once, for both runtimes
        "measure onnxruntime/int8_pc_sym",
        f"build build/{RTX}",
        f"measure {RTX}",
    ]
    row = report.row(RTX)
    assert row.status == "done"
    assert (row.measured.disk_kind, row.measured.disk_bytes) == ("engine folder", 500_000)
    assert report.ratios(row).compression == 8.0
    assert row.measured.gpu == GpuMeasure(
        device="A Card, compute capability 8.9",
        n=5,
        network_ms=7.25,
        network_min_ms=7.0,
        to_device_ms=0.5,
        to_host_ms=0.25,
        engine_bytes=900_000,
        buffer_bytes=100_000,
    )
    assert row.export == report.row("onnxruntime/int8_pc_sym").export
    assert row.accuracy["depth"].mae > 0.0
    assert report.notes[1].endswith("(device profile rtx4090)")
    job = json.loads((fake.folder / "work" / "tensorrt-rtx-int8_pc_sym.job.json").read_text())
    assert job["artifact"] == str(fake.folder / "engines" / "tensorrt-rtx-int8_pc_sym")
    assert read_report(fake.folder).to_json() == report.to_json()
    assert read_report(fake.folder).rows == report.rows

    engines = section(summary_text(report), "Engines")
    assert "int8 75 %, float 25 % of operations, attention fused 72 of 72" in engines
    assert "7.25" in engines
    assert f"{RTX}: built for rtx4090" in engines
    assert (fake.folder / "comparison_plots.png").is_file()
    assert (fake.folder / "depth" / "tensorrt-rtx-int8_pc_sym" / "001_img1.png").is_file()


def test_without_a_device_the_row_has_what_was_measured_and_is_no_failure(fake: Any) -> None:
    fake.plan({RTX: "no device"})
    report = fake.run(**ASKED, draw=True)
    row = report.row(RTX)
    assert row.status == "not run"
    assert row.failure.unavailable
    assert (row.measured, row.accuracy, row.geometry) == (None, {}, None)
    assert (row.build.plan_bytes, row.build.seconds) == (500_000, 4.5)
    against = report.ratios(row)
    assert (against.compression, against.speedup_torch_fp32) == (8.0, None)
    assert all(item.label != RTX for item in report.recommendations)
    assert read_report(fake.folder).rows == report.rows

    text = summary_text(report)
    assert section(text, "Failed or refused") == ""
    missing = section(text, "Not run here")
    assert "not run: no CUDA device: none" in missing
    assert RTX in missing
    assert "attention fused 72 of 72" in section(text, "Engines")
    (cost,) = [x for x in section(text, "Size and speed").splitlines() if x.startswith(RTX)]
    assert cost.split()[1:3] == ["0.50", "8"]
    assert "not run" in cost
    line = rows.describe_row(row, kept=False)
    assert "not run: no CUDA device: none; plan 0.5 MB, built in 4.5 s" in line


def test_an_engine_that_fails_is_a_failure(fake: Any) -> None:
    """The twin: a device is there, and something else went wrong."""
    fake.plan({RTX: "deploy error"})
    report = fake.run(**ASKED)
    assert report.row(RTX).status == "failed"
    assert report.row(RTX).build is not None
    text = summary_text(report)
    assert "no such thing" in section(text, "Failed or refused")
    assert section(text, "Not run here") == ""


@pytest.mark.parametrize(
    "behaviour, status",
    [("killed", "failed"), ("wrong answer", "failed"), ("no device", "not run")],
)
def test_a_build_that_fails_fails_its_row_alone(fake: Any, behaviour: str, status: str) -> None:
    fake.plan({f"build/{RTX}": behaviour})
    report = fake.run(**ASKED | {"schemes": "int8_pc_sym,fp16"})
    failed, after = report.rows[3:]
    assert (failed.label, failed.status, failed.failure.stage) == (RTX, status, "build")
    assert failed.build is None
    assert failed.export is not None
    assert after.status == "done"
    assert f"measure {RTX}" not in fake.calls()


def test_a_failed_export_is_tried_once_for_all_runtimes(fake: Any) -> None:
    fake.plan({"export/int8_pc_sym": "killed"})
    report = fake.run(**ASKED)
    assert [row.status for row in report.rows] == ["done", "failed", "failed"]
    assert fake.calls().count("export export/int8_pc_sym") == 1


def test_what_was_not_run_is_tried_again(fake: Any) -> None:
    fake.plan({RTX: "no device"})
    fake.run(**ASKED)
    fake.plan({})
    fake.calls()
    report = fake.run(**ASKED, resume=True)
    assert [row.status for row in report.rows] == ["done"] * 3
    assert fake.calls()[-1] == f"measure {RTX}"
    fake.run(**ASKED, resume=True)
    assert fake.calls() == ["identify model"]


def test_another_device_profile_or_gpu_is_another_question(
    fake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = tmp_path / "card.toml"
    profile.write_text(load_profile("rtx4090").text)
    report = fake.run(**ASKED | {"device": str(profile)})
    assert report.question["device"]["name"] == "card"
    assert report.question["device"]["gpu"] is None
    monkeypatch.setenv("FAKE_GPU", "A Card")
    with pytest.raises(CompareError, match=r'device\.gpu: null -> "A Card"'):
        fake.run(**ASKED | {"device": str(profile)}, resume=True)
    monkeypatch.delenv("FAKE_GPU")
    profile.write_text(load_profile("rtx4090").text.replace("tf32 = true", "tf32 = false"))
    with pytest.raises(CompareError, match=r"device\.profile"):
        fake.run(**ASKED | {"device": str(profile)}, resume=True)


def test_without_engines_the_gpu_is_not_asked_for(
    fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_GPU", "A Card")
    report = fake.run(schemes="fp32", runtimes="torch")
    assert report.question["device"] is None
    assert "gpu" not in report.question["model"]


def test_a_scheme_that_no_engine_can_have_is_refused(fake: Any) -> None:
    report = fake.run(**ASKED | {"schemes": "int8_pc_sym+dynamic", "runtimes": "tensorrt-rtx"})
    row = report.rows[1]
    assert row.status == "refused"
    assert "DynamicQuantizeLinear" in row.failure.message
    assert fake.calls() == ["identify model", "measure torch/fp32"]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"device": None}, "built for a device"),
        ({"runtimes": "torch,onnxruntime"}, "no runtime of this comparison builds engines"),
        ({"device": "rtx9999"}, "no device profile 'rtx9999'"),
        ({"device": "h200"}, "is for tensorrt, not for tensorrt-rtx"),
        ({"runtimes": "tensorrt", "device": "portable-rtx"}, "for tensorrt-rtx, not for tensorrt"),
    ],
)
def test_requests_that_do_not_fit_start_nothing(
    fake: Any, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        fake.run(**ASKED | change)
    assert fake.calls() == []
    assert not fake.folder.exists()


# --- parts


def test_all_has_no_dynamic_engines() -> None:
    found = parse_variants("all", "tensorrt-rtx", calibrated=True)[1:]
    assert all(variant.engine and variant.support.runs for variant in found)
    assert {variant.activations for variant in found} == {"float", "static"}


def test_pictures_must_fit_the_device_profile() -> None:
    question = ask_device("portable-rtx", (Variant("tensorrt-rtx", "fp16"),))
    assert question is not None
    accepted = FramesRange(1, 9, 16)
    question.check_pictures(8, accepted, 42, 56)
    with pytest.raises(UsageError, match=r"9 pictures.*take 1 to 8") as caught:
        question.check_pictures(9, accepted, 42, 56)
    assert "--max-images" in caught.value.fix
    sized = replace(question, profile=replace(question.profile, height=28, width=42))
    sized.check_pictures(8, accepted, 28, 42)
    with pytest.raises(UsageError, match="for 28 x 42 pixels, the pictures come to 42 x 56"):
        sized.check_pictures(8, accepted, 42, 56)
    gap = replace(question.profile, frames=(FramesRange(20, 24, 32),))
    with pytest.raises(UsageError, match="take 20 to 32"):
        replace(question, profile=gap).check_pictures(8, accepted, 42, 56)


def test_the_proof_in_words() -> None:
    build = BuildMeasure(
        seconds=1.0,
        builder_seconds=1.0,
        peak_rss_bytes=1,
        runtime_version="1",
        plan_bytes=1,
        bytes_total=1,
        weights_bytes=None,
        packed_bytes=None,
        shares={"int8": 1.0},
        attentions=88,
        attentions_fused=72,
        attentions_half=72,
        half_unfused=0,
    )
    assert build.proof == "int8 100 % of operations, attention fused 72 of 72"
    assert replace(build, half_unfused=2).proof.endswith("attention fused 70 of 72")
    floats = replace(build, shares={}, attentions_half=0, attentions_fused=0)
    assert floats.proof == "no integers, attention in FP32: fused 0 of 88"


def test_what_the_worker_asks_of_a_session(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The engine is opened as an engine, and the GPU's own times are those of CUDA events."""
    opened: dict[str, Any] = {}

    class FakeSession:
        class info:
            device = "A Card"

        def run(self, images: Any) -> dict[str, Any]:
            return {"depth": images[..., :1]}

    def fake_open(artifact: Path, **options: Any) -> FakeSession:
        opened.update(options, artifact=artifact)
        return FakeSession()

    def fake_measure(session: Any, images: Any, *, warmup: int, repeats: int) -> timing.Latency:
        assert isinstance(session, FakeSession)
        network, to_device, to_host, wall = (
            timing.summarize([factor * (i + 1.0) for i in range(repeats)])
            for factor in (1.0, 0.1, 0.01, 2.0)
        )
        memory = timing.DeviceMemory(900, 100, 10, 5000, 10_000)
        return timing.Latency(2, warmup, network, to_device, to_host, wall, memory)

    monkeypatch.setattr("vggt_deploy.engines.runtime.open_session", fake_open)
    monkeypatch.setattr("vggt_deploy.engines.tensorrt.cuda.load_cuda", lambda: None)
    monkeypatch.setattr(timing, "measure", fake_measure)
    job = MeasureJob(
        parent=1,
        answer="",
        model=ModelQuestion("m"),
        runtime="tensorrt-rtx",
        scheme="fp16",
        activations="float",
        precision="fp16",
        outputs=("depth",),
        artifact=str(tmp_path),
        images="",
        arrays="",
        layers=LayerPatterns(),
        calibration=None,
        threads=3,
        warmup=1,
        repeats=3,
        size_probe=None,
    )
    subject = make_subject(job)
    images = np.zeros((1, 2, 3, 14, 14), np.float32)
    with pytest.raises(CompareError, match="not open"):
        subject.gpu_times(images, repeats=3)
    subject.load()
    assert opened == {"runtime": "tensorrt-rtx", "artifact": tmp_path}  # no provider, no threads
    times = subject.gpu_times(images, repeats=3)
    assert times is not None
    assert GpuMeasure(**times) == GpuMeasure(
        device="A Card",
        n=3,
        network_ms=2.0,
        network_min_ms=1.0,
        to_device_ms=pytest.approx(0.2),
        to_host_ms=pytest.approx(0.02),
        engine_bytes=900,
        buffer_bytes=100,
    )


# --- with TensorRT-RTX


def compare_tiny(folder: Path, **changes: Any) -> ComparisonReport:
    """The tiny model as an engine of TensorRT-RTX, calibrated, pose alone."""
    request: dict[str, Any] = {
        "output_dir": folder / "out",
        "schemes": "int8_pc_sym+static",
        "runtimes": "tensorrt-rtx",
        "device": "portable-rtx",
        "precision": "fp16",
        "calibrate": folder / "pictures",
        "outputs": ("pose",),
        "width": 56,
        "warmup": 0,
        "repeats": 2,
        "threads": 1,
        "console": Console(quiet=True),
    }
    return compare("random:vggt-tiny", folder / "pictures", **request | changes)


def test_tensorrt_rtx_without_a_gpu(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write_pictures: Callable[..., tuple[Path, ...]],
) -> None:
    """Exported, built and proven for real; that it was not run, and why, is in the row."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # on a machine with a GPU the same test
    monkeypatch.setattr(pipeline, "draw", lambda *_: None)  # seconds each time
    write_pictures(tmp_path / "pictures", 2, size=(112, 84))
    report = compare_tiny(tmp_path)
    row = report.rows[1]
    assert row.status == "not run"
    assert row.failure is not None
    assert row.failure.message.startswith("no CUDA device: ")
    assert row.measured is None
    build = row.build
    assert build is not None
    assert build.proof == "int8 100 % of operations, attention fused 10 of 10"
    engine = tmp_path / "out" / "engines" / "tensorrt-rtx-int8_pc_sym+static"
    assert build.plan_bytes == (engine / "model.engine").stat().st_size
    assert build.bytes_total == sum(path.stat().st_size for path in engine.iterdir())
    assert 0.0 < build.builder_seconds <= build.seconds
    assert build.packed_bytes
    record = read_manifest(engine).engine
    assert record is not None
    assert record.device == "portable-rtx"

    before = (engine / "manifest.json").stat().st_mtime_ns
    again = compare_tiny(tmp_path, resume=True)
    assert again.rows[1] == row
    assert (engine / "manifest.json").stat().st_mtime_ns == before  # not built again

    # An engine is kept only beside the artifact that it was built from.
    artifact = tmp_path / "out" / "artifacts" / "int8_pc_sym+static"
    assert making._built_from(engine, artifact)
    manifest = read_manifest(artifact)
    files = {name: replace(file, sha256="0" * 64) for name, file in manifest.files.items()}
    write_manifest(artifact, replace(manifest, files=files))
    assert not making._built_from(engine, artifact)
    assert not making._built_from(artifact, engine)
    assert not making._built_from(tmp_path / "nothing", artifact)


@pytest.mark.gpu
def test_tensorrt_rtx_on_a_gpu(
    tmp_path: Path, write_pictures: Callable[..., tuple[Path, ...]]
) -> None:
    from vggt_deploy.engines.device import cuda_device

    device = cuda_device()
    assert not isinstance(device, str), device
    here = tuple(int(part) for part in device.compute_capability.split("."))
    if here not in load_profile("portable-rtx").compute_capabilities:
        pytest.skip(f"portable-rtx is not for compute capability {device.compute_capability}")
    write_pictures(tmp_path / "pictures", 2, size=(112, 84))
    row = compare_tiny(tmp_path).rows[1]
    assert (row.status, row.failure) == ("done", None)
    assert row.measured is not None
    assert row.measured.gpu is not None
    assert 0.0 < row.measured.gpu.network_ms < row.measured.latency.median_ms
    assert 0.0 < row.accuracy["pose_enc"].relative_l2 < 1.0
