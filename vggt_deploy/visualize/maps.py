"""Depth and confidence as pictures: the photograph, the map, a colour bar with its range.

One range serves all pictures of a scene: the 2nd to the 98th percentile of what is finite and on a
picture. What lies beyond has the colour of the end, which the pointed ends of the bar say. Values
that are not finite are magenta, white padding is grey.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from vggt_deploy.pages.colours import MAPS, ColourRange, coloured, range_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MapKind = Literal["depth", "confidence"]

PADDING = (190, 190, 190)
_PANEL_INCHES, _BAR_INCHES, _DPI = 4.6, 0.18, 110
# Around the panels; the bar with its numbers and label stands in the right one.
_EDGE_INCHES, _GAP_INCHES, _TOP_INCHES, _RIGHT_INCHES = 0.1, 0.12, 0.5, 0.95
_TITLE_CHARACTERS = 62


@dataclass(frozen=True)
class Maps:
    """The maps of one kind, [S, H, W], and how they are coloured.

    shown       bool [S, H, W], false on white padding
    title       `depth`, and of which outputs it is
    not_finite  pixels of pictures without a value
    """

    kind: MapKind
    values: NDArray[np.floating]
    shown: NDArray[np.bool_]
    limits: ColourRange
    title: str
    not_finite: int

    def coloured(self, frame: int) -> NDArray[np.uint8]:
        """RGB [H, W, 3] of one picture's map."""
        rgb = coloured(self.values[frame], self.limits)
        rgb[~self.shown[frame]] = PADDING
        return rgb


def maps_of(
    kind: MapKind, values: NDArray[np.floating], shown: NDArray[np.bool_], *, unit: str, title: str
) -> Maps | None:
    """With the range of all of them together; None if no picture has a finite value."""
    on_pictures = values[shown]
    finite = int(np.isfinite(on_pictures).sum())
    if finite == 0:
        return None
    limits = range_of(on_pictures, kind, unit)
    return Maps(kind, values, shown, limits, title, on_pictures.size - finite)


def write_map(path: Path, maps: Maps, frame: int, picture: NDArray[np.uint8], name: str) -> None:
    """One PNG: `picture` [H, W, 3] at the left, its map at the right, the bar beside it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    height, width = maps.values.shape[1:]
    panel = _PANEL_INCHES * height / width
    size = (2 * _PANEL_INCHES + _GAP_INCHES + _RIGHT_INCHES + _EDGE_INCHES, panel + _TOP_INCHES)
    figure = Figure(figsize=size, dpi=_DPI)
    FigureCanvasAgg(figure)

    def axes(left: float, across: float) -> Axes:
        """As high as the panels, at that many inches."""
        place = (left / size[0], _EDGE_INCHES / size[1], across / size[0], panel / size[1])
        return figure.add_axes(place)

    second = _EDGE_INCHES + _PANEL_INCHES + _GAP_INCHES
    _show(axes(_EDGE_INCHES, _PANEL_INCHES), picture, name)
    _show(axes(second, _PANEL_INCHES), maps.coloured(frame), maps.title)
    limits = maps.limits
    figure.colorbar(
        ScalarMappable(Normalize(limits.low, limits.high), MAPS[limits.kind]),
        cax=axes(second + _PANEL_INCHES + _GAP_INCHES, _BAR_INCHES),
        extend="both" if limits.clipped else "neither",
        label=f"{maps.kind} ({limits.unit})",
    )
    figure.savefig(path, metadata={"Software": None})


def _show(axes: Axes, pixels: NDArray[np.uint8], title: str) -> None:
    axes.imshow(pixels, interpolation="nearest")
    shown = title if len(title) <= _TITLE_CHARACTERS else f"{title[: _TITLE_CHARACTERS - 3]}..."
    axes.set_title(shown, fontsize=10, loc="left", parse_math=False)
    axes.set_axis_off()
