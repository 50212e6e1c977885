"""Joining a Ray cluster: is it there, what are its nodes, and is its head still there."""

from __future__ import annotations

import logging
import os
import re
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Any

from vggt_deploy.compare.environment import Environment, describe_environment
from vggt_deploy.compare.executors.cluster import RayExecutor, cpus_of
from vggt_deploy.compare.executors.node import describe_node
from vggt_deploy.compare.executors.nodes import Node, check_same_versions
from vggt_deploy.compare.executors.words import brief
from vggt_deploy.errors import CompareError

_PROBE_S = 120.0  # a node starts an interpreter and imports this package
_KNOCK_S = 10.0
_HOST_PORT = re.compile(r"(?:^|//)(?P<host>[^/:]+):(?P<port>[0-9]+)$")
# Ray ends a process, without a word of ours, when it has not reached the head for 60 s.
_HEAD_GRACE_S = 20.0
_HEAD_EVERY_S = 2.0


class Head:
    """Looks now and then whether the head of the cluster answers; used from threads."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._lock = Lock()
        self._looked_at = time.monotonic()
        self._gone_since: float | None = None

    @property
    def gone(self) -> bool:
        """Whether it did not answer when we looked last."""
        return self._gone_since is not None

    def answers(self) -> bool:
        """Whether it did, a moment ago.

        Raises:
            CompareError: it has not for `_HEAD_GRACE_S`.
        """
        with self._lock:
            if time.monotonic() - self._looked_at >= _HEAD_EVERY_S:
                self._look()
            since = self._gone_since
            if since is not None and self._looked_at - since >= _HEAD_GRACE_S:
                raise CompareError(
                    f"the head of the Ray cluster at {self._address} is gone",
                    "start the cluster again, then --resume: every finished row is kept",
                )
            return since is None

    def _look(self) -> None:
        try:
            _knock(self._address)
        except OSError:
            self._looked_at = time.monotonic()
            self._gone_since = self._gone_since or self._looked_at
        else:
            self._looked_at, self._gone_since = time.monotonic(), None


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
    head = Head(ray.get_runtime_context().gcs_address)
    try:
        nodes = _describe_nodes(ray)
        check_same_versions(nodes, describe_environment())
        executor = RayExecutor(ray, command, nodes, cpu, head.answers, _kept_bytes(ray))
        yield executor
    finally:
        if executor is not None:
            executor.stop()
        if joined and not head.gone:  # without a head it waits for one
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
            f"can't join a Ray cluster at {address!r}: {brief(error)}",
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

    listed = [node for node in ray.nodes() if node["Alive"] and cpus_of(node) > 0]
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
                f"the node at {address} can't say what it is: {brief(error)}",
                "install this version of vggt-deploy on every node, or take the node away",
            ) from error
        ours = node["NodeID"] == ray.get_runtime_context().get_node_id()
        nodes.append(Node(node["NodeID"], address, cpus_of(node), environment, ours))
    return nodes


def _kept_bytes(ray: Any) -> int:
    """How much of what was sent this machine's object store keeps: half of it.

    The other half is for what jobs in hand read, and for what comes back.
    """
    ours = ray.get_runtime_context().get_node_id()
    stores = [
        n["Resources"].get("object_store_memory", 0) for n in ray.nodes() if n["NodeID"] == ours
    ]
    return int(sum(stores)) // 2
