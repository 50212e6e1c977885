"""ETH3D's masks: pixels of the distorted pictures whose true depth is not to be trusted.

    <scene>/masks_for_images/dslr_images/DSC_0286.png      8 bit grey, a set of flags per pixel

    1  left out of the alignment of pictures to scans alone: reflections, flares, shadows
    2  left out of ETH3D's own evaluation as well: what moves, what the scan does not have

Readers of these files disagree on whether 1, 2 or both are dropped; here both are by default, and
what was dropped is said. A picture without a mask has nothing masked.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vggt_deploy.data.images import DECODE_ERRORS
from vggt_deploy.errors import SceneError, UsageError

IMAGE_BIT, EVALUATION_BIT = 1, 2
EVERY_BIT = IMAGE_BIT | EVALUATION_BIT


@dataclass(frozen=True)
class MaskUse:
    """Which flags were dropped, for how many of the frames a mask was found, and what it cost.

    pixels: those of the network's frames, over all frames, that had a true depth and lost it
    """

    bits: int
    frames: int
    pixels: int

    @property
    def text(self) -> str:
        """For a note or a protocol, such as `mask bits 1 and 2 dropped`."""
        return {
            0: "masks not used",
            IMAGE_BIT: f"mask bit {IMAGE_BIT} dropped",
            EVALUATION_BIT: f"mask bit {EVALUATION_BIT} dropped",
        }.get(self.bits, f"mask bits {IMAGE_BIT} and {EVALUATION_BIT} dropped")

    @property
    def note(self) -> str:
        """The same with what it cost."""
        frames = f"{self.frames} frame{'' if self.frames == 1 else 's'}"
        if not self.bits:
            return f"{self.text} (there are some, of {frames})"
        return f"{self.text}: {self.pixels} pixels of depth, masks of {frames}"


def check_bits(bits: int) -> None:
    """A UsageError for flags that no mask of ETH3D has."""
    if not 0 <= bits <= EVERY_BIT:
        raise UsageError(
            f"there are no mask bits {bits}",
            f"give {IMAGE_BIT}, {EVALUATION_BIT}, {EVERY_BIT} for both, or 0 for no masks",
        )


def read_mask(path: Path, width: int, height: int) -> NDArray[np.uint8]:
    """[height, width] flags. A SceneError for a broken file, another size, or no 8-bit grey."""
    again = "take the mask from the data set again, or remove it to mask nothing in this picture"
    try:
        with Image.open(path, formats=("PNG",)) as picture:
            size, mode = picture.size, picture.mode
            flags = np.asarray(picture) if mode == "L" and size == (width, height) else None
    except DECODE_ERRORS as error:
        raise SceneError(f"{path} can't be read as a mask: {error}", again) from error
    if size != (width, height):
        raise SceneError(
            f"{path} has {size[0]} x {size[1]} pixels, its camera {width} x {height}", again
        )
    if flags is None:
        raise SceneError(f"{path} is no 8-bit grey picture (Pillow's mode {mode})", again)
    return flags
