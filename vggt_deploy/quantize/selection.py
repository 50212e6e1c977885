"""Which pictures to calibrate on, when there are more than are needed.

    pictures ─► a feature each ─► outliers dropped ─► view sets of a scene ─► the N most different

Distance of two pictures: the length of the difference of their features, each brought to length 1
(0 .. 2). A feature is the mean patch token that the encoder gives, after its norm (`pictures` makes
them).

Outlier    its mean distance d to the 3 nearest other pictures of its scene is far from the usual:
           (d - median) / max(1.4826 MAD, median / 2) > 3.5, the modified z-score and its usual
           limit (Iglewicz and Hoaglin, How to Detect and Handle Outliers, 1993). In scenes of 6
           pictures or more. One blurred, covered or foreign frame is one; a second group of views
           is not, as its pictures are near each other. The least spread keeps the ends of a steady
           video, whose nearest lie all on one side: they are 1.5 times as far from them.
View set   what a pass is without a choice: consecutive pictures of one scene, at most as many as
           run together. Its feature is the mean of its pictures' directions.
Choice     farthest point first (k-center; Gonzalez 1985): the set that is nearest to all others,
           then again and again the one whose nearest chosen set is farthest.

No random numbers: the same pictures and model give the same choice; ties go by order. Nothing here
imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from vggt_deploy.errors import UsageError

NEIGHBOURS = 3
FEWEST = 6
LIMIT = 3.5
MAD_TO_SIGMA = 1.4826
LEAST_SPREAD = 0.5  # of the median
_DIGITS = 6

Features = Mapping[str, NDArray[np.float64]]
"""Picture -> its feature [C], in the order of the scene."""


@dataclass(frozen=True, slots=True)
class Outlier:
    """A picture that was dropped: mean distance to its 3 nearest, and its score (limit 3.5)."""

    image: str
    distance: float
    score: float


@dataclass(frozen=True, slots=True)
class ViewSet:
    """Pictures of one scene that are run together.

    distance: to the nearest set that was chosen before it (0 for the first); of a set that was
    not chosen, to the nearest of all chosen ones
    """

    images: tuple[str, ...]
    chosen: bool
    distance: float


@dataclass(frozen=True, slots=True)
class Selection:
    """What was chosen of what, in the order of the pictures."""

    wanted: int
    sets: tuple[ViewSet, ...]
    outliers: tuple[Outlier, ...]

    @property
    def chosen(self) -> tuple[tuple[str, ...], ...]:
        """The pictures of each set that was chosen."""
        return tuple(found.images for found in self.sets if found.chosen)


def pass_bounds(images: int, per_pass: int) -> Iterator[tuple[int, int]]:
    """(first, last + 1) of each pass, as even as can be: 9 images by 8 are 5 and 4."""
    count = -(-images // per_pass)
    return pairwise(round(i * images / count) for i in range(count + 1))


def choose(scenes: Sequence[Features], per_pass: int, wanted: int) -> Selection:
    """Choose `wanted` view sets of at most `per_pass` pictures, none across two scenes.

    Raises:
        UsageError: fewer than one set is wanted, or more than there are.
    """
    if wanted < 1:
        raise UsageError(f"{wanted} view sets are to be chosen", "ask for 1 or more")
    outliers: list[Outlier] = []
    sets: list[tuple[str, ...]] = []
    features: list[NDArray[np.float64]] = []
    for scene in scenes:
        directions = {name: _direction(feature) for name, feature in scene.items()}
        found = outliers_of(directions)
        outliers += found
        dropped = {outlier.image for outlier in found}
        kept = [name for name in directions if name not in dropped]
        for first, last in pass_bounds(len(kept), per_pass) if kept else ():
            sets.append(tuple(kept[first:last]))
            mean = np.mean([directions[name] for name in kept[first:last]], axis=0)
            features.append(_direction(mean))
    if wanted > len(sets):
        without = f" without {len(outliers)} outliers" if outliers else ""
        raise UsageError(
            f"{wanted} view sets are to be chosen, and the pictures make {len(sets)}{without}",
            f"ask for {len(sets)} or fewer, for fewer frames per pass, or give more pictures",
        )
    chosen = dict(farthest_first(np.stack(features), wanted))
    rest = _to_nearest(np.stack(features), list(chosen))
    return Selection(
        wanted,
        tuple(
            ViewSet(images, i in chosen, round(chosen.get(i, float(rest[i])), _DIGITS))
            for i, images in enumerate(sets)
        ),
        tuple(outliers),
    )


def outliers_of(scene: Features) -> tuple[Outlier, ...]:
    """The outliers among the pictures of one scene, by the rule of this module."""
    if len(scene) < FEWEST:
        return ()
    names = list(scene)
    distances = _distances(np.stack([_direction(scene[name]) for name in names]))
    np.fill_diagonal(distances, np.inf)
    nearest = np.sort(distances, axis=1)[:, :NEIGHBOURS].mean(axis=1)
    median = float(np.median(nearest))
    spread = MAD_TO_SIGMA * float(np.median(np.abs(nearest - median)))
    spread = max(spread, LEAST_SPREAD * median)
    if spread == 0:  # most of them are the same picture: nothing to measure by
        return ()
    scores = (nearest - median) / spread
    return tuple(
        Outlier(names[i], round(float(nearest[i]), _DIGITS), round(float(scores[i]), 2))
        for i in np.flatnonzero(scores > LIMIT)
    )


def farthest_first(features: NDArray[np.float64], count: int) -> list[tuple[int, float]]:
    """(index, distance to the nearest chosen before) of `count` of these features [n, C]."""
    distances = _distances(features)
    first = int(np.argmin(distances.sum(axis=1)))
    chosen = [(first, 0.0)]
    nearest = distances[first].copy()
    nearest[first] = -1.0  # of two equal sets the second has distance 0, and may still be wanted
    while len(chosen) < count:
        index = int(np.argmax(nearest))
        chosen.append((index, float(nearest[index])))
        nearest = np.minimum(nearest, distances[index])
        nearest[index] = -1.0
    return chosen


def _to_nearest(features: NDArray[np.float64], chosen: list[int]) -> NDArray[np.float64]:
    nearest: NDArray[np.float64] = _distances(features)[:, chosen].min(axis=1)
    return nearest


def _distances(directions: NDArray[np.float64]) -> NDArray[np.float64]:
    """|a - b| of every pair of unit vectors [n, C] -> [n, n]."""
    squares = np.maximum(2 - 2 * directions @ directions.T, 0.0)
    # Rounding makes 1e-16 of nothing, and that would decide what the order should.
    squares[squares < 1e-13] = 0.0
    distances: NDArray[np.float64] = np.sqrt(squares)
    return distances


def _direction(feature: NDArray[np.float64]) -> NDArray[np.float64]:
    value: NDArray[np.float64] = np.asarray(feature, np.float64)
    length = float(np.linalg.norm(value))
    return value / length if length > 0 else value
