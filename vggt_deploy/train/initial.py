"""The weights of a VGGT before its first training step, from a seed.

    Linear            truncated normal, deviation linear_gain / sqrt(inputs); bias 0
    convolution       truncated normal, deviation convolution_gain / sqrt(inputs); bias 0
    norm              weight 1, bias 0
    tokens            truncated normal of token_deviation
    pos_embed         sines and cosines of row and column, so that places differ from the start
    LayerScale        layer_scale
    last layers       truncated normal of output_deviation around a constant answer: the given depth
                      (in units of the mean distance), the point straight ahead at it, no motion,
                      and the given fields of view

A network that has to learn the constants first puts them into the residual stream, where every
block adds to them until the pictures are lost beside them.

In the blocks of the aggregator the rows of the keys are those of the queries: attention starts as
the likeness of what tokens say, the first thing it has to find across views. The norms of queries
and keys start at attention_gain: scores reach gain^2 sqrt(D) in a head of width D, and at gain 1
none could stand out of two hundred.
"""

from __future__ import annotations

import math
import re

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
_POSITIONS = "aggregator.patch_embed.pos_embed"
_AGGREGATOR_QKV = re.compile(r"aggregator\.(frame|global)_blocks\.\d+\.attn\.qkv\.weight")
_POSE = "camera_head.pose_branch.fc2"
_DEPTH = "depth_head.scratch.output_conv2.2"
_POINT = "point_head.scratch.output_conv2.2"
_QUATERNION_W = 6
_POINT_Z = 2


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
        waves = position_waves(config.native_grid, config.embed)
        model.get_parameter(_POSITIONS)[0, 1:] = waves
        for name, parameter in model.named_parameters():
            if _AGGREGATOR_QKV.fullmatch(name):
                queries, keys, _ = parameter.chunk(3)
                keys.copy_(queries)
            if name.endswith(("q_norm.weight", "k_norm.weight")):
                parameter.fill_(recipe.attention_gain)
        _set_outputs(model, recipe, generator)
    if waiting:
        raise AssertionError(f"no initial value for {sorted(waiting)}")
    return model.train()


def position_waves(side: int, width: int) -> Tensor:
    """[side * side, width]: sin and cos of row and of column at width / 4 wavelengths, the shortest
    of 2 pi places, the longest 100 times that.
    """
    frequency = 100.0 ** -(torch.arange(width // 4) / (width // 4))
    row, column = torch.meshgrid(*[torch.arange(side, dtype=torch.float32)] * 2, indexing="ij")
    angles = [place.reshape(-1, 1) * frequency for place in (row, column)]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)


def _set_outputs(model: VGGT, recipe: InitialRecipe, generator: torch.Generator) -> None:
    """The last layers: a constant answer, and a little of everything else."""
    for name in (_POSE, _DEPTH, _POINT):
        _normal(model.get_parameter(f"{name}.weight"), recipe.output_deviation, generator)
    # Depth is exp(y); a point's coordinate sign(y) (exp|y| - 1). The pose is the sum of the
    # corrections of all iterations.
    model.get_parameter(f"{_DEPTH}.bias")[0] = math.log(recipe.depth)
    model.get_parameter(f"{_POINT}.bias")[_POINT_Z] = math.log1p(recipe.depth)
    pose = torch.zeros(POSE_SIZE)
    pose[_QUATERNION_W] = 1.0
    pose[LINEAR_ENTRIES:] = torch.tensor(recipe.field_of_view)
    model.get_parameter(f"{_POSE}.bias").copy_(pose / model.config.camera_iterations)


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
        _normal(parameter, recipe.convolution_gain / math.sqrt(parameter.shape[0]), generator)
    elif isinstance(module, nn.Conv2d):
        inputs = parameter[0].numel()
        _normal(parameter, recipe.convolution_gain / math.sqrt(inputs), generator)
    elif leaf in _TOKENS:
        _normal(parameter, recipe.token_deviation, generator)
    else:
        raise AssertionError(f"no initial value for {type(module).__name__}.{leaf}")


def _normal(parameter: Tensor, deviation: float, generator: torch.Generator) -> None:
    nn.init.trunc_normal_(
        parameter, std=deviation, a=-2 * deviation, b=2 * deviation, generator=generator
    )
