"""The seam between what is asked (the sweep) and where it runs (an executor)."""

from __future__ import annotations

from typing import Any, Protocol

from vggt_deploy.compare.environment import Environment
from vggt_deploy.compare.jobs import Job, JobKind
from vggt_deploy.compare.measures import Failure
from vggt_deploy.compare.question import Settings
from vggt_deploy.compare.state import Paths


class Executor(Protocol):
    """Runs jobs, each in a process of its own.

    command         the worker, as it would be started on this machine
    environment     the machine that jobs are timed on
    threads         of a job, where nobody asks for a number
    width           how many variants are in hand at a time; above 1, `ask` is called from threads
    splits_scenes   further scenes are jobs of their own; else the process that is timed runs them
    """

    @property
    def command(self) -> tuple[str, ...]: ...

    @property
    def environment(self) -> Environment: ...

    @property
    def threads(self) -> int: ...

    @property
    def width(self) -> int: ...

    @property
    def splits_scenes(self) -> bool: ...

    def check(self, settings: Settings) -> None:
        """Refuse what can't be run here, before anything is begun.

        Raises:
            UsageError: more threads than the machines have, or a runtime they don't.
        """

    def ask(
        self,
        kind: JobKind,
        job: Job,
        paths: Paths,
        *,
        timeout_s: float,
        threads: int,
        timed: bool = False,
    ) -> dict[str, Any] | Failure:
        """Run a job to its end. Its answer, with all files that it names written on this machine,
        or how it failed. A `timed` job has its machine for itself.
        """

    def stop(self) -> None:
        """End what is running, so that every `ask` that waits returns or raises."""


def ask_within(
    executor: Executor,
    settings: Settings,
    kind: JobKind,
    job: Job,
    paths: Paths,
    *,
    timed: bool = False,
) -> dict[str, Any] | Failure:
    """`executor.ask` under the limits of the question."""
    return executor.ask(
        kind, job, paths, timeout_s=settings.timeout_s, threads=settings.threads, timed=timed
    )
