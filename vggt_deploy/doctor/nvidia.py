"""The NVIDIA driver and its devices, asked without any CUDA package; and cuda-bindings."""

from __future__ import annotations

import ctypes
from typing import Any

from vggt_deploy.doctor.checks import Check
from vggt_deploy.doctor.packages import import_or_reason, installed_version
from vggt_deploy.engines.device import cuda_device

# What NVIDIA's prerequisites of TensorRT 11 state for the packages of CUDA 13.
CUDA_13_DRIVER = 580
_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR = 75, 76  # CUdevice_attribute
_NVML_VERSION_CHARACTERS = 80  # NVML_SYSTEM_DRIVER_VERSION_BUFFER_SIZE


def check_cuda_driver(library: str = "libcuda.so.1") -> Check:
    """The devices that the CUDA driver sees, with compute capability and memory."""
    fix = "an NVIDIA GPU and its driver (not needed for export, or to run on the CPU)"
    try:
        cuda = ctypes.CDLL(library)
    except OSError:
        return Check("CUDA device", "missing", f"no NVIDIA driver ({library})", fix)
    count, driver = ctypes.c_int(), ctypes.c_int()
    if (status := cuda.cuInit(0)) != 0:
        return Check("CUDA device", "missing", f"the driver reports error {status} (cuInit)", fix)
    cuda.cuDriverGetVersion(ctypes.byref(driver))
    cuda.cuDeviceGetCount(ctypes.byref(count))
    if count.value == 0:
        return Check("CUDA device", "missing", "a driver, but no device", fix)
    devices = ", ".join(_cuda_device(cuda, index) for index in range(count.value))
    version = f"{driver.value // 1000}.{driver.value % 1000 // 10}"
    return Check("CUDA device", "ok", f"{devices} (driver for CUDA {version})")


def check_nvml(library: str = "libnvidia-ml.so.1") -> Check:
    """The driver's own version, from NVML; `nvidia-smi` reads it in the same place."""
    fix = "the NVIDIA driver; in a container, run it with --gpus all"
    try:
        nvml = ctypes.CDLL(library)
    except OSError:
        return Check("NVIDIA driver", "missing", f"no NVML ({library})", fix)
    if (status := nvml.nvmlInit_v2()) != 0:
        return Check("NVIDIA driver", "missing", f"NVML reports error {status} (nvmlInit)", fix)
    text = ctypes.create_string_buffer(_NVML_VERSION_CHARACTERS)
    status = nvml.nvmlSystemGetDriverVersion(text, _NVML_VERSION_CHARACTERS)
    nvml.nvmlShutdown()
    if status != 0:
        found = f"NVML reports error {status} (nvmlSystemGetDriverVersion)"
        return Check("NVIDIA driver", "unknown", found)
    version = text.value.decode(errors="replace")
    major = version.partition(".")[0]
    if major.isdigit() and int(major) < CUDA_13_DRIVER:
        version += f"; the packages for CUDA 13 need {CUDA_13_DRIVER} (TensorRT 11, TensorRT-RTX)"
    return Check("NVIDIA driver", "ok", version)


def check_cuda_bindings(device: Check) -> Check:
    """NVIDIA's Python bindings of the CUDA runtime, which engines are run through.

    device: the row of the driver's devices; without one the bindings can't be tried.
    """
    name = "cuda-bindings"
    runtime, problem = import_or_reason("cuda.bindings.runtime")
    if runtime is None:
        fix = "pip install 'vggt-deploy[tensorrt]' or 'vggt-deploy[rtx]' (to run engines)"
        return Check(name, "missing", problem, fix)
    version = installed_version(name) or "of unknown version"
    if device.state != "ok":
        return Check(name, "unknown", f"{version} imports; there is no device to try it on")
    found = cuda_device()
    if isinstance(found, str):
        fix = "a newer driver, or cuda-bindings of the CUDA version that the driver has"
        return Check(name, "missing", f"{version}: {found}", fix)
    free, total = (size / 2**30 for size in (found.free_bytes, found.total_bytes))
    return Check(name, "ok", f"{version}; {found.name}: {free:.1f} of {total:.1f} GiB free")


def _cuda_device(cuda: Any, index: int) -> str:
    """`NVIDIA H200 (compute 9.0, 139.8 GiB)`."""
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name, size = ctypes.create_string_buffer(256), ctypes.c_size_t()
    cuda.cuDeviceGet(ctypes.byref(device), index)
    cuda.cuDeviceGetName(name, len(name), device)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(size), device)
    cuda.cuDeviceGetAttribute(ctypes.byref(major), _COMPUTE_CAPABILITY_MAJOR, device)
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), _COMPUTE_CAPABILITY_MINOR, device)
    label = name.value.decode(errors="replace")
    return f"{label} (compute {major.value}.{minor.value}, {size.value / 2**30:.1f} GiB)"
