"""ETH3D's depth and masks, which are of the shot pictures: through the lens onto what is compared.

The lens here is that of courtyard's camera 0 at a tenth of its size. The way there is written out
again (test_lens checks that formula), and the scene is a plane, so every depth has a right value.
"""

from __future__ import annotations

import shutil
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from vggt_deploy.data import colmap
from vggt_deploy.data.colmap import ColmapCamera
from vggt_deploy.data.eth3d import read_depth, read_scene
from vggt_deploy.data.folders import find_images, scene_roots
from vggt_deploy.data.ground_truth import GroundTruth, ground_truth, source_pixels
from vggt_deploy.data.images import ImageBatch, Mode, load_images, place
from vggt_deploy.data.masks import MaskUse
from vggt_deploy.errors import SceneError, UsageError

Doubles = NDArray[np.float64]
LENS = (0.21047, 0.21102, -5.36231e-06, 0.00051541, -0.158023, 0.406856, -8.46499e-05, 0.000861313)
SHOT = ColmapCamera(0, "THIN_PRISM_FISHEYE", 604, 403, (341.142, 341.002, 304.129, 201.407, *LENS))
UNDISTORTED = ColmapCamera(0, "PINHOLE", 620, 413, (341.142, 341.002, 311.672, 206.252))
NAMES = ("DSC_0286.JPG", "DSC_0287.JPG", "DSC_0289.JPG")
NORMAL, OFFSET = np.array([0.2, -0.3, 0.93]), 4.0
FRAMES = len(NAMES)


def project(rays: Doubles) -> Doubles:
    """[..., 2] -> pixels of SHOT, by COLMAP's formula for the model."""
    fx, fy, cx, cy, k1, k2, p1, p2, k3, k4, sx1, sy1 = SHOT.params
    x, y = np.moveaxis(rays, -1, 0)
    r = np.hypot(x, y)
    turn = np.divide(np.arctan(r), r, out=np.ones_like(r), where=r > 0)
    u, v = x * turn, y * turn
    rr = u * u + v * v
    radial = rr * (k1 + rr * (k2 + rr * (k3 + rr * k4)))
    du = u * radial + 2 * p1 * u * v + p2 * (rr + 2 * u * u) + sx1 * rr
    dv = v * radial + 2 * p2 * u * v + p1 * (rr + 2 * v * v) + sy1 * rr
    return np.stack([fx * (u + du) + cx, fy * (v + dv) + cy], axis=-1)


def unproject(points: Doubles) -> Doubles:
    """The inverse, by fixed-point steps."""
    focal, centre = np.array(SHOT.params[:2]), np.array(SHOT.params[2:4])
    rays = (points - centre) / focal
    for _ in range(60):
        rays = rays - (project(rays) - points) / focal
    assert np.abs(project(rays) - points).max() < 1e-8
    return rays


def pose_of(index: int) -> Doubles:
    c, s = np.cos(0.1 * index), np.sin(0.1 * index)
    turn = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    return np.column_stack([turn, [0.3 * index, -0.1 * index, 0.1]])


def plane_depth(rays: Doubles, pose: Doubles) -> Doubles:
    """Depth of the plane NORMAL . X = OFFSET along rays [..., 2] of a camera."""
    along = np.concatenate([rays, np.ones((*rays.shape[:-1], 1))], axis=-1)
    turn, shift = pose[:, :3], pose[:, 3]
    return np.asarray((OFFSET + NORMAL @ turn.T @ shift) / (along @ turn @ NORMAL))


def centres(width: int, height: int) -> Doubles:
    """[height, width, 2]."""
    return np.stack(np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5), axis=-1)


SHOT_RAYS = unproject(centres(SHOT.width, SHOT.height))


def write_part(root: Path, kind: str) -> None:
    """What the archive of this kind holds."""
    distorted = kind == "dslr_jpg"
    if kind in ("dslr_undistorted", "dslr_jpg"):
        name = "dslr_images" if distorted else "dslr_images_undistorted"
        camera = SHOT if distorted else UNDISTORTED
        pictures = root / "images" / name
        pictures.mkdir(parents=True)
        grey = np.full((camera.height, camera.width, 3), 90, np.uint8)
        for picture in NAMES:
            Image.fromarray(grey).save(pictures / picture, format="JPEG")
        calibration = root / (
            "dslr_calibration_jpg" if distorted else "dslr_calibration_undistorted"
        )
        calibration.mkdir()
        colmap.write_cameras(calibration / "cameras.txt", [camera])
        images = [
            colmap.posed(7 - i, pose_of(i), 0, f"{name}/{picture}")
            for i, picture in enumerate(NAMES)
        ]
        colmap.write_images(calibration / "images.txt", images)
    elif kind == "dslr_depth":
        folder = root / "ground_truth_depth" / "dslr_images"
        folder.mkdir(parents=True)
        for i, picture in enumerate(NAMES):
            plane_depth(SHOT_RAYS, pose_of(i)).astype("<f4").tofile(folder / picture)
    else:
        folder = root / "masks_for_images" / "dslr_images"
        folder.mkdir(parents=True)
        for i, picture in enumerate(NAMES[:2]):  # the third has no mask: nothing is masked
            flags = np.zeros((SHOT.height, SHOT.width), np.uint8)
            flags[:, :100] = 1
            flags[:, 80:160] |= 2
            flags[:, 500:] = 2 * i
            Image.fromarray(flags).save(folder / picture.replace(".JPG", ".png"))


KINDS = ("dslr_undistorted", "dslr_jpg", "dslr_depth", "dslr_occlusion")


@pytest.fixture(scope="session")
def shot_scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All four kinds in one place. Not to be changed."""
    root = tmp_path_factory.mktemp("eth3d") / "court"
    for kind in KINDS:
        write_part(root, kind)
    return root


@pytest.fixture
def copy(shot_scene: Path, tmp_path: Path) -> Path:
    """A scene that a test may damage."""
    return shutil.copytree(shot_scene, tmp_path / "court")


@dataclass(frozen=True)
class Read:
    truth: GroundTruth
    batch: ImageBatch


def read(
    folder: Path,
    *,
    mode: Mode = "crop",
    width: int = 154,
    height: int | None = 98,
    bits: int = 0,
) -> Read:
    paths = find_images(folder).paths
    batch = load_images(paths, mode=mode, width=width, height=height)
    truth = ground_truth(batch.paths, batch.placements, batch.height, batch.width, mask_bits=bits)
    assert truth is not None
    return Read(truth, batch)


def off_plane(truth: GroundTruth, rays: Doubles | None) -> Doubles:
    """[S, H, W]: signed distance of each pixel's point from the plane; NaN where no depth is."""
    assert truth.depth is not None
    height, width = truth.depth.shape[1:]
    if rays is None:
        focal = truth.intrinsic[:, None, None, [0, 1], [0, 1]]
        rays = (centres(width, height) - truth.intrinsic[:, None, None, :2, 2]) / focal
    z = np.where(np.isfinite(truth.depth), truth.depth, np.nan).astype(np.float64)[..., None]
    camera = np.concatenate([rays * z, z], axis=-1)
    world = np.stack(
        [(x - pose[:, 3]) @ pose[:, :3] for x, pose in zip(camera, truth.extrinsic, strict=True)]
    )
    return np.asarray(world @ NORMAL - OFFSET)


def without_lens(folder: Path) -> None:
    """As loaders do that read the shot pictures' depth as if their lens were a pinhole."""
    linear = ColmapCamera(0, "PINHOLE", SHOT.width, SHOT.height, SHOT.params[:4])
    colmap.write_cameras(folder / "dslr_calibration_jpg" / "cameras.txt", [linear])


# --- undistorted pictures


@pytest.mark.parametrize(
    "mode, width, height", [("crop", 154, 98), ("crop", 224, None), ("pad", 154, 154)]
)
def test_depth_through_the_lens_lies_on_the_plane(
    copy: Path, mode: Mode, width: int, height: int | None
) -> None:
    found = read(copy, mode=mode, width=width, height=height)
    assert found.truth.rays is None
    off = off_plane(found.truth, None)
    inside = found.batch.picture_mask()
    # Nearly all of the undistorted picture is in the shot one, and nothing else has depth.
    assert np.isfinite(off[inside]).mean() > 0.99
    assert np.isnan(off[~inside]).all()
    # The nearest pixel is up to half of one away; those errors cancel, and are small.
    assert np.abs(np.nanmean(off, axis=(1, 2))).max() < 1e-3
    assert np.nanmax(np.abs(off)) < 0.02
    # Twins: no lens; half a pixel of the network; the poses in the other direction.
    half = found.truth.intrinsic.copy()
    half[:, 1, 2] += 0.5
    assert np.abs(np.nanmean(off_plane(replace(found.truth, intrinsic=half), None))) > 3e-3
    turned = found.truth.extrinsic.copy()
    turned[:, :, :3] = turned[:, :, :3].transpose(0, 2, 1)
    assert np.nanmax(np.abs(off_plane(replace(found.truth, extrinsic=turned), None))[1:]) > 0.1
    without_lens(copy)
    bent = off_plane(read(copy, mode=mode, width=width, height=height).truth, None)
    assert np.nanmax(np.abs(bent)) > 0.06


@settings(deadline=None, max_examples=30)
@given(
    st.sampled_from(["crop", "pad"]),
    st.integers(2, 14),
    st.integers(2, 14),
    st.integers(0, 9),
    st.integers(0, 9),
)
def test_each_network_pixel_takes_the_shot_pixel_under_its_centre(
    mode: Mode, across: int, down: int, left: int, top: int
) -> None:
    """In pixels: the stored pixel's centre is half a pixel at most from the projected ray."""
    width, height = 14 * across, 14 * down
    placement, _ = place((620, 413), mode, width, height)
    placement = placement.shifted(left, top)  # as in a batch of different shapes
    width, height = width + left, height + top
    (rows, columns), inside = source_pixels(UNDISTORTED, SHOT, placement, height, width)
    at = centres(width, height) - (placement.left, placement.top)
    shown = (at > 0).all(axis=-1)
    shown &= (at < (placement.resized_width, placement.resized_height)).all(axis=-1)
    picture = at / (placement.scale_x, placement.scale_y)
    rays = (picture - UNDISTORTED.params[2:]) / UNDISTORTED.params[:2]
    points = project(rays)
    stored = np.stack([columns, rows], axis=-1) + 0.5
    assert np.abs(points - stored)[inside].max() <= 0.5 + 1e-6
    # What has no pixel is padding, or outside of what was shot.
    within = (points > 1e-6).all(axis=-1) & (points < (604 - 1e-6, 403 - 1e-6)).all(axis=-1)
    assert inside[shown & within].all()
    assert not inside[~shown].any()
    # The twins: without the lens; one shot pixel beside, whatever the network's size.
    straight = rays * np.array(SHOT.params[:2]) + SHOT.params[2:4]
    assert np.abs(straight - stored)[inside].max() > 2
    assert np.abs(points - 1 - stored)[inside].max() > 0.9


def test_holes_stay_holes_and_nothing_is_mixed(copy: Path) -> None:
    """A chessboard of two depths and infinity: what comes out is one of them, in its own place."""
    column, row = np.meshgrid(np.arange(SHOT.width) // 7, np.arange(SHOT.height) // 7)
    board = np.array([2.0, 50.0, np.inf], dtype="<f4")[(column + row) % 3]
    for name in NAMES:
        board.tofile(copy / "ground_truth_depth" / "dslr_images" / name)
    truth = read(copy).truth
    assert truth.depth is not None
    assert set(np.unique(truth.depth)) == {2.0, 50.0, np.inf}
    for value in (2.0, 50.0):
        assert (truth.depth == value).mean() == pytest.approx(1 / 3, abs=0.02)


def test_outside_the_shot_picture_there_is_no_depth(copy: Path) -> None:
    """An undistorted picture that is wider than what was shot."""
    wide = ColmapCamera(0, "PINHOLE", 620, 413, (200.0, 200.0, 311.672, 206.252))
    colmap.write_cameras(copy / "dslr_calibration_undistorted" / "cameras.txt", [wide])
    found = read(copy)
    assert found.truth.depth is not None
    known = np.isfinite(found.truth.depth)
    assert 0.2 < known.mean() < 0.6
    assert not known[:, 0].any()
    assert not known[:, :, [0, -1]].any()
    assert np.abs(np.nanmean(off_plane(found.truth, None))) < 2e-3


def test_the_note_says_where_the_depth_is_from(shot_scene: Path) -> None:
    note = read(shot_scene).truth.note
    assert "depth of 3 of 3 frames, resampled from the pictures as they were shot" in note


def test_depth_of_the_pictures_own_pixels_goes_first(copy: Path) -> None:
    """As rendered scenes have it."""
    own = copy / "ground_truth_depth" / "dslr_images_undistorted"
    own.mkdir()
    for name in NAMES:
        np.full((413, 620), 3.5, "<f4").tofile(own / name)
    truth = read(copy).truth
    assert truth.depth is not None
    assert np.unique(truth.depth).tolist() == [3.5]
    assert "resampled" not in truth.note


def test_masks_of_the_shot_pictures_with_depth_of_the_undistorted(copy: Path) -> None:
    """Each file by its own camera; beyond the shot picture nothing is masked."""
    own = copy / "ground_truth_depth" / "dslr_images_undistorted"
    own.mkdir()
    for name in NAMES:
        np.full((413, 620), 3.5, "<f4").tofile(own / name)
    wide = ColmapCamera(0, "PINHOLE", 620, 413, (300.0, 300.0, 311.672, 206.252))
    colmap.write_cameras(copy / "dslr_calibration_undistorted" / "cameras.txt", [wide])
    found = read(copy, bits=1)
    assert found.truth.depth is not None
    first = found.batch.placements[0]
    (_, columns), inside = source_pixels(wide, SHOT, first, 98, 154)
    assert 0.02 < (~inside).mean() < 0.4
    np.testing.assert_array_equal(np.isinf(found.truth.depth[0]), inside & (columns < 100))
    assert np.isfinite(found.truth.depth[2]).all()


# --- without what is needed


def test_without_the_shot_calibration_there_is_no_depth_and_a_note(copy: Path) -> None:
    shutil.rmtree(copy / "dslr_calibration_jpg")
    truth = read(copy, bits=3).truth
    assert (truth.depth, truth.masks, truth.rays) == (None, None, None)
    assert "not used: ground_truth_depth/dslr_images, masks_for_images/dslr_images" in truth.note
    assert "there is no dslr_calibration_jpg" in truth.note


def test_a_picture_without_a_shot_camera_has_no_depth(copy: Path) -> None:
    path = copy / "dslr_calibration_jpg" / "images.txt"
    colmap.write_images(path, colmap.read_images(path)[1:])
    truth = read(copy).truth
    assert truth.depth is not None
    assert np.isinf(truth.depth[0]).all()
    assert np.isfinite(truth.depth[1:]).any(axis=(1, 2)).all()
    assert "depth of 2 of 3 frames" in truth.note


def test_two_poses_of_one_picture_are_refused(copy: Path) -> None:
    path = copy / "dslr_calibration_jpg" / "images.txt"
    images = list(colmap.read_images(path))
    images[1] = replace(images[1], translation=(0.3, -0.1, 0.15))
    colmap.write_images(path, images)
    with pytest.raises(
        SceneError, match=r"DSC_0287\.JPG has one pose in .* \(they differ by 0\.05"
    ):
        read(copy)
    # A picture that is not looked at is nobody's concern.
    (copy / "images" / "dslr_images_undistorted" / NAMES[1]).rename(copy.parent / "kept")
    assert read(copy).truth.depth is not None
    (copy.parent / "kept").rename(copy / "images" / "dslr_images_undistorted" / NAMES[1])
    images[1] = replace(images[1], translation=(0.3, -0.1, 0.10001))  # as printed with few digits
    colmap.write_images(path, images)
    assert read(copy).truth.depth is not None


def test_without_pycolmap_the_extra_is_named(
    shot_scene: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pycolmap", None)
    with pytest.raises(SceneError, match="needs pycolmap") as caught:
        read(shot_scene)
    assert "vggt-deploy[eth3d]" in caught.value.fix


@pytest.mark.parametrize("size", [0, 604 * 403 * 4 - 4, 620 * 413 * 4])
def test_depth_of_another_size_is_refused(copy: Path, size: int) -> None:
    with (copy / "ground_truth_depth" / "dslr_images" / NAMES[2]).open("r+b") as file:
        file.truncate(size)
    with pytest.raises(SceneError, match=rf"{size} bytes; depth of 604 x 403 pixels has 973648"):
        read(copy)


def test_only_the_pixels_in_question_are_read(tmp_path: Path) -> None:
    """A file of ETH3D's size, 97 MB, with a value elsewhere that no depth has."""
    path = tmp_path / "DSC_0001.JPG"
    rows, columns = np.meshgrid(np.arange(20, 4032, 40), np.arange(30, 6048, 60), indexing="ij")
    values = np.arange(1, rows.size + 1, dtype="<f4").reshape(rows.shape)
    file = np.memmap(path, dtype="<f4", mode="w+", shape=(4032, 6048))
    file[rows, columns] = values
    file[21, 30] = -1  # no depth
    del file
    tracemalloc.start()
    read_values = read_depth(path, 6048, 4032, (rows, columns))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_array_equal(read_values, values)
    assert peak < 2_000_000
    with pytest.raises(SceneError, match="1 of 2 values are negative"):
        read_depth(path, 6048, 4032, (np.array([20, 21]), np.array([30, 30])))


# --- masks


def masked(
    found: Read, flags: Callable[[NDArray[np.int64]], NDArray[np.bool_]]
) -> NDArray[np.bool_]:
    """[H, W]: network pixels whose column of the shot picture `flags` picks."""
    first = found.batch.placements[0]
    (_, columns), inside = source_pixels(
        UNDISTORTED, SHOT, first, found.batch.height, found.batch.width
    )
    return np.asarray(flags(columns) & inside)


@pytest.mark.parametrize(
    "bits, first, second",
    [
        (3, lambda x: x < 160, lambda x: (x < 160) | (x >= 500)),
        (1, lambda x: x < 100, lambda x: x < 100),
        (2, lambda x: (x >= 80) & (x < 160), lambda x: ((x >= 80) & (x < 160)) | (x >= 500)),
    ],
)
def test_masked_pixels_lose_their_depth(
    shot_scene: Path,
    bits: int,
    first: Callable[[NDArray[np.int64]], NDArray[np.bool_]],
    second: Callable[[NDArray[np.int64]], NDArray[np.bool_]],
) -> None:
    plain, found = read(shot_scene), read(shot_scene, bits=bits)
    assert plain.truth.depth is not None
    assert found.truth.depth is not None
    known = np.isfinite(plain.truth.depth)
    dropped = known & ~np.isfinite(found.truth.depth)
    np.testing.assert_array_equal(dropped[0], masked(found, first) & known[0])
    np.testing.assert_array_equal(dropped[1], masked(found, second) & known[1])
    assert not dropped[2].any()
    assert dropped[0].any()
    kept = np.isfinite(found.truth.depth)
    np.testing.assert_array_equal(found.truth.depth[kept], plain.truth.depth[kept])
    assert found.truth.masks == MaskUse(bits, 2, int(dropped.sum()))
    assert plain.truth.masks == MaskUse(0, 2, 0)


def test_both_bits_are_dropped_unless_told_otherwise_and_the_note_says_it(
    shot_scene: Path,
) -> None:
    batch = read(shot_scene).batch
    truth = ground_truth(batch.paths, batch.placements, batch.height, batch.width)
    assert truth is not None
    assert truth.masks == read(shot_scene, bits=3).truth.masks
    assert truth.masks is not None
    lost = truth.masks.pixels
    assert lost > 1000
    assert f"mask bits 1 and 2 dropped: {lost} pixels of depth, masks of 2 frames" in truth.note
    assert "masks not used (there are some, of 2 frames)" in read(shot_scene).truth.note


def test_masks_of_pictures_that_have_no_depth_are_not_opened(copy: Path) -> None:
    shutil.rmtree(copy / "ground_truth_depth")
    for path in (copy / "masks_for_images" / "dslr_images").iterdir():
        path.write_bytes(b"broken")
    truth = read(copy, bits=3).truth
    assert (truth.depth, truth.masks) == (None, None)


def test_without_masks_nothing_is_masked(copy: Path) -> None:
    shutil.rmtree(copy / "masks_for_images")
    truth = read(copy, bits=3).truth
    assert truth.masks is None
    assert "mask bit" not in truth.note
    assert "masks not used" not in truth.note
    np.testing.assert_array_equal(truth.depth, read(copy).truth.depth)


def test_a_mask_with_a_doubled_ending_is_not_this_pictures(copy: Path) -> None:
    masks = copy / "masks_for_images" / "dslr_images"
    for path in sorted(masks.iterdir()):
        path.rename(path.with_name(path.stem + ".JPG.png"))
    assert read(copy, bits=3).truth.masks is None


@pytest.mark.parametrize("bits", [-1, 4, 255])
def test_flags_that_no_mask_has_are_refused(shot_scene: Path, bits: int) -> None:
    with pytest.raises(UsageError, match=f"no mask bits {bits}"):
        read(shot_scene, bits=bits)


# --- the shot pictures themselves


@pytest.mark.parametrize("mode, width, height", [("crop", 154, 98), ("pad", 154, 154)])
def test_shot_pictures_have_rays(shot_scene: Path, mode: Mode, width: int, height: int) -> None:
    found = read(shot_scene / "images" / "dslr_images", mode=mode, width=width, height=height)
    truth, inside = found.truth, found.batch.picture_mask()
    assert truth.rays is not None
    assert truth.depth is not None
    assert truth.rays.shape == (FRAMES, height, width, 2)
    assert np.isnan(truth.rays[~inside]).all()
    assert np.isinf(truth.depth[~inside]).all()
    # Each ray meets the picture at its pixel's centre.
    spot = found.batch.placements[0]
    back = project(truth.rays[0])
    at = back * (spot.scale_x, spot.scale_y) + (spot.left, spot.top)
    assert np.nanmax(np.abs(at - centres(width, height))) < 1e-4
    off = off_plane(truth, truth.rays)
    assert np.isfinite(off[inside]).all()
    assert np.abs(np.nanmean(off, axis=(1, 2))).max() < 1e-3
    assert np.nanmax(np.abs(off)) < 0.02
    # The twin: the matrix instead of the rays.
    assert np.nanmax(np.abs(off_plane(truth, None))) > 0.06


def test_shot_and_undistorted_pictures_have_the_same_cameras(shot_scene: Path) -> None:
    shot, plain = read(shot_scene / "images" / "dslr_images"), read(shot_scene)
    np.testing.assert_allclose(shot.truth.extrinsic, plain.truth.extrinsic, atol=1e-12)
    assert find_images(shot_scene).root.name == "dslr_images_undistorted"


def test_masks_of_shot_pictures(shot_scene: Path) -> None:
    found = read(shot_scene / "images" / "dslr_images", bits=3)
    assert found.truth.depth is not None
    assert found.truth.masks is not None
    columns = (centres(154, 98)[..., 0] - found.batch.placements[0].left) * 604 / 154
    np.testing.assert_array_equal(np.isinf(found.truth.depth[0]), columns < 160)
    assert np.isfinite(found.truth.depth[2]).all()


def test_a_lens_in_a_folder_of_colmap_text(shot_scene: Path, tmp_path: Path) -> None:
    """Pictures of any other camera that COLMAP calibrated with distortion."""
    shutil.copytree(shot_scene / "images" / "dslr_images", tmp_path / "images")
    shutil.copytree(shot_scene / "dslr_calibration_jpg", tmp_path / "colmap")
    radial = ColmapCamera(0, "RADIAL", 604, 403, (341.0, 304.129, 201.407, 0.05, -0.01))
    colmap.write_cameras(tmp_path / "colmap" / "cameras.txt", [radial])
    truth = read(tmp_path).truth
    assert truth.depth is None
    assert truth.rays is not None
    spot = read(tmp_path).batch.placements[0]
    at = (centres(154, 98) - (spot.left, spot.top)) / (spot.scale_x, spot.scale_y)
    x, y = np.moveaxis(truth.rays[0], -1, 0)
    rr = x * x + y * y
    bent = 1 + 0.05 * rr - 0.01 * rr * rr
    back = np.stack([341.0 * x * bent + 304.129, 341.0 * y * bent + 201.407], axis=-1)
    assert np.abs(back - at).max() < 1e-4
    assert np.abs(341.0 * truth.rays[0] + (304.129, 201.407) - at).max() > 1  # no lens


def test_where_the_lens_has_no_ray_there_is_no_depth(shot_scene: Path, tmp_path: Path) -> None:
    """A calibration that folds back before the picture's corners: their depth has no place."""
    shutil.copytree(shot_scene, tmp_path / "court")
    folding = (*SHOT.params[:4], -0.45, *[0.0] * 7)
    camera = ColmapCamera(0, "THIN_PRISM_FISHEYE", 604, 403, folding)
    colmap.write_cameras(tmp_path / "court" / "dslr_calibration_jpg" / "cameras.txt", [camera])
    truth = read(tmp_path / "court" / "images" / "dslr_images").truth
    assert truth.rays is not None
    assert truth.depth is not None
    lost = np.isnan(truth.rays).any(axis=-1)
    assert 0.01 < lost.mean() < 0.9
    np.testing.assert_array_equal(np.isinf(truth.depth), lost)


# --- folders of the archives' names


LAYOUTS = {
    "each in its own": {kind: f"court_{kind}/court" for kind in KINDS},
    "bundles": {
        kind: f"multi_view_training_{kind}/court" if kind != "dslr_depth" else f"court_{kind}/court"
        for kind in KINDS
    },
    "pictures merged, the rest beside": {
        kind: "court" if kind in KINDS[:2] else f"court_{kind}/court" for kind in KINDS
    },
    "the rest merged": {
        kind: f"court_{kind}/court" if kind == "dslr_undistorted" else "court" for kind in KINDS
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_unpacked_into_the_archives_names(shot_scene: Path, tmp_path: Path, layout: str) -> None:
    for kind, folder in LAYOUTS[layout].items():
        write_part(tmp_path / folder, kind)
    merged = read(shot_scene, bits=3).truth
    (root,) = scene_roots(tmp_path)
    assert root == tmp_path / LAYOUTS[layout]["dslr_undistorted"]
    for folder in (tmp_path, root, root / "images" / "dslr_images_undistorted"):
        truth = read(folder, bits=3).truth
        np.testing.assert_array_equal(truth.depth, merged.depth)
        assert truth.masks == merged.masks
        assert "resampled" in truth.note


def test_another_scenes_archives_are_not_taken(shot_scene: Path, tmp_path: Path) -> None:
    write_part(tmp_path / "court_dslr_undistorted" / "court", "dslr_undistorted")
    for kind in ("dslr_jpg", "dslr_depth"):
        write_part(tmp_path / f"yard_{kind}" / "yard", kind)
    assert read(tmp_path / "court_dslr_undistorted").truth.depth is None
    assert len(scene_roots(tmp_path)) == 2


def test_shot_pictures_alone_are_a_scene(tmp_path: Path) -> None:
    write_part(tmp_path / "court", "dslr_jpg")
    assert scene_roots(tmp_path) == (tmp_path / "court",)
    found = read_scene(tmp_path)
    assert [frame.name for frame in found.frames] == list(NAMES)
    assert all(frame.camera == SHOT for frame in found.frames)
    assert read(tmp_path).truth.rays is not None


def test_copies_with_a_doubled_ending_are_not_pictures(copy: Path) -> None:
    pictures = copy / "images" / "dslr_images"
    for name in NAMES:
        shutil.copy(pictures / name, pictures / f"{name}.jpg")
    assert [frame.name for frame in read_scene(pictures).frames] == list(NAMES)


# --- frames on their side


def test_frames_on_their_side_are_named_by_all_poses_of_the_scene(copy: Path) -> None:
    """The two that are lying are said to lie, even where they alone are looked at."""
    for calibration in ("dslr_calibration_undistorted", "dslr_calibration_jpg"):
        path = copy / calibration / "images.txt"
        images = list(colmap.read_images(path))
        quarter = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
        for index in (0, 1):
            lying = quarter @ images[index].extrinsic()
            images[index] = colmap.posed(images[index].id, lying, 0, images[index].name)
        more = [colmap.posed(50 + i, pose_of(i), 0, f"other/DSC_{i:04d}.JPG") for i in range(3)]
        colmap.write_images(path, [*images, *more])
    assert "on their side (by their poses): DSC_0286.JPG, DSC_0287.JPG" in read(copy).truth.note
    pictures = copy / "images" / "dslr_images_undistorted"
    (pictures / NAMES[2]).unlink()
    assert "DSC_0286.JPG, DSC_0287.JPG" in read(copy).truth.note
    (pictures / NAMES[0]).unlink()
    assert "(by their poses): DSC_0287.JPG" in read(copy).truth.note


def test_upright_frames_are_not_mentioned(shot_scene: Path) -> None:
    assert "on their side" not in read(shot_scene).truth.note
