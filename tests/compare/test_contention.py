"""Work of other processes during a timed region is seen; our own is not taken for it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from vggt_deploy.compare import contention
from vggt_deploy.compare.contention import watch_others

if not Path("/proc/stat").exists():
    pytest.skip("no /proc/stat on this system", allow_module_level=True)

SPIN_S = 1.0


def test_another_process_is_seen() -> None:
    script = f"import time\nend = time.time() + {3 * SPIN_S}\nwhile time.time() < end: pass"
    process = subprocess.Popen([sys.executable, "-c", script])
    try:
        time.sleep(0.3)  # its start is not what we look at
        with watch_others() as beside:
            time.sleep(SPIN_S)
    finally:
        process.kill()
        process.wait()
    assert beside.cpus is not None
    assert beside.cpus > 0.3


def test_our_own_work_is_subtracted(monkeypatch: pytest.MonkeyPatch) -> None:
    """3 s busy on all CPUs, 1 s of them ours, in 2 s: one CPU for others."""
    busy, own, wall = iter((10.0, 13.0)), iter((5.0, 6.0)), iter((0.0, 2.0))
    monkeypatch.setattr(contention, "_busy_seconds", lambda: next(busy))
    monkeypatch.setattr(contention.time, "process_time", lambda: next(own))
    monkeypatch.setattr(contention.time, "perf_counter", lambda: next(wall))
    with watch_others() as others:
        pass
    assert others.cpus == 1.0
