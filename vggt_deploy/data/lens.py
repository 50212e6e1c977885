"""Camera models: rays through points of a picture, and where a ray meets the picture.

A ray is (x / z, y / z) in the camera's axes; a point is in pixels, the first pixel's centre at
(0.5, 0.5). PINHOLE and SIMPLE_PINHOLE are a division and a product. All other models are COLMAP's
own code (pycolmap, extra `eth3d`), among them ETH3D's THIN_PRISM_FISHEYE:

    (u, v) = (x, y) atan(r) / r    with r^2 = x^2 + y^2 of the ray, and rho^2 = u^2 + v^2
    u' = u (1 + k1 rho^2 + k2 rho^4 + k3 rho^6 + k4 rho^8)
         + 2 p1 u v + p2 (rho^2 + 2 u^2) + sx1 rho^2
    v' = the same in v, + p1 (rho^2 + 2 v^2) + 2 p2 u v + sy1 rho^2
    point = (fx u' + cx, fy v' + cy)

Its polynomial is not monotone, so far outside the picture two rays meet one point; and COLMAP's
inverse is an iteration that can end elsewhere. What does not survive the way back is NaN here.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vggt_deploy.data.colmap import ColmapCamera
from vggt_deploy.errors import SceneError
from vggt_deploy.geometry import Doubles

# How far the way back may end from its start, in pixels. Converged iterations end within 1e-6.
_WAY_BACK_PX = 1e-3
_FIX = "pip install 'vggt-deploy[eth3d]', or use the undistorted pictures and their own depth"


def rays_of(camera: ColmapCamera, points: Doubles) -> Doubles:
    """Points [N, 2] in pixels -> rays [N, 2]; NaN where no ray meets the point.

    Raises:
        SceneError: a model that COLMAP does not know, or pycolmap is missing.
    """
    if camera.is_pinhole:
        return _pinhole_rays(camera, points)
    camera.linear_part()  # refuses models that are not COLMAP's
    lens = _lens(camera)
    rays: Doubles = lens.cam_from_img(np.ascontiguousarray(points, dtype=np.float64))
    return _where_close(rays, _meet(lens, rays), points)


def points_of(camera: ColmapCamera, rays: Doubles) -> Doubles:
    """Rays [N, 2] -> points [N, 2] in pixels; NaN where the model has none for the ray.

    Raises:
        SceneError: a model that COLMAP does not know, or pycolmap is missing.
    """
    if camera.is_pinhole:
        k = camera.intrinsic()
        return np.asarray(rays * k.diagonal()[:2] + k[:2, 2])
    focal = camera.linear_part().diagonal()[:2]
    lens = _lens(camera)
    points = _meet(lens, rays)
    # Far outside, the polynomial may bring a ray back into the picture: then it is another ray's.
    back: Doubles = lens.cam_from_img(points)
    return _where_close(points, back * focal, rays * focal)


def _pinhole_rays(camera: ColmapCamera, points: Doubles) -> Doubles:
    k = camera.intrinsic()
    return np.asarray((points - k[:2, 2]) / k.diagonal()[:2])


def _meet(lens: Any, rays: Doubles) -> Doubles:
    points: Doubles = lens.img_from_cam(np.column_stack([rays, np.ones(len(rays))]))
    return points


def _where_close(values: Doubles, found: Doubles, wanted: Doubles) -> Doubles:
    """Rows of `values` [N, 2] where `found` is `wanted`, both in pixels; NaN elsewhere."""
    with np.errstate(all="ignore"):  # rays at the end of what a float holds
        close = np.hypot(*(found - wanted).T) <= _WAY_BACK_PX  # False for NaN
    return np.where(close[:, None], values, np.nan)


def _lens(camera: ColmapCamera) -> Any:
    """COLMAP's own camera, for a model that `ColmapCamera.linear_part` knows."""
    try:
        import pycolmap
    except ImportError as error:
        raise SceneError(
            f"camera {camera.id} has the model {camera.model}, which needs pycolmap ({error})", _FIX
        ) from error
    return pycolmap.Camera(
        model=camera.model,
        width=camera.width,
        height=camera.height,
        params=list(camera.params),
    )
