"""ETH3D's masks: pixels of the distorted pictures whose true depth is not to be trusted.

    <scene>/masks_for_images/dslr_images/DSC_0286.png      8 bit grey, a set of flags per pixel

    1  left out of the alignment of pictures to scans alone: reflections, flares, shadows
    2  left out of ETH3D's own evaluation as well: what moves, what the scan does not have

Readers of these files disagree on whether 1, 2 or both are dropped; here both are by default, and
what was dropped is said. A picture without a mask has nothing masked.
"""

from __future__ import annotations

from dataclasses import dataclass

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
        """For a note or a protocol: `mask bits 1 and 2 dropped`."""
        names = " and ".join(str(bit) for bit in (1, 2, 4, 8, 16, 32, 64, 128) if self.bits & bit)
        if not names:
            return "masks not used"
        word = "bits" if self.bits & (self.bits - 1) else "bit"
        return f"mask {word} {names} dropped"
