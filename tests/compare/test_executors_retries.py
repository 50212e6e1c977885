"""What the ray executor makes of what Ray reports, with a Ray that reports what it is told to."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vggt_deploy.compare.environment import describe_environment
from vggt_deploy.compare.executors import cluster
from vggt_deploy.compare.executors.cluster import MAX_RETRIES, RayExecutor
from vggt_deploy.compare.executors.node import Parcel, Returned
from vggt_deploy.compare.executors.nodes import Node
from vggt_deploy.compare.jobs import LayerPatterns, MeasureJob, ModelQuestion
from vggt_deploy.compare.measures import Failure
from vggt_deploy.compare.processes import Outcome
from vggt_deploy.compare.state import Paths
from vggt_deploy.errors import CompareError

ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")

ANSWER = json.dumps({"ok": {"scenes": 1, "notes": []}}).encode()
GOOD = Returned(Outcome(0, False, 1.0, ()), ANSWER, b"", {})


@dataclass
class Told:
    """As much of `ray` as the executor uses. `ends`: what each task in turn returns or raises; None
    for one that never ends.
    """

    ends: list[Returned | Exception | None]
    alive: bool = True
    asked: list[dict[str, Any]] = field(default_factory=list)
    cancelled: int = 0
    exceptions = ray.exceptions

    def put(self, chunk: Any) -> Any:
        return chunk

    def remote(self, **_: Any) -> Callable[[Any], Told]:
        return lambda function: self

    def options(self, **options: Any) -> Task:
        self.asked.append(options)
        return Task(self)

    def wait(self, tasks: list[int], timeout: float) -> tuple[list[int], list[int]]:
        ready = [task for task in tasks if self.ends[task] is not None]
        return ready, []

    def get(self, task: int) -> Returned:
        end = self.ends[task]
        if isinstance(end, Exception):
            raise end
        assert end is not None
        return end

    def cancel(self, task: int, *, force: bool) -> None:
        assert force
        self.cancelled += 1

    def nodes(self) -> list[dict[str, Any]]:
        return [{"NodeID": "ab" * 28, "Alive": self.alive, "Resources": {"CPU": 4.0}}]


@dataclass
class Task:
    told: Told

    def remote(self, parcel: Parcel) -> int:
        return len(self.told.asked) - 1


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`ask(told, timed=...)`: one job on a cluster of one node of four CPUs."""
    monkeypatch.setattr(cluster, "_POLL_S", 0.0)
    monkeypatch.setattr(cluster, "GRACE_S", 0.0)
    np.save(tmp_path / "images.npy", np.zeros(1))
    job = MeasureJob(
        parent=1,
        answer=str(tmp_path / "answer.json"),
        model=ModelQuestion("random:vggt-tiny"),
        runtime="torch",
        scheme="fp32",
        activations="float",
        precision="fp32",
        outputs=("pose",),
        artifact=None,
        images=str(tmp_path / "images.npy"),
        arrays=str(tmp_path / "arrays.npz"),
        layers=LayerPatterns(),
        calibration=None,
        threads=2,
        warmup=0,
        repeats=0,
        size_probe=None,
    )
    paths = Paths(tmp_path / "job.json", tmp_path / "answer.json", tmp_path / "log")
    node = Node("ab" * 28, "10.0.0.1", 4.0, describe_environment())

    def call(told: Told, *, timed: bool = False, stopped: bool = False) -> Any:
        executor = RayExecutor(told, ("worker",), [node], None)
        if stopped:
            executor.stop()
        kind: Any = "measure" if timed else "compute"
        return executor.ask(kind, job, paths, timeout_s=5.0, threads=2, timed=timed)

    return call


def lost() -> Exception:
    error: Exception = ray.exceptions.WorkerCrashedError()
    return error


def test_a_timed_job_has_all_cpus_of_its_node_and_another_its_threads(ask: Any) -> None:
    told = Told([GOOD])
    ask(told, timed=True)
    (asked,) = told.asked
    assert asked["num_cpus"] == 4.0
    assert asked["scheduling_strategy"].node_id == "ab" * 28
    assert not asked["scheduling_strategy"].soft
    told = Told([GOOD])
    ask(told)
    assert told.asked == [{"num_cpus": 2}]


@pytest.mark.parametrize(
    "times, words", [(0, []), (1, ["begun again once"]), (MAX_RETRIES, ["begun again 3 times"])]
)
def test_a_job_whose_node_died_is_begun_again(ask: Any, times: int, words: list[str]) -> None:
    answer = ask(Told([*[lost()] * times, GOOD]), timed=True)
    assert answer["notes"] == [f"its node was lost and it was {word}" for word in words]


def test_but_not_for_ever(ask: Any) -> None:
    told = Told([lost()] * (MAX_RETRIES + 1))
    answer = ask(told)
    assert isinstance(answer, Failure)
    assert answer.message.startswith("its node was lost and it was begun again 3 times: ")
    assert len(told.asked) == MAX_RETRIES + 1


def test_a_timed_job_that_ate_the_memory_is_not_begun_again(ask: Any) -> None:
    ate = ray.exceptions.OutOfMemoryError("memory is at 96 %")
    told = Told([ate])
    answer = ask(told, timed=True)
    assert isinstance(answer, Failure)
    assert answer.message.startswith("its node ran out of memory")
    assert len(told.asked) == 1


def test_one_that_shared_its_node_may_not_be_the_one_that_ate_it(ask: Any) -> None:
    ate = ray.exceptions.OutOfMemoryError("memory is at 96 %")
    assert ask(Told([ate, GOOD]))["scenes"] == 1
    answer = ask(Told([ate] * (MAX_RETRIES + 1)))
    assert isinstance(answer, Failure)
    assert answer.message.startswith("its node ran out of memory and it was begun again 3 times")


def test_a_full_disk_of_a_node_is_the_jobs_failure_and_not_ours(ask: Any) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    error = ray.exceptions.RayTaskError("on_node", "traceback", full).as_instanceof_cause()
    assert isinstance(error, OSError)  # so that a careless `except` would take it for one of ours
    answer = ask(Told([error]))
    assert isinstance(answer, Failure)
    assert "No space left on device" in answer.message


@pytest.mark.parametrize("timed", [True, False])
def test_without_a_node_the_job_fails_after_a_while(
    ask: Any, timed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = cluster.TimedNodes.claim
    monkeypatch.setattr(cluster.TimedNodes, "claim", lambda *a: claim(*a, grace_s=0.0))
    told = Told([None], alive=False)
    answer = ask(told, timed=timed)
    assert isinstance(answer, Failure)
    assert answer.message == "no node for it has been there for 0 s"
    assert answer.fix == "add a node, then --resume"
    assert told.cancelled == (not timed)


@pytest.mark.parametrize("timed", [True, False])
def test_what_still_runs_when_the_sweep_stops_is_cancelled(ask: Any, timed: bool) -> None:
    told = Told([None])
    with pytest.raises(CompareError, match="was stopped"):
        ask(told, timed=timed, stopped=True)
    assert told.cancelled == (not timed)  # a timed one had not been begun


def test_how_a_process_ended_on_a_node_is_told_as_here(ask: Any, tmp_path: Path) -> None:
    crashed = replace(GOOD, outcome=Outcome(-11, False, 1.0, ("last words",)), answer=None)
    answer = ask(Told([replace(crashed, log=b"last words\n")]))
    assert answer == Failure(
        "measure", "crashed: killed by signal 11 (SIGSEGV)", tail=("last words",)
    )
    assert (tmp_path / "log").read_text() == "last words\n"
