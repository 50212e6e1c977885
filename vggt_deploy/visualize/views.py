"""The scene from above and from the side: points, frusta and the path of the cameras, to scale.

Both are parallel projections along an axis of the world, which is the first camera's frame: `top`
looks along its y axis (down), `side` along its x axis from the right. Where the first camera was
tilted, so are they.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vggt_deploy.visualize.cameras import FRUSTUM_EDGES, Cameras
from vggt_deploy.visualize.colours import PATH_COLOUR, camera_colours

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from vggt_deploy.engines.points import PointCloud

MAX_DRAWN_POINTS = 60_000
_SHOWN_PERCENTILES = (1.0, 99.0)
_BORDER = 0.05
_INCHES, _DPI = 8.0, 110
_LEFT_INCHES, _RIGHT_INCHES, _LOW_INCHES, _TOP_INCHES = 0.75, 0.15, 0.55, 0.5
_MOST_RATIO = 2.5
_MAX_NUMBERS = 15
_DOTS_AREA = 80_000.0
_SEED = 0


@dataclass(frozen=True)
class View:
    """A direction to look in.

    across, up   axes of the world that run along the picture's sides
    along        the axis that points away from the viewer, and its sign
    up_is_minus  the picture's upward direction is the axis's negative one (y runs down)
    """

    name: str
    across: int
    up: int
    along: int
    sign: int
    up_is_minus: bool
    title: str


VIEWS = (
    View("top", 0, 2, 1, 1, False, "from above, along the first camera's y axis"),
    View("side", 2, 1, 0, -1, True, "from the right, along the first camera's x axis"),
)
_AXES = tuple(f"{axis}, network units" for axis in ("x (right)", "y (down)", "z (forward)"))


def write_view(
    path: Path, view: View, cloud: PointCloud | None, cameras: Cameras, *, title: str
) -> None:
    """One PNG with equal axes; outlying points (beyond 1 % and 99 %) may lie outside of it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    low, high = _box(view, cloud, cameras)
    across, up = _INCHES, _INCHES * float((high - low)[1] / (high - low)[0])
    size = (across + _LEFT_INCHES + _RIGHT_INCHES, up + _LOW_INCHES + _TOP_INCHES)
    figure = Figure(figsize=size, dpi=_DPI)
    FigureCanvasAgg(figure)
    place = (_LEFT_INCHES / size[0], _LOW_INCHES / size[1], across / size[0], up / size[1])
    axes = figure.add_axes(place)
    if cloud is not None and len(cloud.xyz):
        _draw_points(axes, view, cloud)
    _draw_cameras(axes, view, cameras)
    axes.set_xlim(low[0], high[0])
    axes.set_ylim(*((high[1], low[1]) if view.up_is_minus else (low[1], high[1])))
    axes.set_aspect("equal", adjustable="box")
    axes.set_xlabel(_AXES[view.across])
    axes.set_ylabel(_AXES[view.up])
    axes.set_title(f"{title}\n{view.title}", fontsize=9, loc="left", parse_math=False)
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    figure.savefig(path, metadata={"Software": None})


def drawn_subset(count: int, most: int) -> NDArray[np.intp]:
    """Indices of at most `most` of `count` points, the same each time, in order."""
    if count <= most:
        return np.arange(count)
    rng = np.random.Generator(np.random.PCG64(_SEED))
    return np.sort(rng.choice(count, most, replace=False, shuffle=False))


def _box(
    view: View, cloud: PointCloud | None, cameras: Cameras
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What is shown: the ends [2] along the picture's two axes, in the world's unit.

    Neither side is more than _MOST_RATIO times the other; the shorter one then shows more.
    """
    corners = [cameras.centres, cameras.frusta[cameras.with_frustum].reshape(-1, 3)]
    if cloud is not None and len(cloud.xyz):
        corners.append(np.percentile(cloud.xyz, _SHOWN_PERCENTILES, axis=0))
    around = np.concatenate(corners)[:, [view.across, view.up]]
    low, high = around.min(axis=0), around.max(axis=0)
    longest = max(float((high - low).max()), 1e-6)
    sides = np.maximum(high - low, longest / _MOST_RATIO) + 2 * _BORDER * longest
    middle = (low + high) / 2
    return middle - sides / 2, middle + sides / 2


def _draw_points(axes: Axes, view: View, cloud: PointCloud) -> None:
    kept = drawn_subset(len(cloud.xyz), MAX_DRAWN_POINTS)
    xyz, rgb = cloud.xyz[kept], cloud.rgb[kept]
    order = np.argsort(-view.sign * xyz[:, view.along])  # the farthest from the viewer first
    axes.scatter(
        xyz[order, view.across],
        xyz[order, view.up],
        s=_dot_size(len(kept)),
        c=rgb[order],
        linewidths=0,
        rasterized=True,
    )


def _dot_size(count: int) -> float:
    """Area in square points: as large as lets about as many dots cover the picture."""
    return float(np.clip(_DOTS_AREA / max(count, 1), 1.2, 6.0))


def _draw_cameras(axes: Axes, view: View, cameras: Cameras) -> None:
    plane = [view.across, view.up]
    path = cameras.centres[:, plane]
    axes.plot(path[:, 0], path[:, 1], color=np.array(PATH_COLOUR) / 255, linewidth=1.2)
    colours = camera_colours(len(cameras.frames)) / 255
    for index in cameras.with_frustum:
        corners = cameras.frusta[index][:, plane]
        for start, end in FRUSTUM_EDGES:
            line = corners[[start, end]]
            axes.plot(line[:, 0], line[:, 1], color=colours[index], linewidth=1.1)
    axes.scatter(path[:, 0], path[:, 1], s=14, c=colours, zorder=3)
    every = -(-len(path) // _MAX_NUMBERS)
    for index in range(0, len(path), every):
        axes.annotate(
            str(cameras.frames[index] + 1),
            path[index],
            xytext=(5, 4),
            textcoords="offset points",
            fontsize=9,
            color=colours[index],
            bbox={
                "boxstyle": "round,pad=0.15",
                "facecolor": "white",
                "alpha": 0.75,
                "linewidth": 0,
            },
        )
