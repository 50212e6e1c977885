"""A small classifier of point clouds in the manner of PointNeXt (arXiv:2206.04670).

    points [B, P, 3] ─► stem ─► set abstraction ─► set abstraction ─► global max ─► logits [B, C]
                                32 centroids       8 centroids

A set abstraction (PointNet++, arXiv:1706.02413) describes each centroid by its k nearest points:
their features and places relative to it through a Linear, and the largest answer of each channel.
PointNeXt adds an inverted residual MLP behind it. Differences from the paper: centroids are a
prefix of the cloud (`shapes`), neighbours are the k nearest instead of those in a ball, and
LayerNorm stands in for BatchNorm.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SetAbstraction(nn.Module):
    """Places [B, P, 3], features [B, P, C] -> places [B, M, 3], features [B, M, D]."""

    def __init__(self, channels: int, out: int, centroids: int, neighbours: int) -> None:
        super().__init__()
        self.centroids, self.neighbours = centroids, neighbours
        self.group = nn.Linear(3 + channels, out)
        self.norm = nn.LayerNorm(out)
        self.residual = InvertedResidual(out)

    def forward(self, places: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        centres = places[:, : self.centroids]
        away = (centres[:, :, None] - places[:, None]).square().sum(-1)  # [B, M, P]
        near = away.topk(self.neighbours, dim=-1, largest=False)
        # Distances to neighbours are those of a smaller cloud at every level: back to about 1.
        radius = near.values[..., -1:, None].sqrt() + 1e-6
        local = (_gather(places, near.indices) - centres[:, :, None]) / radius
        grouped = torch.cat([local, _gather(features, near.indices)], dim=-1)
        pooled = F.relu(self.norm(self.group(grouped))).amax(dim=2)
        return centres, self.residual(pooled)


class InvertedResidual(nn.Module):
    """x + Linear(relu(Linear(norm(x)))), four times as wide in between: [..., C] -> [..., C]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.expand = nn.Linear(channels, 4 * channels)
        self.project = nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = x + self.project(F.relu(self.expand(self.norm(x))))
        return answer


class PointClassifier(nn.Module):
    """Points [B, P, 3], farthest first -> logits [B, classes]."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = nn.Linear(3, 24)
        self.first = SetAbstraction(24, 32, centroids=32, neighbours=8)
        self.second = SetAbstraction(32, 64, centroids=8, neighbours=8)
        self.widen = nn.Linear(3 + 64, 128)
        self.norm = nn.LayerNorm(128)
        self.hidden = nn.Linear(128, 64)
        self.logits = nn.Linear(64, classes)

    def forward(self, points: Tensor) -> Tensor:
        places, features = self.first(points, F.relu(self.stem(points)))
        places, features = self.second(places, features)
        whole = F.relu(self.norm(self.widen(torch.cat([places, features], dim=-1))))
        answer: Tensor = self.logits(F.relu(self.hidden(whole.amax(dim=1))))
        return answer


def _gather(values: Tensor, index: Tensor) -> Tensor:
    """Values [B, P, C] at index [B, M, k] -> [B, M, k, C]."""
    batch, centroids, neighbours = index.shape
    channels = values.shape[-1]
    flat = index.reshape(batch, centroids * neighbours, 1).expand(-1, -1, channels)
    return values.gather(1, flat).reshape(batch, centroids, neighbours, channels)
