"""What a search found, in words: the lines above a recipe, and those on the terminal."""

from __future__ import annotations

from collections import Counter

from vggt_deploy.search.choices import MSE
from vggt_deploy.search.records import Budgets, Point, SearchResult

_SHOWN = ("auc3", "auc5", "auc30", "same5", "pose_deg", "abs_rel", "point_error", MSE)


def recipe_comments(result: SearchResult, point: Point) -> list[str]:
    """What a reader of recipe.toml should know of it."""
    lines = [
        f"{result.model.spec}, {result.height} x {result.width}: {budget_words(result.budgets)}",
        f"weights as stored: {point.bytes} bytes",
        f"lost against FP32, measured on {len(result.scenes)} scenes, with 95 % intervals:",
        *(f"  {line}" for line in loss_lines(point)),
    ]
    if point.speedup is not None:
        lines.append(f"its Linears, timed one by one, together {point.speedup:.2f} x as fast")
    if point.broken:
        lines.append(f"it does not keep the budgets: {'; '.join(point.broken)}")
    return lines


def loss_lines(point: Point) -> list[str]:
    """A line per measured loss, with its interval."""
    lines = []
    for name in _SHOWN:
        if point.loss is None or name not in point.loss:
            continue
        low, high = point.interval.get(name, (None, None))
        ends = "" if low is None or high is None else f"  [{low:.4g}, {high:.4g}]"
        lines.append(f"{name} {point.loss[name]:.4g}{ends}")
    return lines


def budget_words(budgets: Budgets) -> str:
    """`at most 9000000 bytes, auc30 lost at most 0.5`."""
    words = []
    if budgets.max_bytes is not None:
        words.append(f"at most {budgets.max_bytes} bytes")
    words += [f"{name} lost at most {most:g}" for name, most in budgets.max_drop.items()]
    if budgets.min_speedup is not None:
        words.append(f"Linears {budgets.min_speedup:g} x as fast as in FP32")
    return ", ".join(words)


def summary_lines(result: SearchResult) -> list[str]:
    """A table of all points by size, and what became of the budgets."""
    shown = [name for name in _SHOWN if any(name in (p.loss or {}) for p in result.points)]
    index = result.chosen if result.chosen is not None else result.nearest
    width = max([len(point.name) for point in result.points], default=4)
    lines = [
        f"{'':2}{'name':<{width}}  {'MB':>9}  {'x as fast':>9}  "
        + "  ".join(f"{n:>11}" for n in shown)
    ]
    for number, point in sorted(enumerate(result.points), key=lambda item: item[1].bytes):
        mark = "*" if number == index else ""
        speed = "-" if point.speedup is None else f"{point.speedup:.2f}"
        losses = point.loss or {}
        cells = [f"{losses[n]:>11.4g}" if n in losses else f"{'-':>11}" for n in shown]
        note = f"  {point.note}" if point.note else ""
        lines.append(
            f"{mark:2}{point.name:<{width}}  {point.bytes / 1e6:>9.3f}  {speed:>9}  "
            + "  ".join(cells)
            + note
        )
    lines += ["", f"asked for: {budget_words(result.budgets)}"]
    if index is not None:
        counts = Counter(result.points[index].units.values())
        units = ", ".join(f"{n} units {label}" for label, n in counts.most_common())
        word = "found" if result.chosen is not None else "nearest, and not within the budgets"
        lines.append(f"{word} (*): {units}")
        lines += [f"  {line}" for line in loss_lines(result.points[index])]
    if result.network:
        exact, ours = result.network
        lines.append(
            f"the network in ONNX Runtime: {exact.median_ms:.1f} ms in FP32, {ours.median_ms:.1f} "
            f"ms with the recipe, {exact.median_ms / ours.median_ms:.2f} x as fast (medians of "
            f"{ours.n} calls, IQR {exact.iqr_ms:.1f} and {ours.iqr_ms:.1f} ms)"
        )
    if result.estimated:
        lines.append(
            f"losses of {result.estimated} unit formats were estimated from their local errors: "
            "`sensitivity --resume --top N` measures more"
        )
    shared = sorted(set(result.scenes) & set(result.table_scenes))
    if shared:
        lines.append(
            f"{len(shared)} of the scenes are the sensitivity table's own: on others the losses "
            "may be larger"
        )
    return lines
