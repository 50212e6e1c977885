"""How a process ends, and what is said about it."""

from __future__ import annotations

import sys
import textwrap
import time
from pathlib import Path

import pytest

from vggt_deploy.compare.processes import Outcome, run_process


def start(tmp_path: Path, code: str, timeout_s: float = 20.0) -> Outcome:
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return run_process(
        command, log=tmp_path / "log", timeout_s=timeout_s, environment={"OMP_NUM_THREADS": "3"}
    )


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def ends(pid: int) -> bool:
    """Whether a process that was killed is gone within ten seconds."""
    deadline = time.monotonic() + 10.0
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not alive(pid)


def test_a_good_end(tmp_path: Path) -> None:
    outcome = start(tmp_path, "import os; print('threads', os.environ['OMP_NUM_THREADS'])")
    assert outcome.ok
    assert outcome.tail == ("threads 3",)


@pytest.mark.parametrize(
    "code, words",
    [
        ("import os; os.kill(os.getpid(), 11)", "signal 11 (SIGSEGV)"),
        ("import os; os.kill(os.getpid(), 9)", "ran out of memory"),
        ("raise SystemExit(4)", "ended with code 4"),
        ("import nothing_of_that_name", "ModuleNotFoundError"),
    ],
)
def test_bad_ends_are_told_apart(tmp_path: Path, code: str, words: str) -> None:
    outcome = start(tmp_path, code)
    assert not outcome.ok
    assert words in outcome.describe()


def test_time_limit(tmp_path: Path) -> None:
    outcome = start(tmp_path, "import time; print('begun', flush=True); time.sleep(60)", 1.0)
    assert not outcome.ok
    assert "time limit" in outcome.describe()
    assert outcome.seconds < 10.0
    assert outcome.tail == ("begun",)


def test_grandchildren_end_with_the_worker(tmp_path: Path) -> None:
    code = """
        import subprocess, sys, time
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        print(child.pid, flush=True)
        time.sleep(60)
    """
    outcome = start(tmp_path, code, 2.0)
    assert ends(int(outcome.tail[0]))


def test_only_the_last_lines_are_kept(tmp_path: Path) -> None:
    outcome = start(tmp_path, "for i in range(10_000): print('line', i)")
    assert len(outcome.tail) == 20
    assert outcome.tail[-1] == "line 9999"


@pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_PDEATHSIG")
def test_a_worker_dies_with_its_parent(tmp_path: Path) -> None:
    worker = (
        "import sys, time; from vggt_deploy.compare.processes import die_with_parent; "
        "die_with_parent(int(sys.argv[1])); print('ready', flush=True); time.sleep(60)"
    )
    parent = f"""
        import os, signal, subprocess, sys
        child = subprocess.Popen(
            [sys.executable, "-c", {worker!r}, str(os.getpid())],
            stdout=subprocess.PIPE, start_new_session=True,
        )
        child.stdout.readline()
        print(child.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    outcome = start(tmp_path, parent)
    assert ends(int(outcome.tail[0]))


def test_a_worker_whose_parent_is_gone_ends(tmp_path: Path) -> None:
    code = """
        import os
        from vggt_deploy.compare.processes import die_with_parent
        die_with_parent(os.getpid())  # we are not our own parent
    """
    outcome = start(tmp_path, code)
    assert outcome.returncode == 1
    assert "is gone" in outcome.tail[-1]


@pytest.mark.skipif(not Path("/proc/self/oom_score_adj").exists(), reason="needs Linux")
def test_a_worker_ends_before_the_sweep_when_memory_runs_out(tmp_path: Path) -> None:
    """What the kernel goes by when it chooses: the score of the worker, and of who started it."""
    code = """
        import os
        from pathlib import Path
        from vggt_deploy.compare.processes import die_with_parent
        die_with_parent(os.getppid())
        for process in ("self", str(os.getppid())):
            print(Path(f"/proc/{process}/oom_score_adj").read_text().strip())
    """
    worker, ours = map(int, start(tmp_path, code).tail)
    assert worker == 1000
    assert ours == int(Path("/proc/self/oom_score_adj").read_text()) < worker
