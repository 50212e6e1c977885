"""Choosing, trying and choosing again, with networks that are formulas."""

from __future__ import annotations

import math

import pytest

from vggt_deploy.quantize.schemes import INT4_G32, INT8_PC_SYM
from vggt_deploy.search.choices import Choices, Option, Unit
from vggt_deploy.search.points import front_sizes
from vggt_deploy.search.records import Budgets, Point
from vggt_deploy.search.rounds import broken, excess, goal, meet

REST = 1000
FLOAT_MS = 20 * 4.0


def option(label, form, size, loss, drop, time_ms):
    formats = {} if form is None else {label: form}
    values = {"bytes": size, "output_mse": loss, "auc30": drop, "time_ms": time_ms}
    return Option(label, formats, values)


@pytest.fixture
def choices():
    """20 units; the i-th loses (i + 1)^3 times as much as the first, and four times it at 4 bit."""
    units = tuple(
        Unit(
            f"unit{i}",
            (
                option("float", None, 400.0, 0.0, 0.0, 4.0),
                option("int8_pc_sym", INT8_PC_SYM, 100.0, 1e-6 * (i + 1) ** 3, 0.0, 1.0),
                option("int4_g32", INT4_G32, 60.0, 4e-6 * (i + 1) ** 3, 0.0, 2.0),
            ),
        )
        for i in range(20)
    )
    return Choices(units, REST, 0)


def trying(budgets, auc_of_mse, seen):
    """A network that loses a true AUC by its predicted output_mse, whatever the table said."""

    def attempt(choice):
        seen.append(choice)
        mse = choice.totals["output_mse"]
        point = Point(
            name=f"try-{len(seen)}",
            kind="round",
            bytes=int(choice.totals["bytes"]) + REST,
            time_ms=choice.totals["time_ms"],
            speedup=FLOAT_MS / choice.totals["time_ms"],
            predicted=dict(choice.totals),
            loss={"output_mse": mse, "auc30": auc_of_mse(mse)},
        )
        return Point(**{**vars_of(point), "broken": broken(budgets, point)})

    return attempt


def vars_of(point):
    return {name: getattr(point, name) for name in Point.__dataclass_fields__}


def found_with(choices, budgets, auc_of_mse, minimise="output_mse", rounds=8):
    seen = []
    wanted = goal(budgets, choices, FLOAT_MS, minimise)
    found = meet(choices, wanted, budgets, trying(budgets, auc_of_mse, seen), rounds=rounds)
    assert len(found.points) == len(seen) <= rounds
    return found


def test_a_size_is_kept_with_the_least_loss(choices):
    budgets = Budgets(max_bytes=REST + 20 * 100)
    found = found_with(choices, budgets, lambda mse: 0.0)
    (point,) = found.points
    assert found.chosen == 0
    assert point.bytes <= budgets.max_bytes
    uniform = sum(1e-6 * (i + 1) ** 3 for i in range(20))  # all at 8 bit, of the same size
    assert point.loss["output_mse"] < uniform


def test_a_drop_that_the_table_did_not_foresee_is_met_by_trying(choices):
    """By the table AUC loses nothing at all; in truth it loses 30 times the output_mse."""
    budgets = Budgets(max_drop={"auc30": 2.0})
    found = found_with(choices, budgets, lambda mse: 30 * mse)
    assert found.points[0].broken  # everything at 4 bit, as the table allows it
    chosen = found.points[found.chosen]
    assert not chosen.broken
    assert chosen.loss["auc30"] <= 2.0
    # Not merely any that keeps the budget: near the smallest that could (all between 2 and 1).
    assert chosen.loss["auc30"] > 1.0
    assert chosen.bytes < REST + 20 * 100
    assert chosen.bytes == min(point.bytes for point in found.points if not point.broken)


def test_the_first_choice_is_taken_where_it_keeps_the_drop(choices):
    found = found_with(choices, Budgets(max_drop={"auc30": 2.0}), lambda mse: 0.1)
    assert len(found.points) == 1
    assert found.points[found.chosen].bytes == REST + 20 * 60


def test_predicted_drops_bound_the_choice(choices):
    budgets = Budgets(max_drop={"output_mse": 1e-3})
    found = found_with(choices, budgets, lambda mse: 0.0)
    assert found.points[found.chosen].loss["output_mse"] <= 1e-3


def test_a_speed_is_kept(choices):
    """8 bit is four times as fast and 4 bit twice: 2.5 needs most units at 8 bit."""
    found = found_with(choices, Budgets(min_speedup=2.5), lambda mse: 0.0)
    point = found.points[found.chosen]
    assert 2.5 <= point.speedup < 4.0  # all at 8 bit would be 4, and lose more than it has to


def test_nothing_is_small_enough(choices):
    found = found_with(choices, Budgets(max_bytes=REST + 20 * 60 - 1), lambda mse: 0.0)
    assert (found.points, found.chosen, found.nearest) == ((), None, None)


def test_a_drop_that_no_choice_keeps_names_the_nearest(choices):
    """Even the float network loses 3 points here: no ceiling helps."""
    budgets = Budgets(max_drop={"auc30": 2.0})
    found = found_with(choices, budgets, lambda mse: 3.0 + mse)
    assert found.chosen is None
    nearest = found.points[found.nearest]
    assert nearest.broken == (f"auc30 lost {nearest.loss['auc30']:.4g}, at most 2 asked for",)
    assert excess(budgets, nearest) == min(excess(budgets, point) for point in found.points)


def test_size_and_drop_together(choices):
    budgets = Budgets(max_bytes=REST + 20 * 80, max_drop={"auc30": 0.5})
    found = found_with(choices, budgets, lambda mse: 30 * mse)
    # The least loss at that size is more than half a point, so there is no use in trying again.
    assert found.chosen is None
    assert len(found.points) == 1
    wider = Budgets(max_bytes=REST + 20 * 80, max_drop={"auc30": 5.0})
    found = found_with(choices, wider, lambda mse: 30 * mse)
    assert found.points[found.chosen].bytes <= REST + 20 * 80


def test_rounds_are_bounded(choices):
    found = found_with(choices, Budgets(max_drop={"auc30": 2.0}), lambda mse: 30 * mse, rounds=2)
    assert len(found.points) <= 2


def test_excess_of_budgets():
    point = Point("p", "round", 1500, 10.0, 2.0, None, {"auc30": 1.0})
    assert excess(Budgets(max_bytes=2000, max_drop={"auc30": 1.0}), point) == 0.0
    assert excess(Budgets(max_bytes=1000), point) == pytest.approx(0.5)
    assert excess(Budgets(min_speedup=3.0), point) == pytest.approx(0.5)
    assert excess(Budgets(max_drop={"auc30": 0.5}), point) == pytest.approx(1.0)
    assert excess(Budgets(max_drop={"auc30": 0.0}), point) == pytest.approx(1.0)
    assert math.isinf(excess(Budgets(max_drop={"abs_rel": 0.1}), point))


def test_sizes_along_the_front():
    sizes = [500, 1000, 1002, 2000]
    assert front_sizes(sizes, 4000, 3) == [500, 1000, 2000]  # 1002 is 1000 once more
    assert front_sizes(sizes, 4000, 2) == [500, 2000]
    assert front_sizes(sizes, 4000, 1) == [500]
    wider = front_sizes(sizes, 4000, 6)
    assert len(wider) == 6
    assert wider == sorted(wider)
    assert {500, 1000, 2000} <= set(wider)
    assert max(wider) < 4000
    assert front_sizes([], 4000, 3) == []
