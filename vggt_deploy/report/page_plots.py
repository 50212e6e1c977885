"""What the two plots of report.html are drawn from: plain values, nothing computed in the page.

accuracy   any of the measures over megabytes on disk or milliseconds; with its interval where
           it has one
latency    every timed call, the median, the fastest and the 90th percentile
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vggt_deploy.compare.paired import Difference
from vggt_deploy.compare.report import ComparisonReport, Row
from vggt_deploy.compare.truth_clouds import LOSS_TOLERANCE_M
from vggt_deploy.report.page_tables import advised

MOST_SAMPLES = 60  # calls that are drawn one by one; of more, evenly many


@dataclass(frozen=True)
class Measure:
    """One thing to plot.

    better: "less" or "more"; digits: decimals, as in the table of variants
    value: (value, low, high) of a row, None where it lacks it
    """

    key: str
    title: str
    unit: str
    better: str
    digits: int
    value: Callable[[Row], tuple[float, float | None, float | None] | None]


def _lost(name: str) -> Callable[[Row], tuple[float, float | None, float | None] | None]:
    def value(row: Row) -> tuple[float, float | None, float | None] | None:
        found: Difference | None = getattr(row.truth_loss, name, None)
        return None if found is None else (found.mean, found.low, found.high)

    return value


def _mean(name: str) -> Callable[[Row], tuple[float, float | None, float | None] | None]:
    def value(row: Row) -> tuple[float, float | None, float | None] | None:
        found: float | None = getattr(row.truth, name, None)
        return None if found is None else (found, None, None)

    return value


def _plain(get: Callable[[Row], float | None]) -> Callable[..., tuple[float, None, None] | None]:
    def value(row: Row) -> tuple[float, None, None] | None:
        found = get(row)
        return None if found is None else (found, None, None)

    return value


def _rotation(row: Row) -> float | None:
    pose = row.geometry.pose if row.geometry else None
    return pose.rotation.mean_deg if pose and pose.rotation else None


def _depth(row: Row) -> float | None:
    return row.geometry.depth.abs_rel if row.geometry and row.geometry.depth else None


def _points(row: Row) -> float | None:
    return row.geometry.points.mean_relative if row.geometry and row.geometry.points else None


MEASURES = (
    Measure(
        "auc_30_lost", "AUC@30 lost by the truth", "points of percent", "less", 2, _lost("auc_30")
    ),
    Measure("abs_rel_lost", "Depth AbsRel lost by the truth", "", "less", 5, _lost("abs_rel")),
    Measure(
        "f_score_lost",
        f"F-score @ {LOSS_TOLERANCE_M:g} m lost by the truth",
        "points of percent",
        "less",
        2,
        _lost("f_score"),
    ),
    Measure("auc_30", "AUC@30 by the truth", "%", "more", 2, _mean("auc_30")),
    Measure("abs_rel", "Depth AbsRel by the truth", "", "less", 4, _mean("abs_rel")),
    Measure("overall", "Points, overall by the truth", "m", "less", 4, _mean("overall_m")),
    Measure("depth", "Depth AbsRel to PyTorch FP32", "", "less", 5, _plain(_depth)),
    Measure("rotation", "Rotation to PyTorch FP32", "degrees", "less", 3, _plain(_rotation)),
    Measure("points", "Points to PyTorch FP32", "of the scene's size", "less", 5, _plain(_points)),
)


def plot_data(report: ComparisonReport) -> dict[str, Any]:
    """Measures that at least one variant has, and all variants with what they have of them."""
    measures = [m for m in MEASURES if any(m.value(row) is not None for row in report.rows)]
    wanted = advised(report)
    return {
        "measures": [
            {
                "key": m.key,
                "title": m.title,
                "unit": m.unit,
                "better": m.better,
                "digits": m.digits,
            }
            for m in measures
        ],
        "reference": report.reference.label,
        "first": _first(report),
        "calls": report.question["repeats"],
        "variants": [_variant(report, row, measures, wanted) for row in report.rows],
    }


def _first(report: ComparisonReport) -> str | None:
    """Whose pictures are shown first: FP32's own look like the reference, so a quantized one.

    The one recommended for production; else the smallest artifact; else the first that finished.
    """
    done = [row for row in report.rows if row.status == "done" and row.scheme != "fp32"]
    chosen = {item.label for item in report.recommendations if item.purpose == "production"}
    weighed = [row for row in done if row.disk_bytes is not None]
    smallest = sorted(weighed, key=lambda row: row.disk_bytes or 0)
    ordered = [*(row for row in done if row.label in chosen), *smallest, *done]
    return ordered[0].label if ordered else None


def _variant(
    report: ComparisonReport, row: Row, measures: list[Measure], wanted: dict[str, list[str]]
) -> dict[str, Any]:
    ratios = report.ratios(row)
    return {
        "label": row.label,
        "runtime": row.runtime,
        "scheme": row.variant.scheme_label,
        "activations": row.activations,
        "advised": wanted.get(row.label, []),
        "disk_mb": row.disk_bytes / 1e6 if row.disk_bytes is not None else None,
        "smaller": ratios.compression,
        "faster": ratios.speedup_torch_fp32,
        "latency": _latency(row),
        "measures": {m.key: m.value(row) for m in measures},
    }


def _latency(row: Row) -> dict[str, Any] | None:
    if row.measured is None:
        return None
    latency = row.measured.latency
    every = -(-latency.n // MOST_SAMPLES)
    return {
        "median_ms": latency.median_ms,
        "min_ms": latency.min_ms,
        "p90_ms": latency.p90_ms,
        "iqr_ms": latency.iqr_ms,
        "n": latency.n,
        "samples_ms": [round(sample, 4) for sample in latency.samples_ms[::every]],
    }
