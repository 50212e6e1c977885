"""A scene and a camera -> the picture and its exact depth.

Rays go through pixel centres with unit length along the optical axis, so the ray parameter of a
hit is its depth. Depth is computed in float64 for the surface that was found, colours in float32.
Pixels on edges of objects or patterns are averaged over 2 x 2 rays, the others need only one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggt_deploy.data.synthetic.shapes import Shape, hit, may_hit, surface
from vggt_deploy.data.synthetic.textures import colours

Array = NDArray[np.floating[Any]]
Doubles = NDArray[np.float64]
EDGE = 0.06  # difference of neighbouring pixels, of 1, from which a pixel is drawn with more rays
SHADOW = 0.4  # of the lamp's light that reaches what it does not see
OFFSETS = ((-0.25, -0.25), (0.25, -0.25), (-0.25, 0.25), (0.25, 0.25))


@dataclass(frozen=True, eq=False)
class Light:
    """A lamp at `position` [3], light from everywhere, and the air.

    reach  metres that halve the lamp
    haze   metres in which the air takes all but 1 / e of a colour and puts that of the sky there
    """

    position: Doubles
    ambient: float
    strength: float
    reach: float
    gamma: float
    sky: tuple[float, float, float]
    haze: float


@dataclass(frozen=True, eq=False)
class Scene:
    """What there is to see. The camera may stand anywhere outside the solids."""

    shapes: tuple[Shape, ...]
    light: Light


@dataclass(frozen=True, eq=False)
class Camera:
    """World-to-camera [3, 4], intrinsic [3, 3] with pixel centres at .5, and the picture's size."""

    extrinsic: Doubles
    intrinsic: Doubles
    height: int
    width: int

    @property
    def centre(self) -> Doubles:
        """In the world, [3]."""
        return -self.extrinsic[:, :3].T @ self.extrinsic[:, 3]

    def rays(self, u: Array, v: Array) -> Doubles:
        """Image positions u, v [N], pixels -> world directions [3, N], 1 along the optical axis."""
        k = self.intrinsic
        x, y = (u - k[0, 2]) / k[0, 0], (v - k[1, 2]) / k[1, 1]
        rays: Doubles = self.extrinsic[:, :3].T @ np.stack([x, y, np.ones_like(x)])
        return rays

    def centres(self) -> tuple[Doubles, Doubles]:
        """Image positions u, v [H * W] of the pixel centres, row by row."""
        v, u = np.mgrid[: self.height, : self.width].reshape(2, -1) + 0.5
        return u, v


def render(scene: Scene, camera: Camera) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """-> picture uint8 [H, W, 3], depth float32 [H, W] in metres, inf where the sky is."""
    u, v = camera.centres()
    rays = camera.rays(u, v)
    owner = nearest(scene, camera.centre, rays.astype(np.float32))
    depth = depth_of(scene, camera.centre, rays, owner)
    picture = _colours(scene, camera.centre, rays, depth, owner)
    rough = np.flatnonzero(_edges(owner, picture, camera.height, camera.width))
    du, dv = np.repeat(OFFSETS, rough.size, axis=0).T
    more = camera.rays(np.tile(u[rough], len(OFFSETS)) + du, np.tile(v[rough], len(OFFSETS)) + dv)
    owner = nearest(scene, camera.centre, more.astype(np.float32))
    fine = _colours(scene, camera.centre, more, depth_of(scene, camera.centre, more, owner), owner)
    picture[:, rough] = fine.reshape(3, len(OFFSETS), rough.size).mean(axis=1)
    shown = np.clip(picture, 0, 1) ** (1 / scene.light.gamma) * 255 + 0.5
    shape = (camera.height, camera.width)
    return (
        np.ascontiguousarray(shown.astype(np.uint8).T.reshape(*shape, 3)),
        depth.astype(np.float32).reshape(shape),
    )


def nearest(scene: Scene, origin: Doubles, rays: Array) -> NDArray[np.intp]:
    """Index of the shape that each ray meets first, -1 without."""
    best = np.full(rays.shape[1], np.inf, dtype=rays.dtype)
    owner = np.full(rays.shape[1], -1, dtype=np.intp)
    for index, shape in enumerate(scene.shapes):
        where = may_hit(shape, origin, rays)
        if where is None:
            where = np.arange(rays.shape[1])
        t = hit(shape, origin, rays[:, where])
        closer = t < best[where]
        best[where[closer]] = t[closer]
        owner[where[closer]] = index
    return owner


def depth_of(scene: Scene, origin: Doubles, rays: Array, owner: NDArray[np.intp]) -> Array:
    """Ray parameter [N] at the owner's surface, in the rays' dtype; inf where there is none."""
    depth = np.full(rays.shape[1], np.inf, dtype=rays.dtype)
    for index in np.unique(owner[owner >= 0]):
        mine = np.flatnonzero(owner == index)
        depth[mine] = hit(scene.shapes[index], origin, rays[:, mine])
    return depth


def _colours(
    scene: Scene, origin: Doubles, rays: Array, depth: Array, owner: NDArray[np.intp]
) -> NDArray[np.float32]:
    """Lit colours float32 [3, N]."""
    out = np.empty(rays.shape, dtype=np.float32)
    # `depth` can be inf at a grazing ray whose owner float32 found and float64 did not.
    sky = ~np.isfinite(depth)
    length = np.linalg.norm(rays, axis=0).astype(np.float32)
    air = np.array(scene.light.sky, dtype=np.float32)[:, None]
    out[:, sky] = air * (1 - 0.35 * np.clip(rays[2, sky] / length[sky], 0, 1))
    seen = np.flatnonzero(~sky)
    points = (origin[:, None] + depth[seen] * rays[:, seen]).astype(np.float32)
    base, normals = np.empty_like(points), np.empty_like(points)
    for index in np.unique(owner[seen]):
        mine = np.flatnonzero(owner[seen] == index)
        shape = scene.shapes[index]
        u, v, normals[:, mine] = surface(shape, points[:, mine])
        base[:, mine] = colours(shape.texture, u, v)
    clear = np.exp(-(depth[seen] * length[seen]).astype(np.float32) / scene.light.haze)
    out[:, seen] = base * _lit(scene, points, normals) * clear + air * (1 - clear)
    return out


def _lit(scene: Scene, points: Array, normals: Array) -> Array:
    """Brightness [N]: light from everywhere, and the lamp where it is not hidden."""
    light = scene.light
    lamp = light.position.astype(np.float32)
    ways = points - lamp[:, None]
    distance = np.linalg.norm(ways, axis=0)
    facing = np.clip(-(ways * normals).sum(axis=0) / distance, 0, 1)
    hidden = np.zeros(points.shape[1], dtype=bool)
    for shape in scene.shapes:
        if shape.inside:
            continue  # the room itself throws no shadow
        where = may_hit(shape, light.position, ways)
        where = np.arange(points.shape[1]) if where is None else where
        # The way to the point has length one; what ends it earlier throws the shadow.
        hidden[where] |= hit(shape, light.position, ways[:, where]) < 1 - 2e-3
    lamp_light = light.strength * facing * np.where(hidden, SHADOW, 1)
    return np.asarray(light.ambient + lamp_light / (1 + distance / light.reach), dtype=np.float32)


def _edges(
    owner: NDArray[np.intp], picture: NDArray[np.float32], height: int, width: int
) -> NDArray[np.bool_]:
    """Pixels [H * W] that differ from a neighbour in what they show or how it looks."""
    shape = (height, width)
    rough = np.zeros(shape, dtype=bool)
    for plane, limit in ((owner, 0.0), *((channel, EDGE) for channel in picture)):
        image = plane.reshape(shape)
        across = np.abs(np.diff(image, axis=1)) > limit
        down = np.abs(np.diff(image, axis=0)) > limit
        rough[:, 1:] |= across
        rough[:, :-1] |= across
        rough[1:] |= down
        rough[:-1] |= down
    return rough.ravel()
