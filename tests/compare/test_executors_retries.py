"""What the ray executor makes of what Ray reports, with a Ray that reports what it is told to."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from vggt_deploy.compare.environment import describe_environment
from vggt_deploy.compare.executors import cluster
from vggt_deploy.compare.executors.cluster import MAX_RETRIES, RayExecutor
from vggt_deploy.compare.executors.node import Parcel, Refused, Returned
from vggt_deploy.compare.executors.nodes import Node
from vggt_deploy.compare.executors.words import address_of, brief
from vggt_deploy.compare.jobs import LayerPatterns, MeasureJob, ModelQuestion
from vggt_deploy.compare.measures import Failure
from vggt_deploy.compare.processes import Outcome
from vggt_deploy.compare.question import Settings
from vggt_deploy.compare.state import Paths
from vggt_deploy.compare.variants import Variant
from vggt_deploy.errors import CompareError, UsageError

ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")

FIRST, SECOND, OTHER = ("ab" * 28, "cd" * 28, "ef" * 28)
NODES = {FIRST: "10.0.0.1", SECOND: "10.0.0.2", OTHER: "10.0.0.3"}
ANSWER = json.dumps({"ok": {"scenes": 1, "notes": []}}).encode()
GOOD = Returned(Outcome(0, False, 1.0, ()), ANSWER, b"", {})


@dataclass
class Told:
    """As much of `ray` as the executor uses. `ends`: what each task in turn returns or raises; None
    for one that never ends.
    """

    ends: list[Returned | Refused | Exception | None]
    alive: bool = True
    full: bool = False
    asked: list[dict[str, Any]] = field(default_factory=list)
    cancelled: list[bool] = field(default_factory=list)
    exceptions = ray.exceptions

    def put(self, chunk: Any) -> Any:
        if self.full:
            raise ray.exceptions.OutOfDiskError("Local disk is full")
        return chunk

    def remote(self, **_: Any) -> Callable[[Any], Told]:
        return lambda function: self

    def options(self, **options: Any) -> Task:
        self.asked.append(options)
        return Task(self)

    def wait(self, tasks: list[int], timeout: float) -> tuple[list[int], list[int]]:
        ready = [task for task in tasks if self.ends[task] is not None]
        return ready, []

    def get(self, task: int) -> Returned | Refused:
        end = self.ends[task]
        if isinstance(end, Exception):
            raise end
        assert end is not None
        return end

    def cancel(self, task: int, *, force: bool) -> None:
        self.cancelled.append(force)

    def nodes(self) -> list[dict[str, Any]]:
        return [
            {
                "NodeID": name,
                "Alive": self.alive,
                "NodeManagerAddress": address,
                "Resources": {"CPU": 4.0},
                "Labels": {"ray.io/node-id": name},
            }
            for name, address in NODES.items()
        ]


@dataclass
class Task:
    told: Told

    def remote(self, parcel: Parcel) -> int:
        return len(self.told.asked) - 1


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`ask(told, timed=...)`: one job on a cluster of three nodes of four CPUs, one of them of
    another kind, or on those of an `executor` that has been used before.
    """
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

    def call(
        told: Told,
        *,
        timed: bool = False,
        stopped: bool = False,
        kind: Any = None,
        executor: RayExecutor | None = None,
    ) -> Any:
        executor = executor or executor_of(told)
        if stopped:
            executor.stop()
        kind = kind or ("measure" if timed else "compute")
        return executor.ask(kind, job, paths, timeout_s=5.0, threads=2, timed=timed)

    return call


def executor_of(told: Told) -> RayExecutor:
    here = describe_environment()
    nodes = [
        Node(name, address, 4.0, replace(here, cpu_flags=("other",)) if name == OTHER else here)
        for name, address in NODES.items()
    ]
    return RayExecutor(told, ("worker",), nodes, None, lambda: True, 2**20)


def refusal(name: str) -> Refused:
    return Refused(name, NODES[name], "its disk was full (/tmp)", "free some space")


def raised(cause: Exception, address: str) -> Exception:
    """What `ray.get` raises when the task has raised `cause`."""
    trace = f"\x1b[36mray::on_node()\x1b[39m (pid=7, ip={address})\n  File x\n{cause!r}\n"
    told = ray.exceptions.RayTaskError("on_node", trace, cause, "ray::on_node", 7, address)
    error: Exception = told.as_instanceof_cause()
    return error


def nodes_of(options: dict[str, Any]) -> tuple[str, set[str]]:
    """The operator and the names that a job may, or may not, run on."""
    ((rule,)) = options["scheduling_strategy"].hard
    assert rule.key == "ray.io/node-id"
    return type(rule.operator).__name__, set(rule.operator.values)


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
    ask(told, kind="measure")
    assert told.asked == [{"num_cpus": 2}]


def test_a_further_scene_runs_where_a_cpu_computes_alike(ask: Any) -> None:
    told = Told([GOOD])
    ask(told)
    assert told.asked[0]["num_cpus"] == 2
    assert nodes_of(told.asked[0]) == ("In", {FIRST, SECOND})


def test_a_node_that_cannot_run_a_job_gets_it_no_more(ask: Any, caplog: Any) -> None:
    told = Told([refusal(FIRST), GOOD, GOOD])
    executor = executor_of(told)
    answer = ask(told, executor=executor)
    assert nodes_of(told.asked[1]) == ("In", {SECOND})
    assert answer["notes"] == [
        "could not run on the node at 10.0.0.1 (ababab): its disk was full (/tmp)"
    ]
    assert "its jobs go elsewhere" in caplog.text
    ask(told, executor=executor, kind="measure")  # nor any other
    assert nodes_of(told.asked[2]) == ("NotIn", {FIRST})


def test_nor_does_one_that_was_to_be_timed(ask: Any) -> None:
    told = Told([refusal(FIRST), GOOD, GOOD])
    executor = executor_of(told)
    assert isinstance(ask(told, timed=True, executor=executor), dict)
    ask(told, timed=True, executor=executor)
    asked = [options["scheduling_strategy"].node_id for options in told.asked]
    assert asked == [FIRST, SECOND, SECOND]


@pytest.mark.parametrize("timed", [True, False])
def test_a_job_that_no_node_can_run_says_of_each_why(ask: Any, timed: bool) -> None:
    told = Told([refusal(FIRST), refusal(SECOND), GOOD])
    executor = executor_of(told)
    answer = ask(told, timed=timed, executor=executor)
    assert answer.message == (
        "no node is left that can run it: the node at 10.0.0.1 (ababab): its disk was full (/tmp); "
        "the node at 10.0.0.2 (cdcdcd): its disk was full (/tmp)"
    )
    assert answer.fix == "on 10.0.0.1: free some space; on 10.0.0.2: free some space"
    # The next one may be smaller.
    assert isinstance(ask(told, timed=timed, executor=executor), dict)


def test_a_node_without_the_package_is_known_by_its_address(ask: Any) -> None:
    told = Told([raised(RuntimeError("No module named 'x'"), "10.0.0.2"), GOOD])
    assert isinstance(ask(told, kind="measure"), dict)
    assert nodes_of(told.asked[1]) == ("NotIn", {SECOND})
    answer = ask(Told([raised(RuntimeError("a\nbug"), "10.9.9.9")]))
    assert answer.message == "its node could not run it: RuntimeError: bug"


def test_a_full_store_of_this_machine_ends_the_comparison_in_words(ask: Any) -> None:
    with pytest.raises(CompareError, match="object store on this machine is full") as caught:
        ask(Told([GOOD], full=True))
    assert "--object-store-memory" in caught.value.fix
    assert "--resume" in caught.value.fix


def test_a_full_disk_here_is_a_failed_row(ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cluster, "unpack", fill)
    answer = ask(Told([GOOD]))
    assert isinstance(answer, Failure)
    assert "could not be kept here: [Errno 28] No space left on device" in answer.message
    assert "--resume" in str(answer.fix)

    def forbid(*_: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(cluster, "unpack", forbid)
    with pytest.raises(PermissionError):
        ask(Told([GOOD]))


@pytest.mark.parametrize("begun", [True, False])
def test_a_job_that_others_keep_waiting_says_so(
    ask: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any, begun: bool
) -> None:
    told = Told([None])

    def wait_twice(tasks: list[int], timeout: float) -> tuple[list[int], list[int]]:
        polls.append(timeout)
        if len(polls) == 3:
            told.ends[0] = GOOD
        return ([0], []) if told.ends[0] else ([], [0])

    polls: list[float] = []
    monkeypatch.setattr(told, "wait", wait_twice, raising=False)
    monkeypatch.setattr(cluster, "_TELL_AFTER_S", -1.0)
    monkeypatch.setattr(RayExecutor, "_has_begun", lambda *_: begun)
    ask(told, timed=True)
    said = [record.getMessage() for record in caplog.records]
    waits = "measure torch fp32 waits for all 4 CPUs of the node at 10.0.0.1: "
    assert said == ([] if begun else [waits + "other jobs of Ray have them"])


def test_as_many_threads_as_ray_may_give_away(monkeypatch: pytest.MonkeyPatch) -> None:
    for usable, expected in ((64, 4), (2, 2)):
        here = replace(describe_environment(), usable_cpus=usable)
        node = Node(FIRST, "10.0.0.1", 4.0, here)
        executor = RayExecutor(Told([]), ("worker",), [node], None, lambda: True, 0)
        assert executor.threads == expected


def test_more_threads_than_a_node_gives_and_engines_are_refused() -> None:
    executor = executor_of(Told([]))
    plain, engine = Variant("torch", "int8_pc_sym"), Variant("tensorrt-rtx", "int8_pc_sym")
    executor.check(cast("Settings", SimpleNamespace(variants=(plain,), threads=4)))
    with pytest.raises(UsageError, match="5 threads are asked for") as caught:
        executor.check(cast("Settings", SimpleNamespace(variants=(plain,), threads=5)))
    assert "--threads 4" in caught.value.fix
    with pytest.raises(UsageError, match="tensorrt-rtx/int8_pc_sym is an engine"):
        executor.check(cast("Settings", SimpleNamespace(variants=(plain, engine), threads=4)))


def test_what_ray_says_in_one_line() -> None:
    cause = RuntimeError("failed to import\n\x1b[31mNo module named 'vggt_deploy'\x1b[0m\n")
    error = raised(cause, "10.0.0.1")
    assert str(error).startswith("\x1b[36mray::on_node()")
    assert brief(error) == "RuntimeError: No module named 'vggt_deploy'"
    assert address_of(error) == "10.0.0.1"
    assert brief(ray.exceptions.OutOfDiskError("full")).endswith("OutOfDiskError: full")
    assert brief(ValueError()) == "ValueError"
    assert address_of(lost()) is None


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
    assert "ip=" not in answer.message


@pytest.mark.parametrize("timed", [True, False])
def test_without_a_node_the_job_fails_after_a_while(
    ask: Any, timed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = cluster.TimedNodes.claim
    monkeypatch.setattr(cluster.TimedNodes, "claim", lambda *a, **k: claim(*a, **k, grace_s=0.0))
    told = Told([None], alive=False)
    answer = ask(told, timed=timed)
    assert isinstance(answer, Failure)
    assert answer.message == "no node for it has been there for 0 s"
    assert answer.fix == "add a node, then --resume"
    assert told.cancelled == ([] if timed else [True])


@pytest.mark.parametrize("timed", [True, False])
def test_what_still_runs_when_the_sweep_stops_is_cancelled(ask: Any, timed: bool) -> None:
    told = Told([None])
    with pytest.raises(CompareError, match="was stopped"):
        ask(told, timed=timed, stopped=True)
    # First so that it can clear up; a timed one had not been begun.
    assert told.cancelled == ([] if timed else [False, True])


def test_how_a_process_ended_on_a_node_is_told_as_here(ask: Any, tmp_path: Path) -> None:
    crashed = replace(GOOD, outcome=Outcome(-11, False, 1.0, ("last words",)), answer=None)
    answer = ask(Told([replace(crashed, log=b"last words\n")]))
    assert answer == Failure(
        "measure", "crashed: killed by signal 11 (SIGSEGV)", tail=("last words",)
    )
    assert (tmp_path / "log").read_text() == "last words\n"
