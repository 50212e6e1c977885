"""view.html: points and cameras in 3D, each photograph against its maps, the cameras in numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vggt_deploy.engines.points import PointCloud
from vggt_deploy.pages import cloud as packing
from vggt_deploy.pages.blocks import (
    Cell,
    Column,
    Facts,
    Notes,
    Picture,
    Row,
    Scene,
    Section,
    Slider,
    Sliders,
    Table,
    legend,
    simple_page,
)
from vggt_deploy.pages.encode import PHOTO_QUALITY, webp_uri
from vggt_deploy.visualize.cameras import Cameras
from vggt_deploy.visualize.maps import Maps
from vggt_deploy.visualize.sources import Source

MAX_PAGE_POINTS = 60_000


@dataclass(frozen=True)
class Shown:
    """All that pictures, models and page are made from; None for what there is none of."""

    source: Source
    depth: Maps | None
    confidence: Maps | None
    cloud: PointCloud | None
    cameras: Cameras | None
    notes: tuple[str, ...]


def write_page(path: Path, shown: Shown) -> None:
    """One self-contained file."""
    source = shown.source
    sections = [_overview(shown)]
    if shown.cloud is not None or shown.cameras is not None:
        sections.append(_scene(shown))
    if shown.depth is not None:
        sections.append(_sliders(shown.depth, source))
    if shown.confidence is not None:
        sections.append(_sliders(shown.confidence, source))
    if shown.cameras is not None:
        sections.append(_camera_table(shown.cameras, source))
    path.write_text(simple_page(source.name, source.subject, sections), encoding="utf-8")


def _overview(shown: Shown) -> Section:
    source, cloud, cameras = shown.source, shown.cloud, shown.cameras
    facts = [
        ("pictures", f"{len(source.pictures)}, {source.height} x {source.width} pixels"),
        ("unit of length", source.unit),
    ]
    if math.isfinite(source.predictions.forward_ms):
        facts.append(("forward pass", f"{source.predictions.forward_ms:.0f} ms, one, cold"))
    if cameras is not None:
        facts.append(("cameras", f"{len(cameras.frames)} of {len(source.pictures)} pictures"))
    if cloud is not None:
        origin = "unprojected depth" if cloud.source == "depth" else "the point head"
        counts = (
            f"{len(cloud.xyz):,} written, from {origin}; of {cloud.usable:,} finite ones"
            f" {cloud.confident:,} have a confidence of {cloud.threshold:.3g} or more"
        )
        facts.append(("points", counts))
    blocks = (Facts(tuple(facts)), *((Notes(shown.notes),) if shown.notes else ()))
    return Section("overview", "Overview", blocks=blocks)


def _scene(shown: Shown) -> Section:
    source, cloud = shown.source, shown.cloud
    points: NDArray[np.floating]
    if cloud is None:
        points, colours = np.zeros((0, 3)), np.zeros((0, 3), dtype=np.uint8)
    else:
        kept = packing.every_nth(len(cloud.xyz), MAX_PAGE_POINTS)
        points = cloud.xyz[kept]
        colours = np.rint(cloud.rgb[kept] * 255).astype(np.uint8)
    note = ""
    if cloud is not None and len(points) < len(cloud.xyz):
        note = (
            f"every {len(cloud.xyz) / len(points):.3g}th point; scene.glb and points.ply have all"
        )
    one = packing.Cloud(source.subject, points, _packed_cameras(shown), note)
    scene = Scene(
        id="view",
        label=f"Points and cameras of {source.name}, {source.subject}",
        packed=packing.pack_scene([one], colours, unit="network units"),
    )
    return Section(
        "scene",
        "Points and cameras",
        "The first camera's frame. Each camera is drawn as the pyramid that it sees; the line"
        " follows them in the order of the pictures.",
        (scene,),
    )


def _packed_cameras(shown: Shown) -> packing.Cameras | None:
    """Those that have a frustum, as the 3D view takes them."""
    cameras, predictions = shown.cameras, shown.source.predictions
    if cameras is None or predictions.extrinsic is None or predictions.intrinsic is None:
        return None
    frames = [cameras.frames[index] for index in cameras.with_frustum]
    return packing.Cameras(
        predictions.extrinsic[frames],
        predictions.intrinsic[frames],
        shown.source.height,
        shown.source.width,
        tuple(shown.source.pictures[frame] for frame in frames),
    )


def _sliders(maps: Maps, source: Source) -> Section:
    legends = (legend(maps.limits),)
    items = tuple(
        Slider(
            title=name,
            first=Picture(webp_uri(source.pixels[i], quality=PHOTO_QUALITY), f"photograph {name}"),
            second=Picture(webp_uri(maps.coloured(i)), f"{maps.kind} of {name}"),
            first_label="photo",
            second_label=maps.kind,
            legends=legends,
        )
        for i, name in enumerate(source.pictures)
    )
    title = {"depth": "Depth", "confidence": "Confidence"}[maps.kind]
    lead = (
        f"{maps.title[0].upper()}{maps.title[1:]}. One range for all pictures, the 2nd to the 98th"
        " percentile; what lies beyond has the colour of the end."
    )
    if maps.not_finite:
        lead += f" {maps.not_finite:,} pixels have no finite value and are magenta."
    return Section(maps.kind, title, lead, (Sliders(items),))


def _camera_table(cameras: Cameras, source: Source) -> Section:
    columns = (
        Column("picture", number=False),
        *(Column(axis, "network units") for axis in "xyz"),
        Column("turned", "deg", "Angle between its optical axis and the first camera's"),
        Column("field of view", "deg", "Horizontal x vertical"),
    )
    rows = tuple(_camera_row(cameras, source, index) for index in range(len(cameras.frames)))
    table = Table(
        "camera-table",
        "Cameras",
        columns,
        rows,
        ("Centres C = -Rᵀt in the first camera's frame: x right, y down, z forward.",),
    )
    return Section("cameras", "Cameras", blocks=(table,))


def _camera_row(cameras: Cameras, source: Source, index: int) -> Row:
    cosine = float(np.clip(cameras.forward[index] @ cameras.forward[0], -1, 1))
    turned = math.degrees(math.acos(cosine))
    frame = cameras.frames[index]
    cells = [Cell(source.pictures[frame], float(frame))]
    # Rounded first, and 0 added: what is nearly nothing must not stand there as -0.0000.
    cells += [
        Cell(f"{round(value, 4) + 0.0:.4f}", value) for value in cameras.centres[index].tolist()
    ]
    cells.append(Cell(f"{turned:.2f}", turned))
    if index in cameras.with_frustum:
        across, down = field_of_view(cameras, index)
        cells.append(Cell(f"{across:.1f} x {down:.1f}", across))
    else:
        cells.append(Cell("none"))
    return Row(tuple(cells))


def field_of_view(cameras: Cameras, index: int) -> tuple[float, float]:
    """Horizontal and vertical, in degrees, from the frustum: 2 atan(half side / length).

    The principal point is the picture's centre, as in all pose encodings.
    """
    tip, top_left, top_right, bottom_right, bottom_left = cameras.frusta[index]
    across = float(np.linalg.norm(top_right - top_left))
    down = float(np.linalg.norm(bottom_right - top_right))
    middle = (top_left + top_right + bottom_right + bottom_left) / 4
    length = float(np.linalg.norm(middle - tip))
    return (
        math.degrees(2 * math.atan(across / 2 / length)),
        math.degrees(2 * math.atan(down / 2 / length)),
    )
