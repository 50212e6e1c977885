"""Values to colours, with the range and the legend that say which value a colour is.

    depth        viridis: dark is near, bright is far
    error        inferno: dark is no error, bright is a large one
    difference   RdBu_r, symmetric: blue is less, white is equal, red is more
    confidence   cividis: dark is unsure

All but the third grow steadily in brightness, so they also read in grey. A value that is not finite
has its own colour, `BAD`, which none of the maps holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["depth", "error", "difference", "confidence"]
Floats = NDArray[np.floating[Any]]
Pixels = NDArray[np.uint8]

MAPS: dict[Kind, str] = {
    "depth": "viridis",
    "error": "inferno",
    "difference": "RdBu_r",
    "confidence": "cividis",
}
BAD = (255, 0, 255)
RAMP_STEPS = 128


@dataclass(frozen=True)
class ColourRange:
    """Which map, from which value to which; what lies beyond has the colour of the end.

    unit: of the values, for the legend ("m", "network units", "" for a ratio)
    clipped: part of the finite values beyond either end, 0..1; None: not counted
    """

    kind: Kind
    low: float
    high: float
    unit: str
    clipped: float | None = None


def range_of(
    values: Floats,
    kind: Kind,
    unit: str,
    *,
    low: float = 2.0,
    high: float = 98.0,
) -> ColourRange:
    """The range between two percentiles of the finite values; never an empty one.

    A "difference" is symmetric around 0 and ends at the percentile `high` of |value|, an "error"
    begins at 0.
    """
    finite = np.asarray(values[np.isfinite(values)], dtype=np.float64)
    if finite.size == 0:
        bounds = (-1.0, 1.0) if kind == "difference" else (0.0, 1.0)
        return ColourRange(kind, *bounds, unit, None)
    if kind == "difference":
        top = float(np.percentile(np.abs(finite), high))
        bottom = -top
    else:
        bottom, top = (float(x) for x in np.percentile(finite, [low, high]))
        bottom = 0.0 if kind == "error" else bottom
    if not top > bottom:
        spread = max(abs(top), 1.0) * 1e-6
        bottom, top = (-spread, spread) if kind == "difference" else (bottom, bottom + spread)
    clipped = float(np.mean((finite < bottom) | (finite > top)))
    return ColourRange(kind, bottom, top, unit, clipped)


def coloured(values: Floats, limits: ColourRange) -> Pixels:
    """[H, W] to RGB [H, W, 3]."""
    from matplotlib import colormaps

    finite = np.isfinite(values)
    filled = np.where(finite, values, limits.low).astype(np.float64)
    scaled = np.clip((filled - limits.low) / (limits.high - limits.low), 0.0, 1.0)
    rgb: Pixels = np.round(colormaps[MAPS[limits.kind]](scaled)[..., :3] * 255.0).astype(np.uint8)
    rgb[~finite] = BAD
    return rgb


def ramp(kind: Kind) -> Pixels:
    """The colours of the map from its low end to its high one, [1, RAMP_STEPS, 3]."""
    steps = np.linspace(0.0, 1.0, RAMP_STEPS)[None]
    return coloured(steps, ColourRange(kind, 0.0, 1.0, ""))
