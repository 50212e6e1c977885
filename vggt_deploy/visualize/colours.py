"""Colours that the pictures, the GLB and the page share."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# The first and the last camera; in between they are mixed. Blue to orange keeps its order for
# people who do not tell red from green.
FIRST_CAMERA = (23, 78, 166)
LAST_CAMERA = (230, 110, 20)
PATH_COLOUR = (90, 90, 90)


def camera_colours(count: int) -> NDArray[np.uint8]:
    """Of each camera, sRGB [count, 3], from the first camera's colour to the last one's."""
    share = np.linspace(0, 1, count)[:, None] if count > 1 else np.zeros((count, 1))
    mixed = (1 - share) * np.array(FIRST_CAMERA) + share * np.array(LAST_CAMERA)
    colours: NDArray[np.uint8] = np.rint(mixed).astype(np.uint8)
    return colours
