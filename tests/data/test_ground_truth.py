"""Truth at the network's size, judged by geometry: rays, planes and views that must agree.

The projections here are written out anew, in the conventions of the project's docstrings, and share
nothing with the code under test. Each check has twins in a wrong convention, which must fail it.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from vggt_deploy.data import colmap
from vggt_deploy.data.colmap import ColmapCamera
from vggt_deploy.data.eth3d import read_scene, write_scene
from vggt_deploy.data.ground_truth import (
    GroundTruth,
    ground_truth,
    moved_intrinsic,
    no_truth_because,
    read_truth,
    source_pixels,
    write_truth,
)
from vggt_deploy.data.images import ImageBatch, Mode, Placement, load_images, place
from vggt_deploy.data.masks import MaskUse
from vggt_deploy.data.synthetic import SceneViews
from vggt_deploy.errors import SceneError, UsageError

Doubles = NDArray[np.float64]
PICTURES = "images/dslr_images_undistorted"
HEIGHT, WIDTH = 84, 112


def truth_of(
    folder: Path, *, mode: Mode = "crop", width: int = WIDTH, height: int | None = HEIGHT
) -> tuple[GroundTruth, ImageBatch]:
    frames = read_scene(folder).frames
    batch = load_images([frame.path for frame in frames], mode=mode, width=width, height=height)
    truth = ground_truth(batch.paths, batch.placements, batch.height, batch.width)
    assert truth is not None
    return truth, batch


def moved_depth(
    depth: NDArray[np.float32], placement: Placement, height: int, width: int
) -> NDArray[np.float32]:
    """Depth of the picture itself, at the network's pixels."""
    h, w = depth.shape
    camera = ColmapCamera(0, "PINHOLE", w, h, (1.0, 1.0, 0.0, 0.0))
    at, inside = source_pixels(camera, camera, placement, height, width)
    return np.where(inside, depth[at], np.float32(np.inf))


def world_points(depth: NDArray[np.float32], pose: Doubles, k: Doubles, centre: float) -> Doubles:
    """[H, W, 3] of pixels whose centres are at (u + centre, v + centre); unknown depth counts 0."""
    v, u = np.mgrid[: depth.shape[0], : depth.shape[1]] + centre
    z = np.where(np.isfinite(depth), depth, 0).astype(np.float64)
    x, y = (u - k[0, 2]) / k[0, 0] * z, (v - k[1, 2]) / k[1, 1] * z
    return np.asarray((np.stack([x, y, z], axis=-1) - pose[:, 3]) @ pose[:, :3])


# --- the moved matrix and the moved depth are about the same pixels

SIDES = st.integers(14, 300)


@settings(deadline=None)
@given(SIDES, SIDES, st.sampled_from(["crop", "pad"]), st.integers(1, 9), st.integers(1, 9))
def test_a_pixels_ray_passes_the_stored_pixel_that_its_depth_is_from(
    w: int, h: int, mode: Mode, across: int, down: int
) -> None:
    width, height = 14 * across, 14 * down
    assume(round(h * (width / w) / 14) > 0 and round(w * (height / h) / 14) > 0)
    placement, _ = place((w, h), mode, width, height)
    k = np.array([[0.9 * w, 0, 0.47 * w], [0, 1.1 * w, 0.53 * h], [0, 0, 1.0]])
    # Depth that says which pixel it is.
    coded = np.arange(1, h * w + 1, dtype=np.float32).reshape(h, w)
    moved = moved_depth(coded, placement, height, width)
    v, u = np.nonzero(np.isfinite(moved))
    source = moved[v, u].astype(np.int64) - 1
    stored = np.stack([source % w + 0.5, source // w + 0.5])

    def distance(matrix: Doubles) -> float:
        """Largest distance, in stored pixels, of the network pixel's ray from its source."""
        ray = np.linalg.solve(matrix, np.stack([u + 0.5, v + 0.5, np.ones(len(u))]))
        return float(np.abs((k @ ray)[:2] - stored).max())

    assert distance(moved_intrinsic(k, placement)) <= 0.5 + 1e-6
    # The twin that is off by a half: where the picture shrinks, half a network pixel is more than
    # half a stored one, and to one side or the other the ray leaves the stored pixel.
    if placement.scale_x < 1:
        half = np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])
        moved_k = moved_intrinsic(k, placement)
        assert max(distance(moved_k - half), distance(moved_k + half)) > 0.5 + 1e-6


@settings(deadline=None)
@given(SIDES, SIDES, st.sampled_from(["crop", "pad"]), st.integers(1, 9), st.integers(1, 9))
def test_padding_has_no_depth_and_all_else_has(
    w: int, h: int, mode: Mode, across: int, down: int
) -> None:
    width, height = 14 * across, 14 * down
    assume(round(h * (width / w) / 14) > 0 and round(w * (height / h) / 14) > 0)
    placement, _ = place((w, h), mode, width, height)
    placement = placement.shifted(3, 5)  # as in a batch of different shapes
    moved = moved_depth(np.ones((h, w), np.float32), placement, height + 10, width + 6)
    batch = ImageBatch(
        np.empty((1, 3, height + 10, width + 6), np.float32),
        (Path("a"),),
        ((w, h),),
        (placement,),
        ("",),
        (),
        mode,
    )
    np.testing.assert_array_equal(np.isfinite(moved), batch.picture_mask()[0])


def test_depth_is_never_mixed(scene: Path, views: SceneViews) -> None:
    """Every value is one that is stored, with half of the picture unknown."""
    truth, _ = truth_of(scene, width=126, height=98)
    assert truth.depth is not None
    for depth, stored in zip(truth.depth, views.depth, strict=True):
        assert np.isin(depth, stored).all()
    resized = np.asarray(Image.fromarray(views.depth[0]).resize((126, 98), Image.Resampling.BOX))
    assert not np.isin(resized, views.depth[0]).all()


@pytest.mark.parametrize("size", [(336, 252), (100, 130), (130, 100)])
@pytest.mark.parametrize("mode", ["crop", "pad"])
def test_the_pictures_pixels_move_with_the_matrix(
    tmp_path: Path, size: tuple[int, int], mode: Mode
) -> None:
    """A picture whose red says the column, and whose green the row: where do they come out?"""
    w, h = size
    column, row = np.meshgrid(np.arange(w), np.arange(h))
    pixels = np.stack([column * 255 / w, row * 255 / h, 0 * row], axis=-1).round().astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "ramp.png")
    batch = load_images([tmp_path / "ramp.png"], mode=mode, width=WIDTH, height=HEIGHT)
    matrix = moved_intrinsic(np.eye(3), batch.placements[0])
    inner = batch.picture_mask()[0]
    inner[[0, 1, -2, -1]] = inner[:, [0, 1, -2, -1]] = False  # bicubic is one-sided at the border
    inner &= np.roll(inner, 2, 0) & np.roll(inner, -2, 0) & np.roll(inner, 2, 1)
    inner &= np.roll(inner, -2, 1)
    v, u = np.nonzero(inner)
    for centre, fits in ((0.5, True), (0.0, False), (1.0, False)):
        at = np.linalg.solve(matrix, np.stack([u + centre, v + centre, np.ones(len(u))]))
        red, green = batch.pixels[0, :2, v, u].T * np.array([[w], [h]])
        # The value of a pixel is its index: half a pixel before its centre.
        off = [np.mean(at[0] - 0.5 - red), np.mean(at[1] - 0.5 - green)]
        assert (np.abs(off).max() < 0.1) == fits


# --- exact geometry: a tilted plane, before three cameras


def plane_views(width: int, height: int) -> tuple[SceneViews, Doubles]:
    """Views of one plane with exact depth, and the plane (n, d) with n X = d."""
    normal, offset = np.array([0.25, -0.35, 0.9]), 4.0
    k = np.array([[0.8 * width, 0, 0.51 * width], [0, 0.82 * width, 0.48 * height], [0, 0, 1]])
    poses, depths = [], []
    for angle, shift in ((0.0, 0.0), (0.15, 0.4), (-0.2, -0.7)):
        c, s = np.cos(angle), np.sin(angle)
        turn = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
        pose = np.column_stack([turn, np.array([shift, 0.1 * shift, 0.2])])
        v, u = np.mgrid[:height, :width] + 0.5
        rays = np.stack([(u - k[0, 2]) / k[0, 0], (v - k[1, 2]) / k[1, 1], np.ones_like(u)], -1)
        # n . R^T (z ray - t) = d
        z = (offset + normal @ turn.T @ pose[:, 3]) / (rays @ turn @ normal)
        poses.append(pose)
        depths.append(z)
    count = len(poses)
    views = SceneViews(
        family="plane",
        seed=0,
        traits=(),
        images=np.full((count, height, width, 3), 99, np.uint8),
        depth=np.stack(depths).astype(np.float32),
        extrinsic=np.stack(poses),
        intrinsic=np.stack([k] * count),
    )
    return views, np.append(normal, offset)


def off_plane(truth: GroundTruth, plane: Doubles, centre: float = 0.5) -> Doubles:
    """Mean signed distance of each view's points from the plane, in metres."""
    assert truth.depth is not None
    out = []
    for depth, pose, k in zip(truth.depth, truth.extrinsic, truth.intrinsic, strict=True):
        points = world_points(depth, pose, k, centre)[np.isfinite(depth)]
        assert len(points) > 1000
        out.append((points @ plane[:3] - plane[3]).mean())
    return np.array(out)


@pytest.mark.parametrize(
    "size, mode, width, height, tolerance",
    [
        # A third: the network's pixel centres are stored pixel centres, so nothing is lost.
        ((336, 252), "crop", 112, 84, 1e-5),
        # Other scales take the nearest pixel's depth: its errors cancel in the mean.
        ((300, 400), "crop", 112, 84, 1e-3),
        ((300, 400), "pad", 112, 112, 1e-3),
        ((400, 200), "pad", 112, 84, 1e-3),
        ((400, 200), "crop", 112, 84, 1e-3),
        ((336, 252), "crop", 518, None, 3e-4),
    ],
)
def test_points_of_the_network_lie_on_the_plane(
    tmp_path: Path,
    size: tuple[int, int],
    mode: Mode,
    width: int,
    height: int | None,
    tolerance: float,
) -> None:
    views, plane = plane_views(*size)
    write_scene(tmp_path, views)
    truth, batch = truth_of(tmp_path, mode=mode, width=width, height=height)
    assert np.abs(off_plane(truth, plane)).max() < tolerance
    # Twins: half a pixel off at the network's size; the pose in the other direction.
    assert np.abs(off_plane(truth, plane, centre=0.0)).max() > max(1e-3, 3 * tolerance)
    turned = truth.extrinsic.copy()
    turned[:, :, :3] = turned[:, :, :3].transpose(0, 2, 1)
    assert np.abs(off_plane(replace(truth, extrinsic=turned), plane)).max() > 0.1
    # And a matrix that was not moved with the crop or the padding.
    if any(place.left or place.top for place in batch.placements):
        still = truth.intrinsic.copy()
        for k, spot in zip(still, batch.placements, strict=True):
            k[:2, 2] -= (spot.left, spot.top)
        assert np.abs(off_plane(replace(truth, intrinsic=still), plane)).max() > 0.05


# --- views of a rendered scene see the same points


def agreement(truth: GroundTruth, pixels: NDArray[np.float32]) -> tuple[float, float]:
    """Views in pairs: share of pixels whose point is where the other view has it (1 %), and the
    median difference of colour there (0..1).
    """
    assert truth.depth is not None
    height, width = truth.depth.shape[1:]
    same, colours, total = 0, [], 0
    for a in range(len(truth.depth)):
        for b in range(len(truth.depth)):
            if a == b:
                continue
            points = world_points(truth.depth[a], truth.extrinsic[a], truth.intrinsic[a], 0.5)
            known = np.isfinite(truth.depth[a])
            camera = points[known] @ truth.extrinsic[b][:, :3].T + truth.extrinsic[b][:, 3]
            at = camera @ truth.intrinsic[b].T
            ahead = camera[:, 2] > 0.1
            z = np.where(ahead, camera[:, 2], 1)
            u, v = np.floor(at[:, 0] / z).astype(int), np.floor(at[:, 1] / z).astype(int)
            inside = ahead & (u >= 0) & (v >= 0) & (u < width) & (v < height)
            total += int(inside.sum())
            u, v, z = u[inside], v[inside], z[inside]
            fits = np.abs(truth.depth[b][v, u] - z) < 0.01 * z
            same += int(fits.sum())
            here = pixels[a].transpose(1, 2, 0)[known][inside][fits]
            colours.append(np.abs(pixels[b].transpose(1, 2, 0)[v, u][fits] - here).ravel())
    assert total > 2000
    return same / total, float(np.median(np.concatenate(colours)))


def rewritten(scene: Path, folder: Path, how: str) -> Path:
    """The scene with its poses in a wrong convention."""
    shutil.copytree(scene, folder)
    path = folder / "dslr_calibration_undistorted" / "images.txt"
    images = []
    for image in colmap.read_images(path):
        w, x, y, z = image.quaternion
        if how == "camera to world":
            pose = image.extrinsic()
            turn = pose[:, :3].T
            back = np.column_stack([turn, -turn @ pose[:, 3]])
            image = colmap.posed(image.id, back, image.camera_id, image.name)
        elif how == "scalar last":
            image = replace(image, quaternion=(x, y, z, w))
        elif how == "conjugate":
            image = replace(image, quaternion=(w, -x, -y, -z))
        images.append(image)
    if how == "names moved on":
        names = [image.name for image in images]
        images = [
            replace(image, name=name)
            for image, name in zip(images, names[1:] + names[:1], strict=True)
        ]
    colmap.write_images(path, images)
    return folder


@pytest.mark.parametrize("mode", ["crop", "pad"])
def test_views_see_each_others_points(scene: Path, mode: Mode) -> None:
    truth, batch = truth_of(scene, mode=mode)
    share, colour = agreement(truth, batch.pixels)
    assert share > 0.75
    assert colour < 0.03


@pytest.mark.parametrize("how", ["camera to world", "scalar last", "conjugate", "names moved on"])
def test_a_wrong_convention_on_disk_is_seen(scene: Path, tmp_path: Path, how: str) -> None:
    truth, batch = truth_of(rewritten(scene, tmp_path / "wrong", how))
    share, _ = agreement(truth, batch.pixels)
    assert share < 0.4


def test_pictures_in_another_order_have_their_own_cameras(scene: Path, views: SceneViews) -> None:
    paths = [frame.path for frame in read_scene(scene).frames][::-1][:3]
    batch = load_images(paths, width=WIDTH, height=HEIGHT)
    truth = ground_truth(batch.paths, batch.placements, HEIGHT, WIDTH)
    assert truth is not None
    np.testing.assert_allclose(truth.extrinsic, views.extrinsic[[3, 2, 1]], atol=1e-12)
    share, _ = agreement(truth, batch.pixels)
    assert share > 0.75


# --- real photographs: matched features lie on each other's epipolar lines


def sampson_px(truth: GroundTruth, pixels: NDArray[np.float32], pair: Sequence[int]) -> float:
    """Median Sampson distance of SIFT matches under the true cameras, in the network's pixels."""
    feature = pytest.importorskip("skimage.feature", reason="needs scikit-image")
    points, descriptors = [], []
    for index in pair:
        sift = feature.SIFT()
        sift.detect_and_extract(pixels[index].mean(axis=0))
        # Rows and columns at whole pixels -> x, y with the first centre at 0.5.
        points.append(sift.positions[:, ::-1] + 0.5)
        descriptors.append(sift.descriptors)
    matches = feature.match_descriptors(*descriptors, max_ratio=0.75, cross_check=True)
    assert len(matches) > 60
    pose_a, pose_b = (truth.extrinsic[index] for index in pair)
    turn = pose_b[:, :3] @ pose_a[:, :3].T
    x, y, z = pose_b[:, 3] - turn @ pose_a[:, 3]
    essential = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) @ turn
    inverse_a, inverse_b = (np.linalg.inv(truth.intrinsic[index]) for index in pair)
    fundamental = inverse_b.T @ essential @ inverse_a
    a, b = (
        np.column_stack([p[m], np.ones(len(m))]) for p, m in zip(points, matches.T, strict=True)
    )
    line_b, line_a = a @ fundamental.T, b @ fundamental
    scale = np.sqrt((line_a[:, :2] ** 2).sum(1) + (line_b[:, :2] ** 2).sum(1))
    return float(np.median(np.abs((b * line_b).sum(1)) / scale))


@pytest.mark.parametrize("folder", ["strecha/fountain-P11", "eth3d/terrace"])
def test_matches_between_photographs_fit_the_cameras(shared_data: Path, folder: str) -> None:
    scene = shared_data / "data" / folder
    if not scene.is_dir():
        pytest.skip(f"no {folder} in {shared_data}")
    paths = [frame.path for frame in read_scene(scene).frames][-2:]
    batch = load_images(paths, width=336, height=140)  # cut at top and bottom
    truth = ground_truth(batch.paths, batch.placements, batch.height, batch.width)
    assert truth is not None
    assert truth.depth is None
    assert sampson_px(truth, batch.pixels, (0, 1)) < 0.3
    turned = truth.extrinsic.copy()
    turned[:, :, :3] = turned[:, :, :3].transpose(0, 2, 1)
    assert sampson_px(replace(truth, extrinsic=turned), batch.pixels, (0, 1)) > 2
    still = truth.intrinsic.copy()
    still[:, 1, 2] -= batch.placements[0].top
    assert sampson_px(replace(truth, intrinsic=still), batch.pixels, (0, 1)) > 0.5


def test_measured_depth_agrees_between_two_frames(shared_data: Path, tmp_path: Path) -> None:
    """A depth camera's frames, written as a scene: the same surfaces, seen from two places."""
    recording = shared_data / "data" / "slambook2_rgbd"
    if not recording.is_dir():
        pytest.skip(f"no slambook2_rgbd in {shared_data}")
    frames = [frame for frame in read_scene(recording).frames if frame.name in ("4.png", "5.png")]
    images, depths = [], []
    for frame in frames:
        with Image.open(frame.path) as picture:
            images.append(np.asarray(picture.convert("RGB")))
        with Image.open(recording / "depth" / frame.name.replace("png", "pgm")) as stored:
            metres = np.asarray(stored).astype(np.float32) / 1000
        depths.append(np.where(metres > 0, metres, np.float32(np.inf)))
    views = SceneViews(
        family="recording",
        seed=0,
        traits=(),
        images=np.stack(images),
        depth=np.stack(depths),
        extrinsic=np.stack([frame.extrinsic for frame in frames]),
        intrinsic=np.stack([frame.camera.intrinsic() for frame in frames]),
    )
    write_scene(tmp_path, views)
    truth, batch = truth_of(tmp_path, width=322, height=238)
    # Within 1 % of each other, where the sensor's own noise is of that size.
    share, colour = agreement(truth, batch.pixels)
    assert share > 0.4
    assert colour < 0.03
    turned = truth.extrinsic.copy()
    turned[:, :, :3] = turned[:, :, :3].transpose(0, 2, 1)
    assert agreement(replace(truth, extrinsic=turned), batch.pixels)[0] < 0.1


# --- kept beside a comparison

TRUTHS = {
    "all": GroundTruth(
        extrinsic=np.arange(24.0).reshape(2, 3, 4),
        intrinsic=np.arange(18.0).reshape(2, 3, 3),
        depth=np.array([[[1, np.inf]], [[2, 3]]], np.float32),
        note="from a note, with \u00e9",
        rays=np.array([[[[0.5, -0.25], [np.nan, np.nan]]]] * 2),
        masks=MaskUse(bits=3, frames=2, pixels=17),
    ),
    "cameras": GroundTruth(np.zeros((1, 3, 4)), np.ones((1, 3, 3)), None, ""),
}


@pytest.mark.parametrize("which", TRUTHS)
def test_a_truth_survives_its_file(tmp_path: Path, which: str) -> None:
    truth = TRUTHS[which]
    write_truth(tmp_path / "truth.npz", truth)
    again = read_truth(tmp_path / "truth.npz")
    assert (again.note, again.masks) == (truth.note, truth.masks)
    for name in ("extrinsic", "intrinsic", "depth", "rays"):
        before, after = getattr(truth, name), getattr(again, name)
        if before is None:
            assert after is None
        else:
            assert after.dtype == before.dtype
            np.testing.assert_array_equal(after, before)
    assert [path.name for path in tmp_path.iterdir()] == ["truth.npz"]


def test_a_truth_without_rays_and_masks_is_an_older_file(tmp_path: Path) -> None:
    with (tmp_path / "old.npz").open("wb") as file:
        np.savez(file, extrinsic=np.zeros((1, 3, 4)), intrinsic=np.ones((1, 3, 3)), note="old")
    old = read_truth(tmp_path / "old.npz")
    assert (old.rays, old.masks, old.depth) == (None, None, None)


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "no poses", "short masks", "absent"])
def test_a_damaged_truth_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "truth.npz"
    write_truth(path, TRUTHS["all"])
    whole = path.read_bytes()
    if damage == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "text":
        path.write_text("none")
    elif damage == "absent":
        path.unlink()
    else:
        arrays = dict(np.load(path))
        if damage == "no poses":
            del arrays["extrinsic"]
        else:
            arrays["masks"] = arrays["masks"][:2]
        with path.open("wb") as file:
            np.savez(file, **arrays)
    with pytest.raises(SceneError, match="can't be read"):
        read_truth(path)


# --- what is not there, and what does not fit


def test_pictures_that_are_in_no_scene_have_no_truth(scene: Path, tmp_path: Path) -> None:
    pictures = shutil.copytree(scene / PICTURES, tmp_path / "holiday")
    batch = load_images(sorted(pictures.iterdir()), width=WIDTH, height=HEIGHT)
    assert ground_truth(batch.paths, batch.placements, HEIGHT, WIDTH) is None
    why = no_truth_because(batch.paths)
    assert why is not None
    assert "dslr_images_undistorted" in why
    mixed = [batch.paths[0], scene / PICTURES / "DSC_0001.JPG"]
    assert ground_truth(mixed, batch.placements[:2], HEIGHT, WIDTH) is None
    assert no_truth_because(mixed) == "the pictures lie in 2 folders, not in one scene"
    assert no_truth_because([scene / PICTURES / "DSC_0001.JPG"]) is None


def test_a_relative_path_is_as_good(scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(scene / PICTURES)
    batch = load_images([Path("DSC_0001.JPG")], width=WIDTH, height=HEIGHT)
    assert ground_truth(batch.paths, batch.placements, HEIGHT, WIDTH) is not None


def test_a_picture_without_a_pose_is_named(scene: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(scene, tmp_path / "scene")
    extra = folder / PICTURES / "DSC_0009.JPG"
    shutil.copy(folder / PICTURES / "DSC_0000.JPG", extra)
    batch = load_images([extra], width=WIDTH, height=HEIGHT)
    with pytest.raises(SceneError, match=r"DSC_0009\.JPG has no pose"):
        ground_truth(batch.paths, batch.placements, HEIGHT, WIDTH)


def test_only_the_pictures_in_question_must_be_whole(scene: Path, tmp_path: Path) -> None:
    """A broken file that was left out of the batch is nobody's concern."""
    folder = shutil.copytree(scene, tmp_path / "scene")
    (folder / PICTURES / "DSC_0002.JPG").write_bytes(b"broken")
    paths = sorted((folder / PICTURES).iterdir())
    batch = load_images(paths, width=WIDTH, height=HEIGHT, skip_bad=True)
    truth = ground_truth(batch.paths, batch.placements, HEIGHT, WIDTH)
    assert truth is not None
    assert len(truth.extrinsic) == 3
    assert agreement(truth, batch.pixels)[0] > 0.75
    assert "1 more poses in the calibration" in truth.note


def test_frames_without_depth(scene: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(scene, tmp_path / "scene")
    depths = sorted((folder / "ground_truth_depth" / "dslr_images_undistorted").iterdir())
    depths[2].unlink()
    truth, _ = truth_of(folder)
    assert truth.depth is not None
    assert np.isinf(truth.depth[2]).all()
    assert np.isfinite(truth.depth[[0, 1, 3]]).all()
    assert "depth of 3 of 4 frames" in truth.note
    shutil.rmtree(folder / "ground_truth_depth")
    assert truth_of(folder)[0].depth is None


def test_placements_of_other_pictures_are_refused(scene: Path) -> None:
    batch = load_images([scene / PICTURES / "DSC_0001.JPG"], width=WIDTH, height=HEIGHT)
    other, _ = place((640, 480), "crop", WIDTH, HEIGHT)
    with pytest.raises(SceneError, match="another size than 336 x 252"):
        ground_truth(batch.paths, [other], HEIGHT, WIDTH)
    with pytest.raises(UsageError, match="2 placements for 1 pictures"):
        ground_truth(batch.paths, [other, other], HEIGHT, WIDTH)
    with pytest.raises(UsageError, match="0 placements for 0 pictures"):
        ground_truth([], [], HEIGHT, WIDTH)


def test_truncated_depth_is_refused(scene: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(scene, tmp_path / "scene")
    path = folder / "ground_truth_depth" / "dslr_images_undistorted" / "DSC_0001.JPG"
    path.write_bytes(path.read_bytes()[:-100])
    batch = load_images([folder / PICTURES / "DSC_0001.JPG"], width=WIDTH, height=HEIGHT)
    with pytest.raises(SceneError, match=r"DSC_0001\.JPG has 338588 bytes"):
        ground_truth(batch.paths, batch.placements, HEIGHT, WIDTH)
