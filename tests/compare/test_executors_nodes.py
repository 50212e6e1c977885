"""Which nodes are timed, and how they are handed out."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest

from vggt_deploy.compare.environment import Environment
from vggt_deploy.compare.executors import LocalExecutor, joining, nodes, opened
from vggt_deploy.compare.executors.nodes import (
    Node,
    NoNodeError,
    TimedNodes,
    check_same_versions,
    choose_timed,
    computing_alike,
)
from vggt_deploy.errors import CompareError, UsageError

HERE = Environment("Linux", "3.11.9", "Slow", (), 4, 4, None, {"torch": "2.8", "numpy": "2.1"})


def node(name: str, cpu: str = "Slow", cpus: float = 4.0) -> Node:
    environment = replace(HERE, cpu=cpu, usable_cpus=int(cpus))
    return Node(name, f"10.0.0.{name}", cpus, environment)


def names(chosen: tuple[Node, ...]) -> list[str]:
    return [one.name for one in chosen]


def test_the_kind_with_most_nodes_is_timed() -> None:
    mixed = [node("1", "Fast", 8.0), node("2"), node("3"), node("4", cpus=2.0)]
    assert names(choose_timed(mixed, None)) == ["2", "3"]


def test_of_as_many_the_larger_and_of_as_large_the_first_by_name() -> None:
    assert names(choose_timed([node("1", cpus=2.0), node("2", cpus=8.0)], None)) == ["2"]
    assert names(choose_timed([node("1", "B"), node("2", "A")], None)) == ["2"]


def test_a_comparison_goes_on_with_the_cpu_that_it_was_timed_on() -> None:
    mixed = [node("1", "Fast"), node("2"), node("3")]
    assert names(choose_timed(mixed, "Fast")) == ["1"]
    with pytest.raises(CompareError, match="timed on Other") as caught:
        choose_timed(mixed, "Other")
    assert caught.value.message.endswith("it has Fast, Slow")


def test_the_machine_of_the_sweep_is_timed_only_where_there_is_no_other() -> None:
    ours = replace(node("1", cpus=16.0), ours=True)
    assert names(choose_timed([ours, node("2"), node("3", "Fast", 8.0)], None)) == ["3"]
    assert names(choose_timed([ours, node("2", cpus=16.0)], None)) == ["2"]
    assert names(choose_timed([ours, node("2", "Fast")], "Slow")) == ["1"]
    assert names(choose_timed([ours], None)) == ["1"]


def test_other_instructions_are_another_kind_and_compute_otherwise() -> None:
    vnni = replace(node("1"), environment=replace(HERE, cpu_flags=("avx512_vnni",)))
    small = node("4", cpus=2.0)  # another kind to time, and the same numbers
    assert names(choose_timed([vnni, node("2"), node("3"), small], None)) == ["2", "3"]
    assert computing_alike([vnni, node("2"), node("5", "Fast"), small], node("2")) == {"2", "4"}


def test_other_versions_are_refused() -> None:
    check_same_versions([node("1"), node("2")], HERE)
    older = replace(HERE, versions={"torch": "2.7", "numpy": "2.1"})
    with pytest.raises(CompareError, match=r"10\.0\.0\.2 has torch 2\.7, this machine 2\.8"):
        check_same_versions([node("1"), replace(node("2"), environment=older)], HERE)
    lacking = replace(HERE, versions={"numpy": "2.1"})
    with pytest.raises(CompareError, match="torch missing"):
        check_same_versions([replace(node("1"), environment=lacking)], HERE)


def test_each_node_has_one_job_at_a_time() -> None:
    timed = TimedNodes([node("1"), node("2")], lambda: {"1", "2"})
    first, second = timed.claim(lambda: False), timed.claim(lambda: False)
    assert first is not None
    assert (first, second) == (node("1"), node("2"))
    third: list[Node | None] = []
    waiter = threading.Thread(target=lambda: third.append(timed.claim(lambda: False)))
    waiter.start()
    time.sleep(0.1)
    assert third == []
    timed.release(first)
    waiter.join(timeout=10.0)
    assert third == [first]


def test_a_node_that_lost_a_job_is_not_taken_while_there_is_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    timed = TimedNodes([node("1"), node("2")], lambda: {"1", "2"})
    first = timed.claim(lambda: False)
    assert first == node("1")
    timed.release(first, lost=True)
    assert timed.claim(lambda: False) == node("2")
    timed.release(node("2"))
    monkeypatch.setattr(nodes, "SUSPECT_S", 0.0)
    assert timed.claim(lambda: False) == node("1")


def test_the_only_node_is_taken_though_it_lost_a_job() -> None:
    timed = TimedNodes([node("1")], lambda: {"1"})
    timed.release(node("1"), lost=True)
    assert timed.claim(lambda: False) == node("1")


def test_a_node_that_could_not_run_a_job_is_not_taken_for_it_again() -> None:
    timed = TimedNodes([node("1"), node("2")], lambda: {"1", "2"})
    assert timed.claim(lambda: False, refused={"1"}) == node("2")
    timed.release(node("2"))
    assert timed.claim(lambda: False, barred={"1"}) == node("2")
    timed.release(node("2"))
    assert timed.claim(lambda: False, barred={"1", "2"}) == node("1")
    with pytest.raises(NoNodeError):  # at once: it would never come
        timed.claim(lambda: False, refused={"1", "2"})


def test_without_a_node_it_waits_a_while_and_says_so() -> None:
    timed = TimedNodes([node("1")], lambda: {"another"})
    with pytest.raises(NoNodeError):
        timed.claim(lambda: False, grace_s=0.0)
    assert timed.claim(lambda: True) is None


def test_the_local_executor_and_what_is_none() -> None:
    with opened("local", command=("worker", "x")) as executor:
        assert isinstance(executor, LocalExecutor)
        assert executor.command == ("worker", "x")
        assert executor.width == 1
        assert executor.threads == executor.environment.usable_cpus
    with pytest.raises(UsageError, match="unknown executor 'slurm'"), opened("slurm", command=()):
        pass
    with (
        pytest.raises(UsageError, match="the executor is local") as caught,
        opened("local", command=(), address="auto"),
    ):
        pass
    assert "--executor ray" in caught.value.fix


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(CompareError, match="needs the package ray") as caught,
        opened("ray", command=()),
    ):
        pass
    assert "vggt-deploy[ray]" in caught.value.fix


def test_no_cluster_at_the_address() -> None:
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    with (
        pytest.raises(
            CompareError, match=r"can't join a Ray cluster at '127\.0\.0\.1:1'"
        ) as caught,
        opened("ray", command=("worker",), address="127.0.0.1:1"),
    ):
        pass
    assert "ray start --head" in caught.value.fix


def test_ray_is_imported_only_when_it_is_asked_for() -> None:
    code = "import sys, vggt_deploy.compare.pipeline as p; assert 'ray' not in sys.modules, p"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_head_that_is_gone_is_noticed_before_ray_ends_this_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(joining, "_HEAD_EVERY_S", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        head = joining.Head(address)
        assert head.answers()
        assert not head.gone
    # Nobody looked for longer than the grace, and once is not for long: it may come back.
    monkeypatch.setattr(head, "_looked_at", 0.0)
    assert not head.answers()
    assert head.gone
    with socket.create_server(("127.0.0.1", int(address.split(":")[1]))):
        assert head.answers()
        assert not head.gone
    monkeypatch.setattr(joining, "_HEAD_GRACE_S", 0.0)
    with pytest.raises(
        CompareError, match=f"the head of the Ray cluster at {address} is gone"
    ) as e:
        head.answers()
    assert "--resume" in e.value.fix
