"""How the numbers against the truth were taken, in words, for every table that shows some.

Published ETH3D numbers disagree because their frames, alignments and masks do; so these stand with
the numbers. The formulas are those at the top of `truth.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from vggt_deploy.compare.scenes import Scenes
from vggt_deploy.errors import CompareError
from vggt_deploy.typed_json import decode


@dataclass(frozen=True)
class MetricProtocol:
    """One sentence each.

    frames  which pictures: a committed list by name and hash, or the first so many of each folder
    masks   which pixels of the truth are left out
    poses   how pose errors are formed; depth, points: how these are aligned and measured
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
    what = {"crop": "cropped", "pad": "padded"}.get(scenes.mode, scenes.mode)
    return MetricProtocol(
        frames=f"the first {scenes.frames} pictures of each folder, {what} to "
        f"{scenes.height} x {scenes.width}",
        masks="no masks",
        poses="all pairs of frames, larger of rotation and direction error, exact area",
        depth="one median scale per scene",
        points="point head, Umeyama over all pixels with true depth",
    )


def _refuse(problem: str) -> Any:
    return CompareError(problem, "it was not written by this version; run it again")
