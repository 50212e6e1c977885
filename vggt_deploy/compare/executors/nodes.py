"""The nodes of a cluster: of which kind they are, and which one is free to be timed on.

Times of two kinds of machine can't stand in one table. So all timed jobs of a comparison run on
nodes of one kind: the CPU that a former run was timed on, else the kind of which there are most
nodes, then the one with most CPUs, then the first by name. The machine of the sweep, which judges
one variant while the next is timed, is taken only where there is no other.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from threading import Condition

from vggt_deploy.compare.environment import Environment
from vggt_deploy.errors import CompareError

GRACE_S = 60.0  # for a node to come back, before what needs it has failed
# A node that has died is listed as alive until it has missed some beats of its heart.
SUSPECT_S = 30.0
SAME_VERSIONS = "install the same versions on every node (constraints.txt pins them)"
_POLL_S = 1.0


@dataclass(frozen=True)
class Node:
    """One machine. `cpus`: what Ray may give away of it; `ours`: the sweep itself runs on it."""

    name: str
    address: str
    cpus: float
    environment: Environment
    ours: bool = False


def choose_timed(nodes: Sequence[Node], cpu: str | None) -> tuple[Node, ...]:
    """The nodes that are timed: all of one kind, by the rule above.

    Raises:
        CompareError: no node with that CPU.
    """
    fitting = [node for node in nodes if cpu is None or node.environment.cpu == cpu]
    if not fitting:
        raise CompareError(
            f"this comparison was timed on {cpu}, and no node of the cluster is that: it has "
            + ", ".join(sorted({node.environment.cpu for node in nodes})),
            "add such a node, or begin again in another folder with -o DIR",
        )
    fitting = [node for node in fitting if not node.ours] or fitting
    count = Counter(_kind(node) for node in fitting)
    chosen = min(
        (_kind(node) for node in fitting), key=lambda kind: (-count[kind], -kind[1], *kind)
    )
    return tuple(node for node in fitting if _kind(node) == chosen)


def computing_alike(nodes: Sequence[Node], timed: Node) -> frozenset[str]:
    """The names of the nodes that compute what `timed` does, however fast.

    Integer kernels differ by the instructions that a CPU has, and a result may with them.
    """
    alike = (timed.environment.cpu, timed.environment.cpu_flags)
    return frozenset(
        node.name for node in nodes if (node.environment.cpu, node.environment.cpu_flags) == alike
    )


def _kind(node: Node) -> tuple[str, float, tuple[str, ...]]:
    return node.environment.machine, node.cpus, node.environment.cpu_flags


def check_same_versions(nodes: Sequence[Node], ours: Environment) -> None:
    """Every node must run what the sweep runs: a number is measured with one set of versions.

    Raises:
        CompareError: a package or Python differs, with the node and both versions.
    """
    for node in nodes:
        other = other_versions(versions_of(ours), versions_of(node.environment))
        if other is not None:
            raise CompareError(f"the node at {node.address} has {other}", SAME_VERSIONS)


def versions_of(environment: Environment) -> dict[str, str]:
    """Of Python, and of all that can move a number."""
    return {"python": environment.python, **environment.versions}


def other_versions(here: dict[str, str], there: dict[str, str]) -> str | None:
    """In words, what differs on a node from this machine; None where nothing does."""
    differing = sorted(name for name in here | there if here.get(name) != there.get(name))
    if not differing:
        return None
    name = differing[0]
    more = f"; {len(differing) - 1} more differ" if len(differing) > 1 else ""
    missing = there.get(name, "missing")
    return f"{name} {missing}, this machine {here.get(name, 'none')}{more}"


class NoNodeError(Exception):
    """No node that a job could run on has been there for `GRACE_S` seconds."""


class TimedNodes:
    """Hands out the nodes that are timed, each to one job at a time; used from threads."""

    def __init__(self, nodes: Sequence[Node], alive: Callable[[], set[str]]) -> None:
        self._nodes = tuple(nodes)
        self._alive = alive
        self._free = Condition()
        self._taken: set[str] = set()
        self._lost_at: dict[str, float] = {}

    def claim(
        self,
        stopped: Callable[[], bool],
        grace_s: float = GRACE_S,
        *,
        refused: Container[str] = (),
        barred: Container[str] = (),
    ) -> Node | None:
        """A node for one job, as soon as one is free; None when `stopped` says so.

        Args:
            stopped: asked now and then.
            grace_s: for a node to come back.
            refused: names of nodes that could not run this job; they get it no more.
            barred: of nodes that could not run another one; taken where there is no other.

        Raises:
            NoNodeError: all of them are gone, and stay away, or could not run it.
        """
        nodes = [node for node in self._nodes if node.name not in refused]
        if not nodes:
            raise NoNodeError
        gone_since: float | None = None
        with self._free:
            while not stopped():
                alive = self._alive()
                there = [node for node in nodes if node.name in alive]
                able = [node for node in there if node.name not in barred] or there
                trusted = [node for node in able if not self._suspect(node)] or able
                free = [node for node in trusted if node.name not in self._taken]
                if free:
                    self._taken.add(free[0].name)
                    return free[0]
                gone_since = None if there else gone_since or time.monotonic()
                if gone_since is not None and time.monotonic() - gone_since >= grace_s:
                    raise NoNodeError
                self._free.wait(_POLL_S)
        return None

    def release(self, node: Node, *, lost: bool = False) -> None:
        """Give a node back; `lost`: the job on it was."""
        with self._free:
            self._taken.discard(node.name)
            if lost:
                self._lost_at[node.name] = time.monotonic()
            self._free.notify()

    def _suspect(self, node: Node) -> bool:
        lost_at = self._lost_at.get(node.name)
        return lost_at is not None and time.monotonic() - lost_at < SUSPECT_S
