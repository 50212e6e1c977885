"""Which token shows what another one shows, and attention that is to look there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from vggt_deploy.model.config import get_config
from vggt_deploy.train.batches import Scenes, draw_scenes, training_batch
from vggt_deploy.train.forward import TrainingForward
from vggt_deploy.train.initial import initial_model
from vggt_deploy.train.loop import tokens_seen_by
from vggt_deploy.train.losses import match_loss
from vggt_deploy.train.matches import Matches, draw_matches, partners
from vggt_deploy.train.pool import ScenePool
from vggt_deploy.train.recipe import TrainingRecipe

PATCH = 14


@pytest.fixture
def scenes(tiny_pool: ScenePool) -> Scenes:
    return draw_scenes(tiny_pool, 4, 3, 4, np.random.default_rng(0))


def test_every_view_is_matched_with_another_of_its_scene(scenes: Scenes) -> None:
    matches = draw_matches(scenes, PATCH, np.random.default_rng(1))
    assert matches.other.shape == (4, 3)
    assert matches.partner.shape == matches.matched.shape == (4, 3, 12)
    assert (matches.other != np.arange(3)).all()
    assert set(matches.other.ravel()) == {0, 1, 2}
    for b in range(4):
        for a in range(3):
            pair = [a, matches.other[b, a]]
            alone = Scenes(
                scenes.images[b : b + 1, pair],
                scenes.depth[b : b + 1, pair],
                scenes.extrinsic[b : b + 1, pair],
                scenes.intrinsic[b : b + 1, pair],
            )
            partner, matched = partners(alone, PATCH)
            assert np.array_equal(matches.matched[b, a], matched[0])
            assert np.array_equal(matches.partner[b, a][matched[0]], partner[0][matched[0]])
    assert matches.matched.any()


def test_tokens_are_counted_view_by_view() -> None:
    """Two views of two patches behind three special tokens: tokens 0-2 3-4 | 5-7 8-9."""
    matches = Matches(
        other=np.array([[1, 0]]),
        partner=np.array([[[1, 0], [0, 0]]]),
        matched=np.array([[[True, False], [True, True]]]),
    )
    expected = [-1, -1, -1, 9, -1, -1, -1, -1, 3, 3]
    assert tokens_seen_by(matches, 3).tolist() == [expected]


def test_match_loss_by_hand() -> None:
    scores = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    seen_by = torch.tensor([[-1, 3, -1, 0]])
    shares = scores.double().exp()
    # Two views of two tokens: token 1 chooses between 2 and 3, token 3 between 0 and 1.
    wanted = [
        -(shares[0, h, t, s] / shares[0, h, t, of].sum()).log()
        for h in range(2)
        for t, s, of in ((1, 3, [2, 3]), (3, 0, [0, 1]))
    ]
    expected = float(sum(wanted) / len(wanted))
    assert float(match_loss([scores], seen_by, 2)) == pytest.approx(expected, rel=1e-6)
    assert float(match_loss([scores, scores], seen_by, 2)) == pytest.approx(expected, rel=1e-6)
    other = torch.tensor([[-1, 2, -1, 0]])
    assert float(match_loss([scores], other, 2)) != pytest.approx(expected, rel=1e-3)
    assert float(match_loss([], seen_by, 2)) == 0
    assert float(match_loss([scores], None, 2)) == 0


def test_watched_attention_is_what_the_block_computes(
    tiny_pool: ScenePool, tiny_recipe: TrainingRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scores, through softmax and values, give the output of the block's own attention."""
    model = initial_model(get_config("vggt-tiny"), tiny_recipe.initial, 0)
    batch = training_batch(tiny_pool, tiny_recipe, 0, 0)
    images = torch.from_numpy(batch.images)
    forward = TrainingForward(model, *batch.images.shape[-2:])
    dense = torch.from_numpy(batch.dense_frames)
    block = model.aggregator.global_blocks[2]
    made: list[torch.Tensor] = []
    inputs: list[tuple[torch.Tensor, ...]] = []

    def keep(_: object, given: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
        inputs.append(given)
        made.append(out)

    block.attn.register_forward_hook(keep)
    with torch.no_grad():
        predictions = forward(images, dense, torch.float32, frozenset({2}))
        (scores,) = predictions.attention
        _, _, v = block.attn.project(*inputs[0])
        mixed = scores.softmax(-1) @ v.transpose(1, 2)
        out = block.attn.proj(mixed.transpose(1, 2).reshape(made[0].shape))
    assert scores.shape[0] == batch.images.shape[0]
    assert torch.allclose(out, made[0], atol=1e-5)
    assert not torch.allclose(scores.softmax(-1).flip(-1) @ v.transpose(1, 2), mixed, atol=1e-3)
    assert forward(images, dense, torch.float32).attention == []


def test_attention_learns_to_look_there(tiny_pool: ScenePool, tiny_recipe: TrainingRecipe) -> None:
    """The loss alone, on one batch, moves the attention to the partners."""
    recipe = replace(tiny_recipe, loss=replace(tiny_recipe.loss, match_blocks=(1,)))
    model = initial_model(get_config("vggt-tiny"), recipe.initial, 0)
    batch = training_batch(tiny_pool, recipe, 0, 0)
    assert batch.matches is not None
    seen_by = torch.from_numpy(tokens_seen_by(batch.matches, model.config.special_tokens))
    forward = TrainingForward(model, *batch.images.shape[-2:])
    images, dense = torch.from_numpy(batch.images), torch.from_numpy(batch.dense_frames)
    optimizer = torch.optim.Adam(model.aggregator.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        attention = forward(images, dense, torch.float32, frozenset({1})).attention
        loss = match_loss(attention, seen_by, images.shape[1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_without_the_loss_nothing_is_matched(
    tiny_pool: ScenePool, tiny_recipe: TrainingRecipe
) -> None:
    recipe = replace(tiny_recipe, loss=replace(tiny_recipe.loss, match=0.0))
    assert training_batch(tiny_pool, recipe, 0, 0).matches is None
