"""The choice of view sets: different ones, whole scenes, and no outliers."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vggt_deploy.errors import UsageError
from vggt_deploy.quantize.selection import (
    LIMIT,
    Selection,
    choose,
    farthest_first,
    outliers_of,
    pass_bounds,
)

Scene = dict[str, NDArray[np.float64]]


def views(name: str, centre: int, count: int, *, seed: int = 0, size: int = 8) -> Scene:
    """Pictures around one direction of space."""
    generator = np.random.default_rng([seed, centre])
    middle = np.eye(size)[centre]
    return {f"{name}{i}": middle + 0.05 * generator.standard_normal(size) for i in range(count)}


def test_the_sets_that_differ_are_chosen() -> None:
    """Nine sets of three places, one after the other: one of each, not the first three."""
    scene = views("a", 0, 9) | views("b", 1, 9) | views("c", 2, 9)
    found = choose([scene], 3, 3)
    assert {images[0][0] for images in found.chosen} == {"a", "b", "c"}
    assert [found.sets[i].images[0][0] for i in range(3)] == ["a", "a", "a"]
    chosen = sorted(x.distance for x in found.sets if x.chosen)
    assert chosen[0] == 0.0
    assert min(chosen[1:]) > 0.9
    assert all(x.distance < 0.4 for x in found.sets if not x.chosen)


def test_no_set_mixes_scenes_and_sets_are_what_passes_are() -> None:
    scenes = [views("a", 0, 5), views("b", 1, 2), views("c", 2, 7)]
    found = choose(scenes, 3, 6)
    assert [len(x.images) for x in found.sets] == [2, 3, 2, 2, 3, 2]
    assert all(len({name[0] for name in x.images}) == 1 for x in found.sets)
    assert [name for x in found.sets for name in x.images] == [n for s in scenes for n in s]
    assert list(pass_bounds(9, 8)) == [(0, 4), (4, 9)]


def test_a_foreign_frame_is_dropped_and_a_second_place_is_not() -> None:
    scene = views("a", 0, 8) | views("b", 1, 5)
    assert outliers_of(scene) == ()
    scene["finger"] = np.eye(8)[7]
    (outlier,) = outliers_of(scene)
    assert outlier.image == "finger"
    assert outlier.distance > 0.8
    assert outlier.score > LIMIT
    found = choose([scene], 4, 2)
    assert [x.image for x in found.outliers] == ["finger"]
    assert all("finger" not in x.images for x in found.sets)
    # Without the rule it would be chosen: nothing is farther from all others.
    names = list(scene)
    order = farthest_first(np.stack([x / np.linalg.norm(x) for x in scene.values()]), 3)
    assert "finger" in {names[index] for index, _ in order}


def test_too_few_pictures_or_nothing_to_measure_by_drops_none() -> None:
    few = views("a", 0, 4) | {"odd": np.eye(8)[7]}
    assert outliers_of(few) == ()
    same = {f"p{i}": np.eye(8)[0] for i in range(9)}
    assert outliers_of(same) == ()
    assert outliers_of(same | {"odd": np.eye(8)[7]}) == ()
    steady = {f"p{i}": np.eye(8)[0] + 1e-3 * np.eye(8)[1] * i for i in range(9)}
    assert outliers_of(steady) == ()  # nor its ends
    (jump,) = outliers_of(steady | {"odd": np.eye(8)[0] + 0.1 * np.eye(8)[1]})
    assert jump.image == "odd"


def test_more_than_there_is_is_refused() -> None:
    scene = views("a", 0, 8) | {"finger": np.eye(8)[7]}
    with pytest.raises(UsageError, match="make 2 without 1 outliers") as caught:
        choose([scene], 4, 3)
    assert "ask for 2 or fewer" in caught.value.fix
    with pytest.raises(UsageError, match=r"the pictures make 2\n"):
        choose([views("a", 0, 4)], 2, 3)
    with pytest.raises(UsageError, match="0 view sets"):
        choose([scene], 4, 0)


def covers(found: Selection, scenes: list[Scene]) -> None:
    named = [x.image for x in found.outliers] + [n for x in found.sets for n in x.images]
    assert sorted(named) == sorted(name for scene in scenes for name in scene)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.integers(1, 4),
    st.integers(0, 2**16),
    st.data(),
)
def test_every_picture_is_chosen_left_or_dropped(
    counts: list[int], per_pass: int, seed: int, data: st.DataObject
) -> None:
    generator = np.random.default_rng(seed)
    scenes = [
        {f"{s}/{i}": generator.standard_normal(5) for i in range(count)}
        for s, count in enumerate(counts)
    ]
    sets = len(choose(scenes, per_pass, 1).sets)
    wanted = data.draw(st.integers(1, sets))
    found = choose(scenes, per_pass, wanted)
    covers(found, scenes)
    assert len(found.chosen) == wanted
    assert all(1 <= len(x.images) <= per_pass for x in found.sets)
    assert all(len({name[0] for name in x.images}) == 1 for x in found.sets)
    # The same again, and features that are larger say nothing else.
    larger = [{name: 1024 * feature for name, feature in scene.items()} for scene in scenes]
    assert choose(scenes, per_pass, wanted) == found == choose(larger, per_pass, wanted)
    # One more keeps those that were there.
    if wanted < sets:
        assert set(found.chosen) < set(choose(scenes, per_pass, wanted + 1).chosen)


def radius(points: NDArray[np.float64], chosen: tuple[int, ...]) -> float:
    """The largest distance of any to its nearest chosen."""
    apart = np.linalg.norm(points[:, None] - points[list(chosen)][None], axis=2)
    return float(apart.min(axis=1).max())


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**16), st.integers(2, 3))
def test_the_choice_is_near_the_best_there_is(seed: int, count: int) -> None:
    """k-center by farthest point is within twice the best radius (Gonzalez 1985)."""
    generator = np.random.default_rng(seed)
    points = generator.standard_normal((8, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    found = farthest_first(points, count)
    best = min(radius(points, chosen) for chosen in combinations(range(8), count))
    assert radius(points, tuple(index for index, _ in found)) <= 2 * best + 1e-9
    for i in range(1, count):  # what is told as distance is that
        before = [index for index, _ in found[:i]]
        exact = np.linalg.norm(points[before] - points[found[i][0]], axis=1).min()
        assert found[i][1] == pytest.approx(float(exact), rel=1e-9)


def test_the_first_ones_are_not_near_the_best() -> None:
    """The twin of the bound: a choice by order breaks it."""
    points = np.stack([np.eye(3)[0] + 1e-3 * i * np.eye(3)[1] for i in range(5)] + [np.eye(3)[2]])
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    best = min(radius(points, chosen) for chosen in combinations(range(6), 2))
    assert radius(points, (0, 1)) > 2 * best
    assert radius(points, tuple(i for i, _ in farthest_first(points, 2))) <= 2 * best


def test_equal_sets_go_by_order() -> None:
    points = np.tile(np.eye(3)[0], (4, 1))
    assert farthest_first(points, 3) == [(0, 0.0), (1, 0.0), (2, 0.0)]
