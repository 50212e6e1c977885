"""How much memory this process has, and the most it ever had.

VmHWM of /proc/self/status starts at zero when the interpreter is started (exec), so it is this
process alone. `ru_maxrss` is inherited from the process that forked this one: a worker started by a
parent of 2 GiB can report 2 GiB without using them. It is used only where /proc does not exist, and
the report names the source.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


def peak_rss_bytes() -> tuple[int, str]:
    """The most resident memory so far, and where the number is from."""
    if _STATUS.exists():
        return _status_bytes("VmHWM"), "VmHWM"
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "ru_maxrss"


def rss_bytes() -> int | None:
    """Resident memory now; None where the system has no /proc."""
    return _status_bytes("VmRSS") if _STATUS.exists() else None


def _status_bytes(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        key, _, value = line.partition(":")
        if key == field:
            return int(value.split()[0]) * 1024  # "  123 kB"
    raise RuntimeError(f"/proc/self/status has no {field}")
