"""The camera head's first norm, set by what it is given.

    token_norm(x) = w LN(x) + b    with    w = 1 / s,  b = -m / s

where m and s are mean and standard deviation of LN(x), per channel, over the camera tokens of some
steps' scenes. A camera token is mostly the same in every picture: after the encoder and some
hundred steps of the aggregator |m| was 0.60 and s 0.13, means over the channels. A head that gets
them as they are answers one pose for all pictures, and each step of the optimizer moves that; set
like this, the same head learned in 200 steps what it had not begun to learn in 1600.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from vggt_deploy.train.batches import training_batch
from vggt_deploy.train.forward import TrainingForward
from vggt_deploy.train.pool import ScenePool
from vggt_deploy.train.recipe import TrainingRecipe

STEPS = 12  # whose scenes are looked at: those that the training ends with
LEAST = 0.02  # of s; a channel that never changes says nothing


def centre_camera_tokens(forward: TrainingForward, pool: ScenePool, recipe: TrainingRecipe) -> None:
    """Set weight and bias of the model's `camera_head.token_norm`."""
    model, last = forward.model, forward.model.config.depth - 1
    norm = model.camera_head.token_norm
    device = norm.weight.device
    seen = []
    with torch.no_grad():
        for step in range(recipe.steps - STEPS, recipe.steps):
            batch = training_batch(pool, recipe, max(0, step), 0)
            images = torch.from_numpy(batch.images).to(device)
            tokens = model.aggregator(images, forward.fields(), frozenset({last}))[last][:, 0]
            seen.append(F.layer_norm(tokens, tokens.shape[-1:], eps=norm.eps))
        found = torch.cat(seen)
        deviation = found.std(dim=0).clamp(min=LEAST)
        norm.weight.copy_(1 / deviation)
        norm.bias.copy_(-found.mean(dim=0) / deviation)
