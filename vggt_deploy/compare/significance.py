"""Is a difference told from none? The tests behind what changed since a baseline.

    calls of two runs     Mann-Whitney U (scipy), two-sided: is one run's call likelier the longer
                          one?
    ratios of medians     Welch's t on their logarithms, with bootstrapped variances: of one
                          variant's calls before and now, and beside the same ratio of another
    scenes, paired        sign-flip permutation test of the mean difference (scipy), all flips of
                          up to 13 scenes, 10 000 drawn of more: how often would differences of
                          this size, with signs drawn by a coin, have a mean as far from zero? It
                          holds for few scenes, too, where a bootstrap interval is too narrow
    many tests at once    Holm's step-down (1979): the chance that any of them calls a change where
                          there is none stays at the level, however the tests depend on each other

Calls that follow each other are alike: whatever slows one, slows the next. n of them tell less than
n independent ones. Both tests of calls take them for a series in which a call depends on the one
before it (AR(1)) and count

    n / (1 + 2 sum over k < n of (1 - k / n) rho^k)

of them, rho estimated from the calls (`dependence`). What lasts longer than such a series
remembers, such as a machine that is slower for a whole run, is beyond these tests.

A test of few values has a smallest p that it can reach at all, even if every value speaks one way:
2 / C(n + m, n) for calls, 2 / 2^k for k scenes that differ. One above the level can't tell anything
and has no place among the tests that Holm counts. That bound depends on the number of values, on
which differences are zero and on the order of calls within their own run, never on the direction,
so that leaving such tests out keeps the level (Tarone, 1990).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import exp, lgamma, sqrt

import numpy as np

LEVEL = 0.05
RESAMPLES = 10_000
CONFIDENCE = 0.95
MOST_DEPENDENCE = 0.95  # more than that can't be told from a drift
_SEED = 20250405


@dataclass(frozen=True)
class Tested:
    """A p value, two-sided, and the smallest one that so many values can give.

    sign   of two samples, 1 where the new values are likelier the larger ones, -1 the smaller
    worth  of two samples of calls that depend on each other: how many independent ones they are
    """

    p: float
    smallest_p: float
    sign: int = 0
    worth: tuple[float, float] | None = None

    @property
    def can_tell(self) -> bool:
        """Whether any outcome of this test would have been significant by itself."""
        return self.smallest_p <= LEVEL


def dependence(series: Iterable[Sequence[float]]) -> float:
    """How much a call is like the one before it: lag-1 autocorrelation of the ranks, 0 or more.

    The mean over the series, weighted by their lengths, corrected for what short ones take off: the
    expected value of one is about rho - (1 + 4 rho) / n (Kendall, 1954).
    """
    from scipy.stats import rankdata

    total, weight, count = 0.0, 0, 0
    for values in series:
        ranks = rankdata(values) - (len(values) + 1) / 2.0
        squares = float(ranks @ ranks)
        if squares == 0.0:  # one call, or all alike: no order to speak of
            continue
        total += len(values) * float(ranks[1:] @ ranks[:-1]) / squares
        weight += len(values)
        count += 1
    if count == 0:
        return 0.0
    found = total / weight
    corrected = found + (1.0 + 4.0 * max(found, 0.0)) * count / weight
    return min(max(corrected, 0.0), MOST_DEPENDENCE)


def independent_calls(count: int, rho: float) -> float:
    """How many independent calls tell as much of the mean as so many of an AR(1) series do."""
    lags = np.arange(1, count)
    return count / (1.0 + 2.0 * float(((1.0 - lags / count) * rho**lags).sum()))


def compare_samples(old: Sequence[float], new: Sequence[float], rho: float = 0.0) -> Tested:
    """Two samples by their ranks; rho: see `dependence`.

    Calls that follow each other count for the fewer that they are worth: the normal quantile of p
    shrinks as the standard error grows.
    """
    from scipy.stats import mannwhitneyu, norm

    if len({*old, *new}) == 1:  # all tied: no order to speak of
        return Tested(1.0, 1.0)
    worth = [independent_calls(len(values), rho) for values in (old, new)]
    smallest = _smallest_p(*worth)
    # "auto" is exact for up to 8 values without ties, and the normal approximation beyond, which
    # of few tied values gives less than can be.
    found = mannwhitneyu(new, old, alternative="two-sided")
    p = float(found.pvalue)
    if rho > 0.0:
        shrink = sqrt((1.0 / len(old) + 1.0 / len(new)) / (1.0 / worth[0] + 1.0 / worth[1]))
        p = float(2.0 * norm.sf(shrink * norm.isf(p / 2.0)))
    longer = float(found.statistic) - len(old) * len(new) / 2.0
    sign = (longer > 0.0) - (longer < 0.0)
    return Tested(
        min(1.0, max(p, smallest)), smallest, sign, (worth[0], worth[1]) if rho > 0.0 else None
    )


def _smallest_p(first: float, second: float) -> float:
    """2 / C(n + m, n), also of parts of calls."""
    return min(
        1.0, 2.0 * exp(lgamma(first + 1.0) + lgamma(second + 1.0) - lgamma(first + second + 1.0))
    )


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


@dataclass(frozen=True)
class Median:
    """Logarithm of the median of timed calls, its variance, and how many calls that rests on."""

    log: float
    variance: float
    worth: float


def median_of(samples: Sequence[float], rho: float = 0.0) -> Median | None:
    """By bootstrap, drawing as many calls as these are worth; None of a single call."""
    count = len(samples)
    if count < 2:
        return None
    data = np.asarray(samples, dtype=np.float64)
    worth = max(2.0, independent_calls(count, rho))
    rng = np.random.default_rng(_SEED)
    drawn = np.median(data[rng.integers(0, count, (RESAMPLES, int(worth)))], axis=1)
    # n / (n - 1): what drawn samples vary less than the calls themselves. Of equal numbers NumPy's
    # variance is not quite 0.
    alike = drawn.min() == drawn.max()
    variance = 0.0 if alike else float(np.log(drawn).var()) * count / (count - 1)
    return Median(float(np.log(np.median(data))), variance, worth)


@dataclass(frozen=True)
class Ratio:
    """A ratio of medians, or of such ratios; its 95 % interval and p against a ratio of 1."""

    value: float
    low: float
    high: float
    p: float

    @property
    def sign(self) -> int:
        """Above 1 or below, where the interval leaves out 1; else 0."""
        return (self.low > 1.0) - (self.high < 1.0)


def ratio(above: Sequence[Median], below: Sequence[Median]) -> Ratio:
    """Product of the medians above / product of those below; Welch's t on their logarithms."""
    from scipy.stats import t

    parts = (*above, *below)
    log = sum(one.log for one in above) - sum(one.log for one in below)
    variance = sum(one.variance for one in parts)
    if variance == 0.0:  # all calls alike
        return Ratio(exp(log), exp(log), exp(log), 1.0 if log == 0.0 else 0.0)
    freedom = variance**2 / sum(one.variance**2 / (one.worth - 1.0) for one in parts)
    error = sqrt(variance)
    reach = float(t.ppf(0.5 + CONFIDENCE / 2.0, freedom)) * error
    p = float(2.0 * t.sf(abs(log) / error, freedom))
    return Ratio(exp(log), exp(log - reach), exp(log + reach), p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values, in the order given: significant at LEVEL where at most LEVEL."""
    adjusted = [1.0] * len(p_values)
    largest = 0.0
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
