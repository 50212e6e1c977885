"""The solver against trying everything."""

from __future__ import annotations

import math
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vggt_deploy.search.knapsack import solve, totals_of

BYTES = st.integers(0, 2_000_000_000).map(float)
LOSSES = st.one_of(st.just(0.0), st.floats(1e-9, 1e-2))


@st.composite
def problems(draw):
    units = draw(
        st.lists(
            st.lists(
                st.fixed_dictionaries({"bytes": BYTES, "time": st.floats(0, 50), "loss": LOSSES}),
                min_size=1,
                max_size=4,
            ),
            min_size=1,
            max_size=5,
        )
    )
    limits = {}
    for name in draw(st.sets(st.sampled_from(["bytes", "time", "loss"]), max_size=2)):
        low = sum(min(values[name] for values in unit) for unit in units)
        high = sum(max(values[name] for values in unit) for unit in units)
        limits[name] = low + draw(st.floats(-0.1, 1.0)) * (high - low)
    return units, draw(st.sampled_from(["bytes", "time", "loss"])), limits


def by_trying_all(units, minimise, limits):
    best = None
    for options in product(*(range(len(unit)) for unit in units)):
        totals = totals_of(units, options)
        if all(totals[name] <= limit for name, limit in limits.items()):
            best = min(math.inf if best is None else best, totals[minimise])
    return best


@settings(max_examples=25, deadline=None)
@given(problems())
def test_nothing_better_exists(problem):
    units, minimise, limits = problem
    best = by_trying_all(units, minimise, limits)
    found = solve(units, minimise, limits)
    if best is None:
        assert found is None
        return
    # A limit within the solver's tolerance of the only choice may be taken for broken, never
    # the other way round; none of the drawn ones is as near as that but by being equal.
    assert found is not None
    assert found.proven
    assert found.totals == totals_of(units, found.options)
    assert all(found.totals[name] <= limit for name, limit in limits.items())
    spread = sum(max(v[minimise] for v in unit) - min(v[minimise] for v in unit) for unit in units)
    assert found.totals[minimise] <= best + 1e-8 * spread


def test_a_greedy_choice_is_not_good_enough():
    """Most loss saved per byte first, it takes the first unit and has no room for the other two."""
    units = [
        [{"bytes": 0.0, "loss": 10.0}, {"bytes": 60.0, "loss": 0.0}],
        [{"bytes": 0.0, "loss": 8.0}, {"bytes": 50.0, "loss": 0.0}],
        [{"bytes": 0.0, "loss": 8.0}, {"bytes": 50.0, "loss": 0.0}],
    ]
    found = solve(units, "loss", {"bytes": 100.0})
    assert found is not None
    assert found.options == (0, 1, 1)
    assert found.totals == {"bytes": 100.0, "loss": 10.0}


def test_limits_hold_to_the_byte():
    units = [[{"bytes": 4e9, "loss": 0.0}, {"bytes": 1e9, "loss": 1e-7}] for _ in range(3)]
    assert solve(units, "loss", {"bytes": 9e9}).options.count(0) == 2
    assert solve(units, "loss", {"bytes": 9e9 - 1}).options.count(0) == 1
    assert solve(units, "loss", {"bytes": 3e9 - 1}) is None
    assert solve(units, "loss", {"bytes": math.inf}).options == (0, 0, 0)


def test_many_units_are_solved_at_once():
    """As many as VGGT-1B has layers; the loss found is at most that of the best uniform choice."""
    units = [
        [
            {"bytes": 4e6, "loss": 0.0},
            {"bytes": 1e6, "loss": 1e-6 * (1 + (7 * i) % 11)},
            {"bytes": 5.6e5, "loss": 1.2e-6 * (1 + (5 * i) % 13)},
            {"bytes": 5.3e5, "loss": 2e-6 * (1 + (5 * i) % 13)},
        ]
        for i in range(300)
    ]
    found = solve(units, "loss", {"bytes": 3e8})
    assert found is not None
    assert found.proven
    assert found.totals["bytes"] <= 3e8
    uniform = totals_of(units, [1] * 300)
    assert uniform["bytes"] == 3e8
    assert found.totals["loss"] < uniform["loss"]


@pytest.mark.parametrize(
    "units,limits",
    [
        ([], {}),
        ([[]], {}),
        ([[{"bytes": math.nan, "loss": 0.0}]], {}),
        ([[{"bytes": 1.0, "loss": 0.0}]], {"bytes": math.nan}),
    ],
)
def test_nonsense_is_refused(units, limits):
    with pytest.raises(ValueError, match=r"option|number"):
        solve(units, "bytes", limits)
