"""The pictures of report.html: photo, depth, difference from FP32 and error by the truth.

For each picture of the first scene, and each finished variant:

    depth        as computed; one range for FP32 and all variants: the 2nd
                 to the 98th percentile of FP32's on that picture
    difference   variant minus FP32, not aligned; one range for all variants of a picture: the
                 median over the variants of the 99th percentile of |difference|, so that neither a
                 bad variant nor a nearly perfect one decides what the others look like
    error        |s a - b| / b by the true depth b, with the scale s = median(b) / median(a) of the
                 scene that the metrics used; from 0 to the 95th percentile of FP32's

Not finite is magenta; where the truth is not known the error is grey. Many variants make the maps
smaller, so that the page stays below its budget; how small is said on the page.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggt_deploy.compare.report import ComparisonReport, Row
from vggt_deploy.compare.state import Folder
from vggt_deploy.data.ground_truth import GroundTruth
from vggt_deploy.pages.blocks import legend
from vggt_deploy.pages.colours import ColourRange, coloured, range_of
from vggt_deploy.pages.encode import PHOTO_QUALITY, PictureStore, shrunk
from vggt_deploy.report.kept import kept_outputs

PIXELS_TOTAL = 26_000_000  # of all maps of a page; more of them are made smaller
LEAST_WIDTH = 96
MOST_WIDTH = 640
UNKNOWN = (150, 150, 150)
UNIT = "network units"

Maps = NDArray[np.float32]
Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Shown:
    """The pictures of the page as plain values; `notes` say what the colours are.

    data["pictures"]: for each its name, photo, ranges and legends
    data["variants"]: label -> for each picture the keys of its maps in the store
    """

    data: dict[str, Any] | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Ranges:
    """Of one picture; error: None where its truth is not known."""

    depth: ColourRange
    difference: ColourRange
    error: ColourRange | None


def map_data(
    report: ComparisonReport,
    folder: Folder,
    images: Floats,
    truth: GroundTruth | None,
    store: PictureStore,
) -> Shown:
    """Encode all maps into the store; images [S, 3, H, W] of the first scene."""
    if "depth" not in report.question["outputs"]:
        return Shown(None, ("Not shown: depth was not among the outputs asked for.",))
    done = [row for row in report.rows if row.status == "done"]
    depths = {row.label: _depth(report, folder, row) for row in done}
    errors = _errors(done, depths, truth)
    if report.reference.label not in errors:
        errors = {}  # the others are shown beside it, in its range
    frames, height, width = depths[report.reference.label].shape
    kinds = 2 + bool(errors)
    shown = _width(width, height, frames * len(done) * kinds)
    pictures: list[dict[str, Any]] = []
    per_variant: dict[str, list[dict[str, Any]]] = {label: [] for label in depths}
    for index, name in enumerate(report.pictures):
        of_picture = {label: depth[index] for label, depth in depths.items()}
        wrong = {label: error[index] for label, error in errors.items()}
        ranges = _ranges(of_picture, wrong, report.reference.label)
        photo = np.round(images[index].transpose(1, 2, 0) * 255.0).astype(np.uint8)
        pictures.append(_picture(name, photo, ranges, shown, store))
        for label in depths:
            maps = _maps(of_picture, wrong, label, report.reference.label, ranges, shown, store)
            per_variant[label].append(maps)
    data = {
        "pictures": pictures,
        "variants": per_variant,
        "reference": report.reference.label,
        "small": shown <= 280,
        "width": width,
        "height": height,
    }
    without = [label for label in depths if label not in errors]
    return Shown(data, (*_notes(width, height, shown), *_error_notes(report, truth, without)))


def _depth(report: ComparisonReport, folder: Folder, row: Row) -> Maps:
    """Depth [S, H, W] of a variant."""
    depth: Maps = kept_outputs(report, folder, row.variant)["depth"][0, ..., 0]
    return depth


def _errors(
    done: list[Row], depths: Mapping[str, Maps], truth: GroundTruth | None
) -> dict[str, NDArray[np.float64]]:
    """Label -> |s a - b| / b, [S, H, W]; NaN where b is not known, inf where a is not finite.

    Without the rows whose metrics had too little truth to go by.
    """
    if truth is None or truth.depth is None:
        return {}
    found = {}
    known = np.isfinite(truth.depth) & (truth.depth > 0)
    for row in done:
        scene = row.scenes[0].truth if row.scenes else None
        if scene is None or scene.depth is None:
            continue
        found[row.label] = relative_error(depths[row.label], truth.depth, known, scene.depth.scale)
    return found


def relative_error(
    depth: Floats, true: Floats, known: NDArray[np.bool_], scale: float
) -> NDArray[np.float64]:
    """|scale depth - true| / true; NaN where it is not known, inf where depth is not finite."""
    error = np.full(depth.shape, np.nan)
    with np.errstate(invalid="ignore"):
        part = np.abs(scale * depth[known].astype(np.float64) - true[known]) / true[known]
    error[known] = np.where(np.isfinite(depth[known]), part, np.inf)
    return error


def _width(width: int, height: int, maps: int) -> int:
    """How wide the maps are drawn: as computed, or less where they would be too many pixels."""
    most = (PIXELS_TOTAL / max(1, maps) * width / height) ** 0.5
    return int(min(width, MOST_WIDTH, max(LEAST_WIDTH, most)))


def _ranges(depths: Mapping[str, Floats], errors: Mapping[str, Floats], reference: str) -> _Ranges:
    own = depths[reference]
    spreads = [
        range_of(depth - own, "difference", UNIT, high=99.0).high
        for label, depth in depths.items()
        if label != reference
    ]
    spread = float(np.median(spreads)) if spreads else 1.0
    error = None
    if errors:
        error = range_of(100.0 * errors[reference], "error", "% of the true depth", high=95.0)
    return _Ranges(
        depth=range_of(own, "depth", UNIT),
        difference=ColourRange("difference", -spread, spread, UNIT),
        error=error,
    )


def _picture(
    name: str, photo: NDArray[np.uint8], ranges: _Ranges, width: int, store: PictureStore
) -> dict[str, Any]:
    small = shrunk(photo, max(width, min(photo.shape[1], 360)), smooth=True)
    entry: dict[str, Any] = {
        "name": name,
        "photo": store.add(small, quality=PHOTO_QUALITY),
        "depth": _ends(ranges.depth),
        "difference": _ends(ranges.difference),
    }
    if ranges.error is not None:
        entry["error"] = _ends(ranges.error)
    return entry


def _ends(limits: ColourRange) -> dict[str, str]:
    made = legend(limits)
    return {"low": made.low, "high": made.high, "unit": made.unit}


def _maps(
    depths: Mapping[str, Floats],
    errors: Mapping[str, Floats],
    label: str,
    reference: str,
    ranges: _Ranges,
    width: int,
    store: PictureStore,
) -> dict[str, Any]:
    """The keys of one variant's maps of one picture, and what stands beside them."""
    difference = depths[label] - depths[reference]
    finite = np.abs(difference[np.isfinite(difference)])
    entry: dict[str, Any] = {
        "depth": _key(coloured(depths[label], ranges.depth), width, store),
        "mean_difference": float(finite.mean()) if finite.size else None,
        "not_finite": int(np.count_nonzero(~np.isfinite(depths[label]))),
    }
    if label != reference:
        beyond = float(np.mean(finite > ranges.difference.high)) if finite.size else 0.0
        entry["beyond"] = beyond
        entry["difference"] = _key(coloured(difference, ranges.difference), width, store)
    if ranges.error is not None and label in errors:
        error = errors[label]
        pixels = coloured(100.0 * error, replace(ranges.error, clipped=None))
        pixels[np.isnan(error)] = UNKNOWN
        entry["error"] = _key(pixels, width, store)
        entry |= _said_of(error)
    return entry


def _said_of(error: Floats) -> dict[str, Any]:
    """Of one picture's error [H, W]: its median in percent, over how many pixels.

    A depth that is not finite counts as depth 0, as in the metrics: an error of 100 %.
    """
    known = error[~np.isnan(error)]
    broken = np.isinf(known)
    counted = np.where(broken, 1.0, known)
    return {
        "median_error": float(100.0 * np.median(counted)) if counted.size else None,
        "known": int(counted.size),
        "broken": int(np.count_nonzero(broken)),
    }


def _key(pixels: NDArray[np.uint8], width: int, store: PictureStore) -> str:
    return store.add(shrunk(pixels, width, smooth=False))


def _notes(width: int, height: int, shown: int) -> tuple[str, ...]:
    notes = [
        (
            "Depth: from the 2nd to the 98th percentile of FP32's on that picture, the same for "
            "all variants. Difference: variant minus FP32, not aligned; blue is nearer, red is "
            "farther; one range for all variants of a picture. Magenta: not finite."
        )
    ]
    if shown < width:
        made = f"{shown} x {round(height * shown / width)}"
        notes.append(f"The maps are drawn at {made} pixels of {width} x {height} computed.")
    return tuple(notes)


def _error_notes(
    report: ComparisonReport, truth: GroundTruth | None, without: list[str]
) -> tuple[str, ...]:
    """without: the finished variants that have no error by the truth."""
    if truth is None or truth.depth is None:
        return ("Error by the truth: not shown, no true depth is known of this scene.",)
    if report.reference.label in without:
        said = f"too little true depth to measure {report.reference.label} by"
        return (f"Error by the truth: not shown, there is {said}.",)
    how = (
        "Error by the truth: |s a - b| / b with one scale s for the scene, as in the metrics; "
        "the range ends at the 95th percentile of FP32's. Grey: the true depth is not known. "
        "A depth that is not finite counts as an error of 100 %."
    )
    if not without:
        return (how,)
    return (how, f"No error by the truth was measured of: {', '.join(without)}.")
