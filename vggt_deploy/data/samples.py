"""A few own pictures: a furnished room seen from a moving camera, rendered in numpy from a seed.

They are for the demo and the tests, where no photographs may be shipped: textured surfaces, real
perspective and parallax, no ground truth. Every pixel casts rays at planes, boxes and spheres and
takes the nearest hit; textures are functions of the hit point, so they stick to the surfaces from
every view. World: metres, x right, y up, z away from the first camera.

Points, rays and colours are float32 [3, N]: rows of one coordinate keep numpy's reductions fast.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vggt_deploy.errors import UsageError

Array = NDArray[np.float32]
Texture = Callable[[Array, Array], Array]  # points [3, N], normals [3, N] -> colours [3, N]

LIGHT = (0.6, 2.3, -0.6)
OVERSAMPLING = 2
_LATTICE = np.random.default_rng(20).random((256, 256), dtype=np.float32)


@dataclass(frozen=True)
class _Box:
    low: Array
    high: Array
    texture: Texture
    inside: bool = False  # the room: the rays start in it


@dataclass(frozen=True)
class _Sphere:
    centre: Array
    radius: float
    texture: Texture


def write_sample_images(
    folder: Path | str, count: int = 5, seed: int = 0, size: tuple[int, int] = (640, 480)
) -> tuple[Path, ...]:
    """Write `count` views of one room, `view_000.png` and on, `size` = (width, height)."""
    if count < 1 or min(size) < 1:
        raise UsageError(f"can't write {count} images of {size} pixels", "ask for 1 or more")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    scene = _furnish(rng)
    start, sweep = rng.uniform(-0.5, -0.35), rng.uniform(0.7, 0.9)
    paths = []
    for index in range(count):
        angle = start + sweep * (index / max(1, count - 1))
        eye = _vec(2.9 * np.sin(angle), 1.35 + 0.1 * np.cos(5 * angle), -2.2 * np.cos(angle))
        pixels = _render(scene, eye, _vec(0.0, 0.75, 0.9), size)
        paths.append(folder / f"view_{index:03d}.png")
        Image.fromarray(pixels).save(paths[-1])
    return tuple(paths)


def _vec(x: float, y: float, z: float) -> Array:
    """A column [3, 1]."""
    return np.array([[x], [y], [z]], dtype=np.float32)


def _furnish(rng: np.random.Generator) -> tuple[_Box | _Sphere, ...]:
    """The room, a table with things on it, a shelf, a chest, a picture; where, by the seed."""

    def colour(*base: float) -> Array:
        mixed = np.clip(np.array(base) + rng.uniform(-0.1, 0.1, 3), 0.05, 0.95)
        return mixed.astype(np.float32)[:, None]

    phase = rng.uniform(0, 50)
    wood, oak = _wood(colour(0.55, 0.36, 0.2), phase), _wood(colour(0.68, 0.5, 0.3), phase + 3)
    room = _room(wood, colour(0.82, 0.78, 0.68), colour(0.55, 0.68, 0.72), phase)
    tx, tz = rng.uniform(-0.7, -0.2), rng.uniform(0.5, 0.9)

    def box(x: float, y: float, z: float, w: float, h: float, d: float, t: Texture) -> _Box:
        return _Box(_vec(x - w / 2, y, z - d / 2), _vec(x + w / 2, y + h, z + d / 2), t)

    legs = [box(tx + sx * 0.55, 0, tz + sz * 0.3, 0.07, 0.7, 0.07, oak)
            for sx in (-1, 1) for sz in (-1, 1)]  # fmt: skip
    books = [
        box(1.5 + 0.1 * i, 1.24, 2.7, 0.085, rng.uniform(0.22, 0.36), 0.2,
            _stripes(colour(*rng.uniform(0.2, 0.8, 3)), 9.0))
        for i in range(6)
    ]  # fmt: skip
    return (
        _Box(_vec(-2.6, 0.0, -2.4), _vec(2.6, 2.6, 3.0), room, inside=True),
        box(tx, 0.7, tz, 1.3, 0.06, 0.8, oak),
        *legs,
        _Sphere(_vec(tx - 0.3, 0.9, tz - 0.1), 0.14, _marble(colour(0.75, 0.3, 0.25), phase)),
        box(tx + 0.15, 0.76, tz + 0.1, 0.24, 0.34, 0.24, _checks(colour(0.2, 0.35, 0.6), 12.0)),
        box(tx + 0.46, 0.76, tz - 0.15, 0.2, 0.12, 0.28, _stripes(colour(0.3, 0.55, 0.35), 18.0)),
        box(1.75, 0, 2.65, 1.2, 1.18, 0.55, wood),
        box(1.75, 1.18, 2.7, 1.3, 0.06, 0.6, oak),
        *books,
        box(1.35, 0, 0.8, 0.62, 0.5, 0.62, _checks(colour(0.7, 0.55, 0.25), 8.0)),
        _Sphere(_vec(1.3, 0.72, 0.8), 0.22, _checks(colour(0.8, 0.8, 0.3), 9.0)),
        box(-1.1, 1.25, 2.98, 1.3, 0.85, 0.06, _marble(colour(0.35, 0.5, 0.65), phase + 9)),
        box(-1.1, 1.2, 2.99, 1.42, 0.95, 0.06, wood),
        box(-2.2, 0, 1.9, 0.7, 1.9, 0.9, _stripes(colour(0.6, 0.6, 0.55), 5.0)),
    )


def _noise(x: Array, y: Array, phase: float, octaves: int = 3) -> Array:
    """Smooth value noise in 0..1 on the plane: interpolated between random lattice values."""
    total, weight = np.zeros_like(x), 0.0
    for octave in range(octaves):
        f = 2.0**octave
        u, v = x * f + phase, y * f + phase * 1.7
        iu, iv = np.floor(u), np.floor(v)
        su, sv = (3 - 2 * (u - iu)) * (u - iu) ** 2, (3 - 2 * (v - iv)) * (v - iv) ** 2
        a, b = iu.astype(np.int32) & 255, iv.astype(np.int32) & 255
        c, d = (a + 1) & 255, (b + 1) & 255
        near = _LATTICE[a, b] * (1 - su) + _LATTICE[c, b] * su
        far = _LATTICE[a, d] * (1 - su) + _LATTICE[c, d] * su
        total += (near * (1 - sv) + far * sv) / f
        weight += 1 / f
    return np.asarray(total / weight)


def _surface(points: Array, normals: Array) -> tuple[Array, Array]:
    """Two coordinates along the surface: those across the largest part of the normal."""
    axis = np.abs(normals).argmax(axis=0)
    return np.where(axis == 0, points[2], points[0]), np.where(axis == 1, points[2], points[1])


def _wood(colour: Array, phase: float) -> Texture:
    def texture(points: Array, normals: Array) -> Array:
        u, v = _surface(points, normals)
        plank = np.floor(v / 0.18)
        grain = _noise(u * 2 + plank * 7.3, v * 26, phase)
        seam = np.where(np.abs(v / 0.18 - plank - 0.5) > 0.47, np.float32(0.55), np.float32(1))
        return np.asarray(colour * ((0.55 + 0.6 * grain + 0.08 * np.sin(plank * 2.4)) * seam))

    return texture


def _checks(colour: Array, frequency: float) -> Texture:
    def texture(points: Array, normals: Array) -> Array:
        u, v = _surface(points, normals)
        odd = (np.floor(u * frequency) + np.floor(v * frequency)) % 2
        return np.asarray(colour * ((0.55 + 0.5 * odd) * _worn(u, v, frequency)))

    return texture


def _stripes(colour: Array, frequency: float, *, upright: bool = False) -> Texture:
    def texture(points: Array, normals: Array) -> Array:
        u, v = _surface(points, normals)
        band = 0.5 + 0.5 * np.tanh(6 * np.sin(2 * np.pi * frequency * (u if upright else v)))
        return np.asarray(colour * ((0.55 + 0.45 * band) * _worn(u, v, frequency)))

    return texture


def _worn(u: Array, v: Array, phase: float) -> Array:
    return 0.8 + 0.3 * _noise(u * 8, v * 8, phase)


def _marble(colour: Array, phase: float) -> Texture:
    def texture(points: Array, normals: Array) -> Array:
        u, v = _surface(points, normals)
        veins = np.sin(9 * (u + v) + 8 * _noise(u * 3, v * 3, phase))
        return np.asarray(colour * (0.75 + 0.35 * veins) + 0.12 * (veins > 0.8))

    return texture


def _room(floor: Texture, wall: Array, back: Array, phase: float) -> Texture:
    """Planks on the floor, wallpaper on the back wall, plaster elsewhere, a skirting board."""
    paper = _stripes(back, 1.6, upright=True)

    def plaster(points: Array, normals: Array) -> Array:
        u, v = _surface(points, normals)
        return np.asarray(wall * (0.8 + 0.25 * _noise(u * 5, v * 5, phase)))

    def papered(points: Array, normals: Array) -> Array:
        motif = np.sin(14 * points[0] + 3 * np.sin(7 * points[1])) * np.sin(9 * points[1] + phase)
        return np.asarray(paper(points, normals) * (0.95 + 0.15 * motif))

    def texture(points: Array, normals: Array) -> Array:
        out = np.empty_like(points)
        on_floor, on_back = normals[1] > 0.5, normals[2] < -0.5
        for part, look in ((on_floor, floor), (on_back, papered), (~on_floor & ~on_back, plaster)):
            out[:, part] = look(points[:, part], normals[:, part])
        skirting = (points[1] < 0.12) & (np.abs(normals[1]) < 0.5)
        out[:, skirting] = wall * np.float32(0.55)
        return out

    return texture


def _render(
    scene: tuple[_Box | _Sphere, ...], eye: Array, target: Array, size: tuple[int, int]
) -> NDArray[np.uint8]:
    """One view [H, W, 3], 60 degrees wide, each pixel the mean of OVERSAMPLING ** 2 rays."""
    width, height = (side * OVERSAMPLING for side in size)
    forward = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross(_vec(0.0, 1.0, 0.0), forward, axis=0)
    right /= np.linalg.norm(right)
    up = np.cross(forward, right, axis=0)
    focal = width / 2 / np.tan(np.radians(30))
    x = ((np.arange(width) + 0.5 - width / 2) / focal).astype(np.float32)
    y = ((height / 2 - np.arange(height) - 0.5) / focal).astype(np.float32)
    rays = forward[..., None] + x * right[..., None] + y[:, None] * up[..., None]
    colours = _trace(scene, eye, rays.reshape(3, -1))
    small = colours.reshape(3, size[1], OVERSAMPLING, size[0], OVERSAMPLING).mean(axis=(2, 4))
    display = np.clip(small, 0, 1) ** (1 / 1.6) * 255 + 0.5
    return np.ascontiguousarray(display.astype(np.uint8).transpose(1, 2, 0))


def _trace(scene: tuple[_Box | _Sphere, ...], eye: Array, rays: Array) -> Array:
    nearest = np.full(rays.shape[1], np.inf, dtype=np.float32)
    owner = np.full(rays.shape[1], -1)
    for index, thing in enumerate(scene):
        distance = _distance(thing, eye, rays)
        closer = distance < nearest
        nearest[closer], owner[closer] = distance[closer], index
    points, normals = eye + nearest * rays, np.zeros_like(rays)
    colours = np.zeros_like(rays)
    for index, thing in enumerate(scene):
        mine = np.flatnonzero(owner == index)
        if mine.size:
            normals[:, mine] = _normals(thing, points[:, mine])
            colours[:, mine] = thing.texture(points[:, mine], normals[:, mine])
    to_light = _vec(*LIGHT) - points
    reach = np.sqrt((to_light**2).sum(axis=0))
    facing = np.clip((to_light * normals).sum(axis=0) / reach, 0, 1)
    lit = 0.4 + 0.9 * facing * _lit(scene, points + 2e-3 * normals) / (1 + 0.08 * reach**2)
    return np.asarray(colours * lit)


def _lit(scene: tuple[_Box | _Sphere, ...], points: Array) -> Array:
    """0.35 where something stands between the point and the lamp, else 1."""
    blocked = np.zeros(points.shape[1], dtype=bool)
    rays = _vec(*LIGHT) - points
    for thing in scene[1:]:  # the room itself throws no shadow
        blocked |= _distance(thing, points, rays) < 1
    return np.where(blocked, np.float32(0.35), np.float32(1))


def _distance(thing: _Box | _Sphere, origin: Array, rays: Array) -> Array:
    """Ray parameter [N] of the first hit in front of `origin` ([3, 1] or [3, N]); inf without."""
    miss = np.float32(np.inf)
    if isinstance(thing, _Sphere):
        offset = origin - thing.centre
        a, b = (rays**2).sum(axis=0), (rays * offset).sum(axis=0)
        root = b**2 - a * ((offset**2).sum(axis=0) - thing.radius**2)
        hit = (-b - np.sqrt(np.maximum(root, 0))) / a
        return np.where((root > 0) & (hit > 0), hit, miss)
    with np.errstate(divide="ignore", invalid="ignore"):
        one, two = (thing.low - origin) / rays, (thing.high - origin) / rays
    enter, leave = np.minimum(one, two).max(axis=0), np.maximum(one, two).min(axis=0)
    if thing.inside:
        return np.asarray(leave)
    return np.where((enter < leave) & (enter > 0), enter, miss)


def _normals(thing: _Box | _Sphere, points: Array) -> Array:
    """Unit normals that look at the viewer: outwards, or into the room."""
    if isinstance(thing, _Sphere):
        return np.asarray((points - thing.centre) / thing.radius)
    local = (2 * points - thing.low - thing.high) / (thing.high - thing.low)
    axis = np.abs(local).argmax(axis=0)
    columns = np.arange(points.shape[1])
    normals = np.zeros_like(points)
    normals[axis, columns] = np.sign(local[axis, columns]) * (-1 if thing.inside else 1)
    return normals
