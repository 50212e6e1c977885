"""The stages through the command line, as a user runs them: tiny model, real files and signals."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

COMMAND = [sys.executable, "-m", "vggt_deploy"]
SIZE = ["--height", "28", "--width", "42", "--frames", "1:2:3"]
# Of this seed the random cameras have a field of view that gives points.
EXPORT = ["export", "--model", "random:vggt-tiny:5", "--scheme", "int8_pc_sym", *SIZE]


def call(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def start_export(target: Path, stage: str) -> subprocess.Popen[str]:
    """An export that has begun `stage`."""
    process = subprocess.Popen(
        [*COMMAND, *EXPORT, "-o", str(target)], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(stage):
            return process
    pytest.fail(f"export ended before {stage}")


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures") / "views"
    done = call("scene", "-o", folder, "--views", "4", "--size", "84x56")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "artifact"
    done = call(*EXPORT, "-o", folder)
    assert done.returncode == 0, done.stderr
    assert f"{folder}: int8_pc_sym" in done.stdout.replace("\n", "")
    return folder


@pytest.fixture
def artifact(exported: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(exported, tmp_path / "artifact"))


def test_an_export_is_its_manifest_and_the_files_in_it(exported: Path) -> None:
    manifest = json.loads((exported / "manifest.json").read_text())
    assert listing(exported) == sorted([*manifest["files"], "manifest.json"])
    assert manifest["verification"] is not None
    assert listing(exported.parent) == ["artifact"]


def test_run_writes_depth_cameras_and_points(
    exported: Path, pictures: Path, tmp_path: Path
) -> None:
    done = call("run", exported, "--images", pictures, "--max-images", "3", "-o", tmp_path / "r")
    assert done.returncode == 0, done.stderr
    assert {"cameras.json", "points.glb", "points.ply", "predictions.npz", "run.json"} <= set(
        listing(tmp_path / "r")
    )
    cameras = json.loads((tmp_path / "r" / "cameras.json").read_text())
    assert "DSC_0002.JPG" in json.dumps(cameras)
    assert "DSC_0003.JPG" not in json.dumps(cameras)


def test_run_refuses_more_images_than_the_artifact_takes(
    exported: Path, pictures: Path, tmp_path: Path
) -> None:
    done = call("run", exported, "--images", pictures, "-o", tmp_path / "r")
    assert done.returncode == 2, done.stderr
    assert "--max-images" in done.stderr or "1 to 3" in done.stderr
    assert not (tmp_path / "r").exists()


def edit_graph(artifact: Path) -> None:
    path = artifact / "model.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut_weights(artifact: Path) -> None:
    os.truncate(artifact / "weights.bin", 1000)


def newer_manifest(artifact: Path) -> None:
    path = artifact / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 99}))


def no_manifest(artifact: Path) -> None:
    (artifact / "manifest.json").unlink()


@pytest.mark.parametrize(
    "spoil, message",
    [
        (edit_graph, "was changed after it was written"),
        (cut_weights, "is cut short"),
        (newer_manifest, "schema 99"),
        (no_manifest, "holds no manifest.json"),
    ],
)
def test_run_refuses_a_spoiled_artifact(
    artifact: Path, pictures: Path, tmp_path: Path, spoil: object, message: str
) -> None:
    assert callable(spoil)
    spoil(artifact)
    done = call("run", artifact, "--images", pictures, "--max-images", "2", "-o", tmp_path / "r")
    assert done.returncode == 1, done.stderr
    assert message in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "r").exists()


def test_ctrl_c_during_export_leaves_nothing(tmp_path: Path) -> None:
    process = start_export(tmp_path / "a", "trace")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.endswith("interrupted\n")
    assert listing(tmp_path) == []


def test_two_exports_into_one_folder_and_one_after_a_kill(tmp_path: Path) -> None:
    first = start_export(tmp_path / "a", "trace")
    second = call(*EXPORT, "-o", tmp_path / "a")
    assert second.returncode == 1
    assert "is being written by another process" in second.stderr.replace("\n", " ")

    first.kill()
    first.communicate(timeout=60)
    assert [name for name in listing(tmp_path) if not name.startswith(".")] == []
    assert call("run", tmp_path / "a", "--images", "x", "-o", tmp_path / "r").returncode == 1
    (leftover,) = (name for name in listing(tmp_path) if name.endswith(".partial"))
    third = start_export(tmp_path / "a", "trace")
    assert leftover not in listing(tmp_path)
    third.send_signal(signal.SIGINT)
    third.communicate(timeout=60)
    assert listing(tmp_path) == []


def test_a_disk_that_fills_up_during_export(tmp_path: Path) -> None:
    """The kernel fails the write of the weights file, as it would on a full disk."""
    done = subprocess.run(
        [*COMMAND, *EXPORT, "--outputs", "pose", "-o", str(tmp_path / "a")],
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )
    assert done.returncode == 1, done.stderr
    assert "no space left for" in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr
    assert listing(tmp_path) == []


def test_from_photographs_to_a_verified_bundle(pictures: Path, tmp_path: Path) -> None:
    """The commands of a user who ships W8A8, without a GPU; only `run` needs one."""
    artifact, engine, bundle = (tmp_path / name for name in ("A", "engine", "vggt.bundle"))
    static = ["--activations", "static", "--calibrate", pictures, "--precision", "fp16"]
    done = call(*EXPORT, *static, "-o", artifact)
    assert done.returncode == 0, done.stderr
    profile = Path(__file__).parents[1] / "engines" / "rtx4090.toml"
    build = ["build", artifact, "--runtime", "tensorrt-rtx", "--device", profile]
    done = call(*build, "-o", engine)
    assert done.returncode == 0, done.stderr
    for measure in ("layers", "flops", "bytes"):
        assert re.search(rf"by {measure} +int8 100\.0%", done.stdout), done.stdout
    assert "(10 of 10 in 16 bit)" in done.stdout
    done = call("inspect", engine, "--json")
    assert json.loads(done.stdout)["shares"]["flops"] == {"int8": 1.0}
    done = call("run", engine, "--images", pictures, "--max-images", "3", "-o", tmp_path / "out")
    if done.returncode:  # with an RTX 4090 it would run
        assert "can't run here" in done.stderr
        assert "8.9" in done.stderr
        assert not (tmp_path / "out").exists()
    done = call("bundle", engine, "--with-onnx", artifact, "-o", bundle)
    assert done.returncode == 0, done.stderr
    done = call("verify", bundle)
    assert done.returncode == 0, done.stderr
    assert "whole and unchanged" in done.stdout
    done = call("bundle", artifact, "--format", "triton", "-o", tmp_path / "models")
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "models").glob("*/config.pbtxt"))
    content = bytearray(bundle.read_bytes())
    content[-100_000] ^= 1
    bundle.write_bytes(content)
    done = call("verify", bundle)
    assert done.returncode == 1
    assert "was changed" in done.stderr
