"""Which block breaks an artifact, and the exclusion that cures it.

    artifact ─► its graph, every block tapped ─┐
    checkpoint ─► FP32 in PyTorch ─────────────┴► each block by itself (`places`) ─► verdict
                                                  ─► layers made float, smallest set first (`cure`)

A block is damaged if what it adds wrong is more than `tolerance` times what plain rounding to its
formats costs on the very same input. So errors that it was handed do not count, and the first
damaged block is where the fault lies. If none is, the artifact does what its scheme says; a block
that then stands out is one that the scheme itself does not suit.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray

from vggt_deploy.data.folders import find_images
from vggt_deploy.data.images import Mode, load_images
from vggt_deploy.errors import ArtifactError, UsageError
from vggt_deploy.export.verify import TOLERANCE
from vggt_deploy.manifest import read_manifest
from vggt_deploy.model.sources import WeightSource
from vggt_deploy.model.vggt import VGGT
from vggt_deploy.model.weights import open_weights
from vggt_deploy.outputs import OUTPUT_GROUPS
from vggt_deploy.progress import Progress, silent
from vggt_deploy.quantize.plan import keeps_layer_scale
from vggt_deploy.quantize.schemes import Activations, Precision, parse_format
from vggt_deploy.records import Manifest
from vggt_deploy.sensitivity.cure import Cure, Numbers, find_cure, relative_error
from vggt_deploy.sensitivity.places import PlaceErrors, block_names, drifts, place_errors
from vggt_deploy.sensitivity.stored import StoredIntegers
from vggt_deploy.sensitivity.switch import folded_model, switched
from vggt_deploy.sensitivity.taps import graph_of, run_tapped

DEFAULT_TOLERANCE = 2.0
# A block of a sound artifact is named where its own error is this many times the median of the
# blocks that hold integers in the same formats, if there are some.
STANDS_OUT = 4.0
FEWEST_PEERS = 3

Verdict = Literal["sound", "damaged", "scheme"]


@dataclass(frozen=True)
class BisectResult:
    """What was found.

    verdict: "damaged": the block at `place` computes something else than its scheme says.
        "scheme": all do what the scheme says, and the block at `place` loses far more than the
        others. "sound": neither.
    output_error: of the artifact against FP32, see `cure.Cure`
    cure: the exclusion, where there is one; no_cure: why there is none, in words
    """

    variant: str
    pictures: int
    tolerance: float
    verdict: Verdict
    place: str | None
    output_error: float
    places: tuple[PlaceErrors, ...]
    cure: Cure | None = None
    no_cure: str | None = None

    @property
    def exclude_option(self) -> str:
        """The words to add to `export`; "" without a cure."""
        patterns = () if self.cure is None else self.cure.exclude
        return " ".join(f"--exclude '{pattern}'" for pattern in patterns)


def bisect(
    artifact: Path,
    images: Path,
    *,
    model: str | None = None,
    tolerance: float = DEFAULT_TOLERANCE,
    mode: Mode = "crop",
    max_images: int | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> BisectResult:
    """Hold an exported artifact against the FP32 network, block by block, on pictures of a scene.

    model: None takes the one that the manifest names. max_images: None takes as many as the
    artifact is meant for. The streams of all blocks are in memory: 8 views of 350 x 518 through
    VGGT-1B are 2.2 GB, beside the network in FP32.

    Raises:
        UsageError: a tolerance below 1, an artifact that is no export, a model that it is not of.
        ArtifactError: the artifact is damaged in a way that its manifest tells.
        ModelError, ImageError: the checkpoint or the pictures can't be had.
    """
    if not tolerance >= 1:
        raise UsageError(
            f"tolerance is {tolerance:g}: a sound block is off by as much as rounding costs",
            f"use 1 or more; {DEFAULT_TOLERANCE:g} is usual",
        )
    report = progress or silent
    manifest = read_manifest(artifact)
    if manifest.kind != "onnx":
        raise UsageError(
            f"{artifact} is an engine, whose blocks can't be looked at",
            "give the folder of the ONNX artifact that it was built from",
        )
    spec = model or manifest.model.spec
    config, source = open_weights(
        spec, config=manifest.model.config, revision=_revision(manifest, spec)
    )
    _require_same(manifest, source, spec)
    pixels = _pictures(images, manifest, mode, max_images)
    heads = frozenset(
        group.head for group in OUTPUT_GROUPS.values() if group.tensors[0] in manifest.outputs
    )
    keep = keeps_layer_scale(cast(Precision, manifest.precision))
    report("FP32", 0, 0)
    network = folded_model(config, source, heads, keep_layer_scale=keep)
    report("artifact", 0, 0)
    tapped = run_tapped(artifact, manifest, block_names(network), pixels, threads=threads)
    batch = torch.from_numpy(pixels)
    drift, exact = drifts(network, batch, tapped)
    numbers = _numbers(artifact, manifest)
    report("blocks", 0, 0)
    rounded = partial(_plainly, network, numbers, rewritten=_rewritten(manifest))
    found = tuple(place_errors(network, batch, tapped, drift, rounded))
    verdict, place = judge(found, manifest, tolerance)
    cure: Cure | str | None = None
    if place is not None:
        cure = find_cure(
            network,
            batch,
            numbers,
            place,
            artifact=tapped.outputs,
            exact=exact,
            whole_only=_rewritten(manifest),
            report=lambda done, total: report("exclusions", done, total),
        )
    return BisectResult(
        variant=manifest.variant,
        pictures=pixels.shape[1],
        tolerance=tolerance,
        verdict=verdict,
        place=place,
        output_error=relative_error(tapped.outputs, exact),
        places=found,
        cure=cure if isinstance(cure, Cure) else None,
        no_cure=cure if isinstance(cure, str) else None,
    )


def judge(
    places: Sequence[PlaceErrors], manifest: Manifest, tolerance: float
) -> tuple[Verdict, str | None]:
    """The verdict, and the place that it names.

    After training the weights are not the checkpoint's, so plain rounding is no measure for them,
    and only a block that stands out is named.
    """
    floor = TOLERANCE[manifest.precision]
    trained = manifest.treatment is not None and manifest.treatment.made_by == "qat"
    if not trained:
        for place in places:
            if not place.own <= tolerance * max(place.expected, floor):
                return "damaged", place.place
    for place in places:
        alike = _formats(manifest, place.place)
        # 4-bit blocks lose more than 8-bit ones by nature. A head is held against blocks, although
        # its error is that of all it gives and not of what it adds: it has no peers of its own.
        peers = [p.own for p in places if _formats(manifest, p.place) == alike and _is_block(p)]
        usual = max(statistics.median(peers), floor) if len(peers) >= FEWEST_PEERS else math.inf
        if alike and place.own > STANDS_OUT * usual:
            return "scheme", place.place
    return "sound", None


def _is_block(place: PlaceErrors) -> bool:
    return "blocks." in place.place


def _formats(manifest: Manifest, place: str) -> frozenset[str]:
    """Labels of the formats that a place holds integers in."""
    held = manifest.layers.quantized.items()
    return frozenset(label for name, label in held if name.startswith(f"{place}."))


def _plainly(
    network: VGGT, numbers: Numbers, place: str, *, rewritten: bool
) -> AbstractContextManager[None]:
    """The layers of a place rounded from the checkpoint, as the artifact's formats say."""
    formats = {n: form for n, form in numbers.formats.items() if n.startswith(f"{place}.")}
    if not formats:
        return nullcontext()
    if rewritten and numbers.activations == "static":
        # Its ranges are those of other inputs; a range found in the run costs about as much.
        return switched(network, formats, activations="dynamic")
    return switched(
        network, formats, activations=numbers.activations, input_scales=numbers.input_scales
    )


def _numbers(artifact: Path, manifest: Manifest) -> Numbers:
    stored = StoredIntegers.open(artifact, graph_of(artifact, manifest))
    formats = {name: parse_format(label) for name, label in manifest.layers.quantized.items()}
    scales = None if manifest.calibration is None else manifest.calibration.scales
    return Numbers(stored, formats, cast(Activations, manifest.activations), scales)


def _rewritten(manifest: Manifest) -> bool:
    """Whether the artifact's float weights are others than the checkpoint's."""
    if manifest.treatment is None:
        return False
    words = manifest.treatment.label.split("+")
    moved = any(word.partition("=")[0] in ("smooth", "rotate") for word in words)
    return moved or manifest.treatment.made_by == "qat"


def _revision(manifest: Manifest, spec: str) -> str | None:
    return manifest.model.revision if spec == manifest.model.spec else None


def _require_same(manifest: Manifest, source: WeightSource, spec: str) -> None:
    origin, made = source.origin, manifest.model
    same = origin.sha256 == made.sha256
    if made.sha256 is None:  # weights of the recipe have no file: their name says all
        same = same and origin.spec == made.spec
    if not same:
        raise UsageError(
            f"the artifact was made from other weights than {spec}: from {made.spec}"
            + (f" (SHA-256 {made.sha256[:12]}...)" if made.sha256 else ""),
            "give the checkpoint that it was exported from with --model",
        )


def _pictures(
    folder: Path, manifest: Manifest, mode: Mode, max_images: int | None
) -> NDArray[np.float32]:
    """[1, S, 3, H, W] as the artifact takes them."""
    found = find_images(folder, max_images=max_images or manifest.frames.opt)
    batch = load_images(found.paths, mode=mode, width=manifest.width, height=manifest.height)
    if len(batch.pixels) < manifest.frames.min:
        raise ArtifactError(
            f"the artifact takes {manifest.frames.min} pictures or more, {folder} has "
            f"{len(batch.pixels)}",
            "give a folder with more pictures of the scene",
        )
    return np.ascontiguousarray(batch.pixels[None], dtype=np.float32)
