"""A renderer that takes milliseconds, in a module of its own so that worker processes find it."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vggt_deploy.train.recipe import SceneRecipe


@dataclass(frozen=True)
class PlaneViews:
    """Views of the plane z = 4, coloured by its own coordinates."""

    images: NDArray[np.uint8]
    depth: NDArray[np.float32]
    extrinsic: NDArray[np.float64]
    intrinsic: NDArray[np.float64]


def turned(axis: int, angle_rad: float) -> NDArray[np.float64]:
    """Rotation about a coordinate axis."""
    c, s = np.cos(angle_rad), np.sin(angle_rad)
    i, j = [k for k in range(3) if k != axis]
    rotation = np.eye(3)
    rotation[i, i] = rotation[j, j] = c
    rotation[i, j], rotation[j, i] = -s, s
    return rotation


def render_plane(seed: int, scenes: SceneRecipe) -> PlaneViews:
    """Cameras that turn a little and go right along the x axis; a strip at the top is unknown."""
    rng = np.random.default_rng([seed, 7])
    views, height, width = scenes.views, scenes.height, scenes.width
    focal = width * rng.uniform(0.7, 1.1)
    k = np.array([[focal, 0, width / 2 + 1.5], [0, focal, height / 2 - 1.0], [0, 0, 1]])
    v, u = np.mgrid[:height, :width] + 0.5
    rays = np.stack([u, v, np.ones_like(u)], axis=-1) @ np.linalg.inv(k).T
    images, depths, extrinsics = [], [], []
    for view in range(views):
        rotation = turned(1, rng.uniform(-0.2, 0.2)) @ turned(0, rng.uniform(-0.1, 0.1))
        centre = np.array([0.3 * view, rng.uniform(-0.2, 0.2), rng.uniform(-0.2, 0.2)])
        # X = c + z R^T ray with X_z = 4.
        directions = rays @ rotation
        depth = (4 - centre[2]) / directions[..., 2]
        points = centre + depth[..., None] * directions
        wave = 0.5 + 0.5 * np.sin(points * (2.0 + seed % 5) + [0, 1, 2])
        depth[: height // 12] = np.inf
        images.append((wave * 255).round().astype(np.uint8))
        depths.append(depth.astype(np.float32))
        extrinsics.append(np.column_stack([rotation, -rotation @ centre]))
    return PlaneViews(
        np.stack(images),
        np.stack(depths),
        np.stack(extrinsics),
        np.repeat(k[None], views, axis=0),
    )


def render_slowly(seed: int, scenes: SceneRecipe) -> PlaneViews:
    """The same, slowly enough to be killed meanwhile."""
    time.sleep(0.1)
    return render_plane(seed, scenes)


def render_blind(seed: int, scenes: SceneRecipe) -> PlaneViews:
    """A scene of which nothing is known."""
    views = render_plane(seed, scenes)
    views.depth[:] = np.inf
    return views
