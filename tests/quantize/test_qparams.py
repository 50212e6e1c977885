"""The maths against its definition, written out slowly in NumPy, and against wrong variants."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vggt_deploy.errors import QuantizeError
from vggt_deploy.quantize.qparams import TORCH_DTYPE, QuantizedTensor, dequantize, quantize
from vggt_deploy.quantize.schemes import (
    INT4_G32,
    INT8_PC_ASYM,
    INT8_PC_SYM,
    INT8_PT_ASYM,
    INT8_PT_SYM,
    PerChannel,
    PerGroup,
    PerTensor,
    Precision,
    WeightFormat,
)

INT4_G4 = WeightFormat(4, PerGroup(4))
INT4_PC_ASYM = WeightFormat(4, PerChannel(), symmetric=False)
INT8_G4_ASYM = WeightFormat(8, PerGroup(4), symmetric=False)
FORMATS = [
    INT8_PT_SYM,
    INT8_PT_ASYM,
    INT8_PC_SYM,
    INT8_PC_ASYM,
    INT4_G4,
    INT4_G32,
    INT4_PC_ASYM,
    INT8_G4_ASYM,
]
PRECISIONS: list[Precision] = ["fp32", "fp16", "bf16"]

weights = arrays(
    np.float32,
    st.tuples(st.integers(1, 6), st.integers(1, 11)),
    elements=st.one_of(
        st.floats(-1, 1, width=32),
        st.floats(-(2.0**100), 2.0**100, width=32),
        st.floats(-(2.0**-120), 2.0**-120, width=32),  # down to subnormal scales
        st.integers(-300, 300).map(lambda i: i / 2),  # ties
    ),
)
by_format = pytest.mark.parametrize("form", FORMATS, ids=lambda f: f.label)


def cells(form: WeightFormat, n: int, k: int) -> list[tuple[slice, slice]]:
    """The regions of a weight [n, k] that share a scale, in the order of the scales."""
    match form.granularity:
        case PerTensor():
            return [(slice(0, n), slice(0, k))]
        case PerChannel():
            return [(slice(i, i + 1), slice(0, k)) for i in range(n)]
        case PerGroup(size):
            return [
                (slice(i, i + 1), slice(j, min(j + size, k)))
                for i in range(n)
                for j in range(0, k, size)
            ]


def defined(w: np.ndarray, form: WeightFormat) -> tuple[np.ndarray, list[np.float32], list[int]]:
    """The definition: stored integers, scales, stored zero points; FP32 scales."""
    q = np.zeros(w.shape, np.int64)
    scales, zeros = [], []
    tiny = np.finfo(np.float32).tiny
    for rows, columns in cells(form, *w.shape):
        part = w[rows, columns]
        low, high = min(float(part.min()), 0.0), max(float(part.max()), 0.0)
        levels = 2 ** (form.bits - 1) - 1 if form.symmetric else 2**form.bits - 1
        span = max(high, -low) if form.symmetric else high - low
        scale = max(np.float32(span / levels), tiny) if span else np.float32(1)
        if form.symmetric:
            zero, least, most, shift = 0, -levels, levels, 0
        else:
            zero = int(np.clip(np.rint(np.float32(-low) / scale), 0, levels))
            least, most, shift = 0, levels, 2 ** (form.bits - 1)
        q[rows, columns] = np.clip(np.rint(part / scale) + zero, least, most) - shift
        scales.append(scale)
        zeros.append(zero - shift)
    return q, scales, zeros


def check(w: np.ndarray, qt: QuantizedTensor) -> None:
    q, scales, zeros = defined(w, qt.format)
    np.testing.assert_array_equal(qt.q.numpy(), q)
    np.testing.assert_array_equal(qt.scale.flatten().numpy(), np.array(scales, np.float32))
    np.testing.assert_array_equal(qt.zero_point.flatten().numpy(), zeros)


@by_format
@settings(max_examples=60, deadline=None)
@given(w=weights)
def test_integers_scales_and_zero_points_are_as_defined(w: np.ndarray, form: WeightFormat) -> None:
    check(w, quantize(torch.from_numpy(w), form))


def _truncated(w: torch.Tensor, qt: QuantizedTensor) -> torch.Tensor:
    return (w / qt.scale[:, None]).trunc().to(torch.int8)


def _half_away(w: torch.Tensor, qt: QuantizedTensor) -> torch.Tensor:
    x = w / qt.scale[:, None]
    return (x.abs() + 0.5).floor().mul(x.sign()).to(torch.int8)


@pytest.mark.parametrize("wrong", [_truncated, _half_away])
def test_wrong_rounding_is_noticed(
    wrong: Callable[[torch.Tensor, QuantizedTensor], torch.Tensor],
) -> None:
    w = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 3.7]])  # scale 1
    qt = quantize(w, INT8_PC_SYM)
    assert qt.q.tolist() == [[127, 0, 2, 2, 0, -2, -2, 4]]
    check(w.numpy(), qt)
    with pytest.raises(AssertionError):
        check(w.numpy(), replace(qt, q=wrong(w, qt)))


def test_unsigned_values_wrapped_into_int8_are_noticed() -> None:
    """uint8 cast to int8 without the shift of 128: 200 becomes -56 with the zero point unmoved."""
    w = torch.linspace(-0.2, 1.0, 31).reshape(1, -1)
    qt = quantize(w, INT8_PC_ASYM)
    check(w.numpy(), qt)
    unsigned = qt.q.to(torch.int16) + 128
    wrapped = replace(
        qt,
        q=unsigned.to(torch.int8),
        zero_point=(qt.zero_point.to(torch.int16) + 128).to(torch.int8),
    )
    with pytest.raises(AssertionError):
        check(w.numpy(), wrapped)
    assert float((dequantize(qt) - w).abs().max()) <= float(qt.scale) / 2 * 1.001
    assert float((dequantize(wrapped) - w).abs().max()) > 0.5


@pytest.mark.parametrize("scale_dtype", PRECISIONS)
@by_format
@settings(max_examples=40, deadline=None)
@given(w=arrays(np.float32, (3, 10), elements=st.floats(-4, 4, width=32)))
def test_error_is_at_most_half_a_step_and_scales_are_storable(
    w: np.ndarray, form: WeightFormat, scale_dtype: Precision
) -> None:
    qt = quantize(torch.from_numpy(w), form, scale_dtype=scale_dtype)
    dtype = TORCH_DTYPE[scale_dtype]
    assert torch.equal(qt.scale.to(dtype).float(), qt.scale)
    assert bool((qt.scale >= torch.finfo(dtype).tiny).all())
    assert int(qt.q.min()) >= form.qmin
    assert int(qt.q.max()) <= form.qmax
    error = np.abs(dequantize(qt).numpy() - w)
    # Asymmetric: both ends may be cut by the rounding of the zero point (half a step) and of the
    # scale (255 steps of 2**-8 for BF16).
    steps = 0.5001 if form.symmetric else {"fp32": 1.001, "fp16": 1.13, "bf16": 2.01}[scale_dtype]
    for scale, (rows, columns) in zip(
        qt.scale.flatten().tolist(), cells(form, *w.shape), strict=True
    ):
        assert error[rows, columns].max() <= scale * steps


@by_format
def test_zeros_give_scale_one_and_come_back_as_zeros(form: WeightFormat) -> None:
    qt = quantize(torch.zeros(3, 8), form)
    assert bool((qt.scale == 1).all())
    assert bool((qt.q == qt.zero_point.flatten()[0]).all())
    assert not dequantize(qt).any()


def test_zero_row_beside_others_keeps_its_own_scale() -> None:
    w = torch.tensor([[0.0, 0.0], [1.27, -1.27]])
    assert quantize(w, INT8_PC_SYM).scale.tolist() == [
        1.0,
        float(np.float32(1.27) / np.float32(127)),
    ]


def test_ranges_on_one_side_of_zero_are_widened_to_it() -> None:
    w = torch.tensor([[-4.0, -1.0], [1.0, 4.0]])
    qt = quantize(w, INT8_PC_ASYM)
    assert qt.zero_point.tolist() == [127, -128]  # 255 and 0, stored minus 128
    assert qt.q.tolist() == [[-128, 63], [-64, 127]]  # 63.75 steps are 64
    torch.testing.assert_close(qt.scale, torch.full((2,), 4 / 255))


def test_subnormal_rows_get_the_smallest_normal_scale() -> None:
    w = torch.tensor([[1e-40, -1e-42]])
    for form in (INT8_PC_SYM, INT8_PC_ASYM):
        qt = quantize(w, form)
        assert float(qt.scale) == torch.finfo(torch.float32).tiny
        assert not dequantize(qt).any()


def test_half_precision_scale_does_not_underflow() -> None:
    w = torch.tensor([[1e-6, -5e-7], [0.5, 0.25]])  # 1e-6 / 127 is zero in FP16
    assert float(torch.tensor(1e-6 / 127).half()) == 0
    qt = quantize(w, INT8_PC_SYM, scale_dtype="fp16")
    assert float(qt.scale[0]) == torch.finfo(torch.float16).tiny
    assert qt.q[0].tolist() == [0, 0]
    assert quantize(w, INT8_PC_SYM, scale_dtype="bf16").q[0].tolist() == [127, -64]


def test_half_precision_scale_overflow_is_an_error() -> None:
    w = torch.tensor([[1e7, 1.0]])
    with pytest.raises(QuantizeError, match="does not fit"):
        quantize(w, INT8_PC_SYM, scale_dtype="fp16")
    assert float(quantize(w, INT8_PC_SYM, scale_dtype="bf16").scale) == pytest.approx(
        1e7 / 127, rel=0.01
    )


@pytest.mark.parametrize("form", [INT8_PT_SYM, INT8_PC_SYM, INT8_PC_ASYM, INT4_G32])
def test_huge_rows_do_not_overflow(form: WeightFormat) -> None:
    w = torch.tensor([[1e38, -1e38, 3e38], [-3e38, 2.9e38, 0.0]])  # high - low is infinite in FP32
    qt = quantize(w, form)
    assert bool(torch.isfinite(qt.scale).all())
    back = dequantize(qt)
    assert bool(torch.isfinite(back).all())
    assert float((back / 1e38 - w / 1e38).abs().max()) <= float(qt.scale.max() / 1e38)


@by_format
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_weights_are_refused(form: WeightFormat, bad: float) -> None:
    w = torch.randn(3, 9)
    quantize(w, form)
    w[1, 8] = bad
    with pytest.raises(QuantizeError, match="NaN or infinity"):
        quantize(w, form)


def test_empty_weight_and_groups_of_a_convolution_are_refused() -> None:
    with pytest.raises(QuantizeError, match="empty"):
        quantize(torch.empty(0, 4), INT8_PC_SYM)
    with pytest.raises(QuantizeError, match="Linear"):
        quantize(torch.randn(4, 4, 3, 3), INT4_G32)


@pytest.mark.parametrize("k, size, groups", [(10, 4, 3), (8, 4, 2), (3, 4, 1), (9, 128, 1)])
def test_short_groups(k: int, size: int, groups: int) -> None:
    group = PerGroup(size)
    form = WeightFormat(4, group)
    w = torch.randn(5, k)
    qt = quantize(w, form)
    assert qt.scale.shape == (5, groups) == qt.zero_point.shape
    assert group.groups(k) == groups
    assert group.padded_k(k) == groups * min(size, k) >= k
    last = w[:, (groups - 1) * min(size, k) :]
    torch.testing.assert_close(qt.scale[:, -1], last.abs().amax(1) / 7, rtol=0, atol=0)


def test_long_weights_are_cut_into_chunks_without_a_seam() -> None:
    w = torch.randn(3, 700_001)  # more than a chunk per tensor; a row and a bit per chunk
    for form in (INT8_PT_ASYM, INT8_PC_ASYM, INT8_PC_SYM):
        check(w.numpy(), quantize(w, form))


def test_transposed_convolution_takes_its_scales_along_axis_one() -> None:
    w = torch.randn(6, 4, 2, 2)
    qt = quantize(w, INT8_PC_ASYM, axis=1)
    plain = quantize(w.transpose(0, 1).contiguous(), INT8_PC_ASYM)
    assert qt.q.is_contiguous()
    assert torch.equal(qt.q, plain.q.transpose(0, 1))
    assert torch.equal(qt.scale, plain.scale)
    assert torch.equal(dequantize(qt), dequantize(plain).transpose(0, 1))
    assert not torch.equal(qt.q, quantize(w, INT8_PC_ASYM, axis=0).q)


def test_stored_bytes_count_nibbles_scales_and_zero_points() -> None:
    w = torch.randn(64, 256)
    assert quantize(w, INT8_PC_SYM).stored_bytes == 64 * 256 + 64 * 4 + 64
    assert quantize(w, INT4_G32).stored_bytes == 64 * 256 // 2 + 64 * 8 * 4
    half = quantize(w, INT4_G32, scale_dtype="fp16")
    assert half.stored_bytes == 64 * 256 // 2 + 64 * 8 * 2


def test_a_weight_of_another_float_type_and_layout_is_taken() -> None:
    w = torch.randn(8, 12).bfloat16()
    qt = quantize(w, INT8_PC_SYM)
    assert torch.equal(qt.q, quantize(w.float(), INT8_PC_SYM).q)
    strided = torch.randn(12, 8).t()
    assert torch.equal(quantize(strided, INT4_G4).q, quantize(strided.contiguous(), INT4_G4).q)
