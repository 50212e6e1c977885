"""From a checkpoint and a treatment to prepared weights: what is done, and in which order.

    weights ─► equal ones ─► static ranges ─► integers ─► folder
               (smooth,      (seen under      (searched range, or GPTQ on what
                rotate)       the equal ones)  the layers before it give)

The network is rewritten into an equal one first, since that changes what its Linears are given and
what their weights are; then ranges are observed; then weights are rounded. Everything that looks
at pictures looks at the same ones.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vggt_deploy.errors import ImageError, UsageError
from vggt_deploy.model.config import VGGTConfig
from vggt_deploy.model.fold import FoldedWeights
from vggt_deploy.model.sources import WeightSource
from vggt_deploy.progress import Progress, silent
from vggt_deploy.quantize.calibration import input_scales, observe
from vggt_deploy.quantize.equal import EqualWeights
from vggt_deploy.quantize.gptq import gptq_network
from vggt_deploy.quantize.module import Searched
from vggt_deploy.quantize.pictures import Passes, Pictures, load_views, plan_passes
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
from vggt_deploy.quantize.schemes import Precision, Quantization, WeightFormat
from vggt_deploy.quantize.smooth import search_smoothing
from vggt_deploy.quantize.statistics import model_record
from vggt_deploy.quantize.walk import WalkPass


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
    passes = None
    images: dict[str, str] = {}
    if asked.needs_pictures and request.pictures is not None:
        passes = plan_passes(config, source, request.pictures, report)
        passes, images = _readable(passes, request.pictures)
    job = _Job(config, source, request, layers, formats, passes, scratch, report)
    equal, choices = job.equal()
    scales = job.static_scales(equal)
    folded = _folded(equal, job)
    integers = job.integers(folded, scales)
    if passes is not None and passes.selection is not None:
        choices = {**choices, "selection": asdict(passes.selection)}
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
        images=images,
        heads=tuple(sorted(request.heads or config.available_heads)),
        include=request.include,
        exclude=request.exclude,
        sensitive=request.sensitive,
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
    passes: Passes | None
    scratch: Path
    report: Progress

    @property
    def loaders(self) -> tuple[WalkPass, ...]:
        """What smoothing and GPTQ look at."""
        assert self.passes is not None  # they are what `Treatment.looks` is for
        assert self.request.pictures is not None
        return loaders(self.passes, self.request.pictures)

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
            self.loaders,
            self.formats,
            activations=asked.activations,
            method=treatment.input_range,
            alpha=treatment.smooth,
            apart=treatment.apart,
            weight_range=treatment.weight_range,
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
        statistics = observe(
            self.config, source, request.pictures, self.report, rewritten=treatment.rewriting
        )
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
                self.loaders,
                linears,
                scale_dtype_of=self._scale_dtype,
                scratch=self.scratch,
                apart=treatment.apart,
                weight_range=treatment.weight_range,
                activations=request.quantization.activations,
                input_scales=scales,
                progress=self.report,
            )
        searched = Searched(folded, treatment.weight_range)
        return {
            layer.name: rounded[layer.name]
            if layer.name in rounded
            else searched.quantized(layer, self.formats[layer.name], self._scale_dtype(layer.name))
            for layer in self.layers
            if layer.name in self.formats
        }

    def _scale_dtype(self, layer: str) -> Precision:
        return layer_precision(layer, self.request.precision)

    def _linears(self) -> tuple[str, ...]:
        return tuple(layer.name for layer in self.layers if layer.kind == "linear")


def loaders(passes: Passes, pictures: Pictures) -> tuple[WalkPass, ...]:
    """Each pass as something that loads it when it is its turn, [S, 3, H, W] in 0..1."""
    return tuple(partial(_load, views, pictures) for views in passes.views)


def _load(views: Mapping[str, Path], pictures: Pictures) -> Tensor:
    batch, skipped = load_views(views, pictures)
    if batch is None:
        raise ImageError(
            f"no picture of a pass can be used: {skipped[0]}", "give other images to calibrate on"
        )
    return torch.from_numpy(batch.pixels)


def _readable(passes: Passes, pictures: Pictures) -> tuple[Passes, dict[str, str]]:
    """The passes that hold a picture that can be read, and name -> SHA-256 of those pictures.

    Raises:
        ImageError: one can't be read, without `skip_bad`; or none of them can.
    """
    kept: list[Mapping[str, Path]] = []
    hashes: dict[str, str] = {}
    skipped = list(passes.skipped)
    for views in passes.views:
        batch, unreadable = load_views(views, pictures)
        skipped += unreadable
        if batch is None:
            continue
        kept.append(views)
        names = {path: name for name, path in views.items()}
        hashes |= {names[p]: sha for p, sha in zip(batch.paths, batch.sha256, strict=True)}
    if not kept:
        raise ImageError(f"no image can be used: {skipped[0]}", "give other images")
    return replace(passes, views=tuple(kept), skipped=tuple(skipped)), hashes


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
