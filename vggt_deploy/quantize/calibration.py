"""Calibration: the user's images through the FP32 model once, to learn what goes into each Linear.

    images ─► passes of `frames_per_pass` views ─► FP32 folded model ─► a histogram for each Linear
                                                                    ─► scale of its input, by method

One pass over the images; beside the model, memory holds one pass and 256 KiB for each Linear. The
scale is per tensor and symmetric: what TensorRT and ONNX Runtime have INT8 products for.

Only the aggregator and the camera head run: the other heads are convolutions, whose inputs stay
float. Folding changes no input of a Linear (LayerScale and RoPE's order act behind the products),
so one set of statistics serves every precision.

A pass is a scene to the model: attention over all its frames mixes them. Images of one scene, in
the number that will be run together, calibrate best.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vggt_deploy.artifact import writing
from vggt_deploy.data.folders import find_all_images
from vggt_deploy.data.images import Mode, load_images
from vggt_deploy.errors import (
    ArtifactError,
    CalibrationError,
    ImageError,
    QuantizeError,
    UsageError,
)
from vggt_deploy.manifest import MANIFEST_NAME
from vggt_deploy.model.config import VGGTConfig
from vggt_deploy.model.sources import WeightSource
from vggt_deploy.model.vggt import VGGT
from vggt_deploy.model.weights import check_keys, load_model, open_weights
from vggt_deploy.progress import Progress, silent
from vggt_deploy.quantize.histogram import BINS, Histogram, Method, threshold
from vggt_deploy.quantize.plan import layer_precision, layers_in
from vggt_deploy.quantize.qparams import input_scale
from vggt_deploy.quantize.schemes import Precision
from vggt_deploy.quantize.statistics import (
    RECORD_NAME,
    Statistics,
    load_statistics,
    model_record,
    write_statistics,
)

__all__ = ["Pictures", "collect_statistics", "input_scales", "load_statistics", "observe"]

DEFAULT_FRAMES_PER_PASS = 8
# Of a float32, the 16 bits with sign, exponent and the first 7 of the mantissa.
_UPPER_HALF = 1 if sys.byteorder == "little" else 0
_CHUNK = 1 << 22  # values at a time: the scratch stays at 16 MiB beside inputs of a gigabyte


@dataclass(frozen=True)
class Pictures:
    """Which images to calibrate on, and how they are brought to (height, width) in pixels.

    `folder` may hold several ETH3D scenes: no pass mixes them, `max_images` is for each.
    """

    folder: Path
    height: int
    width: int
    mode: Mode = "crop"
    max_images: int | None = None
    frames_per_pass: int = DEFAULT_FRAMES_PER_PASS
    skip_bad: bool = False


def collect_statistics(
    model: str,
    images: Path,
    *,
    output_dir: Path,
    height: int | None = None,
    width: int | None = None,
    mode: Mode = "crop",
    max_images: int | None = None,
    config: str | None = None,
    revision: str | None = None,
    frames_per_pass: int = DEFAULT_FRAMES_PER_PASS,
    skip_bad_images: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Statistics:
    """Run the images through the model once and keep the statistics in `output_dir`.

    model, height, width: as for `export`, and the same as those of the artifacts that shall use
    the statistics.

    Raises:
        UsageError: a size that is no multiple of 14, no images asked for.
        ImageError: no images, or one that can't be read (with `skip_bad_images`: none that can).
        ModelError: the checkpoint can't be had or does not fit.
        CalibrationError: the model gives NaN or infinity on them.
        ArtifactError: the folder is in use, not empty, or the disk is full.
    """
    if (Path(output_dir) / MANIFEST_NAME).is_file():
        # It may hold a RECORD_NAME of its own, by which --overwrite would take it for statistics.
        raise ArtifactError(
            f"{output_dir} is an exported artifact, not a folder of statistics",
            "give another folder with -o DIR",
        )
    with writing(Path(output_dir), overwrite=overwrite, marker=RECORD_NAME) as folder:
        sizes, source = open_weights(model, config=config, revision=revision)
        size = sizes.image_size(height, width)
        pictures = Pictures(Path(images), *size, mode, max_images, frames_per_pass, skip_bad_images)
        statistics = observe(sizes, source, pictures, progress)
        write_statistics(folder, statistics)
    return statistics


@torch.no_grad()
def observe(
    config: VGGTConfig, source: WeightSource, pictures: Pictures, progress: Progress | None = None
) -> Statistics:
    """The statistics of every Linear of this model on these pictures, in memory."""
    config.grid(pictures.height, pictures.width)  # a size that is no multiple of 14 ends here
    if pictures.frames_per_pass < 1:
        raise UsageError(
            f"frames_per_pass is {pictures.frames_per_pass}", "use 1 view a pass or more"
        )
    scenes = find_all_images(Path(pictures.folder), max_images=pictures.max_images)
    heads = _heads(config, source)
    check_keys(source, config, heads)
    report = progress or silent
    total, done = sum(map(len, scenes)), 0
    report("calibrate", done, total)
    model = load_model(source, config, heads=heads, folded=True)
    observers = _attach(model)
    hashes: dict[str, str] = {}
    skipped: list[str] = []
    for scene in scenes:
        views = list(scene.items())
        for first, last in _passes(len(views), pictures.frames_per_pass):
            seen, unreadable = _show(model, dict(views[first:last]), pictures)
            hashes |= seen
            skipped += unreadable
            done += last - first
            report("calibrate", done, total)
    if not hashes:
        raise ImageError(f"no image can be used: {skipped[0]}", "give other images")
    return Statistics(
        model=model_record(config, source),
        height=pictures.height,
        width=pictures.width,
        mode=pictures.mode,
        frames_per_pass=pictures.frames_per_pass,
        images=hashes,
        skipped=tuple(skipped),
        layers={name: observer.histogram() for name, observer in observers.items()},
    )


def input_scales(
    statistics: Statistics, layers: Iterable[str], method: Method, precision: Precision
) -> dict[str, float]:
    """Layer -> scale of its input, a value of the type that the layer computes in.

    A Linear whose inputs were all zero gets scale 1. Never zero, negative or subnormal.

    Raises:
        CalibrationError: a layer that was not observed, or a scale that FP16 can't hold.
    """
    scales = {}
    for name in layers:
        if name not in statistics.layers:
            raise CalibrationError(
                f"the statistics know nothing of {name}",
                "calibrate again with this version and model, or --exclude the layer",
            )
        limit = threshold(statistics.layers[name], method)
        try:
            scales[name] = input_scale(limit, layer_precision(name, precision))
        except QuantizeError as error:
            raise CalibrationError(f"input of {name}: {error.message}", error.fix) from error
    return scales


class Observer:
    """Counts |x| of everything that a Linear is given; a forward pre-hook."""

    def __init__(self, layer: str) -> None:
        self.layer = layer
        self.absmax = 0.0
        self.counts = torch.zeros(BINS, dtype=torch.int64)

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0].detach().float().reshape(-1)
        for piece in torch.split(values, _CHUNK):
            low, high = piece.aminmax()
            largest = max(-float(low), float(high))
            if not np.isfinite(largest):  # minimum and maximum hand on NaN
                raise CalibrationError(
                    f"the input of {self.layer} holds NaN or infinity on these images",
                    "check the checkpoint: run it with scheme fp32 first",
                )
            self.absmax = max(self.absmax, largest)
            bins = piece.contiguous().view(torch.int16)[_UPPER_HALF::2].bitwise_and(0x7FFF)
            self.counts += torch.bincount(bins, minlength=BINS)

    def histogram(self) -> Histogram:
        """What was counted so far."""
        (filled,) = self.counts.nonzero(as_tuple=True)
        return Histogram(self.absmax, filled.numpy().astype(np.uint16), self.counts[filled].numpy())


def _attach(model: VGGT) -> dict[str, Observer]:
    observers = {}
    for layer in layers_in(model):
        if layer.kind == "linear":
            observer = Observer(layer.name)
            model.get_submodule(layer.name).register_forward_pre_hook(observer)
            observers[layer.name] = observer
    return observers


def _heads(config: VGGTConfig, source: WeightSource) -> frozenset[str]:
    """The camera head, which has Linears, or of a checkpoint without it any head it has."""
    keys = source.keys()
    for head in ("camera", "depth", "point"):
        if head in config.available_heads and any(key.startswith(f"{head}_head.") for key in keys):
            return frozenset({head})
    return frozenset({"camera"})  # which check_keys will miss


def _passes(images: int, per_pass: int) -> Iterator[tuple[int, int]]:
    """(first, last + 1) of each pass, as even as can be: 9 images by 8 are 5 and 4."""
    count = -(-images // per_pass)
    return pairwise(round(i * images / count) for i in range(count + 1))


def _show(
    model: VGGT, views: Mapping[str, Path], pictures: Pictures
) -> tuple[dict[str, str], list[str]]:
    """One pass, whose pixels are gone afterwards: hashes of the images, and which were left out."""
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
        return {}, [f"{name}: {error.message}" for name in views]
    model(torch.from_numpy(batch.pixels)[None])
    names = {path: name for name, path in views.items()}
    hashes = {names[path]: sha for path, sha in zip(batch.paths, batch.sha256, strict=True)}
    return hashes, [f"{names[item.path]}: {item.reason}" for item in batch.skipped]
