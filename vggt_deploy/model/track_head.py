"""The track head: query points in the first frame -> their tracks, visibility and confidence.

An iterative tracker: each point and frame has a coordinate and a latent feature, both refined by a
transformer that looks at correlations of the feature with the frame's map around the coordinate.
The released weights track weakly; with random weights the loop is chaotic after a few iterations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vggt_deploy.errors import UsageError
from vggt_deploy.model.config import TrackConfig, VGGTConfig
from vggt_deploy.model.dpt_head import DPTHead
from vggt_deploy.model.layers import Mlp
from vggt_deploy.model.update_former import UpdateFormer

FLOW_FREQUENCY_TOP = 1000.0
POSITION_BASE = 10000.0


class Tracks(NamedTuple):
    """track [B, S, N, 2] in pixels (x, y); visibility and confidence [B, S, N] in 0..1."""

    track: Tensor
    visibility: Tensor
    confidence: Tensor


class TrackHead(nn.Module):
    """A DPT without positional fields gives maps at half the image's size; then the tracker."""

    def __init__(self, config: VGGTConfig, track: TrackConfig) -> None:
        super().__init__()
        self.feature_extractor = DPTHead(
            config, out=None, features=track.features, down_ratio=track.down_ratio
        )
        self.tracker = Tracker(track)

    def forward(
        self, tokens: Sequence[Tensor], grid: tuple[int, int], query_points: Tensor
    ) -> Tracks:
        """Patch tokens 4 x [B*S, h*w, 2C], query points [B, N, 2] in pixels of frame 0."""
        maps = self.feature_extractor(tokens, grid)
        scenes = query_points.shape[0]
        out: Tracks = self.tracker(maps.reshape(scenes, -1, *maps.shape[1:]), query_points)
        return out


class Tracker(nn.Module):
    """Feature maps [B, S, C, H, W] and query points [B, N, 2] -> `Tracks`."""

    def __init__(self, config: TrackConfig) -> None:
        super().__init__()
        width = config.features
        window = (2 * config.corr_radius + 1) ** 2
        self.config = config
        self.query_ref_token = nn.Parameter(torch.zeros(1, 2, config.token_width))
        self.corr_mlp = Mlp(config.corr_levels * window, config.hidden, width)
        self.updateformer = UpdateFormer(config)
        self.fmap_norm = nn.LayerNorm(width)
        # A GroupNorm of one group upstream; on rows [M, C] that is a LayerNorm.
        self.ffeat_norm = nn.LayerNorm(width)
        self.ffeat_updater = nn.Sequential(nn.Linear(width, width), nn.GELU())
        self.vis_predictor = nn.Sequential(nn.Linear(width, 1))
        self.conf_predictor = nn.Sequential(nn.Linear(width, 1))

    def forward(self, maps: Tensor, query_points: Tensor) -> Tracks:
        config, frames = self.config, maps.shape[1]
        maps = self.fmap_norm(maps.permute(0, 1, 3, 4, 2)).permute(0, 1, 4, 2, 3)
        pyramid = feature_pyramid(maps, config.corr_levels)
        start = (query_points / config.down_ratio)[:, None]  # [B, 1, N, 2]
        feature = sample(maps[:, 0], start, padding="border").permute(0, 2, 3, 1)  # [B, 1, N, C]
        features = feature.expand(-1, frames, -1, -1)
        coords = start.expand(-1, frames, -1, -1)
        offset = self._position(start, maps.shape[-2:]) + self._frame_token(frames)
        for _ in range(config.iterations):
            tokens = self._tokens(pyramid, features, coords) + offset
            delta = self.updateformer(tokens.transpose(1, 2)).transpose(1, 2)
            features = features + self.ffeat_updater(self.ffeat_norm(delta[..., 2:]))
            moved = coords + delta[..., :2]
            # Frame 0 stays at the query whatever the transformer says.
            coords = torch.cat([start, moved[:, 1:]], dim=1)
        return Tracks(
            coords * config.down_ratio,
            self.vis_predictor(features)[..., 0].sigmoid(),
            self.conf_predictor(features)[..., 0].sigmoid(),
        )

    def _tokens(self, pyramid: Sequence[Tensor], features: Tensor, coords: Tensor) -> Tensor:
        """[B, S, N, token_width]: flow embedding, flow twice, correlation, feature."""
        flow = coords - coords[:, :1]
        scaled = flow / self.config.max_scale
        correlation = correlate(pyramid, features, coords, self.config.corr_radius)
        embedding = flow_embedding(flow, self.config.features // 2)
        return torch.cat([embedding, scaled, scaled, self.corr_mlp(correlation), features], dim=-1)

    def _position(self, start: Tensor, size: Sequence[int]) -> Tensor:
        """[B, 1, N, token_width]: a sine field of x and one of y, read at the query points.

        The field is defined on whole pixels and interpolated between them.
        """
        half = self.config.token_width // 2
        x = interpolated_sines(start[..., 0], size[1], half)
        y = interpolated_sines(start[..., 1], size[0], half)
        return torch.cat([x, y], dim=-1)

    def _frame_token(self, frames: int) -> Tensor:
        """[1, S, 1, token_width]: variant 0 for frame 0, variant 1 for the others."""
        variant = torch.arange(frames, device=self.query_ref_token.device).clamp(max=1)
        return self.query_ref_token.index_select(1, variant).unsqueeze(2)


def feature_pyramid(maps: Tensor, levels: int) -> list[Tensor]:
    """Maps [B, S, C, H, W] and their repeated 2 x 2 means."""
    smallest = min(maps.shape[-2:])
    if smallest >> (levels - 1) == 0:
        raise UsageError(
            f"images are too small to track: a feature map of {smallest} pixels has no "
            f"{levels} levels",
            f"use images of at least {2**levels} pixels on each side",
        )
    pyramid = [maps]
    for _ in range(levels - 1):
        pooled = F.avg_pool2d(pyramid[-1].flatten(0, 1), 2)
        pyramid.append(pooled.reshape(*maps.shape[:2], *pooled.shape[1:]))
    return pyramid


def sample(maps: Tensor, coords: Tensor, *, padding: str) -> Tensor:
    """Bilinear, maps [N, C, H, W] at coords [N, I, J, 2] in pixels (x, y) -> [N, C, I, J].

    Pixel centres are at whole coordinates (align_corners).
    """
    height, width = maps.shape[-2:]
    last = coords.new_tensor([max(width - 1, 1), max(height - 1, 1)])
    return F.grid_sample(maps, coords * (2 / last) - 1, padding_mode=padding, align_corners=True)


def correlate(pyramid: Sequence[Tensor], features: Tensor, coords: Tensor, radius: int) -> Tensor:
    """<feature, map> / sqrt(C) in a window around coords / 2^level: [B, S, N, levels * (2r+1)^2].

    The window's index runs over (x offset slow, y offset fast), which the weights expect. Features
    are sampled first and correlated then: the same by linearity, without a full correlation map
    per point.
    """
    scenes, frames, count, channels = features.shape
    steps = torch.arange(-radius, radius + 1, dtype=coords.dtype, device=coords.device)
    offsets = torch.cartesian_prod(steps, steps)  # [(2r+1)^2, 2], first column slow, added to x
    rows = features.reshape(-1, count, channels)
    correlations = []
    for level, maps in enumerate(pyramid):
        window = coords.reshape(-1, count, 1, 2) / 2**level + offsets
        sampled = sample(maps.flatten(0, 1), window, padding="zeros")  # [B*S, C, N, window]
        correlations.append(torch.einsum("mcnw,mnc->mnw", sampled, rows))
    joined: Tensor = torch.cat(correlations, dim=-1) / channels**0.5
    return joined.reshape(scenes, frames, count, -1)


def flow_embedding(flow: Tensor, channels: int) -> Tensor:
    """[..., 2] -> [..., 2 * channels]: per axis, sin and cos interleaved, of flow * frequency.

    Frequencies (1000 / channels) * {0, 2, ..., channels - 2}; x's channels, then y's.
    """
    steps = torch.arange(0, channels, 2, dtype=flow.dtype, device=flow.device)
    angle = flow[..., None] * (steps * (FLOW_FREQUENCY_TOP / channels))
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-3)


def interpolated_sines(position: Tensor, size: int, channels: int) -> Tensor:
    """[...] -> [..., channels]: [sin | cos] of position * 10000^(-k / (channels / 2)).

    Taken at the two whole positions around, clamped to 0 .. size - 1, and mixed linearly. One axis
    of a bilinear look-up in the two-dimensional field, which need not be built.
    """
    quarter = channels // 2
    k = torch.arange(quarter, dtype=torch.float64, device=position.device)
    grid = torch.arange(size, dtype=torch.float64, device=position.device)
    angle = grid[:, None] / POSITION_BASE ** (k / quarter)
    table = torch.cat([angle.sin(), angle.cos()], dim=-1).to(position.dtype)
    clamped = position.clamp(0, size - 1)
    low = clamped.floor()
    high = (low + 1).clamp(max=size - 1)
    return torch.lerp(table[low.long()], table[high.long()], (clamped - low)[..., None])
