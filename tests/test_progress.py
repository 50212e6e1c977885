"""What a terminal shows of long work."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from vggt_deploy import progress


def last_frame(console: Console) -> dict[str, str]:
    """Stage -> the rest of its line, as the terminal was left."""
    assert isinstance(console.file, io.StringIO)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())
    lines = [line.split("\r")[-1].strip() for line in plain.splitlines()]
    return {line.split()[0]: line for line in lines if line}


def test_a_stage_that_only_began_ends_with_the_next() -> None:
    """Its clock must not go on through the stages after it."""
    now = [0.0]
    console = Console(file=io.StringIO(), force_terminal=True, width=80, get_time=lambda: now[0])
    with progress._bars(console) as report:
        report("hashes", 0, 0)
        now[0] = 2.0
        report("build", 0, 4)
        now[0] = 60.0
        report("build", 3, 4)
        report("proof", 0, 0)
        now[0] = 61.0
    shown = last_frame(console)
    assert shown["hashes"].endswith("0:00:02")
    assert shown["proof"].endswith("0:00:01")
    assert shown["build"].endswith("0:00:59")  # three of four: not finished


def test_a_pipe_gets_one_line_a_stage(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.shown() as report:
        for done in range(3):
            report("weights", done, 3)
        report("verify", 0, 0)
    assert capsys.readouterr().err == "weights ...\nverify ...\n"
