"""The scenes of one shard of a training step, and what the network should say about them.

They depend on the recipe, the pool, the step's number and the shard's alone, so a training that is
resumed sees what it would have seen, and shards can be made side by side.

Targets are in the frame of the first view that was drawn, in units of the mean distance of the
scene's known points from that camera, as VGGT is trained (arXiv:2503.11651, section 3.3). Pixel
centres lie at (u + 0.5, v + 0.5), so a target point is where the ray through the pixel's centre
hits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vggt_deploy.geometry import camera_to_pose_encoding
from vggt_deploy.model.config import get_config
from vggt_deploy.train.colour import augment_colours, plain_colours
from vggt_deploy.train.matches import Matches, draw_matches
from vggt_deploy.train.pool import ScenePool
from vggt_deploy.train.recipe import LossRecipe, TrainingRecipe


@dataclass(frozen=True)
class Scenes:
    """B scenes of S views: images uint8 [B, S, H, W, 3], depth [B, S, H, W] in metres (inf: not
    known), extrinsic [B, S, 3, 4] (camera from world), intrinsic [B, S, 3, 3].
    """

    images: NDArray[np.uint8]
    depth: NDArray[np.float32]
    extrinsic: NDArray[np.float64]
    intrinsic: NDArray[np.float64]


@dataclass(frozen=True)
class Targets:
    """pose [B, S, 9] as `geometry.camera_to_pose_encoding`, depth [B, S, H, W], points
    [B, S, H, W, 3], valid bool [B, S, H, W]. Where it is not valid, depth and points are 0.
    """

    pose: NDArray[np.float32]
    depth: NDArray[np.float32]
    points: NDArray[np.float32]
    valid: NDArray[np.bool_]


@dataclass(frozen=True)
class Batch:
    """images [B, S, 3, H, W] of 0..1, targets, and the frames (indices into B * S, ascending) that
    the depth and point heads see. `matches` is for attention (see `losses.match_loss`).
    """

    images: NDArray[np.float32]
    targets: Targets
    dense_frames: NDArray[np.int64]
    matches: Matches | None = None


def training_batch(pool: ScenePool, recipe: TrainingRecipe, step: int, shard: int) -> Batch:
    """What shard 0 .. shards - 1 of step 0 .. steps - 1 trains on.

    All shards of a step have scenes of the same number of views, so they take the same time.
    """
    batch, patch = recipe.batch, get_config(recipe.config).patch
    weights = np.asarray(batch.view_weights) / sum(batch.view_weights)
    views = int(np.random.default_rng([recipe.seed, step]).choice(batch.view_counts, p=weights))
    rng = np.random.default_rng([recipe.seed, step, 1 + shard])
    frames = batch.frames // batch.shards
    window = view_window(views, pool.images.shape[1], batch.widen_until, step / recipe.steps)
    scenes = draw_scenes(pool, frames // views, views, window, rng)
    scenes = mirrored(scenes, rng.random(len(scenes.images)) < batch.mirror)
    seen = max(1, round(frames * batch.dense_share))
    return Batch(
        images=augment_colours(scenes.images, recipe.colour, rng),
        targets=make_targets(scenes),
        dense_frames=np.sort(rng.permutation(frames)[:seen]),
        matches=draw_matches(scenes, patch, rng) if asks_for_matches(recipe.loss) else None,
    )


def asks_for_matches(loss: LossRecipe) -> bool:
    """Whether attention or motion is trained."""
    return loss.match > 0 or loss.motion > 0


def plain_batch(scenes: Scenes) -> Batch:
    """Scenes as they are; the dense heads see all frames."""
    frames = scenes.images.shape[0] * scenes.images.shape[1]
    return Batch(plain_colours(scenes.images), make_targets(scenes), np.arange(frames))


def draw_scenes(
    pool: ScenePool, count: int, views: int, window: int, rng: np.random.Generator
) -> Scenes:
    """`count` scenes of `views` views each.

    The views of a scene are drawn without repetition from `window` neighbours on its path and
    shuffled: the first is the reference, and may be anywhere among them.
    """
    # With repetition only where the pool is smaller than the step.
    scene = rng.choice(len(pool), count, replace=count > len(pool))
    start = rng.integers(0, pool.images.shape[1] - window + 1, count)
    offset = np.argsort(rng.random((count, window)), axis=1)[:, :views]
    view = start[:, None] + offset
    rows = scene[:, None]
    return Scenes(
        images=pool.images[rows, view],
        depth=pool.depth[rows, view].astype(np.float32),
        extrinsic=np.array(pool.extrinsic[rows, view]),
        intrinsic=np.array(pool.intrinsic[rows, view]),
    )


def view_window(views: int, path: int, widen_until: float, done: float) -> int:
    """Neighbouring views to draw from: `views` at the start, the whole path from `widen_until`."""
    grown = 1.0 if done >= widen_until else done / widen_until
    return views + round((path - views) * grown)


def mirrored(scenes: Scenes, which: NDArray[np.bool_]) -> Scenes:
    """The scenes of `which` [B] as a mirror would show them, left and right exchanged.

    With M = diag(-1, 1, 1): x_cam' = M x_cam, X' = M X, so R' = M R M and t' = M t; with pixel
    centres at u + 0.5, u' = W - u, so c_x' = W - c_x.
    """
    width = scenes.images.shape[3]
    images, depth = scenes.images.copy(), scenes.depth.copy()
    extrinsic, intrinsic = scenes.extrinsic.copy(), scenes.intrinsic.copy()
    images[which] = scenes.images[which][:, :, :, ::-1]
    depth[which] = scenes.depth[which][..., ::-1]
    flip = np.array([-1.0, 1.0, 1.0])
    extrinsic[which] *= flip[:, None] * np.array([-1.0, 1.0, 1.0, 1.0])
    intrinsic[which, :, 0, 2] = width - intrinsic[which, :, 0, 2]
    return Scenes(images, depth, extrinsic, intrinsic)


def make_targets(scenes: Scenes) -> Targets:
    """What the network should emit for these scenes, view 0 of each being the reference."""
    batch, frames, height, width = scenes.depth.shape
    extrinsic = in_first_camera(scenes.extrinsic)
    valid = np.isfinite(scenes.depth) & (scenes.depth > 0)
    depth = np.where(valid, scenes.depth, np.float32(0)).astype(np.float32, copy=False)
    seen = camera_points(depth, scenes.intrinsic)
    # Row vectors: R^T (X_cam - t) = (X_cam - t)^T R. In float32: a matrix product per frame.
    rotation = extrinsic[..., :3].astype(np.float32)
    translation = extrinsic[..., 3].astype(np.float32)
    flat = seen.reshape(batch, frames, -1, 3) - translation[:, :, None]
    points: NDArray[np.float32] = np.matmul(flat, rotation).reshape(seen.shape)
    points *= valid[..., None]
    scale = mean_distance(points, valid)
    extrinsic[..., 3] /= scale[:, None, None]
    np.divide(points, scale[:, None, None, None, None], out=points, casting="same_kind")
    np.divide(depth, scale[:, None, None, None], out=depth, casting="same_kind")
    pose = camera_to_pose_encoding(extrinsic, scenes.intrinsic, height, width)
    return Targets(pose.astype(np.float32), depth, points, valid)


def in_first_camera(extrinsic: NDArray[np.float64]) -> NDArray[np.float64]:
    """Extrinsics [B, S, 3, 4] with the first camera of each scene as the world.

    x = R X + t and x_0 = R_0 X + t_0, so x = R R_0^T x_0 + (t - R R_0^T t_0).
    """
    first = extrinsic[:, :1]
    rotation = extrinsic[..., :3] @ np.swapaxes(first[..., :3], -1, -2)
    translation = extrinsic[..., 3:] - rotation @ first[..., 3:]
    return np.concatenate([rotation, translation], axis=-1)


def camera_points(
    depth: NDArray[np.float32], intrinsic: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Depth [..., H, W] and intrinsic [..., 3, 3] (no skew) -> points of the camera's frame
    [..., H, W, 3]: z K^-1 [u + 0.5, v + 0.5, 1].
    """
    height, width = depth.shape[-2:]
    k = intrinsic.astype(np.float32)[..., None, None]
    u = np.arange(width, dtype=np.float32) + np.float32(0.5)
    v = np.arange(height, dtype=np.float32)[:, None] + np.float32(0.5)
    points = np.empty((*depth.shape, 3), dtype=np.float32)
    points[..., 0] = (u - k[..., 0, 2, :, :]) / k[..., 0, 0, :, :] * depth
    points[..., 1] = (v - k[..., 1, 2, :, :]) / k[..., 1, 1, :, :] * depth
    points[..., 2] = depth
    return points


def mean_distance(points: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Mean distance [B] of the valid points [B, S, H, W, 3] from the origin.

    Raises:
        ValueError: nothing is known of a scene, so it has no size. (The pool holds no such view.)
    """
    count = valid.sum(axis=(1, 2, 3))
    if count.min() == 0:
        raise ValueError("a scene has no pixel of known depth")
    distance = np.sqrt(np.einsum("...i,...i->...", points, points))  # 0 where it is not valid
    mean: NDArray[np.float64] = distance.sum(axis=(1, 2, 3), dtype=np.float64) / count
    return mean
