"""What another camera or another light would do to a scene's colours. Geometry is untouched.

Everything that acts on a value alone (gamma, gain, contrast) is one table of 256 entries per frame
and channel, so a step costs one look-up per pixel and not a power.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vggt_deploy.train.recipe import ColourRecipe

Rng = np.random.Generator


def augment_colours(
    images: NDArray[np.uint8], recipe: ColourRecipe, rng: Rng
) -> NDArray[np.float32]:
    """Images [B, S, H, W, 3] of 0..255 -> [B, S, 3, H, W] of 0..1, changed at random."""
    scenes = len(images)
    planes = np.ascontiguousarray(np.moveaxis(images, -1, 2))
    for scene in np.flatnonzero(rng.random(scenes) < recipe.permute):
        planes[scene] = planes[scene][:, rng.permutation(3)]
    changed = _look_up(planes, _tables(images.shape[:2], recipe, rng))
    for scene in np.flatnonzero(rng.random(scenes) < recipe.blur):
        changed[scene] = _blur(changed[scene])
    deviation = rng.random(scenes, dtype=np.float32) * np.float32(recipe.noise)
    noise = rng.standard_normal(changed.shape, dtype=np.float32)
    noise *= deviation[:, None, None, None, None]
    changed += noise
    return np.clip(changed, 0, 1, out=changed)


def plain_colours(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Images [B, S, H, W, 3] of 0..255 -> [B, S, 3, H, W] of 0..1, as they are."""
    return np.ascontiguousarray(np.moveaxis(images, -1, 2)).astype(np.float32) / np.float32(255)


def _tables(lead: tuple[int, ...], recipe: ColourRecipe, rng: Rng) -> NDArray[np.float32]:
    """Tables [B, S, 3, 256]: ((x ^ gamma) gain - 1/2) contrast + 1/2, cut to 0..1."""
    scenes, frames = lead

    def factors(deviation: float, *shape: int) -> NDArray[np.float64]:
        return np.exp(deviation * rng.standard_normal(shape))

    gamma = factors(recipe.gamma, scenes, 1, 1, 1)
    gain = factors(recipe.gain, scenes, 1, 1, 1) * factors(recipe.balance, scenes, 1, 3, 1)
    gain = gain * factors(recipe.frame_gain, scenes, frames, 1, 1)
    contrast = factors(recipe.contrast, scenes, 1, 1, 1)
    value = (np.arange(256) / 255) ** gamma * gain
    return np.clip((value - 0.5) * contrast + 0.5, 0, 1).astype(np.float32)


def _look_up(planes: NDArray[np.uint8], tables: NDArray[np.float32]) -> NDArray[np.float32]:
    """Planes [B, S, 3, H, W] through tables [B, S, 3, 256]."""
    count = planes.shape[0] * planes.shape[1] * planes.shape[2]
    flat, rows = planes.reshape(count, -1), tables.reshape(count, 256)
    changed = np.empty(flat.shape, dtype=np.float32)
    for row, plane, out in zip(rows, flat, changed, strict=True):
        np.take(row, plane, out=out)
    return changed.reshape(planes.shape)


def _blur(scene: NDArray[np.float32]) -> NDArray[np.float32]:
    """[..., H, W] by [1, 2, 1] / 4 along both axes, the edge repeated."""
    padded = np.pad(scene, [(0, 0)] * (scene.ndim - 2) + [(1, 1), (1, 1)], mode="edge")
    rows = (padded[..., :-2, :] + 2 * padded[..., 1:-1, :] + padded[..., 2:, :]) / 4
    blurred = (rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:]) / 4
    return blurred.astype(np.float32, copy=False)
