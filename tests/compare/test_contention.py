"""Work of other processes during a timed region is seen; our own is not taken for it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

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


def test_our_own_work_is_not_taken_for_it() -> None:
    with watch_others() as others:
        until = time.process_time() + SPIN_S
        while time.process_time() < until:
            pass
    # Another test may keep one CPU busy beside us; ours on top would make it all of them.
    assert others.cpus is not None
    assert others.cpus < (os.cpu_count() or 1) - 0.3
