"""What training minimises: VGGT's losses (arXiv:2503.11651, section 3.2) without the tracker's.

    total = pose * camera + depth * dense(depth) + point * dense(points)
            + (1 - done) (match * matching + motion * motion)

    camera       Huber of translation, quaternion and field of view, each a mean over its entries,
                 weighted and averaged over the iterations with weights decay^(last - i)
    dense        mean over known pixels of  c |e| - confidence log c,  plus gradient times
                 the mean, over pairs of known neighbours, of  c |e_a - e_b|, at every 1st, 2nd,
                 4th ... pixel, averaged over these scales. |.| is Euclidean over the channels
    matching     cross entropy of the attention of some global blocks against the patch of the
                 first view that shows the same place, and
    motion       mean |error| of how far that place moves, read from the tokens after some global
                 blocks by Linears that are thrown away. These two are not VGGT's; they fade to
                 nothing over the training. Without the first, attention does not find what moved;
                 without the second it finds it (a ridge regression on where it looks gives the
                 pose), and the tokens do not say where

The network's confidence c is 1 + exp(.), at least 1. The error e is relative to how far from the
first camera (depth: from its own) the true value lies, NEAREST at least. VGGT leaves it absolute:
on open ground the few farthest pixels would then outweigh all others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vggt_deploy.train.forward import Predictions
from vggt_deploy.train.recipe import LossRecipe

NEAREST = 0.1  # in units of the mean distance
_ROTATION = slice(3, 7)
_FIELD_OF_VIEW = slice(7, 9)


@dataclass(frozen=True)
class TargetTensors:
    """pose [B, S, 9]; depth [N, H, W] and points [N, H, W, 3] of the N dense frames, known where
    valid [N, H, W].
    """

    pose: Tensor
    depth: Tensor
    points: Tensor
    valid: Tensor
    seen_by: Tensor | None = None
    motion: Tensor | None = None
    moved: Tensor | None = None


@dataclass(frozen=True)
class Losses:
    """Scalars: what is minimised, and its parts before their weights."""

    total: Tensor
    pose: Tensor
    depth: Tensor
    points: Tensor
    match: Tensor
    motion: Tensor


def training_losses(
    predictions: Predictions, targets: TargetTensors, recipe: LossRecipe, done: float = 0.0
) -> Losses:
    """`done` 0..1: the part of the training behind it; the match and motion losses fade with it."""
    pose = camera_loss(predictions.poses, targets.pose, recipe)
    depth = dense_loss(
        predictions.depth[..., None],
        predictions.depth_confidence,
        targets.depth[..., None],
        targets.valid,
        recipe,
    )
    points = dense_loss(
        predictions.points, predictions.point_confidence, targets.points, targets.valid, recipe
    )
    match = match_loss(predictions.attention, targets.seen_by, targets.pose.shape[1])
    total = recipe.pose * pose + recipe.depth * depth + recipe.point * points
    motion = motion_loss(predictions.motion, targets.motion, targets.moved)
    total = total + (1 - done) * (recipe.match * match + recipe.motion * motion)
    return Losses(total, pose, depth, points, match, motion)


def motion_loss(found: Sequence[Tensor], motion: Tensor | None, moved: Tensor | None) -> Tensor:
    """Mean |error| of motions [B, S, P, 2] where moved [B, S, P]; 0 without a head or a target."""
    if not found or motion is None or moved is None:
        return torch.zeros(())
    known = moved.sum().clamp(min=1)
    losses = [((one - motion).abs().mean(dim=-1) * moved).sum() / known for one in found]
    return torch.stack(losses).mean()


def match_loss(attention: Sequence[Tensor], seen_by: Tensor | None, views: int) -> Tensor:
    """Cross entropy of attention scores [B, heads, T, T] of some blocks over the T tokens of
    `views` views: of all tokens of other views, each token that has a partner (`seen_by` [B, T], -1
    without) should look at that, in every head. Mean over all of them.

    Its own view is left out: nothing in a token says which view it is from, so what is most like a
    token is itself, and that does no harm.
    """
    if not attention or seen_by is None:
        return torch.zeros(())
    losses = []
    for scores in attention:
        view = torch.arange(views, device=scores.device)
        view = view.repeat_interleave(scores.shape[-1] // views)
        others = scores.masked_fill(view[:, None] == view, -torch.inf)
        target = seen_by[:, None].expand(scores.shape[:-1])
        losses.append(F.cross_entropy(others.flatten(0, 2), target.flatten(), ignore_index=-1))
    return torch.stack(losses).mean()


def camera_loss(poses: Sequence[Tensor], target: Tensor, recipe: LossRecipe) -> Tensor:
    """Poses of the iterations, each [B, S, 9], against the target [B, S, 9].

    The target's quaternion has w >= 0, and the raw one is compared with it: views that turn by less
    than 180 degrees leave no choice of sign.
    """
    last = len(poses) - 1
    weights = [recipe.iteration_decay ** (last - i) for i in range(len(poses))]
    total = target.new_zeros(())
    for weight, pose in zip(weights, poses, strict=True):
        error = huber(pose - target, recipe.huber)
        parts = (
            recipe.translation * error[..., :3].mean()
            + recipe.rotation * error[..., _ROTATION].mean()
            + recipe.field_of_view * error[..., _FIELD_OF_VIEW].mean()
        )
        total = total + weight * parts
    return total / sum(weights)


def huber(error: Tensor, width: float) -> Tensor:
    """e^2 / (2 width) up to |e| = width, |e| - width / 2 beyond: slope 1 far away."""
    loss: Tensor = F.smooth_l1_loss(error, torch.zeros_like(error), beta=width, reduction="none")
    return loss


def dense_loss(
    value: Tensor, confidence: Tensor, target: Tensor, valid: Tensor, recipe: LossRecipe
) -> Tensor:
    """Values [N, H, W, C] and confidence [N, H, W] against targets, where valid [N, H, W]."""
    known = valid.to(value.dtype)
    size = torch.linalg.vector_norm(target, dim=-1).clamp(min=NEAREST)
    error = (value - target) * (known / size)[..., None]
    distance: Tensor = torch.linalg.vector_norm(error, dim=-1)
    pixel = (confidence * distance - recipe.confidence * confidence.log()) * known
    loss: Tensor = pixel.sum() / known.sum().clamp(min=1)
    if not recipe.gradient or not recipe.gradient_scales:
        return loss
    slope: Tensor = error.new_zeros(())
    for scale in range(recipe.gradient_scales):
        step = 2**scale
        slope = slope + gradient_loss(
            error[:, ::step, ::step], confidence[:, ::step, ::step], known[:, ::step, ::step]
        )
    total: Tensor = loss + recipe.gradient * slope / recipe.gradient_scales
    return total


def gradient_loss(error: Tensor, confidence: Tensor, known: Tensor) -> Tensor:
    """Mean of c |e_a - e_b| over neighbours in x and in y of which both are known; c is a's."""
    total, pairs = error.new_zeros(()), error.new_zeros(())
    for dim in (1, 2):
        size = error.shape[dim] - 1
        both = known.narrow(dim, 0, size) * known.narrow(dim, 1, size)
        difference = torch.linalg.vector_norm(error.diff(dim=dim), dim=-1)
        total = total + (confidence.narrow(dim, 0, size) * difference * both).sum()
        pairs = pairs + both.sum()
    return total / pairs.clamp(min=1)
