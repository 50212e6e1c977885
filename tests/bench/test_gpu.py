"""The GPU benchmark without a GPU: it runs to its end, and everything up to the device is real."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # bench is no part of the package

from bench.gpu import Bench, Places, Question, clocks, main, output_errors
from bench.gpu_onnxruntime import placement
from bench.gpu_report import HEADER, Finding, table
from bench.gpu_rows import BASELINE, REFERENCE, ROWS, choose
from bench.gpu_steps import describe_engine, device_profile, export, make_images
from bench.gpu_torch import torch_network
from bench.process import Settings, StepResult
from vggt_deploy.build.profiles import load_profile
from vggt_deploy.data.folders import find_images
from vggt_deploy.engines.device import cuda_device
from vggt_deploy.errors import UsageError

# Answers as a GPU would give them; what a label does wrong is in its name.
STEPS = """
import sys
from pathlib import Path
import numpy as np
from bench.worker import serve
from vggt_deploy.errors import BuildError, RuntimeUnavailableError
from bench.gpu_timing import unavailable

def find_device():
    return {"device": {"name": "Test GPU", "compute_capability": "9.0", "driver_release": "580.1",
                       "used_bytes": 10**9}}

def write_checkpoint(model, path):
    Path(path).write_bytes(b"weights")
    return {}

def make_images(folder, arrays, count, height, width):
    np.save(arrays, np.zeros((1, count, 3, height, width), np.float32))
    return {"images": count, "calibration": folder}

def export(folder, name, **rest):
    assert Path(rest["checkpoint"]).read_bytes() == b"weights"
    if name.startswith("bf16"):
        raise BuildError("bf16 | is out of order", "x")
    Path(folder).mkdir()
    (Path(folder) / "manifest.json").write_text(name)
    return {}

@unavailable
def build(artifact, folder, runtime, frames, tf32):
    if runtime == "tensorrt-rtx":
        raise RuntimeUnavailableError("no TensorRT-RTX here", "x")
    Path(folder).mkdir()
    (Path(folder) / "manifest.json").write_text("engine")
    return {}

def answer(arrays, frames, p50, wrong, really):
    np.savez(arrays, depth=np.full((frames, 4), 1.0 + wrong, np.float32))
    spread = {"p50_ms": p50 * frames, "p90_ms": p50 * frames, "p99_ms": p50 * frames}
    return {"network": spread, "end_to_end": spread, "device_bytes": 2 * 10**9, "load_s": 1.5,
            "really": really}

def run_torch(arrays, frames, half, tf32, compiled, **rest):
    if compiled and frames > 1:
        raise RuntimeError("CUDA out of memory")
    return answer(arrays, frames, 10 if half else 20, 0.01 if half else 0.0,
                  {"float32_matmul_precision": "high" if tf32 else "highest"})

@unavailable
def run_onnxruntime(**rest):
    raise RuntimeUnavailableError("no CUDAExecutionProvider", "x")

def run_engine(folder, arrays, frames, cuda_graph, **rest):
    assert (Path(folder) / "manifest.json").read_text() == "engine"
    really = {"proof": "x", "flop_shares": {"int8": 1.0}, "attentions": 4, "attentions_fused": 3,
              "tf32": True, "notes": ["slow on Test GPU"]}
    return answer(arrays, frames, 4 if cuda_graph else 5, 0.1, really)

names = ("find_device", "write_checkpoint", "make_images", "export", "build", "run_torch",
         "run_onnxruntime", "run_engine")
if __name__ == "__main__":
    sys.exit(serve({name: globals()[name] for name in names}, sys.argv[1:]))
"""
LABELS = (
    "torch_fp32,torch_bf16,torch_bf16_compiled,ort_fp32,trt_int8,trt_int8_graph,trt_bf16,rtx_fp16"
)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    (tmp_path / "gpu_steps_of_the_test.py").write_text(STEPS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for name in ("out", "work", "logs"):
        (tmp_path / name).mkdir()
    return Settings(tmp_path / "logs", 1, 60.0, "gpu_steps_of_the_test")


def make_bench(settings: Settings, labels: str, frames: tuple[int, ...]) -> Bench:
    folder = settings.folder.parent
    places = Places(folder / "out", folder / "work", folder / "logs")
    question = Question("random:test", choose(labels), 14, 28, frames, 1, 2)
    return Bench(question, places, settings)


def cells(bench: Bench, frames: int) -> dict[str, list[str]]:
    text = bench.save(finished=True)
    part = text.split(f"### {frames} frame")[1].split("\n\n")[1]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines()]
    return {row[0]: row[1:] for row in rows[2:]}


def test_without_a_gpu_every_row_says_so(tmp_path: Path, capsys: Any) -> None:
    if not isinstance(cuda_device(), str):
        pytest.skip("this machine has a CUDA device")
    out = tmp_path / "out"
    assert main(["--out", str(out), "--model", "random:vggt-tiny"]) == 0
    told = json.loads((out / "gpu.json").read_text())
    assert told["finished"]
    assert told["device"] is None
    assert len(told["rows"]) == 4 * len(ROWS)
    assert {row["frames"] for row in told["rows"]} == {1, 4, 10, 30}
    assert all(row["reason"].startswith("not run: no CUDA device") for row in told["rows"])
    text = (out / "gpu.md").read_text()
    assert text.count("not run: no CUDA device") == 4 * len(ROWS)
    assert text in capsys.readouterr().out
    assert not (out / "gpu-work").exists()


def test_rows_that_run_fail_or_can_not_run(settings: Settings) -> None:
    bench = make_bench(settings, LABELS, (1, 2))
    bench.run()
    one, two = cells(bench, 1), cells(bench, 2)
    assert one["PyTorch FP32"][0] == "20.00"
    assert one["PyTorch FP32"][5:8] == ["0.50 x", "2.00", "0.0e+00"]
    assert two["PyTorch FP32"][0] == "40.00"
    assert one["PyTorch BF16, SDPA"][5:8] == ["1.00 x", "2.00", "1.0e-02"]
    assert one["PyTorch BF16, compiled"][0] == "10.00"
    assert "FAILED" in two["PyTorch BF16, compiled"][-1]
    assert "CUDA out of memory" in two["PyTorch BF16, compiled"][-1]
    assert one["ONNX Runtime CUDA FP32"][-1] == "not run: no CUDAExecutionProvider"
    assert one["TensorRT INT8 x INT8, FP16"][5] == "2.00 x"
    said = one["TensorRT INT8 x INT8, FP16"][-1]
    assert said == "100% int8; 3 of 4 attentions fused, TF32; slow on Test GPU"
    assert one["TensorRT INT8 x INT8, FP16, CUDA graph"][5] == "2.50 x"
    assert "bf16 / is out of order" in one["TensorRT BF16"][-1]
    assert "no TensorRT-RTX here" in one["TensorRT-RTX FP16"][-1]
    assert all(len(row) == len(HEADER) - 1 for row in [*one.values(), *two.values()])
    failed = {(f.row.label, f.frames) for f in bench.findings if f.failed}
    assert failed == {("torch_bf16_compiled", 2)}


def test_what_is_shared_is_made_once_and_used_again(settings: Settings) -> None:
    """Two rows of one engine; a second run over the same folder makes nothing anew."""
    labels = "trt_int8,trt_int8_graph,trt_bf16"
    bench = make_bench(settings, labels, (1,))
    bench.run()
    assert sorted(bench.made) == [
        "bf16@bf16",
        "int8_pc_sym+static@fp16",
        "tensorrt-int8_pc_sym+static@fp16-tf32",
    ]
    again = make_bench(settings, labels, (1,))
    again.run()
    assert sorted(again.made) == ["bf16@bf16"]
    assert cells(again, 1)["TensorRT INT8 x INT8, FP16"][0] == "5.00"


def test_another_model_does_not_get_the_rows_of_this_one(settings: Settings) -> None:
    make_bench(settings, "trt_int8", (1,)).run()
    bench = make_bench(settings, "trt_int8", (1,))
    bench.question = dataclasses.replace(bench.question, model="random:other")
    with pytest.raises(UsageError, match=r"random:test.*random:other"):
        bench.run()


def test_a_hanging_nvidia_smi_costs_no_rows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def hang(command: list[str], *, timeout: float, **rest: Any) -> Any:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(shutil, "which", lambda name: str(tmp_path / name))
    monkeypatch.setattr(subprocess, "run", hang)
    assert "timed out" in str(clocks())


def test_what_was_done_is_saved_when_it_ends_early(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench(settings, "torch_fp32,torch_tf32,torch_bf16", (1,))
    measure, seen = bench._measure, []

    def interrupted(finding: Finding) -> None:
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(finding)
        measure(finding)

    monkeypatch.setattr(bench, "_measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bench.run()
    told = json.loads((bench.places.out / "gpu.json").read_text())
    assert not told["finished"]
    assert [row["reason"] for row in told["rows"]] == [
        None,
        None,
        "not run: the benchmark ended before",
    ]
    assert "NOT FINISHED" in (bench.places.out / "gpu.md").read_text()


def test_an_error_in_the_outputs_is_seen(tmp_path: Path) -> None:
    right = np.arange(6, dtype=np.float32)
    np.savez(tmp_path / "a.npz", depth=right, pose=right)
    np.savez(tmp_path / "b.npz", depth=right, pose=right * 1.5)
    found = output_errors(tmp_path / "a.npz", tmp_path / "b.npz")
    assert found == {"depth": 0.0, "pose": 0.5}


def test_without_the_baseline_there_is_no_ratio() -> None:
    spread = {"p50_ms": 1.0, "p90_ms": 1.0, "p99_ms": 1.0}
    answer = {
        "network": spread,
        "end_to_end": spread,
        "device_bytes": 1,
        "load_s": 1.0,
        "really": {"nodes": {"CUDAExecutionProvider": 9}, "tf32": False},
    }
    rows = choose(f"{REFERENCE},{BASELINE},ort_fp32")
    findings = [Finding(row, 1) for row in rows]
    findings[2].run = StepResult("run", 1.0, 1, None, answer)
    last = table(findings).splitlines()[-1]
    assert "9 nodes CUDAExecutionProvider" in last
    assert " x |" not in last


@pytest.mark.parametrize(
    "arguments", [["--frames", "0,1"], ["--frames", "a"], ["--only", "x"], ["--repeats", "0"]]
)
def test_wrong_usage(arguments: list[str], tmp_path: Path) -> None:
    assert main([*arguments, "--out", str(tmp_path)]) == UsageError.exit_code


def test_onnx_runtimes_profile_says_where_nodes_ran(tmp_path: Path) -> None:
    import onnx
    import onnxruntime as ort
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in "xy")
    nodes = [helper.make_node("Exp", ["x"], ["z"]), helper.make_node("Neg", ["z"], ["y"])]
    graph = helper.make_graph(nodes, "two", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, tmp_path / "m.onnx")
    options = ort.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "p")
    session = ort.InferenceSession(tmp_path / "m.onnx", options, ["CPUExecutionProvider"])
    session.run(None, {"x": np.ones(2, np.float32)})
    found = placement(Path(session.end_profiling()))
    assert found["nodes"] == {"CPUExecutionProvider": 2}
    assert set(found["launch_ms"]) == {"CPUExecutionProvider"}


def test_the_half_network_is_half_and_close() -> None:
    """On the CPU: other numbers than FP32, by BF16's rounding and no more."""
    import torch

    model = "random:vggt-tiny"
    images = torch.rand((1, 2, 3, 56, 84), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        full = torch_network(model, "cpu", half=False)(images)
        half = torch_network(model, "cpu", half=True)(images)
    for name in ("depth", "pose_enc", "world_points"):
        error = float((half[name] - full[name]).norm() / full[name].norm())
        assert half[name].dtype == torch.float32
        assert 1e-5 < error < 0.1, name


def test_the_images_are_the_same_for_all(tmp_path: Path) -> None:
    told = make_images(str(tmp_path), str(tmp_path / "images.npy"), 2, 28, 42)
    batch = np.load(tmp_path / "images.npy")
    assert batch.shape == (1, 2, 3, 28, 42)
    assert batch.dtype == np.float32
    assert len(find_images(told["calibration"]).paths) == 4


def test_from_export_to_an_engine_with_its_proof(tmp_path: Path) -> None:
    """The steps' own code with the real TensorRT-RTX, for a card that is not here."""
    from vggt_deploy.api import build

    make_images(str(tmp_path), str(tmp_path / "images.npy"), 1, 56, 84)
    artifact = tmp_path / "artifact"
    export(
        checkpoint="random:vggt-tiny",
        folder=str(artifact),
        name="int8_pc_sym+static@fp16",
        height=56,
        width=84,
        frames=[1, 4],
        calibration=str(tmp_path / "calibration"),
        traces=str(tmp_path / "traces"),
    )
    profile = tmp_path / "engine.toml"
    profile.write_text(device_profile("tensorrt-rtx", "8.9", [4, 1], tf32=False))
    loaded = load_profile(profile)
    assert [(f.min, f.opt, f.max) for f in loaded.frames] == [(1, 1, 1), (4, 4, 4)]
    assert not loaded.tf32
    engine = tmp_path / "engine"
    build(artifact, runtime="tensorrt-rtx", device=str(profile), output_dir=engine)
    told = describe_engine(engine)
    assert told["flop_shares"] == {"int8": 1.0}
    assert told["linears"] > 0
    assert told["attentions_fused"] > 0
    assert told["plan_bytes"] > 10**6
    assert told["tf32"] is False


@pytest.mark.gpu
@pytest.mark.slow
def test_on_a_gpu_no_row_fails(tmp_path: Path) -> None:
    arguments = ["--model", "random:vggt-tiny", "--height", "56", "--width", "84"]
    arguments += ["--frames", "1,3", "--warmup", "2", "--repeats", "3", "--out", str(tmp_path)]
    assert main(arguments) == 0
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    ran = [row for row in rows if row["reason"] is None]
    assert any(row["row"]["label"] == REFERENCE for row in ran)
    assert all(max(row["errors"].values()) < 0.5 for row in ran)
