"""Pictures, models and a page of what a network saw, from a finished run or comparison.

The output folder appears whole or not at all:

    view.html           everything below to look at, in one file that opens offline
    depth/NNN_name.png, confidence/NNN_name.png     the photograph beside the map, with its range
    points.ply          the coloured points
    scene.glb           points, cameras and their path
    cameras_top.png, cameras_side.png               to scale
    visualized.json     what was shown of what, counts and ranges

What needs an output that the network was not asked for is left out, and a note says so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vggt_deploy import __version__
from vggt_deploy.artifact import require_free_space, writing
from vggt_deploy.engines.outputs import file_stem, write_json
from vggt_deploy.engines.points import (
    DEFAULT_CONF_PERCENTILE,
    DEFAULT_MAX_POINTS,
    PointCloud,
    PointLimits,
    select_points,
)
from vggt_deploy.engines.predict import PointMap
from vggt_deploy.errors import ArtifactError
from vggt_deploy.geometry import is_pinhole
from vggt_deploy.manifest import now
from vggt_deploy.visualize.cameras import Cameras, cameras_of
from vggt_deploy.visualize.maps import Maps, maps_of, write_map
from vggt_deploy.visualize.models import write_glb, write_ply
from vggt_deploy.visualize.page import Shown, write_page
from vggt_deploy.visualize.sources import Source, read_source
from vggt_deploy.visualize.views import VIEWS, write_view

RECORD_NAME = "visualized.json"
PAGE_NAME = "view.html"
_CONFIDENCE_UNIT = "1 and more, higher is surer"


@dataclass(frozen=True)
class PointCounts:
    """Where the points went: each pixel of a picture is counted once.

    not_finite  no point there: NaN, infinite, or depth through what is no pinhole camera
    unsure      below `threshold`, the confidence percentile that was asked for
    thinned     left out at random to stay below the most points
    written     in points.ply and scene.glb
    """

    source: str
    padding: int
    not_finite: int
    unsure: int
    thinned: int
    written: int
    threshold: float | None


@dataclass(frozen=True)
class Visualized:
    """What was written where. `files` are names inside `folder`; `points` is None without any."""

    folder: Path
    page: Path
    files: tuple[str, ...]
    subject: str
    images: int
    cameras: int
    points: PointCounts | None
    notes: tuple[str, ...]


def visualize(
    source: Path | str,
    output_dir: Path | str,
    *,
    variant: str | None = None,
    images_dir: Path | str | None = None,
    max_points: int = DEFAULT_MAX_POINTS,
    min_confidence: float = DEFAULT_CONF_PERCENTILE,
    overwrite: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Visualized:
    """Show what `source`, a folder that `run` or `compare` wrote, holds.

    variant: of a comparison, its label; default PyTorch FP32
    images_dir: the photographs of a run that kept none
    max_points: of points.ply and scene.glb; the page shows fewer
    min_confidence: percentile of confidence that a point must reach, 0 (every point) to below 100

    Raises:
        UsageError: an option that means nothing for this folder, or a number out of range
        ArtifactError: `source` is neither kind of folder, or damaged; `output_dir` has content
    """
    say = progress if progress is not None else _silent
    limits = PointLimits(min_confidence, max_points)
    images = None if images_dir is None else Path(images_dir)
    with writing(Path(output_dir), overwrite=overwrite, marker=RECORD_NAME) as folder:
        say(f"reading {source}")
        seen = read_source(Path(source), variant=variant, images_dir=images)
        shown, counts = _derive(seen, limits)
        require_free_space(folder, _bytes_needed(seen, counts))
        say("drawing")
        _write_pictures(folder, shown)
        say("writing points, cameras and page")
        _write_models(folder, shown)
        write_page(folder / PAGE_NAME, shown)
        _write_record(folder, shown, counts, limits)
        files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    target = Path(output_dir)
    return Visualized(
        folder=target,
        page=target / PAGE_NAME,
        files=tuple(files),
        subject=seen.subject,
        images=len(seen.pictures),
        cameras=0 if shown.cameras is None else len(shown.cameras.frames),
        points=counts,
        notes=shown.notes,
    )


def _derive(source: Source, limits: PointLimits) -> tuple[Shown, PointCounts | None]:
    """Maps, points and cameras of a source; notes say what it has none of."""
    notes = list(source.notes)
    outputs = source.predictions.outputs
    depth, confidence = _maps(source, notes)
    cloud, counts = _points(source, limits)
    if "depth" not in outputs and "world_points" not in outputs:
        notes.append("no depth maps and no points: neither depth nor points were asked for")
    elif counts is None:
        notes.append("no points: they need the outputs depth and pose, or points")
    elif cloud is None:
        notes.append("no points: no pixel has a finite one")
    cameras = _cameras(source, cloud)
    if cameras is None:
        notes.append("no cameras: the output pose was not asked for")
    else:
        notes += cameras.notes
    usable_cameras = cameras if cameras is not None and cameras.frames else None
    if depth is None and confidence is None and cloud is None and usable_cameras is None:
        raise ArtifactError(
            f"there is nothing to show of {source.subject}: no output holds a finite value",
            "look at another variant, or run a network whose outputs are finite",
        )
    shown = Shown(source, depth, confidence, cloud, usable_cameras, tuple(notes))
    return shown, counts


def _maps(source: Source, notes: list[str]) -> tuple[Maps | None, Maps | None]:
    """Depth and its confidence; without them the confidence of the point head."""
    outputs = source.predictions.outputs
    depth = confidence = None
    if "depth" in outputs:
        depth = maps_of(
            "depth",
            outputs["depth"][0, ..., 0],
            source.shown,
            unit="network units",
            title=f"depth, {source.subject}",
        )
        if depth is None:
            notes.append("no depth maps: no predicted depth is finite")
    for name, of in (("depth_conf", "depth"), ("world_points_conf", "points")):
        if name in outputs and confidence is None:
            confidence = maps_of(
                "confidence",
                outputs[name][0],
                source.shown,
                unit=_CONFIDENCE_UNIT,
                title=f"confidence of {of}, {source.subject}",
            )
    return depth, confidence


def _points(source: Source, limits: PointLimits) -> tuple[PointCloud | None, PointCounts | None]:
    """The points that are kept, and what became of the others; (None, None) without a source."""
    predictions = source.predictions
    points = predictions.points
    if points is None:
        return None, None
    if points.source == "depth" and predictions.intrinsic is not None:
        # Through what is no pinhole camera depth does not become points: an infinite focal length
        # puts a whole frame on one line, a negative one (180 degrees and more) turns it over.
        xyz = points.xyz.copy()
        xyz[~is_pinhole(predictions.intrinsic)] = np.nan
        points = PointMap(xyz, points.confidence, points.source)
    pixels = source.pixels.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    cloud = select_points(points, pixels, source.shown, limits)
    pictured = int(source.shown.sum())
    counts = PointCounts(
        source=cloud.source,
        padding=cloud.pixels - pictured,
        not_finite=pictured - cloud.usable,
        unsure=cloud.usable - cloud.confident,
        thinned=cloud.confident - len(cloud.xyz),
        written=len(cloud.xyz),
        threshold=cloud.threshold if cloud.usable else None,
    )
    return (cloud if len(cloud.xyz) else None), counts


def _cameras(source: Source, cloud: PointCloud | None) -> Cameras | None:
    predictions = source.predictions
    if predictions.extrinsic is None or predictions.intrinsic is None:
        return None
    return cameras_of(
        predictions.extrinsic,
        predictions.intrinsic,
        height=source.height,
        width=source.width,
        names=source.pictures,
        points=np.empty((0, 3)) if cloud is None else cloud.xyz,
    )


def _write_pictures(folder: Path, shown: Shown) -> None:
    source = shown.source
    for maps in (shown.depth, shown.confidence):
        if maps is None:
            continue
        (folder / maps.kind).mkdir()
        for index, name in enumerate(source.pictures):
            path = folder / maps.kind / f"{file_stem(index, Path(name))}.png"
            write_map(path, maps, index, source.pixels[index], name)
    if shown.cameras is not None:
        title = f"{source.name}: {source.subject}"
        for view in VIEWS:
            path = folder / f"cameras_{view.name}.png"
            write_view(path, view, shown.cloud, shown.cameras, title=title)


def _write_models(folder: Path, shown: Shown) -> None:
    if shown.cloud is not None:
        write_ply(shown.cloud, folder / "points.ply")
    if shown.cloud is not None or shown.cameras is not None:
        write_glb(shown.cloud, shown.cameras, folder / "scene.glb")


def _write_record(
    folder: Path, shown: Shown, counts: PointCounts | None, limits: PointLimits
) -> None:
    source = shown.source
    ranges: dict[str, Any] = {
        maps.kind: {**dataclasses.asdict(maps.limits), "not_finite": maps.not_finite}
        for maps in (shown.depth, shown.confidence)
        if maps is not None
    }
    cameras = shown.cameras
    write_json(
        folder / RECORD_NAME,
        {
            "schema": 1,
            "tool_version": __version__,
            "created": now(),
            "source": {"kind": source.kind, "name": source.name, "subject": source.subject},
            "pictures": list(source.pictures),
            "unit": source.unit,
            "ranges": ranges,
            "min_confidence": limits.conf_percentile,
            "max_points": limits.max_points,
            "points": None if counts is None else dataclasses.asdict(counts),
            "cameras": []
            if cameras is None
            else [
                {"picture": source.pictures[frame], "centre": centre.tolist()}
                for frame, centre in zip(cameras.frames, cameras.centres, strict=True)
            ],
            "axes": {
                "points.ply": "x right, y down, z forward (OpenCV, first camera); sRGB colours",
                "scene.glb": "x right, y up, z backward: (x, -y, -z); linear colours, as glTF says",
            },
            "notes": list(shown.notes),
        },
    )


def _bytes_needed(source: Source, counts: PointCounts | None) -> int:
    """Generously: PNGs as large as their pixels, points twice at 32 bytes, the page's library."""
    points = 0 if counts is None else counts.written
    return 6 * source.pixels.nbytes + 64 * points + 10_000_000


def _silent(message: str) -> None:
    del message
