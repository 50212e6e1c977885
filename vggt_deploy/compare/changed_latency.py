"""The latency of one variant before and now, beside what the machine itself changed; see
`baseline.py`.

PyTorch FP32 is timed in every report, and is what all other variants come from: its own change of
latency is taken for the machine's (or a library's), and is no verdict. A variant is better or worse
only if

    its ranks   Mann-Whitney on its calls, p1
    its ratio   new / old median, leaves out 1 with its interval, and is 2 % or more
    beside      its ratio / that of PyTorch FP32 leaves out 1 with its interval, Welch's p2, and is
                2 % or more

all speak the same way. p is the larger of p1 and p2: both have to hold, so that a machine on which
everything takes 1.1 times as long as before makes no variant worse, and one that only PyTorch FP32
suffers from makes no other better.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vggt_deploy.compare.changed import (
    LATENCY_MARGIN,
    Change,
    Found,
    Hold,
    incomparable_change,
    size_of,
)
from vggt_deploy.compare.contention import NOISY_SHARE
from vggt_deploy.compare.significance import (
    Ratio,
    compare_samples,
    dependence,
    median_of,
    ratio,
)

if TYPE_CHECKING:
    from vggt_deploy.compare.report import ComparisonReport, Row

Rows = tuple["Row", "Row"]  # of one variant, in the old report and in the new one
WHEN = ("before", "now")


@dataclass(frozen=True)
class Clock:
    """What the times of two reports are judged by.

    incomparable  why none of them can be compared; "" where they can
    reference     PyTorch FP32
    quiet_cpus    in each report, the most that other processes may keep busy beside timed calls
    dependence    of a call on the one before it, over all variants that both reports have
    """

    incomparable: str
    reference: Rows
    quiet_cpus: tuple[float, float]
    dependence: float

    @classmethod
    def of(cls, old: ComparisonReport, new: ComparisonReport, incomparable: str) -> Clock:
        """Of two reports; the reason is theirs as a whole."""
        series = [
            row.measured.latency.samples_ms
            for report, other in ((old, new), (new, old))
            for row in report.rows
            if row.measured is not None and other.row(row.label) is not None
        ]
        quiet = (
            NOISY_SHARE * old.environment.usable_cpus,
            NOISY_SHARE * new.environment.usable_cpus,
        )
        return cls(incomparable, (old.reference, new.reference), quiet, dependence(series))


def latency_change(old: Row, new: Row, clock: Clock) -> Iterator[Found]:
    """Medians of the timed calls, where both have some."""
    if old.measured is None or new.measured is None:
        return
    before, after = old.measured.latency, new.measured.latency
    reason = clock.incomparable or _other_machine(old, new)
    if reason:
        medians = (before.median_ms, after.median_ms)
        yield Found(incomparable_change("latency_ms", "ms", *medians, reason))
        return
    own = _own(old, new, clock)
    change = Change(
        "latency_ms", "ms", "less", "ratio", before.median_ms, after.median_ms,
        after.median_ms / before.median_ms, own.low if own else None, own.high if own else None,
        before.n, after.n, None, None, "unchanged",
    )  # fmt: skip
    is_reference = old.label == clock.reference[0].label
    reason = _disturbed(old, new, clock)
    if not reason and is_reference and change.moved:
        reason = "it is the measure of the machine: the others are judged by what they changed more"
    if not reason and not is_reference:
        reason = _no_measure(old, clock)
    if reason:
        yield Found(replace(change, verdict="not comparable", reason=reason))
    elif is_reference:
        yield Found(change)
    else:
        yield _tested(old, new, own, change, clock)


def _tested(old: Row, new: Row, own: Ratio | None, change: Change, clock: Clock) -> Found:
    """Both tests, and what speaks against a verdict; the reference is fit to be held against."""
    ranks = compare_samples(_calls(old), _calls(new), _dependence(old, new, clock))
    beside = _beside(old, new, clock)
    if own is None or beside is None:
        return Found(change, ranks)
    change = replace(change, beside=beside.value, beside_low=beside.low, beside_high=beside.high)
    tested = replace(ranks, p=max(ranks.p, beside.p))
    assert change.change is not None
    way = (change.change > 1.0) - (change.change < 1.0)
    hold = None
    if ranks.sign != way:
        hold = Hold("not comparable", "its calls by their ranks and their median went other ways")
    elif own.sign != way:
        hold = Hold("unchanged", "the interval of the ratio holds 1")
    elif beside.sign != way or size_of("ratio", beside.value) < LATENCY_MARGIN:
        hold = Hold("unchanged", f"no more than {clock.reference[0].label} itself changed")
    return Found(change, tested, hold)


def _calls(row: Row) -> tuple[float, ...]:
    assert row.measured is not None
    return row.measured.latency.samples_ms


def _dependence(old: Row, new: Row, clock: Clock) -> float:
    """Of these calls, or of all, whichever is more: of few calls it is not well known."""
    return max(clock.dependence, dependence([_calls(old), _calls(new)]))


def _own(old: Row, new: Row, clock: Clock) -> Ratio | None:
    """The ratio new / old; None of single calls, which have no interval."""
    rho = _dependence(old, new, clock)
    before, after = (median_of(_calls(row), rho) for row in (old, new))
    return ratio([after], [before]) if before and after else None


def _beside(old: Row, new: Row, clock: Clock) -> Ratio | None:
    """The ratio new / old of the variant over new / old of PyTorch FP32."""
    medians = [
        median_of(_calls(row), _dependence(*pair, clock))
        for pair in ((old, new), clock.reference)
        for row in pair
    ]
    known = [one for one in medians if one is not None]
    if len(known) < len(medians):
        return None
    before, after, reference_before, reference_after = known
    return ratio([after, reference_before], [before, reference_after])


def _other_machine(old: Row, new: Row) -> str:
    if old.machine == new.machine:
        return ""
    return f"another machine: {old.machine} before, {new.machine} now"


def _disturbed(old: Row, new: Row, clock: Clock) -> str:
    """Why the times are no evidence; what nobody watched is not taken for quiet."""
    for row, when, limit in zip((old, new), WHEN, clock.quiet_cpus, strict=True):
        assert row.measured is not None
        others = row.measured.others_cpus
        if others is None:
            return f"not known {when}: whether other processes kept CPUs busy"
        if others > limit:
            return f"noisy times {when}: other processes kept CPUs busy"
    return ""


def _no_measure(row: Row, clock: Clock) -> str:
    """Why PyTorch FP32 does not tell what this variant's machine changed; "" where it does."""
    reference = clock.reference
    label = reference[0].label
    if any(one.measured is None for one in reference):
        return f"{label} was not timed in both reports: what the machine changed is not known"
    if any(one.machine != row.machine for one in reference):
        return f"{label} was timed on another machine: what this one changed is not known"
    if reason := _disturbed(*reference, clock):
        return f"what the machine changed is not known, by {label}: {reason}"
    if any(len(_calls(one)) < 2 for one in reference):
        return f"what the machine changed is not known, by {label}: a single call"
    return ""
