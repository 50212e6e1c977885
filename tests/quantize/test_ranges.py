"""Searched ranges of weights: never worse than the whole range, in their own measure, and better
where there is something to gain.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vggt_deploy.errors import QuantizeError
from vggt_deploy.quantize import ranges
from vggt_deploy.quantize.methods import Method, parse_method
from vggt_deploy.quantize.qparams import TORCH_DTYPE, QuantizedTensor, dequantize, quantize
from vggt_deploy.quantize.ranges import quantize_searched
from vggt_deploy.quantize.schemes import PerChannel, Precision, WeightFormat, parse_format

MSE = Method("mse")
LABELS = (
    "int8_pt_sym",
    "int8_pt_asym",
    "int8_pc_sym",
    "int8_pc_asym",
    "int4_g4",
    "int4_g32",
    "int4_g4_asym",
)
FORMATS = [parse_format(label) for label in LABELS]
by_format = pytest.mark.parametrize("form", FORMATS, ids=LABELS)

weights = arrays(
    np.float32,
    st.tuples(st.integers(1, 6), st.integers(1, 11)),
    elements=st.one_of(
        st.floats(-1, 1, width=32),
        st.floats(-(2.0**100), 2.0**100, width=32),
        st.floats(-(2.0**-120), 2.0**-120, width=32),
        st.just(0.0),
    ),
)


def error(
    weight: torch.Tensor, found: QuantizedTensor, importance: torch.Tensor | None = None
) -> torch.Tensor:
    """Squared error by weight, float64, as the module defines it."""
    off = (dequantize(found).double() - weight.double()).square()
    return off if importance is None else off * importance.double()


def by_scale(values: torch.Tensor, form: WeightFormat) -> torch.Tensor:
    """Sums of a [N, K] over what shares a scale."""
    label = form.granularity.label
    if label == "pt":
        return values.sum()[None]
    size = values.shape[1] if label == "pc" else int(label[1:])
    return torch.stack([part.sum(1) for part in values.split(size, dim=1)], dim=1)


def spiky(n: int = 24, k: int = 96, seed: int = 0) -> torch.Tensor:
    """Normal weights, one of each row far out."""
    weight = torch.randn(n, k, generator=torch.Generator().manual_seed(seed)) * 0.02
    weight[:, k // 3] = 0.12
    return weight


def rewarding(form: WeightFormat) -> torch.Tensor:
    """Weights of which clipping gains: 8 bits are fine enough to reach one spike in 10 000."""
    return spiky(2, 1 << 16) if form.bits == 8 else spiky(16, 256)


@by_format
@settings(deadline=None, max_examples=15)
@given(weight=weights)
def test_absmax_is_plain_quantization(form: WeightFormat, weight: np.ndarray) -> None:
    tensor = torch.from_numpy(weight)
    for method in (Method("absmax"), Method("percentile", 100)):
        found, plain = quantize_searched(tensor, form, method=method), quantize(tensor, form)
        assert torch.equal(found.q, plain.q)
        assert torch.equal(found.scale, plain.scale)
        assert torch.equal(found.zero_point, plain.zero_point)


@by_format
@settings(deadline=None, max_examples=12)
@given(weight=weights, data=st.data())
def test_mse_is_never_worse_than_absmax(
    form: WeightFormat, weight: np.ndarray, data: st.DataObject
) -> None:
    tensor = torch.from_numpy(weight)
    importance = None
    if data.draw(st.booleans()):
        numbers = st.lists(st.floats(0, 100), min_size=weight.shape[1], max_size=weight.shape[1])
        importance = torch.tensor(data.draw(numbers))
    found = quantize_searched(tensor, form, method=MSE, importance=importance)
    mine = by_scale(error(tensor, found, importance), form)
    plain = by_scale(error(tensor, quantize(tensor, form), importance), form)
    # Sums in FP32 inside; what is lost may be as large as that.
    assert (mine <= plain * (1 + 1e-5) + 1e-80).all()


@by_format
@settings(deadline=None, max_examples=15)
@given(
    weight=weights,
    method=st.sampled_from(["mse", "percentile:99", "percentile:50"]),
    precision=st.sampled_from(["fp32", "fp16", "bf16"]),
)
def test_the_conventions_of_qparams_hold(
    form: WeightFormat, weight: np.ndarray, method: str, precision: Precision
) -> None:
    tensor = torch.from_numpy(weight)
    dtype = TORCH_DTYPE[precision]
    if precision == "fp16":
        tensor = tensor.clamp(-(2.0**15), 2.0**15)
    found = quantize_searched(tensor, form, scale_dtype=precision, method=parse_method(method))
    plain = quantize(tensor, form, scale_dtype=precision)
    assert found.q.dtype == torch.int8
    assert found.q.shape == tensor.shape
    assert int(found.q.min()) >= form.qmin
    assert int(found.q.max()) <= form.qmax
    assert found.scale.shape == plain.scale.shape
    assert torch.equal(found.scale.to(dtype).float(), found.scale)
    assert (found.scale >= torch.finfo(dtype).tiny).all()
    assert found.zero_point.shape == plain.zero_point.shape
    if form.symmetric:
        assert not found.zero_point.any()
    # A row of zeros has scale 1, any other one no larger than that of the whole range.
    assert (found.scale <= plain.scale).all()


REWARDED = ("int8_pt_sym", "int8_pt_asym", "int8_pc_sym", "int8_pc_asym", "int4_g128", "int4_g32")


@pytest.mark.parametrize("label", REWARDED)
def test_mse_gains_where_one_weight_is_far_out(label: str) -> None:
    form = parse_format(label)
    weight = rewarding(form)
    mine = error(weight, quantize_searched(weight, form, method=MSE)).sum()
    assert mine < 0.95 * error(weight, quantize(weight, form)).sum()
    # The twin: narrower is not better by itself.
    narrow = quantize(weight, form, range_of=lambda _, low, high: (low * 2.0**-4, high * 2.0**-4))
    assert error(weight, narrow).sum() > mine


@pytest.mark.parametrize("label", ["int8_pc_sym", "int4_g128", "int4_g32", "int4_g128_asym"])
def test_mse_is_close_to_the_best_of_a_fine_grid(label: str) -> None:
    """Against 20 by 20 ranges of every row (symmetric: 60), tried one by one."""
    form = parse_format(label)
    weight = rewarding(form)
    mine = by_scale(error(weight, quantize_searched(weight, form, method=MSE)), form)
    shares = np.geomspace(0.1, 1, 60 if form.symmetric else 20)
    pairs = [(s, s) for s in shares] if form.symmetric else [(a, b) for a in shares for b in shares]
    best = torch.full_like(mine, torch.inf)
    for a, b in pairs:
        tried = quantize(weight, form, range_of=lambda _, low, high, a=a, b=b: (low * a, high * b))
        best = torch.minimum(best, by_scale(error(weight, tried), form))
    assert (mine <= 1.1 * best).all()
    assert mine.sum() <= 1.02 * best.sum()
    plain = by_scale(error(weight, quantize(weight, form)), form)
    assert plain.sum() > 1.07 * best.sum()  # the twin: the whole range is not close


def test_importance_decides_whose_error_counts() -> None:
    """One input of 32 is large and hardly ever used: its weight may saturate."""
    weight = torch.full((3, 32), 0.3) * torch.linspace(-1, 1, 32)
    weight[:, 5] = 3.0
    form = parse_format("int4_g32")
    rare, often = torch.ones(32), torch.ones(32)
    rare[5], often[5] = 1e-4, 1e4
    clipped = quantize_searched(weight, form, method=MSE, importance=rare)
    kept = quantize_searched(weight, form, method=MSE, importance=often)
    assert (clipped.scale < 0.3 * kept.scale).all()
    for importance, right, wrong in ((rare, clipped, kept), (often, kept, clipped)):
        ours, theirs = (error(weight, x, importance).sum() for x in (right, wrong))
        assert ours < theirs
    plain = quantize_searched(weight, form, method=MSE)
    ones = quantize_searched(weight, form, method=MSE, importance=torch.ones(32))
    assert torch.equal(plain.q, ones.q)


@pytest.mark.parametrize("label", ["int8_pc_sym", "int4_g32", "int8_pt_asym", "int4_g32_asym"])
def test_each_row_and_group_has_its_own_importance(label: str) -> None:
    """A whole equals its parts, quantized each with its part of the importance."""
    form = parse_format(label)
    weight, importance = spiky(5, 80), torch.rand(80, generator=torch.Generator().manual_seed(1))
    whole = quantize_searched(weight, form, method=MSE, importance=importance)
    if label.startswith("int8_pt"):
        assert whole.scale.shape == ()
        return
    for n in range(5):
        row = quantize_searched(weight[n : n + 1], form, method=MSE, importance=importance)
        assert torch.equal(row.q[0], whole.q[n])
    if "g32" in label:
        for i in range(0, 80, 32):
            cut = slice(i, i + 32)
            part = quantize_searched(
                weight[:, cut].contiguous(), form, method=MSE, importance=importance[cut]
            )
            assert torch.equal(part.q, whole.q[:, cut])
        wrong = quantize_searched(weight, form, method=MSE, importance=importance.flip(0))
        assert not torch.equal(wrong.q, whole.q)


@pytest.mark.parametrize("chunk", [1, 100, 333, 1 << 18])
@pytest.mark.parametrize("label", ["int8_pc_asym", "int4_g32", "int8_pt_sym"])
@pytest.mark.parametrize("method", ["mse", "percentile:97"])
def test_chunks_do_not_show(
    label: str, chunk: int, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    form, weight = parse_format(label), spiky(9, 80)
    importance = torch.linspace(0.1, 2, 80) if method == "mse" else None
    request: dict[str, Any] = {"method": parse_method(method), "importance": importance}
    whole = quantize_searched(weight, form, **request)
    monkeypatch.setattr(ranges, "_CHUNK", chunk)
    assert torch.equal(quantize_searched(weight, form, **request).q, whole.q)


@pytest.mark.parametrize("percentile", [50, 90, 99, 99.9])
def test_percentile_by_definition(percentile: float) -> None:
    weight = spiky(8, 100, seed=5)
    outside = (100 - percentile) / 2
    exact = {
        "int8_pc_sym": np.percentile(weight.abs().numpy(), percentile, axis=1) / 127,
        "int8_pt_sym": np.percentile(weight.abs().numpy(), percentile) / 127,
        "int8_pc_asym": (
            np.percentile(weight.numpy(), 100 - outside, axis=1)
            - np.percentile(weight.numpy(), outside, axis=1)
        )
        / 255,
        "int4_g32": np.stack(
            [  # 100 = 3 * 32 + 4: the zeros that fill up the last group are no weights
                np.percentile(weight[:, i : i + 32].abs().numpy(), percentile, axis=1)
                for i in range(0, 100, 32)
            ],
            axis=1,
        )
        / 7,
    }
    for label, scale in exact.items():
        found = quantize_searched(
            weight, parse_format(label), method=Method("percentile", percentile)
        )
        np.testing.assert_allclose(found.scale.numpy(), scale, rtol=1e-5)


def test_convolutions_have_ranges_too() -> None:
    weight = spiky(16, 8 * 9).view(16, 8, 3, 3)
    form = WeightFormat(4, PerChannel())
    for axis in (0, 1):
        found = quantize_searched(weight, form, axis=axis, method=MSE)
        assert found.scale.shape == (weight.shape[axis],)
        plain = quantize(weight, form, axis=axis)
        assert error(weight, found).sum() < error(weight, plain).sum()


def test_mostly_zeros_is_not_nothing() -> None:
    weight = torch.zeros(2, 64)
    weight[:, 3] = 2.0
    for label in ("int8_pt_sym", "int8_pc_asym", "int4_g32"):
        found = quantize_searched(weight, parse_format(label), method=Method("percentile", 60))
        assert dequantize(found)[0, 3] == pytest.approx(2.0, rel=1e-6)


@pytest.mark.parametrize(
    "importance, method, words",
    [
        (torch.ones(7), "mse", "does not fit"),
        (torch.ones(8, 1), "mse", "does not fit"),
        (-torch.ones(8), "mse", "negative, NaN or infinite"),
        (torch.full((8,), float("nan")), "mse", "negative, NaN or infinite"),
        (torch.ones(8), "percentile", "the method is percentile 99.99"),
        (torch.ones(8), "absmax", "the method is absmax"),
    ],
)
def test_importance_that_makes_no_sense(importance: torch.Tensor, method: str, words: str) -> None:
    form = parse_format("int8_pc_sym")
    with pytest.raises(QuantizeError, match=words):
        quantize_searched(
            torch.ones(3, 8), form, method=parse_method(method), importance=importance
        )


@pytest.mark.parametrize("method", ["mse", "percentile"])
def test_weights_that_are_not_finite_are_refused(method: str) -> None:
    weight = torch.ones(3, 8)
    weight[1, 1] = float("nan")
    with pytest.raises(QuantizeError, match="NaN or infinity"):
        quantize_searched(weight, parse_format("int4_g4"), method=parse_method(method))
