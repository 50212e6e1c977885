"""Scenes on disk in ETH3D's layout: pictures, calibration, ground-truth depth.

    <scene>/images/dslr_images_undistorted/DSC_0286.JPG
    <scene>/dslr_calibration_undistorted/{cameras,images,points3D}.txt
    <scene>/ground_truth_depth/dslr_images_undistorted/DSC_0286.JPG      raw floats, not a JPEG

A depth file is H x W float32, little-endian, without a header: metres along the optical axis,
infinity where nothing is known, of the size of the picture's camera. ETH3D's own depth lies in
`ground_truth_depth/dslr_images` and belongs to the distorted pictures: it is named in the note and
not read. Pictures in a folder `images` or `color` (or beside it) with a folder `colmap` of COLMAP's
text files are read in the same way; they have no depth.
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
from vggt_deploy.data.folders import find_images
from vggt_deploy.data.images import DECODE_ERRORS
from vggt_deploy.data.scene_points import scene_points
from vggt_deploy.errors import SceneError
from vggt_deploy.geometry import Doubles

IMAGES = "images"
PICTURES = "dslr_images_undistorted"
DISTORTED = "dslr_images"
CALIBRATION = "dslr_calibration_undistorted"
DEPTH = "ground_truth_depth"
COLMAP_FOLDER = "colmap"
_COLMAP_PICTURES = frozenset({"images", "color"})
_ORIENTATION_TAG = 0x0112
_LISTED = 5


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
class Eth3dFrame:
    """One picture with its camera. `name` is the file's; `depth` the depth file's path, if any."""

    name: str
    path: Path
    extrinsic: Doubles  # [3, 4], world to camera
    intrinsic: Doubles  # [3, 3], pixels of the stored picture
    width: int
    height: int
    depth: Path | None


@dataclass(frozen=True)
class Eth3dScene:
    """The pictures of a scene that have a pose, in the order of names, and those that have none."""

    root: Path
    frames: tuple[Eth3dFrame, ...]
    without_pose: tuple[Path, ...]
    note: str


@dataclass(frozen=True)
class SceneFolders:
    """Where the parts of a scene lie; `depth` need not exist."""

    root: Path
    pictures: Path
    calibration: Path
    depth: Path


def scene_of(pictures: Path) -> SceneFolders | None:
    """The scene that a folder of pictures belongs to; None without a calibration."""
    pictures = pictures.absolute()
    if pictures.name == PICTURES:
        above = pictures.parent
        root = above.parent if above.name == IMAGES else above
        calibration = root / CALIBRATION
        if calibration.is_dir():
            return SceneFolders(root, pictures, calibration, root / DEPTH / PICTURES)
    roots = [pictures]
    if pictures.name.lower() in _COLMAP_PICTURES:
        roots.append(pictures.parent)
    for root in roots:
        if (root / COLMAP_FOLDER / colmap.IMAGES).is_file():
            return SceneFolders(root, pictures, root / COLMAP_FOLDER, root / DEPTH / pictures.name)
    return None


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
    frames, without_pose = [], []
    for path in paths:
        image = images.get(path.name)
        if image is None:
            without_pose.append(path)
        else:
            frames.append(_frame(path, image, cameras[image.camera_id], places.depth))
    others = len(images.keys() - {path.name for path in paths})
    note = _note(places, frames, without_pose, others)
    return Eth3dScene(places.root, tuple(frames), tuple(without_pose), note)


def why_without_calibration(pictures: Path) -> str:
    """In words, for pictures of which `scene_of` knows no scene."""
    pictures = pictures.absolute()
    if pictures.name == DISTORTED:
        return (
            f"{DISTORTED} holds ETH3D's distorted pictures, whose camera model is not supported; "
            f"{PICTURES} has what is needed"
        )
    if pictures.name == PICTURES:
        return f"there is no {CALIBRATION} beside it"
    return f"they lie in no {PICTURES} of a scene, and there is no folder {COLMAP_FOLDER}"


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


def read_depth(path: Path, width: int, height: int) -> NDArray[np.float32]:
    """[height, width] in metres, inf = unknown. A SceneError for a wrong size or wrong values."""
    _check_depth_size(path, width, height)
    depth = np.fromfile(path, dtype="<f4").reshape(height, width).astype(np.float32, copy=False)
    wrong = int(np.count_nonzero(~(depth > 0)))
    if wrong:
        raise SceneError(
            f"{path}: {wrong} of {depth.size} values are negative, zero or NaN, which no depth is",
            "unknown depth is written as infinity; take the file from the data set again",
        )
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


def _frame(path: Path, image: ColmapImage, camera: ColmapCamera, depths: Path) -> Eth3dFrame:
    intrinsic = camera.intrinsic()
    _check_picture(path, camera)
    depth = depths / path.name
    if depth.is_file():
        _check_depth_size(depth, camera.width, camera.height)
    return Eth3dFrame(
        path.name,
        path,
        image.extrinsic(),
        intrinsic,
        camera.width,
        camera.height,
        depth if depth.is_file() else None,
    )


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
    expected, found = width * height * 4, path.stat().st_size
    if found != expected:
        raise SceneError(
            f"{path} has {found} bytes; depth of {width} x {height} pixels has {expected}",
            "take the file again (it may be truncated), or the depth of these pictures",
        )


def _note(
    places: SceneFolders,
    frames: Sequence[Eth3dFrame],
    without_pose: Sequence[Path],
    others: int,
) -> str:
    with_depth = sum(frame.depth is not None for frame in frames)
    parts = [f"cameras from {places.calibration}", f"depth of {with_depth} of {len(frames)} frames"]
    if without_pose:
        names = ", ".join(path.name for path in without_pose[:_LISTED])
        more = ", ..." if len(without_pose) > _LISTED else ""
        parts.append(f"without a pose: {names}{more}")
    if others:
        parts.append(f"{others} more poses in the calibration")
    if not with_depth and (places.root / DEPTH / DISTORTED).is_dir():
        parts.append(f"{DEPTH}/{DISTORTED} belongs to the distorted pictures and is not used")
    return "; ".join(parts)


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
