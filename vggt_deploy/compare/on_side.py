"""Frames that stand on their side, by the poses of their scene (`data.portrait`): named, left out.

Found among all poses of the calibration, not those of the chosen pictures alone: of a few frames,
most may be on their side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from vggt_deploy.data.eth3d import read_calibration
from vggt_deploy.data.eth3d_layout import scene_of
from vggt_deploy.data.folders import ImageFolder
from vggt_deploy.data.ground_truth import no_truth_because
from vggt_deploy.data.portrait import sideways
from vggt_deploy.errors import ImageError, UsageError


def on_side(paths: Sequence[Path]) -> tuple[str, ...] | None:
    """Names of those of the pictures that are on their side; None: there are no poses.

    A picture without a pose is not among them.

    Raises:
        SceneError: calibration that can't be read.
    """
    places = scene_of(paths[0].parent)
    if places is None or no_truth_because(paths) is not None:
        return None
    _, images = read_calibration(places.calibration)
    lying = set(sideways(np.array([one.extrinsic() for one in images.values()]), tuple(images)))
    return tuple(path.name for path in paths if path.name in lying)


def upright(
    images: ImageFolder, scene: str, max_images: int | None
) -> tuple[ImageFolder, tuple[str, ...]]:
    """Without the frames on their side, then the first `max_images`; and what was left out.

    Raises:
        UsageError: the scene has no poses, so that nobody can say which frames these are.
        ImageError: all frames are on their side.
        SceneError: calibration that can't be read.
    """
    dropped = on_side(images.paths)
    if dropped is None:
        raise UsageError(
            f"the scene {scene} ({images.root}) has no poses, so which of its frames are on their "
            f"side is not known: {no_truth_because(images.paths)}",
            "leave out --drop-sideways, or give the scene its calibration",
        )
    kept = tuple(path for path in images.paths if path.name not in dropped)
    if not kept:
        raise ImageError(
            f"the scene {scene} ({images.root}) has no frame left: all {len(dropped)} are on their "
            "side",
            "leave out that scene, or --drop-sideways",
        )
    note = f"{images.note}; {len(dropped)} on their side left out"
    if max_images is not None and max_images < len(kept):
        kept = kept[:max_images]
        note += f"; the first {len(kept)} of the others by name are taken"
    return replace(images, paths=kept, note=note), dropped
