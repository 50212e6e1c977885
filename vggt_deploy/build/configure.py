"""Build settings into TensorRT's own objects. Enum members are looked up by name: their numbers
differ between versions.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

from vggt_deploy.build.settings import BuildSettings, target_name
from vggt_deploy.engines.tensorrt.library import Library, has_member, member
from vggt_deploy.errors import BuildError

# TensorRT's classes, for readers: the module is known only at run time.
Builder: TypeAlias = Any
IBuilderConfig: TypeAlias = Any
INetworkDefinition: TypeAlias = Any

FRAMES_AXIS = 1  # of the input, [1, frames, 3, height, width]


def network_flags(trt: ModuleType) -> int:
    """Strongly typed: needed by TensorRT 10, the only kind that 11 and RTX have."""
    return 1 << int(member(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"))


def configure(library: Library, config: IBuilderConfig, settings: BuildSettings) -> tuple[str, ...]:
    """Set everything that the settings say; the flags that are on, by name."""
    trt = library.trt
    # DETAILED is what the proof is read from. It costs nothing in the plan of TensorRT-RTX; with
    # TensorRT a session turns the annotation of kernels off again (nvtx_verbosity).
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.builder_optimization_level = settings.optimization_level
    if settings.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_bytes)
    if settings.hardware_compatibility != "NONE":
        config.hardware_compatibility_level = member(
            trt.HardwareCompatibilityLevel, settings.hardware_compatibility
        )
    if has_member(trt.PreviewFeature, "RUNTIME_ACTIVATION_RESIZE_10_10"):  # not in 10.3
        # A session asks how much memory its number of frames takes; without this the answer is
        # what the largest number of the range takes.
        config.set_preview_feature(
            member(trt.PreviewFeature, "RUNTIME_ACTIVATION_RESIZE_10_10"), True
        )
    if library.is_rtx:
        config.num_compute_capabilities = len(settings.targets)
        for index, capability in enumerate(settings.targets):
            target = member(trt.ComputeCapability, target_name(capability))
            config.set_compute_capability(target, index)
    wanted = {
        "TF32": settings.tf32,
        "VERSION_COMPATIBLE": settings.version_compatible,
        "STRIP_PLAN": settings.strip,
        # What is put back is the same to the last bit, so kernels may be chosen by the weights.
        "REFIT_IDENTICAL": settings.strip,
    }
    for name, on in wanted.items():
        if on:
            config.set_flag(member(trt.BuilderFlag, name))
        elif has_member(trt.BuilderFlag, name):
            config.clear_flag(member(trt.BuilderFlag, name))
    return tuple(name for name, on in wanted.items() if on)


def add_profiles(
    builder: Builder,
    config: IBuilderConfig,
    network: INetworkDefinition,
    settings: BuildSettings,
    graph: Path,
) -> None:
    """An optimization profile per range of frames, if the graph has that dimension open."""
    shapes = {}
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shapes[str(tensor.name)] = tuple(tensor.shape)
    dynamic = {name: shape for name, shape in shapes.items() if -1 in shape}
    for name, shape in dynamic.items():
        if [axis for axis, size in enumerate(shape) if size == -1] != [FRAMES_AXIS]:
            raise BuildError(
                f"{graph.name}: input {name} has the shape {list(shape)}; only the frames, "
                f"dimension {FRAMES_AXIS}, may be open",
                "export with a fixed height and width",
            )
    if not dynamic:
        return
    if not settings.profiles:
        raise BuildError(
            f"{graph.name}: input {next(iter(dynamic))} has an open number of frames, and no "
            "profile says how many",
            "give frames in the device profile, or --frames",
        )
    for frames in settings.profiles:
        profile = builder.create_optimization_profile()
        for name, shape in dynamic.items():
            low, usual, high = (
                tuple(count if size == -1 else size for size in shape)
                for count in (frames.min, frames.opt, frames.max)
            )
            profile.set_shape(name, low, usual, high)
        if config.add_optimization_profile(profile) < 0:
            raise BuildError(
                f"TensorRT refuses the profile {frames.min}:{frames.opt}:{frames.max}",
                "give other frames in the device profile",
            )
