"""Depth after scale and shift: by hand, least squares indeed, and nothing wrong is aligned away."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from vggt_deploy.compare.truth_depth import DepthTruth, depth_truth

Array = NDArray[np.float64]


def depth_of(predicted: Array | list[float], true: Array | list[float]) -> DepthTruth:
    return depth_truth(
        np.asarray(predicted, np.float64), np.asarray(true, np.float64), {}, [len(true)]
    )


def noted(predicted: list[float], true: list[float]) -> str:
    notes: dict[str, str] = {}
    depth_truth(np.asarray(predicted), np.asarray(true), notes, [len(true)])
    return notes.get("depth", "")


def test_scale_and_shift_by_hand() -> None:
    """A = (1, 2, 3), b = (2, 2, 5): s = 1.5, t = 0; 1.5, 3, 4.5 against 2, 2, 5."""
    found = depth_of([1.0, 2.0, 3.0], [2.0, 2.0, 5.0])
    assert (found.affine_scale, found.affine_shift) == pytest.approx((1.5, 0.0))
    assert found.abs_rel_affine == pytest.approx((0.5 / 2 + 1.0 / 2 + 0.5 / 5) / 3)
    assert found.delta_125_affine == pytest.approx(1 / 3)  # 5 / 4.5 alone
    # The median alignment beside it: s = 2 / 2, so 1, 2, 3 against 2, 2, 5.
    assert found.scale == 1.0
    assert found.abs_rel == pytest.approx((0.5 + 0.0 + 0.4) / 3)


def test_an_affine_prediction_is_perfect_after_the_affine_fit_alone() -> None:
    true = np.linspace(1.0, 6.0, 50)
    found = depth_of((true - 0.7) / 3.0, true)
    assert (found.affine_scale, found.affine_shift) == pytest.approx((3.0, 0.7))
    assert found.abs_rel_affine == pytest.approx(0.0, abs=1e-12)
    assert found.delta_125_affine == 1.0
    # The twin: the median scale can't take the shift out.
    assert found.abs_rel > 0.05


@given(st.floats(1e-6, 1e6), st.integers(0, 2**32 - 1))
def test_the_unit_of_the_prediction_does_not_matter(unit: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    true = rng.uniform(1.0, 9.0, 40)
    noisy = true + rng.normal(0.0, 0.5, 40)
    one, other = depth_of(noisy, true), depth_of(unit * noisy, true)
    assert other.abs_rel_affine == pytest.approx(one.abs_rel_affine, rel=1e-6)
    assert other.delta_125_affine == one.delta_125_affine
    assert other.affine_scale * unit == pytest.approx(one.affine_scale, rel=1e-6)


@given(st.integers(0, 2**32 - 1))
def test_the_fit_is_least_squares(seed: int) -> None:
    """Numpy's own least squares, and no better neighbour."""
    rng = np.random.default_rng(seed)
    true = rng.uniform(1.0, 9.0, 30)
    predicted = 0.3 * true + rng.normal(0.0, 0.2, 30)
    found = depth_of(predicted, true)
    (scale, shift), *_ = np.linalg.lstsq(
        np.column_stack([predicted, np.ones(30)]), true, rcond=None
    )
    assert (found.affine_scale, found.affine_shift) == pytest.approx((scale, shift), rel=1e-6)


def test_near_for_far_is_not_aligned_away() -> None:
    """Depth upside down: an unbounded fit would call it perfect."""
    true = [1.0, 2.0, 3.0, 4.0]
    upside_down = [4.0, 3.0, 2.0, 1.0]
    found = depth_of(upside_down, true)
    assert (found.affine_scale, found.affine_shift) == (0.0, 2.5)
    assert found.abs_rel_affine == pytest.approx((1.5 + 0.25 + 0.5 / 3 + 1.5 / 4) / 4)
    assert "swapped" in noted(upside_down, true)
    (scale, shift), *_ = np.linalg.lstsq(
        np.column_stack([upside_down, np.ones(4)]), np.asarray(true), rcond=None
    )
    assert scale * np.asarray(upside_down) + shift == pytest.approx(true)


def test_a_prediction_that_knows_nothing_is_the_mean() -> None:
    for value in (0.0, 0.1, 1e-30, 1e30):
        found = depth_of([value] * 4, [1.0, 2.0, 3.0, 4.0])
        assert (found.affine_scale, found.affine_shift) == (0.0, 2.5)
        assert math.isfinite(found.abs_rel_affine)


def test_depth_that_is_not_finite_is_zero_after_both_fits() -> None:
    """Three right pixels fit exactly; the fourth is AbsRel 1, not the shift."""
    predicted = [1.0, 2.0, math.nan, 3.0]
    true = [3.0, 5.0, 7.0, 7.0]
    found = depth_of(predicted, true)
    assert (found.affine_scale, found.affine_shift) == pytest.approx((2.0, 1.0))
    assert found.abs_rel_affine == pytest.approx(1.0 / 4)
    assert found.delta_125_affine == 0.75
    assert noted(predicted, true).startswith("1 of 4 depths are not finite")
    nothing = depth_of([math.nan, math.inf, -math.inf], [1.0, 2.0, 3.0])
    assert (nothing.abs_rel_affine, nothing.delta_125_affine) == (1.0, 0.0)
    assert (nothing.affine_scale, nothing.affine_shift) == (0.0, 0.0)


def test_a_negative_depth_after_the_fit_counts_as_it_is() -> None:
    """Least squares may send a far too small prediction below zero; it fails delta 1.25."""
    found = depth_of([0.0, 10.0, 20.0], [0.5, 1.0, 20.0])
    assert (found.affine_scale, found.affine_shift) == pytest.approx((0.975, 21.5 / 3 - 9.75))
    fitted = np.array([0.0, 9.75, 19.5]) + found.affine_shift
    assert fitted[0] < 0.0
    assert found.abs_rel_affine == pytest.approx(
        (abs(fitted[0] - 0.5) / 0.5 + abs(fitted[1] - 1.0) + abs(fitted[2] - 20.0) / 20.0) / 3
    )
    assert found.delta_125_affine == pytest.approx(1 / 3)


def test_one_pair_of_scale_and_shift_for_all_pictures() -> None:
    """Two pictures, each perfect by itself and another unit in each: no single pair fits both."""
    true = np.array([1.0, 2.0, 3.0, 1.0, 2.0, 3.0])
    predicted = true * [1, 1, 1, 5, 5, 5]
    assert depth_of(predicted[:3], true[:3]).abs_rel_affine == pytest.approx(0.0, abs=1e-12)
    assert depth_of(predicted[3:], true[3:]).abs_rel_affine == pytest.approx(0.0, abs=1e-12)
    assert depth_of(predicted, true).abs_rel_affine > 0.2


def test_each_frame_has_its_own_error_under_the_alignment_of_all() -> None:
    """True 2 everywhere; frame 0 says 2, 2, frame 2 says 2, 3, frame 1 has no truth: s = 1."""
    predicted, true = np.array([2.0, 2.0, 2.0, 3.0]), np.full(4, 2.0)
    found = depth_truth(predicted, true, {}, [2, 0, 2])
    assert found.scale == 1.0  # aligned by themselves, frame 2 would have 0.2, not 0.25
    assert found.frame_pixels == (2, 0, 2)
    assert found.frame_abs_rel == (0.0, None, 0.25)
    assert found.abs_rel == pytest.approx(0.125)
    assert found.frame_abs_rel_affine[1] is None
    # Their mean by pixels is the scene's, of a NaN as well.
    noisy = np.random.default_rng(2).uniform(1.0, 3.0, 60)
    noisy[7] = np.nan
    found = depth_truth(noisy, np.linspace(1.0, 3.0, 60), {}, [10, 30, 20])
    for scene, frames in (
        (found.abs_rel, found.frame_abs_rel),
        (found.abs_rel_affine, found.frame_abs_rel_affine),
    ):
        assert scene == pytest.approx(np.average(np.array(frames, float), weights=[10, 30, 20]))
