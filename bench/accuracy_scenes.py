"""The scenes of `bench.accuracy`: rendered once into the folder of a run, read by every row.

    scenes/key.json       what they depend on; all are rendered anew where any of it has changed
    scenes/unseen.npz     images uint8 [N, S, H, W, 3], depth float32 [N, S, H, W] in metres,
    scenes/held-out.npz   extrinsic float64 [N, S, 3, 4], intrinsic float64 [N, S, 3, 3]
    scenes/calibration/   ETH3D scenes with JPEG pictures, as `--calibrate` takes them

The two sets are those of `vggt_deploy.train.evaluate`, from the same seeds. What the quantizers
look at comes from seeds that neither has, of the families of the training.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggt_deploy.artifact import writing
from vggt_deploy.compare.scenes import Scene
from vggt_deploy.data.ground_truth import GroundTruth
from vggt_deploy.data.scenes import write_scenes
from vggt_deploy.data.synthetic import render_views
from vggt_deploy.errors import UsageError
from vggt_deploy.train.evaluate import SETS, SceneSet
from vggt_deploy.train.pool import source_hash

KEY_FILE = "key.json"
CALIBRATION = "calibration"
CALIBRATION_SEED = 900_000
_ARRAYS = ("images", "depth", "extrinsic", "intrinsic")


@dataclass(frozen=True)
class SceneQuestion:
    """How many scenes of each set, views of each, pixels; and of what is calibrated on."""

    scenes: int
    views: int
    height: int
    width: int
    calibration_scenes: int
    calibration_views: int

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            least = 2 if name == "views" else 1
            if value < least:
                raise UsageError(f"{name.replace('_', ' ')}: {value}", f"give {least} or more")


def ensure_scenes(folder: Path, question: SceneQuestion, *, threads: int) -> bool:
    """Render what `question` asks for, unless `folder` holds just that; whether it was rendered.

    Raises:
        ArtifactError: the folder is in use, or holds something else.
    """
    key = {"question": asdict(question), "renderer": source_hash()}
    if _read_key(folder) == key:
        return False
    with (
        writing(folder, overwrite=True, marker=KEY_FILE) as partial,
        ThreadPoolExecutor(threads) as executor,
    ):
        for one in SETS:
            np.savez(
                partial / f"{one.name}.npz", allow_pickle=False, **_drawn(one, question, executor)
            )
        write_scenes(
            partial / CALIBRATION,
            seed=CALIBRATION_SEED,
            count=question.calibration_scenes,
            views=question.calibration_views,
            height=question.height,
            width=question.width,
        )
        (partial / KEY_FILE).write_text(json.dumps(key, indent=1), encoding="utf-8")
    return True


def read_set(folder: Path, name: str) -> Iterator[Scene]:
    """The scenes of one set with their truth, one at a time, in the order of their seeds."""
    first = next(one.first_seed for one in SETS if one.name == name)
    with np.load(folder / f"{name}.npz") as file:
        images, depth, extrinsic, intrinsic = (file[key] for key in _ARRAYS)
    for index in range(len(images)):
        pixels = np.ascontiguousarray(
            images[index].transpose(0, 3, 1, 2), dtype=np.float32
        ) / np.float32(255)
        yield Scene(
            name=f"{name}/{first + index}",
            pixels=pixels,
            paths=(),
            sha256=(),
            skipped=(),
            note="rendered",
            truth=GroundTruth(extrinsic[index], intrinsic[index], depth[index], "rendered"),
            no_truth=None,
        )


def _read_key(folder: Path) -> object:
    path = folder / KEY_FILE
    if not path.is_file():
        return None
    try:
        value: object = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None  # cut short: as good as none
    return value


def _drawn(one: SceneSet, question: SceneQuestion, executor: Executor) -> dict[str, NDArray[Any]]:
    def draw(seed: int) -> dict[str, NDArray[Any]]:
        views = render_views(
            seed,
            views=question.views,
            height=question.height,
            width=question.width,
            family=one.family,
        )
        return {name: getattr(views, name) for name in _ARRAYS}

    seeds = range(one.first_seed, one.first_seed + question.scenes)
    drawn = list(executor.map(draw, seeds))
    return {name: np.stack([views[name] for views in drawn]) for name in _ARRAYS}
