"""One option for each unit: the least total of one quantity, with limits on totals of others.

    minimise    sum_u c[u, o_u]
    subject to  sum_u a_k[u, o_u] <= limit_k   for every limit k

a multiple-choice knapsack with several limits. As a mixed-integer program it has one binary x[u, o]
per option, sum_o x[u, o] = 1 for each unit, and is solved by branch and bound in HiGHS
(`scipy.optimize.milp`): the answer is the best one there is, not a good one, unless the time ran
out, which `Choice.proven` says.

Each limit is scaled to 1 and the objective to 1e4 before it is solved: HiGHS takes 1e-6 for zero,
and bytes are 1e9 while squared errors are 1e-6. What it gives is added up again in the caller's
units; where a limit is broken by its tolerance, it is solved again with that limit a little lower.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vggt_deploy.errors import DeployError

TIME_LIMIT_S = 120.0
_OBJECTIVE_SCALE = 1e4
_TOLERANCE = 2e-6
_ATTEMPTS = 8
# scipy.optimize.milp: 0 optimal, 1 time or node limit, 2 infeasible, 3 unbounded, 4 other.
_OPTIMAL, _STOPPED, _INFEASIBLE = 0, 1, 2

Values = Mapping[str, float]
"""Quantity -> value, of one option."""


@dataclass(frozen=True)
class Choice:
    """The option of each unit by its index, the totals, and whether nothing better exists."""

    options: tuple[int, ...]
    totals: dict[str, float]
    proven: bool


def totals_of(units: Sequence[Sequence[Values]], options: Sequence[int]) -> dict[str, float]:
    """Quantity -> exact sum over the units of what the chosen options have."""
    chosen = [unit[option] for unit, option in zip(units, options, strict=True)]
    names = chosen[0].keys() if chosen else ()
    return {name: math.fsum(values[name] for values in chosen) for name in names}


def solve(
    units: Sequence[Sequence[Values]],
    minimise: str,
    limits: Mapping[str, float],
    *,
    time_limit_s: float = TIME_LIMIT_S,
) -> Choice | None:
    """The best choice of one option per unit; None if no choice keeps all limits.

    units: for each unit its options, each with the same quantities
    limits: quantity -> largest total allowed; an infinite one is none

    Raises:
        ValueError: no unit, a unit without options, or a value that is not finite.
        DeployError: the time ran out before any choice was found.
    """
    _check(units, minimise, limits)
    wanted = {name: limit for name, limit in limits.items() if math.isfinite(limit)}
    for name, limit in wanted.items():
        if math.fsum(min(values[name] for values in unit) for unit in units) > limit:
            return None
    allowed = dict(wanted)
    for _ in range(_ATTEMPTS):
        found = _milp(units, minimise, allowed, time_limit_s)
        if found is None:
            return None
        options, proven = found
        totals = totals_of(units, options)
        broken = [name for name, limit in wanted.items() if totals[name] > limit]
        if not broken:
            return Choice(options, totals, proven)
        for name in broken:
            allowed[name] -= _TOLERANCE * max(abs(wanted[name]), _spread(units, name))
    return None


def _milp(
    units: Sequence[Sequence[Values]],
    minimise: str,
    limits: Mapping[str, float],
    time_limit_s: float,
) -> tuple[tuple[int, ...], bool] | None:
    """The chosen options, and whether they are proven the best."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array, vstack

    sizes = [len(unit) for unit in units]
    count = sum(sizes)
    owner = np.repeat(np.arange(len(units)), sizes)
    one_each = csr_array((np.ones(count), (owner, np.arange(count))), shape=(len(units), count))
    rows, upper = [one_each], [np.ones(len(units))]
    for name, limit in limits.items():
        # The cheapest option of each unit is taken off both sides, so that what is left to choose
        # is what is scaled, not the part that no choice can change.
        column, least = _above_least(units, name)
        scale = max(abs(limit - least), _spread(units, name), np.finfo(np.float64).tiny)
        rows.append(csr_array((column / scale)[None]))
        upper.append(np.array([(limit - least) / scale]))
    cost, _ = _above_least(units, minimise)
    spread = _spread(units, minimise)
    result = milp(
        c=cost * (_OBJECTIVE_SCALE / spread if spread > 0 else 1.0),
        integrality=np.ones(count),
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(
            vstack(rows), np.concatenate([np.ones(len(units)), np.full(len(limits), -np.inf)]),
            np.concatenate(upper),
        ),
        options={"time_limit": time_limit_s, "mip_rel_gap": 0.0},
    )  # fmt: skip
    if result.status == _INFEASIBLE:
        return None
    if result.x is None or result.status not in (_OPTIMAL, _STOPPED):
        raise DeployError(
            f"no assignment was found in {time_limit_s:g} s: {result.message}",
            "use fewer units (a table by block, not by layer) or fewer formats",
        )
    starts = np.cumsum([0, *sizes[:-1]])
    options = tuple(
        int(np.argmax(result.x[start : start + size]))
        for start, size in zip(starts, sizes, strict=True)
    )
    return options, result.status == _OPTIMAL


def _above_least(units: Sequence[Sequence[Values]], name: str) -> tuple[NDArray[np.float64], float]:
    """Values of all options in a row, each above the least of its unit; the sum of the least."""
    least = [min(values[name] for values in unit) for unit in units]
    column = [values[name] - low for unit, low in zip(units, least, strict=True) for values in unit]
    return np.array(column, dtype=np.float64), math.fsum(least)


def _spread(units: Sequence[Sequence[Values]], name: str) -> float:
    """How far the total can be apart between the least and the most."""
    ends = [[values[name] for values in unit] for unit in units]
    return math.fsum(max(values) - min(values) for values in ends)


def _check(units: Sequence[Sequence[Values]], minimise: str, limits: Mapping[str, float]) -> None:
    if not units or not all(units):
        raise ValueError("there is a unit without options, or no unit at all")
    names = {minimise, *limits}
    for unit in units:
        for values in unit:
            if not all(math.isfinite(values[name]) for name in names):
                raise ValueError(f"an option has values that are not finite: {dict(values)}")
    if any(math.isnan(limit) for limit in limits.values()):
        raise ValueError("a limit is not a number")
