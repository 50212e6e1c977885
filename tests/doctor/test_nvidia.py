from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vggt_deploy.doctor import Check, nvidia
from vggt_deploy.doctor.nvidia import check_cuda_bindings, check_cuda_driver, check_nvml
from vggt_deploy.engines.device import CudaDevice

# The functions of libcuda that the doctor calls, with the answers of a machine with two GPUs.
FAKE_DRIVER = """
#include <stddef.h>
#include <string.h>
int cuInit(unsigned flags) { return %(init)d; }
int cuDriverGetVersion(int *version) { *version = 12080; return 0; }
int cuDeviceGetCount(int *count) { *count = %(count)d; return 0; }
int cuDeviceGet(int *device, int index) { *device = index + 10; return 0; }
int cuDeviceGetName(char *name, int size, int device) {
    strncpy(name, device == 10 ? "NVIDIA H200" : "NVIDIA RTX 4090", size); return 0; }
int cuDeviceTotalMem_v2(size_t *size, int device) { *size = (size_t)24 << 30; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? (device == 10 ? 9 : 8) : (device == 10 ? 0 : 9); return 0; }
"""
# The same of NVML.
FAKE_NVML = """
#include <string.h>
int nvmlInit_v2(void) { return %(init)d; }
int nvmlShutdown(void) { return 0; }
int nvmlSystemGetDriverVersion(char *text, unsigned length) {
    strncpy(text, "%(version)s", length); return %(status)d; }
"""


def compile_library(source: str, folder: Path, name: str) -> str:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to build a stand-in for the driver")
    text = folder / f"{name}.c"
    text.write_text(source)
    library = folder / f"{name}.so"
    command = [compiler, "-shared", "-fPIC", "-o", str(library), str(text)]
    subprocess.run(command, check=True, capture_output=True)
    return str(library)


def build_driver(folder: Path, *, init: int, count: int) -> str:
    source = FAKE_DRIVER % {"init": init, "count": count}
    return compile_library(source, folder, f"libcuda-{init}-{count}")


def build_nvml(folder: Path, version: str, *, init: int = 0, status: int = 0) -> str:
    source = FAKE_NVML % {"version": version, "init": init, "status": status}
    return compile_library(source, folder, f"libnvml-{version}-{init}-{status}")


def test_the_driver_is_asked_for_its_devices(tmp_path: Path) -> None:
    check = check_cuda_driver(build_driver(tmp_path, init=0, count=2))
    assert check.state == "ok"
    assert check.found == (
        "NVIDIA H200 (compute 9.0, 24.0 GiB), NVIDIA RTX 4090 (compute 8.9, 24.0 GiB) "
        "(driver for CUDA 12.8)"
    )


def test_a_driver_without_a_device_is_not_ok(tmp_path: Path) -> None:
    assert "no device" in check_cuda_driver(build_driver(tmp_path, init=0, count=0)).found
    broken = check_cuda_driver(build_driver(tmp_path, init=100, count=1))
    assert (broken.state, "error 100" in broken.found) == ("missing", True)
    assert "no NVIDIA driver" in check_cuda_driver("libno_such_driver.so.1").found


def test_the_driver_version_comes_from_nvml(tmp_path: Path) -> None:
    check = check_nvml(build_nvml(tmp_path, "580.65.06"))
    assert (check.state, check.found) == ("ok", "580.65.06")
    old = check_nvml(build_nvml(tmp_path, "550.90.07"))
    assert old.state == "ok"
    assert "need 580" in old.found


def test_nvml_that_is_absent_or_fails(tmp_path: Path) -> None:
    assert "no NVML" in check_nvml("libno_such_nvml.so.1").found
    broken = check_nvml(build_nvml(tmp_path, "1", init=9))
    assert (broken.state, "error 9" in broken.found) == ("missing", True)
    silent = check_nvml(build_nvml(tmp_path, "1", status=999))
    assert (silent.state, "error 999" in silent.found) == ("unknown", True)


DEVICE = Check("CUDA device", "ok", "NVIDIA H200")


def test_the_cuda_bindings_are_tried_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    device = CudaDevice(0, "NVIDIA H200", "9.0", 4 * 2**30, 3 * 2**30, (13, 0), (13, 5), None)
    monkeypatch.setattr(nvidia, "cuda_device", lambda: device)
    check = check_cuda_bindings(DEVICE)
    assert check.state == "ok"
    assert check.found.endswith("NVIDIA H200: 3.0 of 4.0 GiB free")


def test_cuda_bindings_that_can_not_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = check_cuda_bindings(Check("CUDA device", "missing", "no driver", "get one"))
    assert (nowhere.state, "no device to try" in nowhere.found) == ("unknown", True)
    monkeypatch.setattr(nvidia, "cuda_device", lambda: "cudaGetDeviceCount: too old a driver")
    refused = check_cuda_bindings(DEVICE)
    assert (refused.state, "too old a driver" in refused.found) == ("missing", True)
    assert refused.fix
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    absent = check_cuda_bindings(DEVICE)
    assert absent.state == "missing"
    assert "vggt-deploy[rtx]" in absent.fix


@pytest.mark.gpu
def test_a_real_cuda_device() -> None:
    assert "compute" in check_cuda_driver().found
    assert check_nvml().state == "ok"
    assert check_cuda_bindings(check_cuda_driver()).state == "ok"
