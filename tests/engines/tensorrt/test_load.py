"""What is refused before, while and after a plan is loaded; and the one error without CUDA."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vggt_deploy.engines import open_session
from vggt_deploy.engines.device import CudaDevice, cuda_device
from vggt_deploy.engines.run import run
from vggt_deploy.engines.tensorrt.library import Library, load_library
from vggt_deploy.engines.tensorrt.load import load_engine, require_version
from vggt_deploy.errors import ArtifactError, DeployError, RuntimeUnavailableError, UsageError
from vggt_deploy.manifest import read_manifest, record_files

GB = 10**9
HEIGHT, WIDTH = 42, 56


def refused(folder: Path, machine: Any, error: type[DeployError], words: str) -> Any:
    """Opening fails with these words, and nothing is left on the fake GPU."""
    said = machine.refuses(error, words, lambda: open_session(folder))
    assert machine.cuda.leaks() == []
    assert machine.trt.living == []
    return said


# Without a GPU, with the real libraries


def test_one_error_where_there_is_no_gpu(make_engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the real TensorRT-RTX and cuda-bindings; on a machine with a GPU they are told lies."""
    from cuda.bindings import runtime

    status = runtime.cudaError_t.cudaErrorInsufficientDriver
    monkeypatch.setattr(runtime, "cudaGetDeviceCount", lambda: (status, None))
    version = load_library("tensorrt-rtx").version_text
    folder = make_engine(
        runtime="tensorrt-rtx",
        version=version,
        compute_capabilities=("8.9", "12.0"),
        activation_bytes=(GB, 3 * GB),
    )
    with pytest.raises(RuntimeUnavailableError) as caught:
        open_session(folder)
    said = caught.value.message
    assert said.count("\n") == 0
    assert str(folder) in said
    assert "no CUDA device: cudaGetDeviceCount" in said
    assert "cudaErrorInsufficientDriver" in said
    assert f"It needs TensorRT-RTX {version}, a GPU of compute capability 8.9 or 12.0" in said
    assert "at least 3.0 GB" in said
    assert "run the ONNX artifact" in caught.value.fix


@pytest.fixture(scope="module")
def real_plan() -> bytes:
    """A one-node engine of the installed TensorRT-RTX."""
    library = load_library("tensorrt-rtx")
    trt, log = library.trt, library.error_log()
    builder = trt.Builder(log)
    network = builder.create_network()
    x = network.add_input("images", trt.DataType.FLOAT, (1, 2, 3, HEIGHT, WIDTH))
    layer = network.add_activation(x, trt.ActivationType.RELU)
    layer.get_output(0).name = "depth"
    network.mark_output(layer.get_output(0))
    plan = builder.build_serialized_network(network, builder.create_builder_config())
    assert plan is not None, log.explain()
    return bytes(plan)


def test_the_real_tensorrt_rtx_refuses_in_its_own_words(make_engine: Any, real_plan: bytes) -> None:
    """Where there is no GPU after all: its diagnosis, and what it logs, are in the error."""
    if not isinstance(cuda_device(), str):
        pytest.skip("this machine has a CUDA device")
    library = load_library("tensorrt-rtx")
    version = library.version_text
    folder = make_engine(plan=real_plan, runtime="tensorrt-rtx", version=version)
    record = read_manifest(folder).engine
    assert record is not None
    require_version(folder, record, library)
    device = CudaDevice(0, "Test GPU", "9.0", 1, 1, (13, 0), (13, 0), None)
    with pytest.raises(
        RuntimeUnavailableError, match="can't run on Test GPU, compute capability 9"
    ):
        load_engine(folder, record, library, device)
    # TensorRT has no such question: it says None, and why in its log.
    other = Library(library.trt, "tensorrt", version)
    with pytest.raises(DeployError, match=r"can't load .* on Test GPU.*Cuda Runtime"):
        load_engine(folder, record, other, device)


def test_tensorrt_and_cuda_are_both_missing(
    make_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(RuntimeUnavailableError) as caught:
        open_session(make_engine())
    assert "the module tensorrt can't be imported" in caught.value.message
    assert "cuda-bindings can't be imported" in caught.value.message
    assert "pip install 'vggt-deploy[tensorrt]'" in caught.value.fix


def test_a_driver_without_devices(machine: Any, make_engine: Any) -> None:
    machine.cuda.devices = 0
    refused(make_engine(), machine, RuntimeUnavailableError, "no CUDA device")
    assert machine.trt.plans == []


# The wrong runtime, provider or option


def test_an_engine_runs_in_its_own_runtime(machine: Any, make_engine: Any) -> None:
    folder = make_engine()
    with pytest.raises(UsageError, match="engine for tensorrt, not for onnxruntime") as caught:
        open_session(folder, runtime="onnxruntime")
    assert "ONNX artifact" in caught.value.fix
    with pytest.raises(UsageError, match="not for tensorrt-rtx") as caught:
        open_session(folder, runtime="tensorrt-rtx")
    assert "--runtime tensorrt-rtx" in caught.value.fix
    with pytest.raises(UsageError, match="not on provider cpu"):
        open_session(folder, provider="cpu")
    with pytest.raises(UsageError, match="4 threads"):
        open_session(folder, threads=4)
    assert machine.trt.plans == []


def test_onnx_is_not_an_engine(make_artifact: Any) -> None:
    folder = make_artifact()
    with pytest.raises(UsageError, match="tensorrt runs engines") as caught:
        open_session(folder, runtime="tensorrt")
    assert f"vggt-deploy build {folder} --runtime tensorrt" in caught.value.fix
    with pytest.raises(UsageError, match="CUDA graph"):
        open_session(folder, cuda_graph=True)
    assert open_session(folder, runtime="onnxruntime").info.provider == "cpu"


def test_run_checks_the_count_against_the_profiles(
    machine: Any, make_engine: Any, tmp_path: Path
) -> None:
    """Before anything is opened, in the words of the profiles and not of the export."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (WIDTH, HEIGHT)).save(pictures / name)
    with pytest.raises(UsageError, match="2 images, but this artifact takes 1 or 30 to 32"):
        run(make_engine(profiles=((1, 1, 1), (30, 32, 32))), pictures, tmp_path / "out")
    assert machine.cuda.calls == []


# Another plan, version or device


def test_a_changed_plan_is_never_loaded(machine: Any, make_engine: Any) -> None:
    folder = make_engine()
    plan = folder / "model.engine"
    data = bytearray(plan.read_bytes())
    data[-1] ^= 1
    plan.write_bytes(data)
    refused(folder, machine, ArtifactError, "model.engine")
    assert machine.trt.plans == []
    assert machine.cuda.calls == []


@pytest.mark.parametrize(
    "installed, built, flags, runs",
    [
        ("10.16.1.11", "10.16.1.11", (), True),
        ("10.3.0", "10.3.0.26", (), True),  # old bindings tell three numbers
        ("10.16.1.11", "10.16.1.12", (), False),
        ("11.4.0.106", "10.16.1.11", (), False),
        ("10.16.1.11", "10.3.0.26", ("VERSION_COMPATIBLE",), True),
        ("11.4.0.106", "10.3.0.26", ("VERSION_COMPATIBLE",), True),
        ("10.3.0", "10.16.1.11", ("VERSION_COMPATIBLE",), False),
        ("12.0.0.1", "10.3.0.26", ("VERSION_COMPATIBLE",), False),
    ],
)
def test_versions(
    machine: Any,
    make_engine: Any,
    installed: str,
    built: str,
    flags: tuple[str, ...],
    runs: bool,
) -> None:
    machine.trt.__version__ = installed
    folder = make_engine(version=built, flags=flags)
    if runs:
        open_session(folder).close()
        assert machine.cuda.leaks() == []
        return
    error = refused(folder, machine, RuntimeUnavailableError, f"installed is TensorRT {installed}")
    assert f"built with TensorRT {built}" in error.message
    assert f"install version {built}" in error.fix
    assert machine.trt.plans == []


@pytest.mark.parametrize(
    "flags, allowed",
    [
        ((), False),
        (("VERSION_COMPATIBLE",), True),
        (("VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME"), False),
    ],
)
def test_host_code_is_allowed_only_to_version_compatible_plans(
    machine: Any, make_engine: Any, flags: tuple[str, ...], allowed: bool
) -> None:
    open_session(make_engine(flags=flags)).close()
    assert machine.trt.host_code_allowed == [allowed]


def test_a_plan_of_the_other_tensorrt(machine: Any, make_engine: Any, plan_header: Any) -> None:
    folder = make_engine(plan=plan_header("1.7.1.116", rtx=True))
    refused(folder, machine, ArtifactError, "a plan of TensorRT-RTX, its manifest says TensorRT")
    folder = make_engine(plan=plan_header("10.16.1.12"))
    refused(folder, machine, ArtifactError, "10.16.1.12, its manifest says 10.16.1.11")
    assert machine.trt.plans == []


@pytest.mark.parametrize(
    "built_for, compatibility, runs",
    [
        (("9.0",), "NONE", True),
        (("8.9",), "NONE", False),
        (("8.9",), "SAME_COMPUTE_CAPABILITY", False),
        (("8.0",), "AMPERE_PLUS", True),
    ],
)
def test_devices(
    machine: Any, make_engine: Any, built_for: tuple[str, ...], compatibility: str, runs: bool
) -> None:
    folder = make_engine(compute_capabilities=built_for, hardware_compatibility=compatibility)
    if runs:
        open_session(folder).close()
        return
    refused(folder, machine, RuntimeUnavailableError, "built for compute capability 8.9, this is")
    assert machine.trt.plans == []


def test_another_model_of_the_same_architecture_is_said(
    machine: Any, make_engine: Any, tmp_path: Path
) -> None:
    """TensorRT loads it with a warning in its log, which nobody sees; `run` says so."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.new("RGB", (WIDTH, HEIGHT)).save(pictures / "a.png")

    def notes(name: str, **differences: Any) -> list[str]:
        folder = make_engine(outputs=("depth",), **differences)
        result = run(folder, pictures, tmp_path / name)
        told = json.loads((tmp_path / name / "run.json").read_text())["notes"]
        assert list(result.notes) == told
        return [note for note in told if "built on" in note]

    (said,) = notes("other", built_on={"gpu": "NVIDIA H100 PCIe"})
    assert "built on NVIDIA H100 PCIe, this is Test GPU" in said
    assert notes("same", built_on={"gpu": "Test GPU"}) == []
    assert notes("unknown", built_on={}) == []
    compatible = {"hardware_compatibility": "AMPERE_PLUS", "built_on": {"gpu": "NVIDIA A10"}}
    assert notes("compatible", **compatible) == []


def test_tensorrt_rtx_is_asked_whether_it_can(rtx_machine: Any, make_engine: Any) -> None:
    trt = rtx_machine.trt
    folder = make_engine(runtime="tensorrt-rtx", version="1.7.1.116", compute_capabilities=("8.9",))
    session = open_session(folder)
    assert session.info.runtime == "tensorrt-rtx"
    assert session.info.notes == ()
    session.close()
    trt.faults.validity = (trt.EngineValidity.SUBOPTIMAL, 0)
    session = open_session(folder)
    assert "suboptimal on Test GPU" in session.info.notes[0]
    session.close()
    trt.plans.clear()
    trt.faults.validity = (trt.EngineValidity.INVALID, 3)
    error = refused(folder, rtx_machine, RuntimeUnavailableError, "can't run on Test GPU")
    assert "VERSION_MISMATCH, UNSUPPORTED_CC" in error.message
    assert "capability 9.0" in error.fix
    assert trt.plans == []


# Refused by TensorRT, or not what the manifest says


@pytest.mark.parametrize("call", ["deserialize_cuda_engine", "create_execution_context"])
def test_tensorrt_says_no(machine: Any, make_engine: Any, call: str) -> None:
    machine.trt.faults.refuse = {call}
    refused(make_engine(), machine, DeployError, f"{call} has its reasons")


def test_tensorrt_does_not_start(machine: Any, make_engine: Any) -> None:
    """A driver too old for its CUDA: the bindings answer with a TypeError of their own."""
    machine.trt.faults.refuse = {"createInferRuntime"}
    words = "TensorRT 10.16.1.11 can't start here: .*createInferRuntime has its reasons"
    error = refused(make_engine(), machine, RuntimeUnavailableError, words)
    assert "driver" in error.fix
    assert machine.trt.plans == []


def test_another_network_than_the_manifest_describes(machine: Any, make_engine: Any) -> None:
    trt = machine.trt
    folder = make_engine()
    trt.faults.names = ("images", "pose_enc", "depth")
    refused(folder, machine, ArtifactError, "lacks depth_conf, world_points")
    trt.faults.names = ("images", "images_too", "pose_enc", "depth")
    refused(folder, machine, ArtifactError, "has the inputs images, images_too")
    trt.faults.names = ("images", *("pose_enc", "depth", "depth_conf"), *("world_points",) * 2)
    folder = make_engine(outputs=("depth",))
    trt.faults.types = {"depth": trt.DataType.HALF}
    refused(folder, machine, ArtifactError, "depth of .* is .*HALF")


def test_other_profiles_than_the_manifest_says(machine: Any, make_engine: Any) -> None:
    folder = make_engine()
    machine.trt.profiles = [(1, 2, 3)]
    refused(folder, machine, ArtifactError, "takes 1:2:3 frames, its manifest says 1:2:4, 6:8:8")


@pytest.mark.parametrize("at", range(3))
def test_cuda_fails_while_opening(machine: Any, make_engine: Any, at: int) -> None:
    call = ("cudaSetDevice", "cudaStreamCreateWithFlags", "cudaMemGetInfo")[at]
    seen = {"cudaSetDevice": 1, "cudaMemGetInfo": 2}.get(call, 0)
    machine.cuda.fails[call] = (machine.cuda.cudaError_t.cudaErrorMemoryAllocation, seen)
    refused(make_engine(), machine, DeployError, f"{call} failed")


def test_a_stripped_engine_is_refitted(
    machine: Any, make_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vggt_deploy.engines.tensorrt import refit

    seen: list[Any] = []
    monkeypatch.setattr(refit, "refit", lambda *given: seen.append(given))
    open_session(make_engine()).close()
    assert seen == []
    folder = make_engine(stripped=True)
    open_session(folder).close()
    assert len(seen) == 1
    assert folder in seen[0]
    assert record_files(folder)
