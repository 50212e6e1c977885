"""Folds are exact: each rule alone on tensors, all of them on a model; a wrong one is noticed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vggt_deploy.model import fold
from vggt_deploy.model.config import CONFIGS
from vggt_deploy.model.encoder import IMAGE_MEAN, IMAGE_STD
from vggt_deploy.model.fields import rope_tables
from vggt_deploy.model.fold import (
    FoldedWeights,
    fold_layer_scale,
    fold_normalization,
    permute_rope,
    rope_order,
)
from vggt_deploy.model.layers import Attention, rotate_axial, rotate_half
from vggt_deploy.model.vggt import VGGT
from vggt_deploy.model.weights import load_model, open_weights

TINY = CONFIGS["vggt-tiny"]
EXACT = {"rtol": 2e-5, "atol": 2e-5}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_fold_normalization():
    weight, bias = torch.randn(6, 3, 14, 14) * 0.05, torch.randn(6)
    images = torch.rand(2, 3, 28, 42)
    mean, std = torch.tensor(IMAGE_MEAN), torch.tensor(IMAGE_STD)
    normalised = (images - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    expected = F.conv2d(normalised, weight, bias, stride=14)
    folded = fold_normalization(weight, bias)
    torch.testing.assert_close(F.conv2d(images, *folded, stride=14), expected, **EXACT)
    forgotten_bias = F.conv2d(images, folded[0], bias, stride=14)
    assert (forgotten_bias - expected).abs().max() > 0.1


def test_fold_layer_scale():
    weight, bias, gamma, x = torch.randn(6, 4), torch.randn(6), torch.randn(6), torch.randn(3, 4)
    expected = gamma * F.linear(x, weight, bias)
    folded = F.linear(x, fold_layer_scale(weight, gamma), fold_layer_scale(bias, gamma))
    torch.testing.assert_close(folded, expected, **EXACT)
    forgotten_bias = F.linear(x, fold_layer_scale(weight, gamma), bias)
    assert (forgotten_bias - expected).abs().max() > 0.1


def test_rope_order_is_the_checkpoints_64_channels():
    expected = [*range(16), *range(32, 48), *range(16, 32), *range(48, 64)]
    assert rope_order(64).tolist() == expected


def test_rotate_half_of_permuted_is_permuted_axial():
    rope = rope_tables(TINY, 2, 3, torch.device("cpu"))
    x = torch.randn(2, 11, 3, TINY.head_dim)
    order = rope_order(TINY.head_dim)
    expected = rotate_axial(x, rope)[..., order]
    torch.testing.assert_close(rotate_half(x[..., order], rope), expected, rtol=0, atol=0)
    assert (rotate_half(x, rope) - expected).abs().max() > 0.1


def test_permute_rope_keeps_attention():
    dim, heads = TINY.embed, TINY.heads
    rope = rope_tables(TINY, 2, 3, torch.device("cpu"))
    options = {"qk_norm": True, "kind": "explicit"}
    plain = Attention(dim, heads, folded=False, **options).requires_grad_(False)  # type: ignore[arg-type]
    for parameter in (*plain.q_norm.parameters(), *plain.k_norm.parameters()):
        parameter.normal_()
    folded = Attention(dim, heads, folded=True, **options).requires_grad_(False)  # type: ignore[arg-type]
    state = plain.state_dict()
    for key in state:
        if key.startswith("qkv"):
            state[key] = permute_rope(state[key], heads, TINY.head_dim)
        elif "norm" in key:
            state[key] = state[key][rope_order(TINY.head_dim)]
    x = torch.randn(4, 11, dim)
    for scenes in (None, 2):
        expected = plain(x, rope, scenes)
        folded.load_state_dict(state)
        torch.testing.assert_close(folded(x, rope, scenes), expected, **EXACT)
        # A norm's affine left in the old order belongs to other channels.
        folded.q_norm.load_state_dict(plain.q_norm.state_dict())
        assert (folded(x, rope, scenes) - expected).abs().max() > 1e-3


def run(model: VGGT) -> dict[str, Tensor]:
    images = torch.rand(1, 3, 3, 28, 42, generator=torch.Generator().manual_seed(1))
    fields = model.fields(28, 42)
    return model.forward_fields(images, fields)


def worst(outputs: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    return max(
        ((outputs[key] - expected[key]).abs().max() / expected[key].abs().max()).item()
        for key in expected
    )


@pytest.fixture(scope="module")
def unfolded() -> dict[str, Tensor]:
    return run(load_model("random:vggt-tiny"))


def test_folded_model_is_the_same_function(unfolded: dict[str, Tensor]):
    assert worst(run(load_model("random:vggt-tiny", folded=True)), unfolded) < 1e-5


@pytest.mark.parametrize(
    "name,wrong",
    [
        ("fold_normalization", lambda weight, bias: (fold_normalization(weight, bias)[0], bias)),
        (
            "fold_layer_scale",
            lambda tensor, gamma: fold_layer_scale(tensor, gamma) if tensor.dim() > 1 else tensor,
        ),
        ("permute_rope", lambda tensor, heads, head_dim: tensor),
    ],
)
def test_a_wrong_fold_is_noticed(
    name: str,
    wrong: Callable[..., object],
    unfolded: dict[str, Tensor],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(fold, name, wrong)
    assert worst(run(load_model("random:vggt-tiny", folded=True)), unfolded) > 1e-4


def test_folded_source_has_the_folded_models_keys_and_shapes():
    config, source = open_weights("random:vggt-tiny")
    folded = FoldedWeights(source, config)
    with torch.device("meta"):
        expected = VGGT(config, folded=True).state_dict()
    assert set(folded.keys()) == set(expected)
    assert all(folded.shape(key) == tuple(value.shape) for key, value in expected.items())
    assert not any("gamma" in key for key in folded.keys())  # noqa: SIM118
    assert folded.origin == source.origin


def with_layer_scale() -> VGGT:
    config, source = open_weights("random:vggt-tiny")
    folded = FoldedWeights(source, config, keep_layer_scale=True)
    with torch.device("meta"):
        model = VGGT(config, folded=True, keep_layer_scale=True)
    model.load_state_dict({key: folded.load(key) for key in folded.keys()}, assign=True)  # noqa: SIM118
    return model.eval().requires_grad_(False)


def test_layer_scale_can_be_kept(unfolded: dict[str, Tensor]):
    config, source = open_weights("random:vggt-tiny")
    model = with_layer_scale()
    assert set(model.state_dict()) == set(source.keys())
    key = "aggregator.frame_blocks.0.attn.proj.weight"
    assert torch.equal(model.get_parameter(key), source.load(key))
    assert worst(run(model), unfolded) < 1e-5
    # The twin: weights that have it folded in, under a model that multiplies again.
    twice = FoldedWeights(source, config)
    model.load_state_dict({key: twice.load(key) for key in twice.keys()}, strict=False)  # noqa: SIM118
    assert worst(run(model), unfolded) > 1e-3


def test_the_trackers_mlp_has_no_layer_scale_to_fold():
    config, source = open_weights("random:vggt-tiny")
    key = "track_head.tracker.updateformer.time_blocks.0.mlp.fc2.weight"
    assert torch.equal(FoldedWeights(source, config).load(key), source.load(key))


def test_reads_at_most_two_tensors_per_key():
    config, source = open_weights("random:vggt-tiny")
    read: list[str] = []
    load = source.load

    def counted(key: str) -> Tensor:
        read.append(key)
        return load(key)

    source.load = counted  # type: ignore[method-assign]
    folded = FoldedWeights(source, config)
    for key in folded.keys():  # noqa: SIM118
        read.clear()
        folded.load(key)
        assert len(read) <= 2, key
