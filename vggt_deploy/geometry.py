"""Cameras and points outside the network: pose encodings, pinhole cameras, unprojected depth.

Conventions, those of the checkpoints:
    extrinsic  [R | t], camera from world: X_cam = R X_world + t; OpenCV axes (x right, y down, z
               forward); the world is the first camera's frame, learned and not enforced
    intrinsic  pixels of the network's input; principal point at the centre, no skew
    pose       [t (3), quaternion x y z w (4), vertical and horizontal field of view in radians (2)]

Numpy alone: this runs on a device that has no torch. Cameras are computed in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Doubles = NDArray[np.float64]


def pose_encoding_to_camera(pose_enc: Floats, height: int, width: int) -> tuple[Doubles, Doubles]:
    """Pose encoding [..., 9] -> extrinsic [..., 3, 4], intrinsic [..., 3, 3].

    f_y = (height / 2) / tan(fov_h / 2), f_x = (width / 2) / tan(fov_w / 2). The network emits a
    field of view of zero where its raw value is negative: the focal length is then infinite.
    """
    pose = np.asarray(pose_enc, dtype=np.float64)
    rotation = quaternion_to_rotation(pose[..., 3:7])
    extrinsic = np.concatenate([rotation, pose[..., :3, None]], axis=-1)
    half_sides = np.array([height / 2, width / 2])
    with np.errstate(divide="ignore"):
        focal = half_sides / np.tan(pose[..., 7:9] / 2)
    intrinsic = np.zeros((*pose.shape[:-1], 3, 3))
    intrinsic[..., 0, 0] = focal[..., 1]
    intrinsic[..., 1, 1] = focal[..., 0]
    intrinsic[..., 0, 2] = width / 2
    intrinsic[..., 1, 2] = height / 2
    intrinsic[..., 2, 2] = 1
    return extrinsic, intrinsic


def camera_to_pose_encoding(
    extrinsic: Floats, intrinsic: Floats, height: int, width: int
) -> Doubles:
    """The inverse: extrinsic [..., 3, 4], intrinsic [..., 3, 3] -> [..., 9].

    fov = 2 atan((side / 2) / f). The quaternion has unit length and w >= 0. The principal point is
    not encoded.
    """
    extrinsic = np.asarray(extrinsic, dtype=np.float64)
    intrinsic = np.asarray(intrinsic, dtype=np.float64)
    fov_h = 2 * np.arctan(height / 2 / intrinsic[..., 1, 1])
    fov_w = 2 * np.arctan(width / 2 / intrinsic[..., 0, 0])
    quaternion = rotation_to_quaternion(extrinsic[..., :3])
    fov = np.stack([fov_h, fov_w], axis=-1)
    return np.concatenate([extrinsic[..., 3], quaternion, fov], axis=-1)


def quaternion_to_rotation(quaternion: Floats) -> Doubles:
    """Quaternion x y z w [..., 4] of any length but zero -> rotation [..., 3, 3].

    R = I + s (w K + K K) with K = [v]x and s = 2 / |q|^2: the network's quaternions are not unit
    vectors, and dividing by the squared length makes R a rotation for all of them.
    """
    q = np.asarray(quaternion, dtype=np.float64)
    x, y, z, w = np.moveaxis(q, -1, 0)
    zero = np.zeros_like(x)
    cross = np.stack(
        [np.stack(row, axis=-1) for row in ((zero, -z, y), (z, zero, -x), (-y, x, zero))], axis=-2
    )
    scale = (2 / (q * q).sum(axis=-1))[..., None, None]
    rotation: Doubles = np.eye(3) + scale * (w[..., None, None] * cross + cross @ cross)
    return rotation


def rotation_to_quaternion(rotation: Floats) -> Doubles:
    """Rotation [..., 3, 3] -> unit quaternion x y z w [..., 4] with w >= 0.

    The symmetric matrix 4 q q^T - I is linear in R's entries. Its row with the largest diagonal
    gives q up to length; choosing the largest keeps away from a division by something near zero.
    """
    r = np.asarray(rotation, dtype=np.float64)
    trace = np.trace(r, axis1=-2, axis2=-1)
    outer = np.empty((*r.shape[:-2], 4, 4))  # 4 q q^T, order x y z w
    for i in range(3):
        j, k = (i + 1) % 3, (i + 2) % 3
        outer[..., i, i] = 1 + 2 * r[..., i, i] - trace
        outer[..., i, j] = outer[..., j, i] = r[..., i, j] + r[..., j, i]
        outer[..., i, 3] = outer[..., 3, i] = r[..., k, j] - r[..., j, k]
    outer[..., 3, 3] = 1 + trace
    largest = np.diagonal(outer, axis1=-2, axis2=-1).argmax(axis=-1)
    row = np.take_along_axis(outer, largest[..., None, None], axis=-2)[..., 0, :]
    unit = row / np.linalg.norm(row, axis=-1, keepdims=True)
    quaternion: Doubles = np.where(unit[..., 3:] < 0, -unit, unit)
    return quaternion


def is_pinhole(intrinsic: Floats) -> NDArray[np.bool_]:
    """Of intrinsics [S, 3, 3]: whether both focal lengths are finite and positive, [S].

    A field of view of 0 has an infinite one, one of 180 degrees and more a negative one: depth
    through either is no point of the scene.
    """
    focal = intrinsic[:, [0, 1], [0, 1]]
    usable: NDArray[np.bool_] = np.all(np.isfinite(focal) & (focal > 0), axis=1)
    return usable


def unproject_depth(depth: Floats, extrinsic: Floats, intrinsic: Floats) -> Floats:
    """Depth [S, H, W], extrinsic [S, 3, 4], intrinsic [S, 3, 3] -> world points [S, H, W, 3].

    X_cam = ((u - c_x) d / f_x, (v - c_y) d / f_y, d) at whole pixels u, v (no half-pixel offset,
    as the network was trained), X_world = R^T (X_cam - t). Computed and returned in depth's dtype,
    one frame at a time.
    """
    frames, height, width = depth.shape
    v, u = np.mgrid[:height, :width].astype(depth.dtype)
    points = np.empty((frames, height, width, 3), dtype=depth.dtype)
    for frame in range(frames):
        camera, pose = intrinsic[frame].astype(depth.dtype), extrinsic[frame].astype(depth.dtype)
        d = depth[frame]
        x = (u - camera[0, 2]) * d / camera[0, 0]
        y = (v - camera[1, 2]) * d / camera[1, 1]
        # Row vectors: (X_cam - t)^T R = (R^T (X_cam - t))^T.
        points[frame] = (np.stack([x, y, d], axis=-1) - pose[:, 3]) @ pose[:, :3]
    return points
