"""A model against the truth of rendered scenes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from vggt_deploy.compare.truth import TruthMetrics, truth_metrics
from vggt_deploy.model.vggt import VGGT
from vggt_deploy.train.pool import Views

SCORED_VIEWS = 4
_OUTPUTS = ("pose_enc", "depth", "world_points")


@dataclass(frozen=True)
class SceneTruth:
    """One scene of S views: images uint8 [S, H, W, 3] and the truth about them, as rendered."""

    images: NDArray[np.uint8]
    extrinsic: NDArray[np.float64]
    intrinsic: NDArray[np.float64]
    depth: NDArray[np.float32]

    @property
    def rays(self) -> None:
        """Rendered cameras are pinholes."""

    @classmethod
    def of(cls, views: Views) -> SceneTruth:
        return cls(views.images, views.extrinsic, views.intrinsic, views.depth)


def model_metrics(
    model: VGGT, scenes: Sequence[SceneTruth], executor: Executor
) -> list[TruthMetrics]:
    """Each scene through the model as it is, and what `compare.truth` says of the outputs."""
    device = next(model.parameters()).device

    def measure(scene: SceneTruth) -> TruthMetrics:
        with torch.no_grad():
            pixels = torch.from_numpy(scene.images).to(device)
            images = pixels.permute(0, 3, 1, 2).float() / 255
            outputs = model(images)
        return truth_metrics({name: outputs[name].cpu().numpy() for name in _OUTPUTS}, scene)

    return list(executor.map(measure, scenes))


@contextmanager
def single_threads(count: int) -> Iterator[Executor]:
    """`count` workers with one thread inside each operator; the caller has one as well meanwhile.

    What a worker computes then does not depend on how many there are.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(
            count, thread_name_prefix="torch", initializer=torch.set_num_threads, initargs=(1,)
        ) as executor:
            yield executor
    finally:
        torch.set_num_threads(before)
