"""Special tokens counted apart from patches: the same sum, and a range that serves both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from vggt_deploy.errors import CalibrationError
from vggt_deploy.model.weights import load_model, open_weights
from vggt_deploy.quantize.calibration import Observer, Pictures, input_scales, observe
from vggt_deploy.quantize.histogram import (
    NOTHING,
    TokenHistograms,
    relative_error,
    squared_error,
    threshold,
)
from vggt_deploy.quantize.methods import Method, parse_method

MODEL = "random:vggt-tiny"
HEIGHT, WIDTH = 42, 56
METHODS = [parse_method(text) for text in ("absmax", "mse", "percentile:99", "percentile:99.99")]
by_method = pytest.mark.parametrize("method", METHODS, ids=lambda m: m.label)


def tokens(frames: int = 6, special: int = 5, patches: int = 200, k: int = 32) -> torch.Tensor:
    """[F, special + patches, K]: patches normal, special tokens forty times as large."""
    x = torch.randn(frames, special + patches, k, generator=torch.Generator().manual_seed(0))
    x[:, :special] *= 40
    return x


def seen_of(x: torch.Tensor, special: int) -> TokenHistograms:
    observer = Observer("layer", (special, x.shape[1]))
    observer(nn.Identity(), (x,))
    return observer.histograms()


@by_method
def test_added_up_they_are_what_was_counted_before(method: Method) -> None:
    x = tokens()
    plain = Observer("layer")
    plain(nn.Identity(), (x,))
    split, whole = seen_of(x, 5), plain.histogram()
    np.testing.assert_array_equal(split.together.bins, whole.bins)
    np.testing.assert_array_equal(split.together.counts, whole.counts)
    assert split.together.bins.dtype == whole.bins.dtype == np.uint16
    assert split.absmax == split.together.absmax == whole.absmax
    assert split.total == whole.total == x.numel()
    assert threshold(split, method) == threshold(whole, method)
    assert threshold(split, method, apart=False) == threshold(whole, method)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 3), st.integers(0, 4), st.integers(0, 4), st.integers(1, 3))
def test_the_first_rows_of_each_frame_are_special(f: int, s: int, p: int, k: int) -> None:
    if s + p == 0:
        return
    x = torch.arange(1, f * (s + p) * k + 1).float().view(f, s + p, k)
    for rows in (x, x.reshape(-1, k), x.view(1, -1, k)):
        observer = Observer("layer", (s, s + p))
        observer(nn.Identity(), (rows,))
        seen = observer.histograms()
        for found, part in ((seen.special, x[:, :s]), (seen.patches, x[:, s:])):
            assert found.total == part.numel()
            assert found.absmax == (float(part.max()) if part.numel() else 0.0)


def test_the_largest_of_each_class_is_its_own() -> None:
    x = tokens()
    seen = seen_of(x, 5)
    assert seen.special.absmax == float(x[:, :5].abs().max())
    assert seen.patches.absmax == float(x[:, 5:].abs().max())
    assert seen.special.absmax > 10 * seen.patches.absmax
    wrong = seen_of(x.flip(1), 5)  # special tokens last
    assert wrong.special.absmax < seen.special.absmax


def relative(x: torch.Tensor, limit: float) -> float:
    """Mean squared rounding error over mean square, from the values themselves."""
    scale = limit / 127
    y = x.double()
    off = y - (y / scale).round().clamp(-127, 127) * scale
    return float(off.square().mean() / y.square().mean())


def test_relative_error_is_that_of_the_values() -> None:
    x = tokens()
    seen = seen_of(x, 5)
    for found, part in ((seen.special, x[:, :5]), (seen.patches, x[:, 5:])):
        for limit in (2.0, 20.0, 90.0):
            assert relative_error(found, limit) == pytest.approx(relative(part, limit), rel=0.03)
    ratio = relative_error(seen.patches, 20.0) / squared_error(seen.patches, 20.0)
    assert ratio == pytest.approx(1 / float(x[:, 5:].square().mean()), rel=0.01)


def test_mse_apart_serves_both_classes() -> None:
    """2 % of the rows decide the plain range; apart, the patches are half of the matter."""
    x = tokens()
    seen = seen_of(x, 5)
    plain, apart = (threshold(seen, Method("mse"), apart=on) for on in (False, True))

    def both(limit: float) -> float:
        return relative(x[:, :5], limit) + relative(x[:, 5:], limit)

    best = min(both(limit) for limit in np.geomspace(1, seen.absmax, 300))
    assert both(apart) < 1.05 * best
    assert both(plain) > 1.05 * best
    assert apart != plain


def test_percentile_apart_is_the_larger_and_absmax_the_same() -> None:
    seen, method = seen_of(tokens(), 5), Method("percentile", 97)
    special, patches = (threshold(one, method) for one in (seen.special, seen.patches))
    assert threshold(seen, method, apart=True) == max(special, patches) == special
    assert threshold(seen, method) < special  # together, the few are among those cut off
    assert threshold(seen, Method("absmax"), apart=True) == seen.absmax


@by_method
def test_one_class_alone_is_as_before(method: Method) -> None:
    special = seen_of(tokens(), 5).special
    zeros = seen_of(torch.zeros(1, 3, 4), 1).special
    for one in (
        TokenHistograms(special, NOTHING),
        TokenHistograms(NOTHING, special),
    ):
        assert threshold(one, method, apart=True) == threshold(special, method)
    mixed = TokenHistograms(zeros, special)
    assert threshold(mixed, method, apart=True) == threshold(mixed, method)
    assert threshold(TokenHistograms(zeros, NOTHING), method, apart=True) == 0
    assert threshold(TokenHistograms(NOTHING, NOTHING), method, apart=True) == 0


@settings(deadline=None, max_examples=30)
@given(st.integers(-100, 100), st.sampled_from(METHODS))
def test_apart_scales_with_the_values(power: int, method: Method) -> None:
    x = tokens(1, 2, 20, 8)
    plain = threshold(seen_of(x, 2), method, apart=True)
    scaled = threshold(seen_of(x * 2.0**power, 2), method, apart=True)
    assert scaled == pytest.approx(plain * 2.0**power, rel=1e-9)


def test_rows_that_are_not_finite_are_named_in_either_class() -> None:
    for row in (0, 9):
        x = tokens(1, 5, 5)
        x[0, row, 0] = float("nan")
        with pytest.raises(CalibrationError, match="the input of layer holds NaN"):
            seen_of(x, 5)


def test_the_network_counts_its_special_tokens(tmp_path: Path) -> None:
    """Against what the unfolded model hands to the layer."""
    pixels = np.random.default_rng(0).integers(0, 256, (3, HEIGHT, WIDTH, 3), dtype=np.uint8)
    for i in range(3):
        Image.fromarray(pixels[i]).save(tmp_path / f"{i}.png")
    config, source = open_weights(MODEL)
    found = observe(config, source, Pictures(tmp_path, HEIGHT, WIDTH))
    model = load_model(MODEL, heads=frozenset({"camera"}))
    rows = config.special_tokens + HEIGHT // 14 * (WIDTH // 14)
    layers = ("patch_embed.blocks.1.mlp.fc1", "global_blocks.1.attn.qkv", "frame_blocks.0.mlp.fc2")
    inputs: dict[str, torch.Tensor] = {}
    for name in layers:
        model.get_submodule(f"aggregator.{name}").register_forward_pre_hook(
            lambda _, given, name=name: inputs.update({name: given[0]})
        )
    with torch.no_grad():
        model(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255)
    for name in layers:
        x = inputs[name].reshape(3, rows, -1)
        seen = found.layers[f"aggregator.{name}"]
        for one, part in (
            (seen.special, x[:, : config.special_tokens]),
            (seen.patches, x[:, config.special_tokens :]),
        ):
            assert one.total == part.numel()
            assert one.absmax == pytest.approx(float(part.abs().max()), rel=1e-4)
        assert seen.special.absmax != pytest.approx(seen.patches.absmax, rel=1e-3)
    head = found.layers["camera_head.trunk.0.mlp.fc1"]
    assert head.patches.total == 0
    assert head.special.total > 0
    apart = input_scales(found, found.layers, Method("mse"), "fp32", apart=True)
    plain = input_scales(found, found.layers, Method("mse"), "fp32")
    assert apart["camera_head.trunk.0.mlp.fc1"] == plain["camera_head.trunk.0.mlp.fc1"]
    assert apart != plain
