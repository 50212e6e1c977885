"""Tensor metrics against values worked out by hand; each with a twin that is wrong and fails."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
from skimage.metrics import structural_similarity

from vggt_deploy.compare.metrics import CROSS_ENTROPY_REASON, TensorMetrics, tensor_metrics
from vggt_deploy.errors import CompareError
from vggt_deploy.typed_json import decode, parse

REFERENCE = np.array([[[0.0, 3.0, 4.0]]], dtype=np.float32)
VARIANT = np.array([[[1.0, 3.0, 2.0]]], dtype=np.float32)


def test_hand_computed() -> None:
    m = tensor_metrics("pose_enc", VARIANT, REFERENCE)  # errors 1, 0, -2
    assert m.mae == pytest.approx(1.0)
    assert m.mse == pytest.approx(5.0 / 3.0)
    assert m.rmse == pytest.approx(math.sqrt(5.0 / 3.0))
    assert m.max_abs == 2.0
    assert m.psnr_peak == 4.0
    assert m.psnr_db == pytest.approx(10.0 * math.log10(16.0 / (5.0 / 3.0)))
    assert m.cosine == pytest.approx(17.0 / (math.sqrt(14.0) * 5.0))
    assert m.relative_l2 == pytest.approx(math.sqrt(5.0) / 5.0)
    assert m.relative_max == pytest.approx(0.5)
    assert m.values == 3


def test_twin_the_reference_is_not_interchangeable() -> None:
    m = tensor_metrics("pose_enc", REFERENCE, VARIANT)
    assert m.relative_l2 != pytest.approx(math.sqrt(5.0) / 5.0)
    assert m.psnr_peak != 4.0


def test_cross_entropy_is_never_a_number() -> None:
    m = tensor_metrics("pose_enc", VARIANT, REFERENCE)
    assert m.cross_entropy is None
    assert m.notes["cross_entropy"] == CROSS_ENTROPY_REASON


def test_identical_has_no_psnr_and_says_so() -> None:
    m = tensor_metrics("pose_enc", REFERENCE, REFERENCE)
    assert m.mae == m.mse == m.relative_l2 == 0.0
    assert m.psnr_db is None
    assert "identical" in m.notes["psnr_db"]
    assert m.cosine == pytest.approx(1.0)


def test_constant_and_zero_references_have_reasons() -> None:
    constant = tensor_metrics("pose_enc", VARIANT, np.full_like(REFERENCE, 2.0))
    assert constant.psnr_db is None
    assert "constant" in constant.notes["psnr_db"]
    zero = tensor_metrics("pose_enc", VARIANT, np.zeros_like(REFERENCE))
    assert zero.cosine is None
    assert zero.relative_l2 is None
    assert {"cosine", "relative_l2", "relative_max"} <= zero.notes.keys()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_counted_and_never_hidden(bad: float) -> None:
    variant = VARIANT.copy()
    variant[0, 0, 1] = bad
    m = tensor_metrics("pose_enc", variant, REFERENCE)
    assert not m.finite
    assert m.nonfinite_variant == 1
    assert m.mae is None
    assert m.psnr_db is None
    assert "1 of 3 values of the variant" in m.notes["all"]
    reference = tensor_metrics("pose_enc", VARIANT, variant)
    assert reference.finite
    assert reference.nonfinite_reference == 1
    assert "of the reference" in reference.notes["all"]


def test_large_offset_keeps_its_digits() -> None:
    """In float32 the sum of a million squares around 1e4 would lose the error of 1e-3."""
    reference = np.full((1, 1_000_000), 10_000.0, dtype=np.float32)
    variant = reference.copy()
    variant[0, ::2] += np.float32(0.0009765625)
    m = tensor_metrics("pose_enc", variant, reference)
    assert m.mae == pytest.approx(0.0009765625 / 2, rel=1e-12)
    assert m.cosine == pytest.approx(1.0, abs=1e-13)


def _maps() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:24, 0:32] / 10.0
    reference = np.stack([np.sin(x) + y, np.cos(x + y)])[None].astype(np.float32)
    return reference + 0.1 * rng.standard_normal(reference.shape).astype(np.float32), reference


def test_ssim_is_the_mean_over_frames_in_the_range_of_the_reference() -> None:
    variant, reference = _maps()
    m = tensor_metrics("depth_conf", variant, reference)
    span = float(reference.max()) - float(reference.min())
    frames = [
        structural_similarity(
            reference[0, i].astype(np.float64), variant[0, i].astype(np.float64), data_range=span
        )
        for i in range(2)
    ]
    assert m.ssim == pytest.approx(np.mean(frames), abs=1e-12)
    assert 0.0 < m.ssim < 1.0
    wrong = structural_similarity(reference[0, 0], variant[0, 0], data_range=1.0)
    assert m.ssim != pytest.approx(wrong, abs=1e-3)


def test_ssim_by_hand_for_a_constant_shift() -> None:
    """A shifted 7 x 7 map, one window: (2 ab + c1) / (a^2 + b^2 + c1), the contrast term is 1."""
    reference = np.zeros((1, 1, 7, 7), dtype=np.float32)
    reference[0, 0, :, ::2] = 1.0  # four columns of seven: mean 4/7, range 1
    variant = reference + np.float32(0.5)
    a, b, c1 = 4.0 / 7.0, 4.0 / 7.0 + 0.5, 0.01**2
    m = tensor_metrics("depth_conf", variant, reference)
    assert m.ssim == pytest.approx((2 * a * b + c1) / (a * a + b * b + c1), abs=1e-9)


def test_ssim_takes_channels_and_has_reasons() -> None:
    variant, reference = _maps()
    points = np.stack([reference] * 3, -1)
    shifted = np.stack([variant] * 3, -1)
    alone = tensor_metrics("depth_conf", variant, reference).ssim
    assert tensor_metrics("world_points", shifted, points).ssim == pytest.approx(alone, abs=1e-12)
    assert "not a map" in tensor_metrics("pose_enc", VARIANT, REFERENCE).notes["ssim"]
    small = tensor_metrics("depth_conf", variant[:, :, :6, :6], reference[:, :, :6, :6])
    assert small.ssim is None
    assert "7 x 7" in small.notes["ssim"]


def test_shapes_must_agree() -> None:
    with pytest.raises(CompareError, match="shape"):
        tensor_metrics("pose_enc", VARIANT[..., :2], REFERENCE)


def test_json_round_trip() -> None:
    m = tensor_metrics("pose_enc", VARIANT, REFERENCE)
    assert decode(TensorMetrics, parse(json.dumps(asdict(m))), "", ValueError) == m
