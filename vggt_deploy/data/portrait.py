"""Frames that stand on their side: shot upright, stored in the camera's landscape form.

ETH3D has some, and a network that was trained on upright pictures sees them lying. Nothing in the
file says so; the poses do. The scene's up direction is estimated from the poses alone: the x axes
of two level cameras are horizontal, so their cross product is up. Of all pairs, and of the cameras'
own tops, the direction is taken with which the frames agree best. A frame is sideways if its roll
about the optical axis, against that direction, is between 45 and 135 degrees.

Give the poses of the whole calibration where they are known: what most frames agree on is taken for
upright, so in a handful that are mostly sideways the others would be named.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vggt_deploy.errors import UsageError
from vggt_deploy.geometry import Doubles

SIDEWAYS_FROM_DEG, SIDEWAYS_TO_DEG = 45.0, 135.0
# A camera that looks up or down so steeply has no roll: the up direction projects onto a point.
_STEEPEST_DEG = 80.0
# Cross products of axes nearer than this to each other are mostly noise.
_NARROWEST_DEG = 5.0
_MOST_FRAMES = 64  # whose axes are paired; a longer sequence is sampled evenly


def sideways(extrinsics: Doubles, names: Sequence[str]) -> tuple[str, ...]:
    """Those of `names` whose frames are sideways, in their order.

    extrinsics: [S, 3, 4], world to camera, OpenCV axes, one per name
    """
    if len(extrinsics) != len(names):
        raise UsageError(
            f"{len(extrinsics)} poses for {len(names)} names", "give one pose for each picture"
        )
    if not names:
        return ()
    rolls = np.abs(rolls_deg(extrinsics, up_direction(extrinsics)))
    found = (rolls > SIDEWAYS_FROM_DEG) & (rolls < SIDEWAYS_TO_DEG)  # NaN is neither
    return tuple(name for name, is_sideways in zip(names, found, strict=True) if is_sideways)


def rolls_deg(extrinsics: Doubles, up: Doubles) -> Doubles:
    """[S] in degrees, -180 to 180: how far the world's `up` [3] is turned from each picture's top.

    Positive where up is to the right in the picture. NaN for a camera within 10 degrees of looking
    straight up or down.
    """
    return _rolls(extrinsics, up[None])[:, 0]


def up_direction(extrinsics: Doubles) -> Doubles:
    """[3], unit length, in the world of poses [S, 3, 4], S of 1 and more."""
    some = np.linspace(0, len(extrinsics) - 1, min(len(extrinsics), _MOST_FRAMES)).astype(int)
    right, tops = extrinsics[some, 0, :3], -extrinsics[some, 1, :3]  # of each camera, in the world
    first, second = np.triu_indices(len(some), 1)
    crossed = np.cross(right[first], right[second])
    length = np.linalg.norm(crossed, axis=1)
    wide = length > np.sin(np.radians(_NARROWEST_DEG))
    crossed = crossed[wide] / length[wide, None]
    candidates = np.concatenate([tops, crossed, -crossed])
    # Each roll counts up to 45 degrees: how far a frame is on its side says nothing.
    rolls = np.abs(np.nan_to_num(_rolls(extrinsics, candidates), nan=SIDEWAYS_FROM_DEG))
    cost = np.minimum(rolls, SIDEWAYS_FROM_DEG).sum(axis=0)
    return np.asarray(candidates[int(np.argmin(cost))])


def _rolls(extrinsics: Doubles, ups: Doubles) -> Doubles:
    """As `rolls_deg`, for several up directions [C, 3]: [S, C]."""
    across, upwards = extrinsics[:, 0, :3] @ ups.T, -extrinsics[:, 1, :3] @ ups.T
    steep = np.hypot(across, upwards) < np.cos(np.radians(_STEEPEST_DEG))
    return np.where(steep, np.nan, np.degrees(np.arctan2(across, upwards)))
