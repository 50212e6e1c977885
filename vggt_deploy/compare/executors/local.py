"""This machine, one job after the other: nothing else of ours runs beside what is timed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vggt_deploy.compare.asking import ask
from vggt_deploy.compare.environment import Environment, describe_environment
from vggt_deploy.compare.jobs import Job, JobKind
from vggt_deploy.compare.measures import Failure
from vggt_deploy.compare.question import Settings
from vggt_deploy.compare.state import Paths


@dataclass(frozen=True)
class LocalExecutor:
    """An `Executor`: a process of its own for each job, here."""

    command: tuple[str, ...]
    environment: Environment
    width: int = 1
    splits_scenes: bool = False

    @classmethod
    def here(cls, command: Sequence[str]) -> LocalExecutor:
        """The executor of this machine."""
        return cls(tuple(command), describe_environment())

    @property
    def threads(self) -> int:
        """All CPUs that this process may use."""
        return self.environment.usable_cpus

    def check(self, settings: Settings) -> None:
        """Everything may be asked for: more threads than CPUs are slow, and were asked for."""

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
        """As `Executor.ask`; every job has the machine for itself, timed or not."""
        return ask(self.command, kind, job, paths, timeout_s=timeout_s, threads=threads)

    def stop(self) -> None:
        """Nothing runs between two calls of `ask`, which ends its process itself."""
