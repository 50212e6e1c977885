"""One quantity of one variant before and now, and how it is judged; see `baseline.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from vggt_deploy.compare.paired import mean_with_interval
from vggt_deploy.compare.significance import (
    LEVEL,
    Tested,
    compare_pairs,
)
from vggt_deploy.compare.truth import TruthMetrics
from vggt_deploy.compare.truth_clouds import LOSS_TOLERANCE_M

if TYPE_CHECKING:
    from vggt_deploy.compare.report import Row

SIZE_MARGIN = 0.001
LATENCY_MARGIN = 0.02
ERROR_MARGIN = 0.05
# By the truth, half of the last place of the tables: what is less is the rounding of other
# software, however sure. In the quantity's unit, points of percent or parts of 1.
PERCENT_MARGIN = 0.005
PART_MARGIN = 0.00005
ROUNDING = 1e-5  # relative errors below it are those of float arithmetic
ROUNDING_DEG = 1e-3  # angles alike

# "unchanged": equal, or not told from chance or from the machine. "not comparable": `reason` says
# why.
Verdict = Literal["better", "worse", "unchanged", "not comparable"]
Better = Literal["less", "more"]
Pair = tuple[int, int]  # numbers of a scene in the old report and in the new one


@dataclass(frozen=True)
class Change:
    """One quantity of one variant, before and now.

    quantity   disk_bytes, latency_ms, a field of TruthLoss, or fp32/<output> and fp32/<geometry>
    change     `kind` "ratio": new / old; "difference": new - old, of scenes the mean of those
    low, high  its 95 % interval, where there is one
    beside     latency: change / that of PyTorch FP32, the machine's; with its 95 % interval
    n_old, n_new  calls or scenes behind the two numbers; 1 where the number is exact
    p, p_adjusted as tested, and after Holm; None: not tested, or a test that can't tell anything
    reason     why it is not comparable, or what limits the verdict; "" for nothing to say
    """

    quantity: str
    unit: str
    better: Better
    kind: Literal["ratio", "difference"]
    old: float | None
    new: float | None
    change: float | None
    low: float | None
    high: float | None
    n_old: int
    n_new: int
    p: float | None
    p_adjusted: float | None
    verdict: Verdict
    reason: str = ""
    beside: float | None = None
    beside_low: float | None = None
    beside_high: float | None = None

    @property
    def moved(self) -> bool:
        """Whether it changed on these very calls and scenes, whatever that says of others: by as
        much as counts at all, and no change lies outside its interval.
        """
        if self.change is None or (self.kind == "ratio" and self.change <= 0.0):
            return False
        if size_of(self.kind, self.change) < MARGINS.get(self.quantity, 0.0):
            return False
        none = NONE[self.kind]
        if self.low is not None and self.high is not None:
            return not self.low <= none <= self.high
        return self.change != none


NONE = {"ratio": 1.0, "difference": 0.0}  # what is no change


def size_of(kind: Literal["ratio", "difference"], change: float) -> float:
    """How large a change is, either way: 0 is none."""
    return max(change, 1.0 / change) - 1.0 if kind == "ratio" else abs(change)


@dataclass(frozen=True)
class Hold:
    """What forbids to call a change one, however small its p is."""

    verdict: Literal["unchanged", "not comparable"]
    reason: str


@dataclass(frozen=True)
class Found:
    """A change whose verdict may hang on a test, and on all the other tests.

    hold    what else is against calling it a change
    """

    change: Change
    tested: Tested | None = None
    hold: Hold | None = None

    @property
    def in_family(self) -> bool:
        """Whether it is one of the tests that Holm's adjustment counts."""
        return self.tested is not None and self.tested.can_tell

    @property
    def p(self) -> float:
        """As tested; 1 without a test."""
        return self.tested.p if self.tested is not None else 1.0

    def _count(self) -> str:
        """Of what there were too few, and what they are worth where that is less."""
        change = self.change
        what = "calls" if change.quantity == "latency_ms" else "scenes"
        same = change.n_old == change.n_new
        text = f"{change.n_old} {what}" if same else f"{change.n_old} and {change.n_new} {what}"
        if self.tested is None or self.tested.worth is None:
            return text
        old, new = (f"{worth:.1f}" for worth in self.tested.worth)
        return f"{text}, worth {old if old == new else f'{old} / {new}'} independent ones"

    def judged(self, adjusted: float | None, tests: int) -> Change:
        """The verdict, given the adjusted p value; None: no test of the family."""
        change, by = self.change, self.change.change
        if self.tested is None or by is None:
            return change
        if by == NONE[change.kind] and self.p == 1.0:
            return replace(change, verdict="unchanged")
        if adjusted is None:
            reason = f"too few to tell: {self._count()}, no outcome gives p of {LEVEL:g} or less"
            return replace(change, verdict="not comparable", reason=reason)
        change = replace(change, p=self.p, p_adjusted=adjusted)
        if adjusted > LEVEL:
            reason = ""
            if self.tested.smallest_p * tests > LEVEL:
                reason = f"{self._count()} among {tests} tests can hardly tell any change"
            return replace(change, verdict="unchanged", reason=reason)
        margin = MARGINS[change.quantity]
        if size_of(change.kind, by) < margin:
            least = f"{100 * margin:g} %" if change.kind == "ratio" else f"{margin:.5f}".rstrip("0")
            return replace(change, verdict="unchanged", reason=f"told from none, but below {least}")
        if self.hold is not None:
            return replace(change, verdict=self.hold.verdict, reason=self.hold.reason)
        return replace(change, verdict=_direction(change))


def _direction(change: Change) -> Verdict:
    """Which way it went."""
    assert change.change is not None
    more = change.change > NONE[change.kind]
    return "better" if more == (change.better == "more") else "worse"


def _exact(
    quantity: str, unit: str, old: float, new: float, margin: float, floor: float = 0.0
) -> Change:
    """Less is better; the same every time, so no test: unchanged within the margin."""
    change = Change(
        quantity, unit, "less", "ratio", old, new, new / old if old > 0.0 else None,
        None, None, 1, 1, None, None, "unchanged",
    )  # fmt: skip
    if max(old, new) < floor or abs(new - old) <= margin * max(old, new):
        return change
    return replace(change, verdict="better" if new < old else "worse")


def incomparable_change(
    quantity: str, unit: str, old: float, new: float, reason: str, better: Better = "less"
) -> Change:
    return Change(
        quantity, unit, better, "ratio", old, new, None, None, None, 1, 1, None, None,
        "not comparable", reason,
    )  # fmt: skip


def size_change(old: Row, new: Row, incomparable: str) -> Iterator[Found]:
    """Bytes on disk, where both have some."""
    if old.disk_bytes is None or new.disk_bytes is None:
        return
    sizes = (float(old.disk_bytes), float(new.disk_bytes))
    if incomparable:
        yield Found(incomparable_change("disk_bytes", "bytes", *sizes, incomparable))
    else:
        yield Found(_exact("disk_bytes", "bytes", *sizes, SIZE_MARGIN))


@dataclass(frozen=True)
class _Quantity:
    """A number of a scene by the truth."""

    name: str
    unit: str
    better: Better
    value: Callable[[TruthMetrics], float | None]


def _f_score(scene: TruthMetrics) -> float | None:
    cloud = scene.points.cloud if scene.points else None
    if cloud is None:
        return None
    return next((s.f_score for s in cloud.scores if s.threshold_m == LOSS_TOLERANCE_M), None)


# One number for each thing that the network gives, and not every threshold of it: each further test
# makes all of them less able to tell.
_TRUTH = (
    _Quantity("auc_30", "%", "more", lambda s: s.pose.auc_30 if s.pose else None),
    _Quantity("abs_rel", "", "less", lambda s: s.depth.abs_rel if s.depth else None),
    _Quantity("point_error", "", "less", lambda s: s.points.median_relative if s.points else None),
    _Quantity("f_score", "%", "more", _f_score),
)
# What counts as a change at all, of the quantities that are tested.
MARGINS = {"latency_ms": LATENCY_MARGIN} | {
    one.name: PERCENT_MARGIN if one.unit == "%" else PART_MARGIN for one in _TRUTH
}


def truth_changes(old: Row, new: Row, scenes: Sequence[Pair], incomparable: str) -> Iterator[Found]:
    """Scene by scene by the truth; `scenes` are those in common."""
    if not old.scenes or not new.scenes:
        return
    for quantity in _TRUTH:
        everything = [_values(row, quantity) for row in (old, new)]
        means = [_mean([v for v in values if v is not None]) for values in everything]
        if means[0] is None or means[1] is None:
            continue
        if incomparable:
            yield Found(
                incomparable_change(
                    quantity.name, quantity.unit, means[0], means[1], incomparable, quantity.better
                )
            )
            continue
        both = [
            (before, after)
            for i, j in scenes
            if (before := everything[0][i]) is not None and (after := everything[1][j]) is not None
        ]
        if both:
            yield _paired(quantity, both)


def _values(row: Row, quantity: _Quantity) -> list[float | None]:
    """One number for each scene of the row."""
    return [quantity.value(scene.truth) if scene.truth else None for scene in row.scenes]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _paired(quantity: _Quantity, both: Sequence[tuple[float, float]]) -> Found:
    """Old and new numbers of the same scenes."""
    differences = [after - before for before, after in both]
    found = mean_with_interval(differences)
    change = Change(
        quantity.name, quantity.unit, quantity.better, "difference",
        _mean([before for before, _ in both]), _mean([after for _, after in both]),
        found.mean, found.low, found.high, found.n, found.n, None, None, "unchanged",
    )  # fmt: skip
    return Found(change, compare_pairs(differences))


def error_changes(old: Row, new: Row, incomparable: str) -> Iterator[Found]:
    """Against PyTorch FP32, each report against its own; the reference itself has none."""
    for name, before in old.accuracy.items():
        after = new.accuracy.get(name)
        if after is None:
            continue
        quantity = f"fp32/{name}"
        if before.finite != after.finite:
            yield Found(_broken(quantity, before.relative_l2, after.relative_l2, incomparable))
        elif before.relative_l2 is not None and after.relative_l2 is not None:
            values = (before.relative_l2, after.relative_l2)
            yield Found(_error(quantity, "", *values, ROUNDING, incomparable))
    errors, others = _geometry(old), _geometry(new)
    for (quantity, unit, rounding), error in errors.items():
        other = others.get((quantity, unit, rounding))
        if other is not None:
            yield Found(_error(quantity, unit, error, other, rounding, incomparable))


def _error(
    quantity: str, unit: str, old: float, new: float, rounding: float, incomparable: str
) -> Change:
    if incomparable:
        return incomparable_change(quantity, unit, old, new, incomparable)
    return _exact(quantity, unit, old, new, ERROR_MARGIN, rounding)


def _broken(quantity: str, old: float | None, new: float | None, incomparable: str) -> Change:
    """One of the two has NaN or infinite values and so no error."""
    reason = f"NaN or infinite values {'now' if new is None else 'before'}"
    verdict: Verdict = "worse" if new is None else "better"
    return Change(
        quantity, "", "less", "ratio", old, new, None, None, None, 1, 1, None, None,
        "not comparable" if incomparable else verdict, incomparable or reason,
    )  # fmt: skip


def _geometry(row: Row) -> dict[tuple[str, str, float], float]:
    """Name, unit and what is rounding -> error against PyTorch FP32."""
    geometry = row.geometry
    if geometry is None:
        return {}
    pose, depth, points = geometry.pose, geometry.depth, geometry.points
    rotation = pose.rotation if pose else None
    direction = pose.direction if pose else None
    found = {
        ("fp32/rotation", "deg", ROUNDING_DEG): rotation.mean_deg if rotation else None,
        ("fp32/direction", "deg", ROUNDING_DEG): direction.mean_deg if direction else None,
        ("fp32/depth_abs_rel", "", ROUNDING): depth.abs_rel if depth else None,
        ("fp32/point_error", "", ROUNDING): points.mean_relative if points else None,
    }
    return {key: value for key, value in found.items() if value is not None}
