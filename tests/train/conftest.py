"""A recipe that trains in seconds, and scenes for it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

# Worker processes get this process's sys.path, and find the renderer by it.
sys.path.insert(0, str(Path(__file__).parent))

from plane_scenes import render_plane

from vggt_deploy.train.pool import ScenePool
from vggt_deploy.train.recipe import SceneRecipe, TrainingRecipe, load_recipe, named_recipe


@pytest.fixture(scope="session")
def tiny_recipe() -> TrainingRecipe:
    """vggt-tiny on 10 scenes of 6 views of 42 x 56; 12 frames a step in two shards,
    after 4 steps of the encoder.
    """
    nano = load_recipe(named_recipe("vggt-nano"))
    return replace(
        nano,
        config="vggt-tiny",
        steps=6,
        scenes=SceneRecipe(count=10, views=6, height=42, width=56),
        batch=replace(nano.batch, frames=12, shards=2, view_counts=(2, 3), view_weights=(0.5, 0.5)),
        loss=replace(nano.loss, pose_from=0.0, match_blocks=(1, 3), motion_pairs=(1, 3)),
        optimizer=replace(nano.optimizer, warmup_steps=2),
        encoder=replace(nano.encoder, steps=4, pairs=4, warmup_steps=2),
    )


@pytest.fixture(scope="session")
def make_pool() -> Callable[[SceneRecipe], ScenePool]:
    """A pool in memory, without processes."""

    def make(scenes: SceneRecipe) -> ScenePool:
        views = [render_plane(seed, scenes) for seed in range(scenes.count)]
        return ScenePool(
            images=np.stack([v.images for v in views]),
            depth=np.stack([v.depth for v in views]).astype(np.float16),
            extrinsic=np.stack([v.extrinsic for v in views]),
            intrinsic=np.stack([v.intrinsic for v in views]),
        )

    return make


@pytest.fixture(scope="session")
def tiny_pool(
    make_pool: Callable[[SceneRecipe], ScenePool], tiny_recipe: TrainingRecipe
) -> ScenePool:
    return make_pool(tiny_recipe.scenes)
