"""How long an engine takes: on the GPU alone by CUDA events, and end to end by the clock.

    latency = measure(session, images, warmup=20, repeats=100)
    latency.network.p50_ms          # between two events on the stream, around the network alone
    latency.end_to_end.p50_ms       # images in host memory to outputs in host memory, one call

Each call is waited for before the next one starts: this is latency, not throughput. Events are put
on the stream around the copies and the network in the same calls that the clock times.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggt_deploy.engines.tensorrt.cuda import Cuda
from vggt_deploy.engines.tensorrt.session import TensorRTSession
from vggt_deploy.errors import DeployError, UsageError

Mark = Callable[[], None]
# `TensorRTSession.run` marks: copy in, network, copy out, end.
_MARKS = 4


@dataclass(frozen=True)
class Spread:
    """Timed calls in milliseconds. Percentiles interpolate linearly between the samples.

    `std_ms` is the sample standard deviation (divided by n - 1), None for n = 1.
    """

    n: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    min_ms: float
    max_ms: float
    mean_ms: float
    std_ms: float | None
    samples_ms: tuple[float, ...]


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes on the device, of this session where nothing else is said.

    engine_bytes: what loading took (weights, kernels, context), by the free memory before and
        after; what other processes took meanwhile is in it
    buffer_bytes: activations, input and outputs at the measured frame count
    pinned_bytes: host memory
    used_bytes: of the device, all processes, after the last call
    total_bytes: of the device
    """

    engine_bytes: int
    buffer_bytes: int
    pinned_bytes: int
    used_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class Latency:
    """`network`, `to_device`, `to_host`: GPU time by events. `end_to_end`: wall clock of `run`.

    frames, warmup: what was run. The warm-up calls are in none of the numbers.
    """

    frames: int
    warmup: int
    network: Spread
    to_device: Spread
    to_host: Spread
    end_to_end: Spread
    memory: DeviceMemory

    def to_json(self) -> dict[str, Any]:
        """A dict for JSON."""
        return asdict(self)


def measure(
    session: TensorRTSession, images: NDArray[np.float32], *, warmup: int, repeats: int
) -> Latency:
    """Run `warmup` + `repeats` times on the same images [1, S, 3, H, W].

    Raises:
        UsageError: nothing to time.
    """
    parts = session.parts

    def call(mark: Mark) -> None:
        session.run(images, mark=mark)

    times = time_calls(parts.cuda, parts.stream, call, warmup=warmup, repeats=repeats)
    return Latency(images.shape[1], warmup, **times, memory=_memory(session))


def time_calls(
    cuda: Cuda, stream: int, call: Callable[[Mark], object], *, warmup: int, repeats: int
) -> dict[str, Spread]:
    """Time anything that runs on a stream; the fields of `Latency` that are times.

    call: one call from arrays to arrays, complete when it returns. It is given a function that it
        calls four times while it puts its work on the stream: before the copy to the device, before
        the network, after it, and after the copy to the host.

    Raises:
        UsageError: nothing to time.
    """
    if warmup < 0 or repeats < 1:
        raise UsageError(
            f"warmup {warmup}, repeats {repeats}: there is nothing to time",
            "use warmup >= 0 and repeats >= 1",
        )
    stages: list[tuple[float, ...]] = []
    walls: list[float] = []
    with _events(cuda) as events:
        for number in range(warmup + repeats):
            mark = _recorder(cuda, stream, events)
            start = time.perf_counter_ns()
            call(mark)
            wall = (time.perf_counter_ns() - start) / 1e6
            if number >= warmup:
                walls.append(wall)
                pairs = itertools.pairwise(events)
                stages.append(tuple(cuda.elapsed_ms(*pair) for pair in pairs))
    to_device, network, to_host = zip(*stages, strict=True)
    return {
        "network": summarize(network),
        "to_device": summarize(to_device),
        "to_host": summarize(to_host),
        "end_to_end": summarize(walls),
    }


def _recorder(cuda: Cuda, stream: int, events: Sequence[int]) -> Mark:
    """Each call puts the next event on the stream."""
    waiting = iter(events)
    return lambda: cuda.record(next(waiting), stream)


@contextlib.contextmanager
def _events(cuda: Cuda) -> Iterator[tuple[int, ...]]:
    with contextlib.ExitStack() as undo:
        events = []
        for _ in range(_MARKS):
            events.append(cuda.create_event())
            undo.callback(_destroy, cuda, events[-1])
        yield tuple(events)


def _destroy(cuda: Cuda, event: int) -> None:
    # After a crash of the GPU no call works, and the crash has its own error.
    with contextlib.suppress(DeployError):
        cuda.destroy_event(event)


def _memory(session: TensorRTSession) -> DeviceMemory:
    parts = session.parts
    total = parts.cuda.device.total_bytes
    return DeviceMemory(
        engine_bytes=parts.engine_bytes,
        buffer_bytes=parts.buffers.device_bytes,
        pinned_bytes=parts.buffers.pinned_bytes,
        used_bytes=total - parts.cuda.free_bytes(),
        total_bytes=total,
    )


def summarize(samples_ms: Sequence[float]) -> Spread:
    """Percentiles and moments of at least one sample."""
    if not samples_ms:
        raise UsageError("no latency sample was taken", "ask for at least one repeat")
    data = np.asarray(samples_ms, dtype=np.float64)
    p50, p90, p99 = np.percentile(data, [50.0, 90.0, 99.0])
    return Spread(
        n=len(data),
        p50_ms=float(p50),
        p90_ms=float(p90),
        p99_ms=float(p99),
        min_ms=float(data.min()),
        max_ms=float(data.max()),
        mean_ms=float(data.mean()),
        std_ms=float(data.std(ddof=1)) if len(data) > 1 else None,
        samples_ms=tuple(float(x) for x in data),
    )
