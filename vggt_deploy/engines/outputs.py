"""Predictions as files: pictures, depth, one NPZ with everything, cameras.json.

depth/NNN_name.png        for people: inverse depth in colour, near is bright, one range for the run
depth/NNN_name_16bit.png  for programs: depth = value * `depth_per_step` of run.json, 0 = no value
pictures/NNN_name.png     each picture as the network saw it: resized, cropped or padded
predictions.npz           every output as the network gave it, cameras, names of the images
cameras.json              extrinsic and intrinsic of each image, with their conventions
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vggt_deploy.data.images import ImageBatch, Placement
from vggt_deploy.engines.colour import inferno
from vggt_deploy.engines.predict import Array, Doubles, Predictions
from vggt_deploy.geometry import is_pinhole

UNITS = "the network's own unit: one unknown factor per run, not metres"
CONVENTIONS = {
    "extrinsic": "[R|t], 3 x 4, camera from world: x_camera = R x_world + t",
    "axes": "OpenCV: x right, y down, z forward",
    "world": "the first camera's frame, as the network learned it, not enforced",
    "translation": UNITS,
    "intrinsic": "3 x 3, pixels of the network's input, which is network_height x network_width;"
    " 0 is the outer edge of the first pixel",
    "intrinsic_original": "the same camera in pixels of the picture as a viewer shows it",
    "unprojection": "points take whole pixels (column, row), without half a pixel, as upstream",
    "placement": "x_network = scale * x_original + offset, for x and y",
}
_MAX_16BIT = 65535
_COLOUR_RANGE = (2.0, 98.0)


@dataclass(frozen=True)
class DepthFiles:
    """What the depth pictures need to be read again.

    depth_per_step: depth = 16-bit value * depth_per_step
    saturated: pixels beyond 65535 steps, written as 65535; without_value: written as 0
    near, far: depths at the ends of the colour map
    """

    depth_per_step: float
    saturated: int
    without_value: int
    near: float
    far: float
    files: tuple[tuple[str, str], ...]


def file_stem(index: int, path: Path) -> str:
    """`007_DSC_0269`: in order, and distinct even for a.jpg beside a.png."""
    return f"{index:03d}_{path.stem}"


def write_depth(folder: Path, depth: Array, batch: ImageBatch) -> DepthFiles | None:
    """Write both pictures of each depth map [S, H, W]; None if no pixel has a usable depth.

    A step is the largest depth / 65535, but at most 4 times the 99.9th percentile / 65535: a few
    wild pixels (sky) must not leave the rest with a handful of steps. The NPZ has them unclipped.
    """
    usable = batch.picture_mask() & np.isfinite(depth) & (depth > 0)
    if not usable.any():
        return None
    values = depth[usable]
    top = min(float(values.max()), 4 * float(np.percentile(values, 99.9)))
    step = top / _MAX_16BIT
    far_inverse, near_inverse = np.percentile(1 / values, _COLOUR_RANGE)
    target = folder / "depth"
    target.mkdir()
    names = []
    for index, (frame, ok) in enumerate(zip(depth, usable, strict=True)):
        stem = file_stem(index, batch.paths[index])
        colour, steps = f"{stem}.png", f"{stem}_16bit.png"
        _picture(frame, ok, far_inverse, near_inverse).save(target / colour)
        # At least one step: 0 means that there is no value.
        scaled = np.rint(np.where(ok, frame, 0) / step).clip(1, _MAX_16BIT) * ok
        Image.fromarray(scaled.astype(np.uint16)).save(target / steps)
        names.append((f"depth/{colour}", f"depth/{steps}"))
    return DepthFiles(
        depth_per_step=step,
        saturated=int((values > top * (1 + 0.5 / _MAX_16BIT)).sum()),
        without_value=int((~usable).sum()),
        near=float(1 / near_inverse),
        far=float(1 / far_inverse),
        files=tuple(names),
    )


def _picture(depth: Array, ok: NDArray[np.bool_], low: float, high: float) -> Image.Image:
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = np.where(ok, 1 / depth, np.nan)
    spread = high - low
    # A constant depth has no range: shown in the middle of the map.
    shown = (inverse - low) / spread if spread > 0 else inverse * 0 + 0.5
    return Image.fromarray(inferno(shown))


def write_pictures(folder: Path, batch: ImageBatch) -> tuple[str, ...]:
    """Write the network's input as PNG, one file for each picture; returns their names.

    Points get their colours from them later, where the photographs may no longer be.
    """
    target = folder / "pictures"
    target.mkdir()
    names = []
    for index, pixels in enumerate(batch.pixels):
        name = f"{file_stem(index, batch.paths[index])}.png"
        rgb = np.rint(pixels.transpose(1, 2, 0) * 255).astype(np.uint8)
        Image.fromarray(rgb).save(target / name)
        names.append(f"pictures/{name}")
    return tuple(names)


def write_arrays(path: Path, predictions: Predictions, batch: ImageBatch) -> None:
    """Write predictions.npz: outputs [1, S, ...], extrinsic [S, 3, 4], intrinsic, image names."""
    arrays: dict[str, Any] = dict(predictions.outputs)
    if predictions.extrinsic is not None and predictions.intrinsic is not None:
        arrays["extrinsic"] = predictions.extrinsic
        arrays["intrinsic"] = predictions.intrinsic
    arrays["image_names"] = np.array([p.name for p in batch.paths])
    with path.open("wb") as file:
        np.savez(file, **arrays)


def write_cameras(
    path: Path, extrinsic: Doubles, intrinsic: Doubles, batch: ImageBatch
) -> list[str]:
    """Write cameras.json; returns what is wrong with cameras, in words.

    A field of view of 0, which a network with bad weights can give, has no finite focal length: the
    intrinsic is then null. One of 180 degrees and more has a negative one.
    """
    problems = []
    cameras = []
    pinhole = is_pinhole(intrinsic)
    for index, image in enumerate(batch.paths):
        if not pinhole[index]:
            problems.append(
                f"{image.name}: the predicted field of view is 0, or 180 degrees and more: no focal"
                " length"
            )
        if not np.isfinite(extrinsic[index]).all():
            problems.append(f"{image.name}: the predicted pose is not finite")
        placement = batch.placements[index]
        original = to_original(intrinsic[index], placement)
        cameras.append(
            {
                "image": image.name,
                "extrinsic": _numbers(extrinsic[index]),
                "intrinsic": _numbers(intrinsic[index]),
                "intrinsic_original": _numbers(original),
                "original_width": batch.original_sizes[index][0],
                "original_height": batch.original_sizes[index][1],
                "placement": placement_record(placement),
            }
        )
    write_json(
        path,
        {
            "schema": 1,
            "conventions": CONVENTIONS,
            "network_width": batch.width,
            "network_height": batch.height,
            "cameras": cameras,
        },
    )
    return problems


def to_original(intrinsic: Doubles, placement: Placement) -> Doubles:
    """K of the picture as a viewer shows it, from K of the network's input.

    With x_network = s x + o:  f_original = f / s,  c_original = (c - o) / s.
    """
    scale = np.array([placement.scale_x, placement.scale_y])
    offset = np.array([placement.left, placement.top])
    original = intrinsic.copy()
    original[:2, 2] -= offset
    original[:2] /= scale[:, None]
    return original


def placement_record(placement: Placement) -> dict[str, list[float]]:
    """The placement as JSON."""
    return {
        "scale": [placement.scale_x, placement.scale_y],
        "offset": [placement.left, placement.top],
    }


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """JSON that any reader takes: a number that is not finite would be an error here."""
    path.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _numbers(array: NDArray[np.floating]) -> list[list[float]] | None:
    if not np.isfinite(array).all():
        return None
    return [[float(v) for v in row] for row in array]
