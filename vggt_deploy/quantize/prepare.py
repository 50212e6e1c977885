"""From a checkpoint and a treatment to prepared weights: what is done, and in which order.

    weights ─► equal ones ─► static ranges ─► integers ─► folder
               (smooth,      (seen under      (searched range, or GPTQ on what
                rotate)       the equal ones)  the layers before it give)

The network is rewritten into an equal one first, since that changes what its Linears are given and
what their weights are; then ranges are observed; then weights are rounded. Everything that looks
at pictures looks at the same ones.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vggt_deploy.data.folders import find_all_images
from vggt_deploy.data.images import load_images
from vggt_deploy.errors import QuantizeError, UsageError
from vggt_deploy.manifest import hash_file
from vggt_deploy.model.config import VGGTConfig
from vggt_deploy.model.fold import FoldedWeights
from vggt_deploy.model.sources import WeightSource
from vggt_deploy.progress import Progress, silent
from vggt_deploy.quantize.calibration import Pictures, input_scales, observe, pass_bounds
from vggt_deploy.quantize.equal import EqualWeights
from vggt_deploy.quantize.gptq import gptq_network
from vggt_deploy.quantize.plan import (
    LayerInfo,
    keeps_layer_scale,
    layer_precision,
    layers_of,
    plan,
)
from vggt_deploy.quantize.prepared import (
    SCHEMA,
    Prepared,
    PreparedRecord,
    read_prepared,
    write_prepared,
)
from vggt_deploy.quantize.qparams import QuantizedTensor
from vggt_deploy.quantize.ranges import quantize_searched
from vggt_deploy.quantize.schemes import Precision, Quantization, WeightFormat
from vggt_deploy.quantize.smooth import search_smoothing
from vggt_deploy.quantize.statistics import model_record

Pass = Callable[[], Tensor]
"""Loads one pass, [S, 3, H, W] in 0..1, when it is needed."""


@dataclass(frozen=True)
class PrepareRequest:
    """What to do to which layers.

    pictures: what smoothing, GPTQ and static ranges look at; None where none of them is asked for
    height, width: in pixels, of a network for which that matters (static ranges)
    """

    quantization: Quantization
    precision: Precision
    height: int
    width: int
    pictures: Pictures | None = None
    heads: frozenset[str] | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    sensitive: tuple[str, ...] = ()


@torch.no_grad()
def prepare(
    config: VGGTConfig,
    source: WeightSource,
    request: PrepareRequest,
    folder: Path,
    *,
    progress: Progress | None = None,
) -> Prepared:
    """Write a folder of prepared weights into `folder`, which exists and is empty.

    `source` gives the checkpoint's own weights, not folded ones. Scratch files lie in a folder
    below `folder` meanwhile: the token streams of all passes, once.

    Raises:
        UsageError: pictures are needed and there are none; patterns that match nothing.
        ImageError: a picture that can't be read.
        QuantizeError, CalibrationError: weights or activations that are not finite.
    """
    asked, report = request.quantization, progress or silent
    if asked.needs_pictures and request.pictures is None:
        raise UsageError(f"{asked.label} needs pictures to look at", "give some: --calibrate DIR")
    layers = layers_of(config, request.heads)
    formats = plan(
        asked.scheme,
        layers,
        include=request.include,
        exclude=request.exclude,
        sensitive=request.sensitive,
    )
    scratch = folder / "scratch"
    scratch.mkdir()
    job = _Job(config, source, request, layers, formats, scratch, report)
    equal, choices = job.equal()
    scales = job.static_scales(equal)
    folded = _folded(equal, job)
    integers = job.integers(folded, scales)
    shutil.rmtree(scratch)
    record = PreparedRecord(
        schema=SCHEMA,
        tool_version="",
        made_by="prepare",
        model=model_record(config, source),
        label=asked.label,
        precision=request.precision,
        height=request.height,
        width=request.width,
        formats={},
        tensors_sha256="",
        input_scales=dict(scales or {}),
        choices=choices,
        images=_hashes(request.pictures) if asked.needs_pictures else {},
    )
    write_prepared(folder, record, integers, _changed(_folded(source, job), folded, formats))
    return read_prepared(folder)


@dataclass(frozen=True)
class _Job:
    config: VGGTConfig
    source: WeightSource
    request: PrepareRequest
    layers: Sequence[LayerInfo]
    formats: Mapping[str, WeightFormat]
    scratch: Path
    report: Progress

    def equal(self) -> tuple[WeightSource, dict[str, Any]]:
        """The checkpoint, or one that computes the same and is easier to quantize."""
        asked = self.request.quantization
        treatment, source = asked.treatment, self.source
        if treatment.rotate:
            source = EqualWeights(source, self.config, scales={}, rotated=True)
        if treatment.smooth is None:
            return source, {}
        found = search_smoothing(
            self.config,
            source,
            passes_of(self.request.pictures),
            self.formats,
            activations=asked.activations,
            method=treatment.input_range,
            alpha=treatment.smooth,
            apart=treatment.apart,
            scratch=self.scratch,
            progress=self.report,
        )
        return EqualWeights(source, self.config, found.scales, rotated=False), {
            "smooth": found.choices
        }

    def static_scales(self, source: WeightSource) -> dict[str, float] | None:
        """Layer -> scale of its input, observed in the network that will be quantized."""
        request = self.request
        treatment = request.quantization.treatment
        if request.quantization.activations != "static":
            return None
        assert request.pictures is not None  # `prepare` has seen to it
        pictures = dataclasses.replace(request.pictures, height=request.height, width=request.width)
        statistics = observe(self.config, source, pictures, self.report)
        linears = [name for name in self._linears() if name in self.formats]
        return input_scales(
            statistics, linears, treatment.input_range, request.precision, apart=treatment.apart
        )

    def integers(
        self, folded: WeightSource, scales: Mapping[str, float] | None
    ) -> dict[str, QuantizedTensor]:
        """Layer -> its integers, in the order of the network."""
        request = self.request
        treatment = request.quantization.treatment
        rounded: dict[str, QuantizedTensor] = {}
        if treatment.rounding == "gptq":
            linears = {n: self.formats[n] for n in self._linears() if n in self.formats}
            rounded = gptq_network(
                self.config,
                folded,
                passes_of(request.pictures),
                linears,
                scale_dtype_of=self._scale_dtype,
                scratch=self.scratch,
                apart=treatment.apart,
                weight_range=treatment.weight_range,
                activations=request.quantization.activations,
                input_scales=scales,
                progress=self.report,
            )
        return {
            layer.name: rounded[layer.name]
            if layer.name in rounded
            else self._searched(folded, layer)
            for layer in self.layers
            if layer.name in self.formats
        }

    def _searched(self, folded: WeightSource, layer: LayerInfo) -> QuantizedTensor:
        try:
            return quantize_searched(
                folded.load(f"{layer.name}.weight"),
                self.formats[layer.name],
                axis=layer.axis,
                scale_dtype=self._scale_dtype(layer.name),
                method=self.request.quantization.treatment.weight_range,
            )
        except QuantizeError as error:
            raise QuantizeError(f"{layer.name}: {error.message}", error.fix) from error

    def _scale_dtype(self, layer: str) -> Precision:
        return layer_precision(layer, self.request.precision)

    def _linears(self) -> tuple[str, ...]:
        return tuple(layer.name for layer in self.layers if layer.kind == "linear")


def passes_of(pictures: Pictures | None) -> tuple[Pass, ...]:
    """The pictures in passes, each loaded when it is its turn."""
    if pictures is None:
        return ()
    found: list[Pass] = []
    for scene in find_all_images(Path(pictures.folder), max_images=pictures.max_images):
        paths = tuple(scene.values())
        for first, last in pass_bounds(len(paths), pictures.frames_per_pass):
            found.append(_PicturePass(pictures, paths[first:last]))
    return tuple(found)


@dataclass(frozen=True)
class _PicturePass:
    pictures: Pictures
    paths: tuple[Path, ...]

    def __call__(self) -> Tensor:
        batch = load_images(
            self.paths,
            mode=self.pictures.mode,
            width=self.pictures.width,
            height=self.pictures.height,
            skip_bad=self.pictures.skip_bad,
        )
        return torch.from_numpy(batch.pixels)


def _hashes(pictures: Pictures | None) -> dict[str, str]:
    if pictures is None:
        return {}
    scenes = find_all_images(Path(pictures.folder), max_images=pictures.max_images)
    return {name: hash_file(path) for scene in scenes for name, path in scene.items()}


def _folded(source: WeightSource, job: _Job) -> FoldedWeights:
    keep = keeps_layer_scale(job.request.precision)
    return FoldedWeights(source, job.config, keep_layer_scale=keep)


def _changed(
    before: WeightSource, after: WeightSource, formats: Mapping[str, WeightFormat]
) -> dict[str, Tensor]:
    """The float tensors that are others now; what became integers is not among them."""
    if before is after:
        return {}
    changed = {}
    for key in after.keys():  # noqa: SIM118  (a Protocol, not a dict)
        layer, _, leaf = key.rpartition(".")
        if leaf == "weight" and layer in formats:
            continue
        value = after.load(key)
        if not torch.equal(value, before.load(key)):
            changed[key] = value
    return changed
