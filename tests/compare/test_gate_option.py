"""`compare --gate`: gates are read first, held against the report last, and decide the exit."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_comparison import FAKE_WORKER
from typer.testing import CliRunner

import vggt_deploy.api as api
from vggt_deploy.cli.app import app
from vggt_deploy.data.eth3d import write_scene
from vggt_deploy.data.synthetic import render_views
from vggt_deploy.errors import GateError

GATES = """
[protocol]
model = "fake-model"
scenes = 1
views = 2
height = 42
width = 56

[most.int8_pc_sym]
abs_rel = {limit}
"""


@pytest.fixture
def call(fake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`vggt-deploy compare` on one rendered scene, with fake workers."""
    write_scene(tmp_path / "scene", render_views(1_000_001, views=2, height=42, width=56))
    genuine = api.compare

    def with_fakes(model: str, images: Path | None, **request: Any) -> Any:
        worker = FAKE_WORKER
        command = (sys.executable, str(worker), str(fake.plan_path))
        return genuine(model, images, **request, worker_command=command)

    monkeypatch.setattr(api, "compare", with_fakes)
    monkeypatch.setattr("vggt_deploy.compare.pipeline.draw", lambda *_: None)

    def run(*options: str) -> Any:
        arguments = ["--scenes", str(tmp_path / "scene"), "-o", str(fake.folder)]
        asked = ["--model", "fake-model", "--schemes", "int8_pc_sym", "--runtimes", "torch"]
        size = ["--width", "56", "--threads", "1", "--repeats", "1"]
        return CliRunner().invoke(app, ["compare", *arguments, *asked, *size, *options])

    return run


def gates(tmp_path: Path, limit: float) -> str:
    path = tmp_path / "gates.toml"
    path.write_text(GATES.format(limit=limit))
    return str(path)


def test_a_gate_that_holds(call: Callable[..., Any], tmp_path: Path) -> None:
    result = call("--gates", gates(tmp_path, 10.0))
    assert result.exit_code == 0
    assert "gate passed" in result.output
    assert "Gate\n====" in result.output


def test_a_gate_that_is_broken(call: Callable[..., Any], fake: Any, tmp_path: Path) -> None:
    """The twin: NaN in the output, and the report is there all the same."""
    fake.plan({"torch/int8_pc_sym": "nan"})
    result = call("--gate", "--gates", gates(tmp_path, 10.0))
    assert result.exit_code == GateError.exit_code == 1
    assert "gate not passed" in result.stderr
    assert (fake.folder / "comparison_report.json").is_file()


def test_without_the_option_nothing_is_gated(call: Callable[..., Any], fake: Any) -> None:
    fake.plan({"torch/int8_pc_sym": "nan"})
    result = call()
    assert result.exit_code == 0
    assert "Gate\n====" not in result.output


def test_a_wrong_file_stops_before_anything_starts(
    call: Callable[..., Any], fake: Any, tmp_path: Path
) -> None:
    (tmp_path / "gates.toml").write_text("[protocol]\nmodel = 3\n")
    result = call("--gates", str(tmp_path / "gates.toml"))
    assert result.exit_code == 2
    assert fake.calls() == []
    assert not fake.folder.exists()
