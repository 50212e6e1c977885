"""Predicted depth of one scene against the true depth, after two alignments, named as such.

Each alignment is one for the whole scene, not one for each picture: VGGT predicts one scene in one
frame of reference, and a picture that is off against the others is an error of the network.

    median   s a with s = median(true) / median(predicted)          `abs_rel`, `delta_125`
    affine   s a + t, the least squares of s a + t - b over pixels  `abs_rel_affine`, ...
             with s >= 0: where the best s is negative, near and far are swapped, and a swap is
             not aligned away; then s = 0 and t = mean(b) are the least squares

    AbsRel = mean |a' - b| / b        delta 1.25 = part with max(a' / b, b / a') < 1.25

with a' the aligned depth. Depth is fitted, not its inverse. A depth that is not finite takes no
part in either fit and counts as depth 0 after it: AbsRel 1, and not within 1.25. A depth that is
not positive after alignment fails delta 1.25 and counts in AbsRel as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class DepthTruth:
    """Pixels with true depth.

    scale, abs_rel, delta_125: after the median scale, metres per unit of the prediction.
    affine_*, *_affine: after least-squares scale and shift (metres).
    frame_*: of each frame, in their order, under the scene's own alignment; None where a frame has
        no pixel with true depth. From these its frames can be drawn again (`paired`).
    """

    pixels: int
    scale: float
    abs_rel: float
    delta_125: float
    affine_scale: float
    affine_shift: float
    abs_rel_affine: float
    delta_125_affine: float
    frame_pixels: tuple[int, ...] = ()
    frame_abs_rel: tuple[float | None, ...] = ()
    frame_abs_rel_affine: tuple[float | None, ...] = ()


def depth_truth(
    predicted: NDArray[np.floating[Any]],
    true: NDArray[np.floating[Any]],
    notes: dict[str, str],
    frame_pixels: Sequence[int],
) -> DepthTruth:
    """Depths [N] of the pixels whose truth is known; what is odd is added to `notes`.

    frame_pixels: how many of the N are of the first frame, of the second, and on; N in all.
    """
    a, b = predicted.astype(np.float64), true.astype(np.float64)
    finite = np.isfinite(a)
    said = []
    if not finite.all():
        bad = np.count_nonzero(~finite)
        said.append(f"{bad} of {a.size} depths are not finite: counted as depth 0")
    middle = float(np.median(a[finite])) if finite.any() else 0.0
    scale = float(np.median(b)) / middle if middle > 0.0 else 0.0
    if finite.any() and middle <= 0.0:
        said.append("the median depth is not positive: counted as depth 0 everywhere")
    affine_scale, affine_shift = 0.0, 0.0
    if finite.any():
        affine_scale, affine_shift, swapped = _affine(a[finite], b[finite])
        if swapped:
            said.append("near and far are swapped: the affine fit takes the mean depth everywhere")
    if said:
        notes["depth"] = "; ".join(said)
    zeroed = np.where(finite, a, 0.0)
    plain = scale * zeroed
    affine = np.where(finite, affine_scale * zeroed + affine_shift, 0.0)
    abs_rel, delta = _errors(plain, b)
    abs_rel_affine, delta_affine = _errors(affine, b)
    return DepthTruth(
        pixels=int(b.size),
        scale=scale,
        abs_rel=abs_rel,
        delta_125=delta,
        affine_scale=affine_scale,
        affine_shift=affine_shift,
        abs_rel_affine=abs_rel_affine,
        delta_125_affine=delta_affine,
        frame_pixels=tuple(int(pixels) for pixels in frame_pixels),
        frame_abs_rel=_of_frames(plain, b, frame_pixels),
        frame_abs_rel_affine=_of_frames(affine, b, frame_pixels),
    )


def _affine(a: Array, b: Array) -> tuple[float, float, bool]:
    """Scale >= 0 and shift that bring a [N] nearest to b [N]; whether the best scale was below 0.

    Of a constant prediction the scale is 0: any is as good, and 0 says that it knows nothing.
    """
    mean_a, mean_b = float(a.mean()), float(b.mean())
    centred = a - mean_a
    variance = float(np.mean(centred * centred))
    # Rounding of the mean alone gives a constant a variance of about (eps |a|)^2.
    if variance <= (1e-12 * max(abs(mean_a), 1e-300)) ** 2:
        return 0.0, mean_b, False
    scale = float(np.mean(centred * (b - mean_b))) / variance
    if scale < 0.0:
        return 0.0, mean_b, True
    return scale, mean_b - scale * mean_a, False


def _errors(a: Array, b: Array) -> tuple[float, float]:
    """AbsRel and delta 1.25 of aligned depths [N]."""
    inside = (a > 0.0) & (a < 1.25 * b) & (b < 1.25 * a)
    return float(np.mean(np.abs(a - b) / b)), float(np.mean(inside))


def _of_frames(a: Array, b: Array, frame_pixels: Sequence[int]) -> tuple[float | None, ...]:
    """AbsRel of each frame's part of aligned depths [N]; None of no pixels."""
    relative = np.abs(a - b) / b
    parts = np.split(relative, np.cumsum(frame_pixels)[:-1])
    return tuple(float(part.mean()) if part.size else None for part in parts)
