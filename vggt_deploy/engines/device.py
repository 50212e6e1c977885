"""The CUDA device of this machine, asked through cuda-bindings; no CUDA toolkit, torch or numpy.

device = cuda_device()
if isinstance(device, str): print("no CUDA device:", device)
"""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

_KERNEL_MODULE = Path("/proc/driver/nvidia/version")
_RELEASE = re.compile(r"\b(\d{3,}\.\d+(?:\.\d+)?)\b")


@dataclass(frozen=True)
class CudaDevice:
    """One CUDA device.

    compute_capability: "8.9"
    total_bytes, free_bytes: device memory; on a Jetson it is the memory of the machine
    driver_cuda: the newest CUDA that the driver runs, (13, 0)
    runtime_cuda: of the CUDA runtime in cuda-bindings
    driver_release: "580.65.06", or None where the kernel module does not tell
    """

    index: int
    name: str
    compute_capability: str
    total_bytes: int
    free_bytes: int
    driver_cuda: tuple[int, int]
    runtime_cuda: tuple[int, int]
    driver_release: str | None


def cuda_device(index: int = 0) -> CudaDevice | str:
    """Device `index`, or why there is none, in words. Creates a CUDA context on it."""
    try:
        runtime = importlib.import_module("cuda.bindings.runtime")
    except (
        ImportError,
        OSError,
        RuntimeError,
    ) as error:  # a missing libcudart is each of the three
        return (
            f"cuda-bindings can't be imported ({error}); "
            "it comes with 'vggt-deploy[tensorrt]' and 'vggt-deploy[rtx]'"
        )
    try:
        return _ask(runtime, index)
    except _CudaError as error:
        return str(error)
    except RuntimeError as error:  # cuda-bindings raises it when a driver library can't be loaded
        return f"CUDA can't be used: {error}"


class _CudaError(Exception):
    """A call of the CUDA runtime failed; the text says which and why."""


def _ask(runtime: ModuleType, index: int) -> CudaDevice:
    count = _call(runtime, "cudaGetDeviceCount")
    if index >= count:
        raise _CudaError(f"the CUDA driver shows {count} devices, number {index} was asked for")
    _call(runtime, "cudaSetDevice", index)
    properties = _call(runtime, "cudaGetDeviceProperties", index)
    free_bytes, total_bytes = _call(runtime, "cudaMemGetInfo")
    return CudaDevice(
        index=index,
        name=_text(properties.name),
        compute_capability=f"{properties.major}.{properties.minor}",
        total_bytes=int(total_bytes),
        free_bytes=int(free_bytes),
        driver_cuda=_version(_call(runtime, "cudaDriverGetVersion")),
        runtime_cuda=_version(_call(runtime, "cudaRuntimeGetVersion")),
        driver_release=_driver_release(_KERNEL_MODULE),
    )


def _call(runtime: ModuleType, name: str, *arguments: Any) -> Any:
    """The value of a call that returns (error,), (error, value) or (error, value, value...)."""
    error, *values = getattr(runtime, name)(*arguments)
    if error != runtime.cudaError_t.cudaSuccess:
        _, message = runtime.cudaGetErrorString(error)
        raise _CudaError(f"{name}: {_text(message)} ({error.name})")
    return values[0] if len(values) == 1 else tuple(values)


def _version(number: int) -> tuple[int, int]:
    """13050 -> (13, 5), as CUDA counts: 1000 * major + 10 * minor."""
    return number // 1000, number % 1000 // 10


def _text(value: bytes | str) -> str:
    return value.decode("utf-8", "replace").rstrip("\0") if isinstance(value, bytes) else value


def _driver_release(path: Path) -> str | None:
    """`NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06 ...` -> 580.65.06."""
    if not path.is_file():
        return None
    first = path.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
    found = _RELEASE.search(first)
    return found[1] if found else None
