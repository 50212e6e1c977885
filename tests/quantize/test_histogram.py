"""Histograms of |x| and the thresholds that the methods choose, against the values themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from vggt_deploy.errors import UsageError
from vggt_deploy.quantize.calibration import Observer
from vggt_deploy.quantize.histogram import (
    BINS,
    FINITE_BINS,
    Histogram,
    edges,
    squared_error,
    threshold,
)
from vggt_deploy.quantize.methods import Method, parse_method

finite = st.floats(allow_nan=False, allow_infinity=False, width=32)
tensors = arrays(np.float32, array_shapes(max_dims=3, max_side=9), elements=finite)


def histogram_of(*tensors: np.ndarray) -> Histogram:
    observer = Observer("layer")
    for tensor in tensors:
        observer(torch.nn.Identity(), (torch.from_numpy(np.asarray(tensor, np.float32)),))
    return observer.histogram()


def rounded(x: np.ndarray, limit: float) -> np.ndarray:
    scale = limit / 127
    return np.clip(np.rint(x / scale), -127, 127) * scale


def samples(kind: str) -> np.ndarray:
    generator = np.random.default_rng(3)
    match kind:
        case "normal":
            return generator.standard_normal(200_000)
        case "outliers":  # one value in 20 000 is a hundred times larger
            x = generator.standard_normal(200_000)
            x[:10] *= 100
            return x
        case "uniform":
            return generator.uniform(-1, 1, 200_000)
        case "gelu":
            x = torch.from_numpy(generator.standard_normal(200_000))
            return torch.nn.functional.gelu(x).numpy()
    raise ValueError(kind)


KINDS = ("normal", "outliers", "uniform", "gelu")


@given(tensors)
def test_every_value_lies_in_its_bin(x: np.ndarray) -> None:
    histogram = histogram_of(x)
    assert histogram.total == x.size
    assert histogram.absmax == np.abs(x).max()
    assert (np.diff(histogram.bins.astype(int)) > 0).all()
    low, high = edges(histogram.bins), edges(histogram.bins.astype(np.int64) + 1)
    magnitudes = np.abs(x.astype(np.float64)).reshape(-1)
    inside = (magnitudes[:, None] >= low) & (magnitudes[:, None] < high)
    np.testing.assert_array_equal(inside.sum(0), histogram.counts)
    # The twin: one bin further, no longer.
    shifted = (magnitudes[:, None] >= high) & (magnitudes[:, None] < high + (high - low))
    assert not np.array_equal(shifted.sum(0), histogram.counts)


def test_edges_are_upper_halves_of_floats() -> None:
    bins = np.arange(FINITE_BINS, dtype=np.int64)
    expected = (bins.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    np.testing.assert_array_equal(edges(bins), expected)
    assert edges(np.array([FINITE_BINS]))[0] == 2.0**128
    assert BINS == 2 * 128**2


@given(st.lists(tensors, min_size=1, max_size=4))
def test_order_and_passes_do_not_matter(parts: list[np.ndarray]) -> None:
    forward = histogram_of(*parts)
    backward = histogram_of(*reversed(parts))
    at_once = histogram_of(np.concatenate([part.reshape(-1) for part in parts]))
    for other in (backward, at_once):
        assert other.absmax == forward.absmax
        np.testing.assert_array_equal(other.bins, forward.bins)
        np.testing.assert_array_equal(other.counts, forward.counts)


def test_long_tensors_are_counted_in_pieces() -> None:
    x = torch.randn(3, (1 << 22) + 5)
    observer = Observer("layer")
    observer(torch.nn.Identity(), (x,))
    histogram = observer.histogram()
    assert histogram.total == x.numel()
    assert histogram.absmax == float(x.abs().max())


def test_other_types_and_views_are_counted_as_what_they_mean() -> None:
    x = torch.randn(8, 6)
    whole = histogram_of(x[:, ::2].contiguous().numpy())
    observer = Observer("layer")
    observer(torch.nn.Identity(), (x[:, ::2],))
    np.testing.assert_array_equal(observer.histogram().counts, whole.counts)
    half = Observer("layer")
    half(torch.nn.Identity(), (x.half(),))
    np.testing.assert_array_equal(
        half.histogram().counts, histogram_of(x.half().float().numpy()).counts
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("percentile", [50, 90, 99, 99.9, 99.99, 100])
def test_percentile_is_that_of_the_values(kind: str, percentile: float) -> None:
    x = samples(kind)
    found = threshold(histogram_of(x), Method("percentile", percentile))
    exact = np.quantile(np.abs(x.astype(np.float32)), percentile / 100, method="inverted_cdf")
    assert found == pytest.approx(exact, rel=2**-7)
    # The twin: what a slip of one in the exponent of the bins would give.
    assert 2 * found != pytest.approx(exact, rel=2**-7)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [1.0, 0.7, 0.3, 0.05])
def test_squared_error_is_that_of_the_values(kind: str, share: float) -> None:
    x = samples(kind)
    limit = share * float(np.abs(x).max())
    exact = float(np.mean((x - rounded(x, limit)) ** 2))
    found = squared_error(histogram_of(x), limit)
    assert found == pytest.approx(exact, rel=0.02)
    assert squared_error(histogram_of(x), 1.3 * limit) != pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_mse_is_nearly_the_best_there_is(kind: str) -> None:
    x = samples(kind)
    absmax = float(np.abs(x).max())

    def error(limit: float) -> float:
        return float(np.mean((x - rounded(x, limit)) ** 2))

    best = min(error(absmax * share) for share in np.geomspace(0.003, 1, 400))
    assert error(threshold(histogram_of(x), Method("mse"))) < 1.03 * best
    if kind != "uniform":
        assert error(absmax) > 1.03 * best


def test_absmax_saturates_nothing() -> None:
    x = samples("outliers")
    assert threshold(histogram_of(x), Method("absmax")) == np.abs(x.astype(np.float32)).max()


@given(
    arrays(np.float32, 40, elements=st.floats(2.0**-20, 2.0**20, width=32)),
    st.integers(-30, 30),
    st.sampled_from(["absmax", "mse", "percentile"]),
)
def test_thresholds_scale_with_the_values(x: np.ndarray, power: int, name: str) -> None:
    method = parse_method(name)
    plain = threshold(histogram_of(x), method)
    assert 0 < plain <= float(x.max())
    scaled = threshold(histogram_of(x * np.float32(2.0**power)), method)
    assert scaled == pytest.approx(plain * 2.0**power, rel=1e-9)


@given(st.lists(finite, min_size=1, max_size=30), st.sampled_from(["absmax", "mse", "percentile"]))
def test_a_threshold_is_never_beyond_the_largest_value(values: list[float], name: str) -> None:
    histogram = histogram_of(np.array(values, np.float32))
    found = threshold(histogram, parse_method(name))
    assert 0 <= found <= histogram.absmax
    assert (found == 0) == (histogram.absmax == 0)


def test_nothing_but_zeros() -> None:
    for name in ("absmax", "mse", "percentile"):
        assert threshold(histogram_of(np.zeros(5)), parse_method(name)) == 0


def test_mostly_zeros_is_not_zero() -> None:
    histogram = histogram_of(np.array([0.0] * 99 + [3.0]))
    assert threshold(histogram, Method("percentile", 90)) == 3.0


def test_methods_by_name() -> None:
    assert parse_method("absmax") == Method("absmax")
    assert parse_method("mse").label == "mse"
    assert parse_method("percentile").label == "percentile 99.99"
    assert parse_method("percentile:99.9") == Method("percentile", 99.9)


@pytest.mark.parametrize(
    "text",
    ["", "max", "MSE", "mse:3", "percentile:", "percentile:nan", "percentile:101",
     "percentile:49", "percentile:99,9", "percentile:1e2", "percentile: 99"],
)  # fmt: skip
def test_unknown_methods_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="unknown calibration method") as caught:
        parse_method(text)
    assert "percentile:99.99" in caught.value.fix
