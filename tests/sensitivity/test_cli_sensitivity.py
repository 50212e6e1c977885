"""The commands: what they refuse before any work, and what they print."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from vggt_deploy.cli import app
from vggt_deploy.records import ModelRecord
from vggt_deploy.sensitivity.bisect import BisectResult
from vggt_deploy.sensitivity.cure import Cure
from vggt_deploy.sensitivity.places import PlaceErrors
from vggt_deploy.sensitivity.table import SCHEMA, Entry, SensitivityTable
from vggt_deploy.sensitivity.text import print_bisect, print_sensitivity

PLACES = (
    PlaceErrors("aggregator.frame_blocks.0", 0.01, 0.01, 0.02),
    PlaceErrors("aggregator.frame_blocks.1", 0.9, 0.01, 0.5),
)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["sensitivity", "--by", "stack", "--images", "x"], "unknown kind of unit"),
        (["sensitivity", "--height", "30", "--images", "x"], "multiple of 14"),
        (["sensitivity"], "no pictures are given"),
        (["sensitivity", "--images", "x", "--formats", ","], "--formats is empty"),
        (["sensitivity", "--images", "x", "--mode", "stretch"], "unknown mode"),
    ],
)
def test_wrong_usage_is_told_at_once(tmp_path: Path, arguments: list[str], words: str) -> None:
    output = tmp_path / "out"
    result = CliRunner().invoke(app, [*arguments, "--model", "random:vggt-tiny", "-o", str(output)])
    assert result.exit_code == 2
    assert words in result.output
    assert "fix:" in result.output
    assert not output.exists()


def test_bisect_wants_an_artifact_and_pictures(tmp_path: Path) -> None:
    runner = CliRunner()
    assert runner.invoke(app, ["bisect", str(tmp_path)]).exit_code == 2
    result = runner.invoke(app, ["bisect", str(tmp_path), "--images", str(tmp_path)])
    assert result.exit_code == 1
    assert "manifest.json" in result.output


def _printed(result: BisectResult) -> str:
    out = StringIO()
    print_bisect(result, "artifact", Console(file=out, width=160))
    return out.getvalue()


def test_the_cure_is_printed_as_an_option() -> None:
    cure = Cure(("aggregator.frame_blocks.1.attn.proj",), 0.4, 0.02, 0.01)
    place = "aggregator.frame_blocks.1"
    text = _printed(BisectResult("int8_pc_sym", 3, 2.0, "damaged", place, 0.41, PLACES, cure=cure))
    assert "aggregator.frame_blocks.1 <--" in text
    assert "aggregator.frame_blocks.0 <--" not in text
    assert "--exclude 'aggregator.frame_blocks.1.attn.proj'" in text
    assert "0.02 off instead of 0.4" in text
    trained = BisectResult("int8_pc_sym+qat", 3, 2.0, "scheme", place, 0.41, PLACES, cure=cure)
    assert "train again: vggt-deploy qat ... --exclude" in _printed(trained)
    assert "train again" not in text


def test_a_sound_artifact_is_told_so_without_an_option() -> None:
    text = _printed(BisectResult("int8_pc_sym", 3, 2.0, "sound", None, 0.01, PLACES[:1]))
    assert "sound: every block does what its scheme says" in text
    assert "--exclude" not in text
    other = BisectResult("x", 3, 2.0, "scheme", PLACES[1].place, 0.4, PLACES, no_cure="why not")
    assert "no exclusion cures it: why not" in _printed(other)


def test_the_units_that_cost_most_come_first() -> None:
    entries = (
        Entry("cheap", ("a",), "int8_pc_sym", 0.1, {"output_mse": 1e-6, "auc3": 0.25}),
        Entry("dear", ("b",), "int8_pc_sym", 0.2, {"output_mse": 1e-3, "auc3": -0.5}),
        Entry("unmeasured", ("c",), "int8_pc_sym", 0.3),
    )
    record = ModelRecord("m", "vggt-tiny")
    table = SensitivityTable(
        SCHEMA, record, ("one",), "truth", "block", 28, 42, "float", {"auc3": 1.0}, entries
    )
    out = StringIO()
    print_sensitivity(table, "folder", Console(file=out, width=160))
    text = out.getvalue()
    assert text.index("dear") < text.index("cheap")
    assert "unmeasured" not in text
    assert "2 of 3 entries measured" in text
    assert "-0.5" in text
