"""How long one call takes: a few calls to warm up, then n timed calls, every sample kept.

Samples are wall-clock milliseconds of one whole call (arrays in, arrays out), taken with
`time.perf_counter_ns`. The median is the number to read: on a shared machine the mean is dragged up
by whatever else ran. Spread is given as IQR (75th minus 25th percentile) and as standard deviation.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np

from vggt_deploy.errors import UsageError

T = TypeVar("T")  # the result of the timed call


@dataclass(frozen=True)
class Latency:
    """Timed calls of one variant, in milliseconds.

    Percentiles interpolate linearly between samples (NumPy's default), so with n = 5 the p90 lies
    between the two slowest samples. `std_ms` is the sample standard deviation (divided by n - 1),
    None for n = 1.
    """

    samples_ms: tuple[float, ...]
    warmup_ms: tuple[float, ...]
    n: int
    median_ms: float
    p90_ms: float
    min_ms: float
    mean_ms: float
    std_ms: float | None
    iqr_ms: float

    def to_json(self) -> dict[str, Any]:
        """A dict for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Latency:
        """The inverse of `dataclasses.asdict`."""
        lists = {key: tuple(data[key]) for key in ("samples_ms", "warmup_ms")}
        return cls(**{**data, **lists})


def summarize(samples_ms: Sequence[float], warmup_ms: Sequence[float] = ()) -> Latency:
    """Statistics of the timed samples; the warm-up calls are kept but never counted."""
    if not samples_ms:
        raise UsageError("No latency sample was taken.", "ask for at least one repeat")
    data = np.asarray(samples_ms, dtype=np.float64)
    low, median, high, p90 = np.percentile(data, [25.0, 50.0, 75.0, 90.0])
    return Latency(
        samples_ms=tuple(float(x) for x in data),
        warmup_ms=tuple(float(x) for x in warmup_ms),
        n=len(data),
        median_ms=float(median),
        p90_ms=float(p90),
        min_ms=float(data.min()),
        mean_ms=float(data.mean()),
        std_ms=float(data.std(ddof=1)) if len(data) > 1 else None,
        iqr_ms=float(high - low),
    )


def measure(call: Callable[[], T], *, warmup: int, repeats: int) -> tuple[Latency, T]:
    """Call `warmup` + `repeats` times; the latency and what the last call returned.

    The result of a call is dropped before the next one starts: two sets of outputs alive at once
    would show up in the peak memory of the process.
    """
    if warmup < 0 or repeats < 1:
        raise UsageError(
            f"warmup {warmup}, repeats {repeats}: there is nothing to time.",
            "use warmup >= 0 and repeats >= 1",
        )
    gc.collect()
    samples: list[float] = []
    result: T | None = None
    for _ in range(warmup + repeats):
        result = None
        start = time.perf_counter_ns()
        result = call()
        samples.append((time.perf_counter_ns() - start) / 1e6)
    assert result is not None
    return summarize(samples[warmup:], samples[:warmup]), result
