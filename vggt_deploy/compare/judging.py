"""What a variant computed, held against PyTorch FP32 and against the truth."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vggt_deploy.compare.geometry import geometry_metrics, mean_geometry
from vggt_deploy.compare.measures import Failure
from vggt_deploy.compare.metrics import TensorMetrics, tensor_metrics
from vggt_deploy.compare.paired import truth_loss
from vggt_deploy.compare.report import Row, SceneResult
from vggt_deploy.compare.scenes import Scene
from vggt_deploy.compare.truth import mean_metrics, truth_metrics
from vggt_deploy.errors import CompareError

Arrays = dict[str, NDArray[np.float32]]


def read_arrays(paths: Sequence[Path], wanted: Sequence[str]) -> tuple[Arrays, ...] | Failure:
    """The outputs that a worker wrote, one file for each scene, or why they can't be read."""
    found = []
    try:
        for path in paths:
            # Opened here: np.load leaves the file open when the archive is broken.
            with path.open("rb") as raw, np.load(raw) as file:
                found.append({name: file[name] for name in wanted})
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        return Failure("accuracy", f"its outputs can't be read: {error}")
    return tuple(found)


def judged(
    row: Row, computed: Sequence[Arrays], reference: Sequence[Arrays], scenes: Sequence[Scene]
) -> Row:
    """The row with everything but `truth_loss`; outputs that can't be compared make it a failed
    one. One item of `computed` and `reference` for each scene.
    """
    try:
        accuracy = {
            name: _pooled(name, [arrays[name] for arrays in computed], reference)
            for name in computed[0]
        }
        results = tuple(
            _scene_result(scene, ours, theirs)
            for scene, ours, theirs in zip(scenes, computed, reference, strict=True)
        )
    except CompareError as error:
        failure = Failure("accuracy", error.message, error.fix)
        return replace(row, status="failed", failure=failure, measured=None)
    truths = [result.truth for result in results if result.truth is not None]
    return replace(
        row,
        accuracy=accuracy,
        scenes=results,
        geometry=mean_geometry([result.geometry for result in results]),
        truth=mean_metrics(truths) if truths else None,
    )


def with_truth_loss(row: Row, reference: Row) -> Row:
    """The row with what it lost against the reference's row, over the scenes that have truth."""
    ours = [scene.truth for scene in row.scenes if scene.truth is not None]
    theirs = [scene.truth for scene in reference.scenes if scene.truth is not None]
    return replace(row, truth_loss=truth_loss(ours, theirs)) if ours else row


def _pooled(
    name: str, ours: Sequence[NDArray[np.float32]], reference: Sequence[Arrays]
) -> TensorMetrics:
    """The metrics of one output over all views of all scenes, as if they were one scene's."""
    theirs = [arrays[name] for arrays in reference]
    if len(ours) == 1:
        return tensor_metrics(name, ours[0], theirs[0])
    for a, b in zip(ours, theirs, strict=True):
        if a.shape != b.shape:  # before they are put together, where two errors could cancel
            return tensor_metrics(name, a, b)
    return tensor_metrics(name, np.concatenate(ours, axis=1), np.concatenate(theirs, axis=1))


def _scene_result(scene: Scene, ours: Arrays, theirs: Arrays) -> SceneResult:
    height, width = scene.pixels.shape[2:]
    return SceneResult(
        name=scene.name,
        geometry=geometry_metrics(ours, theirs, height, width),
        truth=None if scene.truth is None else truth_metrics(ours, scene.truth, clouds=True),
    )
