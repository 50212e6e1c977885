"""Reports for the tests of the experiment report: a test chooses size, speed and loss of rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from made_reports import made_report, made_row, made_truth

from vggt_deploy.compare.recommend import recommend
from vggt_deploy.compare.report import ComparisonReport, Row
from vggt_deploy.compare.truth import TruthMetrics

MODEL = {"spec": "vggt-nano", "config": "vggt-nano", "revision": None, "sha256": "a" * 64}


def truths(*auc_30: float) -> list[TruthMetrics]:
    """One scene for each."""
    return [made_truth(value) for value in auc_30]


REFERENCE = truths(60.0, 70.0, 80.0)
FP32 = made_row("torch/fp32", truth=REFERENCE, error=0.0)


def row(
    label: str,
    ms: Sequence[float] = (50.0, 51.0, 52.0),
    *,
    mb: float | None = 2.0,
    auc_30: Sequence[float] = (60.0, 70.0, 80.0),
    error: float = 0.001,
) -> Row:
    """A finished row; `mb` of its artifact, `error` against FP32, `auc_30` of each scene."""
    size = None if mb is None else round(mb * 1e6)
    return made_row(
        label, samples=ms, disk_bytes=size, truth=truths(*auc_30), reference=REFERENCE, error=error
    )


def report_of(*rows: Row, random: bool = False, **question: Any) -> ComparisonReport:
    """With the advice that follows from the rows."""
    return made_report(
        *rows,
        recommendations=recommend(rows, random_weights=random),
        model={**MODEL, "kind": "random" if random else "package"},
        **question,
    )
