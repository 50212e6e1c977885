"""What an export was asked to do, checked for sense before anything is read or downloaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vggt_deploy.errors import ImageError, UsageError
from vggt_deploy.export.qdq import GraphTarget
from vggt_deploy.outputs import OutputGroup, output_groups
from vggt_deploy.quantize.histogram import DEFAULT_METHOD, Method, parse_method
from vggt_deploy.quantize.schemes import (
    Activations,
    Precision,
    Scheme,
    check_activations,
    get_scheme,
)
from vggt_deploy.quantize.statistics import Statistics
from vggt_deploy.records import FramesRange

Patterns = tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]
"""include, exclude, sensitive"""


@dataclass(frozen=True)
class CalibrationRequest:
    """What to calibrate on (a folder of images or of statistics), and how to choose the ranges."""

    source: Path | Statistics
    method: Method


@dataclass(frozen=True)
class ExportRequest:
    """A request that makes sense in itself; whether the checkpoint has it is not known yet.

    `calibration` is there exactly where the activations are static.
    """

    scheme: Scheme
    activations: Activations
    precision: Precision
    groups: tuple[OutputGroup, ...]
    height: int
    width: int
    frames: FramesRange
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    sensitive: tuple[str, ...]
    calibration: CalibrationRequest | None = None

    @property
    def heads(self) -> frozenset[str]:
        """The heads that the wanted outputs need."""
        return frozenset(group.head for group in self.groups)

    @property
    def targets(self) -> tuple[GraphTarget, ...]:
        """TensorRT has no dynamic INT8 activations, so it gets no graph with them."""
        return ("onnxruntime",) if self.activations == "dynamic" else ("onnxruntime", "tensorrt")


def make_request(
    scheme_name: str,
    *,
    activations: Activations,
    precision: Precision | None,
    outputs: Sequence[str],
    frames: tuple[int, int, int],
    patterns: Patterns,
    calibrate: Path | Statistics | None = None,
    calibration_method: str = DEFAULT_METHOD,
) -> Callable[[int, int], ExportRequest]:
    """Check the request against itself. What comes back takes height and width in pixels, which may
    depend on the checkpoint, and gives the request.

    Raises:
        UsageError: with what would be right.
    """
    scheme = get_scheme(scheme_name)
    check_activations(scheme, activations)
    without_size = partial(
        ExportRequest,
        scheme=scheme,
        activations=activations,
        precision=_precision(scheme, activations, precision),
        groups=output_groups(outputs),
        frames=_frames(*frames),
        include=patterns[0],
        exclude=patterns[1],
        sensitive=patterns[2],
        calibration=_calibration(activations, calibrate, calibration_method),
    )
    return lambda height, width: without_size(height=height, width=width)


def _calibration(
    activations: Activations, calibrate: Path | Statistics | None, method: str
) -> CalibrationRequest | None:
    if activations != "static":
        if calibrate is not None:
            raise UsageError(
                f"{activations} activations are not calibrated, but --calibrate was given",
                "add --activations static, or leave --calibrate out",
            )
        return None
    if calibrate is None:
        raise UsageError(
            "static activations need images to calibrate on",
            "give --calibrate DIR: your images, or what `vggt-deploy calibrate` wrote; "
            "there is no default, since ranges of other images would be wrong for yours",
        )
    source = calibrate if isinstance(calibrate, Statistics) else Path(calibrate)
    if isinstance(source, Path) and not source.exists():
        # Now, and not after a checkpoint of 5 GB was fetched.
        raise ImageError(f"there is no folder {source}", "check the path given to --calibrate")
    return CalibrationRequest(source, parse_method(method))


def _precision(scheme: Scheme, activations: Activations, wanted: Precision | None) -> Precision:
    chosen = wanted or scheme.precision
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
