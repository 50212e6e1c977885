"""Which pictures a network is calibrated on, in which passes, and how they are loaded.

A pass is a scene to the model: attention over all its frames mixes them. Pictures of one scene, in
the number that will be run together, calibrate best. Without `select` all of them are used; with
it, the view sets that `selection` finds most different, by features of the FP32 model's encoder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vggt_deploy.data.folders import find_all_images
from vggt_deploy.data.images import ImageBatch, Mode, load_images
from vggt_deploy.errors import CalibrationError, ImageError, UsageError
from vggt_deploy.model.config import VGGTConfig
from vggt_deploy.model.encoder import Encoder
from vggt_deploy.model.fields import grid_fields
from vggt_deploy.model.fold import FoldedWeights
from vggt_deploy.model.sources import WeightSource
from vggt_deploy.progress import Progress, silent
from vggt_deploy.quantize.selection import Selection, choose, pass_bounds

DEFAULT_FRAMES_PER_PASS = 8
ENCODER = "aggregator.patch_embed."


@dataclass(frozen=True)
class Pictures:
    """Which images to calibrate on, and how they are brought to (height, width) in pixels.

    `folder` may hold several ETH3D scenes: no pass mixes them, `max_images` is for each.
    `select`: how many view sets (passes) to choose of all of them, the most different ones.
    """

    folder: Path
    height: int
    width: int
    mode: Mode = "crop"
    max_images: int | None = None
    frames_per_pass: int = DEFAULT_FRAMES_PER_PASS
    skip_bad: bool = False
    select: int | None = None


@dataclass(frozen=True)
class Passes:
    """What is run: name -> path of the pictures of each pass; how they were chosen, if they were.

    skipped: files that could not be read, with the reason; without a choice, none was read yet
    """

    views: tuple[Mapping[str, Path], ...]
    selection: Selection | None = None
    skipped: tuple[str, ...] = ()

    @property
    def images(self) -> int:
        """How many pictures."""
        return sum(map(len, self.views))


@torch.no_grad()
def plan_passes(
    config: VGGTConfig,
    source: WeightSource,
    pictures: Pictures,
    progress: Progress | None = None,
) -> Passes:
    """Find the pictures and put them into passes. With `select`, runs the encoder on each.

    source: the model's weights, not folded.

    Raises:
        UsageError: no multiple of 14, no views a pass, more view sets wanted than there are.
        ImageError: no images, or one that can't be read (with `skip_bad`: none that can).
        CalibrationError: the encoder gives NaN or infinity on a picture.
    """
    config.grid(pictures.height, pictures.width)  # a size that is no multiple of 14 ends here
    if pictures.frames_per_pass < 1:
        raise UsageError(
            f"frames_per_pass is {pictures.frames_per_pass}", "use 1 view a pass or more"
        )
    scenes = find_all_images(Path(pictures.folder), max_images=pictures.max_images)
    if pictures.select is None:
        return Passes(
            tuple(part for scene in scenes for part in _split(scene, pictures.frames_per_pass))
        )
    features, skipped = _features(config, source, scenes, pictures, progress or silent)
    selection = choose(features, pictures.frames_per_pass, pictures.select)
    paths = {name: path for scene in scenes for name, path in scene.items()}
    views = tuple({name: paths[name] for name in names} for names in selection.chosen)
    return Passes(views, selection, skipped)


def load_views(
    views: Mapping[str, Path], pictures: Pictures
) -> tuple[ImageBatch | None, tuple[str, ...]]:
    """The pictures of one pass, and what could not be read; None if that is all of it.

    Raises:
        ImageError: one can't be read, without `skip_bad`.
    """
    try:
        batch = load_images(
            tuple(views.values()),
            mode=pictures.mode,
            width=pictures.width,
            height=pictures.height,
            skip_bad=pictures.skip_bad,
        )
    except ImageError as error:
        if not pictures.skip_bad:
            raise
        return None, tuple(f"{name}: {error.message}" for name in views)
    names = {path: name for name, path in views.items()}
    return batch, tuple(f"{names[item.path]}: {item.reason}" for item in batch.skipped)


def _split(scene: Mapping[str, Path], per_pass: int) -> list[dict[str, Path]]:
    items = list(scene.items())
    return [dict(items[first:last]) for first, last in pass_bounds(len(items), per_pass)]


def _features(
    config: VGGTConfig,
    source: WeightSource,
    scenes: Sequence[Mapping[str, Path]],
    pictures: Pictures,
    report: Progress,
) -> tuple[list[dict[str, NDArray[np.float64]]], tuple[str, ...]]:
    """The mean patch token of every picture that can be read, by scene; what can't be."""
    encoder = _encoder(config, source)
    fields = grid_fields(
        config, encoder.get_parameter("pos_embed"), pictures.height, pictures.width
    )
    total, done = sum(map(len, scenes)), 0
    report("select", done, total)
    found: list[dict[str, NDArray[np.float64]]] = []
    skipped: list[str] = []
    for scene in scenes:
        features: dict[str, NDArray[np.float64]] = {}
        for views in _split(scene, pictures.frames_per_pass):
            batch, unreadable = load_views(views, pictures)
            skipped += unreadable
            if batch is not None:
                names = {path: name for name, path in views.items()}
                tokens = encoder(torch.from_numpy(batch.pixels), fields).mean(1).double().numpy()
                features |= {names[p]: t for p, t in zip(batch.paths, tokens, strict=True)}
            done += len(views)
            report("select", done, total)
        found.append(features)
    if not any(found):
        raise ImageError(f"no image can be used: {skipped[0]}", "give other images")
    for features in found:
        for name, feature in features.items():
            if not np.isfinite(feature).all():
                raise CalibrationError(
                    f"the encoder gives NaN or infinity on {name}",
                    "check the checkpoint: run it with scheme fp32 first",
                )
    return found, tuple(skipped)


def _encoder(config: VGGTConfig, source: WeightSource) -> Encoder:
    """The FP32 encoder alone: 1.2 GB of VGGT-1B, let go before the network is loaded."""
    folded = FoldedWeights(source, config)
    with torch.device("meta"):
        encoder = Encoder(config, folded=True, attention="sdpa")
    values = {key: folded.load(ENCODER + key) for key in encoder.state_dict()}
    encoder.load_state_dict(values, strict=True, assign=True)
    return encoder.eval().requires_grad_(False)
