from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from vggt_deploy.model.config import get_config
from vggt_deploy.train.batches import Scenes, draw_scenes
from vggt_deploy.train.initial import initial_model
from vggt_deploy.train.loop import TrainingError
from vggt_deploy.train.matches import partners
from vggt_deploy.train.pairs import PairBatch, cell_depth, pair_batch
from vggt_deploy.train.pool import ScenePool
from vggt_deploy.train.pretrain import EncoderTrainer, encoder_losses
from vggt_deploy.train.recipe import TrainingRecipe
from vggt_deploy.train.scoring import single_threads

PATCH = 14


@pytest.fixture
def pairs(tiny_pool: ScenePool) -> Scenes:
    return draw_scenes(tiny_pool, 6, 2, 3, np.random.default_rng(0))


def by_hand(scenes: Scenes, pair: int, patch: int) -> int | None:
    """Ray of the patch's centre with the plane z = 4 of the test scenes, seen by camera 1."""
    height, width = scenes.depth.shape[2:]
    row, column = divmod(patch, width // PATCH)
    u, v = column * PATCH + 7, row * PATCH + 7
    if not np.isfinite(scenes.depth[pair, 0, v, u]):
        return None
    first, second = scenes.extrinsic[pair]
    k0, k1 = scenes.intrinsic[pair]
    ray = first[:, :3].T @ np.linalg.inv(k0) @ [u + 0.5, v + 0.5, 1]
    centre = -first[:, :3].T @ first[:, 3]
    point = centre + (4 - centre[2]) / ray[2] * ray
    seen = k1 @ (second[:, :3] @ point + second[:, 3])
    x, y = seen[:2] / seen[2]
    if not (0 <= x < width and 0 <= y < height):
        return None
    if not np.isfinite(scenes.depth[pair, 1, int(y), int(x)]):
        return None
    return int(y) // PATCH * (width // PATCH) + int(x) // PATCH


def test_partners_show_the_same_point_of_the_plane(pairs: Scenes) -> None:
    partner, matched, _ = partners(pairs, PATCH)
    assert partner.shape == matched.shape == (6, 12)
    expected = [[by_hand(pairs, i, p) for p in range(12)] for i in range(6)]
    for i in range(6):
        for p in range(12):
            assert (expected[i][p] is not None) == matched[i, p]
            if matched[i, p]:
                assert partner[i, p] == expected[i][p]
    assert 0.3 < matched.mean() < 1
    assert (partner[matched] != np.broadcast_to(np.arange(12), (6, 12))[matched]).any()


def test_what_stands_before_it_hides_the_partner(pairs: Scenes) -> None:
    nearer = pairs.depth.copy()
    nearer[:, 1] *= 0.9
    _, matched, _ = partners(replace(pairs, depth=nearer), PATCH)
    assert not matched.any()
    nearer[:, 1] *= 1.08 / 0.9
    slightly = pairs.depth.copy()
    slightly[:, 1] *= 1.02
    _, still, _ = partners(replace(pairs, depth=slightly), PATCH)
    assert still.any()


def test_cells_are_in_the_order_of_the_patches() -> None:
    depth = np.arange(1, 28 * 42 + 1, dtype=np.float32).reshape(1, 1, 28, 42)
    depth[0, 0, 0:4, 0:4] = np.inf
    cells = cell_depth(depth, 14, 2)
    assert cells.shape == (1, 1, 6, 4)
    assert np.isnan(cells[0, 0, 0, 0])
    assert np.isfinite(cells.ravel()[1:]).all()
    # Patch (1, 2), cell (1, 0): rows 14 + 10, columns 28 + 3.
    sampled = depth[0, 0, [[3], [10], [17], [24]], [3, 10, 17, 24, 31, 38]]
    median = np.median(np.log(sampled[np.isfinite(sampled)]))
    assert cells[0, 0, 5, 2] == pytest.approx(np.log(depth[0, 0, 24, 31]) - median, abs=1e-6)
    np.testing.assert_allclose(cell_depth(depth * 7, 14, 2), cells, atol=1e-5)


def test_pairs_depend_on_step_and_shard_alone(
    tiny_pool: ScenePool, tiny_recipe: TrainingRecipe
) -> None:
    first, again, other, shard = (
        pair_batch(tiny_pool, tiny_recipe, PATCH, step, k)
        for step, k in ((3, 0), (3, 0), (4, 0), (3, 1))
    )
    assert first.images.shape == (2, 2, 3, 42, 56)
    for name in vars(first):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    assert not np.array_equal(first.images, other.images)
    assert not np.array_equal(first.images, shard.images)


def toy_batch(matched: NDArray[np.bool_]) -> PairBatch:
    """Two pairs of 12 patches with known partners and depth; one cell unknown."""
    rng = np.random.default_rng(1)
    log_depth = rng.normal(size=(2, 2, 12, 4)).astype(np.float32)
    log_depth[0, 0, 0, 0] = np.nan
    return PairBatch(
        np.zeros((2, 2, 3, 42, 56), np.float32), log_depth, rng.integers(0, 12, (2, 12)), matched
    )


def test_the_losses_of_the_encoder_by_hand(tiny_recipe: TrainingRecipe) -> None:
    matched = np.random.default_rng(2).random((2, 12)) < 0.6
    batch = toy_batch(matched)
    generator = torch.Generator().manual_seed(3)
    depth = torch.randn(4, 12, 4, generator=generator)
    direction = torch.nn.functional.normalize(torch.randn(4, 12, 8, generator=generator), dim=-1)
    recipe = replace(tiny_recipe.encoder, depth=0.7, match=0.4, temperature=0.2)
    losses = encoder_losses(depth, direction, batch, recipe)
    error = np.abs(depth.numpy().reshape(2, 2, 12, 4).astype(float) - batch.log_depth)
    assert float(losses.depth) == pytest.approx(np.nanmean(error), rel=1e-5)
    d = direction.numpy().astype(float).reshape(2, 2, 12, 8)
    entropies, found = [], []
    for i, p in zip(*np.nonzero(matched), strict=True):
        logits = d[i, 1] @ d[i, 0, p] / 0.2
        right = batch.partner[i, p]
        entropies.append(np.log(np.exp(logits).sum()) - logits[right])
        found.append(logits.argmax() == right)
    assert float(losses.match) == pytest.approx(np.mean(entropies), rel=1e-5)
    assert float(losses.found) == pytest.approx(np.mean(found))
    total = 0.7 * float(losses.depth) + 0.4 * float(losses.match)
    assert float(losses.total) == pytest.approx(total, rel=1e-6)
    shifted = replace(batch, partner=(batch.partner + 1) % 12)
    assert float(encoder_losses(depth, direction, shifted, recipe).match) != pytest.approx(
        float(losses.match), rel=1e-3
    )


def test_the_encoder_learns_one_batch(tiny_pool: ScenePool, tiny_recipe: TrainingRecipe) -> None:
    """Step 0 again and again; nothing but the encoder moves."""
    encoder = replace(tiny_recipe.encoder, peak=3e-3, warmup_steps=0)
    recipe = replace(tiny_recipe, encoder=encoder)
    model = initial_model(get_config("vggt-tiny"), recipe.initial, 0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = EncoderTrainer(model, recipe, tiny_pool)
    losses = []
    with single_threads(1) as executor:
        for _ in range(50):
            trainer.step = 0
            losses.append(trainer.train_step(executor))
    (depth, match, found), (late_depth, late_match, late_found) = losses[0], losses[-1]
    assert late_depth < 0.5 * depth
    assert late_match < 0.6 * match
    assert late_found > found
    for name, value in model.state_dict().items():
        outside = not name.startswith("aggregator.patch_embed.") or name.endswith("mask_token")
        assert torch.equal(value, before[name]) == outside, name


def test_a_gradient_that_is_not_finite_stops_it(
    tiny_pool: ScenePool, tiny_recipe: TrainingRecipe
) -> None:
    trainer = EncoderTrainer(
        initial_model(get_config("vggt-tiny"), tiny_recipe.initial, 0), tiny_recipe, tiny_pool
    )
    with torch.no_grad():
        trainer.parameters[0][:] = float("nan")
    with single_threads(1) as executor, pytest.raises(TrainingError, match="not finite"):
        trainer.train_step(executor)
