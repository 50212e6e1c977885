"""What report.html is drawn from: a made report, and arrays of a scene that a test chooses.

A room's back wall seen by cameras that walk right and up; the network's unit is half a metre.
"""

from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from made_reports import failed_row, made_report, made_row, made_truth

from vggt_deploy.compare.report import ComparisonReport, Recommendation, Row, write_report
from vggt_deploy.compare.state import Folder
from vggt_deploy.compare.truth import TruthMetrics
from vggt_deploy.compare.truth_points import Alignment
from vggt_deploy.data.ground_truth import GroundTruth, write_truth
from vggt_deploy.geometry import pose_encoding_to_camera, unproject_depth
from vggt_deploy.outputs import output_groups

METRES = 2.0  # in one unit of the network
SCHEMES = ("int8_pc_sym", "int8_pc_sym+dynamic", "int4_g128", "int4_g32", "mixed", "fp16", "bf16")


def true_scene(frames: int, height: int, width: int) -> dict[str, np.ndarray]:
    """Outputs of a network that makes no mistake, [1, S, ...]."""
    y, x = np.mgrid[0:height, 0:width] / width
    depth = np.stack([2.0 + x + 0.4 * np.sin(4 * y + 0.3 * i) for i in range(frames)])
    pose = np.zeros((frames, 9))
    pose[:, 0] = -0.3 * np.arange(frames)
    pose[:, 1] = 0.1 * np.arange(frames)
    pose[:, 6] = 1.0
    pose[:, 7] = 2 * np.arctan(height / (2 * width))  # square pixels
    pose[:, 8] = 2 * np.arctan(0.5)
    extrinsic, intrinsic = pose_encoding_to_camera(pose, height, width)
    points = unproject_depth(depth, extrinsic, intrinsic)
    arrays = {
        "pose_enc": pose,
        "depth": depth[..., None],
        "depth_conf": 2.0 + np.cos(5 * x) + 0.0 * depth,
        "world_points": points,
        "world_points_conf": 2.0 + np.cos(5 * x) + 0.0 * depth,
    }
    return {name: value[None].astype(np.float32) for name, value in arrays.items()}


def write_arrays(report: ComparisonReport, *, noise: float = 0.02, truth: bool = True) -> Folder:
    """Pictures, truth and the outputs that were asked for, of the first scene, in the report's
    folder.
    """
    folder = Folder(report.folder)
    folder.work.mkdir(parents=True, exist_ok=True)
    (report.folder / "outputs").mkdir(exist_ok=True)
    size = report.question["images"]
    frames, height, width = len(report.pictures), size["height"], size["width"]
    y, x = np.mgrid[0:height, 0:width]
    squares = ((x // 8 + y // 8) % 2).astype(np.float32)
    images = np.stack([[squares, x / width, y / height] for _ in range(frames)])
    np.save(folder.images(), images.astype(np.float32))
    perfect = true_scene(frames, height, width)
    if truth:
        extrinsic, intrinsic = pose_encoding_to_camera(perfect["pose_enc"][0], height, width)
        extrinsic = extrinsic.copy()
        extrinsic[..., 3] *= METRES
        depth = METRES * perfect["depth"][0, ..., 0]
        depth[:, :4] = np.inf  # the sky has no depth
        write_truth(folder.truth(), GroundTruth(extrinsic, intrinsic, depth, "made"))
    asked = [n for group in output_groups(report.question["outputs"]) for n in group.tensors]
    for row in report.rows:
        if row.status == "done":
            arrays = _with_noise(perfect, row.label, 0.0 if row.scheme == "fp32" else noise)
            np.savez(folder.arrays(row.variant), **{name: arrays[name] for name in asked})
    return folder


def _with_noise(arrays: dict[str, np.ndarray], label: str, noise: float) -> dict[str, np.ndarray]:
    """Of each pixel, and coarser, as what a network does to its patches."""
    rng = np.random.default_rng(zlib.crc32(label.encode()))
    out = {}
    for name, array in arrays.items():
        if not noise or name.endswith("_conf"):
            out[name] = array
            continue
        spread = noise * (0.02 if name == "pose_enc" else 1.0)
        fine = rng.standard_normal(array.shape, dtype=np.float32)
        if array.ndim > 3:
            coarse = rng.standard_normal(
                (*array.shape[:2], 30, 40, *array.shape[4:]), dtype=np.float32
            )
            rows = np.arange(array.shape[2]) * 30 // array.shape[2]
            columns = np.arange(array.shape[3]) * 40 // array.shape[3]
            fine = 0.3 * fine + coarse[:, :, rows][:, :, :, columns]
        out[name] = (array + spread * fine).astype(np.float32)
    return out


def scene_truth(auc_30: float, abs_rel: float) -> TruthMetrics:
    """As `made_truth`, with the scale and alignment of `true_scene`."""
    found = made_truth(auc_30, abs_rel=abs_rel)
    assert found.depth is not None
    assert found.points is not None
    alignment = Alignment(METRES, (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0), (0.0,) * 3, 0.01)
    return replace(
        found,
        depth=replace(found.depth, scale=METRES),
        points=replace(found.points, alignment=alignment),
    )


def page_report(
    folder: Path,
    *,
    schemes: tuple[str, ...] = SCHEMES,
    runtime: str = "onnxruntime",
    names: tuple[str, ...] = ("a.png", "b.png", "c.png"),
    height: int = 42,
    width: int = 56,
    scenes: int = 2,
    failed: tuple[Row, ...] = (),
    **question: Any,
) -> ComparisonReport:
    """A report of several variants with truth, and its arrays beside it."""
    base = [scene_truth(60.0 + i, 0.1) for i in range(scenes)]
    rows = [made_row("torch/fp32", disk_bytes=5_000_000, truth=base, error=0.0)]
    for i, scheme in enumerate(schemes):
        lost = [scene_truth(60.0 + k - i - 0.2 * k, 0.1 + 0.003 * i) for k in range(scenes)]
        rows.append(
            made_row(
                f"{runtime}/{scheme}",
                samples=tuple(90.0 - 7 * i + k for k in range(5)),
                disk_bytes=4_000_000 - 300_000 * i,
                truth=lost,
                reference=base,
                error=0.002 * (i + 1),
            )
        )
    advice = (
        Recommendation("production", rows[1].label if len(rows) > 1 else None, "it was measured"),
        Recommendation("edge", None, "nothing is small enough"),
    )
    failed = failed or (failed_row("torch/int8_pt_sym", message="ended with SIGSEGV"),)
    report = made_report(*rows, *failed, folder=folder, recommendations=advice, **question)
    report.question["images"] = {
        "mode": "crop", "frames": len(names), "height": height, "width": width,
    }  # fmt: skip
    report.question["scenes"][0]["files"] = [
        {"name": name, "sha256": f"{i:064x}"} for i, name in enumerate(names)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    write_report(report)
    return report
