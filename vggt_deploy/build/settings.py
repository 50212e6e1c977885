"""Device profile x artifact x installed TensorRT x this machine -> what is asked of TensorRT.

Everything that can be refused before a graph is read is refused here: a build of VGGT-1B takes
minutes, and TensorRT notices some of it in its last second (a missing lean runtime) or explains it
badly (a Myelin check for a weight-stripped plan without a GPU).
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vggt_deploy.build.profiles import DeviceProfile, HardwareCompatibility
from vggt_deploy.engines.device import CudaDevice
from vggt_deploy.engines.tensorrt.library import Library, has_member
from vggt_deploy.errors import BuildError, RuntimeUnavailableError, UsageError
from vggt_deploy.records import FramesRange, Manifest


@dataclass(frozen=True)
class BuildSettings:
    """What `build_plan` asks TensorRT for.

    profiles: one optimization profile each, over the frames of the input; empty: the graph's shapes
        are all fixed
    targets: compute capabilities that TensorRT-RTX compiles for; empty for TensorRT, which compiles
        for the device that is there
    workspace_bytes: None leaves it to TensorRT
    timing_cache: a file that may not exist yet; None for none. Never with TensorRT-RTX
    """

    profiles: tuple[FramesRange, ...]
    targets: tuple[tuple[int, int], ...] = ()
    tf32: bool = True
    optimization_level: int = 3
    workspace_bytes: int | None = None
    hardware_compatibility: HardwareCompatibility = "NONE"
    version_compatible: bool = False
    strip: bool = False
    timing_cache: Path | None = None


def make_settings(
    profile: DeviceProfile,
    profiles: tuple[FramesRange, ...],
    library: Library,
    device: CudaDevice | str,
    *,
    strip: bool,
    timing_cache: Path | None,
) -> BuildSettings:
    """The settings for this device profile, or why they are refused.

    profiles: see `choose_frames`. device: see `engines.device`; a text says why there is none.
    timing_cache: used only if the device profile has it on.

    Raises:
        UsageError: the profile is for another runtime, device or precision.
        BuildError: the installed TensorRT or this machine lacks what is asked.
        RuntimeUnavailableError: TensorRT without a GPU.
    """
    _check_runtime(profile, library)
    _check_version(profile, library)
    if library.is_rtx:
        _check_targets(profile, library)
    else:
        _check_device(profile, library, device)
    _check_compatibility(profile, library)
    if strip:
        _check_strip(library, device)
    keeps_timings = profile.timing_cache and not library.is_rtx
    workspace = None if profile.workspace_mib is None else profile.workspace_mib * 2**20
    return BuildSettings(
        profiles=profiles,
        targets=profile.compute_capabilities if library.is_rtx else (),
        tf32=profile.tf32,
        optimization_level=profile.optimization_level,
        workspace_bytes=workspace,
        hardware_compatibility=profile.hardware_compatibility,
        version_compatible=profile.version_compatible,
        strip=strip,
        timing_cache=timing_cache if keeps_timings else None,
    )


def check_artifact(profile: DeviceProfile, manifest: Manifest) -> None:
    """Refuse an artifact that the device profile is not for.

    Raises:
        UsageError: other size or precision.
    """
    size = (manifest.height, manifest.width)
    if profile.height is not None and (profile.height, profile.width) != size:
        raise UsageError(
            f"the device profile {profile.name} is for {profile.height} x {profile.width} pixels, "
            f"the artifact for {size[0]} x {size[1]}",
            f"export with --height {profile.height} --width {profile.width}, or take height and "
            "width out of the profile",
        )
    if profile.precisions and manifest.precision not in profile.precisions:
        wanted = " or ".join(profile.precisions)
        raise UsageError(
            f"the artifact computes in {manifest.precision}; the device profile {profile.name} "
            f"is for {wanted}",
            f"export with --precision {profile.precisions[0]}: TensorRT takes the precision from "
            "the graph",
        )


def choose_frames(
    profile: DeviceProfile,
    accepted: FramesRange,
    asked: Sequence[tuple[int, int, int]] | None,
) -> tuple[tuple[FramesRange, ...], tuple[str, ...]]:
    """The optimization profiles, and notes on what of the device profile was cut off.

    asked: of the user, taken as they are or refused. Without it the device profile's ranges, cut to
    the frames that the artifact accepts: the profile says what the device can do, the artifact what
    the network was exported for.

    Raises:
        UsageError: nothing is left, or what was asked is not in the artifact's range.
    """
    allowed = f"{accepted.min} to {accepted.max} frames"
    if asked is not None:
        return _checked_frames(asked, accepted, allowed), ()
    chosen, notes = [], []
    for given in profile.frames:
        low, high = max(given.min, accepted.min), min(given.max, accepted.max)
        if low > high:
            notes.append(f"no profile for {_text(given)} frames: the artifact accepts {allowed}")
            continue
        cut = FramesRange(low, min(max(given.opt, low), high), high)
        if cut != given:
            notes.append(f"{_text(given)} frames cut to {_text(cut)}: the artifact takes {allowed}")
        chosen.append(cut)
    if not chosen:
        ranges = ", ".join(_text(given) for given in profile.frames)
        raise UsageError(
            f"the device profile {profile.name} is for {ranges} frames, the artifact takes "
            f"{allowed}",
            "export with --frames that reach into that range, or give --frames to build",
        )
    return tuple(chosen), tuple(notes)


def _checked_frames(
    asked: Sequence[tuple[int, int, int]], accepted: FramesRange, allowed: str
) -> tuple[FramesRange, ...]:
    ranges = sorted((FramesRange(*numbers) for numbers in asked), key=lambda given: given.min)
    if not ranges:
        raise UsageError("--frames is empty", "leave it out, or give min:opt:max")
    for given in ranges:
        if not accepted.min <= given.min <= given.opt <= given.max <= accepted.max:
            raise UsageError(
                f"--frames {_text(given)} does not fit the artifact, which takes {allowed}",
                "give min <= opt <= max within that range, or export again with other --frames",
            )
    for before, after in itertools.pairwise(ranges):
        if after.min <= before.max:
            raise UsageError(
                f"--frames {_text(before)} and {_text(after)} overlap",
                "a number of frames must belong to one profile",
            )
    return tuple(ranges)


def _text(frames: FramesRange) -> str:
    if frames.min == frames.max:
        return str(frames.min)
    return f"{frames.min}:{frames.opt}:{frames.max}"


def dotted(capability: tuple[int, int]) -> str:
    """(8, 9) -> "8.9"."""
    return f"{capability[0]}.{capability[1]}"


def target_name(capability: tuple[int, int]) -> str:
    """(8, 9) -> "SM89", the member of TensorRT-RTX's ComputeCapability."""
    return f"SM{capability[0]}{capability[1]}"


def _check_runtime(profile: DeviceProfile, library: Library) -> None:
    why = ""
    if library.is_rtx and (missing := _unknown_targets(profile, library)):
        why = f" ({library.title} has no name for compute capability {missing})"
    check_runtime(profile, library.runtime, why)


def check_runtime(profile: DeviceProfile, runtime: str, why: str = "") -> None:
    """Refuse a runtime that the device profile is not for.

    Raises:
        UsageError: with `why` behind it.
    """
    if runtime in profile.runtimes:
        return
    names = " or ".join(profile.runtimes)
    raise UsageError(
        f"the device profile {profile.name} is for {names}, not for {runtime}{why}",
        f"build with --runtime {profile.runtimes[0]}"
        + (" on such a device" if profile.runtimes[0] == "tensorrt" else ""),
    )


def _check_version(profile: DeviceProfile, library: Library) -> None:
    least = profile.minimum_version.get(library.runtime, ())
    if library.version < least:
        raise BuildError(
            f"the device profile {profile.name} needs {library.runtime} "
            f"{'.'.join(map(str, least))} or newer, installed is {library.version_text}",
            "upgrade it (on a Jetson: JetPack), or use a profile for the older one",
        )


def _unknown_targets(profile: DeviceProfile, library: Library) -> str:
    trt = library.trt
    return ", ".join(
        dotted(capability)
        for capability in profile.compute_capabilities
        if not has_member(trt.ComputeCapability, target_name(capability))
    )


def _check_targets(profile: DeviceProfile, library: Library) -> None:
    trt = library.trt
    if missing := _unknown_targets(profile, library):
        known = sorted(name for name in trt.ComputeCapability.__members__ if name[-1].isdigit())
        raise BuildError(
            f"{library.title} can't compile for compute capability {missing} "
            f"(it can for {', '.join(known)})",
            "build with --runtime tensorrt on that device, or name other compute_capabilities",
        )


def _check_device(profile: DeviceProfile, library: Library, device: CudaDevice | str) -> None:
    if isinstance(device, str):
        raise RuntimeUnavailableError(
            f"{library.title} builds on the device that it builds for, and there is none here: "
            f"{device}",
            "build on that device; or, for an RTX card, build here with --runtime tensorrt-rtx",
        )
    wanted = [dotted(capability) for capability in profile.compute_capabilities]
    if device.compute_capability not in wanted:
        raise UsageError(
            f"the device profile {profile.name} is for compute capability {' or '.join(wanted)}; "
            f"this machine has {device.name}, compute capability {device.compute_capability}",
            "choose the profile of this device, or build on the other one",
        )


def _check_compatibility(profile: DeviceProfile, library: Library) -> None:
    trt = library.trt
    level = profile.hardware_compatibility
    if level != "NONE":
        if library.is_rtx:
            raise BuildError(
                "TensorRT-RTX has no hardware_compatibility: its engines run on every card of "
                "their targets",
                f"take it out of the device profile {profile.name}, and list compute_capabilities",
            )
        if not has_member(trt.HardwareCompatibilityLevel, level):
            raise BuildError(
                f"{library.title} has no hardware compatibility {level!r}",
                "upgrade TensorRT (10.13 or newer has all of them), or take it out of the device "
                f"profile {profile.name}",
            )
    if profile.version_compatible and library.is_rtx:
        # TensorRT-RTX says so itself, but only after the whole build.
        name = f"libnvinfer_lean.so.{library.version[0]}"
        if not _loads(name):
            raise BuildError(
                f"a version compatible engine needs {name}, which is not on this machine",
                f"take version_compatible out of the device profile {profile.name}; TensorRT-RTX "
                "engines are for one release of it",
            )


def _check_strip(library: Library, device: CudaDevice | str) -> None:
    if library.is_rtx and isinstance(device, str):
        raise BuildError(
            f"{library.title} builds weight-stripped engines only on a machine with a CUDA "
            f"device, and there is none here: {device}",
            "leave --strip out, or build on a machine with an RTX card",
        )


def _loads(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True
