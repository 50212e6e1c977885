"""Reports made of numbers that a test chooses: no process, no model, no file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vggt_deploy.compare.environment import Environment
from vggt_deploy.compare.geometry import (
    Angles,
    DepthErrors,
    GeometryMetrics,
    PointErrors,
    PoseErrors,
)
from vggt_deploy.compare.latency import summarize
from vggt_deploy.compare.measures import Failure, Measured
from vggt_deploy.compare.metrics import TensorMetrics
from vggt_deploy.compare.paired import truth_loss
from vggt_deploy.compare.protocol import MetricProtocol
from vggt_deploy.compare.report import (
    SCHEMA,
    ComparisonReport,
    Recommendation,
    Row,
    SceneResult,
    Status,
)
from vggt_deploy.compare.truth import PoseTruth, TruthMetrics, mean_metrics
from vggt_deploy.compare.truth_clouds import TOLERANCES_M, CloudScore, CloudTruth
from vggt_deploy.compare.truth_depth import DepthTruth
from vggt_deploy.compare.truth_points import PointTruth
from vggt_deploy.quantize.schemes import parse_label

MACHINE = "A CPU, 2 CPUs"
QUESTION: dict[str, Any] = {
    "schema": 4,
    "model": {
        "spec": "vggt-nano",
        "config": "vggt-nano",
        "kind": "package",
        "revision": None,
        "sha256": "a" * 64,
        "licence": "Apache-2.0",
        "checkpoint_bytes": 8_000_000,
    },
    "images": {"mode": "crop", "frames": 4, "height": 84, "width": 112},
    "outputs": ["pose", "depth", "points"],
    "precision": None,
    "layers": {"include": [], "exclude": [], "sensitive": []},
    "calibration": None,
    "device": None,
    "warmup": 1,
    "repeats": 5,
    "threads": 2,
    "verify": False,
    "machine": {"cpu": "A CPU", "python": "3.11"},
    "versions": {"torch": "2.9"},
}
PROTOCOL = MetricProtocol("the first 4 pictures", "no masks", "all pairs", "median", "Umeyama")


def made_calls(
    median: float,
    count: int,
    *,
    seed: int | np.random.Generator = 0,
    spread: float = 0.05,
    rho: float = 0.0,
) -> list[float]:
    """Timed calls with the skewed noise that latencies have, each like the one before it as far as
    `rho` says (AR(1) of the logarithms).
    """
    drawn = np.random.default_rng(seed).normal(size=count)
    for i in range(1, count):
        drawn[i] = rho * drawn[i - 1] + math.sqrt(1.0 - rho**2) * drawn[i]
    return [float(value) for value in median * np.exp(spread * drawn)]


def made_truth(auc_30: float, abs_rel: float = 0.1, point_error: float = 0.05) -> TruthMetrics:
    """The truth of one scene; the other numbers follow from these."""
    auc = {f"auc_{degrees}": auc_30 * part for degrees, part in ((3, 0.3), (5, 0.5), (30, 1.0))}
    recalls = {f"{kind}_{t}": auc_30 for kind in ("rra", "rta") for t in (5, 15, 30)}
    pose = PoseTruth(
        pairs=6,
        **auc,
        **recalls,
        rotation_median_deg=1.5,
        direction_median_deg=2.5,
        pairs_without_baseline=0,
    )
    depth = DepthTruth(
        pixels=1000,
        scale=1.1,
        abs_rel=abs_rel,
        delta_125=0.9,
        affine_scale=1.05,
        affine_shift=0.02,
        abs_rel_affine=0.8 * abs_rel,
        delta_125_affine=0.95,
    )
    scores = tuple(CloudScore(t, 100 * t, 80 * t, 90 * t) for t in TOLERANCES_M)
    cloud = CloudTruth(
        voxel_m=0.01,
        predicted_points=500,
        not_finite=0,
        true_points=600,
        accuracy_mean_m=point_error,
        accuracy_median_m=point_error / 2,
        completeness_mean_m=point_error * 2,
        completeness_median_m=point_error,
        overall_m=1.5 * point_error,
        scores=scores,
    )
    points = PointTruth(
        points=1000,
        mean=2 * point_error,
        median=point_error,
        scene_size=1.0,
        mean_relative=2 * point_error,
        median_relative=point_error,
        alignment=None,
        cloud=cloud,
    )
    return TruthMetrics(pose, depth, points)


def made_geometry(error: float) -> GeometryMetrics:
    """Errors against PyTorch FP32 of one scene, all from one number."""
    angles = Angles(6, 10 * error, 9 * error, 20 * error)
    distances = PointErrors(1000, error, error, 1.0, error, error)
    return GeometryMetrics(
        PoseErrors(6, angles, angles, 0, 0),
        DepthErrors(1000, 0, 1.0, error, 1.0 - error),
        distances,
        distances,
    )


def made_row(
    label: str,
    *,
    samples: Sequence[float] = (102.0, 100.0, 104.0, 101.0, 103.0),
    disk_bytes: int | None = 2_000_000,
    truth: Sequence[TruthMetrics] = (),
    reference: Sequence[TruthMetrics] | None = None,
    error: float = 0.01,
    scenes: int = 0,
) -> Row:
    """A finished row. `reference`: the truth of PyTorch FP32, for what was lost."""
    runtime, _, scheme = label.partition("/")
    chosen = parse_label(scheme)
    names = [f"scene_{i}" for i in range(len(truth) or scenes or 1)]
    tensor = TensorMetrics(
        values=100,
        nonfinite_variant=0,
        nonfinite_reference=0,
        mae=error,
        mse=error**2,
        rmse=error,
        max_abs=3 * error,
        psnr_db=40.0,
        psnr_peak=1.0,
        cosine=1.0 - error,
        relative_l2=error,
        relative_max=2 * error,
        ssim=1.0 - error,
    )
    geometry = made_geometry(error)
    truths: list[TruthMetrics | None] = [*truth] if truth else [None] * len(names)
    return Row(
        runtime=runtime,  # type: ignore[arg-type]
        scheme=chosen.scheme.name,
        activations=chosen.activations,
        treatment="+".join(chosen.treatment.words),
        status="done",
        support="real",
        measured=Measured(
            latency=summarize(samples, (200.0,)),
            load_ms=12.0,
            peak_rss_bytes=50_000_000,
            peak_rss_source="VmHWM",
            libraries_rss_bytes=30_000_000,
            disk_bytes=disk_bytes,
            disk_kind=None if disk_bytes is None else "artifact folder",
            held_bytes=8_000_000 if runtime == "torch" else None,
            others_cpus=0.0,
        ),
        accuracy={"depth": tensor, "pose_enc": replace(tensor, ssim=None)},
        geometry=geometry,
        scenes=tuple(
            SceneResult(name, geometry, found) for name, found in zip(names, truths, strict=True)
        ),
        truth=mean_metrics(truth) if truth else None,
        truth_loss=truth_loss(truth, reference or truth) if truth else None,
        machine=MACHINE,
    )


def failed_row(label: str, status: Status = "failed", message: str = "ended with SIGSEGV") -> Row:
    """A row without numbers."""
    row = made_row(label)
    failure = Failure("measure", message, "look at the log", ("a", "b"), status == "not run")
    return Row(
        runtime=row.runtime,
        scheme=row.scheme,
        activations=row.activations,
        treatment=row.treatment,
        status=status,
        support="real",
        failure=failure,
    )


def made_report(
    *rows: Row,
    folder: Path = Path("somewhere"),
    recommendations: tuple[Recommendation, ...] = (),
    notes: tuple[str, ...] = ("4 pictures",),
    first_picture: int = 0,
    **question: Any,
) -> ComparisonReport:
    """A report of these rows, the first of which is PyTorch FP32.

    first_picture: scenes have pictures of their own, numbered from here.
    """
    scenes = [
        {
            "name": scene.name,
            "folder": f"/data/{scene.name}",
            "files": [
                {"name": f"{view}.png", "sha256": f"{first_picture + number:032x}{view:032x}"}
                for view in range(4)
            ],
            "skipped": [],
            "pixels_sha256": f"{number:064x}",
            "truth": {"note": "", "depth": True, "sha256": f"{number:064x}"},
        }
        for number, scene in enumerate(rows[0].scenes)
    ]
    variants = [row.label for row in rows]
    return ComparisonReport(
        schema=SCHEMA,
        created="2025-01-01T00:00:00Z",
        folder=folder,
        question={**QUESTION, "scenes": scenes, "variants": variants, **question},
        environment=Environment(
            "Linux", "3.11", "A CPU", ("avx2",), 2, 2, 8 * 2**30, {"torch": "2.9"}
        ),
        command=("vggt-deploy", "compare"),
        rows=rows,
        recommendations=recommendations,
        notes=notes,
        protocol=PROTOCOL,
    )
