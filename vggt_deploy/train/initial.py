"""The weights of a VGGT before its first training step, from a seed.

    Linear            truncated normal, deviation linear_gain / sqrt(inputs); bias 0
    convolution       truncated normal, deviation sqrt(2 / inputs) (He et al., 2015); bias 0
    norm              weight 1, bias 0
    tokens, pos_embed truncated normal of token_deviation
    LayerScale        layer_scale
    last layers       truncated normal of output_deviation: depth starts near exp(0) = 1, in units
                      of the mean distance, and poses near no motion at the given field of view

The pose is the sum of the camera head's corrections, so the bias of its last layer is the pose to
start from divided by the number of iterations.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vggt_deploy.model.camera_head import LINEAR_ENTRIES, POSE_SIZE
from vggt_deploy.model.config import VGGTConfig
from vggt_deploy.model.layers import LayerScale
from vggt_deploy.model.vggt import VGGT
from vggt_deploy.train.recipe import InitialRecipe

# The tracker is not trained: it has no truth here.
TRAINED_HEADS = frozenset({"camera", "depth", "point"})
_TOKENS = (
    "camera_token",
    "register_token",
    "cls_token",
    "pos_embed",
    "register_tokens",
    "mask_token",
    "empty_pose_tokens",
)
_LAST_LAYERS = (
    "camera_head.pose_branch.fc2",
    "depth_head.scratch.output_conv2.2",
    "point_head.scratch.output_conv2.2",
)
_QUATERNION_W = 6


def initial_model(config: VGGTConfig, recipe: InitialRecipe, seed: int) -> VGGT:
    """A model whose every parameter is set, float32, in training mode."""
    model = VGGT(config, heads=TRAINED_HEADS)
    generator = torch.Generator().manual_seed(seed)
    waiting = dict(model.named_parameters())
    with torch.no_grad():
        for name, module in model.named_modules():
            for leaf, parameter in module.named_parameters(recurse=False):
                _fill(module, leaf, parameter, recipe, generator)
                waiting.pop(f"{name}.{leaf}" if name else leaf)
        for name in _LAST_LAYERS:
            weight = model.get_parameter(f"{name}.weight")
            _normal(weight, recipe.output_deviation, generator)
        bias = torch.zeros(POSE_SIZE)
        bias[_QUATERNION_W] = 1.0
        bias[LINEAR_ENTRIES:] = recipe.field_of_view
        model.camera_head.pose_branch.fc2.bias.copy_(bias / config.camera_iterations)
    if waiting:
        raise AssertionError(f"no initial value for {sorted(waiting)}")
    return model.train()


def _fill(
    module: nn.Module,
    leaf: str,
    parameter: Tensor,
    recipe: InitialRecipe,
    generator: torch.Generator,
) -> None:
    if leaf == "bias":
        parameter.zero_()
    elif isinstance(module, nn.LayerNorm):
        parameter.fill_(1)
    elif isinstance(module, LayerScale):
        parameter.fill_(recipe.layer_scale)
    elif isinstance(module, nn.Linear):
        _normal(parameter, recipe.linear_gain / math.sqrt(parameter.shape[1]), generator)
    elif isinstance(module, nn.ConvTranspose2d):
        # [in, out, k, k] with stride k: an output pixel sees each input channel once.
        _normal(parameter, math.sqrt(2 / parameter.shape[0]), generator)
    elif isinstance(module, nn.Conv2d):
        _normal(parameter, math.sqrt(2 / parameter[0].numel()), generator)
    elif leaf in _TOKENS:
        _normal(parameter, recipe.token_deviation, generator)
    else:
        raise AssertionError(f"no initial value for {type(module).__name__}.{leaf}")


def _normal(parameter: Tensor, deviation: float, generator: torch.Generator) -> None:
    nn.init.trunc_normal_(
        parameter, std=deviation, a=-2 * deviation, b=2 * deviation, generator=generator
    )
