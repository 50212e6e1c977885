"""The nodes of a Ray cluster: as many variants and scenes at a time as there are machines.

    timed        the first scene of each variant: on a node of one kind that it has alone
    not timed    calibrate, prepare, export, further scenes: anywhere, several on a node

No file system is shared. What a job reads goes into Ray's object store, each content once, and what
it writes comes back as the result of the task. A job whose node died is begun again; one that a
node can't run (no space, other versions) is given to another; one whose process fails has failed,
as on one machine.
"""

from __future__ import annotations

import errno
import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Event
from typing import Any
from uuid import uuid4

from vggt_deploy.compare.asking import read_answer, stage_of
from vggt_deploy.compare.executors.node import Parcel, Refused, Returned, on_node
from vggt_deploy.compare.executors.nodes import (
    GRACE_S,
    Node,
    NoNodeError,
    TimedNodes,
    choose_timed,
    computing_alike,
    versions_of,
)
from vggt_deploy.compare.executors.travel import Itinerary, Post, plan_journey, unpack
from vggt_deploy.compare.executors.words import address_of, brief, times
from vggt_deploy.compare.jobs import Job, JobKind, write_job
from vggt_deploy.compare.measures import Failure, Stage
from vggt_deploy.compare.question import Settings
from vggt_deploy.compare.state import Paths
from vggt_deploy.errors import CompareError, DeployError, UsageError

MAX_RETRIES = 3  # of a job whose node died
_POLL_S = 1.0
_CANCEL_S = 5.0  # for a job to end its process and to clear up, before it is killed
_TELL_AFTER_S = 60.0  # that a job waits

logger = logging.getLogger(__name__)


@dataclass
class _Tries:
    """The attempts to run one job: why its nodes were lost, and which could not run it."""

    kind: JobKind
    timed: bool
    lost: list[str] = field(default_factory=list)
    refused: dict[str, Refused] = field(default_factory=dict)


class RayExecutor:
    """An `Executor` over a cluster that is connected."""

    splits_scenes = True

    def __init__(
        self,
        ray: Any,
        command: Sequence[str],
        nodes: Sequence[Node],
        cpu: str | None,
        head_answers: Callable[[], bool],
        keep_bytes: int,
    ):
        self.command = tuple(command)
        timed = choose_timed(nodes, cpu)
        self.environment = timed[0].environment
        # One variant is timed on each node while the next one is exported.
        self.width = max(2, 2 * len(nodes))
        self._ray = ray
        self._cpus = timed[0].cpus
        self.threads = max(1, min(self.environment.usable_cpus, int(self._cpus)))
        self._head_answers = head_answers
        self._listed: list[dict[str, Any]] = ray.nodes()
        self._addresses = {node.name: node.address for node in nodes}
        self._alike = computing_alike(nodes, timed[0])
        self._barred: set[str] = set()  # could not run a job
        self._timed = TimedNodes(timed, lambda: {name for name, _ in self._alive()})
        self._post = Post(ray.put, keep_bytes)
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
        tries = _Tries(kind, timed)
        returned = None
        while returned is None:
            returned = self._attempt(parcel, tries)
        if isinstance(returned, Failure):
            return returned
        answer = self._received(kind, journey, returned, paths)
        if isinstance(answer, dict) and kind in ("measure", "compute"):
            lost = [f"its node was lost{times(tries.lost)}"] if tries.lost else []
            refused = [f"could not run on {_told(no)}" for no in tries.refused.values()]
            answer["notes"] = [*answer.get("notes", []), *lost, *refused]
        return answer

    def _attempt(self, parcel: Parcel, tries: _Tries) -> Returned | Failure | None:
        """What came back, or why nothing will; None, and one more of `tries`, to begin again."""
        errors = self._ray.exceptions
        stage = stage_of(tries.kind)
        try:
            returned = self._run(parcel, tries)
        except NoNodeError:
            return _no_node(stage, tries)
        except errors.RayTaskError as error:
            # Not of the job, whose errors are answers: the package is missing there, or is broken.
            refused = self._refused_by(error)
            if not refused or all(no.node in tries.refused for no in refused):
                return Failure(stage, f"its node could not run it: {brief(error)}")
            self._bar(refused, tries)
            return None
        except errors.RayError as error:
            if self._stopped.is_set():
                raise
            return self._lost(error, tries)
        if isinstance(returned, Refused):
            self._bar([returned], tries)
            return None
        return returned

    def _lost(self, error: Any, tries: _Tries) -> Failure | None:
        ate = isinstance(error, self._ray.exceptions.OutOfMemoryError)
        stage = stage_of(tries.kind)
        if ate and tries.timed:  # it had the node alone
            return Failure(stage, f"its node ran out of memory: {brief(error)}")
        if len(tries.lost) == MAX_RETRIES:
            why = "its node ran out of memory" if ate else "its node was lost"
            message = f"{why}{times(tries.lost)}: {brief(error)}"
            return Failure(stage, message, "look after the nodes, then --resume")
        tries.lost.append(brief(error))
        return None

    def _refused_by(self, error: Any) -> list[Refused]:
        """The nodes at the address that the error came from, which may be new to us."""
        address = address_of(error)
        fix = "install this version of vggt-deploy there, or take the node away"
        return [
            Refused(node["NodeID"], str(address), brief(error), fix)
            for node in self._listed
            if node.get("NodeManagerAddress") == address
        ]

    def _bar(self, refused: Sequence[Refused], tries: _Tries) -> None:
        """This job does not go there again; others only where there is no other node."""
        for no in refused:
            tries.refused[no.node] = no
            if no.node not in self._barred:
                logger.warning("%s; its jobs go elsewhere", _told(no))
            self._barred.add(no.node)

    def stop(self) -> None:
        """As `Executor.stop`."""
        self._stopped.set()

    def _parcel(self, kind: JobKind, journey: Itinerary, timeout_s: float, threads: int) -> Parcel:
        command = tuple(None if word == sys.executable else word for word in self.command)
        errors = self._ray.exceptions
        try:
            files = {name: self._post.send(path) for name, path in journey.inputs.items()}
        except (errors.OutOfDiskError, errors.ObjectStoreFullError) as error:
            raise CompareError(
                f"Ray's object store on this machine is full: {brief(error)}",
                "free some space where Ray keeps its files (ray start --temp-dir), or start Ray "
                "here with a larger --object-store-memory, then --resume",
            ) from error
        return Parcel(
            command,
            kind,
            journey.job,
            journey.moved,
            files,
            sum(path.stat().st_size for path in journey.inputs.values()),
            tuple(journey.outputs),
            timeout_s,
            threads,
            versions_of(self.environment),
            f"vggt-deploy-{uuid4().hex}",
        )

    def _run(self, parcel: Parcel, tries: _Tries) -> Returned | Refused:
        """Run it on one node; raises what Ray does, and NoNodeError."""
        if not tries.timed:
            return self._run_anywhere(parcel, tries)
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        node = self._timed.claim(
            self._stopped.is_set, refused=tries.refused.keys(), barred=self._barred
        )
        if node is None:
            raise self._stop_error()
        lost = True
        try:
            there = NodeAffinitySchedulingStrategy(node.name, soft=False)
            task = self._task.options(num_cpus=node.cpus, scheduling_strategy=there)
            where = f"all {node.cpus:g} CPUs of the node at {node.address}"
            # A node that is gone ends a task that it alone may run; this is for a cluster that is.
            returned = self._wait(
                task.remote(parcel), parcel, lambda _, cpus: cpus >= parcel.threads, where
            )
            lost = False
        finally:
            self._timed.release(node, lost=lost)
        return returned

    def _run_anywhere(self, parcel: Parcel, tries: _Tries) -> Returned | Refused:
        """Beside other jobs, on a node that could so far and, a scene, that computes alike."""
        from ray.util import scheduling_strategies

        rules: Any = scheduling_strategies
        alike = self._alike if tries.kind == "compute" else None
        alive = {name for name, cpus in self._alive() if cpus >= parcel.threads}
        able = {name for name in alive if alike is None or name in alike} - tries.refused.keys()
        if tries.refused and not able:
            raise NoNodeError
        avoided = set(tries.refused) | (self._barred if able - self._barred else set())

        def fits(name: str, cpus: float) -> bool:
            known = alike is None or name in alike
            return known and name not in avoided and cpus >= parcel.threads

        options: dict[str, Any] = {"num_cpus": parcel.threads}
        if alike is not None or avoided:
            # A node that joins later may take what is not a scene; of what kind it is nobody knows.
            those = rules.NotIn(*avoided) if alike is None else rules.In(*(alike - avoided))
            rule = rules.NodeLabelSchedulingStrategy(hard={self._label(): those})
            options["scheduling_strategy"] = rule
        task = self._task.options(**options).remote(parcel)
        return self._wait(task, parcel, fits, f"{parcel.threads} CPUs of a node")

    def _label(self) -> str:
        """What Ray calls the label that holds the name of a node: that changed between versions."""
        node = self._listed[0]
        labels: dict[str, str] = node["Labels"]
        return next(key for key, value in labels.items() if value == node["NodeID"])

    def _wait(
        self, task: Any, parcel: Parcel, fits: Callable[[str, float], bool], where: str
    ) -> Returned | Refused:
        """The result, looking now and then whether it is still wanted, and can still come."""
        gone_since: float | None = None
        begun = time.monotonic()
        told = False
        while not self._ray.wait([task], timeout=_POLL_S)[0]:
            if self._stopped.is_set():
                self._cancel(task)
                raise self._stop_error()
            if any(fits(name, cpus) for name, cpus in self._alive()):
                gone_since = None
            else:
                gone_since = gone_since or time.monotonic()
                if time.monotonic() - gone_since > GRACE_S:
                    self._ray.cancel(task, force=True)
                    raise NoNodeError
            if not told and time.monotonic() - begun > _TELL_AFTER_S:
                told = True
                if not self._has_begun(parcel):
                    logger.warning(
                        "%s waits for %s: other jobs of Ray have them", _name(parcel), where
                    )
        returned: Returned | Refused = self._ray.get(task)
        return returned

    def _has_begun(self, parcel: Parcel) -> bool:
        from ray.experimental.internal_kv import _internal_kv_get

        return _internal_kv_get(parcel.token) is not None

    def _cancel(self, task: Any) -> None:
        """End it: first so that it removes its folder, which can hold gigabytes."""
        self._ray.cancel(task, force=False)
        if not self._ray.wait([task], timeout=_CANCEL_S)[0]:
            self._ray.cancel(task, force=True)

    def _stop_error(self) -> DeployError:
        return CompareError("the comparison was stopped", "go on with --resume")

    def _alive(self) -> list[tuple[str, float]]:
        """Name and CPUs of each node that is there; as they were, while the head does not answer.

        Raises:
            CompareError: the head is gone.
        """
        if self._head_answers():
            self._listed = self._ray.nodes()
        return [(node["NodeID"], cpus_of(node)) for node in self._listed if node["Alive"]]

    def _received(
        self, kind: JobKind, journey: Itinerary, returned: Returned, paths: Paths
    ) -> dict[str, Any] | Failure:
        """Write what came back, the answer last, and read it. A full disk is this job's failure, as
        it is where the job runs here.
        """
        try:
            if paths.log is not None:
                paths.log.write_bytes(returned.log)
            unpack(returned.files, journey.outputs)
            if returned.answer is not None:
                paths.answer.write_bytes(returned.answer)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            message = f"what it made could not be kept here: {error}"
            return Failure(stage_of(kind), message, "free some space on the disk, then --resume")
        return read_answer(kind, returned.outcome, paths.answer)


def cpus_of(node: dict[str, Any]) -> float:
    """CPUs that Ray may give away of a node, as `ray.nodes` lists it."""
    return float(node["Resources"].get("CPU", 0.0))


def _no_node(stage: Stage, tries: _Tries) -> Failure:
    """Why none was left to run the job."""
    if not tries.refused:
        message = f"no node for it has been there for {GRACE_S:.0f} s{times(tries.lost)}"
        return Failure(stage, message, "add a node, then --resume")
    told = sorted(_told(no) for no in tries.refused.values())
    fixes = sorted({f"on {no.address}: {no.fix}" for no in tries.refused.values()})
    message = f"no node is left that can run it{times(tries.lost)}: {'; '.join(told)}"
    return Failure(stage, message, "; ".join(fixes))


def _told(no: Refused) -> str:
    return f"the node at {no.address} ({no.node[:6]}): {no.why}"


def _name(parcel: Parcel) -> str:
    """The job in a person's words: "measure torch int8_pc_sym"."""
    words = (parcel.job.get(name) for name in ("runtime", "label", "scheme"))
    return " ".join([parcel.kind, *(word for word in words if word)])
