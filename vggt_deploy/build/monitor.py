"""How far a build is, and how it is stopped.

TensorRT reports phases (a tree, with a number of steps each) from threads of its own, and asks
after every step whether to go on. Phase names differ between versions, so only the tree is used:

    share(phase) = (steps done + the largest share of its open children) / steps

The caller's thread reads the share; nothing of the caller's is called from TensorRT's threads,
where an exception would end the process.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from types import ModuleType
from typing import Any

PERMILLE = 1000


@dataclass
class _Phase:
    steps: int
    parent: str | None
    done: int = 0


class BuildProgress:
    """The phases that are open; `cancelled`: the build should not go on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._phases: dict[str, _Phase] = {}
        self._root: str | None = None
        self._furthest = 0
        self.cancelled = False

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase begins. One may begin again under the same name after it ended."""
        with self._lock:
            if self._root is None:
                self._root = name
            self._phases[name] = _Phase(max(steps, 1), parent)

    def step(self, name: str, number: int) -> bool:
        """Step `number` (from 0) of a phase is done; False asks TensorRT to stop."""
        with self._lock:
            phase = self._phases.get(name)
            if phase is not None:
                phase.done = min(max(phase.done, number + 1), phase.steps)
            self._advance()
        return not self.cancelled

    def finish(self, name: str) -> None:
        """A phase ended, perhaps before its last step, or because the build failed."""
        with self._lock:
            self._phases.pop(name, None)

    def cancel(self) -> None:
        """Let the next step be the last. Takes no lock: a signal handler may call it anywhere."""
        self.cancelled = True

    def permille(self) -> int:
        """How much is done, 0 to 1000; never less than before."""
        with self._lock:
            return self._furthest

    def _advance(self) -> None:
        # A phase that ended leaves its parent before the parent counts it as a step: the share
        # falls back for a moment, the furthest does not.
        if self._root in self._phases:
            self._furthest = max(self._furthest, int(self._share(self._root) * PERMILLE))

    def _share(self, name: str) -> float:
        phase = self._phases[name]
        open_now = [n for n, other in self._phases.items() if other.parent == name and n != name]
        inside = max(map(self._share, open_now), default=0.0)
        return min(1.0, (phase.done + inside) / phase.steps)


def make_monitor(trt: ModuleType, state: BuildProgress) -> Any:
    """An IProgressMonitor that writes into `state`. The class is made here because its base exists
    only once a TensorRT is imported. The configuration does not keep it alive: its user must.
    """

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            state.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return state.step(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            state.finish(phase_name)

    return Monitor()
