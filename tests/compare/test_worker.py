"""The real worker on real models: small ones, PyTorch and ONNX Runtime."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from vggt_deploy.compare import ComparisonReport, compare
from vggt_deploy.compare.environment import describe_environment
from vggt_deploy.compare.jobs import read_measure
from vggt_deploy.compare.worker import run_compute
from vggt_deploy.errors import CompareError


@pytest.fixture(scope="module")
def report(
    tmp_path_factory: pytest.TempPathFactory, write_pictures: Callable[..., tuple[Path, ...]]
) -> ComparisonReport:
    """One comparison of the tiny model, without and with ONNX Runtime."""
    folder = tmp_path_factory.mktemp("compare")
    write_pictures(folder / "pictures", 2, size=(112, 84))
    return compare(
        "random:vggt-tiny",
        folder / "pictures",
        output_dir=folder / "out",
        schemes="int8_pc_sym",
        width=56,
        repeats=3,
        threads=1,
        console=Console(quiet=True),
    )


@pytest.fixture
def labelled(report: ComparisonReport) -> dict[str, Any]:
    return {row.label: row for row in report.rows}


def test_every_row_is_done(report: ComparisonReport) -> None:
    assert [(row.label, row.status, row.failure) for row in report.rows] == [
        ("torch/fp32", "done", None),
        ("torch/int8_pc_sym", "done", None),
        ("onnxruntime/int8_pc_sym", "done", None),
    ]


def test_the_reference_is_upstreams_own_weights(report: ComparisonReport) -> None:
    """What the worker wrote is what the plain model computes here, in this process."""
    import torch

    from vggt_deploy.model.weights import load_model

    images = np.load(report.folder / "work" / "images.npy")
    with torch.inference_mode():
        expected = load_model("random:vggt-tiny")(torch.from_numpy(images)[None])
    with np.load(report.folder / "outputs" / "torch-fp32.npz") as found:
        for name in ("pose_enc", "depth", "world_points"):
            np.testing.assert_allclose(found[name], expected[name].numpy(), rtol=1e-4, atol=1e-5)


def test_integers_in_torch_and_onnxruntime_lose_the_same(labelled: dict[str, Any]) -> None:
    torch_row, onnx_row = labelled["torch/int8_pc_sym"], labelled["onnxruntime/int8_pc_sym"]
    for name, metrics in torch_row.accuracy.items():
        assert metrics.relative_l2 > 1e-4, name  # it is quantized, and that shows
        assert metrics.relative_l2 == pytest.approx(onnx_row.accuracy[name].relative_l2, rel=0.02)


def test_a_scene_computed_elsewhere_is_that_of_the_measurement(
    report: ComparisonReport, tmp_path: Path
) -> None:
    """The job that a further scene is on another machine, on the pictures of the first."""
    job = read_measure(report.folder / "work" / "torch-int8_pc_sym.job.json")
    elsewhere = replace(job, arrays=str(tmp_path / "elsewhere.npz"), warmup=0, repeats=0)
    assert run_compute(elsewhere) == {"scenes": 1}
    measured = (report.folder / "outputs" / "torch-int8_pc_sym.npz").read_bytes()
    assert (tmp_path / "elsewhere.npz").read_bytes() == measured
    reference = (report.folder / "outputs" / "torch-fp32.npz").read_bytes()
    assert reference != measured


def test_rows_name_the_machine_that_timed_them(report: ComparisonReport) -> None:
    machine = describe_environment().machine
    assert [row.machine for row in report.rows] == [machine] * len(report.rows)
    row = report.rows[1]
    assert report.ratios(row).speedup_torch_fp32 is not None
    elsewhere = replace(row, machine="Another CPU, 64 CPUs")
    assert report.ratios(elsewhere).speedup_torch_fp32 is None
    assert report.ratios(elsewhere).compression == report.ratios(row).compression


def test_sizes(report: ComparisonReport, labelled: dict[str, Any]) -> None:
    reference, held = labelled["torch/fp32"].measured, labelled["torch/int8_pc_sym"].measured
    assert reference.disk_kind == "state dict saved"
    assert reference.held_bytes <= reference.disk_bytes < 1.2 * reference.held_bytes
    assert not (report.folder / "work" / "weights.pt").exists()
    assert held.disk_bytes is None
    assert held.held_bytes < 0.5 * reference.held_bytes
    onnx = labelled["onnxruntime/int8_pc_sym"]
    files = (report.folder / "artifacts" / "int8_pc_sym").iterdir()
    assert onnx.measured.disk_bytes == sum(path.stat().st_size for path in files)
    assert onnx.measured.disk_kind == "artifact folder"
    assert onnx.export.verified is False


def test_times_and_memory(report: ComparisonReport) -> None:
    for row in report.rows:
        measured = row.measured
        assert measured is not None
        assert measured.latency.n == 3
        assert len(measured.latency.warmup_ms) == 2
        assert 0.0 < measured.latency.min_ms <= measured.latency.median_ms
        assert measured.load_ms > 0.0
        if sys.platform == "linux":
            assert measured.libraries_rss_bytes is not None
            assert 10_000_000 < measured.libraries_rss_bytes <= measured.peak_rss_bytes


def test_random_weights_are_called_that(report: ComparisonReport) -> None:
    assert report.random_weights
    advice = {item.purpose: item for item in report.recommendations}
    assert advice["best accuracy"].label is None
    assert "random" in (report.folder / "comparison_summary.txt").read_text()


def test_static_activations(tmp_path: Path, images_dir: Path) -> None:
    """One calibration for two schemes and both runtimes, which lose the same; then its statistics
    serve another comparison, but none of another size.
    """
    from vggt_deploy.manifest import read_manifest

    request: dict[str, Any] = {
        "model_spec": "random:vggt-tiny",
        "images_dir": images_dir,
        "width": 56,
        "repeats": 1,
        "warmup": 0,
        "threads": 1,
        "console": Console(quiet=True),
    }
    found = compare(
        **request,
        output_dir=tmp_path / "out",
        schemes="int8_pc_sym,int8_pc_sym+static,int8_pt_asym+static",
        calibrate=images_dir,
        calibration_method="percentile:99.9",
    )
    assert [(row.label, row.failure) for row in found.rows if row.status != "done"] == []
    rows = {row.label: row for row in found.rows}
    for scheme in ("int8_pc_sym", "int8_pt_asym"):
        ours, theirs = rows[f"torch/{scheme}+static"], rows[f"onnxruntime/{scheme}+static"]
        for name, metrics in ours.accuracy.items():
            assert 0.3 < metrics.relative_l2 / theirs.accuracy[name].relative_l2 < 3
            assert metrics.relative_l2 < 0.5
    weights_only = rows["torch/int8_pc_sym"].accuracy["pose_enc"].relative_l2
    assert rows["torch/int8_pc_sym+static"].accuracy["pose_enc"].relative_l2 > weights_only
    statistics = tmp_path / "out" / "work" / "calibration"
    records = [
        read_manifest(tmp_path / "out" / "artifacts" / f"{scheme}+static").calibration
        for scheme in ("int8_pc_sym", "int8_pt_asym")
    ]
    assert {record.method for record in records if record} == {"percentile 99.9"}
    assert records[0].statistics_sha256 == records[1].statistics_sha256  # type: ignore[union-attr]
    assert "percentile 99.9, 3 images" in found.notes[1]

    again = compare(
        **request | {"width": 70},
        output_dir=tmp_path / "again",
        schemes="int8_pc_sym+static",
        calibrate=statistics,
    )
    assert [row.status for row in again.rows] == ["done", "failed", "failed"]
    for row in again.rows[1:]:
        assert row.failure is not None
        assert "size 42 x 56" in row.failure.message


def test_half_precision(tmp_path: Path, images_dir: Path) -> None:
    found = compare(
        "random:vggt-tiny",
        images_dir,
        output_dir=tmp_path / "out",
        schemes="fp16,bf16",
        runtimes="torch",
        width=56,
        max_images=2,
        repeats=1,
        console=Console(quiet=True),
    )
    fp16, bf16 = found.rows[1:]
    assert (fp16.failure, bf16.failure) == (None, None)
    for name in ("depth", "pose_enc"):
        assert 0.0 < fp16.accuracy[name].relative_l2 < bf16.accuracy[name].relative_l2


def test_a_wrong_model_is_one_clear_error(tmp_path: Path, images_dir: Path) -> None:
    with pytest.raises(CompareError, match="vggt-huge") as caught:
        compare(
            "random:vggt-huge",
            images_dir,
            output_dir=tmp_path / "out",
            schemes="fp32",
            runtimes="torch",
            width=56,
            console=Console(quiet=True),
        )
    assert "vggt-tiny" in caught.value.fix
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_file_is_weighed_as_it_is(tmp_path: Path, images_dir: Path) -> None:
    from safetensors.torch import save_file

    from vggt_deploy.model.weights import open_weights

    _, source = open_weights("random:vggt-tiny")
    path = tmp_path / "model.safetensors"
    save_file({key: source.load(key) for key in source.keys()}, path)  # noqa: SIM118
    found = compare(
        str(path),
        images_dir,
        output_dir=tmp_path / "out",
        schemes="fp32",
        runtimes="torch",
        outputs=("pose",),
        width=56,
        max_images=1,
        repeats=1,
        console=Console(quiet=True),
    )
    measured = found.reference.measured
    assert measured is not None
    assert measured.disk_kind == "checkpoint file"
    assert measured.disk_bytes == path.stat().st_size
    assert measured.held_bytes is not None
    assert measured.held_bytes < measured.disk_bytes  # of the pose head alone
    assert not found.random_weights
