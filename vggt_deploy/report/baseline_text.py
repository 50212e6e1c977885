"""What changed since a baseline, in words and tables, for the summary and for a pull request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from vggt_deploy.compare.baseline import Change, Changes, VariantChanges, Verdict
from vggt_deploy.compare.truth_clouds import LOSS_TOLERANCE_M
from vggt_deploy.report.languages import ENGLISH, Speaker
from vggt_deploy.report.text import Grid, fixed, number, signed, wrap

LINE = 115
_SHORT = {"depth_abs_rel": "depth AbsRel", "point_error": "points"}
TOLD: tuple[Verdict, ...] = ("worse", "better")


def baseline_lines(found: Changes, say: Speaker = ENGLISH) -> list[str]:
    """The section of the summary: what it is held against, what is told from none, what is not."""
    lines = [line for text in baseline_notes(found, say) for line in wrap(text, LINE)]
    grid = told_grid(found, say)
    lines += ["", *grid.plain(), ""] if grid.rows else []
    lines += [line for text in baseline_verdicts(found, say) for line in wrap(text, LINE)]
    return [*lines, *wrap(baseline_how(found, say), LINE)]


def baseline_notes(found: Changes, say: Speaker = ENGLISH) -> list[str]:
    """What the report is held against, and what else differs between the two."""
    old = found.old
    notes = [
        say(
            "Against the report of {created} ({model}, {machine}), in {folder}.",
            created=old.created,
            model=old.model,
            machine=old.machine,
            folder=old.folder,
        ),
        say("Scenes in common: {n}.", n=len(found.scenes)),
    ]
    notes += [say.titled(say("not compared"), say.recorded(text)) for text in found.left_out]
    return notes + [say.titled(say("differs"), say.recorded(text)) for text in found.notes]


def told_grid(found: Changes, say: Speaker = ENGLISH) -> Grid:
    """What is better or worse, the worse first; then what moved but could not be judged."""
    header = say.each(
        "variant", "quantity", "verdict", "before", "now", "change", "95 %", "p (Holm)"
    )
    rows = [
        (
            variant.label,
            quantity_name(change, say),
            say.recorded(verdict) if verdict else say("not judged"),
            shown(change, change.old),
            shown(change, change.new),
            _change(change),
            _interval(change, say),
            "-" if change.p_adjusted is None else f"{change.p_adjusted:.2g}",
        )
        for verdict in (*TOLD, None)
        for variant, change in _all(found)
        if (change.verdict == verdict if verdict else _unjudged(change))
    ]
    return Grid(header, tuple(rows), left=3)


def _unjudged(change: Change) -> bool:
    """Something moved, and nobody can tell whether it means anything."""
    return change.verdict == "not comparable" and change.moved


def baseline_verdicts(found: Changes, say: Speaker = ENGLISH) -> list[str]:
    """How many quantities went which way, what came, went or broke, what can't be compared."""
    counts = Counter(change.verdict for _, change in _all(found))
    lines = [
        say(
            "Quantities: {worse} worse, {better} better, {unchanged} unchanged or not told from "
            "chance, {incomparable} not comparable.",
            worse=counts["worse"],
            better=counts["better"],
            unchanged=counts["unchanged"],
            incomparable=counts["not comparable"],
        )
    ]
    if any(_unjudged(change) for _, change in _all(found)):
        lines.append(
            say(
                "Not judged: what moved here, but in too few scenes or calls, or in noisy times, "
                "to tell it from chance."
            )
        )
    fates: dict[str, list[str]] = {}
    for variant in found.variants:
        if fate := _fate(variant, say):
            fates.setdefault(fate, []).append(variant.label)
    lines += [say.titled(fate, say.joined(labels)) for fate, labels in fates.items()]
    reasons = Counter(
        (quantity_name(change, say), change.reason)
        for _, change in _all(found)
        if change.verdict == "not comparable"
    )
    return lines + [
        say(
            "Not comparable: {quantity}, {n} times: {reason}.",
            quantity=quantity,
            n=times,
            reason=say.recorded(reason),
        )
        for (quantity, reason), times in reasons.items()
    ]


def baseline_how(found: Changes, say: Speaker = ENGLISH) -> str:
    """How it was judged."""
    if not found.tests:
        return say(
            "No quantity was tested: too few calls and scenes, or the reports are too unlike. "
            "Sizes and errors against PyTorch FP32 are exact: within 0.1 % and 5 % they are "
            "unchanged."
        )
    return say(
        "Latency: ratio of medians, Mann-Whitney test on the calls, below 2 % never called a "
        "change. By the truth: scene by scene, sign-flip test. Intervals: bootstrap, 95 %. All "
        "{tests} tests are one family: with Holm's adjustment the chance of any false better or "
        "worse among them is {level} %. Calls of one run know nothing of how two runs of the same "
        "thing differ: a change of latency may be the machine's. Sizes and errors against "
        "PyTorch FP32 are exact: no test; within 0.1 % and 5 % they are unchanged.",
        tests=found.tests,
        level=f"{100 * found.level:g}",
    )


def quantity_name(change: Change, say: Speaker = ENGLISH) -> str:
    """As in a table."""
    match change.quantity:
        case "disk_bytes":
            return say("on disk, MB")
        case "latency_ms":
            return say("median latency, ms")
        case "auc_30":
            return "AUC@30"
        case "abs_rel":
            return say("AbsRel by the truth")
        case "point_error":
            return say("points by the truth")
        case "f_score":
            return say("F-score @ {metres} m", metres=f"{LOSS_TOLERANCE_M:g}")
    name = change.quantity.removeprefix("fp32/")
    return say("{name} against FP32", name=_SHORT.get(name, name))


def shown(change: Change, value: float | None) -> str:
    """A value of that quantity."""
    if value is None:
        return "-"
    if change.unit == "bytes":
        return fixed(value / 1e6)
    if change.unit in ("ms", "%"):
        return fixed(value)
    return number(value)


def _change(change: Change) -> str:
    if change.change is None:
        return "-"
    return f"x {change.change:.3f}" if change.kind == "ratio" else signed(change.change)


def _interval(change: Change, say: Speaker) -> str:
    if change.low is None or change.high is None:
        return "-"
    low, high = (
        f"{value:.3f}" if change.kind == "ratio" else signed(value)
        for value in (change.low, change.high)
    )
    return say("{low} to {high}", low=low, high=high)


def _all(found: Changes) -> Iterator[tuple[VariantChanges, Change]]:
    for variant in found.variants:
        for change in variant.changes:
            yield variant, change


def _fate(variant: VariantChanges, say: Speaker) -> str:
    """What became of a variant; "" where nothing did."""
    if variant.presence == "appeared":
        return say("not in the old report")
    if variant.presence == "disappeared":
        return say("not in the new report")
    old, new = str(variant.old_status), str(variant.new_status)
    if old == new:
        return ""
    return say("before {old}, now {new}", old=say.recorded(old), new=say.recorded(new))
