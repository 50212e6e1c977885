"""Scores as a table for a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from vggt_deploy.compare.truth import TruthMean
from vggt_deploy.train.evaluate import Scores


def print_scores(scores: Scores, out: Console) -> None:
    """Per set, the model and the best constant answer."""
    out.print(
        f"{scores.config}, {scores.views} views of {scores.height} x {scores.width} a scene",
        markup=False,
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("set", "answer", "scenes"):
        table.add_column(column)
    numbers = ("AUC@3", "AUC@5", "AUC@30", "AbsRel", "delta 1.25", "point error")
    for column in numbers:
        table.add_column(column, justify="right")
    for one in scores.sets:
        table.add_row(one.name, "model", str(one.model.scenes), *_cells(one.model))
        table.add_row(one.name, "constant", str(one.constant.scenes), *_cells(one.constant))
    out.print(table)
    out.print(
        "AUC in percent, over all pairs of views; AbsRel and delta after one scale a scene; point "
        "error: median\ndistance after alignment, relative to the scene's size. constant: the best "
        "answer that ignores the pictures"
    )


def _cells(mean: TruthMean) -> list[str]:
    percents = (mean.auc_3, mean.auc_5, mean.auc_30)
    ratios = (mean.abs_rel, mean.delta_125, mean.point_error)
    return [*(_cell(value, 1) for value in percents), *(_cell(value, 3) for value in ratios)]


def _cell(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
