"""Latency: which events are subtracted, what is counted, and the memory beside it.

The fake GPU's clock moves by 1 ms for a copy to the device, 5 for the network, 2 for a copy back.
"""

from __future__ import annotations

import json
import statistics
from contextlib import closing
from typing import Any

import numpy as np
import pytest

from vggt_deploy.engines import open_session
from vggt_deploy.engines.tensorrt.timing import measure, summarize
from vggt_deploy.errors import DeployError, UsageError


def images(frames: int) -> Any:
    return np.random.default_rng(0).random((1, frames, 3, 42, 56), dtype=np.float32)


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_stages_are_told_apart(machine: Any, make_engine: Any, cuda_graph: bool) -> None:
    with closing(open_session(make_engine(), cuda_graph=cuda_graph)) as session:
        latency = measure(session, images(2), warmup=3, repeats=4)  # type: ignore[arg-type]
        held = session.parts.buffers  # type: ignore[attr-defined]
        memory = latency.memory
        assert (memory.buffer_bytes, memory.pinned_bytes) == (held.device_bytes, held.pinned_bytes)
    assert latency.to_device.samples_ms == (1.0,) * 4
    assert latency.network.samples_ms == (5.0,) * 4
    assert latency.to_host.samples_ms == (10.0,) * 4  # five outputs
    assert (latency.frames, latency.warmup, latency.end_to_end.n) == (2, 3, 4)
    assert 0 < latency.end_to_end.min_ms <= latency.end_to_end.p50_ms
    assert memory.engine_bytes == machine.trt.weights_bytes
    assert memory.used_bytes >= memory.engine_bytes + memory.buffer_bytes
    assert memory.total_bytes == 1 << 34
    assert machine.trt.said.count("execute") == (2 if cuda_graph else 7)
    assert json.loads(json.dumps(latency.to_json()))["network"]["p50_ms"] == 5.0
    assert machine.cuda.leaks() == []


def test_the_warm_up_is_not_counted(machine: Any, make_engine: Any) -> None:
    """A fake whose first calls are slow: without warm-up they are seen."""
    with closing(open_session(make_engine())) as session:
        context, cuda = machine.trt.context, machine.cuda
        compute, slow = context._compute, [100.0, 50.0]

        def first_slow(views: Any) -> None:
            cuda.clock_ms += slow.pop() if slow else 0.0
            compute(views)

        context._compute = first_slow
        warm = measure(session, images(1), warmup=2, repeats=3)  # type: ignore[arg-type]
        assert warm.network.max_ms == 5.0
        slow.append(100.0)
        cold = measure(session, images(1), warmup=0, repeats=3)  # type: ignore[arg-type]
        assert cold.network.max_ms == 105.0
        assert cold.network.p50_ms == 5.0


def test_events_are_given_back_when_a_call_fails(machine: Any, make_engine: Any) -> None:
    with closing(open_session(make_engine())) as session:
        measure(session, images(1), warmup=0, repeats=1)  # type: ignore[arg-type]
        machine.trt.faults.refuse = {"execute_async_v3"}
        machine.refuses(
            DeployError,
            "could not run",
            lambda: measure(session, images(1), warmup=0, repeats=1),  # type: ignore[arg-type]
        )
        assert machine.cuda.events == {}
    assert machine.cuda.leaks() == []


def test_after_a_crash_the_crash_is_told(machine: Any, make_engine: Any) -> None:
    """Then no call works, and destroying the events is not what failed."""
    status = machine.cuda.cudaError_t.cudaErrorIllegalAddress
    session = open_session(make_engine())
    measure(session, images(1), warmup=0, repeats=1)  # type: ignore[arg-type]
    for call in ("cudaStreamSynchronize", "cudaEventDestroy", "cudaFree", "cudaFreeHost"):
        machine.cuda.fails[call] = (status, 0)
    machine.refuses(
        DeployError,
        "cudaStreamSynchronize failed",
        lambda: measure(session, images(1), warmup=0, repeats=1),  # type: ignore[arg-type]
    )
    session.close()


@pytest.mark.parametrize("warmup, repeats", [(-1, 1), (0, 0)])
def test_nothing_to_time(machine: Any, make_engine: Any, warmup: int, repeats: int) -> None:
    with closing(open_session(make_engine())) as session, pytest.raises(UsageError):
        measure(session, images(1), warmup=warmup, repeats=repeats)  # type: ignore[arg-type]


def test_percentiles() -> None:
    spread = summarize([float(x) for x in range(101)][::-1])
    assert (spread.p50_ms, spread.p90_ms, spread.p99_ms) == (50.0, 90.0, 99.0)
    assert (spread.min_ms, spread.max_ms, spread.n) == (0.0, 100.0, 101)
    assert spread.std_ms == pytest.approx(statistics.stdev(range(101)))
    assert summarize([3.0]).std_ms is None
    with pytest.raises(UsageError):
        summarize([])
