"""Which token shows what another one shows, and attention that is to look there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from vggt_deploy.model.config import get_config
from vggt_deploy.train.batches import Scenes, draw_scenes, training_batch
from vggt_deploy.train.forward import MotionHeads, TrainingForward
from vggt_deploy.train.initial import initial_model
from vggt_deploy.train.losses import match_loss, motion_loss
from vggt_deploy.train.matches import Matches, draw_matches, partners, tokens_seen_by
from vggt_deploy.train.pool import ScenePool
from vggt_deploy.train.recipe import TrainingRecipe

PATCH = 14


@pytest.fixture
def scenes(tiny_pool: ScenePool) -> Scenes:
    return draw_scenes(tiny_pool, 4, 3, 4, np.random.default_rng(0))


def test_every_view_is_matched_with_the_first(scenes: Scenes) -> None:
    matches = draw_matches(scenes, PATCH, np.random.default_rng(1))
    assert matches.other.shape == (4, 3)
    assert matches.partner.shape == matches.matched.shape == (4, 3, 12)
    assert (matches.other[:, 1:] == 0).all()
    assert set(matches.other[:, 0]) == {1, 2}
    for b in range(4):
        for a in range(3):
            pair = [a, matches.other[b, a]]
            alone = Scenes(
                scenes.images[b : b + 1, pair],
                scenes.depth[b : b + 1, pair],
                scenes.extrinsic[b : b + 1, pair],
                scenes.intrinsic[b : b + 1, pair],
            )
            partner, matched, motion = partners(alone, PATCH)
            assert np.array_equal(matches.matched[b, a], matched[0])
            assert np.array_equal(matches.partner[b, a][matched[0]], partner[0][matched[0]])
            assert np.array_equal(matches.motion[b, a], motion[0])
    assert matches.matched.any()


def test_motion_leads_to_where_the_patch_is_seen(scenes: Scenes) -> None:
    """By the ray of the patch's centre, unprojected and projected pixel by pixel."""
    matches = draw_matches(scenes, PATCH, np.random.default_rng(1))
    height, width = scenes.depth.shape[2:]
    checked = 0
    for b, a, p in zip(*np.nonzero(matches.matched), strict=True):
        o = matches.other[b, a]
        row, column = divmod(p, width // PATCH)
        u, v = column * PATCH + 7, row * PATCH + 7
        k, e = scenes.intrinsic[b], scenes.extrinsic[b]
        local = scenes.depth[b, a, v, u] * np.linalg.inv(k[a]) @ [u + 0.5, v + 0.5, 1]
        world = e[a][:, :3].T @ (local - e[a][:, 3])
        x, y, z = k[o] @ (e[o][:, :3] @ world + e[o][:, 3])
        expected = [(x / z - u - 0.5) / width, (y / z - v - 0.5) / height]
        np.testing.assert_allclose(matches.motion[b, a, p], expected, atol=1e-5)
        checked += 1
    assert checked > 20
    assert (matches.motion[~matches.matched] == 0).all()
    assert np.abs(matches.motion[matches.matched]).max() > 0.02


def test_motion_loss_by_hand() -> None:
    found = torch.tensor([[[[0.1, 0.2], [0.5, 0.5]]]])
    motion = torch.tensor([[[[0.3, 0.1], [0.0, 0.0]]]])
    moved = torch.tensor([[[True, False]]])
    assert float(motion_loss([found], motion, moved)) == pytest.approx(0.15)
    assert float(motion_loss([found, motion], motion, moved)) == pytest.approx(0.075)
    assert float(motion_loss([], motion, moved)) == 0
    assert float(motion_loss([found], None, None)) == 0


def test_motion_heads_read_the_tokens_after_the_global_block() -> None:
    heads = MotionHeads(get_config("vggt-tiny"), (1, 2))
    torch.nn.init.ones_(heads.linears[1].weight)
    layers = {i: torch.zeros(4, 5 + 3, 64) for i in (1, 2)}  # two scenes of two views
    layers[2][3, 5 + 1, 32:] = 1.0
    layers[2][:, :5] = 7.0  # special tokens
    layers[2][:, :, :32] = 9.0  # after the frame block
    first, second = heads(layers, 5, 2)
    assert first.shape == second.shape == (2, 2, 3, 2)
    assert not first.any()
    expected = torch.zeros(2, 2, 3, 2)
    expected[1, 1, 1] = 32.0
    torch.testing.assert_close(second, expected)


def test_tokens_are_counted_view_by_view() -> None:
    """Two views of two patches behind three special tokens: tokens 0-2 3-4 | 5-7 8-9."""
    matches = Matches(
        other=np.array([[1, 0]]),
        partner=np.array([[[1, 0], [0, 0]]]),
        matched=np.array([[[True, False], [True, True]]]),
        motion=np.zeros((1, 2, 2, 2), np.float32),
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
    def matches(**weights: float) -> Matches | None:
        recipe = replace(tiny_recipe, loss=replace(tiny_recipe.loss, **weights))  # type: ignore[arg-type]
        return training_batch(tiny_pool, recipe, 0, 0).matches

    assert matches(match=0.0, motion=0.0) is None
    assert matches(match=0.0) is not None
    assert matches(motion=0.0) is not None
