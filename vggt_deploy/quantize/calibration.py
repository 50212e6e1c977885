"""Calibration: the user's images through the FP32 model once, to learn what goes into each Linear.

    images ─► passes of `frames_per_pass` views ─► FP32 folded model ─► a histogram for each Linear
                                                                    ─► scale of its input, by method

One pass over the images; beside the model, memory holds one pass and 512 KiB for each Linear. The
scale is per tensor and symmetric: what TensorRT and ONNX Runtime have INT8 products for.

Only the aggregator and the camera head run: the other heads are convolutions, whose inputs stay
float. Folding changes no input of a Linear (LayerScale and RoPE's order act behind the products),
so one set of statistics serves every precision.

Rows of special tokens (cls or camera, and registers; in the camera head all) are counted by
themselves, so that they may weigh as much as all patches: `apart`, see `histogram`. Which pictures
are run, and in which passes, is `pictures`' business.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vggt_deploy.artifact import writing
from vggt_deploy.data.images import Mode
from vggt_deploy.errors import ArtifactError, CalibrationError, ImageError, QuantizeError
from vggt_deploy.manifest import MANIFEST_NAME
from vggt_deploy.model.config import VGGTConfig
from vggt_deploy.model.sources import WeightSource
from vggt_deploy.model.vggt import VGGT
from vggt_deploy.model.weights import check_keys, load_model, open_weights
from vggt_deploy.progress import Progress, silent
from vggt_deploy.quantize.histogram import BINS, Histogram, TokenHistograms, threshold
from vggt_deploy.quantize.methods import Method
from vggt_deploy.quantize.pictures import (
    DEFAULT_FRAMES_PER_PASS,
    Pictures,
    load_views,
    plan_passes,
)
from vggt_deploy.quantize.plan import layer_precision, layers_in
from vggt_deploy.quantize.qparams import input_scale
from vggt_deploy.quantize.schemes import Precision
from vggt_deploy.quantize.selection import pass_bounds
from vggt_deploy.quantize.statistics import (
    RECORD_NAME,
    Statistics,
    load_statistics,
    model_record,
    write_statistics,
)

__all__ = [
    "Observer",
    "Pictures",
    "collect_statistics",
    "input_scales",
    "load_statistics",
    "observe",
    "pass_bounds",
]

# Of a float32, the 16 bits with sign, exponent and the first 7 of the mantissa.
_UPPER_HALF = 1 if sys.byteorder == "little" else 0
_CHUNK = 1 << 22  # values at a time: the scratch stays at 16 MiB beside inputs of a gigabyte


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
    select: int | None = None,
    progress: Progress | None = None,
) -> Statistics:
    """Run the images through the model once and keep the statistics in `output_dir`.

    model, height, width: as for `export`, and the same as those of the artifacts that shall use
    the statistics.
    select: how many view sets of at most `frames_per_pass` images to choose, the most different
    ones, outliers left out; None takes all images. `selection` says how.

    Raises:
        UsageError: a size that is no multiple of 14, no images asked for, more view sets than
            there are.
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
        pictures = Pictures(
            Path(images), *size, mode, max_images, frames_per_pass, skip_bad_images, select
        )
        statistics = observe(sizes, source, pictures, progress)
        write_statistics(folder, statistics)
    return statistics


@torch.no_grad()
def observe(
    config: VGGTConfig,
    source: WeightSource,
    pictures: Pictures,
    progress: Progress | None = None,
    *,
    rewritten: str = "",
) -> Statistics:
    """The statistics of every Linear of this model on these pictures, in memory.

    rewritten: where `source` gives an equal network with other weights, the words of a label that
    say how ("smooth", "rotate"): its Linears see other inputs, so the statistics are for it alone.
    """
    report = progress or silent
    heads = _heads(config, source)
    check_keys(source, config, heads)
    passes = plan_passes(config, source, pictures, progress)
    total, done = passes.images, 0
    report("calibrate", done, total)
    model = load_model(source, config, heads=heads, folded=True)
    observers = _attach(model, config, pictures)
    hashes: dict[str, str] = {}
    skipped = list(passes.skipped)
    for views in passes.views:
        batch, unreadable = load_views(views, pictures)
        skipped += unreadable
        if batch is not None:
            names = {path: name for name, path in views.items()}
            hashes |= {names[p]: sha for p, sha in zip(batch.paths, batch.sha256, strict=True)}
            model(torch.from_numpy(batch.pixels)[None])
        del batch  # its pixels, before the next ones are decoded
        done += len(views)
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
        layers={name: observer.histograms() for name, observer in observers.items()},
        rewritten=rewritten,
        selection=passes.selection,
    )


def input_scales(
    statistics: Statistics,
    layers: Iterable[str],
    method: Method,
    precision: Precision,
    *,
    apart: bool = False,
) -> dict[str, float]:
    """Layer -> scale of its input, a value of the type that the layer computes in.

    apart: special tokens count as much as all patches together (`histogram`).
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
        limit = threshold(statistics.layers[name], method, apart=apart)
        try:
            scales[name] = input_scale(limit, layer_precision(name, precision))
        except QuantizeError as error:
            raise CalibrationError(f"input of {name}: {error.message}", error.fix) from error
    return scales


class Observer:
    """Counts |x| of everything that a Linear is given; a forward pre-hook.

    period: (special, tokens): of each `tokens` rows the first `special` are special tokens. A
    network without such has (0, 1).
    """

    def __init__(self, layer: str, period: tuple[int, int] = (0, 1)) -> None:
        self.layer = layer
        self.special, self.tokens = period
        self._seen = (_Counts(), _Counts())

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0].detach().float()
        frames = values.reshape(-1, self.tokens * values.shape[-1])
        edge = self.special * values.shape[-1]
        for counts, part in zip(self._seen, (frames[:, :edge], frames[:, edge:]), strict=True):
            for piece in _pieces(part):
                counts.add(piece, self.layer)

    def histograms(self) -> TokenHistograms:
        """What was counted so far, by kind of token."""
        special, patches = (counts.histogram() for counts in self._seen)
        return TokenHistograms(special, patches)

    def histogram(self) -> Histogram:
        """What was counted so far, of all rows."""
        return self.histograms().together


class _Counts:
    """A histogram that grows."""

    def __init__(self) -> None:
        self.absmax = 0.0
        self.counts = torch.zeros(BINS, dtype=torch.int64)

    def add(self, piece: Tensor, layer: str) -> None:
        low, high = piece.aminmax()
        largest = max(-float(low), float(high))
        if not np.isfinite(largest):  # minimum and maximum hand on NaN
            raise CalibrationError(
                f"the input of {layer} holds NaN or infinity on these images",
                "check the checkpoint: run it with scheme fp32 first",
            )
        self.absmax = max(self.absmax, largest)
        bins = piece.view(torch.int16)[_UPPER_HALF::2].bitwise_and(0x7FFF)
        self.counts += torch.bincount(bins, minlength=BINS)

    def histogram(self) -> Histogram:
        (filled,) = self.counts.nonzero(as_tuple=True)
        return Histogram(self.absmax, filled.numpy().astype(np.uint16), self.counts[filled].numpy())


def _pieces(values: Tensor) -> Iterator[Tensor]:
    """[F, n] in flat, contiguous pieces of bounded size; nothing of an empty one."""
    if values.numel() == 0:
        return
    step = max(1, _CHUNK // values.shape[1])
    for frames in torch.split(values, step):
        for piece in torch.split(frames.reshape(-1), _CHUNK):
            yield piece.contiguous()


def _attach(model: VGGT, config: VGGTConfig, pictures: Pictures) -> dict[str, Observer]:
    rows, columns = config.grid(pictures.height, pictures.width)
    special = config.special_tokens
    observers = {}
    for layer in layers_in(model):
        if layer.kind == "linear":
            # The camera head sees camera tokens alone.
            camera = layer.name.startswith("camera_head.")
            period = (1, 1) if camera else (special, special + rows * columns)
            observer = Observer(layer.name, period)
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
