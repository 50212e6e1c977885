"""Frames on their side: left out by the poses of the whole scene, before the first so many."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vggt_deploy.compare.on_side import on_side
from vggt_deploy.compare.protocol import protocol_of
from vggt_deploy.compare.scenes import find_scenes, read_scenes
from vggt_deploy.data.eth3d import write_scene
from vggt_deploy.data.frame_lists import FrameList
from vggt_deploy.data.synthetic import render_views
from vggt_deploy.errors import CompareError, ImageError, SceneError, UsageError

VIEWS, HEIGHT, WIDTH = 6, 28, 42
LYING = ("DSC_0001.JPG", "DSC_0002.JPG")
UPRIGHT = ("DSC_0000.JPG", "DSC_0003.JPG", "DSC_0004.JPG", "DSC_0005.JPG")
QUARTER = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])


def turned(*which: int, seed: int = 1_000_001) -> Any:
    """Views of a scene, some of them turned by a quarter about the optical axis."""
    views = render_views(seed, views=VIEWS, height=HEIGHT, width=WIDTH)
    extrinsic = views.extrinsic.copy()
    for index in which:
        extrinsic[index] = QUARTER @ extrinsic[index]
    return replace(views, extrinsic=extrinsic)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene with two frames on their side, and one with none."""
    folder = tmp_path_factory.mktemp("turned")
    write_scene(folder / "lying", turned(1, 2))
    write_scene(folder / "upright", turned(seed=1_000_002))
    return folder


def names(found: Any) -> tuple[str, ...]:
    return tuple(path.name for path in found.images.paths)


def read(found: Any) -> Any:
    return read_scenes(
        found, mode="crop", width=WIDTH, height=HEIGHT, skip_bad=False, need_truth=True
    )


def test_they_are_left_out_before_the_first_so_many_are_taken(made: Path) -> None:
    (all_,) = find_scenes(None, [made / "lying"], max_images=None, drop_sideways=True)
    assert (names(all_), all_.dropped) == (UPRIGHT, LYING)
    (two,) = find_scenes(None, [made / "lying"], max_images=2, drop_sideways=True)
    assert (names(two), two.dropped) == (UPRIGHT[:2], LYING)
    assert two.images.note.endswith(
        "; 2 on their side left out; the first 2 of the others by name are taken"
    )
    # The twin: without the rule the first two are taken, one of them on its side.
    (plain,) = find_scenes(None, [made / "lying"], max_images=2)
    assert (names(plain), plain.dropped) == (("DSC_0000.JPG", "DSC_0001.JPG"), None)


def test_the_whole_scene_says_who_is_upright(made: Path) -> None:
    """Of the first three frames two are on their side: by themselves the third would be named."""
    (first,) = find_scenes(None, [made / "lying"], max_images=3)
    assert on_side(first.images.paths) == LYING
    assert read([first]).first.on_side == LYING


def test_question_and_protocol_say_what_was_done(made: Path) -> None:
    kept = read(find_scenes(None, [made], max_images=4))
    dropped = read(find_scenes(None, [made], max_images=4, drop_sideways=True))
    assert kept.to_json()["drop_sideways"] is False
    assert dropped.to_json()["drop_sideways"] is True
    assert [scene.dropped for scene in dropped.items] == [LYING, ()]
    assert [scene.on_side for scene in dropped.items] == [(), ()]
    said = "frames on their side kept (2: lying/DSC_0001.JPG, lying/DSC_0002.JPG)"
    assert said in protocol_of(kept).frames
    assert "frames on their side left out (2)" in protocol_of(dropped).frames
    assert dropped.note.endswith("; 2 frames on their side left out")
    assert [path.name for path in dropped.first.paths] == list(UPRIGHT)


def test_a_list_leaves_them_out_by_itself(made: Path) -> None:
    listed = FrameList("mine", "ab" * 32, {"lying": LYING}, "here", "by hand", {})
    with pytest.raises(UsageError, match="the frame list mine is given") as raised:
        find_scenes(None, [made / "lying"], max_images=None, frames=listed, drop_sideways=True)
    assert "--drop-sideways" in raised.value.fix
    # What it asks for is taken, and said.
    found = read(find_scenes(None, [made / "lying"], max_images=None, frames=listed))
    assert "frames on their side kept (2: DSC_0001.JPG, DSC_0002.JPG)" in protocol_of(found).frames


def test_a_scene_without_poses_is_refused(made: Path, tmp_path: Path) -> None:
    bare = Path(shutil.copytree(made / "lying", tmp_path / "bare"))
    shutil.rmtree(bare / "dslr_calibration_undistorted")
    with pytest.raises(UsageError, match=r"the scene bare .* has no poses"):
        find_scenes(None, [made / "upright", bare], max_images=None, drop_sideways=True)
    (found,) = find_scenes(None, [bare], max_images=None)
    assert on_side(found.images.paths) is None
    (bare / "dslr_calibration_undistorted").mkdir()
    with pytest.raises(SceneError, match=r"images\.txt|cameras\.txt"):
        find_scenes(None, [bare], max_images=None, drop_sideways=True)


def test_a_scene_with_nothing_left_is_refused(tmp_path: Path) -> None:
    """Of the pictures that are there all are on their side; the calibration knows others."""
    write_scene(tmp_path / "side", turned(1, 2))
    for name in UPRIGHT:
        (tmp_path / "side" / "images" / "dslr_images_undistorted" / name).unlink()
    with pytest.raises(ImageError, match=r"the scene side .* no frame left: all 2") as raised:
        find_scenes(None, [tmp_path / "side"], max_images=None, drop_sideways=True)
    assert "leave out that scene" in raised.value.fix


def test_no_pictures_at_all_are_asked_for(made: Path) -> None:
    with pytest.raises(UsageError, match="max_images is 0"):
        find_scenes(None, [made], max_images=0, drop_sideways=True)


def test_a_picture_without_a_pose_is_not_called_sideways(made: Path, tmp_path: Path) -> None:
    more = Path(shutil.copytree(made / "lying", tmp_path / "more"))
    pictures = more / "images" / "dslr_images_undistorted"
    shutil.copy(pictures / "DSC_0001.JPG", pictures / "DSC_9999.JPG")
    (found,) = find_scenes(None, [more], max_images=None, drop_sideways=True)
    assert names(found) == (*UPRIGHT, "DSC_9999.JPG")
    with pytest.raises(SceneError, match="no pose"):
        read([found])


def test_it_is_part_of_the_question(made: Path, fake: Any) -> None:
    """Another answer may not be given under it, though the pictures be the same."""
    scenes = [made / "upright"]
    run = replace(fake, images=None).run
    report = run(scenes=scenes, runtimes="torch", schemes="int8_pc_sym", drop_sideways=True)
    assert "frames on their side left out (0)" in report.protocol.frames
    with pytest.raises(CompareError, match="drop_sideways"):
        run(scenes=scenes, runtimes="torch", schemes="int8_pc_sym", resume=True)
