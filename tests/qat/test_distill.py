"""The loss: zero between equal networks, by hand on small numbers, and larger for what is worse."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from vggt_deploy.model.vggt import VGGT
from vggt_deploy.model.weights import load_model
from vggt_deploy.qat.distill import (
    LOSSES,
    DistillForward,
    Outputs,
    distill_losses,
    feature_loss,
    pose_loss,
    relative_loss,
    task_loss,
)
from vggt_deploy.qat.recipe import QatRecipe
from vggt_deploy.qat.scenes import QatBatch, QatScene, qat_batch
from vggt_deploy.train.batches import Batch
from vggt_deploy.train.initial import TRAINED_HEADS
from vggt_deploy.train.loop import target_tensors
from vggt_deploy.train.losses import training_losses
from vggt_deploy.train.recipe import load_recipe, named_recipe


@pytest.fixture(scope="module")
def network() -> VGGT:
    return load_model("random:vggt-tiny", heads=TRAINED_HEADS, folded=True)


def run(network: VGGT, batch: QatBatch) -> Outputs:
    forward = DistillForward(network, *batch.images.shape[-2:])
    with torch.no_grad():
        return forward(
            torch.from_numpy(batch.images), torch.from_numpy(batch.dense_frames), torch.float32
        )


def shaken(network: VGGT, size: float) -> VGGT:
    other = load_model("random:vggt-tiny", heads=TRAINED_HEADS, folded=True)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1 + size * torch.randn(parameter.shape, generator=generator))
    return other


def test_it_runs_the_network(
    network: VGGT, qat_scenes: tuple[QatScene, ...], qat_recipe: QatRecipe
) -> None:
    batch = qat_batch(qat_scenes, qat_recipe, 0, 0)
    every = replace(batch, dense_frames=np.arange(4))
    found = run(network, every).predictions
    with torch.no_grad():
        wanted = network(torch.from_numpy(batch.images))
    for mine, other in zip(found.poses, wanted["pose_enc_list"], strict=True):
        emitted = torch.cat([mine[..., :7], mine[..., 7:].relu()], dim=-1)
        assert torch.allclose(emitted, other, rtol=1e-4, atol=1e-5)
    shape = found.depth.shape
    assert torch.allclose(found.depth, wanted["depth"].reshape(shape), rtol=1e-4)
    points = wanted["world_points"].reshape(found.points.shape)
    assert torch.allclose(found.points, points, rtol=1e-3, atol=1e-5)
    confidence = wanted["world_points_conf"].reshape(shape)
    assert torch.allclose(found.point_confidence, confidence, rtol=1e-4)
    assert not torch.allclose(found.depth, wanted["depth"].reshape(shape).flip(0), rtol=1e-4)


def test_nothing_to_learn_from_oneself(
    network: VGGT, qat_scenes: tuple[QatScene, ...], qat_recipe: QatRecipe
) -> None:
    batch = qat_batch(qat_scenes, qat_recipe, 0, 0)
    special = network.config.special_tokens
    teacher = run(network, batch)
    nothing = distill_losses(teacher, teacher, batch, qat_recipe.loss, special)
    assert torch.equal(nothing, torch.zeros(len(LOSSES)))
    little, much = (
        distill_losses(run(shaken(network, size), batch), teacher, batch, qat_recipe.loss, special)
        for size in (0.01, 0.1)
    )
    for name, small, large in zip(LOSSES, little.tolist(), much.tolist(), strict=True):
        assert (0 < small < large) != (name == "task")


def test_pose_loss_by_hand(qat_recipe: QatRecipe) -> None:
    recipe = replace(
        qat_recipe.loss,
        translation=2.0, rotation=3.0, field_of_view=5.0, iteration_decay=0.5, huber=0.1,
    )  # fmt: skip
    teacher = [torch.zeros(1, 2, 9), torch.zeros(1, 2, 9)]
    student = [t.clone() for t in teacher]
    student[0][0, 0, 0] = 1.0  # translation: (1 - 0.05) / 6 entries
    student[1][0, 1, 8] = 0.1  # field of view: 0.01 / 0.2 / 4 entries
    by_hand = (0.5 * 2 * 0.95 / 6 + 1.0 * 5 * 0.05 / 4) / 1.5
    assert float(pose_loss(student, teacher, recipe)) == pytest.approx(by_hand, rel=1e-5)
    swapped = [student[1], student[0]]  # a later iteration counts more
    assert float(pose_loss(swapped, teacher, recipe)) != pytest.approx(by_hand, rel=1e-2)


def test_relative_loss_by_hand() -> None:
    teacher = torch.tensor([[[[3.0, 4.0], [0.0, 0.01]]]])  # sizes 5 and, at least, 0.1
    student = torch.tensor([[[[3.0, 4.5], [0.0, 0.02]]]])  # 10 % off both
    confidence = torch.tensor([[[1.0, 3.0]]])
    found = float(relative_loss(student, teacher, confidence, 0.02))
    assert found == pytest.approx(0.1 - 0.01, rel=1e-5)
    student[..., 1, 1] = 0.01  # the pixel that the teacher trusts is right now
    found = float(relative_loss(student, teacher, confidence, 0.02))
    assert found == pytest.approx((0.1 - 0.01) / 4, rel=1e-5)


def test_special_tokens_count_as_much_as_patches() -> None:
    torch.manual_seed(0)
    teacher = {2: torch.randn(3, 5 + 40, 8)}
    for rows in (slice(0, 5), slice(5, None)):
        student = {2: teacher[2].clone()}
        part = teacher[2][:, rows]
        student[2][:, rows] += 0.1 * part.std(correction=0)
        assert float(feature_loss(student, teacher, 5)) == pytest.approx(0.005, rel=1e-4)
        assert float(feature_loss(student, teacher, 20)) != pytest.approx(0.005, rel=1e-1)


def test_task_loss_is_the_trainings(
    network: VGGT, qat_scenes: tuple[QatScene, ...], qat_recipe: QatRecipe
) -> None:
    """Where all scenes have truth it is `train.losses` without attention and motion."""
    batch = qat_batch(qat_scenes, qat_recipe, 0, 0)
    predictions = run(network, batch).predictions
    assert batch.targets is not None
    plain = Batch(batch.images, batch.targets, batch.dense_frames)
    targets = target_tensors(plain, torch.device("cpu"), network.config)
    weights = replace(load_recipe(named_recipe("vggt-nano")).loss, match=0.0, motion=0.0)
    expected = training_losses(predictions, targets, weights).total
    assert float(task_loss(predictions, batch)) == pytest.approx(float(expected), rel=1e-6)


def test_task_loss_leaves_out_scenes_without_truth(
    network: VGGT, qat_scenes: tuple[QatScene, ...], qat_recipe: QatRecipe
) -> None:
    """Two scenes, the second of which is known: the loss of the second alone."""
    step = next(
        step
        for step in range(20)
        if qat_batch(qat_scenes, qat_recipe, step, 0).images.shape[0] == 2
    )
    whole = replace(qat_batch(qat_scenes, qat_recipe, step, 0), dense_frames=np.arange(4))
    assert whole.targets is not None
    second = replace(
        whole,
        known=np.array([1]),
        targets=type(whole.targets)(
            whole.targets.pose[1:],
            whole.targets.depth[1:],
            whole.targets.points[1:],
            whole.targets.valid[1:],
        ),
    )
    alone = QatBatch(whole.images[1:], np.arange(2), np.array([0]), second.targets)
    found = float(task_loss(run(network, second).predictions, second))
    expected = float(task_loss(run(network, alone).predictions, alone))
    assert found == pytest.approx(expected, rel=1e-4)
    assert found != pytest.approx(float(task_loss(run(network, whole).predictions, whole)))
