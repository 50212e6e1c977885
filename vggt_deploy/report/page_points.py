"""The 3D view of report.html: the first scene's points and cameras of every variant.

The points are those of the point head, or depth unprojected by the predicted cameras where there is
no point head. All variants show the same pixels: evenly many of all, without the part that FP32 is
least sure of. Where the truth is known, its points and cameras stand among them, moved into the
network's frame by the similarity that was fitted for FP32's metrics:

    x = R^T (X - t) / scale          for true points X in metres
    [R_c R | (R_c t + t_c) / scale]  for a true camera [R_c | t_c]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggt_deploy.compare.report import ComparisonReport, Row
from vggt_deploy.compare.state import Folder
from vggt_deploy.compare.truth_points import Alignment, true_points
from vggt_deploy.data.ground_truth import GroundTruth
from vggt_deploy.geometry import pose_encoding_to_camera, unproject_depth
from vggt_deploy.pages.cloud import Cameras, Cloud, every_nth, pack_scene
from vggt_deploy.report.kept import kept_outputs

# 6 bytes a point and variant: eight variants take 2 MB of the page.
POINTS_TOTAL = 260_000
MOST_POINTS = 36_000
FEWEST_POINTS = 4_000
LEAST_SURE = 0.2  # this part of the pixels is left out

TRUTH_NAME = "truth"

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class View:
    """What the section shows: packed for the page, or why there is nothing."""

    packed: dict[str, Any] | None
    notes: tuple[str, ...]


def scene_view(
    report: ComparisonReport, folder: Folder, images: Floats, truth: GroundTruth | None
) -> View:
    """Points and cameras of all variants that have them; images [S, 3, H, W] of the first scene."""
    done = [row for row in report.rows if row.status == "done"]
    frames, _, height, width = images.shape
    names = tuple(report.pictures)
    found = _Outputs.read(report, folder, report.reference)
    if found is None:
        missing = "neither world_points nor depth with pose_enc was asked for"
        return View(None, (f"Not shown: {missing}.",))
    most = int(np.clip(POINTS_TOTAL // max(1, len(done)), FEWEST_POINTS, MOST_POINTS))
    pixels = _pixels(found.confidence, frames * height * width, most)
    clouds = []
    for row in done:
        outputs = _Outputs.read(report, folder, row)
        if outputs is not None:
            clouds.append(
                Cloud(row.label, outputs.points[pixels], outputs.cameras(height, width, names))
            )
    aligned = _true_cloud(report, truth, pixels, height, width, names)
    colours = np.round(images.transpose(0, 2, 3, 1).reshape(-1, 3)[pixels] * 255.0)
    packed = pack_scene(
        [*clouds, *([aligned] if aligned is not None else [])],
        colours.astype(np.uint8),
        "network units",
    )
    return View(packed, _notes(found, len(pixels), frames * height * width, aligned is not None))


def _pixels(confidence: Floats | None, count: int, most: int) -> NDArray[np.int64]:
    """Which of the scene's pixels are shown."""
    if confidence is None:
        return every_nth(count, most)
    limit = np.nanquantile(confidence, LEAST_SURE) if np.isfinite(confidence).any() else np.nan
    sure = np.flatnonzero(confidence >= limit)
    if not len(sure):
        return every_nth(count, most)
    return sure[every_nth(len(sure), most)]


@dataclass(frozen=True)
class _Outputs:
    """Of one variant: points [S H W, 3], their confidence [S H W], the cameras' encoding [S, 9]."""

    points: Floats
    from_depth: bool
    confidence: Floats | None
    poses: Floats | None

    @classmethod
    def read(cls, report: ComparisonReport, folder: Folder, row: Row) -> _Outputs | None:
        """None where the outputs give no points."""
        kept = kept_outputs(report, folder, row.variant)
        size = report.question["images"]
        height, width = size["height"], size["width"]
        poses = kept["pose_enc"][0] if "pose_enc" in kept else None
        if "world_points" in kept:
            points = kept["world_points"][0]
            confidence = kept.get("world_points_conf")
        elif "depth" in kept and poses is not None:
            extrinsic, intrinsic = pose_encoding_to_camera(poses, height, width)
            points = unproject_depth(kept["depth"][0, ..., 0], extrinsic, intrinsic)
            confidence = kept.get("depth_conf")
        else:
            return None
        from_depth = "world_points" not in kept
        flat = None if confidence is None else confidence[0].reshape(-1)
        return cls(points.reshape(-1, 3), from_depth, flat, poses)

    def cameras(self, height: int, width: int, names: tuple[str, ...]) -> Cameras | None:
        """The predicted ones; None where poses were not asked for."""
        if self.poses is None:
            return None
        extrinsic, intrinsic = pose_encoding_to_camera(self.poses, height, width)
        return Cameras(extrinsic, intrinsic, height, width, names)


def _true_cloud(
    report: ComparisonReport,
    truth: GroundTruth | None,
    pixels: NDArray[np.int64],
    height: int,
    width: int,
    names: tuple[str, ...],
) -> Cloud | None:
    """The truth in the network's frame; None where it, or its alignment, is not known."""
    known = report.reference.scenes[0].truth if report.reference.scenes else None
    alignment = known.points.alignment if known is not None and known.points else None
    if truth is None or truth.depth is None or alignment is None:
        return None
    with np.errstate(invalid="ignore"):
        metres = true_points(truth).reshape(-1, 3)[pixels]
    points, extrinsic = into_network(metres, truth.extrinsic, alignment)
    cameras = None
    if truth.rays is None:  # a lens has no frustum
        cameras = Cameras(extrinsic, truth.intrinsic, height, width, names)
    note = f"Moved onto torch/fp32 by a similarity, {alignment.rms_m:.3g} m rms left over."
    return Cloud(TRUTH_NAME, points, cameras, note)


def into_network(
    metres: Floats, extrinsic: NDArray[np.float64], alignment: Alignment
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """True points [N, 3] and cameras [S, 3, 4] in the network's frame."""
    rotation = np.asarray(alignment.rotation, dtype=np.float64).reshape(3, 3)
    shift = np.asarray(alignment.translation, dtype=np.float64)
    points = (metres.astype(np.float64) - shift) @ rotation / alignment.scale
    moved = np.empty_like(extrinsic)
    moved[:, :, :3] = extrinsic[:, :, :3] @ rotation
    moved[:, :, 3] = (extrinsic[:, :, :3] @ shift + extrinsic[:, :, 3]) / alignment.scale
    return points, moved


def _notes(found: _Outputs, shown: int, all_: int, truth: bool) -> tuple[str, ...]:
    source = "depth unprojected by the predicted cameras" if found.from_depth else "the point head"
    sure = (
        f" of those that torch/fp32 is surest of ({100 * (1 - LEAST_SURE):.0f} %)"
        if found.confidence is not None
        else ""
    )
    text = f"Points of {source}: {shown:,} of {all_:,} pixels, evenly spread{sure}."
    frame = (
        "Each variant in its own frame, the first camera's as it predicts it, not aligned to the "
        "others."
    )
    end = " The truth is moved onto torch/fp32." if truth else ""
    return (text, frame + end)
