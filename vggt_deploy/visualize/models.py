"""The scene as files for other programs: PLY (points) and GLB (points, cameras, their path).

points.ply   OpenCV axes of the first camera (x right, y down, z forward), sRGB colours
scene.glb    glTF axes (y up, z towards the viewer): (x, y, z) -> (x, -y, -z), linear colours;
             nodes `points`, `frusta` (lines, one colour for each camera, dark first to bright
             last) and `path` (through the cameras in the order of the pictures)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggt_deploy.engines.colour import linear_from_srgb
from vggt_deploy.engines.points import GLTF_FROM_OPENCV, PointCloud
from vggt_deploy.errors import RuntimeUnavailableError
from vggt_deploy.visualize.cameras import FRUSTUM_EDGES, Cameras
from vggt_deploy.visualize.colours import PATH_COLOUR, camera_colours


def write_ply(cloud: PointCloud, path: Path) -> None:
    """The points alone; there must be some."""
    trimesh = _trimesh()
    trimesh.PointCloud(cloud.xyz, colors=_rgba(cloud.rgb)).export(path)


def write_glb(cloud: PointCloud | None, cameras: Cameras | None, path: Path) -> None:
    """Points and cameras, of which there must be one."""
    trimesh = _trimesh()
    scene = trimesh.Scene()
    if cloud is not None and len(cloud.xyz):
        linear = _rgba(linear_from_srgb(cloud.rgb))
        points = trimesh.PointCloud(cloud.xyz * GLTF_FROM_OPENCV, colors=linear)
        scene.add_geometry(points, node_name="points", geom_name="points")
    if cameras is not None and cameras.with_frustum:
        scene.add_geometry(_frusta(cameras), node_name="frusta", geom_name="frusta")
    if cameras is not None and len(cameras.centres) > 1:
        lines = [list(range(len(cameras.centres)))]
        colour = np.array([PATH_COLOUR], dtype=np.uint8)
        scene.add_geometry(
            _lines(cameras.centres, lines, colour), node_name="path", geom_name="path"
        )
    path.write_bytes(scene.export(file_type="glb"))


def _frusta(cameras: Cameras) -> Any:
    kept = cameras.with_frustum
    colours = camera_colours(len(cameras.frames))[kept]
    edges = [[5 * i + a, 5 * i + b] for i in range(len(kept)) for a, b in FRUSTUM_EDGES]
    return _lines(
        cameras.frusta[kept].reshape(-1, 3), edges, np.repeat(colours, len(FRUSTUM_EDGES), axis=0)
    )


def _lines(vertices: NDArray[np.float64], lines: list[list[int]], srgb: NDArray[np.uint8]) -> Any:
    """Polylines over `vertices`, one sRGB colour [n, 3] for each, in glTF's axes and light."""
    path = _trimesh().path.Path3D(
        entities=[_trimesh().path.entities.Line(line) for line in lines],
        vertices=vertices * GLTF_FROM_OPENCV,
        process=False,
    )
    path.colors = _rgba(linear_from_srgb(srgb / 255))
    return path


def _trimesh() -> Any:
    """The library, untyped: it annotates some of its functions and not others."""
    try:
        import trimesh
    except ImportError as error:
        raise RuntimeUnavailableError(
            f"trimesh, which writes PLY and GLB, can't be imported: {error}",
            "pip install 'vggt-deploy[cpu]'",
        ) from error
    return trimesh


def _rgba(rgb: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Colours 0..1 -> bytes with full opacity."""
    opaque = np.ones((len(rgb), 1), dtype=rgb.dtype)
    rgba: NDArray[np.uint8] = np.rint(np.hstack([rgb, opaque]) * 255).astype(np.uint8)
    return rgba
