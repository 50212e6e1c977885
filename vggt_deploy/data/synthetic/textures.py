"""What surfaces look like: colours as functions of two coordinates along the surface, in metres.

A texture is data, drawn from a seed, so a scene can be described, compared and drawn again. Colours
are linear RGB in 0..1 before lighting.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
Pattern = Literal[
    "flat", "plaster", "planks", "checks", "stripes", "bricks", "dots", "marble", "mosaic", "weave"
]
PATTERNS: tuple[Pattern, ...] = get_args(Pattern)
_LATTICE = np.random.default_rng(20).random((256, 256), dtype=np.float32)


@dataclass(frozen=True)
class Texture:
    """A pattern of two colours (RGB in 0..1) at `scale` metres per period, moved by `phase`."""

    pattern: Pattern
    first: tuple[float, float, float]
    second: tuple[float, float, float]
    scale: float
    phase: float
    wear: float  # part of the brightness that slow noise takes away, 0..1


def draw_texture(
    rng: np.random.Generator, size: float, patterns: tuple[Pattern, ...] = PATTERNS[1:]
) -> Texture:
    """A texture fit for a surface `size` metres across."""
    base = _draw_colour(rng)
    # Most patterns differ a little in brightness, as materials do; some are loud.
    other = base * rng.uniform(0.6, 0.9) if rng.random() < 0.75 else _draw_colour(rng)
    first, second = ((float(r), float(g), float(b)) for r, g, b in (base, other))
    return Texture(
        pattern=patterns[int(rng.integers(len(patterns)))],
        first=first,
        second=second,
        scale=float(size * np.exp(rng.uniform(np.log(0.12), np.log(0.6)))),
        phase=float(rng.uniform(0, 50)),
        wear=float(rng.uniform(0.05, 0.3)),
    )


def _draw_colour(rng: np.random.Generator) -> NDArray[np.float64]:
    """RGB, from grey to loud."""
    colour = rng.uniform(0.08, 0.95, 3)
    grey = colour.mean()
    muted: NDArray[np.float64] = grey + rng.uniform(0.1, 1.0) * (colour - grey)
    return muted


def flat(texture: Texture) -> Texture:
    """The same colour without a pattern and almost without wear: a wall that gives nothing away."""
    return Texture("flat", texture.first, texture.first, texture.scale, texture.phase, 0.03)


def colours(texture: Texture, u: Array, v: Array) -> Array:
    """Surface coordinates u, v [N], metres -> RGB [3, N]."""
    u, v = u / texture.scale, v / texture.scale
    share = _share(texture, u, v)
    first = np.array(texture.first, dtype=share.dtype)[:, None]
    second = np.array(texture.second, dtype=share.dtype)[:, None]
    worn = 1 - texture.wear * noise(u * 0.9, v * 0.9, texture.phase + 11)
    return np.asarray((second + (first - second) * share) * worn)


def _share(texture: Texture, u: Array, v: Array) -> Array:
    """How much of the first colour, 0..1, at coordinates in periods."""
    phase = texture.phase
    match texture.pattern:
        case "flat":
            return np.ones_like(u)
        case "plaster":
            return noise(u * 3, v * 3, phase)
        case "planks":
            row = np.floor(v * 2)
            grain = noise(u * 1.5 + row * 7.3, v * 14, phase)
            return np.where(np.abs(v * 2 - row - 0.5) > 0.44, 0, 0.25 + 0.75 * grain)
        case "checks":
            return np.asarray((np.floor(u * 2) + np.floor(v * 2)) % 2)
        case "stripes":
            slant = u + 0.3 * float(np.sin(phase)) * v
            return np.asarray(0.5 + 0.5 * np.tanh(5 * np.sin(2 * np.pi * slant)))
        case "bricks":
            row = np.floor(v * 3)
            across = u * 1.5 + 0.5 * (row % 2)
            joint = (np.abs(v * 3 - row - 0.5) > 0.42) | (np.abs(across % 1 - 0.5) > 0.45)
            tint = _cell(np.floor(across), row, phase)
            return np.where(joint, 0, 0.45 + 0.55 * tint)
        case "dots":
            return np.asarray(np.hypot(u % 1 - 0.5, v % 1 - 0.5) < 0.3, dtype=u.dtype)
        case "marble":
            veins = np.sin(7 * (u + v) + 7 * noise(u * 2, v * 2, phase))
            return np.asarray(0.5 + 0.5 * veins)
        case "mosaic":
            return _cell(np.floor(u * 3), np.floor(v * 3), phase)
        case "weave":
            threads = np.sin(4 * np.pi * u) + np.sin(4 * np.pi * v + phase)
            return np.asarray(0.5 + 0.25 * threads)


def _cell(i: Array, j: Array, phase: float) -> Array:
    """A random number in 0..1 for each whole (i, j)."""
    k = int(phase * 5)
    return np.asarray(_LATTICE[(i.astype(np.int32) + k) & 255, (j.astype(np.int32) + 3 * k) & 255])


def noise(x: Array, y: Array, phase: float, octaves: int = 2) -> Array:
    """Smooth value noise in 0..1 on the plane: interpolated between random lattice values."""
    total, weight = np.zeros_like(x), 0.0
    for octave in range(octaves):
        f = 2.0**octave
        u, v = x * f + phase, y * f + phase * 1.7
        iu, iv = np.floor(u), np.floor(v)
        du, dv = u - iu, v - iv
        su, sv = (3 - 2 * du) * du * du, (3 - 2 * dv) * dv * dv
        a, b = iu.astype(np.int32) & 255, iv.astype(np.int32) & 255
        c, d = (a + 1) & 255, (b + 1) & 255
        near = _LATTICE[a, b] * (1 - su) + _LATTICE[c, b] * su
        far = _LATTICE[a, d] * (1 - su) + _LATTICE[c, d] * su
        total += (near * (1 - sv) + far * sv) / f
        weight += 1 / f
    return np.asarray(total / weight)
