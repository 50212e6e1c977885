"""Where the camera goes: a short path whose views see the same things from different places.

    orbit    around the focus, looking at it
    stride   along a straight line past the focus, looking ahead of it or at it
    drift    a smooth random walk, looking about

A path is drawn again until it keeps clear of everything and neighbouring views share enough of what
they see. `wide` spreads the same number of views over a longer path.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vggt_deploy.data.synthetic.families import Stage
from vggt_deploy.data.synthetic.render import Camera, Scene, depth_of, nearest

Doubles = NDArray[np.float64]
Rng = np.random.Generator

TRIES = 60
CLEARANCE = 0.25  # of the distance from the focus; nearer surfaces would fill the picture
MIN_SHARED = 0.45  # of the points of a view that its neighbour has in the picture
PROBE = (9, 12)  # rows and columns of the coarse pictures that this is judged by


def draw_cameras(stage: Stage, rng: Rng, views: int, height: int, width: int) -> tuple[Camera, ...]:
    """`views` cameras along a path through the stage.

    The best of the tries by shared view if none passes, so that every seed has a scene; a camera
    inside of something never passes.
    """
    best: tuple[float, tuple[Camera, ...]] | None = None
    for _ in range(TRIES):
        cameras = _draw(stage, rng, views, height, width)
        shared = _shared(stage.scene, cameras)
        if best is None or shared > best[0]:
            best = shared, cameras
        if shared >= (0.5 * MIN_SHARED if "wide" in stage.traits else MIN_SHARED):
            break
    assert best is not None
    return best[1]


def _draw(stage: Stage, rng: Rng, views: int, height: int, width: int) -> tuple[Camera, ...]:
    steps = np.linspace(0.0, 1.0, views) if views > 1 else np.zeros(1)
    eyes, targets = _path(stage, rng, steps)
    half = np.radians(rng.uniform(50, 70)) / 2
    zooms = rng.uniform(0.9, 1.1, views) if rng.random() < 0.2 else np.ones(views)
    rolls = np.radians(rng.normal(0, 3.0) + rng.normal(0, 1.5, views))
    cameras = []
    for eye, target, zoom, roll in zip(eyes, targets, zooms, rolls, strict=True):
        focal = zoom * width / 2 / np.tan(half)
        intrinsic = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])
        cameras.append(Camera(look_at(eye, target, roll), intrinsic, height, width))
    return tuple(cameras)


def _path(stage: Stage, rng: Rng, steps: Doubles) -> tuple[Doubles, Doubles]:
    """Camera centres and what they look at, [V, 3] each, at the steps 0..1 of the path."""
    wide = 1.9 if "wide" in stage.traits else 1.0
    distance = rng.uniform(*stage.standing)
    start = rng.uniform(0, 2 * np.pi)
    low, high = stage.heights
    z = rng.uniform(low, high) + rng.uniform(-0.35, 0.35) * (high - low) * steps
    jitter = 0.06 * distance
    targets = stage.focus + rng.normal(0, jitter, (len(steps), 3)) * (1, 1, 0.5)
    kind = rng.choice(3, p=(0.5, 0.25, 0.25))
    if kind == 0:
        sweep = rng.choice((-1, 1)) * np.radians(rng.uniform(20, 75)) * wide
        angle = start + sweep * steps
        radius = distance * (1 + rng.uniform(-0.3, 0.3) * steps)
        flat = stage.focus[:2] + radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    else:
        toward = np.array([np.cos(start), np.sin(start)])
        aside = np.array([-toward[1], toward[0]])
        span = distance * rng.uniform(0.3, 0.9) * wide * rng.choice((-1, 1))
        if kind == 1:
            course = aside * np.cos(a := rng.uniform(-0.7, 0.7)) + toward * np.sin(a)
            flat = stage.focus[:2] + distance * toward + span * (steps - 0.5)[:, None] * course
            if rng.random() < 0.5:  # looks past the focus at the same angle: little turning
                shift = 0.7 * span * (steps - 0.5)[:, None] * course
                targets[:, :2] += shift
        else:
            bends = rng.normal(0, 0.5, (3, 2))
            curve = sum(b * np.sin(np.pi * (k + 1) * steps)[:, None] for k, b in enumerate(bends))
            flat = (
                stage.focus[:2]
                + distance * toward
                + 0.5 * span * curve
                + span * ((steps - 0.5)[:, None] * aside)
            )
            turning = rng.normal(0, 0.25, 3)
            targets = targets + distance * turning * (steps[:, None] - 0.5)
    flat = np.clip(flat, -np.array(stage.walls), np.array(stage.walls))
    heights = np.clip(z, low, high) + rng.normal(0, 0.01, len(steps)) * distance
    return np.column_stack([flat, heights]), targets


def look_at(eye: Doubles, target: Doubles, roll_rad: float = 0.0) -> Doubles:
    """World-to-camera [3, 4] of a camera at `eye` that looks at `target`, z up, rolled."""
    forward = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross(forward, (0.0, 0.0, 1.0))
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    c, s = np.cos(roll_rad), np.sin(roll_rad)
    rotation = np.stack([c * right + s * down, c * down - s * right, forward])
    return np.column_stack([rotation, -rotation @ eye])


def _shared(scene: Scene, cameras: tuple[Camera, ...]) -> float:
    """The least share of a view's points that the next view has in its picture; -1 if too near."""
    clouds = []
    for camera in cameras:
        v, u = (np.mgrid[: PROBE[0], : PROBE[1]].reshape(2, -1) + 0.5) / np.array(PROBE)[:, None]
        rays = camera.rays(u * camera.width, v * camera.height)
        owner = nearest(scene, camera.centre, rays)
        depth = depth_of(scene, camera.centre, rays, owner)
        seen = np.isfinite(depth)
        if seen.mean() < 0.4:
            return -1.0
        if np.quantile(depth[seen], 0.03) < CLEARANCE * np.median(depth[seen]) * 0.6:
            return -1.0
        clouds.append(camera.centre[:, None] + depth[seen] * rays[:, seen])
    least = 1.0
    for points, camera in zip(clouds, cameras[1:], strict=False):
        at = camera.intrinsic @ (camera.extrinsic[:, :3] @ points + camera.extrinsic[:, 3:])
        inside = (at[2] > 0) & (at[0] > 0) & (at[1] > 0)
        inside &= (at[0] < camera.width * at[2]) & (at[1] < camera.height * at[2])
        least = min(least, float(inside.mean()))
    return least
