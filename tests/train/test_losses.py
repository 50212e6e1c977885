"""The losses against loops over pixels in float64, with twins that a wrong sign or mask fails."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from vggt_deploy.train.forward import Predictions
from vggt_deploy.train.losses import (
    TargetTensors,
    camera_loss,
    dense_loss,
    huber,
    training_losses,
)
from vggt_deploy.train.recipe import LossRecipe, load_recipe, named_recipe

RECIPE = replace(
    load_recipe(named_recipe("vggt-nano")).loss,
    pose=5.0,
    depth=0.9,
    point=1.1,
    translation=1.5,
    rotation=0.7,
    field_of_view=0.3,
    huber=0.2,
    iteration_decay=0.5,
    confidence=0.25,
    gradient=0.8,
    gradient_scales=2,
)
FRAMES, HEIGHT, WIDTH = 2, 6, 7


def by_hand(
    value: NDArray[Any],
    confidence: NDArray[Any],
    target: NDArray[Any],
    valid: NDArray[Any],
    recipe: LossRecipe,
) -> float:
    """`dense_loss` pixel by pixel."""

    def error(n: int, y: int, x: int) -> NDArray[Any]:
        size = max(0.1, float(np.linalg.norm(target[n, y, x])))
        return (value[n, y, x] - target[n, y, x]) / size

    pixels, slopes = [], []
    for n in range(FRAMES):
        for y in range(HEIGHT):
            for x in range(WIDTH):
                if valid[n, y, x]:
                    c = confidence[n, y, x]
                    e = np.linalg.norm(error(n, y, x))
                    pixels.append(c * e - recipe.confidence * math.log(c))
    for scale in range(recipe.gradient_scales):
        step, terms = 2**scale, []
        for n in range(FRAMES):
            for y in range(0, HEIGHT, step):
                for x in range(0, WIDTH, step):
                    for b in ((y + step, x), (y, x + step)):
                        inside = b[0] < HEIGHT and b[1] < WIDTH
                        if inside and valid[n, y, x] and valid[n, b[0], b[1]]:
                            slope = np.linalg.norm(error(n, *b) - error(n, y, x))
                            terms.append(confidence[n, y, x] * slope)
        slopes.append(np.mean(terms))
    return float(np.mean(pixels) + recipe.gradient * np.mean(slopes))


@pytest.fixture
def dense() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return {
        "value": normal(FRAMES, HEIGHT, WIDTH, 3),
        "confidence": 1 + normal(FRAMES, HEIGHT, WIDTH).exp(),
        "target": normal(FRAMES, HEIGHT, WIDTH, 3),
        "valid": normal(FRAMES, HEIGHT, WIDTH) > -0.5,
    }


def test_the_dense_loss_is_the_sum_over_pixels(dense: dict[str, Tensor]) -> None:
    expected = by_hand(*(t.numpy() for t in dense.values()), RECIPE)
    assert float(dense_loss(**dense, recipe=RECIPE)) == pytest.approx(expected, rel=1e-12)
    single = {k: t.float() if k != "valid" else t for k, t in dense.items()}
    assert float(dense_loss(**single, recipe=RECIPE)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [
        replace(RECIPE, confidence=-RECIPE.confidence),
        replace(RECIPE, gradient=0.0),
        replace(RECIPE, gradient_scales=1),
    ],
)
def test_another_loss_has_another_value(dense: dict[str, Tensor], wrong: LossRecipe) -> None:
    expected = by_hand(*(t.numpy() for t in dense.values()), RECIPE)
    assert float(dense_loss(**dense, recipe=wrong)) != pytest.approx(expected, rel=1e-3)


def test_what_is_not_known_has_no_say(dense: dict[str, Tensor]) -> None:
    before = dense_loss(**dense, recipe=RECIPE)
    hidden = ~dense["valid"]
    value = torch.where(hidden[..., None], 1e3, dense["value"]).requires_grad_()
    changed = {**dense, "value": value}
    loss = dense_loss(**changed, recipe=RECIPE)
    assert loss.item() == pytest.approx(before.item(), rel=1e-12)
    (gradient,) = torch.autograd.grad(loss, value)
    assert not gradient[hidden].any()
    assert gradient[dense["valid"]].abs().sum() > 0
    everything = {**changed, "valid": torch.ones_like(hidden)}
    assert dense_loss(**everything, recipe=RECIPE).item() > 10 * before.item()


def test_nothing_known_is_a_loss_of_zero(dense: dict[str, Tensor]) -> None:
    blind = {**dense, "valid": torch.zeros_like(dense["valid"])}
    assert float(dense_loss(**blind, recipe=RECIPE)) == 0


def test_a_perfect_prediction_has_a_finite_gradient(dense: dict[str, Tensor]) -> None:
    value = dense["target"].clone().requires_grad_()
    loss = dense_loss(**{**dense, "value": value}, recipe=RECIPE)
    (gradient,) = torch.autograd.grad(loss, value)
    assert torch.isfinite(gradient).all()


def test_confidence_is_best_where_the_loss_says(dense: dict[str, Tensor]) -> None:
    """Without the gradient term c |e| - a log c is least at c = a / |e|: sure where it is right."""
    recipe = replace(RECIPE, gradient=0.0, confidence=0.2)
    target = torch.zeros_like(dense["target"])
    target[..., 2] = 2
    value = target.clone()
    value[..., 0] += 0.04  # a relative error of 0.02
    losses = {
        c: float(
            dense_loss(
                value, torch.full_like(dense["confidence"], c), target, dense["valid"], recipe
            )
        )
        for c in (2.0, 9.0, 10.0, 11.0, 40.0)
    }
    assert min(losses, key=lambda c: losses[c]) == 10.0


def test_errors_are_relative_to_how_far_it_is(dense: dict[str, Tensor]) -> None:
    """A scene ten times as large costs the same, down to a tenth of the unit."""
    target = dense["target"] / torch.linalg.vector_norm(dense["target"], dim=-1, keepdim=True)
    near, far, too_near = (
        dense_loss(
            scale * 1.1 * target, dense["confidence"], scale * target, dense["valid"], RECIPE
        ).item()
        for scale in (0.5, 5.0, 0.01)
    )
    assert near == pytest.approx(far, rel=1e-9)
    assert too_near < near


def pose_by_hand(poses: list[NDArray[Any]], target: NDArray[Any], recipe: LossRecipe) -> float:
    total = weights = 0.0
    for i, pose in enumerate(poses):
        error = np.abs(pose - target)
        h = np.where(error < recipe.huber, error**2 / (2 * recipe.huber), error - recipe.huber / 2)
        weight = recipe.iteration_decay ** (len(poses) - 1 - i)
        t, q, f = h[..., :3].mean(), h[..., 3:7].mean(), h[..., 7:].mean()
        total += weight * (recipe.translation * t + recipe.rotation * q + recipe.field_of_view * f)
        weights += weight
    return total / weights


def test_the_pose_loss_weighs_parts_and_iterations() -> None:
    generator = torch.Generator().manual_seed(1)
    poses = [torch.randn(2, 3, 9, generator=generator, dtype=torch.float64) for _ in range(4)]
    target = torch.randn(2, 3, 9, generator=generator, dtype=torch.float64)
    arrays = [pose.numpy() for pose in poses]
    found = float(camera_loss(poses, target, RECIPE))
    assert found == pytest.approx(pose_by_hand(arrays, target.numpy(), RECIPE), rel=1e-12)
    assert found != pytest.approx(pose_by_hand(arrays[::-1], target.numpy(), RECIPE), rel=1e-3)
    swapped = target[..., [3, 4, 5, 6, 0, 1, 2, 7, 8]]
    assert found != pytest.approx(float(camera_loss(poses, swapped, RECIPE)), rel=1e-3)
    assert float(camera_loss([target, target], target, RECIPE)) == 0


def test_huber_has_slope_one_far_away_and_none_at_zero() -> None:
    error = torch.tensor([-3.0, -0.1, 0.0, 0.1, 3.0], requires_grad=True)
    loss = huber(error, 0.2)
    torch.testing.assert_close(loss.detach(), torch.tensor([2.9, 0.025, 0.0, 0.025, 2.9]))
    (slope,) = torch.autograd.grad(loss.sum(), error)
    torch.testing.assert_close(slope, torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0]))


def test_the_total_adds_the_parts(dense: dict[str, Tensor]) -> None:
    depth = dense["value"][..., 0]
    pose = torch.randn(1, 2, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    losses = training_losses(
        Predictions(
            [pose], depth, dense["confidence"], dense["value"], dense["confidence"], [], []
        ),
        TargetTensors(pose + 1, dense["target"][..., 0], dense["target"], dense["valid"]),
        RECIPE,
    )
    weighed = 5 * losses.pose + 0.9 * losses.depth + 1.1 * losses.points
    assert float(losses.total) == pytest.approx(float(weighed), rel=1e-12)
    again = dense_loss(
        depth[..., None],
        dense["confidence"],
        dense["target"][..., :1],
        dense["valid"],
        RECIPE,
    )
    assert float(losses.depth) == pytest.approx(float(again), rel=1e-12)
    assert len({float(losses.pose), float(losses.depth), float(losses.points)}) == 3
