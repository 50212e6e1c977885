"""Which patch of one view shows what a patch of another view shows, from depth and cameras.

A patch's centre is unprojected with its depth, moved into the other camera and projected: the patch
it lands in is its partner, if the other view's depth there says that it is seen and not hidden.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from vggt_deploy.train.batches import Scenes

VISIBLE = 0.05  # relative difference of depth up to which a projected point is what is seen there


@dataclass(frozen=True)
class Matches:
    """For each patch p of each view where another view of its scene shows the same place: the first
    view, which is the world; of the first view itself, one of the others at random.

    other    int64 [B, S]: that view
    partner  int64 [B, S, P]: its patch that shows the centre of patch p
    matched  bool [B, S, P]: whether there is one
    motion   float32 [B, S, P, 2]: from the centre of p to where it is seen there, x and y in units
             of the picture's width and height; 0 where it is not matched
    """

    other: NDArray[np.int64]
    partner: NDArray[np.int64]
    matched: NDArray[np.bool_]
    motion: NDArray[np.float32]


def draw_matches(scenes: Scenes, patch: int, rng: np.random.Generator) -> Matches:
    """Partners of all patches of scenes [B, S, ...] in the first view; S is 2 or more."""
    batch, views = scenes.depth.shape[:2]
    view = np.arange(views)
    other = np.zeros((batch, views), dtype=np.int64)
    other[:, 0] = rng.integers(1, views, batch)
    pair = np.stack([np.broadcast_to(view, other.shape), other], axis=-1).reshape(-1, 2)
    rows = np.repeat(np.arange(batch), views)[:, None]
    pairs = replace(
        scenes,
        images=scenes.images[:0],  # not asked for
        depth=scenes.depth[rows, pair],
        extrinsic=scenes.extrinsic[rows, pair],
        intrinsic=scenes.intrinsic[rows, pair],
    )
    found = partners(pairs, patch)
    shape = (batch, views, -1)
    return Matches(
        other,
        found.patch.reshape(shape),
        found.matched.reshape(shape),
        found.motion.reshape(*shape, 2),
    )


def tokens_seen_by(matches: Matches, special: int) -> NDArray[np.int64]:
    """[B, S * (special + P)]: the token of the scene that shows what each token shows, -1 where
    there is none. The tokens of a view are `special` ones, then its patches.
    """
    batch, views, patches = matches.partner.shape
    first = special + (special + patches) * matches.other[..., None]
    found = np.where(matches.matched, first + matches.partner, -1)
    none = np.full((batch, views, special), -1, dtype=np.int64)
    return np.concatenate([none, found], axis=2).reshape(batch, -1)


class Partners(NamedTuple):
    """For each patch of view 0 the patch of view 1 that shows its centre [B, P], whether one does
    [B, P], and the motion from here to there [B, P, 2] as in `Matches`.
    """

    patch: NDArray[np.int64]
    matched: NDArray[np.bool_]
    motion: NDArray[np.float32]


def partners(scenes: Scenes, patch: int) -> Partners:
    """Where view 1 shows the patches of view 0, of scenes [B, 2, ...]."""
    batch, _, height, width = scenes.depth.shape
    h, w = height // patch, width // patch
    rows, columns = np.arange(h) * patch + patch // 2, np.arange(w) * patch + patch // 2
    z = scenes.depth[:, 0, rows[:, None], columns].reshape(batch, -1).astype(np.float64)
    v, u = np.meshgrid(rows + 0.5, columns + 0.5, indexing="ij")
    matched = np.isfinite(z) & (z > 0)
    z = np.where(matched, z, 1)
    pixel = np.stack([u.ravel(), v.ravel(), np.ones(h * w)], axis=-1)
    local = (pixel @ np.swapaxes(np.linalg.inv(scenes.intrinsic[:, 0]), -1, -2)) * z[..., None]
    first, second = scenes.extrinsic[:, 0], scenes.extrinsic[:, 1]
    # Row vectors: X = (x_0 - t_0) R_0, x_1 = X R_1^T + t_1.
    world = (local - first[:, None, :, 3]) @ first[..., :3]
    moved = world @ np.swapaxes(second[..., :3], -1, -2) + second[:, None, :, 3]
    at = moved @ np.swapaxes(scenes.intrinsic[:, 1], -1, -2)
    matched &= at[..., 2] > 0
    scale = np.where(matched, at[..., 2], 1)
    x, y = at[..., 0] / scale, at[..., 1] / scale
    matched &= (x >= 0) & (y >= 0) & (x < width) & (y < height)
    column = np.where(matched, x, 0).astype(np.int64)
    row = np.where(matched, y, 0).astype(np.int64)
    seen = scenes.depth[np.arange(batch)[:, None], 1, row, column]
    with np.errstate(invalid="ignore"):
        matched &= np.abs(seen - scale) < VISIBLE * scale
    motion = np.stack([(x - u.ravel()) / width, (y - v.ravel()) / height], axis=-1)
    motion = np.where(matched[..., None], motion, 0).astype(np.float32)
    return Partners((row // patch) * w + column // patch, matched, motion)
