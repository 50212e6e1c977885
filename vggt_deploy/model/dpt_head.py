"""The dense head (DPT): four token maps -> one map at image resolution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vggt_deploy.model.config import VGGTConfig
from vggt_deploy.model.fields import SeparableField

HIDDEN_CHANNELS = 32


def upsample(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear with align_corners=True: the corner pixels' centres coincide."""
    return F.interpolate(x, size, mode="bilinear", align_corners=True)


class ResidualConvUnit(nn.Module):
    """conv2(relu(conv1(relu(x)))) + relu(x).

    The skip carries relu(x), not x: the checkpoints were trained with an in-place ReLU that had
    already overwritten x when it was added.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        out: Tensor = self.conv2(F.relu(self.conv1(x))) + x
        return out


class Fusion(nn.Module):
    """out_conv(up(RCU2(x + RCU1(skip)))), with the 1x1 out_conv done before the upsampling.

    A 1x1 convolution and a per-channel interpolation whose weights sum to one commute exactly;
    this order does up to four times less work.
    """

    def __init__(self, channels: int, *, has_skip: bool = True) -> None:
        super().__init__()
        self.out_conv = nn.Conv2d(channels, channels, 1)
        if has_skip:
            self.resConfUnit1 = ResidualConvUnit(channels)
        self.resConfUnit2 = ResidualConvUnit(channels)

    def forward(self, x: Tensor, skip: Tensor | None, size: tuple[int, int]) -> Tensor:
        if skip is not None:
            x = x + self.resConfUnit1(skip)
        return upsample(self.out_conv(self.resConfUnit2(x)), size)


class Scratch(nn.Module):
    """The convolutions after reassembly, under the names that checkpoints give them."""

    def __init__(self, channels: Sequence[int], features: int, out: int | None) -> None:
        super().__init__()
        for level, width in enumerate(channels, start=1):
            rn = nn.Conv2d(width, features, 3, padding=1, bias=False)
            self.add_module(f"layer{level}_rn", rn)
        self.refinenet1 = Fusion(features)
        self.refinenet2 = Fusion(features)
        self.refinenet3 = Fusion(features)
        self.refinenet4 = Fusion(features, has_skip=False)
        narrow = features if out is None else features // 2
        self.output_conv1 = nn.Conv2d(features, narrow, 3, padding=1)
        if out is not None:
            self.output_conv2 = nn.Sequential(
                nn.Conv2d(narrow, HIDDEN_CHANNELS, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(HIDDEN_CHANNELS, out, 1),
            )


class DPTHead(nn.Module):
    """Patch tokens 4 x [N, h*w, 2C] -> map [N, out, 14h, 14w].

    `out` None gives the feature extractor of the tracker: [N, features, 14h/ratio, 14w/ratio], no
    last convolutions and no positional fields.
    """

    def __init__(
        self,
        config: VGGTConfig,
        *,
        out: int | None,
        features: int | None = None,
        down_ratio: int = 1,
    ) -> None:
        super().__init__()
        dim, widths = 2 * config.embed, config.dpt_channels
        self.patch = config.patch
        self.down_ratio = down_ratio
        self.has_output = out is not None
        self.norm = nn.LayerNorm(dim)
        self.projects = nn.ModuleList(nn.Conv2d(dim, width, 1) for width in widths)
        self.resize_layers = nn.ModuleList(
            [
                nn.ConvTranspose2d(widths[0], widths[0], 4, stride=4),
                nn.ConvTranspose2d(widths[1], widths[1], 2, stride=2),
                nn.Identity(),
                nn.Conv2d(widths[3], widths[3], 3, stride=2, padding=1),
            ]
        )
        self.scratch = Scratch(widths, config.dpt_features if features is None else features, out)

    def forward(
        self,
        tokens: Sequence[Tensor],
        grid: tuple[int, int],
        fields: Sequence[SeparableField] | None = None,
    ) -> Tensor:
        levels = self._reassemble(tokens, grid, fields)
        x = self._fuse(levels)
        x = self.scratch.output_conv1(x)
        h, w = grid
        x = upsample(x, (h * self.patch // self.down_ratio, w * self.patch // self.down_ratio))
        if fields is not None:
            x = x + fields[-1].row + fields[-1].column
        out: Tensor = self.scratch.output_conv2(x) if self.has_output else x
        return out

    def _reassemble(
        self,
        tokens: Sequence[Tensor],
        grid: tuple[int, int],
        fields: Sequence[SeparableField] | None,
    ) -> list[Tensor]:
        """Token maps -> feature maps [N, features, 4h|2h|h|ceil(h/2), ...]."""
        levels = []
        for level, (project, resize) in enumerate(
            zip(self.projects, self.resize_layers, strict=True)
        ):
            x = self.norm(tokens[level]).transpose(1, 2)
            x = project(x.reshape(-1, x.shape[1], *grid))
            if fields is not None:
                x = x + fields[level].row + fields[level].column
            rn = self.scratch.get_submodule(f"layer{level + 1}_rn")
            levels.append(rn(resize(x)))
        return levels

    def _fuse(self, levels: Sequence[Tensor]) -> Tensor:
        """Coarse to fine; each step ends at the size of the next level, the last at twice 4h."""
        r1, r2, r3, r4 = levels
        scratch = self.scratch
        x = scratch.refinenet4(r4, None, _size(r3))
        x = scratch.refinenet3(x, r3, _size(r2))
        x = scratch.refinenet2(x, r2, _size(r1))
        height, width = _size(r1)
        out: Tensor = scratch.refinenet1(x, r1, (2 * height, 2 * width))
        return out


def _size(x: Tensor) -> tuple[int, int]:
    return x.shape[-2], x.shape[-1]


def depth_and_confidence(raw: Tensor, scenes: int) -> tuple[Tensor, Tensor]:
    """Map [B*S, 2, H, W] -> depth exp(y) [B, S, H, W, 1], confidence 1 + exp(c) [B, S, H, W]."""
    height, width = _size(raw)
    value, confidence = torch.split(raw, [1, 1], dim=1)
    return (
        value.exp().reshape(scenes, -1, height, width, 1),
        (1 + confidence.exp()).reshape(scenes, -1, height, width),
    )


def points_and_confidence(raw: Tensor, scenes: int) -> tuple[Tensor, Tensor]:
    """Map [B*S, 4, H, W] -> points sign(y)(exp|y| - 1) [B, S, H, W, 3], confidence [B, S, H, W]."""
    height, width = _size(raw)
    value, confidence = torch.split(raw, [3, 1], dim=1)
    # Not expm1: ONNX has no such operator, and a graph must compute what this does. Near zero it
    # costs an absolute error of 6e-8, one FP32 rounding at 1.
    points = torch.sign(value) * (value.abs().exp() - 1)
    return (
        points.permute(0, 2, 3, 1).reshape(scenes, -1, height, width, 3),
        (1 + confidence.exp()).reshape(scenes, -1, height, width),
    )
