"""What the machine has left, and files brought into its cache before anything is timed."""

from __future__ import annotations

import os
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")


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


def load_average() -> float | None:
    """Processes that wanted a CPU over the last minute; above the core count, times are noisy."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None
