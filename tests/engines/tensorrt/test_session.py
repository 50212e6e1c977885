"""Sessions of an engine on a fake GPU: order of calls, memory, profiles, failure, close."""

from __future__ import annotations

import threading
from contextlib import closing
from typing import Any

import numpy as np
import pytest

from vggt_deploy.engines import open_session
from vggt_deploy.engines.tensorrt.session import choose_profile
from vggt_deploy.errors import DeployError, UsageError
from vggt_deploy.records import FramesRange

HEIGHT, WIDTH = 42, 56
OUTPUTS = ("pose_enc", "depth", "depth_conf", "world_points", "world_points_conf")
Status = Any


def images(frames: int, seed: int = 0) -> Any:
    shape = (1, frames, 3, HEIGHT, WIDTH)
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def check(outputs: dict[str, Any], x: Any) -> None:
    """The numbers that the fake engine makes of these images."""
    np.testing.assert_allclose(outputs["depth"][..., 0], 2 - x.mean(axis=2), rtol=1e-6)
    np.testing.assert_array_equal(outputs["depth_conf"], 1 + x[:, :, 0])
    np.testing.assert_array_equal(outputs["world_points"], np.moveaxis(x, 2, -1))
    np.testing.assert_array_equal(outputs["world_points_conf"], 1 + x[:, :, 2])
    np.testing.assert_allclose(outputs["pose_enc"][0, :, :3], x.mean(axis=(3, 4))[0], rtol=1e-5)


def test_runs_and_returns_every_output(machine: Any, make_engine: Any) -> None:
    with closing(open_session(make_engine())) as session:
        for count in (2, 4, 1, 6, 8, 2):
            x = images(count, seed=count)
            outputs = session.run(x)
            assert set(outputs) == set(OUTPUTS)
            assert all(value.dtype == np.float32 for value in outputs.values())
            check(outputs, x)
    assert machine.cuda.leaks() == []
    assert machine.trt.living == []


def test_info_says_what_runs(machine: Any, make_engine: Any) -> None:
    folder = make_engine(outputs=("depth", "depth_conf"))
    session = open_session(folder, runtime="tensorrt", provider="cuda")
    info = session.info
    assert (info.runtime, info.runtime_version) == ("tensorrt", "10.16.1.11")
    assert (info.provider, info.threads, info.cuda_graph) == ("cuda", None, False)
    assert info.device == "Test GPU, compute capability 9.0"
    assert info.variant == "int8_pc_sym+static"
    assert (info.frames.min, info.frames.max) == (1, 8)
    assert info.profiles == (FramesRange(1, 2, 4), FramesRange(6, 8, 8))
    assert info.load_ms > 0
    # The engine makes more than the manifest names: it is computed, and not copied.
    assert set(session.run(images(2))) == {"depth", "depth_conf"}
    assert len(machine.cuda.pinned) == 3
    session.close()


def test_outputs_are_the_callers_own(machine: Any, make_engine: Any) -> None:
    with closing(open_session(make_engine())) as session:
        x = images(2)
        first = session.run(x)
        session.run(images(2, seed=1))
    check(first, x)


def test_the_profile_is_chosen_by_the_frame_count(machine: Any, make_engine: Any) -> None:
    with closing(open_session(make_engine())) as session:
        for count in (1, 3, 6, 8, 2):
            session.run(images(count))
    switches = [line for line in machine.trt.said if line.startswith("profile")]
    assert switches == ["profile 1", "profile 0"]


def test_a_count_between_the_profiles(machine: Any, make_engine: Any) -> None:
    with closing(open_session(make_engine())) as session:
        with pytest.raises(UsageError, match="5 images, but this artifact takes 1 to 4 or 6 to 8"):
            session.run(images(5))
        with pytest.raises(UsageError, match="takes 1 to 4 or 6 to 8") as caught:
            session.run(images(9))
        assert "--max-images 8" in caught.value.fix
        check(session.run(images(4)), images(4))


def test_of_overlapping_profiles_the_nearest_then_the_narrowest() -> None:
    profiles = (FramesRange(1, 4, 32), FramesRange(1, 1, 1), FramesRange(2, 4, 8))
    assert [choose_profile(n, profiles) for n in (1, 4, 9)] == [1, 2, 0]


def test_memory_is_kept_and_grows_with_the_frames(machine: Any, make_engine: Any) -> None:
    session = open_session(make_engine())
    session.run(images(4))
    calls = machine.cuda.calls
    before = (calls.count("cudaMalloc"), calls.count("cudaMallocHost"))
    session.run(images(4))
    session.run(images(2))
    assert (calls.count("cudaMalloc"), calls.count("cudaMallocHost")) == before
    small = session.parts.buffers.device_bytes  # type: ignore[attr-defined]
    session.run(images(8))
    assert session.parts.buffers.device_bytes == 2 * small  # type: ignore[attr-defined]
    session.close()
    assert machine.cuda.leaks() == []


def test_close_twice_and_run_after_it(machine: Any, make_engine: Any) -> None:
    session = open_session(make_engine())
    session.run(images(1))
    session.close()
    session.close()
    with pytest.raises(UsageError, match="closed"):
        session.run(images(1))
    assert machine.cuda.leaks() == []


@pytest.mark.parametrize(
    "wrong, words",
    [
        (images(2)[0], "images of shape"),
        (images(2)[..., :-14], "made for 42 x 56"),
        (images(2).astype(np.float64), "float64, expected float32"),
        (images(2) * 255, "expected 0 to 1"),
    ],
)
def test_wrong_images(machine: Any, make_engine: Any, wrong: Any, words: str) -> None:
    with closing(open_session(make_engine())) as session:
        machine.refuses(UsageError, words, lambda: session.run(wrong))
        # Not contiguous is not wrong.
        x = np.asfortranarray(images(2))
        check(session.run(x), x)
    assert machine.trt.said.count("execute") == 1


def test_threads_take_turns(machine: Any, make_engine: Any) -> None:
    with closing(open_session(make_engine())) as session:
        found: dict[int, Any] = {}

        def work(seed: int) -> None:
            for _ in range(5):
                found[seed] = session.run(images(1 + seed % 3, seed))

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 6
    for seed, outputs in found.items():
        check(outputs, images(1 + seed % 3, seed))


def test_a_cuda_graph_is_replayed_and_made_anew_for_another_shape(
    machine: Any, make_engine: Any
) -> None:
    with closing(open_session(make_engine(), cuda_graph=True)) as session:
        for seed, count in enumerate((2, 2, 2, 2, 3, 3, 2)):
            x = images(count, seed)
            check(session.run(x), x)
    calls = machine.cuda.calls
    # Runs 2 to 4 are the graph, and 6; the first of every shape is not.
    assert calls.count("cudaGraphLaunch") == 4
    assert calls.count("cudaStreamBeginCapture") == 2
    assert machine.trt.said.count("execute") == 5
    assert machine.cuda.leaks() == []


@pytest.mark.parametrize("graph", [False, True])
def test_tensorrt_rtx_makes_the_graph_itself(
    rtx_machine: Any, make_engine: Any, graph: bool
) -> None:
    """Ours would be of its provisional kernels; and the same shape gets the same kernels always."""
    trt = rtx_machine.trt
    folder = make_engine(runtime="tensorrt-rtx", version="1.7.1.116")
    with closing(open_session(folder, cuda_graph=graph)) as session:
        assert session.info.cuda_graph == graph
        for seed, count in enumerate((2, 2, 2, 3)):
            x = images(count, seed)
            check(session.run(x), x)
        assert session.parts.settings is trt.configs[0]  # type: ignore[attr-defined]
    (config,) = trt.configs
    strategy = trt.DynamicShapesKernelSpecializationStrategy
    assert config.dynamic_shapes_kernel_specialization_strategy is strategy.EAGER
    wanted = "WHOLE_GRAPH_CAPTURE" if graph else "DISABLED"
    assert config.cuda_graph_strategy.name == wanted
    assert "cudaStreamBeginCapture" not in rtx_machine.cuda.calls
    assert rtx_machine.cuda.leaks() == []


def test_without_asking_there_is_no_graph(machine: Any, make_engine: Any) -> None:
    with closing(open_session(make_engine())) as session:
        for _ in range(3):
            session.run(images(2))
    assert "cudaStreamBeginCapture" not in machine.cuda.calls


def test_capturing_fails(machine: Any, make_engine: Any) -> None:
    with closing(open_session(make_engine(), cuda_graph=True)) as session:
        session.run(images(2))
        machine.trt.faults.refuse = {"execute_async_v3"}
        with pytest.raises(DeployError, match="could not run"):
            session.run(images(2))
        assert machine.cuda.capturing is None
        machine.trt.faults.refuse = set()
        check(session.run(images(2)), images(2))
    assert machine.cuda.leaks() == []


def test_capturing_fails_and_cuda_says_only_that(
    machine: Any, make_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What made TensorRT stop is told, and not that there is no graph of it."""
    cuda = machine.cuda

    def invalidated(stream: int) -> Any:
        cuda.capturing = None
        return (cuda.cudaError_t.cudaErrorStreamCaptureInvalidated, None)

    with closing(open_session(make_engine(), cuda_graph=True)) as session:
        session.run(images(2))
        machine.trt.faults.refuse = {"execute_async_v3"}
        with monkeypatch.context() as patch:
            patch.setattr(cuda, "cudaStreamEndCapture", invalidated)
            with pytest.raises(DeployError, match="execute_async_v3 has its reasons"):
                session.run(images(2))
            machine.trt.faults.refuse = set()
            session.run(images(2))
            with pytest.raises(DeployError, match="cudaStreamEndCapture failed with"):
                session.run(images(2))
        check(session.run(images(2)), images(2))
    assert machine.cuda.leaks() == []


def test_shapes_can_not_be_told(
    machine: Any, make_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where names are missing TensorRT names them; where anything else is wrong it raises."""

    def fails() -> Any:
        machine.trt.log.log(machine.trt.ILogger.Severity.ERROR, "a product of 3 and 4 columns")
        raise RuntimeError("infer_shapes error code: -1")

    with closing(open_session(make_engine())) as session:
        with monkeypatch.context() as patch:
            patch.setattr(machine.trt.context, "infer_shapes", fails)
            with pytest.raises(DeployError, match=r"error code: -1.*a product of 3 and 4 columns"):
                session.run(images(2))
        check(session.run(images(2)), images(2))
    assert machine.cuda.leaks() == []


@pytest.mark.parametrize(
    "call",
    [
        "set_optimization_profile_async",
        "set_input_shape",
        "infer_shapes",
        "set_tensor_address",
        "execute_async_v3",
    ],
)
def test_tensorrt_refuses_and_the_session_goes_on(
    machine: Any, make_engine: Any, call: str
) -> None:
    """Its own words are in the error; what was on the stream does not run into the next call."""
    with closing(open_session(make_engine())) as session:
        check(session.run(images(2)), images(2))
        machine.trt.faults.refuse = {call}
        with pytest.raises(DeployError, match=f"{call} has its reasons"):
            session.run(images(8, seed=1))
        assert not any(machine.cuda.streams.values())
        machine.trt.faults.refuse = set()
        check(session.run(images(8)), images(8))
    assert machine.cuda.leaks() == []


@pytest.mark.parametrize("call", ["cudaMalloc", "cudaMallocHost"])
@pytest.mark.parametrize("at", range(4))
def test_memory_runs_out_in_the_middle(machine: Any, make_engine: Any, call: str, at: int) -> None:
    status = machine.cuda.cudaError_t.cudaErrorMemoryAllocation
    session = open_session(make_engine())
    session.run(images(2))
    machine.cuda.fails[call] = (status, machine.cuda.calls.count(call) + at)
    words = f"{call} failed with cudaErrorMemoryAllocation"
    said = machine.refuses(DeployError, words, lambda: session.run(images(4)))
    assert "fewer images" in said.fix
    assert machine.cuda.calls[-1] != call, "the error is still pending for the next call"
    machine.cuda.fails.clear()
    check(session.run(images(4)), images(4))
    session.close()
    assert machine.cuda.leaks() == []


def test_a_crash_of_the_gpu_can_still_be_closed(machine: Any, make_engine: Any) -> None:
    status = machine.cuda.cudaError_t.cudaErrorIllegalAddress
    session = open_session(make_engine())
    session.run(images(2))
    for call in ("cudaStreamSynchronize", "cudaFree", "cudaFreeHost", "cudaStreamDestroy"):
        machine.cuda.fails[call] = (status, 0)
    with pytest.raises(DeployError, match="cudaErrorIllegalAddress") as caught:
        session.run(images(2))
    assert "Xid" in caught.value.fix
    session.close()
    session.close()


def test_interrupted_while_it_runs(
    machine: Any, make_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(stream: int) -> Any:
        raise KeyboardInterrupt

    with closing(open_session(make_engine())) as session:
        session.run(images(2))
        with monkeypatch.context() as patch:
            patch.setattr(machine.trt.context, "execute_async_v3", interrupt)
            with pytest.raises(KeyboardInterrupt):
                session.run(images(2, seed=1))
        assert not any(machine.cuda.streams.values())
        check(session.run(images(2)), images(2))
    assert machine.cuda.leaks() == []


@pytest.mark.parametrize("broken", ["forgets to wait", "wrong address"])
def test_the_fake_gpu_notices_what_a_gpu_would_not(
    machine: Any, make_engine: Any, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """The twin of all of the above: with a wrong session the checks fail."""
    with closing(open_session(make_engine())) as session:
        cuda = session.parts.cuda  # type: ignore[attr-defined]
        with monkeypatch.context() as patch:
            if broken == "forgets to wait":
                patch.setattr(cuda, "synchronize", lambda stream: None)
                with pytest.raises(AssertionError):
                    check(session.run(images(2)), images(2))
            else:
                patch.setattr(machine.trt.context, "set_tensor_address", lambda name, at: True)
                with pytest.raises(KeyError):
                    session.run(images(2))
