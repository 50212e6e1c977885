"""The image encoder: DINOv2 ViT with registers, as VGGT uses it (patch tokens only come out)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vggt_deploy.model.config import VGGTConfig
from vggt_deploy.model.fields import GridFields
from vggt_deploy.model.layers import AttentionKind, Block

# DINOv2's norms; the aggregator's own blocks have 1e-5.
ENCODER_EPS = 1e-6

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)


class PatchProjection(nn.Module):
    """Pixels to patch tokens: [N, 3, H, W] -> [N, h*w, C], row-major."""

    def __init__(self, patch: int, embed: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, embed, kernel_size=patch, stride=patch)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.proj(images).flatten(2).transpose(1, 2)
        return out


class Encoder(nn.Module):
    """[N, 3, H, W] in 0..1 -> patch tokens [N, h*w, C].

    Sequence [cls, registers, patches]. cls and registers influence the patches through attention
    and are then dropped; `mask_token` is in every checkpoint and never used.
    """

    def __init__(
        self,
        config: VGGTConfig,
        *,
        folded: bool,
        attention: AttentionKind,
        keep_layer_scale: bool = False,
    ) -> None:
        super().__init__()
        embed = config.embed
        self.folded = folded
        self.special_tokens = config.special_tokens
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.native_grid**2, embed))
        self.register_tokens = nn.Parameter(torch.zeros(1, config.registers, embed))
        self.mask_token = nn.Parameter(torch.zeros(1, embed))
        self.patch_embed = PatchProjection(config.patch, embed)
        self.blocks = nn.ModuleList(
            Block(
                embed,
                config.heads,
                eps=ENCODER_EPS,
                folded=folded,
                keep_layer_scale=keep_layer_scale,
                attention=attention,
            )
            for _ in range(config.encoder_depth)
        )
        self.norm = nn.LayerNorm(embed, eps=ENCODER_EPS)

    def forward(self, images: Tensor, fields: GridFields) -> Tensor:
        x = self.embed(images, fields)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.norm(x[:, self.special_tokens :])
        return out

    def embed(self, images: Tensor, fields: GridFields) -> Tensor:
        """What the first block gets: [N, 3, H, W] -> [N, P, C]."""
        if not self.folded:
            # Made here and not kept as buffers: a model built on the meta device has no values to
            # keep, and the state dict has no such keys to fill them from.
            mean = torch.tensor(IMAGE_MEAN, dtype=images.dtype, device=images.device)
            std = torch.tensor(IMAGE_STD, dtype=images.dtype, device=images.device)
            images = (images - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
        patches = self.patch_embed(images)
        special = torch.cat([self.cls_token, self.register_tokens], dim=1)
        special = special.expand(patches.shape[0], -1, -1)
        return torch.cat([special, patches], dim=1) + fields.pos_embed
