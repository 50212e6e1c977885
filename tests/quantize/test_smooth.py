"""Smoothing: its scales by hand, and that the search finds what helps and leaves what does not."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from vggt_deploy.errors import CalibrationError, QuantizeError, UsageError
from vggt_deploy.model.config import CONFIGS
from vggt_deploy.model.sources import WeightSource
from vggt_deploy.model.weights import load_model, open_weights
from vggt_deploy.quantize import smooth
from vggt_deploy.quantize.equal import EqualWeights
from vggt_deploy.quantize.methods import Method
from vggt_deploy.quantize.qparams import dequantize, quantize
from vggt_deploy.quantize.schemes import (
    INT4_G32,
    INT8_PC_SYM,
    INT8_PT_SYM,
    WeightFormat,
)
from vggt_deploy.quantize.smooth import LIMIT, Smoothing, search_smoothing, smoothing_scale

TINY = CONFIGS["vggt-tiny"]
BLOCK = "aggregator.patch_embed.blocks.0"
QKV, FC1, PROJ = f"{BLOCK}.attn.qkv", f"{BLOCK}.mlp.fc1", f"{BLOCK}.attn.proj"
SPIKE = 40.0

sizes = st.lists(st.floats(0, 1e4, allow_subnormal=False), min_size=2, max_size=20)


@given(sizes, st.floats(0, 1))
@settings(deadline=None)
def test_scales_are_normal_positive_and_bounded(values: list[float], alpha: float):
    inputs = torch.tensor(values)
    scale = smoothing_scale(inputs, inputs.flip(0), alpha)
    assert scale.dtype == torch.float32
    assert bool(((scale >= 1 / LIMIT) & (scale <= LIMIT)).all())


def test_scales_by_hand():
    inputs, weights = torch.tensor([1.0, 16.0]), torch.tensor([4.0, 1.0])
    torch.testing.assert_close(smoothing_scale(inputs, weights, 1.0), torch.tensor([0.25, 4.0]))
    torch.testing.assert_close(smoothing_scale(inputs, weights, 0.0), torch.tensor([0.5, 2.0]))
    # 1 / 4 and 16 / 1, their roots 1 / 2 and 4, their geometric mean sqrt(2).
    expected = torch.tensor([0.5, 4.0]) / 2**0.5
    torch.testing.assert_close(smoothing_scale(inputs, weights, 0.5), expected)


def test_scales_do_not_depend_on_units():
    inputs, weights = torch.rand(8) + 0.1, torch.rand(8) + 0.1
    scaled = smoothing_scale(inputs * 1000, weights * 0.01, 0.3)
    torch.testing.assert_close(scaled, smoothing_scale(inputs, weights, 0.3))


def test_a_channel_without_inputs_and_a_layer_without_any():
    silent = smoothing_scale(torch.tensor([0.0, 1.0, 1.0]), torch.ones(3), 0.5)
    assert float(silent[0]) > 0
    assert torch.equal(smoothing_scale(torch.zeros(3), torch.ones(3), 0.5), torch.ones(3))


class Spiky:
    """The same function, with one channel of each named norm 40 times as large."""

    def __init__(self, source: WeightSource, names: Mapping[str, int]) -> None:
        scales = {}
        for name, channel in names.items():
            scales[name] = torch.ones(TINY.embed)
            scales[name][channel] = 1 / SPIKE
        self._inner = EqualWeights(source, TINY, scales)
        self.origin = source.origin
        self.keys, self.shape, self.load = self._inner.keys, self._inner.shape, self._inner.load


@pytest.fixture(scope="module")
def source() -> WeightSource:
    return open_weights("random:vggt-tiny")[1]


@pytest.fixture(scope="module")
def spiky(source: WeightSource) -> WeightSource:
    return Spiky(source, {f"{BLOCK}.norm1": 3, f"{BLOCK}.norm2": 7})


def pictures(seed: int) -> Callable[[], Tensor]:
    return lambda: torch.rand(2, 3, 28, 42, generator=torch.Generator().manual_seed(seed))


PASSES = [pictures(seed) for seed in range(3)]


@pytest.fixture
def search(tmp_path: Path) -> Callable[..., Smoothing]:
    def run(source: WeightSource, formats: Mapping[str, WeightFormat], **options) -> Smoothing:
        options = {"passes": PASSES, "scratch": tmp_path, **options}
        passes = options.pop("passes")
        found = search_smoothing(TINY, source, passes, formats, **options)
        assert not list(tmp_path.iterdir())  # nothing is left behind
        return found

    return run


@torch.no_grad()
def fc1_error(source: WeightSource, seed: int = 9) -> float:
    """Relative error of FC1's output with static 8-bit inputs (absmax) and weights, new picture."""
    seen: list[Tensor] = []
    model = load_model(source, TINY, heads=frozenset({"camera"}), folded=True)
    layer = model.get_submodule(FC1)
    layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(pictures(seed)())
    x, weight = seen[0].reshape(-1, TINY.embed), layer.get_parameter("weight")
    scale = x.abs().max() / 127
    rounded = (x / scale).round() * scale
    y = F.linear(x, weight)
    off = F.linear(rounded, dequantize(quantize(weight, INT8_PC_SYM))) - y
    return float(off.norm() / y.norm())


@pytest.mark.parametrize("alpha", ["auto", 0.5])
@pytest.mark.parametrize("method", ["mse", "absmax"])
def test_a_spiky_channel_is_smoothed(spiky: WeightSource, search, alpha, method):
    found = search(
        spiky, {FC1: INT8_PC_SYM}, activations="static", alpha=alpha, method=Method(method)
    )
    (choice,) = found.decided
    assert choice.place == f"{BLOCK}.norm2"
    assert choice.after < 0.6 * choice.before
    scale = found.scales[choice.place]
    assert int(scale.argmax()) == 7
    assert float(scale[7] / scale.median()) > 4
    # On pictures that the search has not seen, by our own arithmetic.
    moved = EqualWeights(spiky, TINY, found.scales)
    assert fc1_error(moved) < 0.5 * fc1_error(spiky)
    # The twin: the same numbers the wrong way round.
    wrong = EqualWeights(spiky, TINY, {k: 1 / s for k, s in found.scales.items()})
    assert fc1_error(wrong) > fc1_error(spiky)


def test_weight_only_smoothing_looks_at_mean_inputs(spiky: WeightSource, search):
    """What 4 bit loses in the one channel that inputs are large in counts most."""
    found = search(spiky, {QKV: INT4_G32, FC1: INT4_G32})
    assert [choice.place for choice in found.decided] == [f"{BLOCK}.norm1", f"{BLOCK}.norm2"]
    for choice, channel in zip(found.decided, (3, 7), strict=True):
        assert choice.after < choice.before
        assert float(found.scales[choice.place][channel]) > 1


def test_auto_is_never_worse_by_its_own_measure_and_no_change_is_a_candidate(
    source: WeightSource, search, monkeypatch: pytest.MonkeyPatch
):
    formats = {QKV: INT8_PC_SYM, PROJ: INT8_PC_SYM, FC1: INT8_PC_SYM}
    found = search(source, formats)
    assert len(found.decided) == 3
    assert all(choice.after <= choice.before for choice in found.decided)
    # Candidates that can't but hurt: nothing is moved then.
    ruin = torch.logspace(-3, 3, TINY.embed)
    monkeypatch.setattr(smooth, "smoothing_scale", lambda inputs, weights, alpha: ruin)
    found = search(source, formats, activations="static")
    assert found.scales == {}
    assert all(choice.alpha is None and choice.statistic is None for choice in found.decided)
    assert all(choice.after == choice.before > 0 for choice in found.decided)
    # A given alpha is obeyed, whatever it does.
    found = search(source, {QKV: INT8_PC_SYM}, activations="static", alpha=0.5)
    assert found.decided[0].after > found.decided[0].before
    assert torch.equal(found.scales[f"{BLOCK}.norm1"], ruin)


def test_values_are_smoothed_unless_their_projection_has_one_scale(source: WeightSource, search):
    by_channel = search(source, {QKV: INT8_PC_SYM, PROJ: INT8_PC_SYM}, alpha=0.5)
    assert set(by_channel.scales) == {f"{BLOCK}.norm1", f"{BLOCK}.attn.values"}
    whole = search(source, {QKV: INT8_PT_SYM, PROJ: INT8_PT_SYM}, alpha=0.5)
    assert set(whole.scales) == {f"{BLOCK}.norm1"}


def test_the_camera_head_and_one_pass_with_tokens_apart(source: WeightSource, search):
    layer = "camera_head.pose_branch.fc1"
    found = search(
        source,
        {FC1: INT8_PC_SYM, layer: INT8_PC_SYM},
        passes=PASSES[:1],
        activations="static",
        apart=True,
        alpha=0.5,
    )
    assert [choice.place for choice in found.decided] == [
        f"{BLOCK}.norm2",
        "camera_head.trunk_norm",
    ]
    assert all(0 < choice.before < 0.2 for choice in found.decided)
    together = search(
        source, {FC1: INT8_PC_SYM}, passes=PASSES[:1], activations="static", alpha=0.5
    )
    assert together.decided[0].before != found.decided[0].before


def test_apart_weighs_both_kinds_of_tokens_alike():
    reference = torch.tensor([[3.0], [4.0], [1.0]])
    special = torch.tensor([False, False, True])
    apart = smooth._factors(reference, special, apart=True)
    torch.testing.assert_close(apart, torch.tensor([1 / 50, 1 / 50, 1 / 2]))
    together = smooth._factors(reference, special, apart=False)
    torch.testing.assert_close(together, torch.full((3,), 1 / 26))


def test_sampled_rows_are_bounded_and_special_ones_are_half_of_them_if_apart():
    rows = torch.arange(4000.0)[:, None] + 1
    special = torch.arange(4000) % 100 < 5
    for apart, share in ((True, 0.5), (False, 0.05)):
        seen = smooth._Seen(1, 2, apart)
        seen.add("layer", rows, special)
        seen.add("layer", rows * 2, special)
        learned, judged = seen.learned, seen.judged
        assert len(learned.rows) == len(judged.rows) <= 2 * smooth.SAMPLED_ROWS
        assert float(learned.special.float().mean()) == pytest.approx(share, abs=0.1)
        # Sizes are of all rows, those of the other half included where they are asked for.
        assert float(seen.sizes("max", (learned,))) == 4000
        assert float(seen.sizes("max", (learned, judged))) == 8000
    mean = smooth._Seen(1, 1, False)
    mean.add("layer", torch.tensor([[1.0], [-2.0], [3.0], [6.0]]), torch.zeros(4).bool())
    assert float(mean.sizes("mean", (mean.learned,))) == 2
    assert float(mean.sizes("mean", (mean.learned, mean.judged))) == 3


def test_choices_are_for_a_manifest(source: WeightSource, search):
    found = search(source, {QKV: INT8_PC_SYM})
    kept = json.loads(json.dumps(found.choices))
    assert set(kept[f"{BLOCK}.norm1"]) == {"statistic", "alpha", "before", "after"}
    assert kept == found.choices


def test_progress_counts_places(source: WeightSource, search):
    seen: list[tuple[str, int, int]] = []
    search(
        source,
        {QKV: INT8_PC_SYM, FC1: INT8_PC_SYM},
        alpha=0.5,
        progress=lambda *state: seen.append(state),
    )
    assert seen == [("smooth", 0, 2), ("smooth", 1, 2), ("smooth", 2, 2)]


class Broken:
    """Turns one tensor of a source into NaN."""

    def __init__(self, source: WeightSource, key: str) -> None:
        self._source, self._key = source, key
        self.origin, self.keys, self.shape = source.origin, source.keys, source.shape

    def load(self, key: str) -> Tensor:
        value = self._source.load(key)
        return value * torch.nan if key == self._key else value


def test_bad_input_is_named_and_nothing_is_left_behind(source: WeightSource, tmp_path: Path):
    def run(source: WeightSource = source, formats=None, passes=PASSES, **options):
        formats = {QKV: INT8_PC_SYM} if formats is None else formats
        search_smoothing(TINY, source, passes, formats, scratch=tmp_path, **options)

    with pytest.raises(UsageError, match=r"smooth=1\.5"):
        run(alpha=1.5)
    with pytest.raises(UsageError, match="none of the quantized layers"):
        run(formats={f"{BLOCK}.mlp.fc2": INT8_PC_SYM})
    with pytest.raises(UsageError, match="no pictures"):
        run(passes=[])
    with pytest.raises(CalibrationError, match=r"blocks.0.attn.qkv holds NaN"):
        run(Broken(source, f"{BLOCK}.norm1.weight"))
    with pytest.raises(QuantizeError, match=QKV):
        run(Broken(source, f"{QKV}.weight"))
    assert not list(tmp_path.iterdir())


def test_an_interrupted_search_leaves_nothing_behind(source: WeightSource, tmp_path: Path):
    def interrupt(stage: str, done: int, total: int) -> None:
        if done == 1:
            assert list(tmp_path.iterdir())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search_smoothing(
            TINY,
            source,
            PASSES,
            {QKV: INT8_PC_SYM, FC1: INT8_PC_SYM},
            scratch=tmp_path,
            progress=interrupt,
        )
    assert not list(tmp_path.iterdir())
