"""The tracker's transformer: attention along time per track, and across tracks per frame through a
fixed set of virtual tracks, so that its cost is linear in the number of points.

Key names, "virual_tracks" included, are the checkpoints'.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vggt_deploy.model.config import MLP_RATIO, TrackConfig
from vggt_deploy.model.layers import Mlp


class TrackBlock(nn.Module):
    """Self-attention whose residual is the *normalised* input, x [N, T, C]:

    x <- LN1(x); x <- x + MHA(x); x <- x + MLP(LN2(x)).
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.attn = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.mlp = Mlp(dim, MLP_RATIO * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x)
        x = x + self.attn(x, x, x, need_weights=False)[0]
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class TrackCrossBlock(nn.Module):
    """As `TrackBlock`, with keys and values from a normalised context [N, M, C]."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.norm_context = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.cross_attn = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.mlp = Mlp(dim, MLP_RATIO * dim, dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = self.norm1(x)
        context = self.norm_context(context)
        x = x + self.cross_attn(x, context, context, need_weights=False)[0]
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class UpdateFormer(nn.Module):
    """Track tokens [B, N, S, token_width] -> corrections [B, N, S, 2 + features]."""

    def __init__(self, config: TrackConfig) -> None:
        super().__init__()
        dim, heads = config.hidden, config.attention_heads
        self.input_norm = nn.LayerNorm(config.token_width)
        self.input_transform = nn.Linear(config.token_width, dim)
        self.output_norm = nn.LayerNorm(dim)
        self.flow_head = nn.Linear(dim, 2 + config.features)
        self.virual_tracks = nn.Parameter(torch.zeros(1, config.virtual_tracks, 1, dim))

        def blocks(kind: type[nn.Module]) -> nn.ModuleList:
            return nn.ModuleList(kind(dim, heads) for _ in range(config.blocks))

        self.time_blocks = blocks(TrackBlock)
        self.space_virtual_blocks = blocks(TrackBlock)
        self.space_point2virtual_blocks = blocks(TrackCrossBlock)
        self.space_virtual2point_blocks = blocks(TrackCrossBlock)

    def forward(self, tokens: Tensor) -> Tensor:
        scenes, count, frames, _ = tokens.shape
        start = self.input_transform(self.input_norm(tokens))
        dim = start.shape[-1]
        x = torch.cat([start, self.virual_tracks.expand(scenes, -1, frames, -1)], dim=1)
        for time, virtual_self, to_points, to_virtual in zip(
            self.time_blocks,
            self.space_virtual_blocks,
            self.space_point2virtual_blocks,
            self.space_virtual2point_blocks,
            strict=True,
        ):
            x = time(x.reshape(-1, frames, dim)).reshape(scenes, -1, frames, dim)
            per_frame = x.transpose(1, 2).reshape(scenes * frames, -1, dim)
            points, virtual = per_frame[:, :count], per_frame[:, count:]
            virtual = virtual_self(to_virtual(virtual, points))
            points = to_points(points, virtual)
            per_frame = torch.cat([points, virtual], dim=1)
            x = per_frame.reshape(scenes, frames, -1, dim).transpose(1, 2)
        out: Tensor = self.flow_head(self.output_norm(x[:, :count] + start))
        return out
