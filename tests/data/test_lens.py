"""Camera models: against the numbers published for ETH3D's lens, a formula of our own, and back."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vggt_deploy.data.colmap import ColmapCamera
from vggt_deploy.data.lens import points_of, rays_of
from vggt_deploy.errors import SceneError

Doubles = NDArray[np.float64]
# Camera 0 of courtyard, in both of its calibrations.
SHOT = ColmapCamera(
    0,
    "THIN_PRISM_FISHEYE",
    6048,
    4032,
    (
        3411.42, 3410.02, 3041.29, 2014.07,
        0.21047, 0.21102, -5.36231e-06, 0.00051541, -0.158023, 0.406856, -8.46499e-05, 0.000861313,
    ),
)  # fmt: skip
UNDISTORTED = ColmapCamera(0, "PINHOLE", 6198, 4129, (3411.42, 3410.02, 3116.72, 2062.52))


def by_formula(camera: ColmapCamera, rays: Doubles) -> Doubles:
    """The projection written out again, after COLMAP's description of the model."""
    fx, fy, cx, cy, k1, k2, p1, p2, k3, k4, sx1, sy1 = camera.params
    out = []
    for x, y in rays:
        r = np.sqrt(x * x + y * y)
        turn = np.arctan(r) / r if r > 0 else 1.0
        u, v = x * turn, y * turn
        rr = u * u + v * v
        radial = rr * (k1 + rr * (k2 + rr * (k3 + rr * k4)))
        du = u * radial + 2 * p1 * u * v + p2 * (rr + 2 * u * u) + sx1 * rr
        dv = v * radial + 2 * p2 * u * v + p1 * (rr + 2 * v * v) + sy1 * rr
        out.append((fx * (u + du) + cx, fy * (v + dv) + cy))
    return np.array(out)


def far_off(camera: ColmapCamera) -> float:
    """Largest distance, in pixels, of the undistorted picture's corners from the original's."""
    corners = np.array([[0.0, 0], [6198, 0], [0, 4129], [6198, 4129]])
    originals = np.array([[0.0, 0], [6048, 0], [0, 4032], [6048, 4032]])
    return float(np.abs(points_of(camera, rays_of(UNDISTORTED, corners)) - originals).max())


def test_the_corners_meet() -> None:
    assert far_off(SHOT) < 5
    # Twins: k3 and k4 where p1 and p2 belong; no distortion at all; another camera's centre.
    *linear, k1, k2, p1, p2, k3, k4, sx1, sy1 = SHOT.params
    mixed = replace(SHOT, params=(*linear, k1, k2, k3, k4, p1, p2, sx1, sy1))
    assert not far_off(mixed) < 50
    none = replace(SHOT, params=(*linear, *[0.0] * 8))
    assert far_off(none) > 50
    moved = replace(SHOT, params=(*linear[:2], 3116.72, 2062.52, *SHOT.params[4:]))
    assert far_off(moved) > 40


def test_the_middles_of_the_edges_lie_inside() -> None:
    middles = np.array([[3099.0, 0], [3099, 4129], [0, 2064.5], [6198, 2064.5]])
    points = points_of(SHOT, rays_of(UNDISTORTED, middles))
    inside = [points[0, 1], 4032 - points[1, 1], points[2, 0], 6048 - points[3, 0]]
    assert all(10 < value < 41 for value in inside)


@pytest.mark.parametrize("radius, percent", [(0.3, 0.9), (0.6, 2.8), (0.9, 3.6)])
def test_how_far_the_picture_is_from_a_pinholes(radius: float, percent: float) -> None:
    angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    rays = radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    shot = (points_of(SHOT, rays) - SHOT.params[2:4]) / SHOT.params[:2]
    off = np.linalg.norm(shot, axis=1).mean() / radius - 1
    assert percent <= -100 * off < percent + 0.1


SIDE = st.floats(-1.2, 1.2)
SMALL = st.floats(-0.02, 0.02)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(SIDE, SIDE), min_size=1, max_size=20), st.tuples(*[SMALL] * 8))
def test_two_implementations_agree(
    rays: list[tuple[float, float]], extra: tuple[float, ...]
) -> None:
    camera = replace(
        SHOT,
        params=(
            *SHOT.params[:4],
            *(float(a + b) for a, b in zip(SHOT.params[4:], extra, strict=True)),
        ),
    )
    wanted = by_formula(camera, np.array(rays))
    found = points_of(camera, np.array(rays))
    known = ~np.isnan(found).any(axis=1)
    np.testing.assert_allclose(found[known], wanted[known], atol=1e-6)
    within = (wanted > 0).all(axis=1) & (wanted < (6048, 4032)).all(axis=1)
    assert known[within].all()


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.floats(0, 6048), st.floats(0, 4032)), min_size=1, max_size=20))
def test_there_and_back(points: list[tuple[float, float]]) -> None:
    given_points = np.array(points)
    for camera in (SHOT, UNDISTORTED, ColmapCamera(1, "SIMPLE_PINHOLE", 9, 8, (7.0, 5.0, 4.0))):
        rays = rays_of(camera, given_points)
        np.testing.assert_allclose(points_of(camera, rays), given_points, atol=1e-4)
    # By the formula of our own, too; and the twin, a ray of the pinhole camera.
    np.testing.assert_allclose(
        by_formula(SHOT, rays_of(SHOT, given_points)), given_points, atol=1e-4
    )
    linear = (given_points - SHOT.params[2:4]) / SHOT.params[:2]
    far = np.linalg.norm(linear, axis=1) > 0.3
    assert (np.abs(by_formula(SHOT, linear) - given_points).max(axis=1)[far] > 5).all()


def test_a_ray_that_is_folded_back_has_no_point() -> None:
    """With this k1 the radius grows up to a ray of about 0.75, and shrinks from there on."""
    folding = replace(SHOT, params=(*SHOT.params[:4], -0.8, *[0.0] * 7))
    near, far = np.array([[0.3, 0.0]]), np.array([[1.5, 0.0]])
    assert np.isfinite(points_of(folding, near)).all()
    x, _ = by_formula(folding, far)[0]
    assert 0 < x < 6048  # by the formula alone, it would be within the picture
    assert np.isnan(points_of(folding, far)).all()


def test_points_that_no_ray_meets_and_values_that_are_none() -> None:
    folding = replace(SHOT, params=(*SHOT.params[:4], -0.8, *[0.0] * 7))
    assert np.isnan(rays_of(folding, np.array([[6000.0, 2000.0]]))).all()
    for camera in (SHOT, UNDISTORTED):
        for way in (rays_of, points_of):
            assert np.isnan(way(camera, np.array([[np.nan, 1.0]]))).any()
            assert way(camera, np.empty((0, 2))).shape == (0, 2)


@pytest.mark.parametrize("size", [1e3, 1e9, 1e160, 1e300])
def test_rays_far_from_the_picture_have_no_point_in_it(size: float) -> None:
    directions = np.array([[1.0, 0], [-1, 0], [0, 1], [0.6, -0.8]])
    points = points_of(SHOT, size * directions)
    assert not ((points >= 0) & (points <= (6048, 4032))).all(axis=1).any()
    if size > 1e8:  # as pixels
        assert np.isnan(rays_of(SHOT, size * directions)).all()


def test_an_inverse_that_ended_elsewhere_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As COLMAP's iteration may, in versions that return its last step."""

    class Lens:
        def __init__(self, **_: object) -> None:
            self.params = SHOT.params

        def cam_from_img(self, points: Doubles) -> Doubles:
            rays = (points - SHOT.params[2:4]) / SHOT.params[:2]  # right at the centre alone
            return np.asarray(rays)

        def img_from_cam(self, points: Doubles) -> Doubles:
            return by_formula(SHOT, points[:, :2])

    monkeypatch.setitem(sys.modules, "pycolmap", SimpleNamespace(Camera=Lens))
    rays = rays_of(SHOT, np.array([SHOT.params[2:4], (4000.0, 3000.0)]))
    np.testing.assert_allclose(rays[0], 0, atol=1e-12)
    assert np.isnan(rays[1]).all()


def test_without_pycolmap_pinholes_work_and_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pycolmap", None)
    points = np.array([[10.5, 20.5]])
    np.testing.assert_allclose(points_of(UNDISTORTED, rays_of(UNDISTORTED, points)), points)
    for way in (rays_of, points_of):
        with pytest.raises(SceneError, match="THIN_PRISM_FISHEYE, which needs pycolmap") as caught:
            way(SHOT, points)
        assert "vggt-deploy[eth3d]" in caught.value.fix


def test_a_model_of_which_nothing_is_known() -> None:
    camera = ColmapCamera(3, "PERISCOPE", 10, 8, (7.0, 5.0, 4.0))
    for way in (rays_of, points_of):
        with pytest.raises(SceneError, match="camera 3 has the unknown model PERISCOPE"):
            way(camera, np.zeros((1, 2)))


MODELS = {
    "SIMPLE_RADIAL": (700.0, 320.0, 240.0, 0.02),
    "RADIAL": (700.0, 320.0, 240.0, 0.02, -0.01),
    "SIMPLE_RADIAL_FISHEYE": (700.0, 320.0, 240.0, 0.02),
    "RADIAL_FISHEYE": (700.0, 320.0, 240.0, 0.02, -0.01),
    "OPENCV": (700.0, 710.0, 320.0, 240.0, 0.02, -0.01, 1e-3, -1e-3),
    "OPENCV_FISHEYE": (700.0, 710.0, 320.0, 240.0, 0.02, -0.01, 1e-3, -1e-3),
    "FULL_OPENCV": (700.0, 710.0, 320.0, 240.0, 0.02, -0.01, 1e-3, -1e-3, *[1e-3] * 4),
    "FOV": (700.0, 710.0, 320.0, 240.0, 0.5),
}


@pytest.mark.parametrize("model", MODELS)
def test_other_lenses_have_their_focal_lengths_in_front(model: str) -> None:
    """At the principal point, and in direction beside it, a lens is its linear part."""
    camera = ColmapCamera(0, model, 640, 480, MODELS[model])
    linear = camera.linear_part()
    np.testing.assert_allclose(points_of(camera, np.zeros((1, 2))), linear[None, :2, 2])
    step = 1e-5
    slopes = points_of(camera, step * np.eye(2)) - linear[:2, 2]
    factor = slopes[0, 0] / (step * linear[0, 0])  # FOV's own scale at the centre is not 1
    np.testing.assert_allclose(slopes, step * factor * np.diag(linear.diagonal()[:2]), atol=1e-6)
    assert factor == pytest.approx(1, abs=0.1)
    far = np.array([[0.6, 0.3]])
    assert np.abs(points_of(camera, far) - far @ linear[:2, :2] - linear[:2, 2]).max() > 0.5
