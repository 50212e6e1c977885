"""One output tensor of a variant against the same tensor of PyTorch FP32.

With a = the variant, b = the reference, N values, everything accumulated in float64:

    mae           mean |a - b|
    mse, rmse     mean (a - b)^2, its square root
    max_abs       max |a - b|
    psnr_db       10 log10(peak^2 / mse), peak = max(b) - min(b): the reference's own range, as
                  a regression output has no natural maximum such as 255
    cosine        a . b / (|a| |b|), over the whole tensor
    relative_l2   |a - b| / |b|
    relative_max  max |a - b| / max |b|
    ssim          maps only: structural similarity (scikit-image, uniform 7 x 7 window, K1 0.01,
                  K2 0.03), data_range = the reference's range over all frames; mean over frames
    cross_entropy None, always: it compares probability distributions, and depth, points and poses
                  are none. There is no definition for a regression output to fall back to.

A number that has no value is None and `notes` says why. Values that are not finite are counted, and
make every metric of that tensor None: leaving them out of the mean would hide a broken variant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggt_deploy.errors import CompareError

CROSS_ENTROPY_REASON = (
    "not applicable: cross entropy compares probability distributions, this output is a regression"
)
SSIM_WINDOW = 7  # scikit-image's default; a map must be at least this large

# Outputs that are pictures, and the axis of their channels: [S, H, W] or [S, H, W, C] after the
# batch axis is dropped.
MAPS: Mapping[str, int | None] = {
    "depth": -1,
    "depth_conf": None,
    "world_points": -1,
    "world_points_conf": None,
}

Array = NDArray[np.float64]


@dataclass(frozen=True)
class TensorMetrics:
    """What one output tensor lost; see the module's text for the formulas."""

    values: int
    nonfinite_variant: int
    nonfinite_reference: int
    mae: float | None = None
    mse: float | None = None
    rmse: float | None = None
    max_abs: float | None = None
    psnr_db: float | None = None
    psnr_peak: float | None = None
    cosine: float | None = None
    relative_l2: float | None = None
    relative_max: float | None = None
    ssim: float | None = None
    cross_entropy: float | None = None
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def finite(self) -> bool:
        """Whether every value of the variant's tensor is a number."""
        return self.nonfinite_variant == 0


def tensor_metrics(
    name: str, variant: NDArray[np.floating], reference: NDArray[np.floating]
) -> TensorMetrics:
    """Every metric of the output `name`; both arrays [1, S, ...] of the same shape."""
    if variant.shape != reference.shape:
        raise CompareError(
            f"Output {name} has shape {variant.shape}, PyTorch FP32 gave {reference.shape}.",
            "the variant computes something else: export it again, and report it if it persists",
        )
    if variant.size == 0:
        raise CompareError(f"Output {name} is empty: shape {variant.shape}.", "check the outputs")
    bad_variant = int(variant.size - np.count_nonzero(np.isfinite(variant)))
    bad_reference = int(reference.size - np.count_nonzero(np.isfinite(reference)))
    notes = {"cross_entropy": CROSS_ENTROPY_REASON}
    counts = (variant.size, bad_variant, bad_reference)
    if bad_variant or bad_reference:
        whose = "the variant" if bad_variant else "the reference"
        bad = bad_variant or bad_reference
        notes["all"] = f"no metric: {bad} of {variant.size} values of {whose} are NaN or infinite"
        return TensorMetrics(*counts, notes=notes)
    a = variant.astype(np.float64)
    b = reference.astype(np.float64)
    values = _elementwise(a, b, notes)
    if name in MAPS:
        values["ssim"] = _ssim(a, b, MAPS[name], notes)
    else:
        notes["ssim"] = "not applicable: this output is not a map"
    return TensorMetrics(*counts, **values, notes=notes)


def _elementwise(a: Array, b: Array, notes: dict[str, str]) -> dict[str, Any]:
    """The metrics that look at values without their places; adds a reason for each None."""
    error = a - b
    mse = float(np.mean(np.square(error)))
    max_abs = float(np.max(np.abs(error)))
    peak = float(b.max() - b.min())
    norm_a, norm_b = float(np.linalg.norm(a)), float(np.linalg.norm(b))
    largest = float(np.max(np.abs(b)))
    values: dict[str, Any] = {
        "mae": float(np.mean(np.abs(error))),
        "mse": mse,
        "rmse": float(np.sqrt(mse)),
        "max_abs": max_abs,
        "psnr_peak": peak,
    }
    if mse == 0.0:
        notes["psnr_db"] = "infinite: identical to the reference"
    elif peak == 0.0:
        notes["psnr_db"] = "undefined: the reference is constant, it has no range"
    else:
        values["psnr_db"] = float(10.0 * np.log10(peak**2 / mse))
    if norm_a > 0.0 and norm_b > 0.0:
        values["cosine"] = float(np.vdot(a, b) / (norm_a * norm_b))
    else:
        notes["cosine"] = "undefined: one of the two is all zero"
    if norm_b > 0.0:
        values["relative_l2"] = float(np.linalg.norm(error)) / norm_b
        values["relative_max"] = max_abs / largest
    else:
        notes["relative_l2"] = notes["relative_max"] = "undefined: the reference is all zero"
    return values


def _ssim(a: Array, b: Array, channel_axis: int | None, notes: dict[str, str]) -> float | None:
    """Mean SSIM over the frames of a map [1, S, H, W] or [1, S, H, W, C]."""
    from skimage.metrics import structural_similarity

    data_range = float(b.max() - b.min())
    height, width = a.shape[2:4]
    if min(height, width) < SSIM_WINDOW:
        notes["ssim"] = f"undefined: {height} x {width} is smaller than the 7 x 7 window"
        return None
    if data_range == 0.0:
        notes["ssim"] = "undefined: the reference is constant, it has no range"
        return None
    frames = [
        structural_similarity(  # type: ignore[no-untyped-call]
            frame_b, frame_a, win_size=SSIM_WINDOW, data_range=data_range, channel_axis=channel_axis
        )
        for frame_a, frame_b in zip(
            a.reshape(-1, *a.shape[2:]), b.reshape(-1, *b.shape[2:]), strict=True
        )
    ]
    return float(np.mean(frames))
