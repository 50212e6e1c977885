"""What an export was asked to do, checked for sense before anything is read or downloaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vggt_deploy.errors import ImageError, UsageError
from vggt_deploy.export.qdq import GraphTarget
from vggt_deploy.outputs import OutputGroup, output_groups
from vggt_deploy.quantize.prepared import Prepared
from vggt_deploy.quantize.schemes import Activations, Precision, Quantization, Scheme
from vggt_deploy.quantize.statistics import Statistics, holds_statistics
from vggt_deploy.quantize.treatment import Treatment
from vggt_deploy.records import FramesRange

Patterns = tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]
"""include, exclude, sensitive"""


@dataclass(frozen=True)
class CalibrationRequest:
    """What to calibrate on: a folder of images, or statistics of some."""

    source: Path | Statistics


@dataclass(frozen=True)
class ExportRequest:
    """A request that makes sense in itself; whether the checkpoint has it is not known yet.

    `calibration` is there exactly where pictures have to be looked at.
    """

    quantization: Quantization
    precision: Precision
    groups: tuple[OutputGroup, ...]
    height: int
    width: int
    frames: FramesRange
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    sensitive: tuple[str, ...]
    calibration: CalibrationRequest | None = None
    prepared: Prepared | None = None

    @property
    def scheme(self) -> Scheme:
        return self.quantization.scheme

    @property
    def activations(self) -> Activations:
        return self.quantization.activations

    @property
    def treatment(self) -> Treatment:
        return self.quantization.treatment

    @property
    def heads(self) -> frozenset[str]:
        """The heads that the wanted outputs need."""
        return frozenset(group.head for group in self.groups)

    @property
    def targets(self) -> tuple[GraphTarget, ...]:
        """TensorRT has no dynamic INT8 activations, so it gets no graph with them."""
        return ("onnxruntime",) if self.activations == "dynamic" else ("onnxruntime", "tensorrt")


def make_request(
    asked: Quantization,
    *,
    precision: Precision | None,
    outputs: Sequence[str],
    frames: tuple[int, int, int],
    patterns: Patterns,
    calibrate: Path | Statistics | None = None,
    prepared: Prepared | None = None,
) -> Callable[[int, int], ExportRequest]:
    """Check the request against itself. What comes back takes height and width in pixels, which may
    depend on the checkpoint, and gives the request.

    Raises:
        UsageError: with what would be right.
    """
    if prepared is not None and any(patterns):
        raise UsageError(
            f"{prepared.folder} has been prepared, and patterns were given",
            "leave --include, --exclude and --sensitive out: its layers are chosen",
        )
    without_size = partial(
        ExportRequest,
        quantization=asked,
        precision=_precision(asked.scheme, asked.activations, precision, prepared),
        groups=output_groups(outputs),
        frames=_frames(*frames),
        include=patterns[0],
        exclude=patterns[1],
        sensitive=patterns[2],
        calibration=_calibration(asked, calibrate, prepared),
        prepared=prepared,
    )
    return lambda height, width: without_size(height=height, width=width)


def _calibration(
    asked: Quantization, calibrate: Path | Statistics | None, prepared: Prepared | None
) -> CalibrationRequest | None:
    if prepared is not None:
        if calibrate is not None:
            raise UsageError(
                f"{prepared.folder} has been prepared, and --calibrate was given",
                "leave --calibrate out: its scales are chosen",
            )
        return None
    if not asked.needs_pictures:
        if calibrate is not None:
            raise UsageError(
                f"{asked.label} looks at no pictures, but --calibrate was given",
                "add --activations static, +smooth or +gptq, or leave --calibrate out",
            )
        return None
    if calibrate is None:
        raise UsageError(
            f"{asked.label} needs images to calibrate on",
            "give --calibrate DIR: your images"
            + ("" if asked.treatment.prepares else ", or what `vggt-deploy calibrate` wrote")
            + "; there is no default, since ranges of other images would be wrong for yours",
        )
    source = calibrate if isinstance(calibrate, Statistics) else Path(calibrate)
    if isinstance(source, Path) and not source.exists():
        # Now, and not after a checkpoint of 5 GB was fetched.
        raise ImageError(f"there is no folder {source}", "check the path given to --calibrate")
    if asked.treatment.prepares and (isinstance(source, Statistics) or holds_statistics(source)):
        raise UsageError(
            f"{asked.label} has to run the pictures themselves, and --calibrate names statistics",
            "give the folder of images",
        )
    return CalibrationRequest(source)


def _precision(
    scheme: Scheme,
    activations: Activations,
    wanted: Precision | None,
    prepared: Prepared | None,
) -> Precision:
    chosen = wanted or scheme.precision
    if prepared is not None:
        chosen = wanted or prepared.precision
    if chosen != scheme.precision and not scheme.integer:
        raise UsageError(
            f"scheme {scheme.name} is precision {scheme.precision}, "
            f"but precision {chosen} was asked for",
            f"use scheme {chosen}, or an integer scheme with precision {chosen}",
        )
    if activations == "dynamic" and chosen != "fp32":
        raise UsageError(
            f"dynamic activations need FP32 inputs, not {chosen}: ONNX DynamicQuantizeLinear takes "
            "nothing else, and only CPU runtimes have such kernels",
            "leave the precision at fp32, or use float activations",
        )
    return chosen


def _frames(low: int, typical: int, high: int) -> FramesRange:
    if not 1 <= low <= typical <= high:
        raise UsageError(
            f"frames {low}:{typical}:{high} are not min <= typical <= max, from 1 on",
            "for example 1:5:16",
        )
    return FramesRange(low, typical, high)
