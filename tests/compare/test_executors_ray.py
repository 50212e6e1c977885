"""A sweep over a Ray cluster of two workers on this machine, one of which is killed."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_comparison import FAKE_WORKER, Fake
from rich.console import Console

from vggt_deploy.compare import compare
from vggt_deploy.compare.executors import cluster as cluster_module
from vggt_deploy.compare.executors.cluster import RayExecutor
from vggt_deploy.compare.executors.nodes import versions_of
from vggt_deploy.compare.report import REPORT_NAME
from vggt_deploy.data.eth3d import write_scene
from vggt_deploy.data.synthetic import render_views
from vggt_deploy.errors import CompareError, UsageError

pytest.importorskip("ray", reason="the extra `ray` is not installed")

STORE_BYTES = 100 * 2**20
SCHEMES = "int8_pc_sym,int8_pc_sym+static"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head that runs nothing, and two workers of one CPU each; this process has joined them: to
    join, and to start a worker's interpreter, takes seconds each time.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray.cluster_utils import Cluster

    store = {"object_store_memory": STORE_BYTES}
    # A dead node is known as dead after two seconds, not after twenty.
    hasty = {"health_check_period_ms": 500, "health_check_failure_threshold": 3}
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": hasty, **store}
    made = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        made.add_node(num_cpus=1, **store)
    ray.init(address=made.address, log_to_driver=False, logging_level=logging.ERROR)
    yield made
    ray.shutdown()
    made.shutdown()


class KillsNode(threading.Thread):
    """Waits for the worker process that hangs, and kills the node that it runs on, at once."""

    def __init__(self, cluster: Any, mark: Path) -> None:
        super().__init__(daemon=True)
        self.cluster, self.mark, self.killed = cluster, mark, False

    def run(self) -> None:
        raylet = parent_of(hanging(self.mark))
        for node in list(self.cluster.worker_nodes):
            if node.all_processes["raylet"][0].process.pid == raylet:
                self.cluster.remove_node(node, allow_graceful=False)
                self.killed = True


def hanging(mark: Path) -> int:
    """The process of Ray whose worker hangs, as soon as one does."""
    deadline = time.monotonic() + 120.0
    while not (mark.exists() and mark.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return int(mark.read_text())


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


@pytest.fixture(scope="module")
def two_scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    for seed in (1_000_003, 1_000_004):
        write_scene(folder / f"scene_{seed}", render_views(seed, views=3, height=42, width=56))
    return folder


@pytest.fixture
def both(cluster: Any) -> Any:
    """The cluster with both workers, whatever a test before has killed."""
    while len(cluster.worker_nodes) < 2:
        cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
    return cluster


def sweep(fake: Fake, scenes: Path, **changes: Any) -> Any:
    request = {"scenes": [scenes], "schemes": SCHEMES, "calibrate": fake.images} | changes
    return replace(fake, images=None).run(**request)


def without_times(folder: Path) -> dict[str, Any]:
    """The report without what may differ between executors."""
    report: dict[str, Any] = json.loads((folder / REPORT_NAME).read_text())
    for name in ("created", "command"):
        report.pop(name)
    return report


def test_one_worker_killed_the_report_is_that_of_this_machine(
    fake: Fake, two_scenes: Path, both: Any
) -> None:
    """Half way the node dies on which a variant is timed; the job moves to the other node."""
    sweep(fake, two_scenes)
    here = without_times(fake.folder)
    outputs = {path.name: path.read_bytes() for path in (fake.folder / "outputs").iterdir()}
    fake.folder.rename(fake.folder.with_name("here"))
    fake.calls()

    fake.plan({"onnxruntime/int8_pc_sym": "hang once"})
    killer = KillsNode(both, fake.plan_path.with_suffix(".hung"))
    killer.start()
    report = sweep(fake, two_scenes, executor="ray", ray_address=both.address)
    killer.join()
    assert killer.killed
    assert [row.failure for row in report.rows] == [None] * len(report.rows)
    there = without_times(fake.folder)
    lost = {row["label"]: row["measured"]["notes"] for row in there["rows"]}
    assert lost["onnxruntime/int8_pc_sym"][0].startswith("its node was lost and it was begun again")
    for row in there["rows"]:  # others may have been given to the dead node before that was known
        assert all("its node was lost" in note for note in row["measured"]["notes"])
        row["measured"]["notes"] = []
    assert there == here
    assert outputs == {p.name: p.read_bytes() for p in (fake.folder / "outputs").iterdir()}
    # Further scenes were jobs of their own; an artifact and the statistics were made once.
    calls = fake.calls()
    assert calls.count("measure onnxruntime/int8_pc_sym") == 2
    assert calls.count("compute torch/int8_pc_sym") == 1
    assert calls.count("export export/int8_pc_sym") == calls.count("calibrate images") == 1


def test_a_variant_that_fails_is_not_begun_again_and_resumes_on_this_machine(
    fake: Fake, two_scenes: Path, both: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.plan({"torch/int4_g128": "crash", "onnxruntime/int4_g128": "hang"})
    ask = RayExecutor.ask

    def limited(self: RayExecutor, kind: Any, job: Any, paths: Any, **rest: Any) -> Any:
        """Only the one that hangs is short of time, however busy this machine is."""
        hangs = kind == "measure" and (job.runtime, job.scheme) == ("onnxruntime", "int4_g128")
        return ask(self, kind, job, paths, **rest | ({"timeout_s": 1.0} if hangs else {}))

    monkeypatch.setattr(RayExecutor, "ask", limited)
    request: dict[str, Any] = {"schemes": "int4_g128", "calibrate": None, "timeout_s": 300.0}
    report = sweep(fake, two_scenes, executor="ray", ray_address=both.address, **request)
    failed = {row.label: row.failure for row in report.rows if row.failure is not None}
    assert failed.keys() == {"torch/int4_g128", "onnxruntime/int4_g128"}
    assert "SIGSEGV" in failed["torch/int4_g128"].message
    assert failed["torch/int4_g128"].tail == ("about to: crash",)
    assert "time limit" in failed["onnxruntime/int4_g128"].message
    assert (fake.folder / "logs" / "torch-int4_g128.log").read_text() == "about to: crash\n"
    calls = fake.calls()
    assert calls.count("measure torch/int4_g128") == 1
    fake.plan({})
    again = sweep(fake, two_scenes, resume=True, **request)
    assert {row.status for row in again.rows} == {"done"}
    measured = [call for call in fake.calls() if call.startswith("measure")]
    assert measured == ["measure torch/int4_g128", "measure onnxruntime/int4_g128"]


def test_without_the_reference_all_that_runs_is_ended(
    fake: Fake, two_scenes: Path, both: Any
) -> None:
    fake.plan({"torch/fp32": "crash", "torch/int8_pc_sym": "hang"})
    begun = time.monotonic()
    with pytest.raises(CompareError, match="the reference, failed: crashed"):
        sweep(fake, two_scenes, executor="ray", ray_address=both.address, timeout_s=600.0)
    assert time.monotonic() - begun < 300.0


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_the_jobs_on_the_nodes_end_with_the_sweep(
    fake: Fake, two_scenes: Path, both: Any, sent: signal.Signals
) -> None:
    fake.plan({"torch/int8_pc_sym": "hang once"})
    code = f"""
        from rich.console import Console
        from vggt_deploy.compare import compare
        compare(
            "fake-model", scenes=[{str(two_scenes)!r}], output_dir={str(fake.folder)!r},
            schemes="int8_pc_sym", runtimes="torch", width=56, threads=1, timeout_s=300.0,
            console=Console(quiet=True), executor="ray", ray_address={both.address!r},
            worker_command=({sys.executable!r}, {str(FAKE_WORKER)!r}, {str(fake.plan_path)!r}),
        )
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    hung = hanging(fake.plan_path.with_suffix(".hung"))
    (worker,) = [pid for pid in workers_of(fake) if parent_of(int(pid)) == hung]
    scratch = Path(command_line(Path(f"/proc/{worker}/cmdline")).decode().split("\0")[-2]).parent
    assert (scratch / "job.json").is_file()
    process.send_signal(sent)
    _, said = process.communicate(timeout=60)
    if sent == signal.SIGINT:
        assert b"KeyboardInterrupt" in said
        assert not scratch.exists()  # it can hold gigabytes
    shutil.rmtree(scratch, ignore_errors=True)
    deadline = time.monotonic() + 20.0
    while workers_of(fake) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert workers_of(fake) == []


def workers_of(fake: Fake) -> list[str]:
    """Process ids of the fake workers that follow this plan."""
    worker = b"\0".join((str(FAKE_WORKER).encode(), str(fake.plan_path).encode(), b"measure"))
    return [
        path.parent.name
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if worker in command_line(path)
    ]


def command_line(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_nodes_with_other_versions_are_named(
    fake: Fake, two_scenes: Path, both: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if they had joined after the others were looked at: each says what it has itself."""
    monkeypatch.setattr(
        cluster_module, "versions_of", lambda ours: versions_of(ours) | {"python": "2.7"}
    )
    with pytest.raises(
        CompareError, match="no node is left that can run it: the node at"
    ) as caught:
        sweep(fake, two_scenes, executor="ray", ray_address=both.address)
    assert caught.value.message.count(", this machine 2.7") == 2
    assert "constraints.txt" in caught.value.fix
    assert fake.calls() == ["identify model"]


def test_what_the_nodes_cannot_run_is_refused_before_anything_starts(
    fake: Fake, two_scenes: Path, both: Any
) -> None:
    with pytest.raises(UsageError, match="2 threads are asked for"):
        sweep(fake, two_scenes, threads=2, executor="ray", ray_address=both.address)
    assert fake.calls() == []
    assert not fake.folder.exists()


@pytest.mark.slow
def test_real_variants_of_a_checkpoint_file_compute_the_same_on_nodes(
    two_scenes: Path, both: Any, images_dir: Path, tmp_path: Path
) -> None:
    """Calibrated, prepared, exported and measured on nodes, with a model that is a file here."""
    from safetensors.torch import save_file

    from vggt_deploy.model.weights import open_weights

    _, source = open_weights("random:vggt-tiny")
    model = tmp_path / "model.safetensors"
    save_file({key: source.load(key) for key in source.keys()}, model)  # noqa: SIM118
    request: dict[str, Any] = {
        "scenes": [two_scenes],
        "schemes": "int8_pc_sym+static,int8_pc_sym+static+smooth",
        "calibrate": images_dir,
        "width": 56,
        "threads": 1,
        "warmup": 0,
        "repeats": 1,
        "console": Console(quiet=True),
    }
    here = compare(str(model), output_dir=tmp_path / "here", **request)
    there = compare(
        str(model),
        output_dir=tmp_path / "there",
        executor="ray",
        ray_address=both.address,
        **request,
    )
    assert [row.status for row in here.rows] == ["done"] * 5
    untimed: dict[str, Any] = {"measured": None, "export": None, "command": ()}
    assert [replace(row, **untimed) for row in there.rows] == [
        replace(row, **untimed) for row in here.rows
    ]
    assert there.question == here.question
    outputs = sorted(path.name for path in (tmp_path / "here" / "outputs").iterdir())
    assert outputs == sorted(path.name for path in (tmp_path / "there" / "outputs").iterdir())
    for name in outputs:
        ours, theirs = (tmp_path / folder / "outputs" / name for folder in ("here", "there"))
        assert ours.read_bytes() == theirs.read_bytes(), name
    again = compare(str(model), output_dir=tmp_path / "there", resume=True, **request)
    assert again.rows == there.rows
