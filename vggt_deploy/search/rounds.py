"""From budgets to an assignment that was run and keeps them.

    what is made small    the loss, where size or time is bounded; the size, where losses alone are
    predicted             bytes and time exactly, losses as sums over units
    tried                 the assignment is run; what it lost counts, not what was predicted

Where what is tried loses more than allowed, the choice is made again under a ceiling on the
predicted output_mse, the loss that adds up best and is never lost in noise: lower after a failure,
higher after a success as long as size can still be won, a bounded number of times. Each trial is a
`Point`; the smallest (or the one of least loss) that keeps all budgets is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from vggt_deploy.search.choices import BYTES, MSE, TIME, Choices
from vggt_deploy.search.knapsack import Choice, solve
from vggt_deploy.search.records import Budgets, Point

ROUNDS = 8
_NEAR = 1.05  # ceilings that are this near to each other give the same assignment

Try = Callable[[Choice], Point]
"""Runs an assignment; `broken` of its point says which budgets it breaks."""


@dataclass(frozen=True)
class Goal:
    """What is made small, and quantity -> limit on the sums over units."""

    minimise: str
    limits: dict[str, float]


@dataclass(frozen=True)
class Rounds:
    """The points tried, in order, and the index of the one taken or, if none keeps the budgets,
    of the nearest; both None where size and time alone can't be kept.
    """

    points: tuple[Point, ...]
    chosen: int | None
    nearest: int | None


def goal(budgets: Budgets, choices: Choices, float_ms: float | None, minimise: str) -> Goal:
    """Budgets as the solver takes them.

    float_ms: time of all timed Linears in FP32
    minimise: the loss to make small where size or time is bounded
    """
    limits: dict[str, float] = dict(budgets.max_drop)
    if budgets.max_bytes is not None:
        limits[BYTES] = float(budgets.max_bytes - choices.rest_bytes)
    if budgets.min_speedup is not None:
        assert float_ms is not None  # costs were measured, as a speedup is asked for
        limits[TIME] = float_ms / budgets.min_speedup
    bounded = budgets.max_bytes is not None or budgets.min_speedup is not None
    return Goal(minimise if bounded else BYTES, limits)


def broken(budgets: Budgets, point: Point) -> tuple[str, ...]:
    """The budgets that a point breaks, in words."""
    found = []
    if budgets.max_bytes is not None and point.bytes > budgets.max_bytes:
        found.append(f"{point.bytes} bytes, at most {budgets.max_bytes} asked for")
    if budgets.min_speedup is not None and (point.speedup or 0.0) < budgets.min_speedup:
        found.append(f"{point.speedup or 0.0:.3g} x as fast, {budgets.min_speedup:g} x asked for")
    for name, most in budgets.max_drop.items():
        lost = (point.loss or {}).get(name, math.inf)
        if lost > most:
            found.append(f"{name} lost {lost:.4g}, at most {most:g} asked for")
    return tuple(found)


def meet(
    choices: Choices, wanted: Goal, budgets: Budgets, attempt: Try, *, rounds: int = ROUNDS
) -> Rounds:
    """Choose, try, and choose again under another ceiling until the budgets are kept."""
    points: list[Point] = []
    passed, failed = 0.0, math.inf
    ceiling = math.inf
    for _ in range(rounds):
        limits = {**wanted.limits, MSE: min(ceiling, wanted.limits.get(MSE, math.inf))}
        choice = solve(choices.values, wanted.minimise, limits)
        if choice is None and math.isinf(ceiling):
            # Nothing keeps the predicted drops: how near it comes is still worth knowing.
            choice = _without_drops(choices, wanted, budgets)
            if choice is None:
                break
        if choice is None:
            passed = ceiling  # too low to choose anything
        else:
            point = attempt(choice)
            points.append(point)
            predicted = choice.totals[MSE]
            if point.broken and wanted.minimise == MSE:
                break  # no choice has a lower output_mse within the other budgets
            if point.broken:
                failed = min(failed, predicted)
            else:
                if math.isinf(ceiling):
                    break  # nothing was given up for it
                passed = max(passed, predicted)
        if failed <= 0 or failed <= passed * _NEAR:
            break
        ceiling = _between(passed, failed, points, budgets)
    return _taken(points, wanted, budgets)


def _without_drops(choices: Choices, wanted: Goal, budgets: Budgets) -> Choice | None:
    """The choice of least output_mse within size and time."""
    limits = {k: v for k, v in wanted.limits.items() if k not in budgets.max_drop}
    return solve(choices.values, MSE, limits)


def _between(passed: float, failed: float, points: Sequence[Point], budgets: Budgets) -> float:
    """The next ceiling: between the two in ratio, or where the last failure points to."""
    if passed > 0:
        return math.sqrt(passed * failed)
    ratios = [
        most / lost
        for name, most in budgets.max_drop.items()
        if (lost := (points[-1].loss or {}).get(name, 0.0)) > most
    ]
    return failed * max(0.05, min([0.5, *ratios]))


def _taken(points: Sequence[Point], wanted: Goal, budgets: Budgets) -> Rounds:
    def value(index: int) -> float:
        point = points[index]
        if wanted.minimise == BYTES:
            return float(point.bytes)
        return (point.loss or {}).get(wanted.minimise, math.inf)

    keeping = [index for index, point in enumerate(points) if not point.broken]
    if keeping:
        return Rounds(tuple(points), min(keeping, key=value), None)
    nearest = min(range(len(points)), key=lambda i: excess(budgets, points[i]), default=None)
    return Rounds(tuple(points), None, nearest)


def excess(budgets: Budgets, point: Point) -> float:
    """By how much a point breaks its budgets: what is above each, relative to it, summed."""
    over = 0.0
    if budgets.max_bytes is not None:
        over += max(0.0, point.bytes / budgets.max_bytes - 1.0)
    if budgets.min_speedup is not None:
        over += max(0.0, budgets.min_speedup / max(point.speedup or 0.0, 1e-9) - 1.0)
    losses: Mapping[str, float] = point.loss or {}
    for name, most in budgets.max_drop.items():
        lost = losses.get(name, math.inf)
        # A budget of 0 has no ratio; then the loss itself is what it is too much by.
        over += max(0.0, (lost - most) / most if most > 0 else lost)
    return over
