"""One step, one process: what it answered, how long it took in all, and its own peak memory.

    python -m bench.steps JOB.json      {"step", "arguments", "answer", "parent"}

Seconds are from the start of the interpreter to its end, libraries included. Peak memory is VmHWM,
which a process reads about itself in its last moment: it starts at zero with the interpreter, so a
large parent is not counted. A step that fails by itself still tells its peak; one that is killed
can't, and has none.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vggt_deploy.compare.jobs import write_json
from vggt_deploy.compare.processes import run_process

ROOT = Path(__file__).resolve().parents[1]
# Threads of every library that a step can load; sessions and torch are told once more by name.
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Settings:
    """What is the same for every step."""

    folder: Path
    threads: int
    timeout_s: float
    module: str = "bench.steps"


@dataclass(frozen=True)
class StepResult:
    """How a step went. `answer` is what it returned, empty after an error."""

    step: str
    seconds: float
    peak_rss_bytes: int | None
    error: str | None
    answer: dict[str, Any] = field(default_factory=dict)
    tail: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return self.error is None


def run_step(step: str, name: str, arguments: Mapping[str, Any], settings: Settings) -> StepResult:
    """Run a step of `settings.module` in a fresh interpreter; `name` is for its files."""
    job, answer, log = (settings.folder / f"{name}{end}" for end in (".job", ".answer", ".log"))
    answer.unlink(missing_ok=True)
    write_json(
        job,
        {"step": step, "arguments": dict(arguments), "answer": str(answer), "parent": os.getpid()},
    )
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {variable: str(settings.threads) for variable in _THREAD_VARIABLES}
    outcome = run_process(
        [sys.executable, "-m", settings.module, str(job)],
        log=log,
        timeout_s=settings.timeout_s,
        environment={**environment, "PYTHONPATH": os.pathsep.join(paths)},
    )
    said: dict[str, Any] = json.loads(answer.read_text()) if answer.exists() else {}
    return StepResult(
        step=step,
        seconds=outcome.seconds,
        peak_rss_bytes=said.get("peak_rss_bytes"),
        error=None if outcome.ok and "ok" in said else said.get("error") or outcome.describe(),
        answer=said.get("ok", {}),
        tail=() if outcome.ok else outcome.tail,
    )
