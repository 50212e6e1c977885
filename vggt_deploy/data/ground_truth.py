"""True cameras and depth of the pictures that the network sees, at the network's size.

Resizing, cropping and padding move pixels, and the intrinsic matrix with them. In continuous
coordinates (the first pixel's centre at 0.5) a Placement says x_network = scale_x x_picture + left,
so f_x' = scale_x f_x and c_x' = scale_x c_x + left, without half pixels to add; poses stay as they
are.

Depth is taken from the pixel that a network pixel's centre falls on, and never interpolated:
between two surfaces, or between a surface and infinity, there is no depth. Where the depth is of
the picture as it was shot and the network sees the undistorted one, the way is: network pixel,
point of the picture, ray of its camera, point of the shot picture (another lens at the same place,
so z is the same), pixel. Whether ETH3D's cx and cy count from a pixel's corner, as here, or from
its centre is not said anywhere; it is half a pixel of 6048.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggt_deploy.data.colmap import ColmapCamera
from vggt_deploy.data.eth3d import Eth3dFrame, Pixels, read_depth, read_frames
from vggt_deploy.data.eth3d_layout import scene_of, why_without_calibration
from vggt_deploy.data.images import Placement
from vggt_deploy.data.lens import points_of, rays_of
from vggt_deploy.data.masks import EVERY_BIT, MaskUse, check_bits, read_mask
from vggt_deploy.errors import SceneError, UsageError
from vggt_deploy.geometry import Doubles


@dataclass(frozen=True)
class GroundTruth:
    """Cameras and depth of S pictures at the network's size; the world is the scene's own.

    extrinsic: [S, 3, 4], world to camera, OpenCV axes, in the scene's unit (ETH3D: metres)
    intrinsic: [S, 3, 3], pixels, the first pixel's centre at (0.5, 0.5)
    depth: [S, H, W] along the optical axis, inf where unknown or padded; None if no picture has any
    note: where it is from and what is missing
    rays: [S, H, W, 2], x / z and y / z at each pixel's centre, for pictures of a lens that no
        matrix describes (`intrinsic` is then its linear part alone); NaN where a pixel has none;
        None: pinhole cameras, rays by `intrinsic`
    masks: what masks took from the depth; None where no mask was looked for or found
    """

    extrinsic: Doubles
    intrinsic: Doubles
    depth: NDArray[np.float32] | None
    note: str
    rays: Doubles | None = None
    masks: MaskUse | None = None


def ground_truth(
    paths: Sequence[Path],
    placements: Sequence[Placement],
    height: int,
    width: int,
    *,
    mask_bits: int = EVERY_BIT,
) -> GroundTruth | None:
    """The truth for pictures as `load_images` placed them (an ImageBatch's paths and placements).

    None if the pictures lie in no scene with calibration (`no_truth_because` says why).

    mask_bits: flags of ETH3D's masks (data.masks) whose pixels lose their depth; 0 for none

    Raises:
        SceneError: calibration that does not fit: a picture without a pose, of another size than
            its camera, depth or a mask of a wrong size; a lens that needs pycolmap, without it.
        UsageError: other flags than 1 and 2; placements of other pictures.
    """
    check_bits(mask_bits)
    if not paths or len(paths) != len(placements):
        raise UsageError(
            f"{len(placements)} placements for {len(paths)} pictures",
            "give paths and placements of one ImageBatch",
        )
    places = scene_of(paths[0].parent)
    if places is None or no_truth_because(paths) is not None:
        return None
    scene = read_frames(places, paths)
    if scene.without_pose:
        raise SceneError(
            f"{scene.without_pose[0]} has no pose in {places.calibration}",
            "leave the picture out of the folder, or take its line from the data set",
        )
    frames = scene.frames
    for frame, place in zip(frames, placements, strict=True):
        _check_placement(frame, place)
    rays = _rays(frames, placements, height, width)
    depth, masks = _depths(frames, placements, height, width, mask_bits)
    if depth is not None and rays is not None:
        depth[np.isnan(rays).any(axis=-1)] = np.inf
    return GroundTruth(
        extrinsic=np.stack([frame.extrinsic for frame in frames]),
        intrinsic=np.stack(
            [
                moved_intrinsic(frame.camera.linear_part(), place)
                for frame, place in zip(frames, placements, strict=True)
            ]
        ),
        depth=depth,
        note=scene.note if masks is None else f"{scene.note}; {masks.note}",
        rays=rays,
        masks=masks,
    )


def write_truth(path: Path, truth: GroundTruth) -> None:
    """Keep it in an .npz file, whole or not at all."""
    arrays: dict[str, NDArray[Any]] = {
        "extrinsic": truth.extrinsic,
        "intrinsic": truth.intrinsic,
        "note": np.array(truth.note),
    }
    if truth.depth is not None:
        arrays["depth"] = truth.depth
    if truth.rays is not None:
        arrays["rays"] = truth.rays
    if truth.masks is not None:
        arrays["masks"] = np.array(astuple(truth.masks), dtype=np.int64)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # its stub takes bools alone
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_truth(path: Path) -> GroundTruth:
    """Read what `write_truth` wrote; a SceneError for anything else."""
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            counts = file.get("masks")
            return GroundTruth(
                extrinsic=file["extrinsic"],
                intrinsic=file["intrinsic"],
                depth=file.get("depth"),
                note=str(file["note"]),
                rays=file.get("rays"),
                masks=None if counts is None else MaskUse(*map(int, counts)),
            )
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise SceneError(f"the truth in {path} can't be read: {error}", "compare again") from error


def no_truth_because(paths: Sequence[Path]) -> str | None:
    """Why `ground_truth` gives None for these pictures, in words; None where it does not."""
    folders = {path.absolute().parent for path in paths}
    if len(folders) != 1:
        return f"the pictures lie in {len(folders)} folders, not in one scene"
    (folder,) = folders
    return None if scene_of(folder) is not None else why_without_calibration(folder)


def moved_intrinsic(intrinsic: Doubles, place: Placement) -> Doubles:
    """[3, 3] of the picture -> [3, 3] of the network's frame."""
    to_network = np.array(
        [[place.scale_x, 0.0, place.left], [0.0, place.scale_y, place.top], [0.0, 0.0, 1.0]]
    )
    moved: Doubles = to_network @ intrinsic
    return moved


def source_pixels(
    picture: ColmapCamera, stored: ColmapCamera, place: Placement, height: int, width: int
) -> tuple[Pixels, NDArray[np.bool_]]:
    """For each pixel of the network's frame: the pixel of a stored file under its centre.

    Rows and columns [height, width], and where there is one. `picture` is the camera of the picture
    that was placed, `stored` that of the file's pixels, with the same pose.
    """
    rows, row_inside = _nearest(height, place.top, place.resized_height, picture.height)
    columns, column_inside = _nearest(width, place.left, place.resized_width, picture.width)
    inside = row_inside[:, None] & column_inside
    if stored == picture:
        row, column = np.broadcast_arrays(rows[:, None], columns)
        return (np.where(inside, row, 0), np.where(inside, column, 0)), inside
    points = points_of(stored, rays_of(picture, picture_points(place, height, width)[inside]))
    # NaN, where a lens has no point for the ray, is not within.
    hit = (points >= 0).all(axis=1) & (points < (stored.width, stored.height)).all(axis=1)
    inside[inside] = hit
    row, column = np.zeros((2, height, width), dtype=np.int64)
    column[inside], row[inside] = np.floor(points[hit]).astype(np.int64).T
    return (row, column), inside


def picture_points(place: Placement, height: int, width: int) -> Doubles:
    """[height, width, 2]: where the centres of the network's pixels lie in the picture, x and y."""
    x = (np.arange(width) + 0.5 - place.left) / place.scale_x
    y = (np.arange(height) + 0.5 - place.top) / place.scale_y
    return np.stack(np.meshgrid(x, y), axis=-1)


def _nearest(
    frame: int, offset: int, resized: int, stored: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """For each pixel along one side of the frame: the stored pixel under its centre, and if any is.

    Pixel p's centre is at (p - offset + 1/2) stored / resized: in whole numbers, so that none falls
    beside its pixel by rounding.
    """
    at = np.arange(frame, dtype=np.int64) - offset
    inside = (at >= 0) & (at < resized)
    return (2 * at + 1) * stored // (2 * resized), inside


def _check_placement(frame: Eth3dFrame, place: Placement) -> None:
    """The placed picture has the camera's size (it would not after an orientation was applied)."""
    width, height = frame.camera.width, frame.camera.height
    if (place.resized_width / width, place.resized_height / height) != (
        place.scale_x,
        place.scale_y,
    ):
        raise SceneError(
            f"{frame.path} was placed as a picture of another size than {width} x {height}, "
            "the camera's",
            "load the pictures of the scene as they are stored",
        )


def _rays(
    frames: Sequence[Eth3dFrame], placements: Sequence[Placement], height: int, width: int
) -> Doubles | None:
    """[S, height, width, 2], NaN in the padding; None if matrices describe all cameras."""
    if all(frame.camera.is_pinhole for frame in frames):
        return None
    out = np.full((len(frames), height, width, 2), np.nan)
    for target, frame, place in zip(out, frames, placements, strict=True):
        _, inside = source_pixels(frame.camera, frame.camera, place, height, width)
        target[inside] = rays_of(frame.camera, picture_points(place, height, width)[inside])
    return out


def _depths(
    frames: Sequence[Eth3dFrame],
    placements: Sequence[Placement],
    height: int,
    width: int,
    mask_bits: int,
) -> tuple[NDArray[np.float32] | None, MaskUse | None]:
    """Depth [S, height, width] without what masks take from it, and what they took."""
    if all(frame.depth is None for frame in frames):
        return None, None
    out = np.full((len(frames), height, width), np.inf, dtype=np.float32)
    masks, lost = 0, 0
    for target, frame, place in zip(out, frames, placements, strict=True):
        if frame.depth is None:
            continue
        camera = frame.depth.camera
        at, inside = source_pixels(frame.camera, camera, place, height, width)
        seen = at[0][inside], at[1][inside]
        target[inside] = read_depth(frame.depth.path, camera.width, camera.height, seen)
        if frame.mask is None:
            continue
        masks += 1
        if mask_bits:
            camera = frame.mask.camera
            at, inside = source_pixels(frame.camera, camera, place, height, width)
            flags = read_mask(frame.mask.path, camera.width, camera.height)[at]
            dropped = inside & ((flags & mask_bits) != 0) & np.isfinite(target)
            lost += int(np.count_nonzero(dropped))
            target[dropped] = np.inf
    return out, MaskUse(mask_bits, masks, lost) if masks else None
