"""Is a difference told from none? The tests behind what changed since a baseline.

    calls of two runs     Mann-Whitney U (scipy), two-sided: is one run's call likelier the longer
                          one? Interval: percentile bootstrap of the ratio of the medians
    scenes, paired        sign-flip permutation test of the mean difference (scipy), all flips of
                          up to 13 scenes, 10 000 drawn of more: how often would differences of
                          this size, with signs drawn by a coin, have a mean as far from zero? It
                          holds for few scenes, too, where a bootstrap interval is too narrow
    many tests at once    Holm's step-down (1979): the chance that any of them calls a change where
                          there is none stays at the level, however the tests depend on each other

A test of few values has a smallest p that it can reach at all, even if every value speaks one way:
2 / C(n + m, n) for calls, 2 / 2^k for k scenes that differ. One above the level can't tell anything
and has no place among the tests that Holm counts. That bound depends on the number of values, and
on which differences are zero, never on the direction, so that leaving such tests out keeps the
level (Tarone, 1990).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np

LEVEL = 0.05
RESAMPLES = 10_000
CONFIDENCE = 0.95
_SEED = 20250405


@dataclass(frozen=True)
class Tested:
    """A p value, two-sided, and the smallest one that so many values can give."""

    p: float
    smallest_p: float

    @property
    def can_tell(self) -> bool:
        """Whether any outcome of this test would have been significant by itself."""
        return self.smallest_p <= LEVEL


def compare_samples(old: Sequence[float], new: Sequence[float]) -> Tested:
    """Two independent samples, by their ranks."""
    from scipy.stats import mannwhitneyu

    values = {*old, *new}
    if len(values) == 1:  # all tied: no order to speak of
        return Tested(1.0, 1.0)
    smallest = 2.0 / comb(len(old) + len(new), len(old))
    # "auto" is exact for up to 8 values without ties, and the normal approximation beyond, which
    # of few tied values gives less than can be.
    p = float(mannwhitneyu(old, new, alternative="two-sided").pvalue)
    return Tested(max(p, smallest), smallest)


def compare_pairs(differences: Sequence[float]) -> Tested:
    """Differences of the same scenes, against a mean of zero."""
    from scipy.stats import permutation_test

    differing = [value for value in differences if value != 0.0]
    if len(differing) < 2:  # one scene, whichever way, is a coin
        return Tested(1.0, 1.0)
    found = permutation_test(
        (np.asarray(differing),),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        rng=np.random.default_rng(_SEED),
    )
    smallest = max(2.0 / 2.0 ** len(differing), 2.0 / (RESAMPLES + 1))
    return Tested(min(1.0, float(found.pvalue)), smallest)


def ratio_of_medians(
    old: Sequence[float], new: Sequence[float]
) -> tuple[float, float | None, float | None]:
    """median(new) / median(old), and its 95 % interval; none of single values."""
    before, after = np.asarray(old, dtype=np.float64), np.asarray(new, dtype=np.float64)
    ratio = float(np.median(after) / np.median(before))
    if min(len(before), len(after)) < 2:
        return ratio, None, None
    rng = np.random.default_rng(_SEED)
    drawn = [
        np.median(data[rng.integers(0, len(data), (RESAMPLES, len(data)))], axis=1)
        for data in (before, after)
    ]
    tail = 50.0 * (1.0 - CONFIDENCE)
    low, high = np.percentile(drawn[1] / drawn[0], [tail, 100.0 - tail])
    return ratio, float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values, in the order given: significant at LEVEL where at most LEVEL."""
    adjusted = [1.0] * len(p_values)
    largest = 0.0
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
