"""Scenes on disk in ETH3D's layout: pictures, calibration, ground-truth depth (see eth3d_layout).

A depth file is H x W float32, little-endian, without a header, under a picture's name: metres along
the optical axis, infinity (or 0, or NaN) where nothing is known. ETH3D's own belong to the pictures
as they were shot, so beside undistorted pictures they need `dslr_calibration_jpg`: the camera whose
pixels they are. Pictures in a folder `images` or `color` (or beside it) with a folder `colmap` of
COLMAP's text files are read in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vggt_deploy.data import colmap
from vggt_deploy.data.colmap import ColmapCamera, ColmapImage
from vggt_deploy.data.eth3d_layout import (
    CALIBRATION,
    DEPTH,
    DISTORTED_CALIBRATION,
    IMAGES,
    PICTURES,
    SceneFolders,
    scene_of,
    why_without_calibration,
)
from vggt_deploy.data.folders import find_images
from vggt_deploy.data.images import DECODE_ERRORS
from vggt_deploy.data.portrait import sideways
from vggt_deploy.data.scene_points import scene_points
from vggt_deploy.errors import SceneError
from vggt_deploy.geometry import Doubles

Pixels = tuple[NDArray[np.int64], NDArray[np.int64]]  # rows and columns, of one shape
# Of depth, in the note of a scene.
RESAMPLED = "resampled from the pictures as they were shot"
_ORIENTATION_TAG = 0x0112
_LISTED = 5
# Both calibrations of a scene print the same poses with six digits and more.
_SAME_POSE = 1e-3


class Views(Protocol):
    """Views of one scene, as the renderer makes them (data.synthetic.SceneViews).

    images uint8 [S, H, W, 3]; depth float32 [S, H, W]; extrinsic [S, 3, 4], world to camera;
    intrinsic [S, 3, 3], the first pixel's centre at (0.5, 0.5).
    """

    @property
    def images(self) -> NDArray[np.uint8]: ...
    @property
    def depth(self) -> NDArray[np.float32]: ...
    @property
    def extrinsic(self) -> Doubles: ...
    @property
    def intrinsic(self) -> Doubles: ...


@dataclass(frozen=True)
class PixelFile:
    """A file with a value for every pixel, and the camera whose pixels they are."""

    path: Path
    camera: ColmapCamera


@dataclass(frozen=True)
class Eth3dFrame:
    """One picture with its camera. `name` is the file's.

    extrinsic: [3, 4], world to camera
    depth, mask: where there is any; in pixels of the picture, or of the picture as it was shot
    """

    name: str
    path: Path
    extrinsic: Doubles
    camera: ColmapCamera
    depth: PixelFile | None
    mask: PixelFile | None


@dataclass(frozen=True)
class Eth3dScene:
    """The pictures of a scene that have a pose, in the order of names, and those that have none."""

    root: Path
    frames: tuple[Eth3dFrame, ...]
    without_pose: tuple[Path, ...]
    note: str


def read_scene(folder: Path | str) -> Eth3dScene:
    """The scene that `folder` means: its root, a folder above it, or its pictures' folder.

    Calibration, picture sizes and depth sizes must agree: a SceneError names the file that does
    not. Poses without a picture are counted in the note, pictures without a pose named there.
    """
    found = find_images(folder)
    places = scene_of(found.root)
    if places is None:
        why = why_without_calibration(found.root)
        raise SceneError(
            f"the pictures in {found.root} have no calibration: {why}",
            f"give a scene with {CALIBRATION}/{colmap.CAMERAS} and {colmap.IMAGES}",
        )
    scene = read_frames(places, found.paths)
    if not scene.frames:
        raise SceneError(
            f"no picture of {places.pictures} is in {places.calibration / colmap.IMAGES}",
            "give the calibration that belongs to these pictures",
        )
    return scene


def read_frames(places: SceneFolders, paths: Sequence[Path]) -> Eth3dScene:
    """The scene of these pictures alone, in their order; the others need not be whole."""
    cameras, images = read_calibration(places.calibration)
    as_shot = _as_shot(places, cameras, {x.name: images[x.name] for x in paths if x.name in images})
    frames, without_pose = [], []
    for path in paths:
        image = images.get(path.name)
        if image is None:
            without_pose.append(path)
        else:
            frames.append(_frame(places, path, image, cameras[image.camera_id], as_shot))
    others = len(images.keys() - {path.name for path in paths})
    # By all poses of the scene: of a few frames alone, most may be on their side.
    lying = sideways(np.array([x.extrinsic() for x in images.values()]), tuple(images))
    note = _note(places, frames, without_pose, others, lying)
    return Eth3dScene(places.root, tuple(frames), tuple(without_pose), note)


def read_calibration(folder: Path) -> tuple[dict[int, ColmapCamera], dict[str, ColmapImage]]:
    """Cameras by id, images by the picture's file name; every image's camera is there."""
    cameras = colmap.read_cameras(folder / colmap.CAMERAS)
    path = folder / colmap.IMAGES
    images: dict[str, ColmapImage] = {}
    for image in colmap.read_images(path):
        name = PurePosixPath(image.name).name
        if image.camera_id not in cameras:
            raise SceneError(
                f"{path}: {image.name} was taken by camera {image.camera_id}, which "
                f"{colmap.CAMERAS} beside it does not have",
                "take both files from the same calibration",
            )
        if name in images:
            raise SceneError(
                f"{path}: {images[name].name} and {image.name} have the same file name",
                "give the calibration of one folder of pictures",
            )
        images[name] = image
    return cameras, images


def read_depth(
    path: Path, width: int, height: int, at: Pixels | None = None
) -> NDArray[np.float32]:
    """Metres, inf = unknown: [height, width], or of the pixels `at` alone, in their shape.

    ETH3D writes infinity where nothing is known; other programs that read or write its files also
    take 0 and NaN for that, and so does this. Nothing but these pixels is read. A SceneError for a
    wrong size, and for negative values among them, which no depth has.
    """
    _check_depth_size(path, width, height)
    try:
        stored = np.memmap(path, dtype="<f4", mode="r", shape=(height, width))
    except OSError as error:
        raise _unreadable(path, error) from error
    depth = np.array(stored if at is None else stored[at], dtype=np.float32)
    wrong = int(np.count_nonzero(depth < 0))
    if wrong:
        raise SceneError(
            f"{path}: {wrong} of {depth.size} values are negative, which no depth is",
            "take the file from the data set again: it may be no depth, or of another byte order",
        )
    depth[~(depth > 0)] = np.inf
    return depth


def write_scene(folder: Path | str, views: Views, *, quality: int = 95) -> None:
    """Write views in ETH3D's layout, as pictures DSC_0000.JPG and on (JPEG 4:4:4).

    `folder` is made if it is not there; writing it whole or not at all is the caller's
    (artifact.writing).
    """
    _check_views(views)
    root = Path(folder)
    names = [f"DSC_{index:04d}.JPG" for index in range(len(views.images))]
    pictures, depths = root / IMAGES / PICTURES, root / DEPTH / PICTURES
    calibration = root / CALIBRATION
    for made in (pictures, depths, calibration):
        made.mkdir(parents=True, exist_ok=True)
    for name, pixels, depth in zip(names, views.images, views.depth, strict=True):
        Image.fromarray(pixels).save(
            pictures / name, format="JPEG", quality=quality, subsampling="4:4:4"
        )
        depth.astype("<f4").tofile(depths / name)
    height, width = views.depth.shape[1:]
    cameras: dict[bytes, ColmapCamera] = {}
    for matrix in views.intrinsic:  # one camera for each distinct matrix
        if matrix.tobytes() not in cameras:
            cameras[matrix.tobytes()] = colmap.pinhole(len(cameras), matrix, width, height)
    points, observations = scene_points(views.images, views.depth, views.extrinsic, views.intrinsic)
    images = [
        colmap.posed(index + 1, pose, cameras[matrix.tobytes()].id, f"{PICTURES}/{name}", seen)
        for index, (name, pose, matrix, seen) in enumerate(
            zip(names, views.extrinsic, views.intrinsic, observations, strict=True)
        )
    ]
    colmap.write_cameras(calibration / colmap.CAMERAS, cameras.values())
    colmap.write_points(calibration / colmap.POINTS, points)
    colmap.write_images(calibration / colmap.IMAGES, images)


def _as_shot(
    places: SceneFolders, cameras: dict[int, ColmapCamera], images: dict[str, ColmapImage]
) -> dict[str, ColmapCamera]:
    """By picture name, for `images`: the camera of the picture as it was shot, whose pixels ETH3D's
    depth and masks are of. Empty where that calibration is not there, or nothing needs it.
    """
    if places.is_distorted:
        return {name: cameras[image.camera_id] for name, image in images.items()}
    wanted = places.distorted_depth.is_dir() or places.masks.is_dir()
    if (
        places.calibration.name != CALIBRATION
        or not wanted
        or not places.distorted_calibration.is_dir()
    ):
        return {}
    shot_cameras, shot_images = read_calibration(places.distorted_calibration)
    for name in images.keys() & shot_images.keys():
        difference = np.abs(images[name].extrinsic() - shot_images[name].extrinsic()).max()
        if difference > _SAME_POSE:
            raise SceneError(
                f"{name} has one pose in {places.calibration} and another in "
                f"{places.distorted_calibration} (they differ by {difference:.3g})",
                "take both calibrations from the same data set: depth belongs to one pose",
            )
    return {
        name: shot_cameras[shot_images[name].camera_id]
        for name in images.keys() & shot_images.keys()
    }


def _frame(
    places: SceneFolders,
    path: Path,
    image: ColmapImage,
    camera: ColmapCamera,
    as_shot: dict[str, ColmapCamera],
) -> Eth3dFrame:
    camera.linear_part()  # refuses unknown models
    _check_picture(path, camera)
    shot = as_shot.get(path.name)
    depth, mask = None, None
    if (places.depth / path.name).is_file():
        depth = PixelFile(places.depth / path.name, camera)
    elif shot is not None and (places.distorted_depth / path.name).is_file():
        depth = PixelFile(places.distorted_depth / path.name, shot)
    if depth is not None:
        _check_depth_size(depth.path, depth.camera.width, depth.camera.height)
    if shot is not None and (places.masks / f"{path.stem}.png").is_file():
        mask = PixelFile(places.masks / f"{path.stem}.png", shot)
    return Eth3dFrame(path.name, path, image.extrinsic(), camera, depth, mask)


def _check_picture(path: Path, camera: ColmapCamera) -> None:
    """The stored picture is the one that the camera describes; only the header is read."""
    try:
        with Image.open(path, formats=("JPEG", "PNG")) as picture:
            size, turned = picture.size, picture.getexif().get(_ORIENTATION_TAG, 1) != 1
    except DECODE_ERRORS as error:
        raise SceneError(
            f"{path} can't be read as a picture: {error}", "take it from the data set again"
        ) from error
    if size != (camera.width, camera.height):
        raise SceneError(
            f"{path} has {size[0]} x {size[1]} pixels, its camera {camera.id} "
            f"{camera.width} x {camera.height}",
            "use the pictures and the calibration of one set, both at their own size",
        )
    if turned:
        raise SceneError(
            f"{path} is turned by its EXIF orientation, which the calibration does not know",
            "remove the tag: poses and depth belong to the pixels as they are stored",
        )


def _check_depth_size(path: Path, width: int, height: int) -> None:
    try:
        expected, found = width * height * 4, path.stat().st_size
    except OSError as error:
        raise _unreadable(path, error) from error
    if found != expected:
        raise SceneError(
            f"{path} has {found} bytes; depth of {width} x {height} pixels has {expected}",
            "take the file again (it may be truncated), or the depth of these pictures",
        )


def _unreadable(path: Path, error: OSError) -> SceneError:
    return SceneError(f"can't read {path}: {error.strerror}", "check the path and its permissions")


def _note(
    places: SceneFolders,
    frames: Sequence[Eth3dFrame],
    without_pose: Sequence[Path],
    others: int,
    lying: Sequence[str],
) -> str:
    moved = [frame.depth.camera != frame.camera for frame in frames if frame.depth is not None]
    parts = [
        f"cameras from {places.calibration}",
        f"depth of {len(moved)} of {len(frames)} frames" + (f", {RESAMPLED}" if any(moved) else ""),
    ]
    on_side = [frame.name for frame in frames if frame.name in lying]
    if on_side:
        parts.append(f"on their side (by their poses): {_listed(on_side)}")
    if without_pose:
        parts.append(f"without a pose: {_listed([path.name for path in without_pose])}")
    if others:
        parts.append(f"{others} more poses in the calibration")
    if not places.is_distorted and not places.distorted_calibration.is_dir():
        unused = [
            f"{folder.parent.name}/{folder.name}"
            for folder in (places.distorted_depth, places.masks)
            if folder.is_dir()
        ]
        if unused:
            parts.append(
                f"not used: {', '.join(unused)}, of the pictures as they were shot (there is no "
                f"{DISTORTED_CALIBRATION}, which is in the archive dslr_jpg)"
            )
    return "; ".join(parts)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")


def _check_views(views: Views) -> None:
    count, height, width = views.depth.shape
    shapes: tuple[tuple[str, NDArray[Any], tuple[int, ...]], ...] = (
        ("images", views.images, (count, height, width, 3)),
        ("extrinsic", views.extrinsic, (count, 3, 4)),
        ("intrinsic", views.intrinsic, (count, 3, 3)),
    )
    fix = "give views as the renderer makes them"
    for name, array, wanted in shapes:
        if array.shape != wanted:
            raise SceneError(f"{name} has the shape {array.shape}, not {wanted}", fix)
    if not (np.isfinite(views.extrinsic).all() and np.isfinite(views.intrinsic).all()):
        raise SceneError("a camera holds values that are not finite", fix)
    rotations = views.extrinsic[:, :, :3]
    if (
        not np.allclose(rotations @ rotations.transpose(0, 2, 1), np.eye(3), atol=1e-6)
        or (np.linalg.det(rotations) < 0).any()
    ):
        raise SceneError("an extrinsic matrix does not begin with a rotation", fix)
    if not (views.depth > 0).all():
        raise SceneError("a depth is negative, zero or NaN; unknown depth is infinity", fix)
