"""Cameras to draw: where they are, where they look, and the pyramid of what they see.

X_cam = R X_world + t, so the centre is C = -R^T t, and the camera looks along +z, which in the
world is the third row of R.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vggt_deploy.geometry import is_pinhole

Doubles = NDArray[np.float64]

# Tip 0, corners 1..4 in the order top left, top right, bottom right, bottom left.
FRUSTUM_EDGES = ((0, 1), (0, 2), (0, 3), (0, 4), (1, 2), (2, 3), (3, 4), (4, 1))
# A frustum is 0.6 of the way to the next camera long, within these shares of the scene's size.
_OF_NEXT_CAMERA = 0.6
_LEAST_SHARE, _MOST_SHARE = 0.02, 0.08
_MOST_SLANT = 2.0
_SCENE_PERCENTILES = (5.0, 95.0)


@dataclass(frozen=True)
class Cameras:
    """The cameras that can be drawn, in the order of the pictures.

    frames   which pictures they are of, [N]
    centres  [N, 3] in the world
    forward  [N, 3], unit vectors
    frusta   [N, 5, 3]: tip and corners (see FRUSTUM_EDGES); NaN where the field of view is none of
             a pinhole camera
    length   of the frusta along the optical axis; wide ones are shorter
    notes    what is left out, and why
    """

    frames: tuple[int, ...]
    centres: Doubles
    forward: Doubles
    frusta: Doubles
    length: float
    notes: tuple[str, ...]

    @property
    def with_frustum(self) -> list[int]:
        """Indices, into these arrays, of the cameras that have a frustum."""
        return np.flatnonzero(np.isfinite(self.frusta).all(axis=(1, 2))).tolist()


def cameras_of(
    extrinsic: Doubles,
    intrinsic: Doubles,
    *,
    height: int,
    width: int,
    names: tuple[str, ...],
    points: NDArray[np.floating],
) -> Cameras:
    """Cameras from extrinsics [S, 3, 4] and intrinsics [S, 3, 3] in pixels of (height, width).

    `points` [N, 3], possibly none, say how large the scene is. A pose that is not finite has no
    place; a focal length that is not finite and positive (a field of view of 0, or of 180 degrees
    and more, which a network with bad weights can give) has no frustum.
    """
    notes = []
    placed = np.isfinite(extrinsic).all(axis=(1, 2))
    frames: list[int] = np.flatnonzero(placed).tolist()
    for frame in np.flatnonzero(~placed).tolist():
        notes.append(f"{names[frame]}: its pose is not finite, no camera is drawn")
    poses, lenses = extrinsic[frames], intrinsic[frames]
    centres, forward = camera_centres(poses), poses[:, 2, :3].copy()
    length = frustum_length(centres, points)
    frusta = np.full((len(frames), 5, 3), np.nan)
    pinhole = is_pinhole(lenses)
    for index, frame in enumerate(frames):
        if pinhole[index]:
            frusta[index] = frustum(poses[index], lenses[index], height, width, length)
        else:
            notes.append(
                f"{names[frame]}: its field of view is no pinhole camera's, so it has no frustum,"
                " and its depth does not become points"
            )
    return Cameras(tuple(frames), centres, forward, frusta, length, tuple(notes))


def camera_centres(extrinsic: Doubles) -> Doubles:
    """C = -R^T t, for [S, 3, 4] -> [S, 3]."""
    centres: Doubles = -np.einsum("sji,sj->si", extrinsic[..., :3], extrinsic[..., 3])
    return centres


def frustum(
    extrinsic: Doubles, intrinsic: Doubles, height: int, width: int, length: float
) -> Doubles:
    """Tip and four corners [5, 3] in the world: the picture's outer corners at z = `length`.

    Nearer where they would be more than _MOST_SLANT times `length` from the tip: at a field of view
    of 170 degrees, which a quantized network may give, they are 11 times as far away.

    The intrinsic counts pixels from the outer edge of the first one, so the corners are 0 and the
    whole width and height. X_world = R^T (X_cam - t).
    """
    u = np.array([0.0, width, width, 0.0])
    v = np.array([0.0, 0.0, height, height])
    x = (u - intrinsic[0, 2]) / intrinsic[0, 0]
    y = (v - intrinsic[1, 2]) / intrinsic[1, 1]
    rays = np.stack([x, y, np.ones(4)], axis=-1)
    slant = float(np.linalg.norm(rays, axis=-1).max())
    in_camera = np.vstack([np.zeros(3), rays * length * min(1.0, _MOST_SLANT / slant)])
    in_world: Doubles = (in_camera - extrinsic[:, 3]) @ extrinsic[:, :3]
    return in_world


def frustum_length(centres: Doubles, points: NDArray[np.floating]) -> float:
    """How long to draw frusta so that they are seen and do not hide each other."""
    size = scene_size(centres, points)
    if len(centres) < 2:
        return _MOST_SHARE * size
    apart = np.linalg.norm(centres[:, None] - centres[None], axis=-1)
    np.fill_diagonal(apart, np.inf)
    next_camera = float(np.median(apart.min(axis=1)))
    return float(np.clip(_OF_NEXT_CAMERA * next_camera, _LEAST_SHARE * size, _MOST_SHARE * size))


def scene_size(centres: Doubles, points: NDArray[np.floating]) -> float:
    """Diagonal of the box around the cameras and all but the outermost points; 1 if it is empty."""
    corners = [centres]
    if len(points):
        corners.append(np.percentile(points, _SCENE_PERCENTILES, axis=0))
    around = np.concatenate(corners)
    if len(around) == 0:
        return 1.0
    diagonal = float(np.linalg.norm(around.max(axis=0) - around.min(axis=0)))
    return diagonal if diagonal > 0 else 1.0
