"""What a comparison keeps in its folder, and its pictures and page are drawn from.

Someone may have tidied up, or a disk lost some of it: that is an error that names the file.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggt_deploy.compare.state import Folder
from vggt_deploy.compare.variants import Variant
from vggt_deploy.errors import CompareError

# What numpy raises on damaged files: its headers are parsed as Python.
_DAMAGED = (OSError, ValueError, EOFError, SyntaxError, KeyError, zipfile.BadZipFile)


def kept_pixels(folder: Folder) -> NDArray[np.float32]:
    """Pictures of the first scene as every variant got them, [S, 3, H, W] in 0..1."""
    path = folder.images()
    try:
        pixels: NDArray[np.float32] = np.load(path, allow_pickle=False)
    except _DAMAGED as error:
        raise _gone(path, error) from error
    return pixels


def kept_outputs(folder: Folder, variant: Variant) -> dict[str, NDArray[Any]]:
    """What a finished variant computed of the first scene, by the names of the outputs."""
    path = folder.arrays(variant)
    try:
        # Opened here: np.load leaves the file open when the archive is broken.
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except _DAMAGED as error:
        raise _gone(path, error) from error


def _gone(path: Path, error: BaseException) -> CompareError:
    fix = "run compare --resume in that folder: it measures again what is missing"
    if isinstance(error, FileNotFoundError):
        return CompareError(f"{path} is not there, and the report is drawn from it", fix)
    return CompareError(f"{path} can't be read ({error}), and the report is drawn from it", fix)
