"""An engine at work: numpy in, numpy out, no torch.

    with contextlib.closing(open_session(Path("vggt-1b-h200"))) as session:
        outputs = session.run(images)          # images [1, S, 3, H, W], float32 RGB in 0..1

Every session has its own stream, pinned host buffers and device buffers that are kept from run to
run, and the activation memory that the frame count at hand needs (not the engine's largest). The
optimization profile is chosen by the frame count. Runs of several threads take turns.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vggt_deploy.engines.runtime import SessionInfo, check_images
from vggt_deploy.engines.tensorrt.buffers import Buffers
from vggt_deploy.engines.tensorrt.cuda import Cuda
from vggt_deploy.engines.tensorrt.library import Library
from vggt_deploy.engines.tensorrt.load import (
    LoadedEngine,
    describe,
    load_engine,
    require_device,
    require_interface,
    require_machine,
    require_version,
)
from vggt_deploy.errors import ArtifactError, DeployError, UsageError
from vggt_deploy.records import EngineRecord, FramesRange, Manifest

# TensorRT's classes, for readers: the module is known only at run time.
ICudaEngine: TypeAlias = Any
IExecutionContext: TypeAlias = Any
IRuntimeConfig: TypeAlias = Any

_FLOAT_BYTES = 4
_ACTIVATIONS = "activations"
Array = NDArray[np.float32]


def open_tensorrt(
    artifact: Path,
    manifest: Manifest,
    *,
    provider: str,
    threads: int | None,
    cuda_graph: bool = False,
) -> TensorRTSession:
    """Open an engine on the first CUDA device, or say in one error why that can't be."""
    record = manifest.engine
    if record is None:
        raise ArtifactError(f"{artifact} holds no engine", "build one: vggt-deploy build")
    if provider != "cuda" or threads is not None:
        raise UsageError(
            f"an engine on provider {provider} with {threads} threads", "it runs on cuda alone"
        )
    library, cuda = require_machine(artifact, record)
    require_version(artifact, record, library)
    require_device(artifact, record, cuda.device)
    started = time.perf_counter()
    cuda.use()
    with contextlib.ExitStack() as undo:
        stream = cuda.create_stream()
        undo.callback(_quietly, cuda.destroy_stream, stream)
        buffers = Buffers(cuda)
        undo.callback(buffers.close)
        free_before = cuda.free_bytes()
        loaded = load_engine(artifact, record, library, cuda.device)
        if record.stripped:
            from vggt_deploy.engines.tensorrt.refit import refit

            refit(library, loaded.engine, artifact)
        source = require_interface(artifact, loaded, library, manifest.outputs)
        profiles = _profiles(artifact, loaded.engine, source, record)
        settings = _rtx_settings(library, loaded.engine, cuda_graph) if library.is_rtx else None
        context = _create_context(library, loaded, artifact, settings)
        engine_bytes = max(0, free_before - cuda.free_bytes())
        load_ms = (time.perf_counter() - started) * 1e3
        parts = Parts(
            cuda, stream, buffers, loaded, settings, context, source, profiles, engine_bytes
        )
        info = _describe(artifact, manifest, record, library, parts, load_ms, cuda_graph)
        return TensorRTSession(parts, info, undo.pop_all())


@dataclass(frozen=True)
class Parts:
    """What a session is made of. `engine_bytes`: device memory that loading took.

    settings: of the context, of TensorRT-RTX alone; kept as long as the context, which may use it
    """

    cuda: Cuda
    stream: int
    buffers: Buffers
    loaded: LoadedEngine
    settings: IRuntimeConfig | None
    context: IExecutionContext
    source: str
    profiles: tuple[FramesRange, ...]
    engine_bytes: int


class TensorRTSession:
    """One execution context of an engine; made by `open_tensorrt`."""

    def __init__(self, parts: Parts, info: SessionInfo, undo: contextlib.ExitStack) -> None:
        self._parts: Parts | None = parts
        self._info = info
        self._undo = undo
        self._lock = threading.Lock()
        self._frames: int | None = None  # the count that shapes, addresses and memory are set for
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._ran = False  # since the last change of shapes, outside a graph
        self._graph: int | None = None
        # TensorRT-RTX makes its own: see `_rtx_settings`.
        self._makes_graph = info.cuda_graph and info.runtime != "tensorrt-rtx"

    @property
    def info(self) -> SessionInfo:
        """What was opened and what runs it."""
        return self._info

    @property
    def parts(self) -> Parts:
        """CUDA, stream and buffers, for measuring.

        Raises:
            UsageError: the session is closed.
        """
        if self._parts is None:
            raise UsageError("the session is closed", "open the engine again")
        return self._parts

    def run(self, images: Array, *, mark: Callable[[], None] | None = None) -> dict[str, Array]:
        """Images [1, S, 3, H, W] to the outputs of the manifest, named and shaped as upstream.

        mark: called four times while the work is put on the stream: before the copy to the device,
            before the network, after it, and after the copy to the host
        """
        with self._lock:
            parts = self.parts
            check_images(images, self._info)
            parts.cuda.use()
            try:
                self._prepare(parts, images.shape[1])
                return self._execute(parts, images, mark or _no_mark)
            except BaseException:
                # Whatever was put on the stream must not run into the buffers of the next call.
                _quietly(parts.cuda.synchronize, parts.stream)
                self._forget_shapes(parts)
                raise

    def close(self) -> None:
        """Give back the memory; a second call does nothing."""
        with self._lock:
            if self._parts is None:
                return
            _quietly(self._parts.cuda.synchronize, self._parts.stream)
            self._forget_shapes(self._parts)
            # Context, engine, runtime and log end here, and then the memory that they used.
            self._parts = None
            self._undo.close()

    def _forget_shapes(self, parts: Parts) -> None:
        self._frames, self._ran = None, False
        if self._graph is not None:
            graph, self._graph = self._graph, None
            _quietly(parts.cuda.destroy_graph, graph)

    def _prepare(self, parts: Parts, frames: int) -> None:
        """Profile, shapes, memory and addresses for a frame count; nothing if they are set."""
        if frames == self._frames:
            return
        self._forget_shapes(parts)
        context, info = parts.context, self._info
        profile = choose_profile(frames, parts.profiles)
        if context.active_optimization_profile != profile:
            chosen = context.set_optimization_profile_async(profile, parts.stream)
            self._require(parts, chosen, f"profile {profile}")
            parts.cuda.synchronize(parts.stream)
        shape = (1, frames, 3, info.height, info.width)
        self._require(parts, context.set_input_shape(parts.source, shape), f"input {list(shape)}")
        try:
            unknown = context.infer_shapes()
        except RuntimeError as error:  # names that are missing are returned, all else is raised
            raise DeployError(
                f"{info.artifact}: {error} for the input {list(shape)}: "
                f"{parts.loaded.log.explain()}",
                "build the engine again",
            ) from error
        self._require(parts, not unknown, f"to tell the shapes of {', '.join(unknown)}")
        engine = parts.loaded.engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        self._shapes = {name: tuple(context.get_tensor_shape(name)) for name in names}
        size = int(context.update_device_memory_size_for_shapes())
        if size:
            context.set_device_memory(parts.buffers.device(_ACTIVATIONS, size), size)
        for name in names:
            address = self._device(parts, name)
            done = context.set_tensor_address(name, address)
            self._require(parts, done, f"the address of {name}")
        self._frames = frames

    def _execute(self, parts: Parts, images: Array, mark: Callable[[], None]) -> dict[str, Array]:
        cuda, stream = parts.cuda, parts.stream
        source = self._pinned(parts, parts.source)
        hosts = {name: self._pinned(parts, name) for name in self._info.outputs}
        np.copyto(source, images)
        mark()
        device = self._device(parts, parts.source)
        cuda.copy_to_device(device, source.ctypes.data, source.nbytes, stream)
        mark()
        self._launch(parts)
        mark()
        for name, host in hosts.items():
            cuda.copy_to_host(host.ctypes.data, self._device(parts, name), host.nbytes, stream)
        mark()
        cuda.synchronize(stream)
        # Copies: the pinned buffers are overwritten by the next run.
        return {name: host.copy() for name, host in hosts.items()}

    def _launch(self, parts: Parts) -> None:
        if self._graph is None and self._makes_graph and self._ran:
            # Not in the first run after a change of shapes: it sets up what can't be captured.
            parts.cuda.begin_capture(parts.stream)
            try:
                self._enqueue(parts)
            except BaseException:
                # The capture must end. That it gave no whole graph is not what went wrong.
                with contextlib.suppress(DeployError):
                    parts.cuda.destroy_graph(parts.cuda.end_capture(parts.stream))
                raise
            self._graph = parts.cuda.end_capture(parts.stream)
        if self._graph is None:
            self._enqueue(parts)
            self._ran = True
        else:
            parts.cuda.launch(self._graph, parts.stream)

    def _enqueue(self, parts: Parts) -> None:
        if not parts.context.execute_async_v3(parts.stream):
            raise DeployError(
                f"{self._info.runtime} {self._info.runtime_version} could not run "
                f"{self._frames} images: {parts.loaded.log.explain()}",
                "if memory ran out, give fewer images; otherwise build the engine again",
            )

    def _pinned(self, parts: Parts, name: str) -> Array:
        return parts.buffers.pinned(name, self._shapes[name])

    def _device(self, parts: Parts, name: str) -> int:
        size = _FLOAT_BYTES * math.prod(self._shapes[name])
        return parts.buffers.device(f"tensor {name}", size)

    def _require(self, parts: Parts, done: bool, what: str) -> None:
        if not done:
            raise DeployError(
                f"{self._info.artifact}: TensorRT refused {what}: {parts.loaded.log.explain()}",
                "build the engine again",
            )


def choose_profile(frames: int, profiles: tuple[FramesRange, ...]) -> int:
    """The profile that takes `frames`; of several, the one tuned nearest to it, then the narrowest.

    `check_frames` has seen that there is one.
    """
    fitting = [i for i, p in enumerate(profiles) if p.min <= frames <= p.max]
    return min(
        fitting,
        key=lambda i: (abs(profiles[i].opt - frames), profiles[i].max - profiles[i].min),
    )


def _profiles(
    folder: Path, engine: ICudaEngine, source: str, record: EngineRecord
) -> tuple[FramesRange, ...]:
    """The frame counts of the engine's own profiles, which must be those of the manifest."""
    found = tuple(
        FramesRange(*(int(shape[1]) for shape in engine.get_tensor_profile_shape(source, index)))
        for index in range(engine.num_optimization_profiles)
    )
    if found != record.profiles:
        raise ArtifactError(
            f"{folder} takes {_words(found)} frames, its manifest says {_words(record.profiles)}",
            "build it again",
        )
    return found


def _words(profiles: tuple[FramesRange, ...]) -> str:
    return ", ".join(f"{p.min}:{p.opt}:{p.max}" for p in profiles)


def _create_context(
    library: Library, loaded: LoadedEngine, folder: Path, settings: IRuntimeConfig | None
) -> IExecutionContext:
    """A context whose activation memory is ours: a STATIC one takes that of the largest profile."""
    trt, engine = library.trt, loaded.engine
    strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
    context = engine.create_execution_context(strategy if settings is None else settings)
    if context is None:
        raise DeployError(
            f"{library.title} can't make an execution context for {folder}: {loaded.log.explain()}",
            "if memory ran out, free the GPU; otherwise build the engine again",
        )
    # Engines are built with detailed layer information; annotating every kernel would cost time.
    context.nvtx_verbosity = trt.ProfilingVerbosity.NONE
    return context


def _rtx_settings(library: Library, engine: ICudaEngine, cuda_graph: bool) -> IRuntimeConfig:
    """How TensorRT-RTX compiles kernels for the shapes that it meets, and makes CUDA graphs.

    By default it compiles in the background and changes kernels between two runs: EAGER compiles
    in the first run of a shape, so that all runs of it are alike. Capturing its stream from outside
    needs an engine built with REQUIRE_USER_ALLOCATION; its own graphs need nothing.
    """
    trt = library.trt
    settings = engine.create_runtime_config()
    settings.set_execution_context_allocation_strategy(
        trt.ExecutionContextAllocationStrategy.USER_MANAGED
    )
    specialization = trt.DynamicShapesKernelSpecializationStrategy.EAGER
    settings.dynamic_shapes_kernel_specialization_strategy = specialization
    if cuda_graph:
        settings.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    return settings


def _describe(
    artifact: Path,
    manifest: Manifest,
    record: EngineRecord,
    library: Library,
    parts: Parts,
    load_ms: float,
    cuda_graph: bool,
) -> SessionInfo:
    smallest = min(record.profiles, key=lambda p: p.min)
    return SessionInfo(
        artifact=artifact,
        variant=manifest.variant,
        runtime=record.runtime,
        runtime_version=library.version_text,
        provider="cuda",
        threads=None,
        load_ms=load_ms,
        outputs=manifest.outputs,
        height=manifest.height,
        width=manifest.width,
        frames=FramesRange(smallest.min, smallest.opt, max(p.max for p in record.profiles)),
        profiles=record.profiles,
        device=describe(parts.cuda.device),
        cuda_graph=cuda_graph,
        notes=parts.loaded.notes,
    )


def _quietly(action: Callable[[int], None], handle: int) -> None:
    """Clean up after a failure that has its own error; after a crash of the GPU no call works."""
    with contextlib.suppress(DeployError):
        action(handle)


def _no_mark() -> None:
    """Nobody takes the time."""
