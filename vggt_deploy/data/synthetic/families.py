"""Families of scenes: what stands where, drawn from a seed. World in metres, z up, floor at z = 0.

    room       a furnished room, seen from standing height
    tabletop   small things on a table, seen from close around it
    yard       buildings, columns and trees under a sky without depth
    hall       two rows of columns, beams and fallen blocks; held out: training never draws it

Some scenes are hard on purpose, and say so in their traits:

    textureless  walls, floor and half of the things have no pattern
    repeated     one pattern on everything, and things in a regular row
    wide         the views lie far apart (see `paths`)
    thin         poles, wires and rails
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vggt_deploy.data.synthetic.render import Light, Scene
from vggt_deploy.data.synthetic.shapes import Kind, Shape, tilt, yaw
from vggt_deploy.data.synthetic.textures import Pattern, Texture, draw_texture, flat

Doubles = NDArray[np.float64]
Rng = np.random.Generator

FAMILIES = ("room", "tabletop", "yard")
HELD_OUT = "hall"
TRAITS = ("textureless", "repeated", "wide", "thin")
# Of these, the most that a scene has at once would leave nothing to see: one trait at a time.
TRAIT_SHARE = 0.32
SOLIDS: tuple[Kind, ...] = ("box", "box", "cylinder", "sphere")
FLOORS: tuple[Pattern, ...] = ("planks", "checks", "plaster", "bricks", "mosaic", "weave", "marble")
WALLS: tuple[Pattern, ...] = ("plaster", "stripes", "bricks", "weave", "mosaic", "dots", "planks")


@dataclass(frozen=True, eq=False)
class Stage:
    """A scene, and where its camera may be.

    focus    [3] what the camera looks at, about
    standing (low, high) horizontal distance of the camera from the focus, metres
    heights  (low, high) of the camera above the floor
    walls    (x, y) half extents within which the camera stays
    """

    scene: Scene
    traits: tuple[str, ...]
    focus: Doubles
    standing: tuple[float, float]
    heights: tuple[float, float]
    walls: tuple[float, float]


def make_stage(family: str, rng: Rng) -> Stage:
    """Draw a scene of the family."""
    traits = (TRAITS[int(rng.integers(len(TRAITS)))],) if rng.random() < TRAIT_SHARE else ()
    return _MAKERS[family](rng, traits)


class _Builder:
    """Collects the shapes of one scene; knows its traits, so that no maker has to."""

    def __init__(self, rng: Rng, traits: tuple[str, ...]) -> None:
        self.rng = rng
        self.traits = traits
        self.shapes: list[Shape] = []
        self.pattern = draw_texture(rng, 1.0)
        self.taken: list[tuple[float, float, float]] = []

    def texture(self, size: float, patterns: tuple[Pattern, ...] | None = None) -> Texture:
        """For a thing `size` metres across, as the traits want it."""
        drawn = draw_texture(self.rng, size, *(() if patterns is None else (patterns,)))
        if "repeated" in self.traits:
            return replace(self.pattern, scale=min(0.5, max(0.08, size / 4)))
        if "textureless" in self.traits and (patterns is not None or self.rng.random() < 0.5):
            return flat(drawn)
        return drawn

    def add(
        self,
        kind: Kind,
        centre: tuple[float, float, float],
        half: tuple[float, float, float],
        *,
        rotation: Doubles | None = None,
        texture: Texture | None = None,
        inside: bool = False,
    ) -> None:
        self.shapes.append(
            Shape(
                kind,
                np.array(centre, dtype=np.float64),
                np.array(half, dtype=np.float64),
                np.eye(3) if rotation is None else rotation,
                texture or self.texture(2 * max(half)),
                inside,
            )
        )

    def room(self, x: float, y: float, height: float) -> None:
        """Four walls, floor and ceiling as one box from within, and a floor of its own."""
        wall = self.texture(2.5, WALLS)
        self.add("box", (0, 0, height / 2), (x, y, height / 2), texture=wall, inside=True)
        self.floor(x, y)

    def floor(self, x: float, y: float) -> None:
        self.add("box", (0, 0, -0.05), (x, y, 0.051), texture=self.texture(2.5, FLOORS))

    def free_spot(self, x: float, y: float, radius: float) -> tuple[float, float] | None:
        """A place on the floor within +-x, +-y that nothing stands on; None after 12 tries."""
        for _ in range(12):
            px, py = self.rng.uniform(-x, x), self.rng.uniform(-y, y)
            if all(np.hypot(px - a, py - b) > radius + r for a, b, r in self.taken):
                self.taken.append((px, py, radius))
                return float(px), float(py)
        return None

    def thing(self, x: float, y: float, base: float, size: float) -> None:
        """One box, cylinder or ball of about `size` metres, on the height `base`."""
        rng = self.rng
        kind = SOLIDS[int(rng.integers(len(SOLIDS)))]
        a, b, c = size / 2 * np.exp(rng.uniform(-0.5, 0.5, 3))
        turn = yaw(rng.uniform(0, np.pi))
        if kind == "sphere":
            b = c = a
        elif kind == "cylinder":
            b = a
            if rng.random() < 0.25:  # lying
                self.add(kind, (x, y, base + a), (a, a, c), rotation=turn @ tilt(np.pi / 2))
                return
        self.add(kind, (x, y, base + c), (a, b, c), rotation=turn)

    def poles(self, x: float, y: float, height: float) -> None:
        """What is thin: upright poles, and a wire or rail across at some height."""
        rng = self.rng
        for _ in range(int(rng.integers(3, 7))):
            r = rng.uniform(0.006, 0.02) * max(1.0, x)
            px, py = rng.uniform(-x, x), rng.uniform(-y, y)
            self.add("cylinder", (px, py, height / 2), (r, r, height / 2))
        for _ in range(2):
            r = rng.uniform(0.004, 0.012) * max(1.0, x)
            along = yaw(rng.uniform(0, np.pi)) @ tilt(np.pi / 2)
            at = (0.0, 0.0, rng.uniform(0.4, 0.9) * height)
            self.add("cylinder", at, (r, r, 1.2 * max(x, y)), rotation=along)

    def finish(self, light: Light) -> Scene:
        return Scene(tuple(self.shapes), light)


def _light(rng: Rng, position: tuple[float, float, float], reach: float, distance: float) -> Light:
    """`distance`: metres at which things are mostly seen; some of their colour is lost in the air
    on the way, as outdoors on a hazy day.
    """
    ambient = rng.uniform(0.35, 0.75)
    r, g, b = (float(c) for c in np.array([0.72, 0.78, 0.86]) * rng.uniform(0.85, 1.1, 3))
    return Light(
        position=np.array(position),
        ambient=float(ambient),
        strength=float(rng.uniform(0.6, 1.4) * (1.25 - ambient)),
        reach=reach,
        gamma=float(rng.uniform(1.4, 2.2)),
        sky=(r, g, b),
        haze=float(distance * np.exp(rng.uniform(np.log(1.2), np.log(3.0)))),
    )


def _room(rng: Rng, traits: tuple[str, ...]) -> Stage:
    build = _Builder(rng, traits)
    x, y, height = rng.uniform(2.0, 4.0), rng.uniform(2.0, 4.0), rng.uniform(2.4, 3.6)
    build.room(x, y, height)
    for _ in range(int(rng.integers(2, 5))):
        _picture(build, x, y, height)
    if rng.random() < 0.7 and (at := build.free_spot(0.5 * x, 0.5 * y, 0.6)):
        _table(build, *at, top=rng.uniform(0.55, 0.85), half=rng.uniform(0.35, 0.7))
    if "repeated" in traits:
        for i in range(-2, 3):
            build.add("box", (0.55 * i, 0.5 * y, 0.3), (0.15, 0.15, 0.3))
    for _ in range(int(rng.integers(4, 9))):
        size = rng.uniform(0.25, 0.9)
        if at := build.free_spot(0.75 * x, 0.75 * y, 0.6 * size):
            build.thing(*at, base=0.0, size=size)
    for _ in range(int(rng.integers(1, 4))):  # cupboards along the walls
        side = 1 if rng.random() < 0.5 else -1
        w, d, h = rng.uniform(0.3, 0.7), rng.uniform(0.15, 0.35), rng.uniform(0.4, 1.1)
        build.add("box", (rng.uniform(-0.8, 0.8) * x, side * (y - d), h), (w, d, h))
    if "thin" in traits:
        build.poles(0.6 * x, 0.6 * y, height)
    lamp = (rng.uniform(-0.5, 0.5) * x, rng.uniform(-0.5, 0.5) * y, 0.92 * height)
    focus = np.array([rng.uniform(-0.3, 0.3) * x, rng.uniform(-0.3, 0.3) * y, rng.uniform(0.5, 1)])
    far = min(x, y)
    return Stage(
        build.finish(_light(rng, lamp, 4.0, 1.4 * far)), traits, focus, (0.65 * far, 1.2 * far),
        (0.9, min(2.0, 0.8 * height)), (x - 0.3, y - 0.3),
    )  # fmt: skip


def _picture(build: _Builder, x: float, y: float, height: float) -> None:
    """A board on one of the four walls."""
    rng = build.rng
    w, h = rng.uniform(0.25, 0.8), rng.uniform(0.2, 0.5)
    z = min(rng.uniform(1.1, 1.8), height - h)
    side = 1 if rng.random() < 0.5 else -1
    if rng.random() < 0.5:
        build.add("box", (rng.uniform(-0.7, 0.7) * x, side * y, z), (w, 0.03, h))
    else:
        build.add("box", (side * x, rng.uniform(-0.7, 0.7) * y, z), (0.03, w, h))


def _table(build: _Builder, x: float, y: float, *, top: float, half: float) -> None:
    """A board on four legs with a few things on it."""
    rng = build.rng
    turn, long = yaw(rng.uniform(0, np.pi)), half * rng.uniform(1.0, 1.6)
    wood = build.texture(half)
    build.add("box", (x, y, top - 0.03), (long, half, 0.03), rotation=turn, texture=wood)
    for sx in (-1, 1):
        for sy in (-1, 1):
            dx, dy, _ = turn @ np.array([sx * (long - 0.06), sy * (half - 0.06), 0])
            leg = (x + dx, y + dy, (top - 0.06) / 2)
            build.add("box", leg, (0.035, 0.035, (top - 0.06) / 2), rotation=turn, texture=wood)
    for _ in range(int(rng.integers(1, 4))):
        dx, dy, _ = turn @ np.array(
            [rng.uniform(-0.7, 0.7) * long, rng.uniform(-0.7, 0.7) * half, 0]
        )
        build.thing(x + dx, y + dy, top, rng.uniform(0.12, 0.3))


def _tabletop(rng: Rng, traits: tuple[str, ...]) -> Stage:
    build = _Builder(rng, traits)
    x, y = rng.uniform(1.8, 3.5), rng.uniform(1.8, 3.5)
    height, top = rng.uniform(2.2, 3.2), rng.uniform(0.6, 0.9)
    build.room(x, y, height)
    half = rng.uniform(0.5, 0.9)
    board = build.texture(0.8, FLOORS)
    if rng.random() < 0.5:
        build.add("cylinder", (0, 0, top / 2), (half, half, top / 2), texture=board)
    else:
        turn = yaw(rng.uniform(0, np.pi))
        build.add("box", (0, 0, top / 2), (half, half, top / 2), rotation=turn, texture=board)
    reach = 0.62 * half
    if "repeated" in traits:
        for i in range(-2, 3):
            build.add("cylinder", (0.26 * half * i, 0.5 * half, top + 0.08), (0.05, 0.05, 0.08))
    for _ in range(int(rng.integers(4, 9))):
        size = half * rng.uniform(0.18, 0.5)
        if at := build.free_spot(reach, reach, 0.55 * size):
            build.thing(*at, base=top, size=size)
    for _ in range(3):
        _picture(build, x, y, height)
    if "thin" in traits:
        build.poles(reach, reach, top + 0.6)
    lamp = (rng.uniform(-1, 1), rng.uniform(-1, 1), height - 0.1)
    focus = np.array([*rng.uniform(-0.15, 0.15, 2), top + 0.1])
    return Stage(
        build.finish(_light(rng, lamp, 3.0, 2.0 * half)), traits, focus, (1.15 * half, 2.0 * half),
        (top + 0.25, top + 1.1), (x - 0.2, y - 0.2),
    )  # fmt: skip


def _yard(rng: Rng, traits: tuple[str, ...]) -> Stage:
    build = _Builder(rng, traits)
    build.floor(40.0, 40.0)
    for _ in range(int(rng.integers(3, 7))):  # houses and walls around the middle
        angle, away = rng.uniform(0, 2 * np.pi), rng.uniform(7.0, 13.0)
        w, d, h = rng.uniform(1.5, 4.0), rng.uniform(0.4, 3.0), rng.uniform(0.8, 3.0)
        at = (away * np.cos(angle), away * np.sin(angle), h)
        build.add("box", at, (w, d, h), rotation=yaw(rng.uniform(0, np.pi)))
    if "repeated" in traits:
        for i in range(-2, 3):
            build.add("cylinder", (1.3 * i, 2.0, 1.2), (0.2, 0.2, 1.2))
    for _ in range(int(rng.integers(4, 9))):
        size = rng.uniform(0.5, 2.0)
        if at2 := build.free_spot(3.2, 3.2, 0.6 * size):
            build.thing(*at2, base=0.0, size=size)
    for _ in range(int(rng.integers(0, 4))):  # trees
        if at2 := build.free_spot(5.0, 5.0, 0.6):
            stem, crown = rng.uniform(0.6, 1.3), rng.uniform(0.5, 1.0)
            build.add("cylinder", (*at2, stem), (0.12, 0.12, stem))
            build.add("sphere", (*at2, 2 * stem + 0.6 * crown), (crown, crown, crown))
    if "thin" in traits:
        build.poles(3.0, 3.0, 3.0)
    sun = yaw(rng.uniform(0, 2 * np.pi)) @ np.array([rng.uniform(15, 40), 0.0, 30.0])
    focus = np.array([*rng.uniform(-0.6, 0.6, 2), rng.uniform(0.6, 1.4)])
    return Stage(
        build.finish(_light(rng, (sun[0], sun[1], sun[2]), 400.0, 8.0)), traits, focus, (3.6, 6.0),
        (1.0, 2.6), (30.0, 30.0),
    )  # fmt: skip


def _hall(rng: Rng, traits: tuple[str, ...]) -> Stage:
    build = _Builder(rng, traits)
    x, y, height = rng.uniform(4.0, 6.0), rng.uniform(2.8, 3.6), rng.uniform(3.2, 4.5)
    build.room(x, y, height)
    stone = build.texture(1.0)
    step, r = rng.uniform(1.6, 2.4), rng.uniform(0.16, 0.3)
    for i in range(-2, 3):
        for side in (-1, 1):
            at = (i * step, side * (y - 0.9))
            build.add("cylinder", (*at, height / 2), (r, r, height / 2), texture=stone)
            base = (*at, 0.15)
            build.add("box", base, (1.5 * r, 1.5 * r, 0.15), texture=stone)
            build.taken.append((*at, 1.5 * r))
        build.add("box", (i * step, 0, height - 0.15), (0.12, y, 0.15), texture=stone)
    for _ in range(int(rng.integers(4, 8))):  # fallen blocks, at any angle
        size = rng.uniform(0.3, 0.9)
        if spot := build.free_spot(0.5 * x, 0.5 * y, 0.6 * size):
            half = size / 2 * np.exp(rng.uniform(-0.5, 0.5, 3))
            turn = yaw(rng.uniform(0, np.pi)) @ tilt(rng.uniform(-0.6, 0.6))
            centre = (*spot, 0.8 * float(half.max()))
            build.add("box", centre, (half[0], half[1], half[2]), rotation=turn)
    if "thin" in traits:
        build.poles(0.5 * x, 0.5 * y, height)
    lamp = (rng.uniform(-0.4, 0.4) * x, 0.0, 0.8 * height)
    focus = np.array([rng.uniform(-0.3, 0.3) * x, rng.uniform(-0.4, 0.4), rng.uniform(0.5, 1.2)])
    return Stage(
        build.finish(_light(rng, lamp, 5.0, 4.0)), traits, focus, (2.0, 3.2), (0.9, 2.2),
        (x - 0.3, y - 0.3),
    )  # fmt: skip


_MAKERS: dict[str, Callable[[Rng, tuple[str, ...]], Stage]] = {
    "room": _room,
    "tabletop": _tabletop,
    "yard": _yard,
    "hall": _hall,
}
