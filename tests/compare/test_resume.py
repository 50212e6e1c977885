"""Interrupted comparisons: what is finished is kept, and only under the very same question."""

from __future__ import annotations

import errno
import json
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_comparison import FAKE_WORKER
from PIL import Image

from vggt_deploy.artifact import locked
from vggt_deploy.compare import rows
from vggt_deploy.compare.environment import describe_environment
from vggt_deploy.compare.state import Folder, differences, timed_cpu
from vggt_deploy.errors import ArtifactError, CompareError


def spawn(fake: Any) -> subprocess.Popen[bytes]:
    """The same comparison as `fake.run()`, in a process that can be killed."""
    worker = FAKE_WORKER
    script = (
        "from rich.console import Console\n"
        "from vggt_deploy.compare import compare\n"
        f"compare('fake-model', {str(fake.images)!r}, output_dir={str(fake.folder)!r},\n"
        "        schemes='fp32,int8_pc_sym,int4_g128', width=56, threads=1, timeout_s=30.0,\n"
        "        console=Console(quiet=True),\n"
        f"        worker_command=({sys.executable!r}, {str(worker)!r}, {str(fake.plan_path)!r}))\n"
    )
    return subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE)


def comparable(report: Any) -> list[dict[str, Any]]:
    """Rows without what names a process."""
    return [asdict(row) | {"command": None} for row in report.rows]


def test_killed_half_way_and_resumed_gives_the_same_rows(fake: Any, tmp_path: Path) -> None:
    whole = fake.run(output_dir=tmp_path / "whole")
    fake.calls()
    fake.plan({"onnxruntime/int8_pc_sym": "signal parent"})
    process = spawn(fake)
    assert process.wait(timeout=60) == -signal.SIGKILL
    assert len(list((fake.folder / "rows").glob("*.json"))) == 4
    fake.plan({})
    fake.calls()
    resumed = fake.run(resume=True)
    assert comparable(resumed) == comparable(whole)
    measured = [call for call in fake.calls() if call.startswith("measure")]
    assert measured == ["measure onnxruntime/int8_pc_sym", "measure onnxruntime/int4_g128"]


def test_interrupt_ends_the_worker_and_keeps_finished_rows(fake: Any) -> None:
    fake.plan({"torch/int4_g128": "hang"})
    process = spawn(fake)
    log = fake.folder / "logs" / "torch-int4_g128.log"
    deadline = time.monotonic() + 60.0
    while not (log.exists() and log.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    job = fake.folder / "work" / "torch-int4_g128.job.json"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert b"KeyboardInterrupt" in said
    running = [
        pid
        for pid in Path("/proc").iterdir()
        if pid.name.isdigit() and str(job).encode() in _command_line(pid)
    ]
    assert running == []
    assert len(list((fake.folder / "rows").glob("*.json"))) == 2


def _command_line(pid: Path) -> bytes:
    try:
        return (pid / "cmdline").read_bytes()
    except OSError:
        return b""


def test_resume_repeats_failed_rows_and_keeps_refused_ones(fake: Any) -> None:
    fake.plan({"torch/int8_pc_sym": "killed"})
    first = fake.run(schemes="int8_pc_sym,bf16", runtimes="torch,onnxruntime")
    assert [row.status for row in first.rows] == ["done", "failed", "done", "done", "refused"]
    fake.plan({})
    fake.calls()
    again = fake.run(schemes="int8_pc_sym,bf16", runtimes="torch,onnxruntime", resume=True)
    assert [row.status for row in again.rows] == ["done", "done", "done", "done", "refused"]
    assert fake.calls() == ["identify model", "measure torch/int8_pc_sym"]


def test_a_row_whose_outputs_are_gone_is_measured_again(fake: Any) -> None:
    fake.run(runtimes="torch")
    (fake.folder / "outputs" / "torch-int8_pc_sym.npz").unlink()
    fake.calls()
    fake.run(runtimes="torch", resume=True)
    assert fake.calls() == ["identify model", "measure torch/int8_pc_sym"]


@pytest.mark.parametrize(
    "change, named",
    [
        ({"repeats": 6}, "repeats: 5 -> 6"),
        ({"threads": 2}, "threads: 1 -> 2"),
        ({"width": 70}, "images.width"),
        ({"max_images": 2}, "images.frames: 3 -> 2"),
        ({"schemes": "fp32,int8_pc_sym"}, 'variants: 6 entries -> 4: without "torch/int4_g128"'),
        ({"exclude": ("camera_head.*",)}, "layers.exclude"),
        ({"outputs": ("depth",)}, "outputs"),
        ({"mode": "pad"}, "images.mode"),
    ],
)
def test_another_question_is_refused(fake: Any, change: dict[str, Any], named: str) -> None:
    fake.run()
    fake.calls()
    with pytest.raises(CompareError, match="another question") as caught:
        fake.run(resume=True, **change)
    assert named in caught.value.message
    assert not any(call.startswith("measure") for call in fake.calls())


def test_another_picture_is_another_question(fake: Any) -> None:
    fake.run(runtimes="torch", schemes="fp32")
    Image.fromarray(np.zeros((42, 56, 3), dtype=np.uint8)).save(fake.images / "img1.png")
    with pytest.raises(CompareError, match=r"scenes\[0\]\.files\[1\]\.sha256"):
        fake.run(runtimes="torch", schemes="fp32", resume=True)


def test_another_time_limit_is_the_same_question(fake: Any) -> None:
    fake.run(runtimes="torch")
    fake.calls()
    fake.run(runtimes="torch", resume=True, timeout_s=77.0)
    assert fake.calls() == ["identify model"]


def test_a_folder_with_content_is_refused(fake: Any) -> None:
    fake.run(runtimes="torch", schemes="fp32")
    with pytest.raises(CompareError, match="not empty") as caught:
        fake.run(runtimes="torch", schemes="fp32")
    assert "--resume" in caught.value.fix
    with pytest.raises(CompareError, match="contradict"):
        fake.run(resume=True, overwrite=True)


def test_overwrite_begins_again_and_touches_nothing_else(fake: Any) -> None:
    fake.run(runtimes="torch")
    (fake.folder / "notes.txt").write_text("mine")
    fake.calls()
    fake.run(runtimes="torch", schemes="fp32", overwrite=True)
    assert fake.calls() == ["identify model", "measure torch/fp32"]
    assert (fake.folder / "notes.txt").read_text() == "mine"
    assert len(list((fake.folder / "rows").glob("*.json"))) == 1


@pytest.mark.parametrize("flag", ["resume", "overwrite"])
def test_a_folder_that_is_no_comparison_is_never_touched(fake: Any, flag: str) -> None:
    fake.folder.mkdir()
    (fake.folder / "depth").mkdir()
    (fake.folder / "depth" / "mine.png").write_text("mine")
    with pytest.raises(CompareError, match="no comparison was begun"):
        fake.run(**{flag: True})
    assert (fake.folder / "depth" / "mine.png").read_text() == "mine"


def test_a_folder_in_use_is_refused(fake: Any) -> None:
    with locked(fake.folder), pytest.raises(ArtifactError, match="another process"):
        fake.run()


def test_a_damaged_row_is_named(fake: Any) -> None:
    fake.run(runtimes="torch", schemes="fp32")
    (fake.folder / "rows" / "torch-fp32.json").write_text("{")
    with pytest.raises(CompareError, match=r"torch-fp32\.json"):
        fake.run(runtimes="torch", schemes="fp32", resume=True)


def test_a_full_disk_loses_nothing(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(rows, "save_row", full)
        with pytest.raises(CompareError, match="is full") as caught:
            fake.run(runtimes="torch")
    assert "--resume" in caught.value.fix
    assert [row.status for row in fake.run(runtimes="torch", resume=True).rows] == ["done"] * 3


def test_the_cpu_that_a_comparison_is_timed_on(fake: Any) -> None:
    folder = Folder(fake.folder)
    assert timed_cpu(folder) is None
    fake.run(runtimes="torch", schemes="fp32")
    assert timed_cpu(folder) == describe_environment().cpu
    question = fake.folder / "question.json"
    for other in ("{}", "[]", '{"machine": null}', '{"machine": {"cpu": 1}}'):
        question.write_text(other)
        assert timed_cpu(folder) is None
        with pytest.raises(CompareError, match="another question"):
            fake.run(runtimes="torch", schemes="fp32", resume=True)
    question.write_text("{")
    with pytest.raises(CompareError, match="can't be read"):
        timed_cpu(folder)


def test_differences_name_the_place() -> None:
    old = {"a": {"b": [1, 2]}, "c": 1}
    assert list(differences(old, old)) == []
    assert list(differences(old, {"a": {"b": [1, 3]}, "d": 1})) == [
        "a.b[1]: 2 -> 3",
        "c: 1 -> null",
        "d: null -> 1",
    ]
    assert json.dumps(old)
