"""What every subject of `bench.gpu` is measured with.

The same images, the same code: `timing.time_calls`, with CUDA events on the stream that the subject
works on, and the clock around a whole call. A whole call is the same for all: arrays in host
memory, through pinned buffers to the device, the network, through pinned buffers back to arrays.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from bench.worker import Answer, Step
from vggt_deploy.engines.tensorrt.cuda import Cuda
from vggt_deploy.engines.tensorrt.timing import Mark, time_calls
from vggt_deploy.errors import RuntimeUnavailableError

Arrays = dict[str, NDArray[np.float32]]


def unavailable(step: Step) -> Step:
    """A runtime or device that is not there is an answer, not a failure."""

    @functools.wraps(step)
    def asked(**arguments: Any) -> Answer:
        try:
            return step(**arguments)
        except RuntimeUnavailableError as error:
            return {"unavailable": error.message}

    return asked


def load_batch(images: str, frames: int) -> NDArray[np.float32]:
    """The first `frames` images of the file, [1, frames, 3, H, W]."""
    return np.ascontiguousarray(np.load(images)[:, :frames])


def time_subject(
    cuda: Cuda, stream: int, call: Callable[[Mark], None], warmup: int, repeats: int
) -> Answer:
    """One call alone (it compiles and allocates), the warm-up, the timed calls."""
    started = time.perf_counter()
    call(lambda: None)
    first_s = time.perf_counter() - started
    times = time_calls(cuda, stream, call, warmup=warmup, repeats=repeats)
    return {"first_call_s": first_s, **{name: asdict(spread) for name, spread in times.items()}}


def answer(
    times: Answer, held: int, found: Arrays, arrays: str, load_s: float, really: Mapping[str, Any]
) -> Answer:
    """What a step tells; the outputs of the last call are saved in the file `arrays`.

    held: device memory that is in use because of the subject, after its last call
    """
    np.savez(arrays, **cast(Any, found))
    return {"load_s": load_s, **times, "device_bytes": held, "really": dict(really)}
