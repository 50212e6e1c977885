"""What changed since a baseline, in words and tables, for the summary and for a pull request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from vggt_deploy.compare.baseline import (
    REFERENCE_LABEL,
    Change,
    Changes,
    VariantChanges,
    Verdict,
)
from vggt_deploy.compare.changed import MARGINS
from vggt_deploy.compare.decimals import LOST_DECIMALS, lost_text
from vggt_deploy.compare.truth_clouds import LOSS_TOLERANCE_M
from vggt_deploy.report.languages import ENGLISH, Speaker
from vggt_deploy.report.text import Grid, fixed, number, wrap

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
    """What broke, came or went, how many quantities went which way, what can't be compared."""
    return [*baseline_counts(found, say), *baseline_reasons(found, say)]


def baseline_counts(found: Changes, say: Speaker = ENGLISH) -> list[str]:
    """First of all, the variants that broke; then how many quantities went which way."""
    lines = baseline_fates(found, say)
    counts = Counter(change.verdict for _, change in _all(found))
    lines.append(
        say(
            "Quantities: {worse} worse, {better} better, {unchanged} unchanged or not told from "
            "chance, {incomparable} not comparable.",
            worse=counts["worse"],
            better=counts["better"],
            unchanged=counts["unchanged"],
            incomparable=counts["not comparable"],
        )
    )
    return lines


def baseline_fates(found: Changes, say: Speaker = ENGLISH) -> list[str]:
    """Which variants broke, came to work, came or went, the worst first; nothing where none did."""
    fates: dict[str, list[str]] = {}
    worst_first: tuple[Verdict, ...] = ("worse", "not comparable", "better", "unchanged")
    for variant in sorted(found.variants, key=lambda one: worst_first.index(one.status)):
        if fate := _fate(variant, say):
            fates.setdefault(fate, []).append(variant.label)
    if not fates:
        return []
    status = Counter(variant.status for variant in found.variants)
    presence = Counter(variant.presence for variant in found.variants)
    counts = say(
        "Variants: {worse} broke, {better} came to work, {gone} not in the new report, {new} not "
        "in the old one.",
        worse=status["worse"],
        better=status["better"],
        gone=presence["disappeared"],
        new=presence["appeared"],
    )
    return [counts, *(say.titled(fate, say.joined(labels)) for fate, labels in fates.items())]


def baseline_reasons(found: Changes, say: Speaker = ENGLISH) -> list[str]:
    """What could not be judged or compared, and why."""
    lines = []
    if any(_unjudged(change) for _, change in _all(found)):
        lines.append(
            say(
                "Not judged: what moved here, but can't be told from chance or from the machine, "
                "for the reasons below."
            )
        )
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
        return say.sentences([_why_untested(found, say), _exactly(say)])
    tested = say(
        "Latency: ratio of medians, and that ratio beside the one of PyTorch FP32, whose own "
        "change is taken for the machine's and never called better or worse. A variant is better "
        "or worse only if a Mann-Whitney test on its calls, its ratio and the ratio of ratios "
        "(Welch's test) all say so, by 2 % or more; calls that are like the one before them count"
        " for fewer. By the truth: scene by scene, sign-flip test, never below 0.005 points of "
        "AUC and F-score or 0.00005 of AbsRel and points. Intervals: 95 %. Tests: {tests}, one "
        "family (Holm), so that the chance of any false better or worse is {level} %, if a call "
        "depends on earlier ones only through the one before it, and if the machine changed all "
        "variants by the same factor as PyTorch FP32.",
        tests=found.tests,
        level=f"{100 * found.level:g}",
    )
    return say.sentences([tested, _exactly(say)])


def _exactly(say: Speaker) -> str:
    return say(
        "Sizes and errors against PyTorch FP32 are exact: no test; within 0.1 % and 5 % they are "
        "unchanged."
    )


def _why_untested(found: Changes, say: Speaker) -> str:
    """The reasons that there are: of every quantity that is tested where it can be."""
    tested = [
        change
        for variant, change in _all(found)
        if change.quantity in MARGINS
        and (variant.label, change.quantity) != (REFERENCE_LABEL, "latency_ms")
    ]
    reasons = [change.reason for change in tested if change.verdict == "not comparable"]
    texts = [say.recorded(reason) for reason in dict.fromkeys(reasons)]
    if any(change.verdict == "unchanged" for change in tested):
        texts.append(say("what could be compared is the same in both"))
    if not tested:
        texts.append(
            say(
                "the two reports have no variant timed beside PyTorch FP32, and no scene with a "
                "truth, in common"
            )
        )
    return say("No quantity was tested: {reasons}.", reasons=say.semicolon.join(texts))


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
    if change.quantity in LOST_DECIMALS:
        return fixed(value, LOST_DECIMALS[change.quantity])
    return number(value)


def _change(change: Change) -> str:
    if change.change is None:
        return "-"
    return f"x {change.change:.3f}" if change.kind == "ratio" else _by(change, change.change)


def _by(change: Change, value: float) -> str:
    """A ratio, or a difference as the losses by the truth are written."""
    return f"{value:.3f}" if change.kind == "ratio" else lost_text(change.quantity, value)


def _interval(change: Change, say: Speaker) -> str:
    if change.low is None or change.high is None:
        return "-"
    low, high = (_by(change, value) for value in (change.low, change.high))
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
