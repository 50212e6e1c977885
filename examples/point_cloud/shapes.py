"""Point clouds of ten shapes, made on the spot: nothing is downloaded, a seed decides everything.

    surface of a shape -> stretched, turned, noise -> into the unit ball -> farthest points first

A cloud is float32 [POINTS, 3]. Its first points are in farthest-point order: each of them is the
one farthest from all before it. So the first m are a well-spread sample for every m up to ORDERED,
and a network finds its centroids by taking a prefix. That loop has a step per centroid, each of
which needs the one before; it is done once for each cloud here instead of in every inference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

POINTS = 128
ORDERED = 32
NOISE = 0.03  # standard deviation of each coordinate, in units of the cloud's radius
STRETCH = 0.25  # each axis is scaled by 1 +- this

Cloud = NDArray[np.float32]
Surface = Callable[[np.random.Generator, int], NDArray[np.float64]]


@dataclass(frozen=True)
class Clouds:
    """points float32 [n, POINTS, 3]; labels int64 [n], numbers of `NAMES`."""

    points: Cloud
    labels: NDArray[np.int64]


def make_clouds(count: int, seed: int) -> Clouds:
    """`count` clouds, as many of each shape as can be, in random order."""
    random = np.random.default_rng(seed)
    labels = random.permutation(np.arange(count) % len(NAMES))
    surfaces = list(SURFACES.values())
    points = np.stack([_cloud(surfaces[label], random) for label in labels])
    return Clouds(farthest_first(points.astype(np.float32), ORDERED), labels.astype(np.int64))


def farthest_first(points: Cloud, ordered: int) -> Cloud:
    """[n, P, 3] -> the same points, the first `ordered` of each cloud in farthest-point order."""
    clouds, count, _ = points.shape
    rows = np.arange(clouds)
    nearest = np.full((clouds, count), np.inf, np.float32)  # squared distance to those chosen
    order = np.empty((clouds, ordered), np.int64)
    chosen = np.zeros(clouds, np.int64)
    for step in range(ordered):
        order[:, step] = chosen
        away = ((points - points[rows, chosen][:, None]) ** 2).sum(-1)
        nearest = np.minimum(nearest, away)
        chosen = nearest.argmax(1)
    left = np.ones((clouds, count), bool)
    left[rows[:, None], order] = False
    rest = np.nonzero(left)[1].reshape(clouds, count - ordered)
    full = np.concatenate([order, rest], axis=1)
    return np.take_along_axis(points, full[..., None], axis=1)


def _cloud(surface: Surface, random: np.random.Generator) -> NDArray[np.float64]:
    points = surface(random, POINTS) * random.uniform(1 - STRETCH, 1 + STRETCH, 3)
    points = points @ _rotation(random)
    points -= points.mean(0)
    points /= np.linalg.norm(points, axis=1).max()
    noisy: NDArray[np.float64] = points + random.normal(0, NOISE, points.shape)
    return noisy


def _rotation(random: np.random.Generator) -> NDArray[np.float64]:
    """A turn, all equally likely: QR of a normal matrix, its signs made unique."""
    q, r = np.linalg.qr(random.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    turned: NDArray[np.float64] = q if np.linalg.det(q) > 0 else -q
    return turned


def _directions(random: np.random.Generator, n: int) -> NDArray[np.float64]:
    points = random.normal(size=(n, 3))
    unit: NDArray[np.float64] = points / np.linalg.norm(points, axis=1, keepdims=True)
    return unit


def _circle(random: np.random.Generator, n: int) -> NDArray[np.float64]:
    angle = random.uniform(0, 2 * np.pi, n)
    points: NDArray[np.float64] = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return points


def _sphere(random: np.random.Generator, n: int) -> NDArray[np.float64]:
    return _directions(random, n)


def _ellipsoid(random: np.random.Generator, n: int) -> NDArray[np.float64]:
    points: NDArray[np.float64] = _directions(random, n) * np.array([1.0, 0.5, 0.35])
    return points


def _cube(random: np.random.Generator, n: int) -> NDArray[np.float64]:
    points = random.uniform(-1, 1, (n, 3))
    points[np.arange(n), random.integers(0, 3, n)] = random.choice([-1.0, 1.0], n)
    return points


def _cylinder(random: np.random.Generator, n: int) -> NDArray[np.float64]:
    points = np.column_stack([_circle(random, n), random.uniform(-1.3, 1.3, n)])
    lid = random.random(n) < 0.28  # the lids' part of the area
    points[lid, :2] *= np.sqrt(random.random(lid.sum()))[:, None]
    points[lid, 2] = random.choice([-1.3, 1.3], lid.sum())
    return points


def _cone(random: np.random.Generator, n: int) -> NDArray[np.float64]:
    reach = np.sqrt(random.random(n))
    points = np.column_stack([_circle(random, n) * reach[:, None], 2 * (1 - reach)])
    points[random.random(n) < 0.3, 2] = 0.0  # the base
    return points


def _torus(random: np.random.Generator, n: int) -> NDArray[np.float64]:
    around, tube = _circle(random, n), _circle(random, n) * 0.35
    return np.column_stack([around * (1 + tube[:, :1]), tube[:, 1]])


def _disc(random: np.random.Generator, n: int) -> NDArray[np.float64]:
    flat = _circle(random, n) * np.sqrt(random.random(n))[:, None]
    return np.column_stack([flat, np.zeros(n)])


def _helix(random: np.random.Generator, n: int) -> NDArray[np.float64]:
    turns = random.uniform(0, 3, n)
    angle = 2 * np.pi * turns
    return np.column_stack([np.cos(angle), np.sin(angle), turns - 1.5])


def _saddle(random: np.random.Generator, n: int) -> NDArray[np.float64]:
    flat = random.uniform(-1, 1, (n, 2))
    return np.column_stack([flat, flat[:, 0] ** 2 - flat[:, 1] ** 2])


def _cross(random: np.random.Generator, n: int) -> NDArray[np.float64]:
    points = random.uniform(-0.15, 0.15, (n, 3))
    points[np.arange(n), random.integers(0, 3, n)] = random.uniform(-1, 1, n)
    return points


SURFACES: dict[str, Surface] = {
    "sphere": _sphere,
    "ellipsoid": _ellipsoid,
    "cube": _cube,
    "cylinder": _cylinder,
    "cone": _cone,
    "torus": _torus,
    "disc": _disc,
    "helix": _helix,
    "saddle": _saddle,
    "cross": _cross,
}
NAMES: tuple[str, ...] = tuple(SURFACES)
