"""Frames that stand on their side: shot upright, stored in the camera's landscape form.

ETH3D has some, and a network that was trained on upright pictures sees them lying. Nothing in the
file says so; the poses do. The scene's up direction is estimated from the poses alone: it is the
one that makes most frames upright, made exact by the rule that the x axis of an upright camera is
horizontal. A frame is sideways if its roll about the optical axis, against that direction, is
between 45 and 135 degrees.

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
_ROUNDS = 5


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
    seen = extrinsics[:, :, :3] @ up
    rolls = np.degrees(np.arctan2(seen[:, 0], -seen[:, 1]))
    steep = np.hypot(seen[:, 0], seen[:, 1]) < np.cos(np.radians(_STEEPEST_DEG))
    return np.where(steep, np.nan, rolls)


def up_direction(extrinsics: Doubles) -> Doubles:
    """[3], unit length, in the world of poses [S, 3, 4]: what most of the frames have upwards."""
    right, up = extrinsics[:, 0, :3], -extrinsics[:, 1, :3]  # of each camera, in the world
    best = up[int(np.argmin([_rolled(extrinsics, candidate) for candidate in up]))]
    for _ in range(_ROUNDS):
        upright = np.abs(rolls_deg(extrinsics, best)) < SIDEWAYS_FROM_DEG
        # The unit vector with the least sum of squared products with the right axes. Where these
        # are nearly one, as when all cameras look the same way, it can be any: then it is refused.
        axes = right[upright]
        vector = np.linalg.eigh(axes.T @ axes)[1][:, 0]
        refined = vector if vector @ up[upright].sum(axis=0) > 0 else -vector
        if _rolled(extrinsics, refined) > _rolled(extrinsics, best):
            break
        best = refined
    return np.asarray(best)


def _rolled(extrinsics: Doubles, up: Doubles) -> float:
    """How little the frames agree with `up`: the sum of their rolls, each counted up to 45."""
    rolls = np.abs(np.nan_to_num(rolls_deg(extrinsics, up), nan=SIDEWAYS_FROM_DEG))
    return float(np.minimum(rolls, SIDEWAYS_FROM_DEG).sum())
