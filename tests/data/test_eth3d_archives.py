"""What ETH3D has, and where the files of its archives go, in all the layouts seen."""

from __future__ import annotations

import pytest

from vggt_deploy.data.archives import ArchiveError, Contents, Member
from vggt_deploy.data.eth3d_archives import (
    DEPTH_BYTES,
    KINDS,
    KNOWN,
    LICENCE,
    SCENES,
    Kind,
    archive_name,
    check_kinds,
    check_scenes,
    least_unpacked_bytes,
    place,
)
from vggt_deploy.errors import UsageError

PICTURE = "images/dslr_images_undistorted/DSC_0286.JPG"
CAMERAS = "dslr_calibration_undistorted/cameras.txt"
UNDISTORTED = (PICTURE, CAMERAS)


def holding(*names: str) -> Contents:
    return Contents(tuple(Member(name, 1, 0) for name in names), ())


def test_there_are_13_training_scenes_of_454_pictures() -> None:
    assert len(SCENES) == 13
    assert sum(SCENES.values()) == 454
    assert DEPTH_BYTES == 97_542_144
    assert check_scenes(["all"]) == tuple(SCENES)


def test_names_are_checked_and_the_near_one_is_named() -> None:
    assert check_scenes(["relief_2", "courtyard", "relief_2"]) == ("relief_2", "courtyard")
    for wrong, near in (
        ("courtyrd", "courtyard"),
        ("Relief2", "relief"),
        ("deliveryarea", "deliv"),
    ):
        with pytest.raises(UsageError, match="not one of ETH3D's") as raised:
            check_scenes(["facade", wrong])
        assert f"did you mean {near}" in raised.value.fix
    with pytest.raises(UsageError, match="'bathroom'") as raised:
        check_scenes(["bathroom"])
    assert "did you mean" not in raised.value.fix
    with pytest.raises(UsageError, match="'all'"):
        check_scenes(["facade", "all"])


def test_kinds_always_begin_with_the_pictures() -> None:
    assert check_kinds([]) == ("undistorted",)
    assert check_kinds(["occlusion", "depth", "undistorted"])[0] == "undistorted"
    assert set(check_kinds(KINDS)) == set(KINDS)
    with pytest.raises(UsageError, match="'dept'") as raised:
        check_kinds(["dept"])
    assert "did you mean depth" in raised.value.fix


def test_archives_have_their_names() -> None:
    assert archive_name("courtyard", "undistorted") == "courtyard_dslr_undistorted"
    assert archive_name("relief_2", "scan_eval") == "relief_2_dslr_scan_eval"
    assert archive_name("office", "scan_clean") == "office_scan_clean"
    assert len({archive_name(scene, kind) for scene in SCENES for kind in KINDS}) == 13 * 7


def test_what_is_known_is_of_archives_that_exist() -> None:
    names = {archive_name(scene, kind) for scene in SCENES for kind in KINDS}
    assert set(KNOWN) <= names
    hashes = [known.sha256 for known in KNOWN.values() if known.sha256 is not None]
    assert len(set(hashes)) == len(hashes) == 8
    assert all(len(sha256) == 64 and int(sha256, 16) for sha256 in hashes)
    assert KNOWN["facade_dslr_undistorted"].bytes == 1_252_088_400


def test_depth_needs_the_space_of_raw_floats() -> None:
    assert least_unpacked_bytes("facade", "depth", 10) == 76 * DEPTH_BYTES
    assert least_unpacked_bytes("facade", "jpg", 10) == 10


def test_the_licence_is_named_with_what_it_asks() -> None:
    assert "CC BY-NC-SA 4.0" in LICENCE
    assert "Schöps" in LICENCE
    assert "CVPR 2017" in LICENCE


@pytest.mark.parametrize(
    "before",
    [
        "courtyard/",
        "",
        "courtyard_dslr_undistorted/",
        "courtyard_dslr_undistorted/courtyard/",
        "multi_view_training_dslr_undistorted/courtyard/",
    ],
)
def test_every_layout_goes_to_one_place(before: str) -> None:
    names = tuple(before + name for name in UNDISTORTED)
    placed = place(holding(*names), "courtyard", "undistorted")
    assert tuple(placed[name] for name in names) == UNDISTORTED


@pytest.mark.parametrize(
    "kind, names",
    [
        ("jpg", ("images/dslr_images/a.JPG", "dslr_calibration_jpg/cameras.txt")),
        ("depth", ("ground_truth_depth/dslr_images/a.JPG",)),
        ("occlusion", ("masks_for_images/dslr_images/a.png", "occlusion/splats.ply")),
        ("occlusion", ("occlusion/splats.ply",)),
        ("scan_eval", ("dslr_scan_eval/scan1.ply",)),
        ("scan_clean", ("scan_clean/scan1.ply",)),
        ("raw", ("images/dslr_images/a.NEF",)),
    ],
)
def test_every_kind_holds_what_it_is_fetched_for(kind: Kind, names: tuple[str, ...]) -> None:
    placed = place(holding(*(f"pipes/{name}" for name in names)), "pipes", kind)
    assert tuple(placed.values()) == names


@pytest.mark.parametrize(
    "names, why",
    [
        ((f"courtyard/{PICTURE}",), "holds nothing in dslr_calibration_undistorted"),
        (("courtyard/images/dslr_images/a.JPG", CAMERAS), "nothing in images/dslr_images_und"),
        (tuple(f"facade/{name}" for name in UNDISTORTED), "holds the scene facade"),
        ((*UNDISTORTED, f"courtyard/{PICTURE}"), "the same file inside and outside"),
        ((CAMERAS, f"courtyard/{PICTURE}", PICTURE.replace("i", "I", 1)), "take for one"),
        ((*UNDISTORTED, f"courtyard/{PICTURE}/b"), "as a file and as a folder"),
        ((*UNDISTORTED, "courtyard/.eth3d.json"), "hidden files"),
        ((*UNDISTORTED, ".bashrc"), "hidden files"),
    ],
)
def test_an_archive_of_something_else(names: tuple[str, ...], why: str) -> None:
    with pytest.raises(ArchiveError, match=why):
        place(holding(*names), "courtyard", "undistorted")
