"""From an engine folder to a live engine, refusing what can't work before TensorRT sees a byte.

A serialized engine ("plan") is executable code. It is deserialized only after the manifest's hash
has matched, its header agrees with the manifest and the installed TensorRT, and the device is one
that it was built for; host code inside it stays forbidden unless the manifest says that it is
version compatible, which needs it.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from vggt_deploy.engines.device import CudaDevice
from vggt_deploy.engines.plan_header import read_plan_header
from vggt_deploy.engines.tensorrt.cuda import Cuda, load_cuda
from vggt_deploy.engines.tensorrt.library import Library, load_library
from vggt_deploy.errors import ArtifactError, DeployError, RuntimeUnavailableError
from vggt_deploy.records import EngineRecord

# TensorRT's classes, for readers: the module is known only at run time.
ICudaEngine: TypeAlias = Any
Runtime: TypeAlias = Any

_TITLES = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}
_GB, _MB = 1e9, 1e6
_AMPERE = 8  # the first number of its compute capabilities
_BUILD = (
    "build it with the TensorRT of this machine: vggt-deploy build ARTIFACT --runtime {runtime}"
)
_COMPATIBLE = "VERSION_COMPATIBLE"
_NO_LEAN_RUNTIME = "EXCLUDE_LEAN_RUNTIME"


@dataclass(frozen=True)
class LoadedEngine:
    """A deserialized engine. `runtime` and `log` must live as long as `engine`."""

    runtime: Runtime
    engine: ICudaEngine
    log: Any
    notes: tuple[str, ...]


def require_machine(folder: Path, record: EngineRecord) -> tuple[Library, Cuda]:
    """The TensorRT and the GPU that the engine needs.

    Raises:
        RuntimeUnavailableError: one error for everything that is missing here.
    """
    library: Library | None = None
    cuda: Cuda | None = None
    missing: list[RuntimeUnavailableError] = []
    try:
        library = load_library(record.runtime)
    except RuntimeUnavailableError as error:
        missing.append(error)
    try:
        cuda = load_cuda()
    except RuntimeUnavailableError as error:
        missing.append(error)
    if library is None or cuda is None:
        tried = "; ".join(error.message for error in missing)
        raise RuntimeUnavailableError(
            f"the engine {folder} can't run here: {tried}. It needs "
            f"{describe_needs(folder, record)}",
            "; ".join(dict.fromkeys(error.fix for error in missing))
            + "; or run the ONNX artifact that it was built from in ONNX Runtime",
        ) from missing[0]
    return library, cuda


def describe(device: CudaDevice) -> str:
    """In words: "NVIDIA H200, compute capability 9.0"."""
    return f"{device.name}, compute capability {device.compute_capability}"


def describe_needs(folder: Path, record: EngineRecord) -> str:
    """What an engine asks of a machine, in words."""
    size = (folder / record.file).stat().st_size
    if record.activation_bytes:
        size += max(record.activation_bytes)
    memory = f"{size / _GB:.1f} GB" if size >= _GB else f"{size / _MB:.0f} MB"
    exactly = "" if _COMPATIBLE not in record.flags else " or newer"
    return (
        f"{_TITLES[record.runtime]} {record.runtime_version}{exactly}, a GPU of compute capability "
        f"{' or '.join(record.compute_capabilities) or 'that TensorRT chooses'} and at least "
        f"{memory} of its memory"
    )


def require_version(folder: Path, record: EngineRecord, library: Library) -> None:
    """Refuse a plan of another TensorRT than the installed one.

    Raises:
        ArtifactError: the plan is not what the manifest says.
        RuntimeUnavailableError: the installed TensorRT can't read it.
    """
    header = read_plan_header(folder / record.file)
    said = _numbers(record.runtime_version)
    if header.runtime not in (None, record.runtime):
        raise ArtifactError(
            f"{folder / record.file} is a plan of {_TITLES[header.runtime]}, its manifest says "
            f"{_TITLES[record.runtime]}",
            "build it again",
        )
    if header.version is not None and not _agree(header.version, said):
        raise ArtifactError(
            f"{folder / record.file} was made by version {_dotted(header.version)}, its manifest "
            f"says {record.runtime_version}",
            "build it again",
        )
    built = header.version or said
    if _agree(built, library.version):
        return
    if _COMPATIBLE in record.flags and _reads(library.version, built):
        return
    raise RuntimeUnavailableError(
        f"{folder} was built with {_TITLES[record.runtime]} {_dotted(built)}, installed is "
        f"{library.title}; a plan runs only in the version that built it"
        + (" or a newer one" if _COMPATIBLE in record.flags else ""),
        f"{_BUILD.format(runtime=record.runtime)}; or install version {_dotted(built)}",
    )


def _reads(installed: tuple[int, ...], built: tuple[int, ...]) -> bool:
    """Version compatible plans: the same major version or newer, and those of 10 also in 11."""
    return installed >= built and (installed[0] == built[0] or (built[0], installed[0]) == (10, 11))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())


def _agree(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Old bindings say three numbers ("10.3.0"), plans have four."""
    return all(a == b for a, b in zip(one, other, strict=False))


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def require_device(folder: Path, record: EngineRecord, device: CudaDevice) -> None:
    """Refuse a TensorRT plan of another GPU architecture. TensorRT-RTX is asked itself.

    Raises:
        RuntimeUnavailableError: names both.
    """
    if record.runtime == "tensorrt-rtx" or device.compute_capability in record.compute_capabilities:
        return
    generation = int(device.compute_capability.partition(".")[0])
    if record.hardware_compatibility == "AMPERE_PLUS" and generation >= _AMPERE:
        return
    raise RuntimeUnavailableError(
        f"{folder} was built for compute capability {', '.join(record.compute_capabilities)}, this "
        f"is {describe(device)}",
        f"{_BUILD.format(runtime=record.runtime)} on this machine; or build with a device profile "
        'that has hardware_compatibility = "AMPERE_PLUS"',
    )


def load_engine(
    folder: Path, record: EngineRecord, library: Library, device: CudaDevice
) -> LoadedEngine:
    """Deserialize the plan, whose hash, version and device have been checked.

    Raises:
        RuntimeUnavailableError: TensorRT does not start here, or TensorRT-RTX says that this device
            can't run the plan.
        DeployError: TensorRT refuses it; its own words are in the message.
    """
    log = library.error_log()
    try:
        runtime = library.trt.Runtime(log)
    except TypeError as error:  # pybind11: the factory returned no object
        raise RuntimeUnavailableError(
            f"{library.title} can't start here: {log.explain()}",
            "use a driver and a TensorRT that fit each other: vggt-deploy doctor shows both",
        ) from error
    if _COMPATIBLE in record.flags and _NO_LEAN_RUNTIME not in record.flags:
        runtime.engine_host_code_allowed = True
    path = folder / record.file
    # Mapped, not read: TensorRT copies it to the GPU, a second copy here would be for nothing.
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as plan:
        notes = (
            _ask_validity(folder, library, runtime, plan, device)
            if library.is_rtx
            else _another_model(record, device)
        )
        engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise DeployError(
            f"{library.title} can't load {path} on {describe(device)}: {log.explain()}",
            "if memory ran out, free the GPU; otherwise "
            + _BUILD.format(runtime=record.runtime)
            + " on this machine",
        )
    return LoadedEngine(runtime, engine, log, notes)


def _another_model(record: EngineRecord, device: CudaDevice) -> tuple[str, ...]:
    """TensorRT runs a plan on another GPU of the same architecture; it only logs a warning."""
    built_on = record.built_on.get("gpu", device.name)
    if built_on == device.name or record.hardware_compatibility != "NONE":
        return ()
    note = (
        f"the engine was built on {built_on}, this is {device.name}: TensorRT does not recommend "
        "that, it may be slower or fail"
    )
    return (note,)


def _ask_validity(
    folder: Path, library: Library, runtime: Runtime, plan: mmap.mmap, device: CudaDevice
) -> tuple[str, ...]:
    trt = library.trt
    validity, bits = runtime.get_engine_validity(plan)
    causes = [
        name
        for name, cause in trt.EngineInvalidityDiagnostics.__members__.items()
        if int(bits) & int(cause)
    ]
    why = ", ".join(causes) or "no reason given"
    if validity == trt.EngineValidity.VALID:
        return ()
    if validity == trt.EngineValidity.SUBOPTIMAL:
        return (f"{library.title} says the engine is suboptimal on {describe(device)}: {why}",)
    raise RuntimeUnavailableError(
        f"{library.title} says that {folder} can't run on {describe(device)}: {why}",
        f"{_BUILD.format(runtime='tensorrt-rtx')} with a device profile that names the compute "
        f"capability {device.compute_capability}",
    )


def require_interface(
    folder: Path, loaded: LoadedEngine, library: Library, outputs: tuple[str, ...]
) -> str:
    """The name of the one input, after checking names and types of everything that goes in and out.

    Raises:
        ArtifactError: the plan is another one than the manifest describes.
    """
    trt, engine = library.trt, loaded.engine
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs = [n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
    missing = [name for name in outputs if name not in names]
    if missing or len(inputs) != 1:
        raise ArtifactError(
            f"{folder} has the inputs {', '.join(inputs)} and lacks {', '.join(missing) or 'none'} "
            f"of the manifest's outputs (it has {', '.join(names)})",
            "build it again",
        )
    for name in names:
        if engine.get_tensor_dtype(name) != trt.DataType.FLOAT:
            raise ArtifactError(
                f"{name} of {folder} is {engine.get_tensor_dtype(name)}, expected FLOAT",
                "build it from an artifact of this package: its inputs and outputs are float32",
            )
    return str(inputs[0])
