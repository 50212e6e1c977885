"""Pairs of views for the encoder's own training: which patches show the same place, and how deep.

The logarithm of depth is asked for in cells of each patch, less the view's median, since one
picture does not say how large things are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vggt_deploy.train.batches import Scenes, mirrored
from vggt_deploy.train.colour import augment_colours
from vggt_deploy.train.matches import partners
from vggt_deploy.train.pool import ScenePool
from vggt_deploy.train.recipe import TrainingRecipe

STREAM = 1  # the random numbers of this stage; the steps after it draw from stream-less seeds


@dataclass(frozen=True)
class PairBatch:
    """B pairs of views, h x w = P patches each.

    images     float32 [B, 2, 3, H, W] of 0..1
    log_depth  float32 [B, 2, P, cells * cells], NaN where nothing is known
    partner    int64 [B, P]: the patch of view 1 that shows patch p of view 0
    matched    bool [B, P]: whether there is one
    """

    images: NDArray[np.float32]
    log_depth: NDArray[np.float32]
    partner: NDArray[np.int64]
    matched: NDArray[np.bool_]


def pair_batch(
    pool: ScenePool, recipe: TrainingRecipe, patch: int, step: int, shard: int
) -> PairBatch:
    """The pairs of one shard of a step; they depend on the recipe, the pool and these numbers."""
    rng = np.random.default_rng([recipe.seed, STREAM, step, shard])
    encoder = recipe.encoder
    count, path = encoder.pairs // encoder.shards, pool.images.shape[1]
    scene = rng.choice(len(pool), count, replace=count > len(pool))
    apart = rng.integers(1, min(encoder.farthest, path - 1) + 1, count)
    first = np.array([rng.integers(0, path - gap) for gap in apart])
    view = np.stack([first, first + apart], axis=1)
    swapped = rng.random(count) < 0.5
    view[swapped] = view[swapped, ::-1]
    rows = scene[:, None]
    scenes = Scenes(
        images=pool.images[rows, view],
        depth=pool.depth[rows, view].astype(np.float32),
        extrinsic=np.array(pool.extrinsic[rows, view]),
        intrinsic=np.array(pool.intrinsic[rows, view]),
    )
    scenes = mirrored(scenes, rng.random(count) < recipe.batch.mirror)
    found = partners(scenes, patch)
    return PairBatch(
        images=augment_colours(scenes.images, recipe.colour, rng),
        log_depth=cell_depth(scenes.depth, patch, encoder.cells),
        partner=found.patch,
        matched=found.matched,
    )


def cell_depth(depth: NDArray[np.float32], patch: int, cells: int) -> NDArray[np.float32]:
    """Depth [B, S, H, W] -> [B, S, h * w, cells * cells]: its logarithm at the pixel that holds the
    centre of each of a patch's cells, less the median of these over the view; NaN where unknown.
    """
    batch, views, height, width = depth.shape
    h, w = height // patch, width // patch
    rows = ((np.arange(h * cells) + 0.5) * patch / cells).astype(np.intp)
    columns = ((np.arange(w * cells) + 0.5) * patch / cells).astype(np.intp)
    sampled = depth[:, :, rows[:, None], columns]
    known = np.isfinite(sampled) & (sampled > 0)
    logarithm = np.log(np.where(known, sampled, np.nan))
    median = np.nanmedian(logarithm.reshape(batch, views, -1), axis=-1)
    logarithm -= median[:, :, None, None]
    split = logarithm.reshape(batch, views, h, cells, w, cells).transpose(0, 1, 2, 4, 3, 5)
    return np.ascontiguousarray(split.reshape(batch, views, h * w, cells * cells), np.float32)
