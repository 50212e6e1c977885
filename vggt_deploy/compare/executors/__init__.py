"""Who runs the jobs of a comparison: this machine, one after the other, or a Ray cluster.

    with opened("ray", command=WORKER, address="auto") as executor:
        Sweep(..., executor).run()

An `Executor` runs one job in a process of its own and gives back its answer, wherever that was. The
sweep knows nothing else of it but how many variants it can have in hand at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, get_args

from vggt_deploy.compare.executors.base import Executor
from vggt_deploy.compare.executors.local import LocalExecutor
from vggt_deploy.errors import UsageError

__all__ = ["EXECUTORS", "Executor", "ExecutorName", "LocalExecutor", "opened"]

ExecutorName = Literal["local", "ray"]
EXECUTORS: tuple[ExecutorName, ...] = get_args(ExecutorName)


@contextmanager
def opened(
    name: str, *, command: Sequence[str], address: str | None = None, cpu: str | None = None
) -> Iterator[Executor]:
    """The executor of that name; closed at the end, and what it still runs ends with it.

    Args:
        name: "local" or "ray".
        command: the worker, started as `COMMAND JOB FILE`.
        address: of the Ray cluster, as `ray.init` takes it; None is "auto".
        cpu: the CPU that is timed on, of a comparison that goes on; None leaves the choice to the
            executor. Only a cluster of several kinds of machines has one.

    Raises:
        UsageError: no such executor, or an address without a cluster.
        CompareError: no Ray, no cluster, or none whose nodes can run the jobs.
    """
    if name == "local":
        if address is not None:
            raise UsageError(
                f"a Ray address ({address}) was given, and the executor is local",
                "add --executor ray, or leave the address out",
            )
        yield LocalExecutor.here(command)
    elif name == "ray":
        from vggt_deploy.compare.executors.joining import connected

        with connected(command, address=address, cpu=cpu) as executor:
            yield executor
    else:
        raise UsageError(f"unknown executor {name!r}", f"use one of: {', '.join(EXECUTORS)}")
