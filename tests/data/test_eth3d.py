"""Scenes on disk: what is written is read back, in the layouts that people have, or refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vggt_deploy.data import colmap
from vggt_deploy.data.eth3d import read_depth, read_scene, write_scene
from vggt_deploy.data.eth3d_layout import scene_of
from vggt_deploy.data.synthetic import SceneViews
from vggt_deploy.errors import ImageError, SceneError

PICTURES = "images/dslr_images_undistorted"
DEPTHS = "ground_truth_depth/dslr_images_undistorted"
CALIBRATION = "dslr_calibration_undistorted"


@pytest.fixture
def copy(scene: Path, tmp_path: Path) -> Path:
    """A scene that a test may damage."""
    return shutil.copytree(scene, tmp_path / "scene")


def edit(path: Path, change: Callable[[str], str]) -> None:
    before = path.read_text()
    after = change(before)
    assert after != before
    path.write_text(after)


# --- what is written is read


def test_cameras_and_depth_come_back(scene: Path, views: SceneViews) -> None:
    read = read_scene(scene)
    assert [frame.name for frame in read.frames] == [f"DSC_{i:04d}.JPG" for i in range(4)]
    assert read.root == scene
    assert read.without_pose == ()
    assert "depth of 4 of 4 frames" in read.note
    for index, frame in enumerate(read.frames):
        assert (frame.camera.width, frame.camera.height) == (336, 252)
        np.testing.assert_allclose(frame.extrinsic, views.extrinsic[index], atol=1e-12)
        np.testing.assert_array_equal(frame.camera.intrinsic(), views.intrinsic[index])
        assert frame.depth is not None
        assert frame.depth.camera == frame.camera
        np.testing.assert_array_equal(read_depth(frame.depth.path, 336, 252), views.depth[index])
        with Image.open(frame.path) as picture:
            assert picture.format == "JPEG"
            assert all(layer[1:3] == (1, 1) for layer in picture.layer)  # 4:4:4
            error = np.abs(np.asarray(picture).astype(int) - views.images[index])
        assert error.mean() < 3


def test_the_bytes_are_those_of_the_format(scene: Path, views: SceneViews) -> None:
    stored = (scene / DEPTHS / "DSC_0001.JPG").read_bytes()
    assert stored == views.depth[1].astype("<f4").tobytes()
    lines = (scene / CALIBRATION / "cameras.txt").read_text().splitlines()
    fx, fy, cx, cy = (float(views.intrinsic[0][at]) for at in ((0, 0), (1, 1), (0, 2), (1, 2)))
    assert lines[3] == f"0 PINHOLE 336 252 {fx!r} {fy!r} {cx!r} {cy!r}"
    first = (scene / CALIBRATION / "images.txt").read_text().splitlines()[4].split()
    assert (first[0], first[8], first[9]) == ("1", "0", "dslr_images_undistorted/DSC_0000.JPG")


def test_unknown_depth_stays_infinite(tmp_path: Path, views: SceneViews) -> None:
    depth = views.depth.copy()
    depth[:, :40] = np.inf
    write_scene(tmp_path, replace(views, depth=depth))
    file = read_scene(tmp_path).frames[0].depth
    assert file is not None
    assert np.isinf(read_depth(file.path, 336, 252)[:40]).all()


def test_each_distinct_matrix_is_a_camera(tmp_path: Path, views: SceneViews) -> None:
    intrinsic = views.intrinsic[[0, 0, 0, 0]]
    intrinsic[1, 0, 0] += 1
    write_scene(tmp_path, replace(views, intrinsic=intrinsic))
    assert len(colmap.read_cameras(tmp_path / CALIBRATION / "cameras.txt")) == 2
    read = np.stack([frame.camera.intrinsic() for frame in read_scene(tmp_path).frames])
    np.testing.assert_array_equal(read, intrinsic)


def observation_errors(folder: Path) -> np.ndarray[Any, Any]:
    """Distance in pixels of every observation from its point's projection."""
    cameras = colmap.read_cameras(folder / "cameras.txt")
    images = {image.id: image for image in colmap.read_images(folder / "images.txt")}
    errors = []
    for point in colmap.read_points(folder / "points3D.txt"):
        for image_id, index in point.track:
            image = images[image_id]
            seen = image.observations[index]
            assert seen.point_id == point.id
            pose = image.extrinsic()
            at = cameras[image.camera_id].intrinsic() @ (
                pose[:, :3] @ np.array(point.position) + pose[:, 3]
            )
            errors.append(np.hypot(at[0] / at[2] - seen.x, at[1] / at[2] - seen.y))
    return np.array(errors)


def test_points_and_observations_agree_with_the_cameras(scene: Path, copy: Path) -> None:
    points = colmap.read_points(scene / CALIBRATION / "points3D.txt")
    images = colmap.read_images(scene / CALIBRATION / "images.txt")
    assert 100 <= len(points) <= 400
    assert all(len(point.track) >= 2 for point in points)
    errors = observation_errors(scene / CALIBRATION)
    assert len(errors) == sum(len(image.observations) for image in images)
    assert errors.max() < 1e-6
    # The twin: a focal length that is 1 % off.
    edit(copy / CALIBRATION / "cameras.txt", lambda text: text.replace(text.split()[-4], "300.0"))
    assert observation_errors(copy / CALIBRATION).max() > 0.5


def test_points_lie_on_what_the_views_see(scene: Path, views: SceneViews) -> None:
    images = {x.id: x for x in colmap.read_images(scene / CALIBRATION / "images.txt")}
    for point in colmap.read_points(scene / CALIBRATION / "points3D.txt"):
        # It is the point of a pixel: one observation is at a pixel's centre.
        track = [images[image_id].observations[index] for image_id, index in point.track]
        assert min(max(abs(o.x % 1 - 0.5), abs(o.y % 1 - 0.5)) for o in track) < 1e-6
        for image_id, index in point.track:
            seen = images[image_id].observations[index]
            pose = views.extrinsic[image_id - 1]
            z = float(pose[2, :3] @ np.array(point.position) + pose[2, 3])
            depth = views.depth[image_id - 1, int(seen.y), int(seen.x)]
            assert abs(depth - z) < 0.02 * z


def test_colmap_reads_it_in_the_same_way(scene: Path) -> None:
    pycolmap = pytest.importorskip("pycolmap", reason="needs COLMAP's own reader")
    model = pycolmap.Reconstruction()
    model.read_text(str(scene / CALIBRATION))
    frames = {f"dslr_images_undistorted/{x.name}": x for x in read_scene(scene).frames}
    assert len(model.images) == len(frames)
    for image in model.images.values():
        ours = frames[image.name]
        pose = image.cam_from_world() if callable(image.cam_from_world) else image.cam_from_world
        np.testing.assert_allclose(pose.matrix(), ours.extrinsic, atol=1e-12)
        matrix = model.cameras[image.camera_id].calibration_matrix()
        np.testing.assert_allclose(matrix, ours.camera.intrinsic())
        for seen in image.points2D:
            at = image.project_point(model.points3D[seen.point3D_id].xyz)
            np.testing.assert_allclose(at, seen.xy, atol=1e-6)


# --- where a scene is found


@pytest.mark.parametrize("given", [".", "images", PICTURES])
def test_from_any_level(scene: Path, given: str) -> None:
    assert read_scene(scene / given).root == scene


@pytest.mark.parametrize("given", [".", "room_dslr_undistorted", "room_dslr_undistorted/room"])
def test_unpacked_into_the_archives_name(scene: Path, tmp_path: Path, given: str) -> None:
    root = shutil.copytree(scene, tmp_path / "room_dslr_undistorted" / "room")
    assert read_scene(tmp_path / given).root == root


def test_several_scenes_are_not_guessed(scene: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        shutil.copytree(scene, tmp_path / name)
    with pytest.raises(ImageError, match="2 ETH3D scenes"):
        read_scene(tmp_path)


@pytest.mark.parametrize("pictures", ["images", "color", "."])
def test_a_folder_of_colmap_text_beside_pictures(
    scene: Path, tmp_path: Path, pictures: str
) -> None:
    shutil.copytree(scene / PICTURES, tmp_path / pictures, dirs_exist_ok=True)
    shutil.copytree(scene / CALIBRATION, tmp_path / "colmap")
    read = read_scene(tmp_path)
    assert len(read.frames) == 4
    assert all(frame.depth is None for frame in read.frames)


def test_pictures_without_calibration(scene: Path, tmp_path: Path) -> None:
    shutil.copytree(scene / PICTURES, tmp_path / "holiday")
    assert scene_of(tmp_path / "holiday") is None
    with pytest.raises(SceneError, match="no calibration: they lie in no dslr_images_und"):
        read_scene(tmp_path)
    moved = shutil.copytree(scene / PICTURES, tmp_path / "b" / PICTURES)
    assert scene_of(moved) is None
    with pytest.raises(SceneError, match="there is no dslr_calibration_undistorted beside "):
        read_scene(tmp_path / "b")


def test_distorted_pictures_are_not_read_with_the_undistorted_cameras(copy: Path) -> None:
    (copy / PICTURES).rename(copy / "images" / "dslr_images")
    with pytest.raises(SceneError, match="there is no dslr_calibration_jpg beside dslr_images"):
        read_scene(copy)


def test_depth_of_the_shot_pictures_without_their_camera_is_named_and_not_used(copy: Path) -> None:
    (copy / DEPTHS).rename(copy / "ground_truth_depth" / "dslr_images")
    read = read_scene(copy)
    assert all(frame.depth is None for frame in read.frames)
    assert "not used: ground_truth_depth/dslr_images, of the pictures as they were" in read.note
    assert "there is no dslr_calibration_jpg" in read.note


def test_pictures_without_pose_and_poses_without_picture(copy: Path) -> None:
    pictures = copy / PICTURES
    (pictures / "DSC_0001.JPG").unlink()
    shutil.copy(pictures / "DSC_0000.JPG", pictures / "DSC_0009.JPG")
    read = read_scene(copy)
    assert [frame.name[4:8] for frame in read.frames] == ["0000", "0002", "0003"]
    assert read.without_pose == (pictures / "DSC_0009.JPG",)
    assert "without a pose: DSC_0009.JPG" in read.note
    assert "1 more poses in the calibration" in read.note


def test_frames_are_in_the_order_of_names_whatever_the_files_order(copy: Path) -> None:
    path = copy / CALIBRATION / "images.txt"
    images = colmap.read_images(path)
    colmap.write_images(path, images[::-1])
    before, after = read_scene(copy), [image.extrinsic() for image in images]
    np.testing.assert_array_equal([frame.extrinsic for frame in before.frames], after)


def test_the_shared_scenes(shared_data: Path) -> None:
    terrace, facade = (shared_data / "data" / "eth3d" / name for name in ("terrace", "facade"))
    if not terrace.is_dir():
        pytest.skip(f"no ETH3D samples in {shared_data}")
    frames = read_scene(terrace).frames
    assert [frame.name for frame in frames] == ["DSC_0269.JPG", "DSC_0270.JPG"]
    centres = [-frame.extrinsic[:, :3].T @ frame.extrinsic[:, 3] for frame in frames]
    assert np.linalg.norm(centres[1] - centres[0]) == pytest.approx(0.940, abs=5e-4)
    half = read_scene(facade)
    assert [frame.name for frame in half.frames] == ["DSC_0410.JPG"]
    assert [path.name for path in half.without_pose] == ["DSC_0411.JPG"]
    with pytest.raises(ImageError, match="no JPG, JPEG or PNG"):
        read_scene(shared_data / "data" / "eth3d_poses_only" / "kicker")


# --- what is refused


@pytest.mark.parametrize("name", ["cameras.txt", "images.txt"])
def test_a_missing_calibration_file_is_named(copy: Path, name: str) -> None:
    (copy / CALIBRATION / name).unlink()
    with pytest.raises(SceneError, match=rf"can't read .*{CALIBRATION}/{name}"):
        read_scene(copy)


def test_an_unknown_camera_is_refused(copy: Path) -> None:
    edit(copy / CALIBRATION / "cameras.txt", lambda text: text.replace("\n0 PIN", "\n7 PIN"))
    with pytest.raises(SceneError, match=r"DSC_0000\.JPG was taken by camera 0, which cameras"):
        read_scene(copy)


def test_two_pictures_of_one_file_name_are_refused(copy: Path) -> None:
    edit(
        copy / CALIBRATION / "images.txt",
        lambda text: text.replace("dslr_images_undistorted/DSC_0001", "other/DSC_0000"),
    )
    with pytest.raises(SceneError, match=r"other/DSC_0000\.JPG have the same file name"):
        read_scene(copy)


def test_a_nan_quaternion_is_refused_with_its_line(copy: Path) -> None:
    path = copy / CALIBRATION / "images.txt"
    quaternion = path.read_text().splitlines()[4].split()[1]
    edit(path, lambda text: text.replace(quaternion, "nan"))
    with pytest.raises(SceneError, match=r"images\.txt, line 5: 'nan' is no finite number"):
        read_scene(copy)


def test_a_missing_observation_line_is_refused(copy: Path) -> None:
    edit(
        copy / CALIBRATION / "images.txt",
        lambda text: "\n".join(x for n, x in enumerate(text.split("\n")) if n != 5),
    )
    with pytest.raises(SceneError, match=r"images\.txt, line 6: 10 values"):
        read_scene(copy)


def test_a_calibration_of_other_pictures_is_refused(copy: Path) -> None:
    edit(copy / CALIBRATION / "images.txt", lambda text: text.replace("DSC_", "IMG_"))
    with pytest.raises(SceneError, match="no picture of"):
        read_scene(copy)


def test_a_picture_of_another_size_is_refused(copy: Path) -> None:
    path = copy / PICTURES / "DSC_0002.JPG"
    with Image.open(path) as picture:
        picture.resize((168, 126)).save(path, format="JPEG")
    with pytest.raises(SceneError, match=r"DSC_0002\.JPG has 168 x 126 pixels, its camera \d 336"):
        read_scene(copy)


def test_a_turned_picture_is_refused(copy: Path) -> None:
    """Upside down: the size fits, and every pose would be wrong by half a turn."""
    path = copy / PICTURES / "DSC_0002.JPG"
    with Image.open(path) as picture:
        exif = picture.getexif()
        exif[0x0112] = 3
        picture.save(path, format="JPEG", exif=exif)
    with pytest.raises(SceneError, match=r"DSC_0002\.JPG is turned by its EXIF orientation"):
        read_scene(copy)


def test_a_broken_picture_is_refused(copy: Path) -> None:
    (copy / PICTURES / "DSC_0002.JPG").write_bytes(b"<html>not found</html>")
    with pytest.raises(SceneError, match=r"DSC_0002\.JPG can't be read as a picture"):
        read_scene(copy)


def test_a_picture_too_large_for_pillow_is_refused(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(SceneError, match="can't be read as a picture: Image size"):
        read_scene(copy)


@pytest.mark.parametrize("size", [0, 336 * 252 * 4 - 1, 336 * 252 * 4 + 4, 6048 * 4032 * 4])
def test_depth_of_a_wrong_size_is_refused(copy: Path, size: int) -> None:
    path = copy / DEPTHS / "DSC_0003.JPG"
    with path.open("r+b") as file:
        file.truncate(size)
    with pytest.raises(SceneError, match=rf"DSC_0003\.JPG has {size} bytes; depth of 336 x 252"):
        read_scene(copy)
    with pytest.raises(SceneError, match=f"{size} bytes"):
        read_depth(path, 336, 252)


def test_depth_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SceneError, match=r"can't read .*absent\.JPG: No such file"):
        read_depth(tmp_path / "absent.JPG", 4, 3)


def test_depth_that_may_not_be_opened_is_named(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its size is known by the folder alone."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(np, "memmap", refuse)
    with pytest.raises(SceneError, match=r"DSC_0001\.JPG: Permission denied"):
        read_depth(copy / DEPTHS / "DSC_0001.JPG", 336, 252)


@pytest.mark.parametrize("value", [np.nan, 0.0, np.inf])
def test_values_that_say_unknown_become_infinity(copy: Path, value: float) -> None:
    path = copy / DEPTHS / "DSC_0000.JPG"
    depth = np.fromfile(path, dtype="<f4")
    depth[[5, 99]] = value
    depth.tofile(path)
    expected = depth.copy()
    expected[[5, 99]] = np.inf
    np.testing.assert_array_equal(read_depth(path, 336, 252).ravel(), expected)


@pytest.mark.parametrize("value", [-1.0, -1e-30, -np.inf])
def test_values_that_no_depth_has_are_refused(copy: Path, value: float) -> None:
    path = copy / DEPTHS / "DSC_0000.JPG"
    depth = np.fromfile(path, dtype="<f4")
    depth[[5, 99]] = value
    depth.tofile(path)
    with pytest.raises(SceneError, match=r"DSC_0000\.JPG: 2 of 84672 values"):
        read_depth(path, 336, 252)


def broken(views: SceneViews, name: str) -> SceneViews:
    turned = views.extrinsic.copy()
    turned[1, 0, :3] *= -1  # a mirror
    scaled = views.extrinsic.copy()
    scaled[1, :, :3] *= 1.01
    return {
        "images": replace(views, images=views.images[:, :-1]),
        "count": replace(views, extrinsic=views.extrinsic[:-1]),
        "nan": replace(views, extrinsic=views.extrinsic * np.nan),
        "mirror": replace(views, extrinsic=turned),
        "scale": replace(views, extrinsic=scaled),
        "zero depth": replace(views, depth=views.depth * 0),
    }[name]


@pytest.mark.parametrize(
    "name, message",
    [
        ("images", r"images has the shape \(4, 251"),
        ("count", r"extrinsic has the shape \(3"),
        ("nan", "not finite"),
        ("mirror", "not begin with a rotation"),
        ("scale", "not begin with a rotation"),
        ("zero depth", "negative, zero or NaN"),
    ],
)
def test_views_that_are_none_are_not_written(
    tmp_path: Path, views: SceneViews, name: str, message: str
) -> None:
    with pytest.raises(SceneError, match=message):
        write_scene(tmp_path / "new", broken(views, name))
    assert not (tmp_path / "new").exists()
