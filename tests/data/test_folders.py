"""Which folder's pictures are meant, for the layouts that people have."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vggt_deploy.data.folders import find_images, natural_key, scene_roots
from vggt_deploy.errors import ImageError, UsageError


def fill(folder: Path, *names: str) -> Path:
    """Make empty files: which folder is meant depends on names only."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def found(root: Path, **options: int) -> list[str]:
    result = find_images(root, **options)
    return [p.relative_to(root).as_posix() for p in result.paths]


def test_plain_folder_in_natural_order_with_every_ending(tmp_path: Path) -> None:
    fill(
        tmp_path, "b10.JPG", "b2.jpg", "a.PNG", "c.JPEG", "b1.png", "c.jpeg", "notes.txt", "B3.Jpg"
    )
    assert found(tmp_path) == ["a.PNG", "b1.png", "b2.jpg", "B3.Jpg", "b10.JPG", "c.JPEG", "c.jpeg"]


def test_max_images_takes_the_first_by_name_and_says_so(tmp_path: Path) -> None:
    fill(tmp_path, *(f"{i}.jpg" for i in range(12)))
    result = find_images(tmp_path, max_images=3)
    assert [p.name for p in result.paths] == ["0.jpg", "1.jpg", "2.jpg"]
    assert "12 pictures" in result.note
    assert "first 3" in result.note
    with pytest.raises(UsageError, match="max_images is 0"):
        find_images(tmp_path, max_images=0)


SCENE = "images/dslr_images_undistorted"


@pytest.mark.parametrize(
    "layout, given_root",
    [
        (SCENE, "."),
        (SCENE, "images"),
        (SCENE, SCENE),
        (f"facade/{SCENE}", "."),  # one level up
        (f"facade_dslr_undistorted/facade/{SCENE}", "."),  # unpacked into the archive's name
        (f"facade_dslr_undistorted/facade/{SCENE}", "facade_dslr_undistorted"),
        ("dslr_images_undistorted", "."),  # the folder copied without its parent
        ("images/dslr_images", "."),  # the distorted ones, if there are no others
    ],
)
def test_eth3d_scene_from_any_level(tmp_path: Path, layout: str, given_root: str) -> None:
    fill(tmp_path / layout, "DSC_0286.JPG", "DSC_0287.JPG")
    result = find_images(tmp_path / given_root)
    assert [p.name for p in result.paths] == ["DSC_0286.JPG", "DSC_0287.JPG"]
    assert result.root == tmp_path / layout


def test_eth3d_scene_with_everything_unpacked_takes_the_undistorted(tmp_path: Path) -> None:
    fill(tmp_path / "images/dslr_images", "DSC_0001.JPG", "DSC_0002.JPG", "DSC_0003.JPG")
    fill(tmp_path / SCENE, "DSC_0001.JPG")
    fill(tmp_path / "ground_truth_depth/dslr_images", "DSC_0001.JPG")
    fill(tmp_path / "masks_for_images/dslr_images", "DSC_0001.png")
    result = find_images(tmp_path)
    assert result.root == tmp_path / SCENE
    assert "dslr_images (3)" in result.note
    assert "ground_truth_depth" not in result.note


def test_eth3d_repack_with_doubled_endings_counts_each_frame_once(tmp_path: Path) -> None:
    fill(tmp_path, "DSC_1.JPG", "DSC_1.JPG.jpg", "DSC_2.JPG.jpg")
    result = find_images(tmp_path)
    assert [p.name for p in result.paths] == ["DSC_1.JPG", "DSC_2.JPG.jpg"]
    assert "1 copy with a doubled ending left out" in result.note


@pytest.mark.parametrize("name", ["ground_truth_depth", "masks_for_images"])
def test_eth3d_depth_and_masks_are_refused_as_pictures(tmp_path: Path, name: str) -> None:
    folder = fill(tmp_path / "facade" / name / "dslr_images", "DSC_0001.JPG")
    with pytest.raises(ImageError, match="no photographs") as caught:
        find_images(folder)
    assert str(tmp_path / "facade") in caught.value.fix


def test_several_scenes_are_listed_with_counts(tmp_path: Path) -> None:
    fill(tmp_path / "terrace" / SCENE, "a.JPG", "b.JPG")
    fill(tmp_path / "facade" / SCENE, "a.JPG")
    with pytest.raises(ImageError, match="2 ETH3D scenes") as caught:
        find_images(tmp_path)
    assert "terrace/images/dslr_images_undistorted (2 pictures)" in caught.value.message
    assert "facade/images/dslr_images_undistorted (1 picture)" in caught.value.message


def test_one_nested_folder_is_found_and_two_are_not_guessed(tmp_path: Path) -> None:
    fill(tmp_path / "2024" / "holiday", "a.jpg", "b.jpg")
    assert find_images(tmp_path).root == tmp_path / "2024" / "holiday"
    fill(tmp_path / "2025", "c.jpg")
    with pytest.raises(ImageError, match="2 folders with pictures") as caught:
        find_images(tmp_path)
    assert "holiday (2 pictures)" in caught.value.message


def test_images_subfolder_wins_over_its_scaled_copies(tmp_path: Path) -> None:
    fill(tmp_path / "images", "a.jpg", "b.jpg")
    fill(tmp_path / "images_4", "a.jpg", "b.jpg")
    result = find_images(tmp_path)
    assert result.root == tmp_path / "images"
    assert "not used: images_4 (2)" in result.note


def test_pictures_in_the_folder_itself_win_and_the_rest_is_named(tmp_path: Path) -> None:
    fill(tmp_path, "a.jpg")
    fill(tmp_path / "old", "b.jpg")
    result = find_images(tmp_path)
    assert [p.name for p in result.paths] == ["a.jpg"]
    assert "not used: old (1)" in result.note


def test_depth_maps_beside_colour_pictures_are_left_out_aloud(tmp_path: Path) -> None:
    fill(tmp_path, "frame-0.color.jpg", "frame-0.depth.png", "frame-1_depth.png", "indepth.png")
    result = find_images(tmp_path)
    assert [p.name for p in result.paths] == ["frame-0.color.jpg", "indepth.png"]
    assert "2 depth maps" in result.note


def test_hidden_files_and_folders_are_not_pictures(tmp_path: Path) -> None:
    fill(tmp_path, "._DSC_0001.JPG", ".hidden.png")
    fill(tmp_path / ".thumbnails", "a.png")
    fill(tmp_path / "__MACOSX", "a.png")
    with pytest.raises(ImageError, match="no JPG, JPEG or PNG"):
        find_images(tmp_path)


def test_half_a_scene_of_a_killed_writer_is_no_scene(tmp_path: Path) -> None:
    images = Path("scene_1", "images", "dslr_images_undistorted")
    fill(tmp_path / ".unseen.0a1b2c3d.partial" / images, "a.jpg")
    fill(tmp_path / ".scene_2.0a1b2c3d.old" / images.relative_to("scene_1"), "a.jpg")
    assert scene_roots(tmp_path) == (tmp_path,)
    fill(tmp_path / images, "a.jpg")
    assert scene_roots(tmp_path) == (tmp_path / "scene_1",)
    # What is hidden above the folder that was asked for is nobody's business.
    assert scene_roots(tmp_path / ".unseen.0a1b2c3d.partial")[0].name == "scene_1"


def test_foreign_formats_are_named(tmp_path: Path) -> None:
    fill(tmp_path, "IMG_1.HEIC", "IMG_2.heic", "scan.tif")
    with pytest.raises(ImageError, match=r"2 \.heic, 1 \.tif") as caught:
        find_images(tmp_path)
    assert "convert" in caught.value.fix
    fill(tmp_path, "IMG_3.jpg")
    assert "left out: 2 .heic, 1 .tif" in find_images(tmp_path).note


def test_empty_missing_and_file(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="1 folder searched"):
        find_images(tmp_path)
    with pytest.raises(ImageError, match="there is no folder"):
        find_images(tmp_path / "absent")
    fill(tmp_path, "a.jpg")
    with pytest.raises(ImageError, match="is a file") as caught:
        find_images(tmp_path / "a.jpg")
    assert str(tmp_path) in caught.value.fix


def test_only_depth_maps_are_explained(tmp_path: Path) -> None:
    fill(tmp_path, "1.depth.png")
    with pytest.raises(ImageError, match="1 depth map"):
        find_images(tmp_path)


def test_a_folder_with_a_pictures_name_is_no_picture(tmp_path: Path) -> None:
    fill(tmp_path / "album.jpg", "a.jpg")
    assert find_images(tmp_path).root == tmp_path / "album.jpg"


def test_symbolic_links_are_followed_once(tmp_path: Path) -> None:
    outside = fill(tmp_path / "outside", "a.jpg")
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(outside)
    (outside / "loop").symlink_to(root)
    assert found(root) == ["link/a.jpg"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_unreadable_subfolder_is_noted_and_does_not_stop(tmp_path: Path) -> None:
    fill(tmp_path, "a.jpg")
    locked = fill(tmp_path / "locked", "b.jpg")
    locked.chmod(0)
    try:
        assert "can't be read" in find_images(tmp_path).note
        with pytest.raises(ImageError, match="can't read the folder"):
            find_images(locked)
    finally:
        locked.chmod(0o700)


def test_relative_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / SCENE, "a.JPG")
    monkeypatch.chdir(tmp_path)
    assert [p.as_posix() for p in find_images(".").paths] == [f"{SCENE}/a.JPG"]


def test_natural_order_differs_from_the_plain_one() -> None:
    names = ["img10", "img9", "Img1", "img1", "img01"]
    assert sorted(names, key=natural_key) == ["Img1", "img01", "img1", "img9", "img10"]
    assert sorted(names) != sorted(names, key=natural_key)


@given(st.lists(st.integers(0, 10**20), unique=True), st.text("ab. -_", max_size=3))
def test_natural_order_is_numeric(numbers: list[int], prefix: str) -> None:
    names = [f"{prefix}{n}.jpg" for n in numbers]
    assert sorted(names, key=natural_key) == [f"{prefix}{n}.jpg" for n in sorted(numbers)]


@given(st.lists(st.text(max_size=8), max_size=12))
def test_natural_order_takes_any_name(names: list[str]) -> None:
    """Digits, no digits, other scripts' digits: comparable, and a total order."""
    backwards = names[::-1]
    assert sorted(backwards, key=natural_key) == sorted(names, key=natural_key)


@pytest.mark.parametrize(
    "folder, count",
    [
        ("eth3d/terrace", 2),
        ("eth3d/facade/images", 2),
        ("strecha/fountain-P11", 11),
        ("strecha/entry-P10", 10),
        ("robustmvd_sample", 7),
        ("7scenes_redkitchen", 10),
        ("slambook2_rgbd", 5),
    ],
)
def test_real_folders(shared_data: Path, folder: str, count: int) -> None:
    assert len(find_images(shared_data / "data" / folder).paths) == count


def test_real_folder_of_two_scenes_is_ambiguous(shared_data: Path) -> None:
    with pytest.raises(ImageError, match="2 ETH3D scenes"):
        find_images(shared_data / "data" / "eth3d")
