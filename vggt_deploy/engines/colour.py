"""Numbers to colours, without matplotlib: the inferno map (CC0), linear between 17 of its colours.

Dark violet is 0, pale yellow is 1; brightness grows steadily, so it also reads in grey. A value
that is not finite becomes mid grey, a colour that the map does not have.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

INFERNO = np.array(
    [
        (0, 0, 4), (11, 7, 36), (33, 12, 74), (61, 9, 101), (87, 16, 110), (113, 25, 110),
        (138, 34, 106), (163, 44, 97), (188, 55, 84), (210, 70, 68), (228, 90, 49), (241, 115, 29),
        (249, 142, 9), (252, 172, 17), (249, 203, 53), (242, 234, 105), (252, 255, 164),
    ]
)  # fmt: skip
NO_VALUE = (128, 128, 128)


def inferno(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Values [...] in 0..1 (clipped) to RGB [..., 3]."""
    finite = np.isfinite(values)
    position = np.where(finite, np.clip(np.nan_to_num(values), 0, 1), 0)
    stops = np.linspace(0, 1, len(INFERNO))
    channels = [np.interp(position, stops, INFERNO[:, c]) for c in range(3)]
    rgb: NDArray[np.uint8] = np.rint(np.stack(channels, axis=-1)).astype(np.uint8)
    rgb[~finite] = NO_VALUE
    return rgb


def linear_from_srgb(srgb: NDArray[np.floating]) -> NDArray[np.floating]:
    """Display values 0..1 to linear light (IEC 61966-2-1), which glTF wants for vertex colours."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
