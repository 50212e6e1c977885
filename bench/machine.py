"""What else the machine does while we measure.

The load average tells it before the run; during it, it would count ourselves. So a timed region
compares the CPU time that the whole machine spent with what this process spent:

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
_MEMINFO = Path("/proc/meminfo")
# cpu  user nice system idle iowait irq softirq steal guest guest_nice; guests are in user already.
_BUSY = (0, 1, 2, 5, 6, 7)


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


def available_memory_bytes() -> int | None:
    """What the kernel says can be had without swapping; None where /proc does not tell."""
    if not _MEMINFO.exists():
        return None
    for line in _MEMINFO.read_text().splitlines():
        key, _, value = line.partition(":")
        if key == "MemAvailable":
            return int(value.split()[0]) * 1024
    return None


def read_through(folder: Path) -> None:
    """Read every file once, so that what is timed next finds them in the page cache."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 24):
                pass


def _busy_seconds() -> float | None:
    if not _STAT.exists():
        return None
    fields = _STAT.read_text().split("\n", 1)[0].split()[1:]
    return sum(int(fields[i]) for i in _BUSY) / os.sysconf("SC_CLK_TCK")
