"""The subjects of the GPU benchmark on the fake GPU: what they answer, and that it is right."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # bench is no part of the package

from bench.gpu_onnxruntime import _caller, output_shapes
from bench.gpu_report import Finding, table
from bench.gpu_rows import choose
from bench.gpu_steps import find_device, run_engine
from bench.gpu_timing import time_subject, unavailable
from bench.process import StepResult
from vggt_deploy.engines.tensorrt.buffers import Buffers
from vggt_deploy.engines.tensorrt.cuda import load_cuda
from vggt_deploy.errors import ArtifactError, RuntimeUnavailableError

HEIGHT, WIDTH = 42, 56


@pytest.fixture
def images(tmp_path: Path) -> Path:
    path = tmp_path / "images.npy"
    shape = (1, 8, 3, HEIGHT, WIDTH)
    np.save(path, np.random.default_rng(0).random(shape, dtype=np.float32))
    return path


def test_an_engine(machine: Any, make_engine: Any, images: Path, tmp_path: Path) -> None:
    answer = run_engine(
        folder=str(make_engine()),
        images=str(images),
        arrays=str(tmp_path / "found.npz"),
        frames=2,
        warmup=1,
        repeats=3,
        cuda_graph=True,
    )
    assert answer["network"]["samples_ms"] == (5.0,) * 3
    assert answer["device_bytes"] >= machine.trt.weights_bytes
    assert machine.cuda.leaks() == []
    with np.load(tmp_path / "found.npz") as found:
        assert {name: found[name].shape for name in found.files} == output_shapes(
            (1, 2, 3, HEIGHT, WIDTH)
        )
        np.testing.assert_array_equal(found["depth_conf"], 1 + np.load(images)[:, :2, 0])
    result = StepResult("run", 1.0, 1, None, answer)
    finding = Finding(choose("trt_int8_graph")[0], 2, result)
    cells = [cell.strip() for cell in table([finding]).splitlines()[-1].strip("|").split("|")]
    assert cells[:4] == ["TensorRT INT8 x INT8, FP16, CUDA graph", "5.00", "5.00", "5.00"]


def test_a_kept_engine_that_changed_is_not_loaded(
    machine: Any, make_engine: Any, images: Path, tmp_path: Path
) -> None:
    """With --keep an engine may lie there since another day."""
    folder = make_engine()
    plan = folder / "model.engine"
    plan.write_bytes(plan.read_bytes()[:-1] + b"x")
    with pytest.raises(ArtifactError, match="was changed"):
        run_engine(str(folder), str(images), str(tmp_path / "found.npz"), 2, 1, 1, False)
    assert machine.trt.plans == []


class BoundSession:
    """An `InferenceSession` that computes depth on the addresses that were bound."""

    def __init__(self, cuda: Any, stream: int) -> None:
        self.cuda, self.stream = cuda, stream
        self.bound: dict[str, tuple[Sequence[int], int]] = {}

    def io_binding(self) -> BoundSession:
        return self

    def get_inputs(self) -> list[Any]:
        class Input:
            name = "images"

        return [Input()]

    def bind_input(
        self, name: str, device: str, number: int, kind: Any, shape: Sequence[int], address: int
    ) -> None:
        assert (device, number, kind) == ("cuda", 0, np.float32)
        self.bound[name] = (shape, address)

    bind_output = bind_input

    def run_with_iobinding(self, binding: Any) -> None:
        assert binding is self
        views = {
            name: self.cuda.floats(address, int(np.prod(shape))).reshape(shape)
            for name, (shape, address) in self.bound.items()
        }

        def compute() -> None:
            self.cuda.clock_ms += 7.0
            for name, view in views.items():
                if name != "images":
                    view[...] = views["images"].mean()

        self.cuda.put(self.stream, compute)


def test_onnx_runtime_with_bound_memory(machine: Any, images: Path) -> None:
    cuda = load_cuda()
    stream, buffers = cuda.create_stream(), Buffers(cuda)
    session = BoundSession(machine.cuda, stream)
    batch = np.load(images)[:, :3]
    found: dict[str, Any] = {}
    call = _caller(session, cuda, stream, buffers, batch, found)
    times = time_subject(cuda, stream, call, warmup=1, repeats=2)
    assert times["network"]["samples_ms"] == (7.0, 7.0)
    assert times["to_device"]["p50_ms"] == 1.0
    assert times["to_host"]["p50_ms"] == 10.0
    assert times["first_call_s"] > 0
    assert {name: value.shape for name, value in found.items()} == output_shapes(batch.shape)
    for value in found.values():
        np.testing.assert_allclose(value, batch.mean(), rtol=1e-5)
    buffers.close()
    cuda.destroy_stream(stream)
    assert machine.cuda.leaks() == []


def test_the_device_and_what_is_in_use(machine: Any) -> None:
    machine.cuda.cudaMalloc(1000)
    device = find_device()["device"]
    assert (device["name"], device["compute_capability"]) == ("Test GPU", "9.0")
    assert device["used_bytes"] == (1 << 33) + 1000


def test_what_is_not_there_is_an_answer() -> None:
    def missing(name: str) -> Any:
        raise RuntimeUnavailableError(f"no {name}", "install it")

    assert unavailable(missing)(name="TensorRT") == {"unavailable": "no TensorRT"}

    def broken() -> Any:
        raise ValueError("this is another matter")

    with pytest.raises(ValueError, match="another matter"):
        unavailable(broken)()
