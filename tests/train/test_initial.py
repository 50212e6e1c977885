from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from vggt_deploy.model.config import get_config
from vggt_deploy.train.forward import TrainingForward
from vggt_deploy.train.initial import initial_model, position_waves
from vggt_deploy.train.recipe import TrainingRecipe

TINY = get_config("vggt-tiny")


def test_the_start_is_the_constant_answer(tiny_recipe: TrainingRecipe) -> None:
    """No motion, the given fields of view, the given depth, the point straight ahead at it."""
    recipe = replace(tiny_recipe.initial, field_of_view=(0.7, 1.2), depth=0.6)
    images = torch.rand(2, 3, 3, 42, 56, generator=torch.Generator().manual_seed(0))
    fresh = initial_model(TINY, recipe, 0)
    with torch.no_grad():
        found = TrainingForward(fresh, 42, 56)(images, torch.arange(6), torch.float32)
    pose = torch.tensor([0, 0, 0, 0, 0, 0, 1, 0.7, 1.2])
    # The sum of four corrections: with the whole bias in each, w would be 4.
    assert (found.poses[-1] - pose).abs().max() < 0.3
    assert (found.poses[0] - pose / 4).abs().max() < 0.1
    assert (found.depth - 0.6).abs().mean() < 0.05
    assert (found.points - torch.tensor([0, 0, 0.6])).abs().mean() < 0.05
    # And yet not the same whatever the picture.
    assert found.depth.std(dim=0).mean() > 0
    assert found.poses[-1].std(dim=(0, 1)).min() > 0


def weights(recipe: TrainingRecipe, seed: int) -> dict[str, Tensor]:
    return dict(initial_model(TINY, recipe.initial, seed).state_dict())


def test_initial_weights_are_the_seeds_and_complete(tiny_recipe: TrainingRecipe) -> None:
    first, again, other = (weights(tiny_recipe, seed) for seed in (0, 0, 1))
    assert all(torch.equal(first[key], again[key]) for key in first)
    for key, value in first.items():
        leaf = key.rsplit(".", 1)[-1]
        constant = leaf in ("bias", "gamma") or (leaf == "weight" and value.dim() == 1)
        assert torch.equal(value, other[key]) == constant, key
    assert all(
        (v == tiny_recipe.initial.layer_scale).all() for k, v in first.items() if "gamma" in k
    )


def test_spread_of_the_weights(tiny_recipe: TrainingRecipe) -> None:
    """A normal cut at two deviations has 0.88 of its deviation."""
    made = weights(tiny_recipe, 0)
    linear = made["aggregator.frame_blocks.0.mlp.fc1.weight"]
    assert float(linear.std()) == pytest.approx(0.88 / TINY.embed**0.5, rel=0.05)
    convolution = made["depth_head.scratch.refinenet1.resConfUnit1.conv1.weight"]
    assert float(convolution.std()) == pytest.approx(0.88 / (9 * 16) ** 0.5, rel=0.1)
    up = made["depth_head.resize_layers.0.weight"]
    assert float(up.std()) == pytest.approx(0.88 / 8**0.5, rel=0.1)


def test_attention_starts_as_likeness(tiny_recipe: TrainingRecipe) -> None:
    made = weights(tiny_recipe, 0)
    for kind in ("frame", "global"):
        queries, keys, values = made[f"aggregator.{kind}_blocks.1.attn.qkv.weight"].chunk(3)
        assert torch.equal(queries, keys)
        assert not torch.equal(queries, values)
    queries, keys, _ = made["camera_head.trunk.0.attn.qkv.weight"].chunk(3)
    assert not torch.equal(queries, keys)


def test_every_place_has_a_code_of_its_own(tiny_recipe: TrainingRecipe) -> None:
    waves = position_waves(8, 32)
    assert waves.shape == (64, 32)
    distances = torch.cdist(waves, waves) + 10 * torch.eye(64)
    assert distances.min() > 0.5
    assert waves[8 * 3 + 5, 0] == pytest.approx(torch.sin(torch.tensor(3.0)).item())
    assert waves[8 * 3 + 5, 16] == pytest.approx(torch.sin(torch.tensor(5.0)).item())
    made = weights(tiny_recipe, 0)["aggregator.patch_embed.pos_embed"]
    torch.testing.assert_close(made[0, 1:], position_waves(TINY.native_grid, TINY.embed))
