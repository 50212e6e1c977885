"""A recipe that trains in seconds, and scenes for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vggt_deploy.compare.scenes import find_scenes
from vggt_deploy.data.scenes import write_scenes
from vggt_deploy.progress import silent
from vggt_deploy.qat.recipe import DEFAULT_RECIPE, QatRecipe, load_recipe
from vggt_deploy.qat.scenes import QatScene, read_scenes

HEIGHT, WIDTH = 42, 56


@pytest.fixture(scope="session")
def qat_recipe() -> QatRecipe:
    """Six steps of 8 frames in two shards on 3 scenes of 4 views; the first step is float."""
    standard = load_recipe(DEFAULT_RECIPE)
    return replace(
        standard,
        epochs=4.0,
        float_steps=1,
        probe_scenes=2,
        batch=replace(
            standard.batch, frames=8, shards=2, view_counts=(2, 4), view_weights=(0.5, 0.5)
        ),
        optimizer=replace(standard.optimizer, warmup_steps=2),
    )


@pytest.fixture(scope="session")
def scene_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three rendered scenes of 4 views, with their truth."""
    folder = tmp_path_factory.mktemp("qat") / "scenes"
    write_scenes(folder, seed=40, count=3, views=4, width=WIDTH, height=HEIGHT)
    return folder


@pytest.fixture(scope="session")
def qat_scenes(scene_folder: Path) -> tuple[QatScene, ...]:
    found = find_scenes(None, [scene_folder], max_images=None)
    return read_scenes(
        found, HEIGHT, WIDTH, "crop", with_truth=True, skip_bad=False, progress=silent
    )


@pytest.fixture(scope="session")
def without_truth(qat_scenes: tuple[QatScene, ...]) -> tuple[QatScene, ...]:
    """The same pictures, of the middle scene alone something is known."""
    return tuple(
        scene if index == 1 else replace(scene, truth=None, images=np.array(scene.images))
        for index, scene in enumerate(qat_scenes)
    )
