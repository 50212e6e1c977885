"""Work of other processes during a timed region is seen; our own is not taken for it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from vggt_deploy.compare.contention import watch_others

if not Path("/proc/stat").exists():
    pytest.skip("no /proc/stat on this system", allow_module_level=True)

SPIN_S = 1.0


def spin() -> None:
    until = time.perf_counter() + SPIN_S
    while time.perf_counter() < until:
        pass


def test_another_process_is_seen_and_our_own_work_is_not() -> None:
    with watch_others() as alone:
        spin()
    script = f"import time\nend = time.time() + {3 * SPIN_S}\nwhile time.time() < end: pass"
    process = subprocess.Popen([sys.executable, "-c", script])
    try:
        time.sleep(0.3)  # its start is not what we look at
        with watch_others() as beside:
            time.sleep(SPIN_S)
    finally:
        process.kill()
        process.wait()
    assert alone.cpus is not None
    assert beside.cpus is not None
    # Other tests may run beside this one; the spinning process must show on top of nothing at all.
    assert beside.cpus > 0.3
