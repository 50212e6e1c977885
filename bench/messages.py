"""What a bench says while it works, on stderr with the time of day."""

from __future__ import annotations

import sys
import time

from bench.process import StepResult
from bench.report import GIB


def say(text: str) -> None:
    """One line."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def say_step(what: str, result: StepResult) -> None:
    """How a step went: seconds, peak memory, and its error if it failed."""
    peak = result.peak_rss_bytes
    memory = "" if peak is None else f", peak {peak / GIB:.2f} GiB"
    failed = "" if result.ok else f" FAILED: {result.error}"
    say(f"{what}: {result.seconds:.1f} s{memory}{failed}")
