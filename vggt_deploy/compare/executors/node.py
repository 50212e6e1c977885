"""What a node of a cluster does: one job in a process of its own, in a scratch folder.

The files of the job are written there, the worker runs under its time limit as it would beside the
sweep, and what it wrote goes back. The folder is removed; what a killed node left of one is removed
by the next job on that machine.
"""

from __future__ import annotations

import errno
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
from typing import Any, cast

from vggt_deploy.compare.asking import thread_environment
from vggt_deploy.compare.environment import Environment, describe_environment
from vggt_deploy.compare.executors.nodes import SAME_VERSIONS, other_versions, versions_of
from vggt_deploy.compare.executors.travel import Bytes, arrive, collect
from vggt_deploy.compare.executors.words import brief
from vggt_deploy.compare.jobs import JobKind, write_json
from vggt_deploy.compare.processes import Outcome, run_process
from vggt_deploy.errors import DeployError

Fetch = Callable[[Any], Bytes]

LOG_BYTES = 2**20  # of a longer log the end comes back
_PREFIX = "vggt-deploy-job-"
_STALE_AFTER_S = 60.0  # a folder is locked at once after it is made
_FULL_BYTES = 2**16  # of free space: a file system hands out its last blocks badly
NODE_SPACE = "free some space in its temporary folder (TMPDIR of `ray start`), then --resume"


@dataclass(frozen=True)
class Parcel:
    """A job on its way. `command`: the worker; None stands for the interpreter of the node.

    job, moved: as in `Itinerary`.
    files: name below the scratch folder -> the chunks of the file, as the store names them.
    bytes: of all files.
    outputs: names below the scratch folder of what comes back.
    versions: what a node must have, as `versions_of` says.
    token: under which Ray is told that the job has begun.
    """

    command: tuple[str | None, ...]
    kind: JobKind
    job: dict[str, Any]
    moved: tuple[str, ...]
    files: dict[str, tuple[Any, ...]]
    bytes: int
    outputs: tuple[str, ...]
    timeout_s: float
    threads: int
    versions: dict[str, str]
    token: str


@dataclass(frozen=True)
class Returned:
    """How the process ended, and what it wrote; `answer` is None where it left none."""

    outcome: Outcome
    answer: bytes | None
    log: bytes
    files: dict[str, Bytes]


@dataclass(frozen=True)
class Refused:
    """A node that can't run the job, through no fault of the job: which, why, and what helps."""

    node: str
    address: str
    why: str
    fix: str


class UnfitError(DeployError):
    """This node can't run the job, whatever the job is."""


def on_node(parcel: Parcel) -> Returned | Refused:
    """The task that Ray runs: chunks come from its object store."""
    import ray
    from ray.experimental import internal_kv

    errors, util = ray.exceptions, cast("Any", ray.util)
    internal_kv._internal_kv_put(parcel.token, b"begun")
    try:
        return run_parcel(parcel, ray.get)
    except UnfitError as error:
        why, fix = error.message, error.fix
    except OSError as error:
        why, fix = f"{type(error).__name__}: {error}", NODE_SPACE
    except (errors.OutOfDiskError, errors.ObjectStoreFullError) as error:
        why, fix = brief(error), NODE_SPACE
    finally:
        internal_kv._internal_kv_del(parcel.token)
    name = ray.get_runtime_context().get_node_id()
    return Refused(name, util.get_node_ip_address(), why, fix)


def describe_node() -> Environment:
    """The task that tells what a node is."""
    return describe_environment()


def run_parcel(parcel: Parcel, fetch: Fetch) -> Returned:
    """Run the job here; an error is one of this machine, never of the job.

    Raises:
        UnfitError: other versions than the sweep has, or too little space, before the job or after
            it has failed for want of some.
        OSError: what else the machine could not do.
    """
    _check_versions(parcel.versions)
    with _scratch() as scratch:
        _check_space(scratch, parcel.bytes)
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
        path = Path(job["answer"])
        answer = path.read_bytes() if path.is_file() else None
        words = log.read_bytes()[-LOG_BYTES:]
        if not outcome.ok or not answer:
            _check_not_full(scratch, words + (answer or b""))
        return Returned(outcome, answer, words, collect(scratch, parcel.outputs))


def _check_versions(expected: dict[str, str]) -> None:
    other = other_versions(expected, versions_of(describe_environment()))
    if other is not None:
        raise UnfitError(f"it has {other}", SAME_VERSIONS)


def _check_space(scratch: Path, needed: int) -> None:
    """Before anything is written: what the job reads must fit."""
    free = shutil.disk_usage(scratch).free
    if free < needed:
        raise UnfitError(
            f"{scratch.parent} has {free / 1e6:.4g} MB free, and what the job reads takes "
            f"{needed / 1e6:.4g} MB",
            NODE_SPACE,
        )


def _check_not_full(scratch: Path, words: bytes) -> None:
    """After a job that failed: it may have done so only because the disk is full."""
    free = shutil.disk_usage(scratch).free
    if free < _FULL_BYTES or os.strerror(errno.ENOSPC).encode() in words:
        raise UnfitError(f"its disk was full ({scratch.parent})", NODE_SPACE)


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
