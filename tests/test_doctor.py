from __future__ import annotations

import json
import shutil
import subprocess
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

from vggt_deploy import doctor
from vggt_deploy.doctor import (
    check_cuda_driver,
    check_disk,
    check_jetson,
    check_memory,
    check_onnxruntime,
    check_packages,
    check_provider,
    check_python,
    check_tensorrt,
    check_torch,
    diagnose,
    memory_limit_bytes,
    one_node_model,
)

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


def test_every_row_of_this_machine() -> None:
    diagnosis = diagnose()
    names = [check.name for check in diagnosis.checks]
    assert len(names) == len(set(names))
    for check in diagnosis.checks:
        assert check.state in ("ok", "missing", "unknown")
        assert check.found
        assert bool(check.fix) == (check.state == "missing"), check
    assert json.loads(json.dumps(diagnosis.to_json()))["checks"][0]["name"] == "python"
    assert {"python", "cpu", "memory", "disk", "torch", "onnxruntime", "Jetson"} <= set(names)


def test_the_hand_made_model_is_valid_onnx() -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load_from_string(one_node_model())
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["Relu"]


def test_python_versions() -> None:
    assert [check_python(v).state for v in ((3, 10), (3, 11), (3, 13), (3, 14))] == [
        "missing",
        "ok",
        "ok",
        "missing",
    ]


def test_memory_counts_what_the_container_may_use() -> None:
    assert check_memory(32 * 2**30, None).state == "ok"
    limited = check_memory(32 * 2**30, 4 * 2**30)
    assert limited.state == "missing"
    assert limited.found.startswith("4.0 GiB (limit of this container")
    assert check_memory(32 * 2**30, 2**62).found == "32.0 GiB"
    assert check_memory(None, None).state == "unknown"


def test_the_container_limit_is_read(tmp_path: Path) -> None:
    assert memory_limit_bytes(tmp_path) is None
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_limit_bytes(tmp_path) is None
    (tmp_path / "memory.max").write_text("1073741824\n")
    assert memory_limit_bytes(tmp_path) == 2**30
    (tmp_path / "memory.max").unlink()
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("42")
    assert memory_limit_bytes(tmp_path) == 42


def test_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=3 * 10**9))
    check = check_disk(tmp_path)
    assert (check.state, check.found) == ("missing", f"3.0 GB free in {tmp_path}")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=30 * 10**9))
    assert check_disk(tmp_path).state == "ok"


def test_packages_that_are_absent_are_named() -> None:
    check = check_packages("export", (("numpy", "numpy"), ("no_such_module", "no-such-thing")))
    assert (check.state, check.found) == ("missing", "not installed: no-such-thing")
    assert "[cpu]" in check.fix
    assert "[edge]" in check_packages("run", (("no_such_module", "x"),)).fix
    assert check_packages("run", (("numpy", "numpy"),)).state == "ok"


def test_a_library_that_does_not_import(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: str) -> None:
        raise OSError("libcudart.so.12: cannot open shared object file")

    monkeypatch.setattr(doctor.importlib, "import_module", broken)
    for checks in (check_torch(), check_onnxruntime(), [check_tensorrt("tensorrt", "tensorrt")]):
        assert [check.state for check in checks] == ["missing"]
        assert "does not import: libcudart.so.12" in checks[0].found


def test_the_cpu_provider_runs_a_model() -> None:
    pytest.importorskip("onnxruntime")
    rows = {check.name: check for check in check_onnxruntime()}
    assert rows["onnxruntime CPU"].state == "ok"


def test_a_provider_that_is_only_claimed_is_not_ok() -> None:
    """A build that offers a provider which no session gets: the runtime falls back, we say so."""
    ort = pytest.importorskip("onnxruntime")
    name = "CUDAExecutionProvider"
    if name in ort.get_available_providers():
        pytest.skip("this build has the CUDA provider")
    assert check_provider(ort, name, ["CPUExecutionProvider"]).found.startswith("not part of")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check = check_provider(ort, name, [name])
    assert check.state == "missing"
    assert "vggt-deploy[gpu]" in check.fix


def test_a_provider_that_can_not_run_the_model_is_not_ok(monkeypatch: pytest.MonkeyPatch) -> None:
    ort = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(doctor, "one_node_model", lambda: b"not a model")
    check = check_provider(ort, "CPUExecutionProvider", ["CPUExecutionProvider"])
    assert check.state == "missing"
    assert check.found


def test_both_builds_of_onnxruntime_together_are_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(doctor, "installed_version", lambda _: "1.0")
    check = check_onnxruntime()[0]
    assert check.state == "missing"
    assert "overwrite each other" in check.found


def build_driver(folder: Path, *, init: int, count: int) -> str:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to build a stand-in for the driver")
    source = folder / "driver.c"
    source.write_text(FAKE_DRIVER % {"init": init, "count": count})
    library = folder / f"libcuda-{init}-{count}.so"
    command = [compiler, "-shared", "-fPIC", "-o", str(library), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    return str(library)


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


def test_jetson_by_its_files(tmp_path: Path) -> None:
    assert check_jetson(tmp_path).state == "missing"
    (tmp_path / "proc" / "device-tree").mkdir(parents=True)
    model = tmp_path / "proc" / "device-tree" / "model"
    model.write_bytes(b"Raspberry Pi 5\x00")
    assert check_jetson(tmp_path).state == "missing"
    model.write_bytes(b"NVIDIA Jetson AGX Orin Developer Kit\x00")
    assert check_jetson(tmp_path).state == "unknown"
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "nv_tegra_release").write_text("# R36 (release), REVISION: 4.3\nmore\n")
    check = check_jetson(tmp_path)
    assert check.state == "ok"
    assert check.found == "NVIDIA Jetson AGX Orin Developer Kit, R36 (release), REVISION: 4.3"


@pytest.mark.gpu
def test_a_real_cuda_device() -> None:
    assert "compute" in check_cuda_driver().found
