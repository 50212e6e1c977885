"""Everything in VGGT that depends on the image size alone: computed once, outside the network.

    pos_embed   the encoder's positional embedding, resized to the patch grid
    rope        cos and sin of the 2-D rotary embedding
    dpt         the sine fields that the depth and point heads add to their maps

The network takes them as arguments, so a traced graph holds no arange, no cos and no resize of a
weight (an antialiased resize is what TensorRT's parser refuses), and a constant field is stored
once however many frames there are.

DPT fields are separable: half the channels depend on x alone, half on y alone. They are stored as a
row and a column, zero in the other half, so that `map + row + column` broadcasts: two additions,
no split, and 0.5 MB where the expanded field of the last map at 518 x 518 would take 137 MB.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from vggt_deploy.model.config import VGGTConfig

ROPE_BASE = 100.0
FIELD_BASE = 100.0
FIELD_GAIN = 0.1


class SeparableField(NamedTuple):
    """A field over [C, H, W] as row [1, C, 1, W] (zero for c >= C/2) and column [1, C, H, 1]."""

    row: Tensor
    column: Tensor


class GridFields(NamedTuple):
    """The fields for one image size. P = special tokens + h * w, D = width of an attention head.

    pos_embed  [1, P, C]      zero at the register tokens, which get no position
    rope_cos   [P, 1, D/2]    float32; columns [0, D/4) turn with y, [D/4, D/2) with x
    rope_sin   [P, 1, D/2]
    dpt        one field per DPT level at [h, w], and the last at [14 h, 14 w]
    """

    pos_embed: Tensor
    rope_cos: Tensor
    rope_sin: Tensor
    dpt: tuple[SeparableField, ...]

    def named(self) -> dict[str, Tensor]:
        """Every tensor under a name of its own, in the order of the flattened tuple."""
        tensors = {
            "pos_embed": self.pos_embed,
            "rope_cos": self.rope_cos,
            "rope_sin": self.rope_sin,
        }
        for level, field in enumerate(self.dpt):
            tensors[f"dpt.{level}.row"] = field.row
            tensors[f"dpt.{level}.column"] = field.column
        return tensors

    @classmethod
    def from_named(cls, tensors: Mapping[str, Tensor]) -> Self:
        """The inverse of `named`. An exporter traces over the plain dict and rebuilds inside."""
        levels = range((len(tensors) - 3) // 2)
        return cls(
            pos_embed=tensors["pos_embed"],
            rope_cos=tensors["rope_cos"],
            rope_sin=tensors["rope_sin"],
            dpt=tuple(
                SeparableField(tensors[f"dpt.{i}.row"], tensors[f"dpt.{i}.column"]) for i in levels
            ),
        )


def grid_fields(config: VGGTConfig, pos_embed: Tensor, height: int, width: int) -> GridFields:
    """Fields for images of height x width pixels.

    `pos_embed` is the entry `aggregator.patch_embed.pos_embed` [1, 1 + n * n, C]; everything is
    made on its device. Folded and unfolded models take the same fields.
    """
    h, w = config.grid(height, width)
    device = pos_embed.device
    cos, sin = rope_tables(config, h, w, device)
    sizes = [(channels, h, w) for channels in config.dpt_channels]
    sizes.append((config.dpt_features // 2, height, width))
    return GridFields(
        pos_embed=resize_pos_embed(config, pos_embed, h, w),
        rope_cos=cos,
        rope_sin=sin,
        dpt=tuple(dpt_field(c, rows, columns, height, width, device) for c, rows, columns in sizes),
    )


def resize_pos_embed(config: VGGTConfig, pos_embed: Tensor, h: int, w: int) -> Tensor:
    """[1, 1 + n * n, C] -> [1, special + h * w, C].

    Antialiased bicubic (Keys kernel with a = -0.5), as DINOv2 resizes it; ordinary bicubic
    (a = -0.75) is another function and visibly changes the poses.
    """
    n, channels = config.native_grid, pos_embed.shape[-1]
    cls, patches = pos_embed[:, :1], pos_embed[:, 1:]
    if (h, w) != (n, n):
        grid = patches.float().reshape(1, n, n, channels).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, (h, w), mode="bicubic", antialias=True, align_corners=False)
        patches = grid.permute(0, 2, 3, 1).reshape(1, h * w, channels).to(pos_embed.dtype)
    registers = pos_embed.new_zeros(1, config.registers, channels)
    return torch.cat([cls, registers, patches], dim=1).detach()


def rope_tables(config: VGGTConfig, h: int, w: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cos and sin [P, 1, D/2] of position * 100^(-j / (D/4)), j = 0 .. D/4 - 1, for y then for x.

    Patch (row, column) sits at (row + 1, column + 1); the special tokens at (0, 0), unturned.
    Always FP32: angles rounded to FP16 or BF16 first cost 0.006 or 0.06 in the table.
    """
    quarter = config.head_dim // 4
    exponent = torch.arange(quarter, dtype=torch.float32, device=device) / quarter
    frequency = 1.0 / ROPE_BASE**exponent
    y = torch.arange(1, h + 1, dtype=torch.float32, device=device).repeat_interleave(w)
    x = torch.arange(1, w + 1, dtype=torch.float32, device=device).repeat(h)
    position = torch.stack([y, x], dim=1)
    position = torch.cat([position.new_zeros(config.special_tokens, 2), position])
    angle = (position[:, :, None] * frequency).reshape(-1, 1, 2 * quarter)
    return angle.cos(), angle.sin()


def dpt_field(
    channels: int, rows: int, columns: int, height: int, width: int, device: torch.device
) -> SeparableField:
    """The sine field of `channels` on a grid of rows x columns laid over a height x width image.

    u_i = ((2 i + 1 - columns) / columns) * width / diagonal, likewise v with rows and height;
    channels [sin(u om), cos(u om), sin(v om), cos(v om)] * 0.1, om_k = 100^(-k / (channels / 4)).
    """
    diagonal = float(width * width + height * height) ** 0.5
    x_part = _sines(channels // 4, columns, width / diagonal, device)
    y_part = _sines(channels // 4, rows, height / diagonal, device)
    row = torch.cat([x_part, torch.zeros_like(x_part)])
    column = torch.cat([torch.zeros_like(y_part), y_part])
    return SeparableField(
        row.reshape(1, channels, 1, columns), column.reshape(1, channels, rows, 1)
    )


def _sines(quarter: int, count: int, extent: float, device: torch.device) -> Tensor:
    """[2 * quarter, count] float32: 0.1 * sin, then 0.1 * cos, of centred positions."""
    index = torch.arange(count, dtype=torch.float64, device=device)
    position = (2 * index + 1 - count) / count * extent
    k = torch.arange(quarter, dtype=torch.float64, device=device)
    angle = (1.0 / FIELD_BASE ** (k / quarter))[:, None] * position
    return (torch.cat([angle.sin(), angle.cos()]) * FIELD_GAIN).float()
