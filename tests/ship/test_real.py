"""With a real network, a real builder and ONNX Runtime: vggt-tiny, small pictures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

from vggt_deploy.build import build
from vggt_deploy.engines.device import CudaDevice
from vggt_deploy.engines.onnxruntime import open_onnxruntime
from vggt_deploy.errors import ProofError, RuntimeUnavailableError, UsageError
from vggt_deploy.export import export
from vggt_deploy.manifest import read_manifest
from vggt_deploy.ship import rebuild as rebuild_module
from vggt_deploy.ship.bundle import bundle
from vggt_deploy.ship.rebuild import rebuild
from vggt_deploy.ship.triton_config import model_config
from vggt_deploy.ship.verify import unpack, verify

ROOT = Path(__file__).resolve().parents[2]
HEIGHT, WIDTH = 56, 84


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4-bit weights: what runs of them depends on settings of ONNX Runtime."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    result = export(
        "random:vggt-tiny",
        "int4_g64",
        precision="fp16",
        height=HEIGHT,
        width=WIDTH,
        frames=(1, 2, 5),
        verify=False,
        trace_cache=shared / "traces",
        output_dir=tmp_path_factory.mktemp("real") / "artifact",
    )
    return result.folder


@pytest.fixture(scope="module")
def engine(artifact: Path) -> Path:
    target = artifact.with_name("engine")
    return build(artifact, runtime="tensorrt-rtx", device="portable-rtx", output_dir=target).folder


@pytest.fixture(scope="module")
def real_bundle(artifact: Path, engine: Path) -> Path:
    return bundle([engine], artifact.with_name("real.bundle"), with_onnx=artifact).path


def test_the_contract_has_the_names_and_shapes_of_the_graph(
    artifact: Path, real_bundle: Path
) -> None:
    graph = onnx.load(artifact / "model.onnx", load_external_data=False).graph
    contract = verify(real_bundle, device=False).index.contract
    for tensor, value in zip(
        (contract.input, *contract.outputs), (*graph.input, *graph.output), strict=True
    ):
        assert tensor.name == value.name
        assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        dims = [d.dim_value or "S" for d in value.type.tensor_type.shape.dim]
        assert list(tensor.shape) == dims


def test_a_real_plan_fits_the_library_that_built_it(
    real_bundle: Path, make_device: Callable[..., CudaDevice], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vggt_deploy.ship import verify as module

    def on(capability: str) -> Any:
        device = make_device(compute_capability=capability)
        monkeypatch.setattr(module, "cuda_device", lambda: device)
        (fit,) = verify(real_bundle).fits
        return {finding.what: finding.state for finding in fit.findings}

    ada = on("8.9")
    assert ada["TensorRT version"] == "fits"
    assert ada["compute capability"] == "fits"
    assert on("7.5")["compute capability"] == "does not fit"


def test_unpack_and_rebuild(
    real_bundle: Path, engine: Path, artifact: Path, tmp_path: Path
) -> None:
    assert read_manifest(unpack(real_bundle, tmp_path / "engine")) == read_manifest(engine)
    stages: set[str] = set()
    result = rebuild(
        real_bundle, tmp_path / "again", progress=lambda stage, done, total: stages.add(stage)
    )
    built, before = result.manifest.engine, read_manifest(engine).engine
    assert built is not None
    assert before is not None
    for name in ("device", "device_profile", "profiles", "compute_capabilities", "onnx_sha256"):
        assert getattr(built, name) == getattr(before, name), name
    assert read_manifest(result.folder) == result.manifest
    assert "checking" in stages
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again", "engine"]


def test_rebuilding_for_another_device(real_bundle: Path, tmp_path: Path) -> None:
    profile = tmp_path / "mine.toml"
    profile.write_text(
        'title = "mine"\nruntimes = ["tensorrt-rtx"]\ncompute_capabilities = ["8.6"]\n'
        'frames = ["1:1:2"]\ntf32 = true\n'
    )
    result = rebuild(real_bundle, tmp_path / "mine", device=str(profile))
    assert result.manifest.engine is not None
    assert result.manifest.engine.compute_capabilities == ("8.6",)
    assert result.manifest.engine.device == "mine"


def test_a_failed_rebuild_leaves_nothing(
    real_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vggt_deploy.build import pipeline

    def fail(*_: object, **__: object) -> object:
        raise ProofError("a float GEMM", "none")

    monkeypatch.setattr(pipeline, "build_plan", fail)
    with pytest.raises(ProofError):
        rebuild(real_bundle, tmp_path / "again")
    assert list(tmp_path.iterdir()) == []


def test_an_edge_install_can_not_rebuild_and_says_why(
    real_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebuild_module, "find_spec", lambda name: None)
    with pytest.raises(RuntimeUnavailableError, match="package onnx") as raised:
        rebuild(real_bundle, tmp_path / "again")
    assert "vggt-deploy[rtx]" in raised.value.fix
    assert list(tmp_path.iterdir()) == []


def test_which_recipe(real_bundle: Path, engine: Path, artifact: Path, tmp_path: Path) -> None:
    index = verify(real_bundle, device=False).index
    recipe = rebuild_module.choose_recipe(index, None, None)
    assert recipe.entry is not None
    assert (recipe.entry.name, recipe.runtime) == ("portable-rtx", "tensorrt-rtx")
    other = rebuild_module.choose_recipe(index, "h200", "tensorrt")
    assert (other.entry, other.device, other.runtime) == (None, "h200", "tensorrt")
    alone = bundle([], tmp_path / "alone", with_onnx=artifact).index
    with pytest.raises(UsageError, match="holds no engine whose device profile"):
        rebuild_module.choose_recipe(alone, None, None)
    with pytest.raises(UsageError, match="which runtime"):
        rebuild_module.choose_recipe(alone, "h200", None)
    assert rebuild_module.choose_recipe(alone, "h200", "tensorrt").device == "h200"


def test_without_optimizations_triton_computes_what_our_session_computes(artifact: Path) -> None:
    """And with them it would not: MatMulNBits rounds activations to 8 bit unless told otherwise."""
    manifest = read_manifest(artifact)
    assert model_config("m", manifest, instances=1, device="cpu").graph_level == 2
    images = np.random.default_rng(0).random((1, 2, 3, HEIGHT, WIDTH), dtype=np.float32)
    session = open_onnxruntime(artifact, manifest, provider="cpu", threads=1)
    expected = session.run(images)["depth"]

    def triton(level: Any) -> float:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = level
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        path = str(artifact / "model.onnx")
        run = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        (depth,) = run.run(["depth"], {"images": images})
        return float(np.abs(depth - expected).max() / np.abs(expected).max())

    levels = onnxruntime.GraphOptimizationLevel
    off, full = triton(levels.ORT_DISABLE_ALL), triton(levels.ORT_ENABLE_ALL)
    assert off < 1e-3
    assert full > 5 * off


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment: the wheel of this tree with [edge], nothing else."""
    folder = tmp_path_factory.mktemp("edge")
    hatchling = (sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder))
    subprocess.run(hatchling, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv", with_pip=True)
    pip = (str(folder / "venv" / "bin" / "python"), "-m", "pip", "--disable-pip-version-check")
    probe = subprocess.run([*pip, "download", "-q", "--no-deps", "-d", folder, "filelock"])
    if probe.returncode:
        pytest.skip("no package index can be reached from here")
    constraints = ("--constraint", str(ROOT / "constraints.txt"))
    subprocess.run([*pip, "install", "--quiet", *constraints, f"{wheel}[edge]"], check=True)
    return folder / "venv" / "bin"


def call(edge: Path, *arguments: object, code: int = 0) -> str:
    """vggt-deploy of the edge environment, away from this tree: what it prints, or complains."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [edge / "vggt-deploy", *map(str, arguments)],
        cwd=edge,
        env={**environment, "COLUMNS": "500"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stderr
    return done.stderr if code else done.stdout


def test_an_edge_install_has_no_torch_and_no_onnx(edge: Path) -> None:
    listed = subprocess.run(
        [edge / "python", "-m", "pip", "list", "--format", "json"], check=True, capture_output=True
    )
    names = {entry["name"].lower() for entry in json.loads(listed.stdout)}
    assert {"vggt-deploy", "onnxruntime", "numpy", "cryptography"} <= names
    assert not names & {"torch", "onnx", "onnx-ir", "onnxscript", "ml-dtypes", "safetensors"}


def test_an_edge_install_verifies_unpacks_inspects_and_runs(
    edge: Path, real_bundle: Path, artifact: Path, tmp_path: Path
) -> None:
    checked = json.loads(call(edge, "verify", real_bundle, "--json"))
    assert checked["signature"] == "unsigned"
    assert checked["fits"][0]["engine"] == "portable-rtx"
    assert "tensorrt_rtx" in checked["installed"]["tensorrt-rtx"]
    said = call(edge, "verify", real_bundle, "--require-fit", code=1)
    assert "no engine of" in said
    engine = tmp_path / "engine"
    call(edge, "unpack", real_bundle, "-o", engine)
    assert "1.7.1.116" in call(edge, "inspect", engine)
    assert "int4_g64" in call(edge, "inspect", artifact)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
        Image.fromarray(pixels).save(pictures / f"{number}.png")
    call(edge, "run", artifact, "--images", pictures, "-o", tmp_path / "out")
    with np.load(tmp_path / "out" / "predictions.npz") as arrays:
        assert arrays["depth"].shape == (1, 2, HEIGHT, WIDTH, 1)
        assert np.isfinite(arrays["depth"]).all()
    said = call(edge, "run", engine, "--images", pictures, "-o", tmp_path / "o", code=1)
    assert "TensorRT-RTX 1.7.1.116" in said
    assert "Traceback" not in said
    said = call(edge, "rebuild", real_bundle, "-o", tmp_path / "again", code=1)
    assert "package onnx" in said


def test_an_edge_install_refuses_a_tampered_bundle(
    edge: Path, real_bundle: Path, tmp_path: Path
) -> None:
    data = bytearray(real_bundle.read_bytes())
    data[len(data) // 2] ^= 1
    tampered = tmp_path / "tampered"
    tampered.write_bytes(data)
    for command in (("verify", tampered), ("unpack", tampered, "-o", tmp_path / "out")):
        said = call(edge, *command, code=1)
        assert "was changed" in said
        assert "Traceback" not in said
    assert not (tmp_path / "out").exists()
