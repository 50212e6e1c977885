"""The measuring itself: a known allocation is seen, a bad end is a row, words fit the numbers."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # bench is no part of the package

from bench.process import Settings, StepResult, run_step
from bench.report import Finding, table
from bench.rows import BY_LABEL, PLAIN_FP32, ROWS, choose, disk_bytes, to_make
from vggt_deploy.errors import UsageError

# Each step in a fresh interpreter, as the benchmark runs its own.
STEPS = """
import os, signal, sys
from bench.worker import serve

def hold(count):
    block = bytearray(count)
    block[::4096] = b"x" * len(block[::4096])
    return {"bytes": len(block)}

def fail():
    raise RuntimeError("ended on purpose")

def crash():
    os.kill(os.getpid(), signal.SIGSEGV)

def hang():
    signal.pause()

steps = {"hold": hold, "fail": fail, "crash": crash, "hang": hang}
if __name__ == "__main__":
    sys.exit(serve(steps, sys.argv[1:]))
"""


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    (tmp_path / "steps_of_the_test.py").write_text(STEPS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return Settings(tmp_path, threads=1, timeout_s=60.0, module="steps_of_the_test")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_the_peak_is_the_childs_own(settings: Settings) -> None:
    ballast = bytearray(300 << 20)
    ballast[::4096] = b"x" * len(ballast[::4096])  # of the parent: must not show up in the child
    count = 200 << 20
    empty = run_step("hold", "empty", {"count": 0}, settings)
    full = run_step("hold", "full", {"count": count}, settings)
    assert empty.ok
    assert full.ok
    assert full.answer == {"bytes": count}
    assert empty.peak_rss_bytes is not None
    assert full.peak_rss_bytes is not None
    assert empty.peak_rss_bytes < 100 << 20
    assert full.peak_rss_bytes - empty.peak_rss_bytes == pytest.approx(count, rel=0.1)


def test_a_step_that_fails_tells_why_and_its_peak(settings: Settings) -> None:
    result = run_step("fail", "fail", {}, settings)
    assert not result.ok
    assert "RuntimeError: ended on purpose" in str(result.error)
    assert result.peak_rss_bytes


def test_a_step_that_crashes_or_hangs_is_an_error(settings: Settings) -> None:
    crashed = run_step("crash", "crash", {}, settings)
    assert "SIGSEGV" in str(crashed.error)
    assert crashed.peak_rss_bytes is None
    hung = run_step("hang", "hang", {}, dataclasses.replace(settings, timeout_s=2.0))
    assert "time limit" in str(hung.error)


def ran(label: str, seconds: float) -> Finding:
    answer = {"load_s": 0.1, "samples_s": [seconds] * 3, "peak_rss_bytes": 1 << 30}
    result = StepResult("run", seconds, 1 << 30, None, answer)
    return Finding(BY_LABEL[label], runs=[result])


def test_the_table_names_what_failed_and_what_is_slower() -> None:
    failed = Finding(BY_LABEL["int4_g128"], error="out of | memory")
    rows = [ran(PLAIN_FP32, 2.0), ran("int8_pc_sym", 3.0), ran("int8_pc_sym+dynamic", 1.0), failed]
    _, rule, _, slow, fast, bad = table(rows).splitlines()
    assert set(rule) == set("|-: ")
    assert "SLOWER than FP32 in ONNX Runtime (0.67 x)" in slow
    assert "0.67 x" in slow
    assert "2.00 x" in fast
    assert "FP32 in" not in fast
    assert "FAILED: out of / memory" in bad
    assert len({line.count("|") for line in (rule, slow, fast, bad)}) == 1


def test_a_row_brings_what_it_is_made_from() -> None:
    chosen = choose("plain_int4_b128, torch_fp32")
    assert [row.label for row in chosen] == ["torch_fp32", "plain_int4_b128"]
    assert [row.label for row in to_make(chosen)] == [PLAIN_FP32, "plain_int4_b128"]
    assert disk_bytes(chosen, 1 << 30) < disk_bytes(ROWS, 1 << 30)
    with pytest.raises(UsageError, match="no such row: int9"):
        choose("fp32,int9")
