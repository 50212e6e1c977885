"""Progress of long work: the stages call one function, the command line draws it.

    progress("weights", 400_000_000, 1_200_000_000)     # stage, done, total; total 0: not known

A library function takes `progress: Progress | None`; a notebook may pass its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from rich.console import Console

Progress: TypeAlias = Callable[[str, int, int], None]


def silent(stage: str, done: int, total: int) -> None:
    """No progress wanted."""
    del stage, done, total


class StageClock:
    """`seconds` by stage: each `lap` is the time since the one before."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    def lap(self, stage: str) -> None:
        """The time since the last lap went into `stage`."""
        now_s = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now_s - self._since
        self._since = now_s


@contextmanager
def shown() -> Iterator[Progress]:
    """Draw on stderr: a bar per stage on a terminal, a line per stage in a file or pipe."""
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_terminal:
        with _bars(console) as progress:
            yield progress
    else:
        yield _lines(console)


@contextmanager
def _bars(console: Console) -> Iterator[Progress]:
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description:<12}"), BarColumn(), TimeElapsedColumn())
    with Bars(*columns, console=console, transient=False) as bars:
        tasks = {}

        def finish_untold() -> None:
            """A stage that only said that it began ends with the next one, clock and all."""
            for task in bars.tasks:
                if task.total is None:
                    bars.update(task.id, completed=1, total=1)

        def progress(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                finish_untold()
                tasks[stage] = bars.add_task(stage, total=total or None)
            bars.update(tasks[stage], completed=done, total=total or None)

        yield progress
        finish_untold()


def _lines(console: Console) -> Progress:
    begun: set[str] = set()

    def progress(stage: str, done: int, total: int) -> None:
        if stage not in begun:
            begun.add(stage)
            console.print(f"{stage} ...", highlight=False)

    return progress
