"""What a network's outputs on one scene are worth: against the truth, or against FP32's outputs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vggt_deploy.compare.geometry import depth_errors, point_errors
from vggt_deploy.compare.paired import mean_with_interval
from vggt_deploy.compare.scenes import Scene
from vggt_deploy.compare.truth import auc, pair_errors_deg, truth_metrics
from vggt_deploy.errors import QuantizeError
from vggt_deploy.geometry import pose_encoding_to_camera
from vggt_deploy.sensitivity.table import MEASURES, Reference

Outputs = Mapping[str, NDArray[np.float32]]
Measures = dict[str, float]

COMPARED = ("pose_enc", "depth", "world_points")
HIGHER_IS_BETTER = ("auc3", "auc5", "auc30")


def run_scenes(
    model: nn.Module, scenes: Sequence[Scene], executor: Executor
) -> list[dict[str, NDArray[np.float32]]]:
    """The compared outputs of each scene, several scenes at a time."""

    def run(scene: Scene) -> dict[str, NDArray[np.float32]]:
        with torch.no_grad():
            outputs = model(torch.from_numpy(scene.pixels)[None])
        return {name: outputs[name].numpy() for name in COMPARED if name in outputs}

    return list(executor.map(run, scenes))


def measures(outputs: Outputs, exact: Outputs, scene: Scene, reference: Reference) -> Measures:
    """Measure -> value on one scene, AUC in percent; `table.MEASURES` says what they are.

    A measure that the scene does not allow (one view has no pair, no true depth) is left out.

    Raises:
        QuantizeError: an output that is not finite.
    """
    found: dict[str, float | None]
    if reference == "truth":
        found = _against_truth(outputs, scene)
    else:
        found = _against_outputs(outputs, exact, scene)
    if "pose_enc" in outputs and len(scene.pixels) > 1:
        moved = pair_errors_deg(_cameras(outputs, scene), _cameras(exact, scene))
        found |= {"same3": 100.0 - auc(moved, 3.0), "same5": 100.0 - auc(moved, 5.0)}
    found["output_mse"] = output_mse(outputs, exact)
    return {name: found[name] for name in MEASURES[reference] if found.get(name) is not None}  # type: ignore[misc]


def output_mse(outputs: Outputs, exact: Outputs) -> float:
    """Mean over the tensors of ||y - y_exact||^2 / ||y_exact||^2, in float64."""
    errors = []
    for name, right in exact.items():
        difference = np.linalg.norm((outputs[name].astype(np.float64) - right).ravel())
        size = np.linalg.norm(right.astype(np.float64).ravel())
        error = float(difference / size) if size > 0 else float(difference)
        if not math.isfinite(error):
            raise QuantizeError(
                f"the output {name} holds NaN or infinity",
                "check the checkpoint: run it with scheme fp32 first",
            )
        errors.append(error**2)
    return sum(errors) / len(errors)


def losses(
    variant: Sequence[Measures], exact: Sequence[Measures]
) -> tuple[Measures, dict[str, tuple[float, float]]]:
    """Mean over the scenes of what was lost, above 0 is worse, and its 95 % bootstrap interval.

    A scene without a measure does not count in that measure's mean.
    """
    mean: Measures = {}
    interval: dict[str, tuple[float, float]] = {}
    for name in dict.fromkeys(name for scene in variant for name in scene):
        sign = -1.0 if name in HIGHER_IS_BETTER else 1.0
        differences = [
            sign * (ours[name] - theirs.get(name, 0.0))
            for ours, theirs in zip(variant, exact, strict=True)
            if name in ours
        ]
        difference = mean_with_interval(differences)
        mean[name] = difference.mean
        if difference.low is not None and difference.high is not None:
            interval[name] = (difference.low, difference.high)
    return mean, interval


def baseline(exact: Sequence[Measures]) -> Measures:
    """Mean over the scenes of FP32's own measures."""
    names = dict.fromkeys(name for scene in exact for name in scene)
    return {
        name: float(np.mean([scene[name] for scene in exact if name in scene])) for name in names
    }


def _against_truth(outputs: Outputs, scene: Scene) -> dict[str, float | None]:
    assert scene.truth is not None  # the caller has chosen this reference for it
    found = truth_metrics(outputs, scene.truth)
    values: dict[str, float | None] = {}
    if found.pose is not None:
        values |= {"auc3": found.pose.auc_3, "auc5": found.pose.auc_5, "auc30": found.pose.auc_30}
        values |= _pose(outputs, scene, scene.truth.extrinsic)
    values["abs_rel"] = found.depth.abs_rel if found.depth else None
    values["point_error"] = found.points.median_relative if found.points else None
    return values


def _against_outputs(outputs: Outputs, exact: Outputs, scene: Scene) -> dict[str, float | None]:
    values: dict[str, float | None] = {}
    if "pose_enc" in outputs and len(scene.pixels) > 1:
        values |= _pose(outputs, scene, _cameras(exact, scene))
    if "depth" in outputs:
        depth = depth_errors(_doubles(outputs["depth"]), _doubles(exact["depth"]))
        values["abs_rel"] = depth.abs_rel if depth else None
    if "world_points" in outputs:
        pair = (_doubles(each["world_points"]) for each in (outputs, exact))
        points = point_errors(*pair)
        values["point_error"] = points.median_relative
    return values


def _pose(outputs: Outputs, scene: Scene, right: NDArray[np.floating[Any]]) -> Measures:
    """Mean and median of the larger of rotation and direction error over all pairs, degrees."""
    errors = pair_errors_deg(_cameras(outputs, scene), right)
    return {"pose_deg": float(errors.mean()), "pose_median_deg": float(np.median(errors))}


def _cameras(outputs: Outputs, scene: Scene) -> NDArray[np.float64]:
    """World-to-camera [S, 3, 4] of the predicted poses."""
    height, width = scene.pixels.shape[2:]
    with np.errstate(divide="ignore", invalid="ignore"):  # a quaternion of zeros
        extrinsic, _ = pose_encoding_to_camera(
            outputs["pose_enc"].astype(np.float64), height, width
        )
    return np.asarray(extrinsic[0], dtype=np.float64)


def _doubles(values: NDArray[np.float32]) -> NDArray[np.float64]:
    return values.astype(np.float64)
