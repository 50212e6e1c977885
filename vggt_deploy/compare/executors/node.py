"""What a node of a cluster does: one job in a process of its own, in a scratch folder.

The files of the job are written there, the worker runs under its time limit as it would beside the
sweep, and what it wrote goes back. The folder is removed; what a killed node left of one is removed
by the next job on that machine.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vggt_deploy.compare.asking import thread_environment
from vggt_deploy.compare.environment import Environment, describe_environment
from vggt_deploy.compare.executors.travel import Bytes, arrive, collect
from vggt_deploy.compare.jobs import JobKind, write_json
from vggt_deploy.compare.processes import Outcome, run_process

Fetch = Callable[[Any], Bytes]

LOG_BYTES = 2**20  # of a longer log the end comes back
_PREFIX = "vggt-deploy-job-"
_STALE_AFTER_S = 60.0  # a folder is locked at once after it is made


@dataclass(frozen=True)
class Parcel:
    """A job on its way. `command`: the worker; None stands for the interpreter of the node.

    job, moved: as in `Itinerary`.
    files: name below the scratch folder -> the chunks of the file, as the store names them.
    outputs: names below the scratch folder of what comes back.
    """

    command: tuple[str | None, ...]
    kind: JobKind
    job: dict[str, Any]
    moved: tuple[str, ...]
    files: dict[str, tuple[Any, ...]]
    outputs: tuple[str, ...]
    timeout_s: float
    threads: int


@dataclass(frozen=True)
class Returned:
    """How the process ended, and what it wrote; `answer` is None where it left none."""

    outcome: Outcome
    answer: bytes | None
    log: bytes
    files: dict[str, Bytes]


def on_node(parcel: Parcel) -> Returned:
    """The task that Ray runs: chunks come from its object store."""
    import ray

    return run_parcel(parcel, ray.get)


def describe_node() -> Environment:
    """The task that tells what a node is."""
    return describe_environment()


def run_parcel(parcel: Parcel, fetch: Fetch) -> Returned:
    """Run the job here; an error is one of this machine (no space), never of the job."""
    with _scratch() as scratch:
        for name, chunks in parcel.files.items():
            path = scratch / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                for chunk in chunks:
                    file.write(fetch(chunk).data)
        job = arrive(parcel.job, parcel.moved, scratch) | {"parent": os.getpid()}
        write_json(scratch / "job.json", job)
        command = [sys.executable if word is None else word for word in parcel.command]
        log = scratch / "log"
        outcome = run_process(
            [*command, parcel.kind, str(scratch / "job.json")],
            log=log,
            timeout_s=parcel.timeout_s,
            environment=thread_environment(parcel.threads),
        )
        answer = Path(job["answer"])
        return Returned(
            outcome,
            answer.read_bytes() if answer.is_file() else None,
            log.read_bytes()[-LOG_BYTES:],
            collect(scratch, parcel.outputs),
        )


@contextmanager
def _scratch() -> Iterator[Path]:
    """A folder of this job alone, locked while it is in use."""
    parent = Path(tempfile.gettempdir())
    _remove_stale(parent)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    try:
        with (folder / "lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder
    finally:
        shutil.rmtree(folder)


def _remove_stale(parent: Path) -> None:
    """Remove the folders of jobs whose process is gone: nobody holds their lock."""
    for folder in parent.glob(f"{_PREFIX}*"):
        try:
            if time.time() - folder.stat().st_mtime < _STALE_AFTER_S:
                continue
            with (folder / "lock").open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            pass  # it ended while we looked, or was killed before it took the lock
        except (BlockingIOError, PermissionError):
            continue  # in use, or another user's
        shutil.rmtree(folder, ignore_errors=True)
