"""Histograms of |x|, and the range of 8 bits that they suggest.

A bin is the upper half of a float32 without its sign: 8 bits of exponent, 7 of mantissa, so 128
bins for each power of two whatever the size of x.

    bin(x) = (bits(x) >> 16) & 0x7fff,   bin i holds |x| in [float(i << 16), float((i + 1) << 16))

No range has to be known or doubled, counts are whole numbers, and histograms add: images in any
order and in any passes give the same one. Bins from 0x7f80 on would hold infinity and NaN.

A method makes of it the threshold T that becomes 127; beyond it values saturate.

    absmax      T = the largest |x|
    percentile  T = the value that a share of |x| does not exceed
    mse         T = argmin E[(x - q(x))**2], q(x) = clamp(round(x / s), -127, 127) * s, s = T / 127

Special tokens (camera, registers) are a few rows of a thousand, have heavier tails than patches,
and carry the pose. `TokenHistograms` counts them by themselves, and with `apart` both classes weigh
the same, however many rows each has:

    absmax      as before
    percentile  the larger of the two
    mse         T = argmin of the sum over the classes of  E[(x - q(x))**2] / E[x**2]

The expectation is an integral, x taken as uniform inside a bin (0.8 % wide at most):

    F(x) = k s**3 / 12 + (x - k s)**3 / 3,  k = min(round(x / s), 127),  dF/dx = (x - q(x))**2

Nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vggt_deploy.quantize.methods import Method

BINS = 1 << 15
FINITE_BINS = 0x7F80
LEVELS = 127
# T is tried at absmax * 2 ** (-i / MSE_PER_OCTAVE): the error is flat around its minimum.
MSE_PER_OCTAVE = 16
MSE_OCTAVES = 8


@dataclass(frozen=True, slots=True)
class Histogram:
    """|x| of everything that went into one layer.

    absmax: exact. bins [n] uint16, ascending, those that are not empty; counts [n] int64.
    """

    absmax: float
    bins: NDArray[np.uint16]
    counts: NDArray[np.int64]

    @property
    def total(self) -> int:
        """How many values were seen."""
        return int(self.counts.sum())


NOTHING = Histogram(0.0, np.zeros(0, np.uint16), np.zeros(0, np.int64))


@dataclass(frozen=True, slots=True)
class TokenHistograms:
    """|x| of everything that went into one layer, by the kind of token whose row it was in.

    special: cls or camera, and registers; in the camera head all. patches: the others. Either may
    be NOTHING.
    """

    special: Histogram
    patches: Histogram

    @property
    def absmax(self) -> float:
        """The largest |x| of either."""
        return max(self.special.absmax, self.patches.absmax)

    @property
    def total(self) -> int:
        """How many values were seen."""
        return self.special.total + self.patches.total

    @property
    def together(self) -> Histogram:
        """Of all rows: what counting them without a difference gives."""
        bins = np.concatenate([self.special.bins, self.patches.bins])
        counts = np.concatenate([self.special.counts, self.patches.counts])
        filled, where = np.unique(bins, return_inverse=True)
        sums = np.zeros(len(filled), np.int64)
        np.add.at(sums, where, counts)
        return Histogram(self.absmax, filled, sums)


def edges(bins: NDArray[np.uint16] | NDArray[np.int64]) -> NDArray[np.float64]:
    """The lower edges of these bins (0 .. FINITE_BINS), as float64; bin 0 begins at 0."""
    index = np.asarray(bins, np.int64)
    exponent, mantissa = index >> 7, index & 127
    subnormal = exponent == 0
    whole = np.where(subnormal, mantissa, mantissa + 128).astype(np.float64)
    values: NDArray[np.float64] = np.ldexp(whole, np.where(subnormal, 1, exponent) - 127 - 7)
    return values


def threshold(seen: Histogram | TokenHistograms, method: Method, *, apart: bool = False) -> float:
    """T of the method; 0 where every value was zero.

    apart: special tokens count as much as all patches together. It says nothing about a plain
    histogram, and where one class is empty or all zeros.
    """
    if isinstance(seen, TokenHistograms):
        classes = [one for one in (seen.special, seen.patches) if one.absmax > 0 and one.total > 0]
        if apart and len(classes) == 2:
            return _threshold_of_both(classes, method)
        seen = seen.together
    if seen.absmax == 0 or seen.total == 0:
        return 0.0
    match method.name:
        case "absmax":
            return seen.absmax
        case "percentile":
            return _percentile(seen, method.percentile)
        case "mse":
            return _least_error(seen)


def _threshold_of_both(classes: list[Histogram], method: Method) -> float:
    absmax = max(one.absmax for one in classes)
    match method.name:
        case "absmax":
            return absmax
        case "percentile":
            return max(_percentile(one, method.percentile) for one in classes)
        case "mse":
            candidates = _candidates(absmax)
            errors = [
                sum(relative_error(one, candidate) for one in classes) for candidate in candidates
            ]
            return float(candidates[int(np.argmin(errors))])


def _percentile(histogram: Histogram, percentile: float) -> float:
    reached = np.cumsum(histogram.counts)
    wanted = histogram.total * percentile / 100
    at = min(int(np.searchsorted(reached, wanted)), len(reached) - 1)
    if histogram.bins[at] == 0:  # so many values are zero: nothing to divide by
        return histogram.absmax
    low, high = edges(np.array([histogram.bins[at], histogram.bins[at] + np.uint16(1)]))
    inside = 1 - (reached[at] - wanted) / histogram.counts[at]
    return min(float(low + (high - low) * inside), histogram.absmax)


def _candidates(absmax: float) -> NDArray[np.float64]:
    steps = np.arange(MSE_PER_OCTAVE * MSE_OCTAVES + 1)
    found: NDArray[np.float64] = absmax * 2.0 ** (-steps / MSE_PER_OCTAVE)
    return found


def _least_error(histogram: Histogram) -> float:
    candidates = _candidates(histogram.absmax)
    errors = [squared_error(histogram, candidate) for candidate in candidates]
    return float(candidates[int(np.argmin(errors))])


def squared_error(histogram: Histogram, limit: float) -> float:
    """E[(x - q(x))**2] with scale limit / 127."""
    low = edges(histogram.bins)
    high = edges(histogram.bins.astype(np.int64) + 1)
    # In units of the scale: the cubes of very small numbers would vanish.
    step = limit / LEVELS
    low, high = low / step, high / step
    mean = (_integral(high) - _integral(low)) / (high - low)
    return float((mean * histogram.counts).sum() / histogram.total) * step * step


def relative_error(histogram: Histogram, limit: float) -> float:
    """E[(x - q(x))**2] / E[x**2] with scale limit / 127."""
    # In units of the limit, again for very small numbers.
    low = edges(histogram.bins) / limit
    high = edges(histogram.bins.astype(np.int64) + 1) / limit
    mean = (low * low + low * high + high * high) / 3
    power = float((mean * histogram.counts).sum() / histogram.total)
    return squared_error(histogram, limit) / limit / limit / power


def _integral(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """F(x) of the module's docstring with s = 1."""
    k = np.minimum(np.rint(x), LEVELS)
    inner: NDArray[np.float64] = k / 12 + (x - k) ** 3 / 3
    return inner
