"""The parts of the texts that hold every variant against PyTorch FP32."""

from __future__ import annotations

from vggt_deploy.compare.report import ComparisonReport, Row
from vggt_deploy.report.languages import Speaker
from vggt_deploy.report.text import Grid, number


def geometry_grid(report: ComparisonReport, say: Speaker) -> Grid:
    """Relative poses, depth and points of every row that has them."""
    header = say.each(
        "variant", "rotation deg", "max", "direction deg", "max", "pairs",
        "depth AbsRel", "delta 1.25", "points", "median", "depth pts", "median",
    )  # fmt: skip
    rows = []
    for row in report.rows:
        geometry = row.geometry
        if geometry is None:
            continue
        pose, depth = geometry.pose, geometry.depth
        rotation = pose.rotation if pose else None
        direction = pose.direction if pose else None
        points, depth_points = geometry.points, geometry.depth_points
        values = (
            depth.abs_rel if depth else None,
            depth.delta_125 if depth else None,
            points.mean_relative if points else None,
            points.median_relative if points else None,
            depth_points.mean_relative if depth_points else None,
            depth_points.median_relative if depth_points else None,
        )
        rows.append(
            (
                row.label,
                number(rotation.mean_deg if rotation else None),
                number(rotation.max_deg if rotation else None),
                number(direction.mean_deg if direction else None),
                number(direction.max_deg if direction else None),
                _pairs(row, say),
                *map(number, values),
            )
        )
    return Grid(header, tuple(rows))


def _pairs(row: Row, say: Speaker) -> str:
    """Pairs with a direction of all pairs; lost ones are named."""
    pose = row.geometry.pose if row.geometry else None
    if pose is None:
        return "-"
    used = pose.direction.n if pose.direction else 0
    if pose.pairs_lost:
        return say("{n} of {all}, {lost} lost", n=used, all=pose.pairs, lost=pose.pairs_lost)
    return say("{n} of {all}", n=used, all=pose.pairs)


def tensor_grid(report: ComparisonReport, name: str, say: Speaker) -> Grid:
    """One output tensor of every row that has it."""
    header = say.each(
        "variant", "MAE", "MSE", "RMSE", "max", "PSNR dB", "cosine", "rel", "rel max", "SSIM",
        "NaN or inf",
    )  # fmt: skip
    rows = []
    for row in report.rows:
        metrics = row.accuracy.get(name)
        if metrics is None:
            continue
        identical = metrics.psnr_db is None and metrics.mse == 0.0
        bad = metrics.nonfinite_variant
        rows.append(
            (
                row.label,
                *(number(v) for v in (metrics.mae, metrics.mse, metrics.rmse, metrics.max_abs)),
                say("identical") if identical else number(metrics.psnr_db),
                number(metrics.cosine, 7),
                number(metrics.relative_l2),
                number(metrics.relative_max),
                number(metrics.ssim, 5),
                say("{n} of {all}", n=bad, all=metrics.values) if bad else "0",
            )
        )
    return Grid(header, tuple(rows))


def relative_grid(report: ComparisonReport, say: Speaker) -> Grid:
    """The relative error of every output, side by side."""
    names = tuple(report.reference.accuracy)
    rows = tuple(
        (
            row.label,
            *(
                number(row.accuracy[name].relative_l2) if name in row.accuracy else "-"
                for name in names
            ),
        )
        for row in report.rows
        if row.accuracy
    )
    return Grid((say("variant"), *names), rows)
