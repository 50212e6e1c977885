"""The numbers of a report as two CSV files, for a spreadsheet or a data frame.

    comparison_report.csv   one line for each variant, in the order of the report
    comparison_scenes.csv   one line for each variant and scene

The columns are the same for every report, whatever was asked for, so that files can be put below
each other; a name ends in its unit where there is one. `truth_*` is by the truth, `lost_*` what was
lost there against PyTorch FP32 (above 0 is worse), `fp32_*` and `tensor_*` are against PyTorch
FP32. An empty cell is what was not measured. The samples of the latencies, the notes and the
environment are in the JSON alone.

UTF-8, comma, lines end in a line feed, numbers have all their digits. Texts that a spreadsheet
would run as a formula (a file name such as `=cmd`) have an apostrophe before them.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from vggt_deploy.artifact import write_text
from vggt_deploy.compare.geometry import Angles, DepthErrors, PointErrors, PoseErrors
from vggt_deploy.compare.latency import Latency
from vggt_deploy.compare.measures import BuildMeasure, ExportMeasure, GpuMeasure
from vggt_deploy.compare.metrics import TensorMetrics
from vggt_deploy.compare.paired import TruthLoss
from vggt_deploy.compare.report import (
    CSV_NAME,
    SCENES_CSV_NAME,
    ComparisonReport,
    Row,
    SceneResult,
)
from vggt_deploy.compare.truth import TruthMean
from vggt_deploy.compare.truth_clouds import TOLERANCES_M, CloudTruth
from vggt_deploy.compare.truth_depth import DepthTruth
from vggt_deploy.compare.truth_points import PointTruth
from vggt_deploy.compare.truth_poses import PoseTruth
from vggt_deploy.outputs import OUTPUT_GROUPS

Cell = str | int | float | bool | None
Line = dict[str, Cell]

# Fields whose names do not say what they are, or in which unit.
_NAMES = {"n": "count"}
_METRES = {"mean": "mean_m", "median": "median_m", "scene_size": "scene_size_m"}
_PERCENT = ("auc_", "rra_", "rta_", "f_score")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def write_csv(report: ComparisonReport) -> tuple[Path, Path]:
    """Write both files into the report's folder."""
    paths = (report.folder / CSV_NAME, report.folder / SCENES_CSV_NAME)
    for path, text in zip(paths, (csv_text(report), scenes_csv_text(report)), strict=True):
        write_text(path, text)
    return paths


def csv_text(report: ComparisonReport) -> str:
    """The content of comparison_report.csv."""
    return _text(variant_line(report, row) for row in report.rows)


def scenes_csv_text(report: ComparisonReport) -> str:
    """The content of comparison_scenes.csv; a header alone where no variant has finished."""
    lines = [scene_line(row, scene) for row in report.rows for scene in row.scenes]
    return _text(lines, scene_line(None, None))


def variant_line(report: ComparisonReport, row: Row) -> Line:
    """One line of comparison_report.csv, by column."""
    measured, ratios = row.measured, report.ratios(row)
    line: Line = {
        "variant": row.label,
        "runtime": row.runtime,
        "scheme": row.scheme,
        "activations": row.activations,
        "treatment": row.treatment,
        "status": row.status,
        "support": row.support,
        "failure_stage": row.failure.stage if row.failure else None,
        "failure": row.failure.message if row.failure else None,
        "machine": row.machine,
        "disk_bytes": row.disk_bytes,
        "disk_kind": measured.disk_kind if measured else None,
        "compression_x": ratios.compression,
        "held_bytes": measured.held_bytes if measured else None,
        "load_ms": measured.load_ms if measured else None,
        "peak_rss_bytes": measured.peak_rss_bytes if measured else None,
        "libraries_rss_bytes": measured.libraries_rss_bytes if measured else None,
        "others_cpus": measured.others_cpus if measured else None,
        "speedup_torch_fp32_x": ratios.speedup_torch_fp32,
        "speedup_onnxruntime_fp32_x": ratios.speedup_onnxruntime_fp32,
    }
    line |= _flat("latency", Latency, measured.latency if measured else None)
    line |= _flat("export", ExportMeasure, row.export)
    line |= _flat("build", BuildMeasure, row.build)
    line["build_proof"] = row.build.proof if row.build else None
    line |= _flat("gpu", GpuMeasure, measured.gpu if measured else None)
    line |= _truth_mean(row.truth)
    line |= _lost(row.truth_loss)
    line |= _geometry(row)
    for group in OUTPUT_GROUPS.values():
        for name in group.tensors:
            line |= _flat(f"tensor_{name}", TensorMetrics, row.accuracy.get(name))
    return line


def scene_line(row: Row | None, scene: SceneResult | None) -> Line:
    """One line of comparison_scenes.csv, by column; of None the columns alone."""
    line: Line = {
        "variant": row.label if row else None,
        "scene": scene.name if scene else None,
        "status": row.status if row else None,
    }
    truth = scene.truth if scene else None
    points = truth.points if truth else None
    cloud = points.cloud if points else None
    line |= _flat("truth_pose", PoseTruth, truth.pose if truth else None)
    line |= _flat("truth_depth", DepthTruth, truth.depth if truth else None)
    line |= _flat("truth_points", PointTruth, points, _METRES)
    line |= _flat("truth_cloud", CloudTruth, cloud)
    for index, threshold in enumerate(TOLERANCES_M):
        score = cloud.scores[index] if cloud else None
        for name in ("precision", "recall", "f_score"):
            value = getattr(score, name) if score else None
            line[f"truth_cloud_{name}_{_centimetres(threshold)}_percent"] = value
    return line | _geometry(scene)


def _truth_mean(truth: TruthMean | None) -> Line:
    """Means over the scenes that have a truth."""
    line = _flat("truth", TruthMean, truth)
    found = {score.threshold_m: score.f_score for score in truth.f_scores} if truth else {}
    for threshold in TOLERANCES_M:
        line[f"truth_f_score_{_centimetres(threshold)}_percent"] = found.get(threshold)
    return line


def _lost(loss: TruthLoss | None) -> Line:
    """Above 0 is worse than PyTorch FP32."""
    line: Line = {}
    for field in fields(TruthLoss):
        difference = getattr(loss, field.name) if loss else None
        name = f"lost_{_with_unit(field.name)}"
        line |= {
            name: difference.mean if difference else None,
            f"{name}_low": difference.low if difference else None,
            f"{name}_high": difference.high if difference else None,
            f"{name}_scenes": difference.scenes if difference else None,
            # Where the interval is over the frames of one scene: how many.
            f"{name}_frames": difference.n if difference and difference.over == "frames" else None,
        }
    return line


def _geometry(of: Row | SceneResult | None) -> Line:
    """Poses, depth and points against PyTorch FP32."""
    geometry = of.geometry if of else None
    pose = geometry.pose if geometry else None
    line = _flat("fp32_pose", PoseErrors, pose)
    line |= _flat("fp32_rotation", Angles, pose.rotation if pose else None)
    line |= _flat("fp32_direction", Angles, pose.direction if pose else None)
    line |= _flat("fp32_depth", DepthErrors, geometry.depth if geometry else None)
    line |= _flat("fp32_points", PointErrors, geometry.points if geometry else None)
    depth_points = geometry.depth_points if geometry else None
    return line | _flat("fp32_depth_points", PointErrors, depth_points)


def _flat(prefix: str, kind: type, record: Any | None, names: Mapping[str, str] = _NAMES) -> Line:
    """The plain fields of a record as columns; records, lists and notes in it are left out."""
    line: Line = {}
    for field in fields(kind):
        if _plain(str(field.type)):
            value = None if record is None else getattr(record, field.name)
            line[f"{prefix}_{_with_unit(field.name, names)}"] = value
    return line


def _plain(annotation: str) -> bool:
    """Whether a field with this annotation is one cell."""
    return set(annotation.replace(" ", "").split("|")) <= {"int", "float", "str", "bool", "None"}


def _with_unit(name: str, names: Mapping[str, str] = _NAMES) -> str:
    return f"{name}_percent" if name.startswith(_PERCENT) else names.get(name, name)


def _centimetres(metres: float) -> str:
    return f"{100 * metres:g}cm"


def _text(lines: Iterable[Line], columns: Line | None = None) -> str:
    """CSV of lines that all have the same columns."""
    found = list(lines)
    header = list(columns if columns is not None else found[0])
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, header, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in line.items()} for line in found)
    return buffer.getvalue()


def _cell(value: Cell) -> Cell:
    """One line of text, that no spreadsheet takes for a formula."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str):
        return value
    text = " ".join(value.split())
    return f"'{text}" if text.startswith(_FORMULA) else text
