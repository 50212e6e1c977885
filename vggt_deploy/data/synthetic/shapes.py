"""Boxes, spheres and cylinders, and where rays from one point hit them.

A shape lives in its own frame, `centre` at the origin; `rotation` [3, 3] turns that frame into the
world's. Points and rays are [3, N]: rows of one coordinate keep numpy's passes fast. All functions
keep the dtype of the rays, float32 for colours and shadows, float64 where depth is truth.

    hit        the smallest t > 0 with origin + t ray on the surface, inf without
    box        |x| <= a, |y| <= b, |z| <= c        half = (a, b, c)
    sphere     |x| <= r                            half = (r, r, r)
    cylinder   x^2 + y^2 <= r^2, |z| <= h          half = (r, r, h)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vggt_deploy.data.synthetic.textures import Texture

Array = NDArray[np.floating[Any]]
Doubles = NDArray[np.float64]
Kind = Literal["box", "sphere", "cylinder"]
NEAR = 1e-4  # metres (in units of the ray); closer hits are the surface that the ray left


@dataclass(frozen=True, eq=False)
class Shape:
    """One convex solid with its texture. `inside`: a box seen from within, the room."""

    kind: Kind
    centre: Doubles
    half: Doubles
    rotation: Doubles
    texture: Texture
    inside: bool = False

    @cached_property
    def radius(self) -> float:
        """Of the sphere around the centre that holds the shape, metres."""
        if self.kind == "sphere":
            return float(self.half[0])
        if self.kind == "cylinder":
            return float(np.hypot(self.half[0], self.half[2]))
        return float(np.linalg.norm(self.half))


def yaw(angle_rad: float) -> Doubles:
    """Rotation about the world's vertical, [3, 3]."""
    c, s = np.cos(angle_rad), np.sin(angle_rad)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def tilt(angle_rad: float) -> Doubles:
    """Rotation about the x axis, [3, 3]."""
    c, s = np.cos(angle_rad), np.sin(angle_rad)
    return np.array([[1.0, 0.0, 0.0], [0.0, c, -s], [0.0, s, c]])


def may_hit(shape: Shape, origin: Doubles, rays: Array) -> NDArray[np.intp] | None:
    """Indices of the rays that meet the bounding sphere; None means all of them.

    A ray d meets it if the part of the way to the centre that lies along d is long enough:
    (d . c)^2 >= |d|^2 (|c|^2 - r^2) with d . c > 0.
    """
    to_centre = shape.centre - origin
    clear = float(to_centre @ to_centre) - (1.01 * shape.radius) ** 2
    if shape.inside or clear <= 0:
        return None
    along = to_centre.astype(rays.dtype) @ rays
    near = (along > 0) & (along * along >= clear * np.einsum("ij,ij->j", rays, rays))
    return np.flatnonzero(near)


def hit(shape: Shape, origin: Doubles, rays: Array) -> Array:
    """Rays [3, N] from one origin [3] -> t [N] of the first surface in front, inf without."""
    local = shape.rotation.T.astype(rays.dtype) @ rays
    start = (shape.rotation.T @ (origin - shape.centre)).astype(rays.dtype)
    half = shape.half.astype(rays.dtype)
    if shape.kind == "box":
        enter, leave = _slabs(start, half, local, (0, 1, 2))
    elif shape.kind == "sphere":
        enter, leave = _round(start, float(half[0]), local, (0, 1, 2))
    else:
        enter, leave = _round(start, float(half[0]), local, (0, 1))
        low, high = _slabs(start, half, local, (2,))
        enter, leave = np.maximum(enter, low), np.minimum(leave, high)
    if shape.inside:
        return leave
    return np.where((enter < leave) & (enter > NEAR), enter, np.asarray(np.inf, rays.dtype))


def _slabs(start: Array, half: Array, rays: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """Where rays enter and leave |x_i| <= half_i for the given axes."""
    picked = list(axes)
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = 1 / rays[picked]
        one = (-half[picked, None] - start[picked, None]) * inverse
        two = (half[picked, None] - start[picked, None]) * inverse
    # fmax, fmin: 0 / 0 (a ray in the plane of a face) says nothing about that axis.
    return np.fmax.reduce(np.minimum(one, two)), np.fmin.reduce(np.maximum(one, two))


def _round(start: Array, radius: float, rays: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """Where rays enter and leave the ball (three axes) or the endless cylinder (two)."""
    d, o = rays[list(axes)], start[list(axes), None]
    a = np.einsum("ij,ij->j", d, d)
    b = np.einsum("ij,ij->j", d, np.broadcast_to(o, d.shape))
    disc = b * b - a * (float((o * o).sum()) - radius * radius)
    root = np.sqrt(np.maximum(disc, 0))
    with np.errstate(divide="ignore", invalid="ignore"):
        enter, leave = (-b - root) / a, (-b + root) / a
    missed = disc <= 0
    enter[missed], leave[missed] = np.inf, -np.inf
    return enter, leave


def surface(shape: Shape, points: Array) -> tuple[Array, Array, Array]:
    """Points [3, N] on the surface -> coordinates u, v [N] along it, metres, and normals [3, N].

    Normals are unit vectors towards the side that is seen. A box's faces are laid out so that v is
    up on the walls; a sphere's coordinates are its angles times its radius; a cylinder's side is
    unrolled, its caps are planes.
    """
    turn = shape.rotation.astype(points.dtype)
    local = turn.T @ (points - shape.centre.astype(points.dtype)[:, None])
    half = shape.half.astype(points.dtype)
    if shape.kind == "sphere":
        normals = local / half[0]
        u = np.arctan2(local[1], local[0]) * half[0]
        v = np.arcsin(np.clip(normals[2], -1, 1)) * half[0]
        return u, v, turn @ normals
    normals = np.zeros_like(local)
    if shape.kind == "cylinder":
        cap = np.abs(local[2]) / half[2] > np.hypot(local[0], local[1]) / half[0]
        normals[:2] = np.where(cap, 0, local[:2] / half[0])
        normals[2] = np.where(cap, np.sign(local[2]), 0)
        side = np.arctan2(local[1], local[0]) * half[0]
        return np.where(cap, local[0], side), np.where(cap, local[1], local[2]), turn @ normals
    axis = np.abs(local / half[:, None]).argmax(axis=0)
    columns = np.arange(local.shape[1])
    sign = np.sign(local[axis, columns])
    normals[axis, columns] = -sign if shape.inside else sign
    # A different shift for each face, or a texture would run on around the edges like a mirror.
    shift = (3.7 * axis + 1.9 * (sign > 0)).astype(points.dtype)
    u = np.where(axis == 0, local[1], local[0]) + shift
    v = np.where(axis == 2, local[1], local[2])
    return u, v, turn @ normals
