"""A sweep of 8 variants over 3 scenes, under everything that ends one half way.

Whatever happens to one variant, to the sweep or to the disk: what was finished stays, and the same
question asked again with `resume` ends with the report of a sweep that nothing happened to, byte
for byte but for the time of its making.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_comparison import FAKE_WORKER, Fake
from rich.console import Console

from vggt_deploy.compare import ComparisonReport, Row, asking, compare
from vggt_deploy.compare.processes import Outcome
from vggt_deploy.compare.report import REPORT_NAME, SUMMARY_NAME
from vggt_deploy.data.eth3d import write_scene
from vggt_deploy.data.synthetic import render_views

SCHEMES = "fp32,int8_pc_sym,int4_g128,mixed"
LABELS = [
    f"{runtime}/{name}" for runtime in ("torch", "onnxruntime") for name in SCHEMES.split(",")
]
PASSING = ("created",)  # all that may differ between two reports of one question


@pytest.fixture(scope="session")
def three_scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("three")
    for seed in (1_000_003, 1_000_004, 1_000_005):
        write_scene(folder / f"scene_{seed}", render_views(seed, views=3, height=42, width=56))
    return folder


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory, three_scenes: Path) -> Fake:
    """The sweep, in one folder for all tests of this module: reports name their folder."""
    folder = tmp_path_factory.mktemp("load")
    return Fake(folder / "out", three_scenes, folder / "plan.json", pytest.MonkeyPatch())


@pytest.fixture(scope="module")
def untouched(load: Fake) -> dict[str, Any]:
    """What a sweep leaves that ran through."""
    load.plan({})
    sweep(load)
    return describe(load.folder)


@pytest.fixture(autouse=True)
def fresh(load: Fake) -> None:
    """Nothing is there, and every variant works."""
    shutil.rmtree(load.folder, ignore_errors=True)
    load.plan({})
    load.calls()


def sweep(load: Fake, **changes: Any) -> ComparisonReport:
    """In this process."""
    request = {"scenes": [load.images], "schemes": SCHEMES} | changes
    return replace(load, images=None).run(**request)


def spawn(load: Fake, *, resume: bool) -> subprocess.Popen[bytes]:
    """The same in a process that can be killed."""
    code = f"""
        from rich.console import Console
        from vggt_deploy.compare import compare
        compare(
            "fake-model", scenes=[{str(load.images)!r}], output_dir={str(load.folder)!r},
            schemes={SCHEMES!r}, width=56, threads=1, timeout_s=300.0, resume={resume},
            console=Console(quiet=True),
            worker_command=({sys.executable!r}, {str(FAKE_WORKER)!r}, {str(load.plan_path)!r}),
        )
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.Popen(command, stderr=subprocess.PIPE)


def describe(folder: Path) -> dict[str, Any]:
    """All that a sweep leaves, without the time of its making."""
    report = json.loads((folder / REPORT_NAME).read_text())
    created = [report.pop(name) for name in PASSING]
    summary = (folder / SUMMARY_NAME).read_text()
    for value in created:
        summary = summary.replace(value, "")
    outputs = {path.name: path.read_bytes() for path in (folder / "outputs").iterdir()}
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    return {
        "report": json.dumps(report, indent=1),
        "summary": summary,
        "outputs": outputs,
        "files": files,
    }


def rows(folder: Path) -> dict[str, dict[str, Any]]:
    """The rows that a sweep has kept, by variant; each must be whole."""
    found = [json.loads(path.read_text()) for path in (folder / "rows").glob("*.json")]
    return {f"{row['runtime']}/{row['scheme']}": row for row in found}


def test_killed_again_and_again_and_resumed_it_ends_with_the_same_report(
    untouched: dict[str, Any], load: Fake
) -> None:
    """SIGKILL of the sweep while it measures the reference, exports, and measures a variant."""
    kept = []
    for number, label in enumerate(("torch/fp32", "export/int8_pc_sym", "onnxruntime/int4_g128")):
        load.plan({label: "signal parent"})
        process = spawn(load, resume=number > 0)
        _, said = process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL, said.decode()
        kept.append(len(rows(load.folder)))
    assert kept == [0, 5, 6]
    assert list((load.folder / "outputs").glob(".*.tmp"))  # what was being written is left
    load.plan({})
    load.calls()
    sweep(load, resume=True)
    measured = [call for call in load.calls() if call.startswith("measure")]
    assert measured == [f"measure {label}" for label in LABELS[6:]]
    assert describe(load.folder) == untouched


def test_variants_that_crash_hang_or_eat_memory_leave_the_rest_intact(
    untouched: dict[str, Any], load: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = {
        "torch/int8_pc_sym": "crash",
        "torch/int4_g128": "vanish",
        "torch/mixed": "eat memory",
        "onnxruntime/fp32": "hang",
        "export/int8_pc_sym": "killed",
        "onnxruntime/mixed": "truncated outputs",
    }
    words = {
        "torch/int8_pc_sym": "SIGSEGV",
        "torch/int4_g128": "left no answer",
        "torch/mixed": "MemoryError",
        "onnxruntime/fp32": "time limit",
        "onnxruntime/int8_pc_sym": "SIGKILL",
        "onnxruntime/mixed": "can't be read",
    }
    load.plan(plan)
    run = asking.run_process

    def limited(command: Sequence[str], **rest: Any) -> Outcome:
        """Only the one that hangs is short of time, however busy this machine is."""
        hangs = Path(command[-1]).name.startswith("onnxruntime-fp32.")
        return run(command, **rest | ({"timeout_s": 1.0} if hangs else {}))

    with monkeypatch.context() as patch:
        patch.setattr(asking, "run_process", limited)
        report = sweep(load, timeout_s=300.0)
    failed = {row.label: row.failure.message for row in report.rows if row.failure is not None}
    assert failed.keys() == words.keys()
    assert [label for label in words if words[label] not in failed[label]] == []
    before = {row["label"]: row for row in json.loads(untouched["report"])["rows"]}
    for row in json.loads((load.folder / REPORT_NAME).read_text())["rows"]:
        if row["label"] not in failed:
            same = {"ratios": None}  # those name an FP32 that failed here
            assert row | same == before[row["label"]] | same
    load.plan({})
    sweep(load, resume=True)
    assert describe(load.folder) == untouched


def test_two_sweeps_in_one_folder_are_refused(load: Fake) -> None:
    load.plan({"torch/int4_g128": "hang"})
    first = spawn(load, resume=False)
    try:
        deadline = time.monotonic() + 60.0
        while len(rows(load.folder)) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        second = spawn(load, resume=True)
        _, said = second.communicate(timeout=60)
        assert second.returncode == 1
        assert b"is being written by another process" in said
        assert first.poll() is None
    finally:
        first.kill()
        first.communicate(timeout=30)
    assert len(rows(load.folder)) == 2


def test_a_row_whose_outputs_were_damaged_since_is_measured_again(
    untouched: dict[str, Any], load: Fake
) -> None:
    sweep(load)
    for name in ("torch-fp32.001.npz", "onnxruntime-mixed.npz"):
        path = load.folder / "outputs" / name
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content)
    load.calls()
    sweep(load, resume=True)
    measured = [call for call in load.calls() if call.startswith("measure")]
    assert measured == ["measure torch/fp32", "measure onnxruntime/mixed"]
    assert describe(load.folder) == untouched


@pytest.fixture(scope="module")
def small_disk() -> Callable[..., list[str]]:
    """`small_disk(folder, command)`: the command, run where the folder is a disk of 24 MB."""
    mount = 'mount -t tmpfs -o size=24m none "$0" && exec "$@"'
    inside = ["unshare", "--user", "--map-root-user", "--mount"]

    def command(folder: Path, *words: str) -> list[str]:
        return [*inside, "sh", "-c", mount, str(folder), *words]

    try:
        tried = subprocess.run(command(Path("/mnt"), "true"), capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("needs unshare, of util-linux")
    if tried.returncode != 0:
        pytest.skip(f"may not mount a small disk here: {tried.stderr.decode().strip()}")
    return command


@pytest.mark.parametrize(
    "free, least, most",
    [
        pytest.param(30_000, 0, 0, marks=pytest.mark.slow),
        (1_200_000, 1, 3),
        (3_500_000, 4, 4),
    ],
)
def test_a_full_disk_leaves_what_was_finished_and_resumes(
    load: Fake,
    small_disk: Callable[..., list[str]],
    tmp_path: Path,
    free: int,
    least: int,
    most: int,
) -> None:
    """Too small for the pictures; for the outputs of all variants; for an artifact of 4 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    script = Path(FAKE_WORKER).with_name("small_disk.py")
    words = (sys.executable, str(script), str(disk), str(load.images), str(load.plan_path))
    done = subprocess.run(
        small_disk(disk, *words, str(free)), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert f"the disk of {disk / 'out'} is full" in found["ended"]
    assert "--resume" in found["ended"]
    failed = {name: how for name, how in found["kept"].items() if how != "done"}
    assert [how for how in failed.values() if "No space left on device" not in how] == []
    assert least <= len(found["kept"]) - len(failed) <= most
    assert found["resumed"] == dict.fromkeys(LABELS, "done")


@pytest.mark.slow
def test_real_variants_killed_half_way_compute_the_same(three_scenes: Path, tmp_path: Path) -> None:
    """The same with real workers: SIGKILL as soon as half of the rows are there."""
    request: dict[str, Any] = {
        "scenes": [three_scenes],
        "schemes": SCHEMES,
        "width": 56,
        "threads": 1,
        "warmup": 0,
        "repeats": 1,
        "console": Console(quiet=True),
    }
    whole = compare("random:vggt-tiny", output_dir=tmp_path / "whole", **request)
    code = f"""
        from rich.console import Console
        from vggt_deploy.compare import compare
        compare(
            "random:vggt-tiny", scenes=[{str(three_scenes)!r}], schemes={SCHEMES!r}, width=56,
            output_dir={str(tmp_path / "out")!r}, threads=1, warmup=0, repeats=1,
            console=Console(quiet=True),
        )
    """
    killed = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)])
    while len(rows(tmp_path / "out")) < 4 and killed.poll() is None:
        time.sleep(0.05)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    assert len(rows(tmp_path / "out")) < len(LABELS)
    resumed = compare("random:vggt-tiny", output_dir=tmp_path / "out", resume=True, **request)
    assert [row.label for row in resumed.rows if row.status == "done"] == LABELS
    assert [computed(row) for row in resumed.rows] == [computed(row) for row in whole.rows]
    for path in (tmp_path / "whole" / "outputs").iterdir():
        assert path.read_bytes() == (tmp_path / "out" / "outputs" / path.name).read_bytes()


def computed(row: Row) -> Row:
    """What a row says without what was timed or weighed."""
    return replace(row, measured=None, export=None, command=())
