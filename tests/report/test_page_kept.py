"""What a comparison's folder must hold for its page, and what is said of one that does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_pages import page_report, write_arrays

from vggt_deploy.compare.jobs import write_json
from vggt_deploy.compare.state import QUESTION_NAME, Folder, finished_row, save_row
from vggt_deploy.data.ground_truth import read_truth, write_truth
from vggt_deploy.errors import CompareError
from vggt_deploy.report.page import page_text
from vggt_deploy.report.pictures import draw_depth_pictures

Arrays = dict[str, np.ndarray]
Change = Callable[[Arrays], Any]


def fewer_pictures(arrays: Arrays) -> None:
    for name in arrays:
        arrays[name] = arrays[name][:, :2]


def another_size(arrays: Arrays) -> None:
    arrays["depth"] = arrays["depth"][:, :, :-1]


def no_depth(arrays: Arrays) -> None:
    del arrays["depth"]


OUTPUTS = [fewer_pictures, another_size, no_depth]


@pytest.fixture
def made(tmp_path: Path) -> tuple[Any, Folder]:
    report = page_report(tmp_path, schemes=("int8_pc_sym",))
    return report, write_arrays(report)


def change(path: Path, how: Change) -> None:
    arrays = dict(np.load(path))
    how(arrays)
    np.savez(path, **arrays)


def refused(report: Any, folder: Folder, path: Path) -> None:
    with pytest.raises(CompareError, match=path.name) as caught:
        page_text(report, folder)
    assert "--resume" in caught.value.fix


@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("how", OUTPUTS)
def test_outputs_of_another_question_are_named(
    made: tuple[Any, Folder], how: Change, row: int
) -> None:
    report, folder = made
    path = folder.arrays(report.rows[row].variant)
    change(path, how)
    refused(report, folder, path)
    with pytest.raises(CompareError, match=path.name):
        draw_depth_pictures(report, folder)


@pytest.mark.parametrize(
    "how",
    [
        lambda pixels: pixels[:2],
        lambda pixels: pixels[:, :, :-1],
        lambda pixels: np.round(255 * pixels).astype(np.uint8),
    ],
)
def test_pictures_of_another_question_are_named(
    made: tuple[Any, Folder], how: Callable[[np.ndarray], np.ndarray]
) -> None:
    report, folder = made
    np.save(folder.images(), how(np.load(folder.images())))
    refused(report, folder, folder.images())
    with pytest.raises(CompareError, match=r"images\.npy"):
        draw_depth_pictures(report, folder)


def test_an_archive_in_place_of_the_pictures_is_named(made: tuple[Any, Folder]) -> None:
    report, folder = made
    with folder.images().open("wb") as file:
        np.savez(file, pixels=np.zeros(3))
    refused(report, folder, folder.images())


def test_truth_of_another_scene_is_named(made: tuple[Any, Folder]) -> None:
    report, folder = made
    truth = read_truth(folder.truth())
    assert truth.depth is not None
    write_truth(folder.truth(), replace(truth, depth=truth.depth[:, :-1]))
    refused(report, folder, folder.truth())
    write_truth(folder.truth(), replace(truth, extrinsic=truth.extrinsic[:2]))
    refused(report, folder, folder.truth())


@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("how", OUTPUTS)
def test_resume_measures_such_a_variant_again(
    made: tuple[Any, Folder], how: Change, row: int
) -> None:
    report, folder = made
    write_json(folder.root / QUESTION_NAME, report.question)
    (folder.root / "rows").mkdir()
    for each in report.rows[:2]:
        # Of the reference every scene is kept.
        for scene in range(1, len(each.scenes)):
            first = folder.arrays(each.variant)
            folder.arrays(each.variant, scene).write_bytes(first.read_bytes())
        save_row(folder, each.variant, each)
        assert finished_row(folder, each.variant) is not None
    variant = report.rows[row].variant
    change(folder.arrays(variant), how)
    assert finished_row(folder, variant) is None
    assert finished_row(folder, report.rows[1 - row].variant) is not None


def test_outputs_that_were_not_asked_for_are_not_missed(tmp_path: Path) -> None:
    report = page_report(tmp_path, schemes=("int8_pc_sym",), outputs=["depth"])
    folder = write_arrays(report)
    write_json(folder.root / QUESTION_NAME, report.question)
    (folder.root / "rows").mkdir()
    row = report.rows[1]
    save_row(folder, row.variant, row)
    assert finished_row(folder, row.variant) is not None
    assert page_text(report, folder)
