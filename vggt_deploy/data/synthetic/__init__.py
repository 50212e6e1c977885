"""Rendered scenes with exact depth, poses, intrinsics and points, from a seed, in numpy alone.

They are what vggt-nano is trained and judged on, what the demo shows, and what tests take where no
photographs may be shipped. Every surface is a function of the seed; nothing is read from disk.

World: metres, right-handed, z up. Cameras: OpenCV axes, world-to-camera; the centre of pixel
(column u, row v) is at (u + 0.5, v + 0.5); depth is z along the optical axis, inf where the sky is.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vggt_deploy.data.synthetic.families import FAMILIES, HELD_OUT, make_stage
from vggt_deploy.data.synthetic.paths import draw_cameras
from vggt_deploy.data.synthetic.render import render
from vggt_deploy.errors import UsageError

__all__ = ["FAMILIES", "HELD_OUT", "SceneViews", "render_views"]


@dataclass(frozen=True, eq=False)
class SceneViews:
    """S views of one scene with the truth about them.

    images [S, H, W, 3] uint8 RGB, depth [S, H, W] float32 metres, extrinsic [S, 3, 4] and
    intrinsic [S, 3, 3] float64. `traits` says what makes the scene hard.
    """

    family: str
    seed: int
    traits: tuple[str, ...]
    images: NDArray[np.uint8]
    depth: NDArray[np.float32]
    extrinsic: NDArray[np.float64]
    intrinsic: NDArray[np.float64]


def render_views(
    seed: int, *, views: int, height: int, width: int, family: str | None = None
) -> SceneViews:
    """Draw the scene of a seed: `views` pictures along a path, neighbours overlapping most.

    `family` None takes one of FAMILIES, by the seed. The same arguments give the same bytes on one
    machine; another numpy or processor may differ in the last bit of a colour.
    """
    if seed < 0 or views < 1 or min(height, width) < 8:
        raise UsageError(
            f"can't render {views} views of {width} x {height} pixels from seed {seed}",
            "ask for 1 view or more, 8 pixels or more, and a seed of 0 or more",
        )
    if family is None:
        family = FAMILIES[int(np.random.default_rng([seed, 1]).integers(len(FAMILIES)))]
    if family not in (*FAMILIES, HELD_OUT):
        known = ", ".join((*FAMILIES, HELD_OUT))
        raise UsageError(f"unknown family of scenes {family!r}", f"use one of: {known}")
    rng = np.random.default_rng([seed, zlib.crc32(family.encode())])
    stage = make_stage(family, rng)
    cameras = draw_cameras(stage, rng, views, height, width)
    pictures, depths = zip(*(render(stage.scene, camera) for camera in cameras), strict=True)
    return SceneViews(
        family=family,
        seed=seed,
        traits=stage.traits,
        images=np.stack(pictures),
        depth=np.stack(depths),
        extrinsic=np.stack([camera.extrinsic for camera in cameras]),
        intrinsic=np.stack([camera.intrinsic for camera in cameras]),
    )
