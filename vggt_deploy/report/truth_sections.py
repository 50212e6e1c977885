"""The parts of the texts that are about the truth: how good each variant is, and what it lost.

One table for poses, depth, points and clouds each, since together they are too wide to read; each
with the protocol of its numbers, since published ones differ in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from vggt_deploy.compare.decimals import lost_text
from vggt_deploy.compare.paired import Difference
from vggt_deploy.compare.report import ComparisonReport, Row
from vggt_deploy.compare.truth import TruthMean, TruthMetrics
from vggt_deploy.compare.truth_clouds import LOSS_TOLERANCE_M
from vggt_deploy.report.languages import Speaker
from vggt_deploy.report.text import Grid, fixed, wrap

Part = Literal["poses", "depth", "points"]
LINE = 115
SCENES_A_TABLE = 6  # as columns; more of them make another table


def part_of_truth(report: ComparisonReport, part: Part, say: Speaker) -> list[Grid]:
    """The tables of the means over scenes; empty where no row has such numbers."""
    columns = {"poses": (_poses,), "depth": (_depth,), "points": (_points, _clouds)}[part]
    grids = []
    for of_table in columns:
        header, cells, there = of_table(report, say)
        rows = tuple(
            (row.label, str(there(row.truth)), *cells(row.truth))
            for row in report.rows
            if row.truth is not None and there(row.truth)
        )
        if rows:
            grids.append(Grid((*say.each("variant", "scenes"), *header), rows))
    return grids


_Columns = tuple[
    tuple[str, ...], Callable[[TruthMean], tuple[str, ...]], Callable[[TruthMean], int]
]


def _poses(_: ComparisonReport, say: Speaker) -> _Columns:
    header = say.each(
        "AUC@30", "AUC@5", "AUC@3", "RRA@30", "RRA@15", "RRA@5", "RTA@30", "RTA@15", "RTA@5",
        "rotation deg", "direction deg",
    )  # fmt: skip

    def cells(truth: TruthMean) -> tuple[str, ...]:
        percents = (
            truth.auc_30, truth.auc_5, truth.auc_3, truth.rra_30, truth.rra_15, truth.rra_5,
            truth.rta_30, truth.rta_15, truth.rta_5,
        )  # fmt: skip
        angles = (truth.rotation_median_deg, truth.direction_median_deg)
        return (*map(fixed, percents), *(fixed(angle, 3) for angle in angles))

    return header, cells, lambda truth: truth.pose_scenes


def _depth(_: ComparisonReport, say: Speaker) -> _Columns:
    header = say.each("AbsRel, median scale", "delta 1.25", "AbsRel, scale and shift", "delta 1.25")

    def cells(truth: TruthMean) -> tuple[str, ...]:
        values = (truth.abs_rel, truth.delta_125, truth.abs_rel_affine, truth.delta_125_affine)
        return tuple(fixed(value, 4) for value in values)

    return header, cells, lambda truth: truth.depth_scenes


def _points(_: ComparisonReport, say: Speaker) -> _Columns:
    header = say.each("median / size", "mean / size", "accuracy m", "completeness m", "overall m")

    def cells(truth: TruthMean) -> tuple[str, ...]:
        values = (
            truth.point_error, truth.point_error_mean, truth.accuracy_m, truth.completeness_m,
            truth.overall_m,
        )  # fmt: skip
        return tuple(fixed(value, 4) for value in values)

    return header, cells, lambda truth: truth.point_scenes


def _clouds(report: ComparisonReport, say: Speaker) -> _Columns:
    thresholds = list(
        dict.fromkeys(
            score.threshold_m
            for row in report.rows
            if row.truth is not None
            for score in row.truth.f_scores
        )
    )
    header = tuple(say("F-score @ {metres} m", metres=f"{value:g}") for value in thresholds)

    def cells(truth: TruthMean) -> tuple[str, ...]:
        found = {score.threshold_m: score.f_score for score in truth.f_scores}
        return tuple(fixed(found.get(value)) for value in thresholds)

    return header, cells, lambda truth: truth.point_scenes if truth.f_scores else 0


def protocol_text(report: ComparisonReport, part: Part, say: Speaker) -> str:
    """Below a table: how its numbers were taken."""
    protocol = report.protocol
    own = {"poses": protocol.poses, "depth": protocol.depth, "points": protocol.points}[part]
    masks = () if part == "poses" else (protocol.masks,)
    parts = [say.recorded(text) for text in (protocol.frames, *masks, own)]
    return say.titled(say("protocol"), say.semicolon.join(parts))


def loss_grids(report: ComparisonReport, say: Speaker) -> list[Grid]:
    """What each variant lost by the truth, with intervals; empty where it is not known."""
    f_score = say("F-score @ {metres} m", metres=f"{LOSS_TOLERANCE_M:g}")
    tables = (
        (("AUC@30", "auc_30"), ("AUC@5", "auc_5"), ("AUC@3", "auc_3")),
        (
            (say("AbsRel, median scale"), "abs_rel"),
            (say("AbsRel, scale and shift"), "abs_rel_affine"),
        ),
        (
            (say("median / size"), "point_error"),
            (say("overall m"), "overall_m"),
            (f_score, "f_score"),
        ),
    )
    grids = []
    for columns in tables:
        names = [cell for name, _ in columns for cell in (name, "95 %")]
        rows = []
        for row in report.rows:
            if row.truth_loss is None or row.label == report.reference.label:
                continue
            losses: list[tuple[str, Difference | None]] = [
                (key, getattr(row.truth_loss, key)) for _, key in columns
            ]
            if any(loss is not None for _, loss in losses):
                cells = [cell for key, loss in losses for cell in _cells(key, loss, say)]
                rows.append((row.label, *cells))
        if rows:
            grids.append(Grid((say("variant"), *names), tuple(rows)))
    return grids


def _cells(quantity: str, loss: Difference | None, say: Speaker) -> tuple[str, str]:
    if loss is None:
        return "-", "-"
    mean = lost_text(quantity, loss.mean)
    if loss.low is None or loss.high is None:
        return mean, "-"
    low, high = lost_text(quantity, loss.low), lost_text(quantity, loss.high)
    if loss.over == "frames":
        return mean, say("{low} to {high}, {n} frames", low=low, high=high, n=loss.n)
    return mean, say("{low} to {high}", low=low, high=high)


Value = Callable[[TruthMetrics], float | None]


def _by_scene(say: Speaker) -> tuple[tuple[str, Value, str, int], ...]:
    """What is shown scene by scene: name, number of one scene, field of its mean, decimals."""
    return (
        ("AUC@30", lambda truth: truth.pose.auc_30 if truth.pose else None, "auc_30", 2),
        (
            say("AbsRel, median scale"),
            lambda truth: truth.depth.abs_rel if truth.depth else None,
            "abs_rel",
            4,
        ),
        (
            say("points, median / size"),
            lambda truth: truth.points.median_relative if truth.points else None,
            "point_error",
            4,
        ),
        (say("points, overall m"), _overall, "overall_m", 4),
    )


def _overall(truth: TruthMetrics) -> float | None:
    cloud = truth.points.cloud if truth.points else None
    return cloud.overall_m if cloud else None


def scene_grids(report: ComparisonReport, say: Speaker) -> list[tuple[str, list[Grid]]]:
    """Of several scenes, each quantity scene by scene with its mean: (name, tables)."""
    if len(report.scenes) < 2:
        return []
    named = []
    for name, value, mean, digits in _by_scene(say):
        grids = []
        for start in range(0, len(report.scenes), SCENES_A_TABLE):
            part = range(start, min(start + SCENES_A_TABLE, len(report.scenes)))
            last = part.stop == len(report.scenes)
            grid = _scene_grid(report, part, value, mean if last else None, digits, say)
            grids += [grid] if grid.rows else []
        if grids:
            named.append((name, grids))
    return named


def _scene_grid(
    report: ComparisonReport,
    part: range,
    value: Value,
    mean: str | None,
    digits: int,
    say: Speaker,
) -> Grid:
    rows = []
    for row in report.rows:
        if row.truth is None:
            continue
        truths = [row.scenes[i].truth for i in part]
        found = [None if truth is None else value(truth) for truth in truths]
        own: float | None = getattr(row.truth, mean) if mean else None
        if own is None and not any(one is not None for one in found):
            continue
        values = [*found, own] if mean else found
        rows.append((row.label, *(fixed(value, digits) for value in values)))
    names = [report.scenes[i] for i in part] + ([say("mean")] if mean else [])
    return Grid((say("variant"), *names), tuple(rows))


def remarks(report: ComparisonReport, say: Speaker) -> list[str]:
    """What is missing, once; what a variant alone got so wrong that it was counted as worst."""
    common = _notes(report.reference)
    lines = [_remark(note, count, say) for note, count in common.items()]
    for row in report.rows:
        own = {note: count for note, count in _notes(row).items() if note not in common}
        lines += [say.titled(row.label, _remark(note, count, say)) for note, count in own.items()]
    return lines


def _remark(note: tuple[str, str], count: int, say: Speaker) -> str:
    what, text = note
    said = say.titled(say.recorded(what), say.recorded(text))
    return say("{note} ({n} scenes)", note=said, n=count)


def _notes(row: Row) -> dict[tuple[str, str], int]:
    """(part, note) -> number of scenes that have it."""
    counts: dict[tuple[str, str], int] = {}
    for scene in row.scenes:
        for note in (scene.truth.notes if scene.truth else {}).items():
            counts[note] = counts.get(note, 0) + 1
    return counts


def truth_sections(report: ComparisonReport, say: Speaker) -> list[tuple[str, list[str]]]:
    """All of it as (title, lines) of the plain text; nothing where no truth is known."""
    if report.reference.truth is None:
        return []
    titles: Sequence[tuple[Part, str]] = (
        ("poses", say("poses")),
        ("depth", say("depth")),
        ("points", say("points")),
    )
    parts = []
    for part, title in titles:
        grids = part_of_truth(report, part, say)
        if grids:
            protocol = wrap(protocol_text(report, part, say), LINE)
            parts.append(_named(title, [*(grid.plain() for grid in grids), protocol], say))
    by_scene = [
        _named(name, [grid.plain() for grid in grids], say)
        for name, grids in scene_grids(report, say)
    ]
    losses = [grid.plain() for grid in loss_grids(report, say)]
    said = [line for remark in remarks(report, say) for line in wrap(remark, LINE)]
    return [
        (say("Against the truth"), _apart(parts)),
        (say("Scene by scene, against the truth"), _apart(by_scene)),
        (say("Lost by the truth, against PyTorch FP32"), _apart(losses)),
        (say("What the truth does not say"), said),
    ]


def _named(name: str, blocks: Sequence[list[str]], say: Speaker) -> list[str]:
    """Blocks under a name of their own."""
    return [f"{name}{say.colon.rstrip()}", *_apart(blocks)]


def _apart(blocks: Sequence[list[str]]) -> list[str]:
    """Blocks of lines with an empty one between them."""
    return [line for i, block in enumerate(blocks) for line in ([""] * bool(i) + block)]
