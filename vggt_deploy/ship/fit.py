"""Can this device run that engine? From the plan's header, the manifest and the device alone.

Nothing is deserialized: an engine is code, and finding out is not worth running it. What can't be
known without doing so, or without a GPU, is said to be not known.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from vggt_deploy.engines.device import CudaDevice
from vggt_deploy.engines.plan_header import PlanHeader
from vggt_deploy.engines.tensorrt.library import load_library
from vggt_deploy.errors import RuntimeUnavailableError
from vggt_deploy.records import FramesRange
from vggt_deploy.ship.index import EngineEntry

State = Literal["fits", "does not fit", "not known"]
Version = tuple[int, ...]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: what it needs, what is here, and what follows."""

    what: Literal["TensorRT version", "compute capability", "CUDA driver", "memory"]
    state: State
    reason: str


@dataclass(frozen=True)
class Fit:
    """The verdict on one engine: the worst of its findings."""

    engine: str
    state: State
    findings: tuple[Finding, ...]


def installed_version(runtime: str) -> Version | str:
    """Version of the TensorRT that is installed, or why there is none. Loads its libraries."""
    try:
        return load_library(runtime).version
    except RuntimeUnavailableError as error:
        return error.message


def fit(
    entry: EngineEntry, header: PlanHeader, installed: Version | str, device: CudaDevice | str
) -> Fit:
    """The four findings on an engine, and the verdict."""
    findings = (
        _version(entry, header, installed),
        _capability(entry, device),
        _driver(entry, device),
        _memory(entry, device),
    )
    states = {finding.state for finding in findings}
    order: tuple[State, ...] = ("does not fit", "not known", "fits")
    return Fit(entry.name, next(state for state in order if state in states), findings)


def same_version(plan: Version, other: Version) -> bool:
    """Whether a plan's version is `other`, of which some packages tell three numbers only."""
    return len(other) >= 3 and plan[: len(other)] == other[: len(plan)]


def _version(entry: EngineEntry, header: PlanHeader, installed: Version | str) -> Finding:
    what: Literal["TensorRT version"] = "TensorRT version"
    title = "TensorRT-RTX" if entry.runtime == "tensorrt-rtx" else "TensorRT"
    if header.version is None:
        return Finding(
            what, "not known", "the plan's header has a form that this version can't read"
        )
    built = _dotted(header.version)
    if isinstance(installed, str):
        return Finding(what, "does not fit", f"built with {title} {built}; here {installed}")
    here = _dotted(installed)
    if same_version(header.version, installed):
        return Finding(what, "fits", f"built with {title} {built}, which is installed")
    if entry.version_compatible and entry.runtime == "tensorrt":
        newer = installed >= header.version
        major = (header.version[0], installed[0])
        if newer and (major[0] == major[1] or major == (10, 11)):
            reason = f"built version compatible with {title} {built}; installed is {here}"
            return Finding(what, "fits", reason)
    return Finding(
        what, "does not fit", f"built with {title} {built}, installed is {here}: must be the same"
    )


def _capability(entry: EngineEntry, device: CudaDevice | str) -> Finding:
    what: Literal["compute capability"] = "compute capability"
    targets = entry.compute_capabilities
    needs = f"built for {', '.join(targets) or 'no named target'}"
    if isinstance(device, str):
        return Finding(what, "not known", f"{needs}; no CUDA device: {device}")
    here = f"{device.name} has {device.compute_capability}"
    if device.compute_capability in targets:
        return Finding(what, "fits", f"{needs}; {here}")
    mode = entry.hardware_compatibility.upper()
    if mode == "AMPERE_PLUS" and numbers(device.compute_capability) >= (8, 0):
        return Finding(what, "fits", f"built for Ampere and newer; {here}")
    if not targets:
        return Finding(what, "not known", f"{needs}; {here}: only loading it would tell")
    return Finding(what, "does not fit", f"{needs}; {here}")


def _driver(entry: EngineEntry, device: CudaDevice | str) -> Finding:
    """The driver against cuda-bindings, and against the driver of the machine that built it.

    A driver runs its own major version of CUDA and all before. That an engine runs on a driver
    older than the builder's is likely if TensorRT is the same, but nobody promises it.
    """
    what: Literal["CUDA driver"] = "CUDA driver"
    built = entry.built_on.get("cuda")
    needs = f"built where the driver runs CUDA {built}" if built else "built without a GPU"
    if isinstance(device, str):
        return Finding(what, "not known", f"{needs}; no CUDA device")
    release = f" ({device.driver_release})" if device.driver_release else ""
    here = f"this driver{release} runs CUDA up to {_dotted(device.driver_cuda)}"
    if device.driver_cuda[0] < device.runtime_cuda[0]:
        used = f"cuda-bindings are for {_dotted(device.runtime_cuda)}"
        return Finding(what, "does not fit", f"{needs}; {here}, {used}: update the driver")
    if built and device.driver_cuda < numbers(built)[:2]:
        return Finding(what, "not known", f"{needs}; {here}, which is older")
    return Finding(what, "fits", f"{needs}; {here}")


def _memory(entry: EngineEntry, device: CudaDevice | str) -> Finding:
    """Weights and the activations of one profile against all of the device's memory."""
    what: Literal["memory"] = "memory"
    weights = entry.engine_bytes if entry.weights_bytes is None else entry.weights_bytes
    activations = entry.activation_bytes
    if activations is None:
        needs = {"weights alone": weights}
    else:
        needs = {
            f"{frames_text(profile)} pictures": weights + size
            for profile, size in zip(entry.profiles, activations, strict=True)
        }
    told = ", ".join(f"{name} {_mib(size)}" for name, size in needs.items())
    if isinstance(device, str):
        return Finding(what, "not known", f"{told}; no CUDA device")
    here = f"{_mib(device.total_bytes)} on {device.name}, {_mib(device.free_bytes)} of it free"
    if min(needs.values()) > device.total_bytes:
        return Finding(what, "does not fit", f"{told}; {here}")
    too_large = [name for name, size in needs.items() if size > device.total_bytes]
    if too_large:
        return Finding(what, "fits", f"{told}; {here}; not for {', '.join(too_large)}")
    if activations is None:
        return Finding(what, "not known", f"{told} (activations: only a GPU tells); {here}")
    return Finding(what, "fits", f"{told}; {here}")


def frames_text(frames: FramesRange) -> str:
    """In words: "1", "2 to 8"."""
    return f"{frames.min}" if frames.min == frames.max else f"{frames.min} to {frames.max}"


def numbers(text: str) -> Version:
    """The numbers in a version's text."""
    return tuple(int(number) for number in re.findall(r"\d+", text))


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))


def _mib(count: int) -> str:
    return f"{count / 2**20:.0f} MiB"
