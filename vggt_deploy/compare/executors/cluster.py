"""The nodes of a Ray cluster: as many variants and scenes at a time as there are machines.

    timed        the first scene of each variant: on a node of one kind that it has alone
    not timed    calibrate, prepare, export, further scenes: anywhere, several on a node

No file system is shared. What a job reads goes into Ray's object store, each content once, and what
it writes comes back as the result of the task, so the store must hold the largest artifact. A job
whose node died is begun again; one whose process fails has failed, as on one machine.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Event
from typing import Any

from vggt_deploy.compare.asking import read_answer, stage_of
from vggt_deploy.compare.environment import Environment, describe_environment
from vggt_deploy.compare.executors.node import Parcel, Returned, describe_node, on_node
from vggt_deploy.compare.executors.nodes import (
    GRACE_S,
    Node,
    NoNodeError,
    TimedNodes,
    check_same_versions,
    choose_timed,
)
from vggt_deploy.compare.executors.travel import Itinerary, Post, plan_journey, unpack
from vggt_deploy.compare.jobs import Job, JobKind, write_job
from vggt_deploy.compare.measures import Failure
from vggt_deploy.compare.question import Settings
from vggt_deploy.compare.state import Paths
from vggt_deploy.errors import CompareError, DeployError, UsageError

MAX_RETRIES = 3  # of a job whose node died
_PROBE_S = 120.0  # a node starts an interpreter and imports this package
_KNOCK_S = 10.0
_POLL_S = 1.0
_HOST_PORT = re.compile(r"(?:^|//)(?P<host>[^/:]+):(?P<port>[0-9]+)$")


class RayExecutor:
    """An `Executor` over a cluster that is connected."""

    splits_scenes = True

    def __init__(self, ray: Any, command: Sequence[str], nodes: Sequence[Node], cpu: str | None):
        self.command = tuple(command)
        timed = choose_timed(nodes, cpu)
        self.environment = timed[0].environment
        # One variant is timed on each node while the next one is exported.
        self.width = max(2, 2 * len(nodes))
        self._ray = ray
        self._cpus = timed[0].cpus
        self._timed = TimedNodes(timed, lambda: {name for name, _ in self._alive()})
        self._post = Post(ray.put)
        # Begun again here and not by Ray, which begins a job that ate the memory of its node again
        # without end, and does not say how often it began one.
        self._task = ray.remote(max_retries=0)(on_node)
        self._stopped = Event()

    def check(self, settings: Settings) -> None:
        """As `Executor.check`."""
        engines = [variant.label for variant in settings.variants if variant.engine]
        if engines:
            raise UsageError(
                f"{engines[0]} is an engine, and the ray executor runs torch and onnxruntime",
                "compare engines with --executor local on the machine that has the GPU",
            )
        if settings.threads > self._cpus:
            raise UsageError(
                f"{settings.threads} threads are asked for, and a node that is timed gives "
                f"{self._cpus:g} CPUs",
                f"use --threads {int(self._cpus)} or less",
            )

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
        """As `Executor.ask`; how often a measurement was begun again is added to its notes."""
        paths.answer.unlink(missing_ok=True)
        write_job(paths.job, job)
        journey = plan_journey(kind, job)
        parcel = self._parcel(kind, journey, timeout_s, threads)
        lost: list[str] = []
        returned = None
        while returned is None:
            returned = self._attempt(kind, parcel, threads, lost, timed=timed)
        if isinstance(returned, Failure):
            return returned
        answer = self._received(kind, journey, returned, paths)
        if lost and isinstance(answer, dict) and kind in ("measure", "compute"):
            answer["notes"] = [*answer.get("notes", []), f"its node was lost{_times(lost)}"]
        return answer

    def _attempt(
        self, kind: JobKind, parcel: Parcel, threads: int, lost: list[str], *, timed: bool
    ) -> Returned | Failure | None:
        """What came back, or why nothing will; None, and one more of `lost`, to begin again."""
        errors = self._ray.exceptions
        stage = stage_of(kind)
        try:
            return self._run(parcel, threads, timed=timed)
        except NoNodeError:
            message = f"no node for it has been there for {GRACE_S:.0f} s{_times(lost)}"
            return Failure(stage, message, "add a node, then --resume")
        except errors.RayTaskError as error:
            return Failure(stage, f"its node could not run it: {_first_line(error.cause)}")
        except errors.RayError as error:
            if self._stopped.is_set():
                raise
            ate = isinstance(error, errors.OutOfMemoryError)
            if ate and timed:  # it had the node alone
                return Failure(stage, f"its node ran out of memory: {_first_line(error)}")
            if len(lost) == MAX_RETRIES:
                why = "its node ran out of memory" if ate else "its node was lost"
                message = f"{why}{_times(lost)}: {_first_line(error)}"
                return Failure(stage, message, "look after the nodes, then --resume")
            lost.append(_first_line(error))
            return None

    def stop(self) -> None:
        """As `Executor.stop`."""
        self._stopped.set()

    def _parcel(self, kind: JobKind, journey: Itinerary, timeout_s: float, threads: int) -> Parcel:
        command = tuple(None if word == sys.executable else word for word in self.command)
        files = {name: self._post.send(path) for name, path in journey.inputs.items()}
        return Parcel(
            command,
            kind,
            journey.job,
            journey.moved,
            files,
            tuple(journey.outputs),
            timeout_s,
            threads,
        )

    def _run(self, parcel: Parcel, threads: int, *, timed: bool) -> Returned:
        """Run it on one node; raises what Ray does, and NoNodeError."""
        if not timed:
            return self._wait(self._task.options(num_cpus=threads).remote(parcel), threads)
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        node = self._timed.claim(self._stopped.is_set)
        if node is None:
            raise self._stop_error()
        lost = True
        try:
            there = NodeAffinitySchedulingStrategy(node.name, soft=False)
            task = self._task.options(num_cpus=node.cpus, scheduling_strategy=there)
            returned = self._wait(task.remote(parcel), threads)
            lost = False
        finally:
            self._timed.release(node, lost=lost)
        return returned

    def _wait(self, task: Any, threads: int) -> Returned:
        """The result, looking now and then whether it is still wanted, and can still come."""
        gone_since: float | None = None
        while not self._ray.wait([task], timeout=_POLL_S)[0]:
            if self._stopped.is_set():
                self._ray.cancel(task, force=True)
                raise self._stop_error()
            if any(cpus >= threads for _, cpus in self._alive()):
                gone_since = None
            else:
                gone_since = gone_since or time.monotonic()
                if time.monotonic() - gone_since > GRACE_S:
                    self._ray.cancel(task, force=True)
                    raise NoNodeError
        returned: Returned = self._ray.get(task)
        return returned

    def _stop_error(self) -> DeployError:
        return CompareError("the comparison was stopped", "go on with --resume")

    def _alive(self) -> list[tuple[str, float]]:
        return [(node["NodeID"], _cpus(node)) for node in self._ray.nodes() if node["Alive"]]

    def _received(
        self, kind: JobKind, journey: Itinerary, returned: Returned, paths: Paths
    ) -> dict[str, Any] | Failure:
        """Write what came back, the answer last, and read it."""
        if paths.log is not None:
            paths.log.write_bytes(returned.log)
        unpack(returned.files, journey.outputs)
        if returned.answer is not None:
            paths.answer.write_bytes(returned.answer)
        return read_answer(kind, returned.outcome, paths.answer)


@contextmanager
def connected(
    command: Sequence[str], *, address: str | None, cpu: str | None
) -> Iterator[RayExecutor]:
    """Join the cluster at `address`, and leave it at the end, unless this process was in one.

    Raises:
        CompareError: Ray is not installed, there is no cluster, no node gives CPUs, or one has
            other versions than this machine.
    """
    ray = _import_ray()
    joined = not ray.is_initialized()
    if joined:
        _join(ray, address or "auto")
    executor = None
    try:
        nodes = _describe_nodes(ray)
        check_same_versions(nodes, describe_environment())
        executor = RayExecutor(ray, command, nodes, cpu)
        yield executor
    finally:
        if executor is not None:
            executor.stop()
        if joined:
            ray.shutdown()


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anyone
    try:
        import ray
    except ImportError as error:
        raise CompareError(
            f"the executor ray needs the package ray ({error})",
            'pip install "vggt-deploy[ray]", on this machine and on every node',
        ) from error
    return ray


def _join(ray: Any, address: str) -> None:
    try:
        _knock(address)
        ray.init(
            address=address,
            include_dashboard=False if address == "local" else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise CompareError(
            f"can't join a Ray cluster at {address!r}: {_first_line(error)}",
            "start one with `ray start --head` here and `ray start --address HOST:6379` on the "
            "other machines, or name it with --ray-address",
        ) from error


def _knock(address: str) -> None:
    """Open a connection to HOST:PORT and close it; `ray.init` waits minutes for one."""
    found = _HOST_PORT.search(address)
    if found is not None:
        with socket.create_connection((found["host"], int(found["port"])), timeout=_KNOCK_S):
            pass


def _describe_nodes(ray: Any) -> list[Node]:
    """Ask every node that gives CPUs what it is."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    listed = [node for node in ray.nodes() if node["Alive"] and _cpus(node) > 0]
    if not listed:
        raise CompareError(
            "no node of the Ray cluster gives CPUs", "add one with `ray start --address HOST:6379`"
        )
    probe = ray.remote(num_cpus=0, max_retries=0)(describe_node)
    asked = [
        probe.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(n["NodeID"], False)
        ).remote()
        for n in listed
    ]
    nodes = []
    for node, answer in zip(listed, asked, strict=True):
        address = node["NodeManagerAddress"]
        try:
            environment: Environment = ray.get(answer, timeout=_PROBE_S)
        except (ray.exceptions.RayError, ray.exceptions.GetTimeoutError) as error:
            raise CompareError(
                f"the node at {address} can't say what it is: {_first_line(error)}",
                "install this version of vggt-deploy on every node, or take the node away",
            ) from error
        ours = node["NodeID"] == ray.get_runtime_context().get_node_id()
        nodes.append(Node(node["NodeID"], address, _cpus(node), environment, ours))
    return nodes


def _cpus(node: dict[str, Any]) -> float:
    return float(node["Resources"].get("CPU", 0.0))


def _times(lost: Sequence[str]) -> str:
    """In words, to follow a sentence; nothing where it was not."""
    if not lost:
        return ""
    return f" and it was begun again {'once' if len(lost) == 1 else f'{len(lost)} times'}"


def _first_line(error: object) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
