"""`vggt-deploy search`: what the words become, and what is refused before anything is read."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from vggt_deploy.cli.app import app
from vggt_deploy.search import pipeline
from vggt_deploy.search.records import Budgets

BASE = ["search", "--sensitivity", "table", "--scenes", "scenes", "-o", "out"]


def test_words_become_a_request(monkeypatch):
    seen = {}

    def stand_in(model, **request):
        seen.update(request, model=model)
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "search", stand_in)
    words = ["--max-size", "1.5MB", "--max-drop", "auc30=0.5", "--max-drop", "pose_deg=0.1",
             "--min-speedup", "2.5", "--precision", "fp16", "--costs", "kept.json",
             "--model", "vggt-nano", "--front", "0", "--rounds", "3"]  # fmt: skip
    assert CliRunner().invoke(app, [*BASE, *words]).exit_code == 130
    assert seen["budgets"] == Budgets(1_500_000, {"auc30": 0.5, "pose_deg": 0.1}, 2.5)
    assert (seen["model"], seen["precision"], str(seen["costs"])) == (
        "vggt-nano",
        "fp16",
        "kept.json",
    )
    assert (seen["front_points"], seen["rounds"], seen["minimise"]) == (0, 3, "output_mse")
    CliRunner().invoke(app, [*BASE, "--max-size", "1MB"])
    assert (seen["costs"], seen["precision"]) == (None, "fp32")


@pytest.mark.parametrize(
    "words,problem",
    [
        (["--max-size", "much"], "is no size"),
        (["--max-drop", "speed=1"], "unknown measure"),
        (["--max-size", "1MB", "--precision", "fp8"], "unknown precision"),
        (["--max-size", "1MB", "--mode", "stretch"], "unknown mode"),
    ],
)
def test_words_that_are_refused(words, problem):
    result = CliRunner().invoke(app, [*BASE, *words])
    assert result.exit_code == 2
    assert problem in result.output
    assert "fix:" in result.output


def test_a_table_that_is_not_there(tmp_path):
    words = ["search", "--sensitivity", str(tmp_path / "absent"), "--scenes", str(tmp_path),
             "-o", str(tmp_path / "out"), "--max-size", "1MB"]  # fmt: skip
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 1
    assert "there is no" in result.output
    assert not (tmp_path / "out").exists()
