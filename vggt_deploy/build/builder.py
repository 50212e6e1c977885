"""ONNX graph -> serialized engine ("plan"), with TensorRT or TensorRT-RTX.

    built = build_plan(library, graph, settings, folder / "model.engine")

Networks are strongly typed: the graph's types are computed, no flag changes them. TensorRT reports
failure by returning None or False, so its error lines end in the exception.
"""

from __future__ import annotations

import mmap
import re
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from vggt_deploy.build import timing
from vggt_deploy.build.configure import add_profiles, configure, network_flags
from vggt_deploy.build.interrupt import postponed
from vggt_deploy.build.monitor import PERMILLE, BuildProgress, make_monitor
from vggt_deploy.build.plan_file import PlanFile, make_stream_writer, writing_plan
from vggt_deploy.build.settings import BuildSettings
from vggt_deploy.engines.kernels import Source
from vggt_deploy.engines.layer_record import RECORD_BEGIN
from vggt_deploy.engines.tensorrt.inspector import describe_layers
from vggt_deploy.engines.tensorrt.library import Library
from vggt_deploy.engines.tensorrt.refit import refit_from_graph
from vggt_deploy.errors import BuildError
from vggt_deploy.memory import peak_rss_bytes
from vggt_deploy.progress import Progress
from vggt_deploy.records import FileRecord

# TensorRT's classes, for readers: the module is known only at run time.
Builder: TypeAlias = Any
IBuilderConfig: TypeAlias = Any
ICudaEngine: TypeAlias = Any
INetworkDefinition: TypeAlias = Any
OnnxParser: TypeAlias = Any
Runtime: TypeAlias = Any

STAGE = "build"
CANCEL_STAGE = "cancel"
_POLL_S = 0.1
_WEIGHTS_LINE = re.compile(r"Total Weights Memory: (\d+) bytes")


@dataclass(frozen=True)
class BuiltPlan:
    """What TensorRT made, beside the plan itself.

    file: size and SHA-256 of the plan
    layers: text that says what every layer computes in, for `engines.kernels`
    layers_source: which of the two forms it has
    weights_bytes: of the weights in the plan, or None where TensorRT does not say
    activation_bytes: device memory per profile; None where no GPU was asked
    peak_rss_bytes: the most memory that this process had until now
    """

    file: FileRecord
    layers: str = field(repr=False)
    layers_source: Source
    seconds: float
    peak_rss_bytes: int
    weights_bytes: int | None
    activation_bytes: tuple[int, ...] | None
    flags: tuple[str, ...]
    warnings: tuple[str, ...]


def build_plan(
    library: Library,
    graph: Path,
    settings: BuildSettings,
    plan: Path | None = None,
    *,
    progress: Progress | None = None,
) -> BuiltPlan:
    """Build an engine from the graph in a file, whose weights may lie in files beside it.

    plan: the file to write it to; None puts it beside the graph, as <graph>.engine.

    Ctrl-C stops TensorRT at its next step, and no plan is left. The step that compiles kernels is a
    long one (of vggt-tiny's 3 s with TensorRT-RTX it takes 2.6), so `progress` gets the stage
    "cancel".

    Raises:
        BuildError: TensorRT refuses the graph or the settings; with its own words.
        OSError: the plan can't be written (disk full).
    """
    begun = time.perf_counter()
    path = graph.with_suffix(".engine") if plan is None else plan
    log = library.error_log(keep=_is_used)
    with writing_plan(path) as target:
        flags = _serialize(library, graph, settings, target, progress, log)
        seconds = time.perf_counter() - begun
        layers, source, activations = _describe(library, path, graph, settings, log)
    return BuiltPlan(
        file=target.record(),
        layers=layers,
        layers_source=source,
        seconds=seconds,
        peak_rss_bytes=peak_rss_bytes()[0],
        weights_bytes=_weights_bytes(log.records),
        activation_bytes=activations,
        flags=flags,
        warnings=tuple(dict.fromkeys(log.warnings)),
    )


def _serialize(
    library: Library,
    graph: Path,
    settings: BuildSettings,
    target: PlanFile,
    progress: Progress | None,
    log: Any,
) -> tuple[str, ...]:
    """Parse, build and write; the flags that were on. All that TensorRT held is free afterwards."""
    trt = library.trt
    builder = trt.Builder(log)
    network = builder.create_network(network_flags(trt))
    parser = trt.OnnxParser(network, log)
    _parse(library, parser, graph, log)
    config = builder.create_builder_config()
    flags = configure(library, config, settings)
    add_profiles(builder, config, network, settings, graph)
    kept = settings.timing_cache
    cache = None if kept is None else timing.attach(config, kept)
    state = BuildProgress()
    monitor = make_monitor(trt, state)
    config.progress_monitor = monitor
    done = _build(library, builder, network, config, target, state, progress)
    if target.failure is not None:
        raise target.failure
    if not done:
        raise BuildError(
            f"{library.title} can't build {graph.name}:\n    {log.explain()}",
            "see the layer it names; `vggt-deploy schemes` tells which schemes build where",
        )
    if kept is not None:
        timing.save(config, kept)
    del cache, monitor  # TensorRT does not keep them alive: they had to live until here
    return flags


def _is_used(message: str) -> bool:
    """Of TensorRT-RTX's verbose log (10 MB for VGGT-1B; hundreds for TensorRT, which times every
    kernel) only this is read.
    """
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


def _build(
    library: Library,
    builder: Builder,
    network: INetworkDefinition,
    config: IBuilderConfig,
    target: PlanFile,
    state: BuildProgress,
    progress: Progress | None,
) -> bool:
    """Build in a thread, so that this one can draw, and hear Ctrl-C. Whether there is a plan.

    TensorRT's threads call no code of the caller: an exception there would end the process. With
    the builder in the main thread Python would handle Ctrl-C in just such a call.
    """
    done: list[bool] = []
    failed: list[Exception] = []

    def work() -> None:
        try:
            done.append(_write_plan(library, builder, network, config, target))
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
    if progress is not None and done[0]:
        progress(STAGE, PERMILLE, PERMILLE)
    return done[0]


def _write_plan(
    library: Library,
    builder: Builder,
    network: INetworkDefinition,
    config: IBuilderConfig,
    target: PlanFile,
) -> bool:
    """In TensorRT's thread: build, and write the plan as it comes (in 10.3: as a whole)."""
    writer = make_stream_writer(library.trt, target)
    if writer is not None and hasattr(builder, "build_serialized_network_to_stream"):
        return bool(builder.build_serialized_network_to_stream(network, config, writer))
    plan = builder.build_serialized_network(network, config)
    return plan is not None and target.write(plan) > 0


def _weights_bytes(records: tuple[str, ...]) -> int | None:
    found = [int(match[1]) for text in records if (match := _WEIGHTS_LINE.search(text))]
    return found[-1] if found else None


def _describe(
    library: Library, plan: Path, graph: Path, settings: BuildSettings, log: Any
) -> tuple[str, Source, tuple[int, ...] | None]:
    """What the layers compute in, and activation memory per profile where a GPU can tell.

    TensorRT-RTX writes its layers to the log, with a GPU or without. TensorRT's inspector needs the
    engine on the GPU, which is there: it built on it. A stripped engine gets its weights back in
    the same go, so that one which can't take them is never shipped.
    """
    if library.is_rtx and not settings.strip:
        return _layer_record(library, log), "builder layer record", None
    trt = library.trt
    runtime = trt.Runtime(log)  # must live as long as the engine
    if settings.version_compatible:
        # Such a plan carries the lean runtime, as host code. This process has just made it.
        runtime.engine_host_code_allowed = True
    engine = _load(library, runtime, plan, log)
    if settings.strip:
        refit_from_graph(library, engine, graph, log)
    if library.is_rtx:
        return _layer_record(library, log), "builder layer record", None
    frames = settings.profiles[0].opt if settings.profiles else 1
    text = describe_layers(library, engine, frames, log)
    activations = tuple(
        int(engine.get_device_memory_size_for_profile_v2(index))
        for index in range(engine.num_optimization_profiles)
    )
    return text, "engine inspector", activations


def _layer_record(library: Library, log: Any) -> str:
    records = [text for text in log.records if text.startswith(RECORD_BEGIN)]
    if not records:
        raise BuildError(
            f"{library.title} wrote no layer record, so nothing can be proven about the engine",
            "use a version of TensorRT-RTX that vggt-deploy knows (pip install 'vggt-deploy[rtx]')",
        )
    return str(records[-1])


def _load(library: Library, runtime: Runtime, plan: Path, log: Any) -> ICudaEngine:
    """The engine that this process has just written: the one plan that needs no hash before."""
    with plan.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        engine = runtime.deserialize_cuda_engine(content)
    if engine is None:
        raise BuildError(
            f"{library.title} can't load the engine that it has just built:\n    {log.explain()}",
            "free memory on the GPU and build again",
        )
    return engine
