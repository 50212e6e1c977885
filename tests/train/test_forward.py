from __future__ import annotations

import pytest
import torch

from vggt_deploy.model.config import get_config
from vggt_deploy.model.recipe import recipe_tensor
from vggt_deploy.model.vggt import VGGT
from vggt_deploy.train.forward import TrainingForward
from vggt_deploy.train.initial import TRAINED_HEADS

HEIGHT, WIDTH = 42, 56
POS_EMBED = "aggregator.patch_embed.pos_embed"


@pytest.fixture
def model() -> VGGT:
    """Random weights; the size is not the embedding's own, so it is resized."""
    model = VGGT(get_config("vggt-tiny"), heads=TRAINED_HEADS)
    model.load_state_dict(
        {key: recipe_tensor(key, tuple(v.shape)) for key, v in model.state_dict().items()}
    )
    return model


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))


def test_training_computes_what_the_model_computes(model: VGGT, images: torch.Tensor) -> None:
    seen = torch.tensor([0, 3, 5])
    with torch.no_grad():
        expected = model(images)
        found = TrainingForward(model, HEIGHT, WIDTH)(images, seen, torch.float32)
    for pose, known in zip(found.poses, expected["pose_enc_list"], strict=True):
        torch.testing.assert_close(pose[..., :7], known[..., :7], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(pose[..., 7:].relu(), known[..., 7:], rtol=1e-4, atol=1e-5)
    depth = expected["depth"].reshape(6, HEIGHT, WIDTH)
    points = expected["world_points"].reshape(6, HEIGHT, WIDTH, 3)
    torch.testing.assert_close(found.depth, depth[seen], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.points, points[seen], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        found.point_confidence,
        expected["world_points_conf"].reshape(6, HEIGHT, WIDTH)[seen],
        rtol=1e-4,
        atol=1e-5,
    )
    assert not torch.allclose(found.depth, depth[[0, 3, 4]], rtol=1e-2)


def test_the_positional_embedding_learns(model: VGGT, images: torch.Tensor) -> None:
    forward = TrainingForward(model, HEIGHT, WIDTH)
    loss = forward(images, torch.tensor([0]), torch.float32).depth.sum()
    embedding = model.get_parameter(POS_EMBED)
    (gradient,) = torch.autograd.grad(loss, embedding)
    assert gradient.abs().sum() > 0
    # The fields of inference have none, which is why training has its own.
    assert not model.fields(HEIGHT, WIDTH).pos_embed.requires_grad
    # And it is not a copy from before the first step.
    with torch.no_grad():
        embedding.mul_(2)
    torch.testing.assert_close(
        forward.fields().pos_embed.detach(), model.fields(HEIGHT, WIDTH).pos_embed
    )


def test_an_iteration_has_no_gradient_through_the_one_before(
    model: VGGT, images: torch.Tensor
) -> None:
    """The last pose is the raw pose so far, cut off, plus one correction."""
    forward = TrainingForward(model, HEIGHT, WIDTH)
    poses = forward(images, torch.tensor([0]), torch.float32).poses
    (gradient,) = torch.autograd.grad(
        poses[-1].sum(), model.get_parameter("camera_head.empty_pose_tokens"), allow_unused=True
    )
    assert gradient is None
    poses = forward(images, torch.tensor([0]), torch.float32).poses
    (first,) = torch.autograd.grad(
        poses[0].sum(), model.get_parameter("camera_head.empty_pose_tokens")
    )
    assert first.abs().sum() > 0


def test_bfloat16_is_near_and_comes_back_as_float32(model: VGGT, images: torch.Tensor) -> None:
    forward = TrainingForward(model, HEIGHT, WIDTH)
    seen = torch.arange(6)
    with torch.no_grad():
        full = forward(images, seen, torch.float32)
        low = forward(images, seen, torch.bfloat16)
    assert low.depth.dtype == low.poses[0].dtype == torch.float32
    error = (low.depth - full.depth).norm() / full.depth.norm()
    assert 1e-4 < error < 0.2
