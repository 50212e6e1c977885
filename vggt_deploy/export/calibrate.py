"""Static activations of an export: whose statistics, and the scales that come of them.

    --calibrate a folder of images        ─► one pass over them ─┐
    --calibrate a folder with statistics  ─► model, size agree? ─┴► method ─► a scale per Linear

The statistics stay in the artifact, so the next scheme can take the artifact as its statistics.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vggt_deploy.errors import ArtifactError, CalibrationError
from vggt_deploy.export.request import ExportRequest
from vggt_deploy.manifest import MANIFEST_NAME, read_manifest
from vggt_deploy.model.config import VGGTConfig
from vggt_deploy.model.sources import WeightSource
from vggt_deploy.progress import Progress
from vggt_deploy.quantize.calibration import Pictures, input_scales, observe
from vggt_deploy.quantize.statistics import (
    Statistics,
    holds_statistics,
    load_statistics,
    require_same,
)
from vggt_deploy.records import CalibrationRecord, ModelRecord


@dataclass(frozen=True)
class Calibrated:
    """The statistics, and what the manifest says of them."""

    statistics: Statistics
    record: CalibrationRecord


def calibrate_inputs(
    request: ExportRequest,
    model: ModelRecord,
    config: VGGTConfig,
    source: WeightSource,
    layers: Iterable[str],
    progress: Progress,
) -> Calibrated | None:
    """Scales for the inputs of these Linears; None where the activations are not static.

    Raises:
        CalibrationError: statistics of another model or size, changed or cut short.
        ImageError: no images, or one that can't be read.
    """
    if request.calibration is None:
        return None
    asked, treatment = request.calibration.source, request.treatment
    if isinstance(asked, Statistics):
        statistics = asked
    elif holds_statistics(asked):
        statistics = _load(asked)
    else:
        pictures = Pictures(
            asked, request.height, request.width, frames_per_pass=request.frames.opt
        )
        statistics = observe(config, source, pictures, progress)
    require_same(statistics, model, request.height, request.width)
    record = CalibrationRecord(
        method=treatment.input_range.label,
        statistics_sha256=statistics.sha256,
        images=statistics.images,
        scales=input_scales(
            statistics, layers, treatment.input_range, request.precision, apart=treatment.apart
        ),
    )
    return Calibrated(statistics, record)


def _load(folder: Path) -> Statistics:
    statistics = load_statistics(folder)
    if (folder / MANIFEST_NAME).is_file():
        try:
            record = read_manifest(folder, check_hashes=False).calibration
        except ArtifactError as error:
            raise CalibrationError(error.message, error.fix) from error
        if record is not None and record.statistics_sha256 != statistics.sha256:
            raise CalibrationError(
                f"the statistics in {folder} are not those that its manifest names",
                "give the folder of images instead, and they are collected again",
            )
    return statistics
