"""What can't be exported ends in an error that says why, and loses nothing."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from vggt_deploy.errors import ArtifactError, DeployError, ModelError, UsageError
from vggt_deploy.export import pipeline
from vggt_deploy.export.request import make_request
from vggt_deploy.manifest import read_manifest
from vggt_deploy.model.weights import open_weights
from vggt_deploy.quantize.schemes import parse_label

Options = dict[str, Any]


@pytest.mark.parametrize(
    "scheme, options, message, fix",
    [
        ("int3", {}, "unknown scheme 'int3'", "int4_g128"),
        ("int8_pc_sym", {"height": 57}, "57 x 84 .* not a multiple of 14", "56 x 84"),
        ("int8_pc_sym", {"width": 0}, "not a multiple of 14", "56 x 14"),
        ("int8_pc_sym", {"outputs": ("deepth",)}, "unknown output 'deepth'", "pose, depth, points"),
        ("int8_pc_sym", {"outputs": ()}, "no outputs", "pose, depth, points"),
        ("int8_pc_sym", {"outputs": ("track",)}, "unknown output 'track'", "pose, depth, points"),
        ("int8_pc_sym", {"frames": (5, 2, 16)}, "frames 5:2:16", "1:5:16"),
        ("int8_pc_sym", {"frames": (0, 1, 2)}, "frames 0:1:2", "1:5:16"),
        ("int8_pc_sym", {"frames": (1, 3, 2)}, "frames 1:3:2", "1:5:16"),
        ("fp16", {"precision": "bf16"}, "fp16 is precision fp16, .* bf16", "scheme bf16"),
        ("fp32", {"precision": "fp16"}, "fp32 is precision fp32, .* fp16", "integer scheme"),
        (
            "int8_pc_sym",
            {"activations": "dynamic", "precision": "fp16"},
            "dynamic activations need FP32",
            "float activations",
        ),
        ("fp32", {"activations": "dynamic"}, "has no integer weights", "int8_pc_sym"),
        ("fp16", {"activations": "static"}, "has no integer weights", "int8_pt_asym"),
        ("int4_g64", {"activations": "static"}, "has 4-bit weights", "int8_pc_sym"),
        ("mixed", {"activations": "static"}, "has 4-bit weights", "int8_pc_sym"),
        ("int8_pc_sym", {"activations": "static"}, "needs images to calibrate on", "no default"),
        ("int8_pc_sym", {"calibrate": Path("p")}, "looks at no pictures", "static"),
        (
            "int8_pc_sym",
            {"activations": "static", "calibrate": Path(), "calibration_method": "max"},
            "unknown calibration method 'max'",
            "percentile:99.99",
        ),
        ("int4_g32", {"include": ["patch_embed"]}, "--include 'patch_embed' matches none", "whole"),
        ("int4_g32", {"exclude": ["*.fc3"]}, r"--exclude '\*\.fc3' matches none", "whole name"),
        ("mixed", {"sensitive": ["nothing"]}, "--sensitive 'nothing' matches none", "whole name"),
        ("int4_g32", {"sensitive": ["*fc1"]}, "one format only", "mixed"),
        ("fp32", {"exclude": ["*fc1"]}, "nothing to include", "integer scheme"),
        ("int8_pc_sym", {"model": "random:vggt-2b"}, "vggt-2b", "vggt-tiny"),
        ("int8_pc_sym", {"model": "no/such/file.safetensors"}, "no/such/file", ""),
    ],
)
def test_a_request_that_makes_no_sense(
    scheme: str, options: Options, message: str, fix: str, exporter: Any, tmp_path: Path
) -> None:
    """Refused before anything is traced or written."""
    from vggt_deploy.export.pipeline import export

    arguments: Options = {"height": 56, "width": 84, "frames": (1, 2, 5), **options}
    model = arguments.pop("model", "random:vggt-tiny")
    stages: list[str] = []
    with pytest.raises(DeployError, match=message) as caught:
        export(
            model,
            scheme,
            output_dir=tmp_path / "a",
            progress=lambda stage, done, total: stages.append(stage),
            **arguments,
        )
    assert fix in caught.value.fix
    assert isinstance(caught.value, UsageError | ModelError)
    assert set(stages) <= {"checkpoint"}
    assert list(tmp_path.iterdir()) == []


def test_outputs_come_in_the_networks_order() -> None:
    request = make_request(
        parse_label("int8_pc_sym"),
        precision=None,
        outputs=("points", "pose", "points"),
        frames=(1, 2, 3),
        patterns=((), (), ()),
    )(56, 84)
    assert [group.name for group in request.groups] == ["pose", "points"]
    assert request.heads == {"camera", "point"}


def checkpoint(path: Path, *, without: tuple[str, ...]) -> Path:
    _, source = open_weights("random:vggt-tiny")
    keys = [key for key in source.keys() if not key.startswith(without)]  # noqa: SIM118
    save_file({key: source.load(key) for key in keys}, path)
    return path


def test_a_checkpoint_without_a_head(exporter: Any, tmp_path: Path) -> None:
    """An error if the head is wanted, and none if it is not."""
    path = checkpoint(
        tmp_path / "m.safetensors", without=("track_head.", "depth_head.", "point_head.")
    )
    arguments = {"model": str(path), "config": "vggt-tiny"}
    with pytest.raises(ModelError, match=r"depth_head\."):
        exporter.export(tmp_path / "a", "int8_pc_sym", **arguments)
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]
    result = exporter.export(tmp_path / "a", "int8_pc_sym", outputs=("pose",), **arguments)
    assert result.manifest.outputs == ("pose_enc",)
    assert result.manifest.model.sha256


def test_a_checkpoint_cut_short(exporter: Any, tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "m.safetensors", without=("track_head.",))
    os.truncate(path, path.stat().st_size * 2 // 3)
    with pytest.raises(ModelError, match=r"m\.safetensors"):
        exporter.export(tmp_path / "a", "int8_pc_sym", model=str(path), config="vggt-tiny")
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_a_folder_that_is_there(exporter: Any, tmp_path: Path) -> None:
    request = {"outputs": ("pose",), "verify": False}
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):  # not even then: no artifact of ours
        with pytest.raises(ArtifactError, match="mine"):
            exporter.export(mine, "int8_pc_sym", overwrite=overwrite, **request)
    assert (mine / "thesis.tex").read_text() == "years of work"

    first = exporter.export(tmp_path / "a", "int8_pc_sym", **request)
    with pytest.raises(ArtifactError, match="exists and is not empty"):
        exporter.export(tmp_path / "a", "int4_g32", **request)
    assert read_manifest(first.folder) == first.manifest
    second = exporter.export(tmp_path / "a", "int4_g32", overwrite=True, **request)
    assert read_manifest(tmp_path / "a") == second.manifest
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "mine"]


@contextmanager
def files_end_at(count: int) -> Iterator[None]:
    """The kernel fails a write beyond `count` bytes of a file, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("room", [100, 30_000, 100_000], ids=["at once", "weights", "later"])
def test_a_disk_that_fills_up(room: int, exporter: Any, tmp_path: Path) -> None:
    request = {"outputs": ("pose",), "verify": False}
    whole = exporter.artifact("int4_g32", outputs=("pose",))  # the trace is kept by now
    assert max(path.stat().st_size for path in whole.iterdir()) > 100_000
    with files_end_at(room), pytest.raises(ArtifactError, match="no space left for"):
        exporter.export(tmp_path / "a", "int4_g32", **request)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stage", ["weights", "verify"])
def test_ctrl_c(stage: str, exporter: Any, tmp_path: Path) -> None:
    """A real signal in the middle of a stage."""
    sent = []

    def interrupt(name: str, done: int, total: int) -> None:
        if name == stage and done >= total // 2 and not sent:
            sent.append(done)
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            exporter.export(tmp_path / "a", "int8_pc_sym", outputs=("pose",), progress=interrupt)
    finally:
        signal.signal(signal.SIGINT, before)
    assert sent
    assert list(tmp_path.iterdir()) == []


def test_progress_and_times_name_the_stages(exporter: Any, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    result = exporter.export(
        tmp_path / "a", "int4_g32", outputs=("pose",), progress=lambda *step: seen.append(step)
    )
    assert list(dict.fromkeys(name for name, _, _ in seen)) == [
        "checkpoint",
        "trace",
        "weights",
        "verify",
    ]
    weights = [(done, total) for name, done, total in seen if name == "weights"]
    assert weights[-1][0] == weights[-1][1] > 0
    assert all(done <= total for done, total in weights)
    assert set(result.seconds) == {"checkpoint", "trace", "weights", "graphs", "verify"}


def test_versions_are_those_installed_under_whatever_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the gpu extra there is no distribution called onnxruntime."""

    def version(name: str) -> str:
        if name == "onnxruntime":
            raise PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(pipeline, "version", version)
    found = pipeline.installed_versions()
    assert "onnxruntime" not in found
    assert {"torch", "onnx", "onnxruntime-gpu"} <= set(found)
