"""Builds with the real TensorRT-RTX, which needs no GPU."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vggt_deploy.build import builder, plan_file
from vggt_deploy.build.builder import BuiltPlan, build_plan
from vggt_deploy.build.configure import configure
from vggt_deploy.build.monitor import BuildProgress
from vggt_deploy.build.settings import BuildSettings
from vggt_deploy.engines.kernels import parse_layer_record
from vggt_deploy.engines.tensorrt.library import Library
from vggt_deploy.errors import BuildError
from vggt_deploy.records import FileRecord, FramesRange

ONE = (FramesRange(1, 2, 5),)
ADA = ((8, 9),)
SETTINGS = BuildSettings(ONE, targets=ADA)


@pytest.fixture
def build(rtx: Library, graph: Any) -> Callable[..., BuiltPlan]:
    """A model and settings -> what TensorRT-RTX makes of them."""

    def run(
        model: Any, settings: BuildSettings = SETTINGS, plan: Path | None = None, **options: Any
    ) -> BuiltPlan:
        return build_plan(rtx, graph(model), settings, plan, **options)

    return run


def test_a_plan_and_what_is_known_of_it(build: Any, two_linears: Any, tmp_path: Path) -> None:
    built = build(two_linears(), SETTINGS, tmp_path / "model.engine")
    content = (tmp_path / "model.engine").read_bytes()
    assert content[:4] == b"vtrt"
    assert built.file == FileRecord(len(content), hashlib.sha256(content).hexdigest())
    assert built.layers_source == "builder layer record"
    named = {node for layer in parse_layer_record(built.layers) for node in layer.nodes}
    assert {"block.fc1/MatMul", "block.fc2/MatMul"} <= named
    # 14 x 64 and 64 x 32 bytes, 96 scales; the builder pads.
    assert 2944 <= built.weights_bytes < 30_000
    assert built.flags == ("TF32",)
    assert built.activation_bytes is None
    assert built.seconds > 0
    assert built.peak_rss_bytes > 2**20


def test_every_profile_brings_its_kernels(build: Any, two_linears: Any) -> None:
    three = (FramesRange(1, 1, 1), FramesRange(2, 3, 4), FramesRange(5, 5, 5))
    one, more = build(two_linears()), build(two_linears(), BuildSettings(three, targets=ADA))
    assert more.layers.count("block.fc1/MatMul") == 3 * one.layers.count("block.fc1/MatMul")
    assert more.file.bytes > one.file.bytes


def test_more_targets_cost_next_to_nothing(build: Any, two_linears: Any) -> None:
    four = ((8, 0), (8, 6), (8, 9), (12, 0))
    one, more = build(two_linears()), build(two_linears(), BuildSettings(ONE, targets=four))
    assert one.file.bytes <= more.file.bytes < one.file.bytes + 20_000


def test_a_fixed_number_of_frames_needs_no_profile(build: Any, two_linears: Any) -> None:
    assert build(two_linears(frames=3), BuildSettings((), targets=ADA)).file.bytes


def test_tf32_is_what_was_asked(rtx: Library) -> None:
    trt = rtx.trt
    config = trt.Builder(rtx.error_log()).create_builder_config()
    for wanted in (True, False):
        flags = configure(rtx, config, BuildSettings(ONE, targets=ADA, tf32=wanted))
        assert config.get_flag(trt.BuilderFlag.TF32) is wanted
        assert flags == (("TF32",) if wanted else ())


def test_what_is_set_is_what_was_asked(rtx: Library) -> None:
    trt = rtx.trt
    config = trt.Builder(rtx.error_log()).create_builder_config()
    settings = BuildSettings(
        ONE, targets=((8, 6), (12, 0)), optimization_level=1, workspace_bytes=2**28
    )
    configure(rtx, config, settings)
    assert config.builder_optimization_level == 1
    assert config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == 2**28
    assert config.profiling_verbosity == trt.ProfilingVerbosity.DETAILED
    targets = [config.get_compute_capability(index) for index in range(2)]
    assert targets == [trt.ComputeCapability.SM86, trt.ComputeCapability.SM120]


def test_no_profile_for_open_frames(build: Any, two_linears: Any) -> None:
    with pytest.raises(BuildError, match="open number of frames"):
        build(two_linears(), BuildSettings((), targets=ADA))


def test_only_the_frames_may_be_open(build: Any, two_linears: Any) -> None:
    model = two_linears()
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_param = "height"
    with pytest.raises(BuildError, match=r"images has the shape \[1, -1, 3, -1, 14\]"):
        build(model)


def test_the_parsers_words_are_in_the_error(build: Any, network: Any) -> None:
    model = network.model(network.node("Det", ["images"], "tokens"))
    with pytest.raises(BuildError, match="Det tokens") as caught:
        build(model)
    assert "TensorRT-RTX 1.7" in caught.value.message
    assert "cudaError 35" not in caught.value.message


def test_the_builders_words_are_in_the_error(
    rtx: Library, graph: Any, two_linears: Any, tmp_path: Path
) -> None:
    """What `settings` refuses before is refused by TensorRT itself, at the end of the build."""
    path = graph(two_linears())
    with pytest.raises(BuildError, match=r"libnvinfer_lean\.so\.1"):
        build_plan(rtx, path, BuildSettings(ONE, targets=ADA, version_compatible=True))
    with pytest.raises(BuildError, match=f"can't build {path.name}"):
        build_plan(rtx, path, BuildSettings(ONE, targets=ADA, strip=True))


def test_a_file_that_is_no_graph(rtx: Library, tmp_path: Path) -> None:
    path = tmp_path / "graph.onnx"
    path.write_bytes(b"no graph at all")
    with pytest.raises(BuildError, match=r"refuses graph\.onnx"):
        build_plan(rtx, path, SETTINGS)
    assert sorted(tmp_path.iterdir()) == [path]


def test_a_full_disk(build: Any, two_linears: Any, tmp_path: Path) -> None:
    full = tmp_path / "full.engine"
    full.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        build(two_linears(), SETTINGS, full)
    assert not full.is_symlink()


def test_as_a_whole_and_in_parts_it_is_the_same_plan(
    build: Any, two_linears: Any, rtx: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT 10.3 has no stream; the real builder without it stands for that."""
    build(two_linears(), SETTINGS, tmp_path / "parts")
    monkeypatch.delattr(rtx.trt.Builder, "build_serialized_network_to_stream")
    monkeypatch.setattr(plan_file, "_PART_BYTES", 1000)
    whole = build(two_linears(), SETTINGS, tmp_path / "whole")
    content = (tmp_path / "whole").read_bytes()
    assert whole.file == FileRecord(len(content), hashlib.sha256(content).hexdigest())
    assert abs(len(content) - (tmp_path / "parts").stat().st_size) < 1000


def test_progress_comes_from_the_callers_thread_and_reaches_the_end(
    build: Any, two_linears: Any
) -> None:
    seen: list[tuple[str, int, int]] = []

    def progress(stage: str, done: int, total: int) -> None:
        assert threading.current_thread() is threading.main_thread()
        seen.append((stage, done, total))

    build(two_linears(), progress=progress)
    assert seen[-1] == ("build", 1000, 1000)
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)


class Stop(Exception):
    """Of a progress function that wants no more."""


@pytest.mark.parametrize("kind", [Stop, KeyboardInterrupt])
def test_an_exception_in_progress_stops_tensorrt(build: Any, network: Any, kind: Any) -> None:
    def progress(stage: str, done: int, total: int) -> None:
        if done:
            raise kind

    model = network.model(network.softmax_chain(60))
    with pytest.raises(kind):
        build(model, progress=progress)
    assert "tensorrt-build" not in [thread.name for thread in threading.enumerate()]


def test_tensorrt_stops_when_the_monitor_says_so(
    build: Any, two_linears: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancelled = BuildProgress()
    cancelled.cancel()
    monkeypatch.setattr(builder, "BuildProgress", lambda: cancelled)
    with pytest.raises(BuildError, match="can't build"):
        build(two_linears())
    assert cancelled.permille() < 1000


def test_an_exception_in_the_builders_thread_arrives(
    rtx: Library, graph: Any, two_linears: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise TypeError("incompatible function arguments")

    monkeypatch.setattr(rtx.trt.Builder, "build_serialized_network_to_stream", broken)
    with pytest.raises(TypeError, match="incompatible"):
        build_plan(rtx, graph(two_linears()), SETTINGS)
