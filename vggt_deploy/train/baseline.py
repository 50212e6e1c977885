"""What a predictor that does not look at its pictures can reach: the score that says nothing.

It always answers with one camera path and one depth map.

    path     that of the training scene, among CANDIDATES, whose path as the answer for every scene
             gives the best mean AUC@30 on the very scenes that are scored: a choice in its favour
    depth    per pixel, the median over the training views of depth / the scene's median depth
    points   that depth unprojected by that path's cameras
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vggt_deploy.compare.truth import Outputs, auc, pair_errors_deg
from vggt_deploy.geometry import camera_to_pose_encoding, unproject_depth
from vggt_deploy.train.scoring import SceneTruth

CANDIDATES = 128  # training scenes, seeds 0 .. CANDIDATES - 1
CHOSEN_BY_DEG = 30.0


@dataclass(frozen=True)
class ConstantPrediction:
    """The training scene whose path it is, and what it answers, as the network would."""

    scene: int
    outputs: Outputs


def constant_prediction(
    training: Sequence[SceneTruth], scored: Sequence[SceneTruth]
) -> ConstantPrediction:
    """The best constant for `scored`, made of the scenes of `training`; all of S views of H x W."""
    best = max(range(len(training)), key=lambda i: _mean_auc(training[i], scored))
    chosen = training[best]
    depth = median_depth(training)
    maps = np.repeat(depth[None], len(chosen.depth), axis=0)
    extrinsic = chosen.extrinsic.copy()
    extrinsic[..., 3] /= _middle(chosen)
    points = unproject_depth(maps.astype(np.float64), extrinsic, chosen.intrinsic)
    outputs: Outputs = {
        "pose_enc": camera_to_pose_encoding(extrinsic, chosen.intrinsic, *depth.shape)[None],
        "depth": maps[None, ..., None],
        "world_points": points[None],
    }
    return ConstantPrediction(best, outputs)


def median_depth(training: Sequence[SceneTruth]) -> NDArray[np.float32]:
    """[H, W]: the median over all views that know the pixel, 1 where none does."""
    relative = np.concatenate([scene.depth / _middle(scene) for scene in training])
    relative[~np.isfinite(relative)] = np.nan
    known = np.isfinite(relative).any(axis=0)
    relative[:, ~known] = 1.0
    median: NDArray[np.float32] = np.nanmedian(relative, axis=0).astype(np.float32)
    return median


def _middle(scene: SceneTruth) -> float:
    return float(np.median(scene.depth[np.isfinite(scene.depth)]))


def _mean_auc(candidate: SceneTruth, scored: Sequence[SceneTruth]) -> float:
    return float(
        np.mean(
            [
                auc(pair_errors_deg(candidate.extrinsic, scene.extrinsic), CHOSEN_BY_DEG)
                for scene in scored
            ]
        )
    )
