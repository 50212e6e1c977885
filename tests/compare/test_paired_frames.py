"""Losses of one scene: its frames drawn again, by hand over all draws, and what has no interval."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pytest
from numpy.typing import NDArray

from vggt_deploy.compare.paired import (
    FEWEST_FRAMES,
    RESAMPLES,
    Difference,
    TruthLoss,
    drawn_pairs,
    drawn_pixels,
    losses,
    truth_loss,
)
from vggt_deploy.compare.truth import DepthTruth, PointTruth, PoseTruth, TruthMetrics, auc

Array = NDArray[np.float64]
RNG = np.random.default_rng(3)
FIVE = RNG.uniform(0.0, 40.0, 10)  # errors of the pairs of 5 frames, degrees


def posed(errors: Array | list[float]) -> TruthMetrics:
    """A scene whose pairs have these errors."""
    given = np.asarray(errors, np.float64)
    pose = PoseTruth(
        pairs=len(given),
        auc_3=auc(given, 3.0),
        auc_5=auc(given, 5.0),
        auc_30=auc(given, 30.0),
        **dict.fromkeys(("rra_5", "rra_15", "rra_30"), 50.0),
        rta_5=None,
        rta_15=None,
        rta_30=None,
        rotation_median_deg=1.0,
        direction_median_deg=None,
        pairs_without_baseline=0,
        errors_deg=tuple(given.tolist()),
    )
    return TruthMetrics(pose)


def deep(pixels: list[int], abs_rel: list[float | None]) -> TruthMetrics:
    """A scene whose frames have these; affine AbsRel is half of AbsRel."""
    known = [(n, value) for n, value in zip(pixels, abs_rel, strict=True) if value is not None]
    mean = sum(n * value for n, value in known) / sum(pixels)
    half = tuple(None if value is None else value / 2 for value in abs_rel)
    depth = DepthTruth(
        sum(pixels), 1.0, mean, 1.0, 1.0, 0.0, mean / 2, 1.0, tuple(pixels), tuple(abs_rel), half
    )
    return TruthMetrics(depth=depth)


def lost(found: TruthLoss, name: str) -> Difference:
    difference = getattr(found, name)
    assert isinstance(difference, Difference)
    return difference


def enumerated_pairs(values: list[float], frames: int) -> Counter[float]:
    """All draws of frames, one by one, each pair of different frames by its weight."""
    of_pair = dict(zip(combinations(range(frames), 2), values, strict=True))
    means: Counter[float] = Counter()
    for draw in product(range(frames), repeat=frames):
        seen = [
            of_pair[min(a, b), max(a, b)] for a, b in combinations(draw, 2) if a != b
        ]  # a copy for each time that both were drawn: c_i c_j of them
        if seen:
            means[round(sum(seen) / len(seen), 9)] += 1
    return means


# --- by hand, over all draws


def test_pairs_of_three_frames_by_hand() -> None:
    """27 draws: 3 have no pair; in 18 one frame came twice, so one pair is all; in 6 all are."""
    by_hand = enumerated_pairs([1.0, 2.0, 6.0], 3)
    assert by_hand == {1.0: 6, 2.0: 6, 6.0: 6, 3.0: 6}
    drawn = drawn_pairs(np.array([1.0, 2.0, 6.0]), 3)
    found = Counter(np.round(drawn, 9).tolist())
    assert set(found) == set(by_hand)
    assert len(drawn) == pytest.approx(RESAMPLES * 24 / 27, abs=4 * (RESAMPLES * 0.1) ** 0.5)
    for count in found.values():
        assert count / len(drawn) == pytest.approx(0.25, abs=0.02)


def test_pairs_of_four_frames_are_weighed_by_how_often_both_were_drawn() -> None:
    values = [0.0, 1.0, 5.0, 2.0, 9.0, 4.0]
    by_hand = enumerated_pairs(values, 4)
    drawn = drawn_pairs(np.array(values), 4)
    found = Counter(np.round(drawn, 9).tolist())
    assert set(found) <= set(by_hand)
    total = sum(by_hand.values())
    for value, count in by_hand.items():
        assert found[value] / len(drawn) == pytest.approx(count / total, abs=0.02)


def test_frames_weigh_by_their_pixels_by_hand() -> None:
    pixels, values = np.array([100.0, 10.0, 1.0]), np.array([0.1, 0.4, -0.2])
    by_hand: Counter[float] = Counter()
    for draw in product(range(3), repeat=3):
        weights = pixels[list(draw)]
        by_hand[round(float(weights @ values[list(draw)] / weights.sum()), 9)] += 1
    found = Counter(np.round(drawn_pixels(values, pixels), 9).tolist())
    assert set(found) == set(by_hand)
    for value, count in by_hand.items():
        assert found[value] / RESAMPLES == pytest.approx(count / 27, abs=0.02)


def test_the_interval_is_the_middle_of_the_draws() -> None:
    """Of three frames each pair alone is a quarter of the draws: the ends are least and most."""
    found = truth_loss([posed([3.0, 6.0, 18.0])], [posed([0.0, 0.0, 0.0])])
    assert lost(found, "auc_30").mean == pytest.approx(30.0)  # of 10, 20 and 60
    assert (lost(found, "auc_30").low, lost(found, "auc_30").high) == pytest.approx((10.0, 60.0))
    assert (lost(found, "auc_30").n, lost(found, "auc_30").over) == (3, "frames")
    assert lost(found, "auc_5").mean == pytest.approx((60.0 + 100.0 + 100.0) / 3)
    assert lost(found, "auc_5").low == pytest.approx(60.0)
    assert lost(found, "auc_3").low == pytest.approx(100.0)


def test_depth_of_one_scene_by_hand() -> None:
    ours = deep([100, 0, 100, 100], [0.2, None, 0.3, 0.7])
    found = truth_loss([ours], [deep([100, 0, 100, 100], [0.1, None, 0.1, 0.1])])
    difference = lost(found, "abs_rel")
    assert difference.mean == pytest.approx(0.3)
    # Of three equal frames the same one thrice comes in 1 of 27 draws, more than 2.5 %.
    assert (difference.low, difference.high) == pytest.approx((0.1, 0.6))
    assert (difference.n, difference.over, difference.scenes) == (3, "frames", 1)  # one has none
    affine = lost(found, "abs_rel_affine")
    assert (affine.low, affine.high) == pytest.approx((0.05, 0.3))


# --- what it must not depend on, and what pairing is for


def test_the_order_and_the_level_of_the_frames_do_not_matter() -> None:
    other = FIVE + RNG.uniform(0.0, 3.0, 10)
    found = lost(truth_loss([posed(other)], [posed(FIVE)]), "auc_30")
    assert found == lost(truth_loss([posed(other)], [posed(FIVE)]), "auc_30")
    back = lost(truth_loss([posed(FIVE)], [posed(other)]), "auc_30")
    assert back.low is not None
    assert back.high is not None
    assert (-back.high, -back.low) == pytest.approx((found.low, found.high))
    # Frames renamed: the same pairs in another order. Other draws, so nearly the same interval.
    order = RNG.permutation(5)
    where = {pair: index for index, pair in enumerate(combinations(range(5), 2))}
    moved = [
        where[min(order[i], order[j]), max(order[i], order[j])]
        for i, j in combinations(range(5), 2)
    ]
    renamed = lost(truth_loss([posed(other[moved])], [posed(FIVE[moved])]), "auc_30")
    assert renamed.mean == pytest.approx(found.mean)
    assert (renamed.low, renamed.high) == pytest.approx((found.low, found.high), abs=0.35)


def test_nothing_lost_is_nothing_lost() -> None:
    scene = TruthMetrics(posed(FIVE).pose, deep([3, 4, 5], [0.1, 0.2, 0.4]).depth)
    found = truth_loss([scene], [scene])
    for name, frames in (("auc_30", 5), ("auc_5", 5), ("auc_3", 5), ("abs_rel", 3)):
        assert lost(found, name) == Difference(frames, 0.0, 0.0, 0.0, "frames")


def test_unpaired_draws_would_be_wider() -> None:
    """The twin: other frames for the variant than for FP32 bring back how hard a frame is."""
    base = RNG.uniform(0.0, 30.0, 45)  # pairs of 10 frames
    ours, theirs = posed(base + 1.0), posed(base)
    found = lost(truth_loss([ours], [theirs]), "auc_30")
    assert found.low is not None
    assert found.high is not None
    levels = [100.0 * np.clip(1.0 - each / 30.0, 0.0, 1.0) for each in (base + 1.0, base)]
    one, other = (drawn_pairs(level, 10) for level in levels)
    unpaired = RNG.permutation(other) - one
    low, high = np.percentile(unpaired, [2.5, 97.5])
    assert high - low > 5.0 * (found.high - found.low)
    paired = other - one
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(paired, [2.5, 97.5])))


def test_the_interval_finds_a_loss_in_every_frame_and_holds_0_where_they_differ() -> None:
    worse = lost(truth_loss([posed(FIVE + 2.0)], [posed(FIVE)]), "auc_30")
    assert worse.low is not None
    assert worse.low > 0.0
    mixed = np.where(np.arange(10) % 2, 3.0, -3.0) + FIVE.clip(3.0, 27.0)
    either = lost(truth_loss([posed(mixed)], [posed(FIVE.clip(3.0, 27.0))]), "auc_30")
    assert either.low is not None
    assert either.high is not None
    assert either.low < 0.0 < either.high


def test_how_often_the_interval_of_few_frames_holds_the_truth() -> None:
    """As the head of `paired` has it: too seldom, and more so the fewer there are."""
    rng = np.random.default_rng(8)
    held = {}
    for frames in (3, 10):
        first, second = np.triu_indices(frames, 1)
        inside = 0
        for _ in range(100):
            effect = rng.normal(size=frames)
            drawn = drawn_pairs(
                effect[first] + effect[second] + rng.normal(0, 0.5, len(first)), frames
            )
            low, high = np.percentile(drawn, [2.5, 97.5])
            inside += low <= 0.0 <= high
        held[frames] = inside
    assert 38 <= held[3] <= 68
    assert 79 <= held[10] <= 97


# --- where there is none


def test_too_few_frames_have_no_interval() -> None:
    """Two frames are one pair: every draw that has it gives the same, which would look sure."""
    assert FEWEST_FRAMES == 3
    found = lost(truth_loss([posed([9.0])], [posed([0.0])]), "auc_30")
    assert found == Difference(1, pytest.approx(30.0), None, None)
    two = truth_loss([deep([5, 0, 5], [0.2, None, 0.3])], [deep([5, 0, 5], [0.1, None, 0.1])])
    assert (lost(two, "abs_rel").low, lost(two, "abs_rel").over) == (None, "scenes")


def test_medians_have_no_interval_of_one_scene() -> None:
    points = PointTruth(10, 0.1, 0.1, 1.0, 0.3, 0.2, None, None)
    ours = replace(posed(FIVE), points=points)
    theirs = replace(posed(FIVE), points=replace(points, median_relative=0.1))
    found = truth_loss([ours], [theirs])
    assert lost(found, "point_error") == Difference(1, pytest.approx(0.1), None, None)


def test_several_scenes_are_drawn_as_scenes() -> None:
    found = truth_loss([posed(FIVE + 1.0), posed(FIVE + 5.0)], [posed(FIVE), posed(FIVE)])
    assert (lost(found, "auc_30").n, lost(found, "auc_30").over) == (2, "scenes")
    assert lost(found, "auc_30").scenes == 2


def test_other_frames_can_not_be_paired() -> None:
    with pytest.raises(ValueError, match="not of the same frames"):
        truth_loss([posed(FIVE)], [posed([1.0, 2.0, 3.0])])
    with pytest.raises(ValueError, match="not those of the same frames"):
        truth_loss([deep([3, 4, 5], [0.1] * 3)], [deep([5, 4, 3], [0.1] * 3)])


def test_json_keeps_what_was_drawn() -> None:
    found = truth_loss([posed(FIVE + 1.0)], [posed(FIVE)])
    assert TruthLoss.from_json(found.to_json()) == found
    assert found.to_json()["auc_30"]["over"] == "frames"
    assert losses(found) == (found.auc_30, found.auc_5, found.auc_3)
    assert losses(None) == ()
