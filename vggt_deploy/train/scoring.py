"""A model against the truth of rendered scenes."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from vggt_deploy.compare.truth import TruthMetrics, truth_metrics
from vggt_deploy.model.vggt import VGGT
from vggt_deploy.train.pool import Views

SCORED_VIEWS = 4


@dataclass(frozen=True)
class SceneTruth:
    """One scene of S views: images uint8 [S, H, W, 3] and the truth about them, as rendered."""

    images: NDArray[np.uint8]
    extrinsic: NDArray[np.float64]
    intrinsic: NDArray[np.float64]
    depth: NDArray[np.float32]

    @classmethod
    def of(cls, views: Views) -> SceneTruth:
        return cls(views.images, views.extrinsic, views.intrinsic, views.depth)


def model_metrics(
    model: VGGT, scenes: Sequence[SceneTruth], executor: Executor
) -> list[TruthMetrics]:
    """Each scene through the model as it is, and what `compare.truth` says of the outputs."""

    def measure(scene: SceneTruth) -> TruthMetrics:
        with torch.no_grad():
            images = torch.from_numpy(scene.images).permute(0, 3, 1, 2).float() / 255
            outputs = model(images)
        names = ("pose_enc", "depth", "world_points")
        return truth_metrics({name: outputs[name].numpy() for name in names}, scene)

    return list(executor.map(measure, scenes))
