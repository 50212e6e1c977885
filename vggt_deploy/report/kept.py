"""What a comparison keeps in its folder, and its pictures and page are drawn from.

Someone may have tidied up, a disk lost some of it, or a file of another comparison been put there:
that is an error that names the file. What must be in it is what the question asked for.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggt_deploy.compare.report import ComparisonReport
from vggt_deploy.compare.state import Folder, asked_shapes
from vggt_deploy.compare.variants import Variant
from vggt_deploy.data.ground_truth import GroundTruth, read_truth
from vggt_deploy.errors import CompareError

# What numpy raises on damaged files: its headers are parsed as Python.
_DAMAGED = (OSError, ValueError, EOFError, SyntaxError, KeyError, zipfile.BadZipFile)


def kept_pixels(report: ComparisonReport, folder: Folder) -> NDArray[np.float32]:
    """Pictures of the first scene as every variant got them, [S, 3, H, W] in 0..1."""
    path = folder.images()
    try:
        pixels: NDArray[np.float32] = np.load(path, allow_pickle=False)
    except _DAMAGED as error:
        raise _gone(path, error) from error
    if not isinstance(pixels, np.ndarray):  # an archive of arrays
        raise _gone(path, ValueError("it is not one array"))
    asked = report.question["images"]
    frames, height, width = len(report.pictures), asked["height"], asked["width"]
    _check(path, "pictures", pixels, (frames, 3, height, width))
    return pixels


def kept_outputs(
    report: ComparisonReport, folder: Folder, variant: Variant
) -> dict[str, NDArray[Any]]:
    """What a finished variant computed of the first scene: the outputs that were asked for."""
    path = folder.arrays(variant)
    asked = asked_shapes(report.question)
    try:
        # Opened here: np.load leaves the file open when the archive is broken.
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            lost = [name for name in asked if name not in file.files]
            if lost:
                raise _gone(path, ValueError(f"it holds no {', '.join(lost)}"))
            kept = {name: file[name] for name in asked}
    except _DAMAGED as error:
        raise _gone(path, error) from error
    for name, array in kept.items():
        _check(path, name, array, asked[name])
    return kept


def kept_truth(report: ComparisonReport, folder: Folder) -> GroundTruth | None:
    """True cameras and depth of the first scene; None where they are not known."""
    path = folder.truth()
    if not path.is_file():
        return None
    truth = read_truth(path)
    asked = report.question["images"]
    frames, size = len(report.pictures), (asked["height"], asked["width"])
    _check(path, "cameras", truth.extrinsic, (frames, 3, 4))
    _check(path, "calibrations", truth.intrinsic, (frames, 3, 3))
    if truth.depth is not None:
        _check(path, "depth", truth.depth, (frames, *size))
    if truth.rays is not None:
        _check(path, "rays", truth.rays, (frames, *size, 2))
    return truth


def _check(path: Path, name: str, array: NDArray[Any], shape: tuple[int, ...]) -> None:
    if array.shape != shape or array.dtype.kind != "f":
        said = f"{name} are {array.dtype} {list(array.shape)}, the comparison's float {list(shape)}"
        raise _gone(path, ValueError(said))


def _gone(path: Path, error: BaseException) -> CompareError:
    fix = "run compare --resume in that folder: it measures again what is missing"
    if isinstance(error, FileNotFoundError):
        return CompareError(f"{path} is not there, and the report is drawn from it", fix)
    return CompareError(f"{path} can't be read ({error}), and the report is drawn from it", fix)
