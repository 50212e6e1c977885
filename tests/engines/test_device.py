"""The CUDA device: what is reported, and every way in which there is none."""

from __future__ import annotations

import enum
import importlib
import types
from pathlib import Path
from typing import Any

import pytest

from vggt_deploy.engines import device as module
from vggt_deploy.engines.device import CudaDevice, cuda_device


class Error(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInsufficientDriver = 35


def fake(**answers: Any) -> types.SimpleNamespace:
    """A cuda.bindings.runtime with one device; every function returns a tuple, error first."""
    ok = Error.cudaSuccess
    properties = types.SimpleNamespace(name=b"NVIDIA L4\0", major=8, minor=9)
    calls: dict[str, tuple[Any, ...]] = {
        "cudaGetDeviceCount": (ok, 1),
        "cudaSetDevice": (ok,),
        "cudaGetDeviceProperties": (ok, properties),
        "cudaMemGetInfo": (ok, 20 * 2**30, 24 * 2**30),
        "cudaDriverGetVersion": (ok, 13000),
        "cudaRuntimeGetVersion": (ok, 12060),
        "cudaGetErrorString": (ok, b"driver is insufficient"),
        **answers,
    }
    functions = {name: (lambda *_, answer=answer: answer) for name, answer in calls.items()}
    return types.SimpleNamespace(cudaError_t=Error, **functions)


def use(monkeypatch: pytest.MonkeyPatch, runtime: Any) -> None:
    def give(name: str) -> Any:
        assert name == "cuda.bindings.runtime"
        if isinstance(runtime, Exception):
            raise runtime
        return runtime

    monkeypatch.setattr(importlib, "import_module", give)


def test_a_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    version = tmp_path / "version"
    version.write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\n"
        "GCC version:  gcc version 13.3.0\n"
    )
    monkeypatch.setattr(module, "_KERNEL_MODULE", version)
    use(monkeypatch, fake())
    assert cuda_device() == CudaDevice(
        index=0,
        name="NVIDIA L4",
        compute_capability="8.9",
        total_bytes=24 * 2**30,
        free_bytes=20 * 2**30,
        driver_cuda=(13, 0),
        runtime_cuda=(12, 6),
        driver_release="580.65.06",
    )


@pytest.mark.parametrize(
    "text, release",
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.161.08  Tue\n", "535.161.08"),
        ("NVRM version: NVIDIA UNIX Kernel Module  550.54  x\n", "550.54"),
        ("something else 12.6\n", None),
        ("", None),
        (None, None),
    ],
)
def test_the_driver_release(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str | None, release: str | None
) -> None:
    if text is not None:
        (tmp_path / "version").write_text(text)
    monkeypatch.setattr(module, "_KERNEL_MODULE", tmp_path / "version")
    use(monkeypatch, fake())
    found = cuda_device()
    assert isinstance(found, CudaDevice)
    assert found.driver_release == release


@pytest.mark.parametrize(
    "runtime, said",
    [
        (ImportError("No module named 'cuda'"), "No module named 'cuda'"),
        (RuntimeError("libcudart not found"), "libcudart not found"),
        (fake(cudaGetDeviceCount=(Error.cudaErrorInsufficientDriver, None)), "insufficient"),
        (fake(cudaGetDeviceCount=(Error.cudaSuccess, 0)), "shows 0 devices"),
        (fake(cudaMemGetInfo=(Error.cudaErrorInsufficientDriver, None, None)), "cudaMemGetInfo"),
    ],
)
def test_no_device_has_a_reason(monkeypatch: pytest.MonkeyPatch, runtime: Any, said: str) -> None:
    use(monkeypatch, runtime)
    found = cuda_device()
    assert isinstance(found, str)
    assert said in found


def test_a_library_that_fails_late(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("libcuda.so.1 can't be opened")

    runtime = fake()
    runtime.cudaGetDeviceCount = fail
    use(monkeypatch, runtime)
    assert "libcuda" in str(cuda_device())


def test_this_machine_gives_a_device_or_a_reason() -> None:
    found = cuda_device()
    assert isinstance(found, CudaDevice) or (isinstance(found, str) and len(found) > 10)
