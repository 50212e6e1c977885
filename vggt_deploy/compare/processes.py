"""One job, one process: start it, wait, end it, and say in words how it ended.

A variant may run out of memory, crash the interpreter or hang; none of that may touch the others,
and its peak memory must be its own. So every measurement is a fresh interpreter in a session of its
own, which is killed as a group when time is up or the parent is interrupted. When the parent itself
is killed, the kernel ends the worker (`die_with_parent`): an orphan would go on using memory and
write into a folder that the next run owns. When memory runs out, the kernel is told to end the
worker and not the process that keeps the rows.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

TAIL_LINES = 20
TAIL_BYTES = 16_384
_PR_SET_PDEATHSIG = 1
_OOM_SCORE = Path("/proc/self/oom_score_adj")
_OOM_FIRST = 1000  # the highest: of all processes this one is ended first


@dataclass(frozen=True)
class Outcome:
    """How a process ended; `returncode` is negative for a signal, as `subprocess` gives it."""

    returncode: int
    timed_out: bool
    seconds: float
    tail: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Ended by itself with code 0."""
        return self.returncode == 0 and not self.timed_out

    def describe(self) -> str:
        """How it ended, in one sentence."""
        if self.timed_out:
            return f"stopped after {self.seconds:.0f} s: time limit"
        if self.returncode == -signal.SIGKILL:
            return (
                "killed by signal 9 (SIGKILL): most likely the system ran out of memory "
                "(see the kernel's log)"
            )
        if self.returncode < 0:
            return (
                f"crashed: killed by signal {-self.returncode} ({_signal_name(-self.returncode)})"
            )
        if self.returncode > 0:
            last = f": {self.tail[-1]}" if self.tail else ""
            return f"ended with code {self.returncode}{last}"
        return "ended with code 0"


def run_process(
    command: Sequence[str], *, log: Path | None, timeout_s: float, environment: Mapping[str, str]
) -> Outcome:
    """Run `command` to its end; its output goes to `log`, whose last lines come back.

    Without a log its stderr is ours, for what a person should see while it runs (a download).
    A KeyboardInterrupt, or any other exception here, ends the process group before it goes on up.
    """
    start = time.monotonic()
    timed_out = False
    with ExitStack() as stack:
        output = subprocess.DEVNULL if log is None else stack.enter_context(log.open("wb"))
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=None if log is None else subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **environment},
        )
        try:
            process.wait(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            timed_out = True
        finally:
            _end_group(process)
    return Outcome(
        process.returncode, timed_out, time.monotonic() - start, _tail(log) if log else ()
    )


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill whatever is left of the process and its children, and reap it."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # nothing left: the ordinary case
    except PermissionError:
        process.kill()  # macOS says this of a group that holds only zombies
    process.wait()


def _tail(log: Path) -> tuple[str, ...]:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL_BYTES))
        text = file.read().decode("utf-8", errors="replace")
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    return tuple(lines[-TAIL_LINES:])


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown signal"


def die_with_parent(parent: int) -> None:
    """Called first in a worker: ask the kernel (Linux) for SIGKILL when the parent ends, and to be
    the one that ends when memory runs out.

    `parent` is the process id that started us: if it is already gone, we end here.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        raise SystemExit("the process that started this worker is gone")
    _end_first_without_memory()


def _end_first_without_memory() -> None:
    """Have the kernel (Linux) choose this process when memory runs out.

    It chooses by size and would often be right; the sweep, which holds the arrays of all scenes,
    can be the larger one. Raising the own score needs no privilege.
    """
    if _OOM_SCORE.exists():
        _OOM_SCORE.write_text(str(_OOM_FIRST))
