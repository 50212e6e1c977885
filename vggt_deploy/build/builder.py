"""ONNX graph -> serialized engine ("plan"), with TensorRT or TensorRT-RTX.

    built = build_plan(library, graph, settings)
    built.write(folder / "model.engine")

Networks are strongly typed: the graph's types are computed, no flag changes them. Enum members are
looked up by name, since their numbers differ between versions. TensorRT reports failure by
returning None or False, so its error lines end in the exception.
"""

from __future__ import annotations

import hashlib
import re
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

from vggt_deploy.build import timing
from vggt_deploy.build.interrupt import postponed
from vggt_deploy.build.monitor import PERMILLE, BuildProgress, make_monitor
from vggt_deploy.build.settings import BuildSettings, target_name
from vggt_deploy.compare.memory import peak_rss_bytes
from vggt_deploy.engines.kernels import Source
from vggt_deploy.engines.layer_record import RECORD_BEGIN
from vggt_deploy.engines.tensorrt.library import Library, has_member, member
from vggt_deploy.engines.tensorrt.refit import refit_from_graph
from vggt_deploy.errors import BuildError
from vggt_deploy.progress import Progress
from vggt_deploy.records import FileRecord

# TensorRT's classes, for readers: the module is known only at run time.
Builder: TypeAlias = Any
IBuilderConfig: TypeAlias = Any
IHostMemory: TypeAlias = Any
INetworkDefinition: TypeAlias = Any
OnnxParser: TypeAlias = Any

FRAMES_AXIS = 1  # of the input, [1, frames, 3, height, width]
STAGE = "build"
CANCEL_STAGE = "cancel"
_WRITE_BYTES = 64 * 2**20
_POLL_S = 0.1
# Of TensorRT-RTX's verbose log (10 MB for VGGT-1B; hundreds for TensorRT, which times every kernel)
# only these lines are used.
_WEIGHTS_LINE = re.compile(r"Total Weights Memory: (\d+) bytes")


@dataclass(frozen=True)
class BuiltPlan:
    """What TensorRT made.

    plan: the bytes, in TensorRT's own memory (an IHostMemory, which is a buffer); written from
        there, never copied
    layers: text that says what every layer computes in, for `engines.kernels`
    layers_source: which of the two forms it has
    weights_bytes: of the weights in the plan, or None where TensorRT does not say
    activation_bytes: device memory per profile; None where no GPU was asked
    peak_rss_bytes: the most memory that this process had until now
    """

    plan: IHostMemory = field(repr=False)
    layers: str = field(repr=False)
    layers_source: Source
    seconds: float
    peak_rss_bytes: int
    weights_bytes: int | None
    activation_bytes: tuple[int, ...] | None
    flags: tuple[str, ...]
    warnings: tuple[str, ...]

    def write(self, path: Path) -> FileRecord:
        """Write the plan to `path`; its size and SHA-256."""
        digest = hashlib.sha256()
        view = memoryview(self.plan).cast("B")
        with path.open("wb") as file:
            for start in range(0, view.nbytes, _WRITE_BYTES):
                part = view[start : start + _WRITE_BYTES]
                digest.update(part)
                file.write(part)
        return FileRecord(view.nbytes, digest.hexdigest())


def build_plan(
    library: Library, graph: Path, settings: BuildSettings, *, progress: Progress | None = None
) -> BuiltPlan:
    """Build an engine from the graph in a file (its weights may lie in files beside it).

    Ctrl-C stops TensorRT at its next step. The step that compiles kernels is a long one (of
    vggt-tiny's 3 s with TensorRT-RTX it takes 2.6), so `progress` gets the stage "cancel".

    Raises:
        BuildError: TensorRT refuses the graph or the settings; with its own words.
    """
    begun = time.perf_counter()
    trt = library.trt
    log = library.error_log(keep=_is_used)
    builder = trt.Builder(log)
    network = builder.create_network(network_flags(trt))
    parser = trt.OnnxParser(network, log)
    _parse(library, parser, graph, log)
    config = builder.create_builder_config()
    flags = _configure(library, config, settings)
    _add_profiles(builder, config, network, settings, graph)
    cache = None
    if settings.timing_cache is not None:
        cache = timing.attach(config, settings.timing_cache)
    state = BuildProgress()
    monitor = make_monitor(trt, state)
    config.progress_monitor = monitor
    plan = _build(builder, network, config, state, progress)
    if plan is None:
        raise BuildError(
            f"{library.title} can't build {graph.name}:\n    {log.explain()}",
            "see the layer it names; `vggt-deploy schemes` tells which schemes build where",
        )
    if settings.timing_cache is not None:
        timing.save(config, settings.timing_cache)
    seconds = time.perf_counter() - begun
    weights_bytes = _weights_bytes(log.records)
    # The weights that parser and network hold are given back before the plan is read again.
    del parser, network, config, cache, builder
    layers, source, activations = _describe(library, plan, graph, settings, log)
    return BuiltPlan(
        plan=plan,
        layers=layers,
        layers_source=source,
        seconds=seconds,
        peak_rss_bytes=peak_rss_bytes()[0],
        weights_bytes=weights_bytes,
        activation_bytes=activations,
        flags=flags,
        warnings=tuple(dict.fromkeys(log.warnings)),
    )


def network_flags(trt: ModuleType) -> int:
    """Strongly typed: needed by TensorRT 10, the only kind that 11 and RTX have."""
    return 1 << int(member(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"))


def _is_used(message: str) -> bool:
    return message.startswith(RECORD_BEGIN) or "Total Weights Memory" in message


def _parse(library: Library, parser: OnnxParser, graph: Path, log: Any) -> None:
    # From the file: only so does the parser find the weights that lie beside it.
    if parser.parse_from_file(str(graph)):
        return
    lines = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        where = f"{error.node_operator()} {error.node_name()}".strip()
        lines.append(f"{where}: {error.desc()}" if where else error.desc())
    said = "\n    ".join(dict.fromkeys(lines)) or log.explain()
    raise BuildError(
        f"the parser of {library.title} refuses {graph.name}:\n    {said}",
        "export with a scheme that this TensorRT can run (`vggt-deploy schemes`), or upgrade it",
    )


def _configure(
    library: Library, config: IBuilderConfig, settings: BuildSettings
) -> tuple[str, ...]:
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


def _add_profiles(
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


def _build(
    builder: Builder,
    network: INetworkDefinition,
    config: IBuilderConfig,
    state: BuildProgress,
    progress: Progress | None,
) -> IHostMemory | None:
    """Build in a thread, so that this one can draw, and hear Ctrl-C.

    TensorRT's threads call no code of the caller: an exception there would end the process. With
    the builder in the main thread Python would handle Ctrl-C in just such a call.
    """
    done: list[IHostMemory | None] = []
    failed: list[Exception] = []

    def work() -> None:
        try:
            done.append(builder.build_serialized_network(network, config))
        except Exception as error:  # noqa: BLE001 - raised again in the thread that waits
            failed.append(error)

    thread = threading.Thread(target=work, name="tensorrt-build")
    with postponed(state.cancel):
        thread.start()
        try:
            while thread.is_alive():
                if progress is not None and not state.cancelled:
                    progress(STAGE, state.permille(), PERMILLE)
                elif progress is not None:
                    progress(CANCEL_STAGE, 0, 0)
                thread.join(_POLL_S)
        finally:
            # The progress function raised: that is passed on when TensorRT has stopped.
            state.cancel()
            thread.join()
    if failed:
        raise failed[0]
    if progress is not None and done[0] is not None:
        progress(STAGE, PERMILLE, PERMILLE)
    return done[0]


def _weights_bytes(records: tuple[str, ...]) -> int | None:
    found = [int(match[1]) for text in records if (match := _WEIGHTS_LINE.search(text))]
    return found[-1] if found else None


def _describe(
    library: Library, plan: IHostMemory, graph: Path, settings: BuildSettings, log: Any
) -> tuple[str, Source, tuple[int, ...] | None]:
    """What the layers compute in, and activation memory per profile where a GPU can tell.

    TensorRT-RTX writes its layers to the log, with a GPU or without. TensorRT's inspector needs the
    engine on the GPU, which is there: it built on it. A stripped engine gets its weights back in
    the same go, so that one which can't take them is never shipped.
    """
    if library.is_rtx:
        records = [text for text in log.records if text.startswith(RECORD_BEGIN)]
        if not records:
            raise BuildError(
                f"{library.title} wrote no layer record, so nothing can be proven about the engine",
                "use a version of TensorRT-RTX that vggt-deploy knows (pip install "
                "'vggt-deploy[rtx]')",
            )
        return records[-1], "builder layer record", None
    trt = library.trt
    runtime = trt.Runtime(log)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise BuildError(
            f"{library.title} can't load the engine that it has just built:\n    {log.explain()}",
            "free memory on the GPU and build again",
        )
    if settings.strip:
        refit_from_graph(library, engine, graph, log)
    inspector = engine.create_engine_inspector()
    text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    activations = tuple(
        int(engine.get_device_memory_size_for_profile_v2(index))
        for index in range(engine.num_optimization_profiles)
    )
    return str(text), "engine inspector", activations
