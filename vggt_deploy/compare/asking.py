"""Asking a worker: one job in a process of its own, its answer or how it failed."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from vggt_deploy.compare.jobs import IdentifyJob, Job, JobKind, write_job
from vggt_deploy.compare.measures import Failure, Stage
from vggt_deploy.compare.processes import Outcome, run_process
from vggt_deploy.compare.question import Identity, Settings
from vggt_deploy.compare.state import Paths
from vggt_deploy.errors import CompareError

_NO_SPACE = os.strerror(errno.ENOSPC)


def ask(
    command: Sequence[str],
    kind: JobKind,
    job: Job,
    paths: Paths,
    *,
    timeout_s: float,
    threads: int,
) -> dict[str, Any] | Failure:
    """Run one job in a process of its own on this machine; its answer, or how it failed."""
    paths.answer.unlink(missing_ok=True)
    write_job(paths.job, job)
    outcome = run_process(
        [*command, kind, str(paths.job)],
        log=paths.log,
        timeout_s=timeout_s,
        environment=thread_environment(threads),
    )
    return read_answer(kind, outcome, paths.answer)


def thread_environment(threads: int) -> dict[str, str]:
    """Variables that OpenMP reads when it is loaded, before any `set_num_threads`."""
    return {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}


def stage_of(kind: JobKind) -> Stage:
    """The stage that a row names when a job of that kind fails."""
    match kind:
        case "identify" | "compute":
            return "measure"
        case _:
            return kind


def read_answer(kind: JobKind, outcome: Outcome, path: Path) -> dict[str, Any] | Failure:
    """What a process that has ended left at `path`; how it failed, where that is no result."""
    stage = stage_of(kind)
    try:
        answer = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        message = outcome.describe() + (", but left no answer" if outcome.ok else "")
        full = any(_NO_SPACE in line for line in outcome.tail)
        fix = "free some space on the disk, then --resume" if full else None
        return Failure(stage, message, fix, outcome.tail)
    except ValueError as error:
        message = f"{outcome.describe()}, and its answer is not JSON: {error}"
        return Failure(stage, message, tail=outcome.tail)
    if isinstance(answer, dict) and isinstance(answer.get("error"), dict):
        said = answer["error"]
        unavailable = said.get("unavailable") is True
        return Failure(stage, str(said.get("message")), said.get("fix"), outcome.tail, unavailable)
    if not outcome.ok:
        return Failure(stage, outcome.describe(), tail=outcome.tail)
    if not isinstance(answer, dict) or not isinstance(answer.get("ok"), dict):
        return Failure(stage, "its answer has neither a result nor an error", tail=outcome.tail)
    result: dict[str, Any] = answer["ok"]
    return result


def identify_model(settings: Settings, command: Sequence[str], console: Console) -> Identity:
    """Ask a worker which weights these are. An error here ends the comparison: no row could run."""
    console.print(f"looking at {settings.model.spec}", highlight=False, markup=False)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        # No log: the licence of the weights and the progress of their download are for the user.
        paths = Paths(root / "job.json", root / "answer.json", None)
        job = IdentifyJob(
            os.getpid(), str(paths.answer), settings.model, gpu=settings.device is not None
        )
        # No time limit of its own: this is where a checkpoint is downloaded.
        limit = max(settings.timeout_s, 24 * 3600.0)
        found = ask(command, "identify", job, paths, timeout_s=limit, threads=settings.threads)
    if isinstance(found, Failure):
        fix = found.fix or "see its output above, and check the model spec"
        raise CompareError(found.message, fix)
    try:
        return Identity(**found)
    except TypeError as error:
        raise CompareError(
            f"the worker's answer does not fit: {error}", "use one version"
        ) from error
