"""Depth pictures of the first scene: picture, depth of PyTorch FP32, of a variant, difference.

    depth/<picture>.png             all variants, small, one range for all differences
    depth/<variant>/<picture>.png   one variant, full size (small pictures enlarged by a whole
                                    number), the difference in its own range

Depth is coloured by viridis between the 2nd and 98th percentile of the reference's depth on that
picture, the same for both. The difference, variant minus reference, is not aligned; blue is nearer,
red is farther, white is equal. Its range is the largest 99th percentile of |difference| among what
is shown together, and stands in the picture. Values that are not finite are magenta.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vggt_deploy.compare.report import ComparisonReport
from vggt_deploy.compare.state import Folder
from vggt_deploy.compare.variants import REFERENCE, Variant
from vggt_deploy.report.kept import kept_outputs, kept_pixels

if TYPE_CHECKING:
    from collections.abc import Callable

SHEET_TILE_WIDTH = 300
LEAST_TILE_WIDTH = 220  # the longest title of a column takes about 140 pixels
GAP = 8
BAD = (255, 0, 255)

Pixels = NDArray[np.uint8]
Map = NDArray[np.floating[Any]]


def draw_depth_pictures(report: ComparisonReport, folder: Folder) -> tuple[Path, ...]:
    """Write the pictures of all finished variants; nothing where depth was not asked for."""
    if "depth" not in report.question["outputs"]:
        return ()
    done = [
        variant
        for row in report.rows
        if row.status == "done" and (variant := row.variant) != REFERENCE
    ]
    images = kept_pixels(report, folder)
    reference = _depth(report, folder, REFERENCE)
    depths = {variant.label: _depth(report, folder, variant) for variant in done}
    written = []
    for index, name in enumerate(_picture_names(report.pictures)):
        image = np.round(images[index].transpose(1, 2, 0) * 255.0).astype(np.uint8)
        maps = {label: depth[index] for label, depth in depths.items()}
        if maps:
            path = folder.root / "depth" / f"{name}.png"
            path.parent.mkdir(exist_ok=True)
            _sheet(image, reference[index], maps, SHEET_TILE_WIDTH).save(path)
            written.append(path)
        for variant in done:
            path = folder.root / "depth" / variant.slug / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            one = {variant.label: maps[variant.label]}
            _sheet(image, reference[index], one, _enlarged(image.shape[1])).save(path)
            written.append(path)
    return tuple(written)


def _picture_names(files: Sequence[str]) -> list[str]:
    """Names without their endings, numbered: a.jpg and a.png must not become one file."""
    return [f"{i:03d}_{Path(name).stem}" for i, name in enumerate(files)]


def _enlarged(width: int) -> int:
    """The smallest whole multiple of a width that has room for the titles."""
    return width * -(-LEAST_TILE_WIDTH // width)


def _depth(report: ComparisonReport, folder: Folder, variant: Variant) -> NDArray[np.float32]:
    """Depth [S, H, W] of a variant."""
    depth: NDArray[np.float32] = kept_outputs(report, folder, variant)["depth"][0, ..., 0]
    return depth


def _range(values: Map, low: float, high: float) -> tuple[float, float]:
    """Percentiles of the finite values; never an empty range."""
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return 0.0, 1.0
    a, b = (float(x) for x in np.percentile(finite, [low, high]))
    return (a, b) if b > a else (a, a + max(abs(a), 1.0) * 1e-6)


def _coloured(values: Map, limits: tuple[float, float], name: str) -> Pixels:
    """[H, W] to RGB [H, W, 3]."""
    from matplotlib import colormaps

    low, high = limits
    finite = np.isfinite(values)
    scaled = np.clip((np.where(finite, values, low) - low) / (high - low), 0.0, 1.0)
    rgb = np.round(colormaps[name](scaled)[..., :3] * 255.0).astype(np.uint8)
    rgb[~finite] = BAD
    return rgb


def _sheet(image: Pixels, reference: Map, maps: dict[str, Map], tile_width: int) -> Image.Image:
    """One row for each map: picture, reference, map, difference; a legend on top."""
    height, width = reference.shape
    tile = (tile_width, max(1, round(height * tile_width / width)))
    depth_range = _range(reference, 2.0, 98.0)
    differences = {label: depth - reference for label, depth in maps.items()}
    spread = max(_range(np.abs(d), 0.0, 99.0)[1] for d in differences.values())
    difference_range = (-spread, spread)
    font = ImageFont.load_default(max(13, tile_width // 28))
    line = _line_height(font)
    step = tile[1] + line + GAP
    top = 2 * line + line // 2 + 2 * GAP
    canvas = Image.new("RGB", (4 * tile[0] + 5 * GAP, top + step * len(maps)), "white")
    draw = ImageDraw.Draw(canvas)
    columns = [GAP + i * (tile[0] + GAP) for i in range(4)]
    titles = ("picture", "depth, PyTorch FP32", "depth, variant", "variant - FP32")
    for x, title in zip(columns, titles, strict=True):
        draw.text((x, 2), _fit(title, tile[0], font), "black", font)
    below = "depth in the network's units"
    draw.text((columns[0], line + 2), _fit(below, tile[0], font), "black", font)
    for x, limits, name in (
        (columns[1], depth_range, "viridis"),
        (columns[2], depth_range, "viridis"),
        (columns[3], difference_range, "RdBu_r"),
    ):
        _colour_bar(canvas, draw, font, x, tile[0], limits, name)
    to_tile = _resizer(tile)
    shared = [to_tile(image, smooth=True), to_tile(_coloured(reference, depth_range, "viridis"))]
    for i, (label, depth) in enumerate(maps.items()):
        y = top + i * step
        error = float(np.mean(np.abs(differences[label])))
        text = f"{label}: mean |difference| {error:.3g}"
        draw.text((columns[0], y), _fit(text, canvas.width - 2 * GAP, font), "black", font)
        tiles = [
            *shared,
            to_tile(_coloured(depth, depth_range, "viridis")),
            to_tile(_coloured(differences[label], difference_range, "RdBu_r")),
        ]
        for x, picture in zip(columns, tiles, strict=True):
            canvas.paste(picture, (x, y + line))
    return canvas


def _resizer(tile: tuple[int, int]) -> Callable[..., Image.Image]:
    """Pictures are smoothed when made smaller; maps are not: colours must stay those of the bar."""

    def resize(pixels: Pixels, *, smooth: bool = False) -> Image.Image:
        method = Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
        return Image.fromarray(pixels).resize(tile, method)

    return resize


def _colour_bar(
    canvas: Image.Image,
    draw: ImageDraw.ImageDraw,
    font: Any,
    x: int,
    width: int,
    limits: tuple[float, float],
    name: str,
) -> None:
    """A strip with the values of its ends below it."""
    line = _line_height(font)
    ramp = np.broadcast_to(np.linspace(*limits, width), (line // 2, width))
    y = line + 2
    canvas.paste(Image.fromarray(_coloured(ramp, limits, name)), (x, y))
    low, high = (f"{value:.3g}" for value in limits)
    below = y + line // 2 + 1
    draw.text((x, below), low, "black", font)
    draw.text((x + width - round(draw.textlength(high, font)), below), high, "black", font)


def _line_height(font: Any) -> int:
    """Pixels from one line of text to the next."""
    return int(font.size * 1.5)


def _fit(text: str, width: int, font: Any) -> str:
    """The text, cut with an ellipsis where it is wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."
