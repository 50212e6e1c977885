"""A CUDA runtime and a TensorRT made of numpy, strict about everything that a GPU is strict about.

What is put on a stream happens when the stream is synchronized, not before. Memory is looked up by
address: reading past a buffer, after it was freed, or freeing what still runs fails the test. The
engine computes what the graph of `tests/engines/conftest.py` computes.
"""

from __future__ import annotations

import ctypes
import enum
import gc
import sys
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vggt_deploy.errors import DeployError
from vggt_deploy.manifest import SCHEMA, now, record_files, write_manifest
from vggt_deploy.records import (
    EngineRecord,
    FramesRange,
    LayerSummary,
    Manifest,
    ModelRecord,
    ProofRecord,
)

HEIGHT, WIDTH = 42, 56
OUTPUTS = ("pose_enc", "depth", "depth_conf", "world_points", "world_points_conf")
VERSION = "10.16.1.11"


class Status(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorIllegalAddress = 700
    cudaErrorStreamCaptureInvalidated = 901


class FakeCuda(ModuleType):
    """`cuda.bindings.runtime` in numpy. `fails`: function -> (status, from which call on)."""

    cudaError_t = Status
    cudaStreamNonBlocking = 1
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self) -> None:
        super().__init__("cuda.bindings.runtime")
        self.devices = 1
        self.fails: dict[str, tuple[Status, int]] = {}
        self.calls: list[str] = []
        self.device: dict[int, np.ndarray[Any, Any]] = {}
        self.pinned: dict[int, Any] = {}
        self.streams: dict[int, list[Callable[[], None]]] = {}
        self.events: dict[int, float | None] = {}
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.capturing: list[Callable[[], None]] | None = None
        self.captured: dict[int, list[Callable[[], None]]] = {}
        self.clock_ms = 0.0
        self._next = 1 << 40

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if not name.startswith("cuda") or not callable(value) or isinstance(value, type):
            return value
        fails, calls = super().__getattribute__("fails"), super().__getattribute__("calls")

        def call(*arguments: Any) -> Any:
            calls.append(name)
            status, at = fails.get(name, (Status.cudaSuccess, 0))
            if status and calls.count(name) > at:
                return (status, None)
            return value(*arguments)

        return call

    def handle(self) -> int:
        self._next += 1 << 20
        return self._next

    def leaks(self) -> list[str]:
        """Everything that was made and not given back."""
        gc.collect()  # the traceback of an error holds the engine
        held = {
            "device memory": self.device,
            "pinned memory": self.pinned,
            "streams": self.streams,
            "events": self.events,
            "graphs": self.graphs,
            "captured graphs": self.captured,
        }
        return [name for name, things in held.items() if things]

    def floats(self, address: int, count: int) -> np.ndarray[Any, Any]:
        """Device memory as float32; a KeyError if it is not (or no more) allocated."""
        block = self.device[address]
        assert 4 * count <= block.nbytes, "past the end of a buffer"
        return block[: 4 * count].view(np.float32)

    def put(self, stream: int, action: Callable[[], None]) -> None:
        """Do it when the stream is synchronized, or when the recorded graph runs."""
        (self.streams[stream] if self.capturing is None else self.capturing).append(action)

    def cudaGetDeviceCount(self) -> Any:
        return (Status.cudaSuccess, self.devices)

    def cudaGetErrorString(self, status: Status) -> Any:
        return (Status.cudaSuccess, f"the words of {status.name}".encode())

    def cudaGetLastError(self) -> Any:
        return (Status.cudaSuccess,)

    def cudaSetDevice(self, index: int) -> Any:
        assert index == 0
        return (Status.cudaSuccess,)

    def cudaGetDeviceProperties(self, index: int) -> Any:
        del index
        found = SimpleNamespace(name=b"Test GPU\0\0", major=9, minor=0, totalGlobalMem=1 << 34)
        return (Status.cudaSuccess, found)

    def cudaDriverGetVersion(self) -> Any:
        return (Status.cudaSuccess, 13050)

    def cudaRuntimeGetVersion(self) -> Any:
        return (Status.cudaSuccess, 13050)

    def cudaMemGetInfo(self) -> Any:
        used = sum(block.nbytes for block in self.device.values())
        return (Status.cudaSuccess, (1 << 33) - used, 1 << 34)

    def cudaMalloc(self, size: int) -> Any:
        assert size > 0
        address = self.handle()
        self.device[address] = np.full(size, 0xFF, dtype=np.uint8)  # float32 NaN
        return (Status.cudaSuccess, address)

    def cudaFree(self, address: int) -> Any:
        assert not any(self.streams.values()), "freed while work was on a stream"
        del self.device[address]
        return (Status.cudaSuccess,)

    def cudaMallocHost(self, size: int) -> Any:
        block = ctypes.create_string_buffer(b"\xff" * size, size)
        address = ctypes.addressof(block)
        self.pinned[address] = block
        return (Status.cudaSuccess, address)

    def cudaFreeHost(self, address: int) -> Any:
        assert not any(self.streams.values()), "freed while work was on a stream"
        del self.pinned[address]
        return (Status.cudaSuccess,)

    def cudaStreamCreateWithFlags(self, flags: int) -> Any:
        assert flags == self.cudaStreamNonBlocking
        stream = self.handle()
        self.streams[stream] = []
        return (Status.cudaSuccess, stream)

    def cudaStreamSynchronize(self, stream: int) -> Any:
        assert self.capturing is None, "synchronized while capturing"
        work, self.streams[stream] = self.streams[stream], []
        for action in work:
            action()
        return (Status.cudaSuccess,)

    def cudaStreamDestroy(self, stream: int) -> Any:
        del self.streams[stream]
        return (Status.cudaSuccess,)

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: int, stream: int) -> Any:
        to_device = kind == self.cudaMemcpyKind.cudaMemcpyHostToDevice
        host, device = (source, target) if to_device else (target, source)

        def copy() -> None:
            assert size <= len(self.pinned[host]), "past the end of pinned memory"
            pinned = np.frombuffer(self.pinned[host], dtype=np.uint8)
            assert size <= self.device[device].nbytes
            if to_device:
                self.device[device][:size] = pinned[:size]
            else:
                pinned[:size] = self.device[device][:size]
            self.clock_ms += 1.0 if to_device else 2.0

        self.put(stream, copy)
        return (Status.cudaSuccess,)

    def cudaEventCreate(self) -> Any:
        event = self.handle()
        self.events[event] = None
        return (Status.cudaSuccess, event)

    def cudaEventRecord(self, event: int, stream: int) -> Any:
        def record() -> None:
            self.events[event] = self.clock_ms

        self.events[event] = None
        self.put(stream, record)
        return (Status.cudaSuccess,)

    def cudaEventElapsedTime(self, start: int, end: int) -> Any:
        first, last = self.events[start], self.events[end]
        assert first is not None, "the event has not passed"
        assert last is not None, "the event has not passed"
        return (Status.cudaSuccess, last - first)

    def cudaEventDestroy(self, event: int) -> Any:
        del self.events[event]
        return (Status.cudaSuccess,)

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> Any:
        assert stream in self.streams
        assert mode == 1
        self.capturing = []
        return (Status.cudaSuccess,)

    def cudaStreamEndCapture(self, stream: int) -> Any:
        assert stream in self.streams
        assert self.capturing is not None
        graph = self.handle()
        self.captured[graph], self.capturing = self.capturing, None
        return (Status.cudaSuccess, graph)

    def cudaGraphInstantiate(self, graph: int, flags: int) -> Any:
        assert flags == 0
        executable = self.handle()
        self.graphs[executable] = list(self.captured[graph])
        return (Status.cudaSuccess, executable)

    def cudaGraphDestroy(self, graph: int) -> Any:
        del self.captured[graph]
        return (Status.cudaSuccess,)

    def cudaGraphLaunch(self, executable: int, stream: int) -> Any:
        self.streams[stream] += self.graphs[executable]
        return (Status.cudaSuccess,)

    def cudaGraphExecDestroy(self, executable: int) -> Any:
        del self.graphs[executable]
        return (Status.cudaSuccess,)


class Mode(enum.Enum):
    INPUT = 1
    OUTPUT = 2


class Type(enum.Enum):
    FLOAT = 0
    HALF = 1


class Strategy(enum.Enum):
    STATIC = 0
    USER_MANAGED = 2


class Verbosity(enum.Enum):
    NONE = 1
    DETAILED = 2


class Specialization(enum.Enum):
    LAZY = 0
    EAGER = 1


class GraphStrategy(enum.Enum):
    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class RuntimeConfig:
    """TensorRT-RTX's settings of a context, with its own defaults."""

    def __init__(self) -> None:
        self.strategy = Strategy.STATIC
        self.dynamic_shapes_kernel_specialization_strategy = Specialization.LAZY
        self.cuda_graph_strategy = GraphStrategy.DISABLED

    def set_execution_context_allocation_strategy(self, strategy: Strategy) -> None:
        self.strategy = strategy


class Validity(enum.Enum):
    VALID = 0
    SUBOPTIMAL = 1
    INVALID = 2


class Diagnostics(enum.Enum):
    VERSION_MISMATCH = 1
    UNSUPPORTED_CC = 2

    def __int__(self) -> int:
        return int(self.value)


class Severity(enum.Enum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class Logger:
    Severity = Severity


@dataclass
class Faults:
    """What goes wrong: names of calls that answer as TensorRT does when it refuses."""

    refuse: set[str] = field(default_factory=set)
    validity: tuple[Validity, int] = (Validity.VALID, 0)
    types: dict[str, Type] = field(default_factory=dict)
    names: tuple[str, ...] = ("images", *OUTPUTS)


class Context:
    """An execution context that checks what TensorRT would, or would crash on."""

    def __init__(self, trt: FakeTensorRT) -> None:
        self.trt = trt
        self.active_optimization_profile = 0
        self.shape: tuple[int, ...] | None = None
        self.memory: tuple[int, int] | None = None
        self.addresses: dict[str, int] = {}
        self.needed = 0
        self.nvtx_verbosity = Verbosity.DETAILED

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        assert stream in self.trt.cuda.streams
        self.active_optimization_profile, self.shape = profile, None
        self.trt.said.append(f"profile {profile}")
        return self.trt.accepts("set_optimization_profile_async")

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        assert name == "images"
        low, _, high = self.trt.profiles[self.active_optimization_profile]
        self.shape = tuple(shape)
        return low <= shape[1] <= high and self.trt.accepts("set_input_shape")

    def infer_shapes(self) -> list[str]:
        return [] if self.trt.accepts("infer_shapes") else ["depth"]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        assert self.shape is not None
        s, h, w = self.shape[1], self.shape[3], self.shape[4]
        return {
            "images": self.shape,
            "pose_enc": (1, s, 9),
            "depth": (1, s, h, w, 1),
            "world_points": (1, s, h, w, 3),
        }.get(name, (1, s, h, w))

    def update_device_memory_size_for_shapes(self) -> int:
        assert self.shape is not None
        self.needed = 1000 * self.shape[1]
        return self.needed

    def set_device_memory(self, address: int, size: int) -> None:
        self.memory = (address, size)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return self.trt.accepts("set_tensor_address")

    def execute_async_v3(self, stream: int) -> bool:
        cuda = self.trt.cuda
        assert stream in cuda.streams, "the default stream, or none"
        assert self.memory is not None
        address, size = self.memory
        assert size >= self.needed
        assert self.nvtx_verbosity is Verbosity.NONE
        assert cuda.device[address].nbytes >= size
        if self.trt.configs:
            assert cuda.capturing is None, "it was not built for user allocation alone"
        self.trt.said.append("execute")
        if not self.trt.accepts("execute_async_v3"):
            return False
        shapes = {name: self.get_tensor_shape(name) for name in self.trt.faults.names}
        views = {
            name: cuda.floats(self.addresses[name], int(np.prod(shape))).reshape(shape)
            for name, shape in shapes.items()
        }
        cuda.put(stream, lambda: self._compute(views))
        return True

    def _compute(self, views: dict[str, np.ndarray[Any, Any]]) -> None:
        self.trt.cuda.clock_ms += 5.0
        x = views["images"]
        made = {
            "pose_enc": np.pad(x.mean(axis=(3, 4)), ((0, 0), (0, 0), (0, 6))),
            "depth": 2 - x.mean(axis=2)[..., None],
            "depth_conf": 1 + x[:, :, 0],
            "world_points": np.moveaxis(x, 2, -1),
            "world_points_conf": 1 + x[:, :, 2],
        }
        for name, view in views.items():
            if name in made:
                view[...] = made[name]


class Engine:
    """What the fake `Runtime` deserializes."""

    def __init__(self, trt: FakeTensorRT) -> None:
        self.trt = trt
        self.num_io_tensors = len(trt.faults.names)
        self.num_optimization_profiles = len(trt.profiles)
        self.weights = trt.cuda.cudaMalloc(trt.weights_bytes)[1]
        trt.living.append("engine")

    def __del__(self) -> None:
        self.trt.cuda.device.pop(self.weights, None)
        self.trt.living.remove("engine")

    def get_tensor_name(self, index: int) -> str:
        return self.trt.faults.names[index]

    def get_tensor_mode(self, name: str) -> Mode:
        return Mode.INPUT if name.startswith("images") else Mode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Type:
        return self.trt.faults.types.get(name, Type.FLOAT)

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        assert name == "images"
        return [(1, frames, 3, HEIGHT, WIDTH) for frames in self.trt.profiles[profile]]

    def create_runtime_config(self) -> RuntimeConfig:
        assert self.trt.__name__ == "tensorrt_rtx", "TensorRT 10.3 has none"
        self.trt.configs.append(RuntimeConfig())
        return self.trt.configs[-1]

    def create_execution_context(self, strategy: Strategy | RuntimeConfig) -> Context | None:
        if isinstance(strategy, RuntimeConfig):
            strategy = strategy.strategy
        assert strategy is Strategy.USER_MANAGED
        if not self.trt.accepts("create_execution_context"):
            return None
        context = Context(self.trt)
        self.trt.contexts.append(weakref.ref(context))  # the session alone keeps it alive
        return context


class FakeTensorRT(ModuleType):
    """`tensorrt` or `tensorrt_rtx`, as far as a session uses it."""

    TensorIOMode = Mode
    DataType = Type
    ExecutionContextAllocationStrategy = Strategy
    ProfilingVerbosity = Verbosity
    EngineValidity = Validity
    EngineInvalidityDiagnostics = Diagnostics
    DynamicShapesKernelSpecializationStrategy = Specialization
    CudaGraphStrategy = GraphStrategy
    ILogger = Logger

    def __init__(self, name: str, cuda: FakeCuda, version: str) -> None:
        super().__init__(name)
        self.__version__ = version
        self.cuda = cuda
        self.faults = Faults()
        self.profiles: list[tuple[int, int, int]] = []
        self.weights_bytes = 5000
        self.said: list[str] = []
        self.living: list[str] = []
        self.host_code_allowed: list[bool] = []
        self.plans: list[bytes] = []
        self.configs: list[RuntimeConfig] = []
        self.log: Any = None
        self.contexts: list[weakref.ref[Context]] = []
        trt = self

        class Runtime:
            def __init__(self, log: Any) -> None:
                trt.log = log
                if not trt.accepts("createInferRuntime"):
                    raise TypeError("pybind11::init(): factory function returned nullptr")
                self.engine_host_code_allowed = False

            def get_engine_validity(self, plan: Any) -> tuple[Validity, int]:
                assert bytes(plan[:4]) == b"vtrt"
                return trt.faults.validity

            def deserialize_cuda_engine(self, plan: Any) -> Engine | None:
                trt.plans.append(bytes(plan))
                trt.host_code_allowed.append(self.engine_host_code_allowed)
                return Engine(trt) if trt.accepts("deserialize_cuda_engine") else None

        self.Runtime = Runtime

    @property
    def context(self) -> Context:
        """The context that a session made last, and has not closed."""
        found = self.contexts[-1]()
        assert found is not None
        return found

    def accepts(self, call: str) -> bool:
        """False, with an error line, if the test wants this call refused."""
        if call not in self.faults.refuse:
            return True
        self.log.log(Severity.ERROR, f"Error Code 4: {call} has its reasons")
        return False


@dataclass(frozen=True)
class Refusal:
    """An error's text."""

    message: str
    fix: str


@dataclass
class Machine:
    """What a test sets up and looks at."""

    cuda: FakeCuda
    trt: FakeTensorRT

    def refuses(self, error: type[DeployError], words: str, action: Callable[[], Any]) -> Refusal:
        """`action` fails with these words; what it said, without the traceback."""
        with pytest.raises(error, match=words) as caught:
            action()
        return Refusal(caught.value.message, caught.value.fix)


MakeEngine = Callable[..., Path]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine with a CUDA device and TensorRT 10.16, both fake."""
    cuda = FakeCuda()
    trt = FakeTensorRT("tensorrt", cuda, VERSION)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    return Machine(cuda, trt)


@pytest.fixture
def rtx_machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """The same with TensorRT-RTX."""
    cuda = FakeCuda()
    trt = FakeTensorRT("tensorrt_rtx", cuda, "1.7.1.116")
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", trt)
    return Machine(cuda, trt)


def plan_bytes(version: str = VERSION, *, rtx: bool = False) -> bytes:
    """The header that a plan has, and a few bytes after it."""
    numbers = bytes(int(part) for part in version.split("."))
    return (b"vtrt" if rtx else b"ftrt") + bytes(20) + numbers + bytes(100)


def write_engine(
    folder: Path,
    *,
    plan: bytes | None = None,
    runtime: str = "tensorrt",
    version: str = VERSION,
    profiles: Sequence[tuple[int, int, int]] = ((1, 2, 4), (6, 8, 8)),
    outputs: tuple[str, ...] = OUTPUTS,
    height: int = HEIGHT,
    width: int = WIDTH,
    **differences: Any,
) -> Path:
    """An engine folder as `build` writes it."""
    folder.mkdir(parents=True)
    rtx = runtime == "tensorrt-rtx"
    (folder / "model.engine").write_bytes(plan or plan_bytes(version, rtx=rtx))
    settings: dict[str, Any] = {
        "file": "model.engine",
        "runtime": runtime,
        "runtime_version": version,
        "onnx_sha256": "0" * 64,
        "weights_sha256": "1" * 64,
        "device": "test",
        "device_profile": "",
        "compute_capabilities": ("9.0",),
        "profiles": tuple(FramesRange(*p) for p in profiles),
        "flags": (),
        "tf32": False,
        "optimization_level": 3,
        "hardware_compatibility": "NONE",
        "workspace_bytes": None,
        "stripped": False,
        "timing_cache": None,
        "build_seconds": 1.0,
        "peak_rss_bytes": 1,
        "weights_bytes": None,
        "activation_bytes": None,
        "built_on": {},
        "proof": ProofRecord("engine inspector", {}, 0, 0),
    }
    manifest = Manifest(
        schema=SCHEMA,
        tool_version="0.test",
        kind="engine",
        created=now(),
        model=ModelRecord("random:test", "test"),
        scheme="int8_pc_sym",
        activations="static",
        precision="fp16",
        height=height,
        width=width,
        frames=FramesRange(1, 2, 32),
        outputs=outputs,
        graphs={},
        layers=LayerSummary({}),
        files=record_files(folder),
        versions={},
        engine=EngineRecord(**{**settings, **differences}),
    )
    write_manifest(folder, manifest)
    return folder


@pytest.fixture
def make_engine(tmp_path: Path, request: pytest.FixtureRequest) -> MakeEngine:
    """Writes an engine folder; the fake TensorRT of the test gets its profiles."""
    count = 0

    def make(**differences: Any) -> Path:
        nonlocal count
        count += 1
        folder = write_engine(tmp_path / f"engine-{count}", **differences)
        for name in ("machine", "rtx_machine"):
            if name in request.fixturenames:
                found = request.getfixturevalue(name)
                found.trt.profiles = list(differences.get("profiles", ((1, 2, 4), (6, 8, 8))))
        return folder

    return make


@pytest.fixture
def plan_header() -> Callable[..., bytes]:
    """Bytes of a plan as another version would have written it."""
    return plan_bytes
