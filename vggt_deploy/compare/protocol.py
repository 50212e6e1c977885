"""How the numbers against the truth were taken, in words, for every table that shows some.

Published ETH3D numbers disagree because their frames, alignments and masks do; so these stand with
the numbers. The formulas are those at the top of `truth.py` and of the modules it names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from vggt_deploy.compare.scenes import Scenes
from vggt_deploy.compare.truth_clouds import LOSS_TOLERANCE_M, TOLERANCES_M, VOXEL_M
from vggt_deploy.data.eth3d import RESAMPLED
from vggt_deploy.errors import CompareError
from vggt_deploy.typed_json import decode

# ETH3D scores a reconstruction of all pictures against its laser scans.
_NOT_OFFICIAL = "not ETH3D's official benchmark"
_HASH_SHOWN = 12
_LISTED = 8


@dataclass(frozen=True)
class MetricProtocol:
    """One sentence each.

    frames  which pictures: a committed list by name and hash, or the first so many of each folder;
            what became of those on their side
    masks   which pixels of the truth are left out
    poses   how pose errors are formed; depth, points: how these are aligned and measured, of how
            many frames, in which unit
    """

    frames: str
    masks: str
    poses: str
    depth: str
    points: str

    @property
    def line(self) -> str:
        """In one line, for below a table."""
        parts = (self.frames, self.masks, self.poses, self.depth, self.points)
        return "; ".join(parts)

    @classmethod
    def from_json(cls, data: object) -> MetricProtocol:
        """The inverse of `dataclasses.asdict`; CompareError where it is something else."""
        return cast("MetricProtocol", decode(cls, data, "protocol", _refuse))


def protocol_of(scenes: Scenes) -> MetricProtocol:
    """What the comparison of these scenes does."""
    tolerances = ", ".join(f"{tolerance:g}" for tolerance in TOLERANCES_M)
    return MetricProtocol(
        frames=f"{_frames(scenes)}, {_NOT_OFFICIAL}",
        masks=_masks(scenes),
        poses="all pairs of frames, the larger of rotation and direction error, AUC as exact area; "
        "RRA and RTA each by itself; a flipped baseline counts as 180 degrees; a pair without a "
        "true baseline counts its rotation alone",
        depth="one alignment per scene: the median scale, and (affine) least-squares scale and "
        f"shift of depth; {_depth(scenes)}",
        points="point head at the pixels with true depth, Umeyama over all of them; clouds thinned "
        f"to {VOXEL_M:g} m, F-score at {tolerances} m, losses of it at {LOSS_TOLERANCE_M:g} m; "
        "lengths are in the scene's unit, read as metres: in ETH3D they are, in another folder's "
        "calibration they may be anything",
    )


def _frames(scenes: Scenes) -> str:
    """Which pictures, and what became of them."""
    what = {"crop": "cropped", "pad": "padded"}.get(scenes.mode, scenes.mode)
    size = f"{what} to {scenes.height} x {scenes.width}{_sideways(scenes)}"
    listed = scenes.listed
    if listed is None:
        return f"the first {scenes.frames} pictures of each folder, {size}"
    return (
        f"frame list {listed.name} (sha256 {listed.sha256[:_HASH_SHOWN]}), {len(scenes.items)} of "
        f"its {len(listed.scenes)} scenes, {scenes.frames} pictures of each, {size}"
    )


def _sideways(scenes: Scenes) -> str:
    """What became of the frames that stand on their side, where there are some."""
    if scenes.drop_sideways:
        return f", frames on their side left out ({scenes.dropped})"
    several = len(scenes.items) > 1
    kept = [
        f"{scene.name}/{name}" if several else name
        for scene in scenes.items
        for name in scene.on_side
    ]
    if not kept:
        return ""
    more = ", ..." if len(kept) > _LISTED else ""
    return f", frames on their side kept ({len(kept)}: {', '.join(kept[:_LISTED])}{more})"


def _depth(scenes: Scenes) -> str:
    """Of how many frames depth is known anywhere, and whether it is of these very pixels."""
    truths = [scene.truth for scene in scenes.items if scene.truth is not None]
    known = sum(
        int(np.count_nonzero(np.isfinite(truth.depth).any(axis=(1, 2))))
        for truth in truths
        if truth.depth is not None
    )
    text = f"true depth of {known} of {scenes.frames * len(scenes.items)} frames"
    moved = sum(truth.depth is not None and RESAMPLED in truth.note for truth in truths)
    return f"{text}, in {moved} of {len(scenes.items)} scenes {RESAMPLED}" if moved else text


def _masks(scenes: Scenes) -> str:
    """Which pixels of the truth were left out, and for how many frames there were masks at all."""
    with_depth = [
        s.truth for s in scenes.items if s.truth is not None and s.truth.depth is not None
    ]
    used = [truth.masks for truth in with_depth if truth.masks is not None]
    if not used:
        return "no masks"
    kinds = " or ".join(dict.fromkeys(masks.text for masks in used))
    pixels = sum(masks.pixels for masks in used)
    masked = sum(masks.frames for masks in used)
    frames = scenes.frames * len(with_depth)
    return f"{kinds} ({pixels} pixels of depth; masks of {masked} of {frames} frames)"


def _refuse(problem: str) -> Any:
    return CompareError(problem, "it was not written by this version; run it again")
