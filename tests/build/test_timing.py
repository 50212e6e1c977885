"""The timing cache and what else only TensorRT on a GPU has, with a small stand-in for it.

The stand-in keeps to what TensorRT documents: failures are None or False, a cache of another
device is refused unless a mismatch is ignored. That the real bindings have these names is tested
elsewhere.
"""

from __future__ import annotations

import json
import mmap
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vggt_deploy.build import timing
from vggt_deploy.build.builder import build_plan
from vggt_deploy.build.configure import configure
from vggt_deploy.build.settings import BuildSettings
from vggt_deploy.engines.device import CudaDevice
from vggt_deploy.engines.tensorrt.library import Library
from vggt_deploy.errors import BuildError
from vggt_deploy.records import FramesRange

DEVICE = CudaDevice(0, "NVIDIA H200", "9.0", 2**37, 2**37, (13, 0), (13, 0), "580.65")


class Cache:
    """Times by kernel, of one device."""

    def __init__(self, device: str, times: dict[str, int]) -> None:
        self.device, self.times = device, times

    def serialize(self) -> bytes:
        return json.dumps([self.device, self.times]).encode()

    def combine(self, other: Cache, ignore_mismatch: bool) -> bool:
        if other.device != self.device and not ignore_mismatch:
            return False
        self.times = {**other.times, **self.times}
        return True


class Config:
    """IBuilderConfig, as far as it is used."""

    def __init__(self, device: str = "h200") -> None:
        self.device = device
        self.cache: Cache | None = None
        self.flags: set[str] = set()
        self.profiles: list[Any] = []
        self.previews: dict[str, bool] = {}

    def set_preview_feature(self, feature: str, on: bool) -> None:
        self.previews[feature] = on

    def create_timing_cache(self, content: bytes) -> Cache | None:
        if not content:
            return Cache(self.device, {})
        try:
            return Cache(*json.loads(content))
        except ValueError:
            return None

    def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:
        if cache.device != self.device and not ignore_mismatch:
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> Cache | None:
        return self.cache

    def set_flag(self, flag: str) -> None:
        self.flags.add(flag)

    def clear_flag(self, flag: str) -> None:
        self.flags.discard(flag)

    def add_optimization_profile(self, profile: Any) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kernels.timing"


def times_in(path: Path) -> dict[str, int]:
    return dict(json.loads(path.read_bytes())[1])


def run(path: Path, times: dict[str, int], device: str = "h200") -> None:
    """A build that times some kernels."""
    config = Config(device)
    cache = timing.attach(config, path)
    cache.times.update(times)
    timing.save(config, path)


def test_one_file_per_version_gpu_cuda_and_level(tmp_path: Path) -> None:
    def name(version: str = "10.16.1.11", level: int = 3, **changes: Any) -> str:
        library = Library(SimpleNamespace(), "tensorrt", version)  # type: ignore[arg-type]
        device = CudaDevice(**{**DEVICE.__dict__, **changes})
        return timing.cache_file(tmp_path, library, device, level).name

    assert name() == "10.16.1.11-nvidia-h200-9.0-cuda13.0-level3.timing"
    others = {
        name(version="10.16.1.12"),
        name(level=4),
        name(name="NVIDIA H100 80GB HBM3"),
        name(driver_cuda=(13, 1)),
        name(compute_capability="9.1"),
    }
    assert len(others | {name()}) == 6


def test_the_next_build_knows_the_times_of_the_one_before(path: Path) -> None:
    run(path, {"gemm": 5})
    assert timing.attach(Config(), path).times == {"gemm": 5}
    run(path, {"conv": 7})
    assert times_in(path) == {"gemm": 5, "conv": 7}
    assert sorted(p.name for p in path.parent.iterdir() if "lock" not in p.name) == [path.name]


def test_two_builds_at_once_lose_nothing(path: Path) -> None:
    first, second = Config(), Config()
    timing.attach(first, path).times["gemm"] = 5
    timing.attach(second, path).times["conv"] = 7
    timing.save(first, path)
    timing.save(second, path)
    assert times_in(path) == {"gemm": 5, "conv": 7}


def test_many_at_once(path: Path) -> None:
    threads = [threading.Thread(target=run, args=(path, {str(n): n})) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert times_in(path) == {str(n): n for n in range(8)}


def test_a_mismatch_is_never_ignored(path: Path) -> None:
    run(path, {"gemm": 5}, device="h100")
    with pytest.raises(BuildError, match="does not accept the timing cache") as caught:
        run(path, {"gemm": 6})
    assert "delete that file" in caught.value.fix
    assert times_in(path) == {"gemm": 5}


def test_the_folder_is_made(tmp_path: Path) -> None:
    run(tmp_path / "deep" / "er" / "kernels.timing", {"gemm": 5})
    assert times_in(tmp_path / "deep" / "er" / "kernels.timing") == {"gemm": 5}


def test_a_damaged_file(path: Path) -> None:
    path.write_bytes(b"{")
    with pytest.raises(BuildError, match="does not accept the timing cache"):
        run(path, {})


def test_a_file_that_was_replaced_by_another_devices_meanwhile(path: Path) -> None:
    config = Config()
    timing.attach(config, path)
    run(path, {"gemm": 5}, device="h100")
    with pytest.raises(BuildError, match="can't add its timings"):
        timing.save(config, path)
    assert times_in(path) == {"gemm": 5}


def test_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert timing.default_folder() == tmp_path / "vggt-deploy" / "timing"


# A whole build, TensorRT on a GPU


class Enum:
    """Members that are their own names."""

    def __init__(self, *names: str) -> None:
        for name in names:
            setattr(self, name, name)


def make_module(events: list[str], *, loads: bool = True, refits: bool = True) -> Any:
    """What `build_plan` uses of the module `tensorrt`; `events` tells what was called, in order."""
    severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2)

    class Logger:
        Severity = severity

    class Builder:
        def __init__(self, log: Any) -> None:
            self.log = log
            log.log(severity.ERROR, "catchCudaError: noise")

        def create_network(self, flags: int) -> Any:
            assert flags == 2, "STRONGLY_TYPED is bit 1 here"
            tensor = SimpleNamespace(name="images", shape=(1, -1, 3, 14, 14))
            return SimpleNamespace(num_inputs=1, get_input=lambda index: tensor)

        def create_builder_config(self) -> Config:
            return Config()

        def create_optimization_profile(self) -> Any:
            return SimpleNamespace(set_shape=lambda *shapes: events.append(str(shapes)))

        def build_serialized_network(self, network: Any, config: Config) -> bytes:
            assert config.cache is not None
            config.cache.times["gemm"] = 5
            events.append(f"build {sorted(config.flags)}")
            self.log.log(4, "[MemUsageStats] Total Weights Memory: 1234 bytes")
            return b"ftrt plan"  # and no stream, as in 10.3

    class Engine:
        num_optimization_profiles = 2
        num_io_tensors = 1

        def get_tensor_name(self, index: int) -> str:
            return "images"

        def get_tensor_mode(self, name: str) -> str:
            return "INPUT"

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return (1, -1, 3, 14, 14)

        def create_execution_context(self, strategy: str) -> Any:
            assert strategy == "USER_MANAGED", "nothing is run, so nothing is reserved"
            return self

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            events.append(f"{name} {shape}")
            return True

        def create_engine_inspector(self) -> Any:
            events.append("inspect")
            return SimpleNamespace(get_engine_information=lambda form: '{"Layers": []}')

        def get_device_memory_size_for_profile_v2(self, index: int) -> int:
            return 100 + index

    class Runtime:
        engine_host_code_allowed = False

        def __init__(self, log: Any) -> None:
            self.log = log

        def deserialize_cuda_engine(self, plan: mmap.mmap) -> Engine | None:
            assert plan[:] == b"ftrt plan"
            events.append("load with host code" if self.engine_host_code_allowed else "load")
            if not loads:
                self.log.log(severity.ERROR, "out of memory")
            return Engine() if loads else None

    class ParserRefitter:
        num_errors = 0

        def __init__(self, refitter: Any, log: Any) -> None: ...

        def refit_from_file(self, path: str) -> bool:
            events.append(f"read {Path(path).name}")
            return True

    refitter = SimpleNamespace(
        get_missing_weights=list if refits else lambda: ["block.q"],
        refit_cuda_engine=lambda: events.append("refit") is None,
    )

    class Monitor:
        def __init__(self) -> None: ...

    return SimpleNamespace(
        ILogger=Logger,
        IProgressMonitor=Monitor,
        Builder=Builder,
        Runtime=Runtime,
        OnnxParser=lambda network, log: SimpleNamespace(parse_from_file=lambda path: True),
        Refitter=lambda engine, log: refitter,
        OnnxParserRefitter=ParserRefitter,
        NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=1),
        PreviewFeature=Enum("RUNTIME_ACTIVATION_RESIZE_10_10"),
        ProfilingVerbosity=Enum("DETAILED"),
        LayerInformationFormat=Enum("JSON"),
        ExecutionContextAllocationStrategy=Enum("USER_MANAGED"),
        TensorIOMode=Enum("INPUT", "OUTPUT"),
        BuilderFlag=Enum("TF32", "STRIP_PLAN", "REFIT_IDENTICAL", "VERSION_COMPATIBLE"),
    )


def settings(path: Path, **changes: Any) -> BuildSettings:
    return BuildSettings((FramesRange(1, 2, 5),), **{"timing_cache": path, **changes})


def test_tensorrt_is_asked_by_its_inspector(path: Path) -> None:
    events: list[str] = []
    library = Library(make_module(events), "tensorrt", "10.16.1.11")
    built = build_plan(library, path.with_name("model.onnx"), settings(path))
    shapes = "('images', (1, 1, 3, 14, 14), (1, 2, 3, 14, 14), (1, 5, 3, 14, 14))"
    # With the typical shapes: without them TensorRT 10 tells no types.
    opened = "images (1, 2, 3, 14, 14)"
    assert events == [shapes, "build ['TF32']", "load", opened, "inspect"]
    assert (built.layers, built.layers_source) == ('{"Layers": []}', "engine inspector")
    assert built.activation_bytes == (100, 101)
    assert built.weights_bytes == 1234
    assert times_in(path) == {"gemm": 5}


def test_stripped_means_that_the_weights_can_be_put_back(path: Path) -> None:
    events: list[str] = []
    library = Library(make_module(events), "tensorrt", "10.16.1.11")
    built = build_plan(library, path.with_name("model.onnx"), settings(path, strip=True))
    assert built.flags == ("TF32", "STRIP_PLAN", "REFIT_IDENTICAL")
    assert events[2:5] == ["load", "read model.onnx", "refit"]


def test_host_code_is_allowed_only_for_what_needs_it(path: Path) -> None:
    events: list[str] = []
    library = Library(make_module(events), "tensorrt", "10.16.1.11")
    asked = settings(path, version_compatible=True)
    assert build_plan(library, path.with_name("model.onnx"), asked).flags[1] == "VERSION_COMPATIBLE"
    assert events[2] == "load with host code"


def test_a_stripped_plan_that_takes_no_weights_is_refused(path: Path) -> None:
    library = Library(make_module([], refits=False), "tensorrt", "10.16.1.11")
    with pytest.raises(BuildError, match=r"1 weights .* not in model\.onnx: block\.q"):
        build_plan(library, path.with_name("model.onnx"), settings(path, strip=True))


def test_a_plan_that_does_not_load(path: Path) -> None:
    library = Library(make_module([], loads=False), "tensorrt", "10.16.1.11")
    with pytest.raises(BuildError, match="just built:\n    out of memory"):
        build_plan(library, path.with_name("model.onnx"), settings(path))
    assert not path.with_name("model.engine").exists()


def test_activation_memory_may_follow_the_number_of_frames(path: Path) -> None:
    module = make_module([])
    newer, older = Config(), Config()
    configure(Library(module, "tensorrt", "10.16.1.11"), newer, settings(path))
    assert newer.previews == {"RUNTIME_ACTIVATION_RESIZE_10_10": True}
    module.PreviewFeature = Enum("PROFILE_SHARING_0806")
    configure(Library(module, "tensorrt", "10.3.0"), older, settings(path))
    assert older.previews == {}
