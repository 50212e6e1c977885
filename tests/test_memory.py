"""Peak memory is the process's own, not what it was forked from."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from vggt_deploy.memory import peak_rss_bytes, rss_bytes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def test_peak_is_not_inherited_from_a_large_parent() -> None:
    child = (
        "import resource; from vggt_deploy.memory import peak_rss_bytes; "
        "print(*peak_rss_bytes(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
    )
    parent = f"""
        import subprocess, sys
        ballast = b"x" * 300_000_000
        subprocess.run([sys.executable, "-c", {child!r}], check=True, preexec_fn=lambda: None)
    """  # preexec_fn: really fork, so that the child inherits the parent's high-water mark
    command = [sys.executable, "-c", textwrap.dedent(parent)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    peak, source, inherited = int(said[0]), said[1], int(said[2])
    assert source == "VmHWM"
    assert peak < 100_000_000
    assert inherited > 250_000_000  # the twin: ru_maxrss would have reported the parent


def test_peak_sees_what_was_freed() -> None:
    ballast = bytearray(b"x") * 200_000_000
    held = rss_bytes()
    del ballast
    assert held is not None
    assert held > 200_000_000
    # The kernel batches its counters: the two can differ by some hundred kB.
    assert peak_rss_bytes()[0] > held - 4_000_000
