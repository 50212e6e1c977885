"""All files of a report: after a comparison, and written again, with what is to be shown too."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from vggt_deploy.artifact import locked
from vggt_deploy.cli import app
from vggt_deploy.compare import read_report
from vggt_deploy.compare.report import FILES, SENSITIVITY_CSV_NAME, SENSITIVITY_NAME
from vggt_deploy.compare.state import Folder
from vggt_deploy.errors import ArtifactError, CompareError, DeployError, UsageError
from vggt_deploy.records import ModelRecord
from vggt_deploy.report import write
from vggt_deploy.report.sensitivity import keep_sensitivity
from vggt_deploy.report.write import rewrite
from vggt_deploy.sensitivity.table import CSV_NAME, TABLE_NAME, Entry, SensitivityTable, write_table

ALWAYS = set(FILES) - {SENSITIVITY_NAME, SENSITIVITY_CSV_NAME}
FAKE_SHA256 = "0" * 64  # of the fake worker's weights


def written(folder: Path) -> set[str]:
    """Files beside the folders of a comparison, without the question."""
    found = {path.name for path in folder.iterdir() if path.is_file()}
    return {name for name in found if not name.startswith(".")} - {"question.json"}


def table_of(sha256: str) -> SensitivityTable:
    """A table with one entry, of the weights with that hash."""
    return SensitivityTable(
        schema=1,
        model=ModelRecord("fake-model", "vggt-tiny", sha256=sha256),
        scenes=("one",),
        reference="outputs",
        by="block",
        height=42,
        width=56,
        activations="float",
        baseline={},
        entries=(Entry("aggregator.frame_blocks.0", ("a",), "int4_g128", local_error=0.125),),
    )


def test_a_comparison_writes_every_file_and_overwrite_removes_them(fake: Any) -> None:
    fake.run(draw=True)
    assert written(fake.folder) == ALWAYS
    page = (fake.folder / "report.html").read_text()
    assert "onnxruntime/int4_g128" in page
    (fake.folder / "report.html").write_text("old")
    fake.run(overwrite=True)  # draws nothing
    assert "report.html" not in written(fake.folder)


def test_report_writes_all_again_and_measures_nothing(fake: Any) -> None:
    fake.run(draw=True)
    fake.calls()
    texts = {name: (fake.folder / name).read_bytes() for name in ALWAYS}
    for name in ALWAYS - {"comparison_report.json"}:
        (fake.folder / name).unlink()
    result = CliRunner().invoke(app, ["report", str(fake.folder)])
    assert result.exit_code == 0, result.output
    assert fake.calls() == []
    assert {name: (fake.folder / name).read_bytes() for name in ALWAYS} == texts


def test_the_language_is_that_of_summary_experiment_and_terminal(fake: Any) -> None:
    fake.run(language="zh")
    assert "推荐" in (fake.folder / "comparison_summary.txt").read_text()
    result = CliRunner().invoke(app, ["report", str(fake.folder)])
    assert "推荐" not in (fake.folder / "comparison_summary.txt").read_text()
    assert "推荐" not in result.output
    result = CliRunner().invoke(app, ["report", str(fake.folder), "--language", "zh"])
    assert "推荐" in result.output
    assert "实验报告" in (fake.folder / "experiment_report.md").read_text()


def test_a_language_that_there_is_not_is_told_before_anything(fake: Any) -> None:
    with pytest.raises(UsageError, match="fr"):
        fake.run(language="fr")
    assert fake.calls() == []


def test_what_changed_since_a_baseline_is_in_the_report(fake: Any, tmp_path: Path) -> None:
    fake.run()
    old = fake.folder.rename(tmp_path / "old")
    report = fake.run(baseline=old)
    assert report.baseline is not None
    assert read_report(fake.folder).baseline == report.baseline
    # Kept when it is written again, and replaced by another one.
    assert rewrite(fake.folder).baseline == report.baseline
    data = json.loads((old / "comparison_report.json").read_text())
    data["created"] = "2001-01-01T00:00:00Z"
    (old / "comparison_report.json").write_text(json.dumps(data))
    again = rewrite(fake.folder, baseline=old)
    assert again.baseline is not None
    assert again.baseline.old.created == "2001-01-01T00:00:00Z"
    assert "2001-01-01" in (fake.folder / "comparison_summary.txt").read_text()


def test_the_baseline_may_be_the_report_that_is_overwritten(fake: Any) -> None:
    first = fake.run()
    report = fake.run(overwrite=True, baseline=fake.folder)
    assert report.baseline is not None
    assert report.baseline.old.created == first.created


def test_a_baseline_that_is_none_costs_no_measurement(fake: Any, tmp_path: Path) -> None:
    with pytest.raises(CompareError, match="nowhere"):
        fake.run(baseline=tmp_path / "nowhere")
    assert fake.calls() == []


def test_a_sensitivity_table_is_kept_and_shown(fake: Any, tmp_path: Path) -> None:
    measured = tmp_path / "S"
    measured.mkdir()
    write_table(measured, table_of(FAKE_SHA256))
    fake.run(sensitivity=measured)
    assert (TABLE_NAME, CSV_NAME) == (SENSITIVITY_NAME, SENSITIVITY_CSV_NAME)
    assert SENSITIVITY_NAME in written(fake.folder)
    rewrite(fake.folder)
    assert "aggregator.frame_blocks.0" in (fake.folder / "report.html").read_text()


def test_a_table_of_other_weights_is_refused(fake: Any, tmp_path: Path) -> None:
    measured = tmp_path / "S"
    measured.mkdir()
    write_table(measured, table_of("1" * 64))
    with pytest.raises(CompareError, match="1111"):
        fake.run(sensitivity=measured)
    with pytest.raises(ArtifactError, match="there is no"):
        fake.run(sensitivity=tmp_path)


def test_only_a_finished_comparison_is_written_again(fake: Any, tmp_path: Path) -> None:
    with pytest.raises(CompareError, match="is no folder"):
        rewrite(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(CompareError, match="can't read"):
        rewrite(tmp_path / "empty")
    fake.run()
    with locked(fake.folder), pytest.raises(DeployError, match="being written"):
        rewrite(fake.folder)


def test_the_report_of_a_moved_folder_is_written_there(fake: Any, tmp_path: Path) -> None:
    report = fake.run()
    moved = fake.folder.rename(tmp_path / "moved")
    again = rewrite(moved)
    assert again.folder == moved
    assert replace(again, folder=report.folder) == report
    assert written(moved) == ALWAYS


@pytest.mark.parametrize("damage", ["gone", "cut", "empty", "text"])
@pytest.mark.parametrize("name", ["work/images.npy", "outputs/torch-int8_pc_sym.npz"])
def test_a_folder_that_lost_something_is_said(fake: Any, name: str, damage: str) -> None:
    fake.run()
    path = fake.folder / name
    if damage == "gone":
        path.unlink()
    else:
        content = {"cut": path.read_bytes()[:-40], "empty": b"", "text": b"not an array"}[damage]
        path.write_bytes(content)
    with pytest.raises(CompareError, match=path.name) as caught:
        rewrite(fake.folder)
    assert "--resume" in caught.value.fix


def test_a_full_disk_is_said(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.run()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(write, "draw_plots", full)
    with pytest.raises(CompareError, match="is full"):
        rewrite(fake.folder)


def test_random_weights_are_told_by_their_spec(fake: Any, tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    table = replace(table_of("x"), model=ModelRecord("random:vggt-tiny:1", "vggt-tiny"))
    keep_sensitivity(folder, table, {"spec": "random:vggt-tiny:1", "sha256": None})
    with pytest.raises(CompareError, match="random:vggt-tiny:2"):
        keep_sensitivity(folder, table, {"spec": "random:vggt-tiny:2", "sha256": None})
