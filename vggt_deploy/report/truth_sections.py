"""The parts of the summary that are about the truth: how good each variant is, what it lost."""

from __future__ import annotations

from vggt_deploy.compare.paired import Difference
from vggt_deploy.compare.report import ComparisonReport, Row
from vggt_deploy.report.text import number, table

HOW_TRUTH = """\
truth      known cameras and depth. AUC@T: relative poses of all pairs, the larger of rotation and
           direction error, exact area under the recall curve up to T degrees, percent; rotation and
           direction: medians. AbsRel, delta 1.25: depth after one median scale per scene. points:
           of the point head, after a similarity (Umeyama), median and mean distance over the
           scene's size. Means over scenes.
lost       the same numbers scene by scene against PyTorch FP32: above 0 is worse. AUC in points of
           percent, the others absolute. Behind each the 95 % interval of the mean, by bootstrap
           over the scenes: where it holds 0, the loss is not told from none.\
"""


def truth_lines(report: ComparisonReport) -> list[str]:
    """How good each variant is by the truth; nothing where it is not known."""
    header = (
        "variant", "scenes", "AUC@30", "AUC@5", "AUC@3", "rotation deg", "direction deg",
        "AbsRel", "delta 1.25", "points", "mean",
    )  # fmt: skip
    rows = []
    for row in report.rows:
        truth = row.truth
        if truth is None:
            continue
        rows.append(
            (
                row.label,
                str(truth.scenes),
                *(_percent(value) for value in (truth.auc_30, truth.auc_5, truth.auc_3)),
                number(truth.rotation_median_deg),
                number(truth.direction_median_deg),
                number(truth.abs_rel),
                number(truth.delta_125),
                number(truth.point_error),
                number(truth.point_error_mean),
            )
        )
    return [*table(header, rows), *_remarks(report)] if rows else []


def loss_lines(report: ComparisonReport) -> list[str]:
    """What each variant lost by the truth, with intervals; nothing where it is not known."""
    names = ("AUC@30", "AUC@5", "AUC@3", "AbsRel", "points")
    header = ("variant", *(cell for name in names for cell in (name, "95 %")))
    rows = []
    for row in report.rows:
        loss = row.truth_loss
        if loss is None or row.label == report.reference.label:
            continue
        losses = (loss.auc_30, loss.auc_5, loss.auc_3, loss.abs_rel, loss.point_error)
        rows.append((row.label, *(cell for one in losses for cell in _cells(one))))
    return table(header, rows) if rows else []


def _cells(loss: Difference | None) -> tuple[str, str]:
    if loss is None:
        return "-", "-"
    interval = "-"
    if loss.low is not None and loss.high is not None:
        interval = f"{_signed(loss.low)} to {_signed(loss.high)}"
    return _signed(loss.mean), interval


def _signed(value: float) -> str:
    """Two digits with a sign; what is nothing beside any gate is 0."""
    return "0" if abs(value) < 5e-6 else f"{value:+.2g}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _remarks(report: ComparisonReport) -> list[str]:
    """What is missing, once; what a variant alone got so wrong that it was counted as worst."""
    common = _notes(report.reference)
    lines = [f"{what} ({count} scenes)" for what, count in common.items()]
    for row in report.rows:
        own = {what: count for what, count in _notes(row).items() if what not in common}
        lines += [f"{row.label}: {what} ({count} scenes)" for what, count in own.items()]
    return lines


def _notes(row: Row) -> dict[str, int]:
    """Note -> number of scenes that have it."""
    counts: dict[str, int] = {}
    for scene in row.scenes:
        for key, note in (scene.truth.notes if scene.truth else {}).items():
            counts[f"{key}: {note}"] = counts.get(f"{key}: {note}", 0) + 1
    return counts
