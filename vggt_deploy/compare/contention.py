"""What else the machine did while we measured.

The load average would count ourselves. So a timed region compares the CPU time that the whole
machine spent with what this process spent:

    others = (busy time of all CPUs - CPU time of this process) / wall time      [CPUs]
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_STAT = Path("/proc/stat")
# cpu  user nice system idle iowait irq softirq steal guest guest_nice; guests are in user already.
_BUSY = (0, 1, 2, 5, 6, 7)
# Above this share of the CPUs that a measurement may use, its times are called noisy.
NOISY_SHARE = 0.1


@dataclass
class Others:
    """CPUs that other processes kept busy; None where /proc does not tell."""

    cpus: float | None = None


@contextmanager
def watch_others() -> Iterator[Others]:
    """Yield an `Others` that is filled when the block ends."""
    result = Others()
    wall, own, busy = time.perf_counter(), time.process_time(), _busy_seconds()
    yield result
    after = _busy_seconds()
    if busy is not None and after is not None:
        spent = after - busy - (time.process_time() - own)
        # The kernel counts in ticks of 10 ms: a short region can come out slightly negative.
        result.cpus = max(0.0, spent / (time.perf_counter() - wall))


def _busy_seconds() -> float | None:
    if not _STAT.exists():
        return None
    fields = _STAT.read_text().split("\n", 1)[0].split()[1:]
    return sum(int(fields[i]) for i in _BUSY) / os.sysconf("SC_CLK_TCK")
