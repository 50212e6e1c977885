"""Rendered scenes: the truth about them is exact, and a seed means one scene."""

from __future__ import annotations

from collections import Counter
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vggt_deploy.data.synthetic import FAMILIES, HELD_OUT, SceneViews, families, render_views
from vggt_deploy.data.synthetic.families import make_stage
from vggt_deploy.data.synthetic.paths import draw_cameras, look_at
from vggt_deploy.data.synthetic.render import Camera, Light, Scene, depth_of, nearest, render
from vggt_deploy.data.synthetic.shapes import Shape, hit, may_hit, surface, tilt, yaw
from vggt_deploy.data.synthetic.textures import PATTERNS, Texture, colours, draw_texture
from vggt_deploy.errors import UsageError

HEIGHT, WIDTH = 42, 56
TEXTURE = Texture("plaster", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), 0.3, 1.0, 0.2)
LIGHT = Light(np.array([0.5, -0.5, 2.2]), 0.5, 0.8, 3.0, 1.8, (0.6, 0.7, 0.9), 5.0)
EVERY = (*FAMILIES, HELD_OUT)


@cache
def views(seed: int, family: str | None = None) -> SceneViews:
    return render_views(seed, views=3, height=HEIGHT, width=WIDTH, family=family)


def points_of(scene: SceneViews, frame: int, *, wrong: str = "") -> np.ndarray:
    """World points [P, 3] of the pixels whose depth is known, from depth and camera alone."""
    half = 0.0 if wrong == "half a pixel" else 0.5
    v, u = np.mgrid[:HEIGHT, :WIDTH] + half
    rays = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(scene.intrinsic[frame]).T
    known = np.isfinite(scene.depth[frame])
    in_camera = scene.depth[frame][known].astype(float)[:, None] * rays[known]
    rotation, translation = scene.extrinsic[frame][:, :3], scene.extrinsic[frame][:, 3]
    if wrong == "camera to world":
        return in_camera @ rotation.T + translation
    if wrong == "transposed rotation":
        return (in_camera - translation) @ rotation.T
    return (in_camera - translation) @ rotation


def stage_of(seed: int, family: str) -> tuple[Scene, tuple[Camera, ...]]:
    """The scene and cameras that `render_views` draws for the seed."""
    import zlib

    rng = np.random.default_rng([seed, zlib.crc32(family.encode())])
    stage = make_stage(family, rng)
    return stage.scene, draw_cameras(stage, rng, 3, HEIGHT, WIDTH)


def seen_from(scene: Scene, camera: Camera, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points [P, 3] -> their depth in the camera, and that of what the camera sees there."""
    local = points @ camera.extrinsic[:, :3].T + camera.extrinsic[:, 3]
    at = local @ camera.intrinsic.T
    with np.errstate(divide="ignore", invalid="ignore"):
        u, v = at[:, 0] / at[:, 2], at[:, 1] / at[:, 2]
    inside = (local[:, 2] > 0.05) & (u > 0) & (v > 0) & (u < camera.width) & (v < camera.height)
    rays = camera.rays(u[inside], v[inside])
    owner = nearest(scene, camera.centre, rays)
    return local[inside, 2], depth_of(scene, camera.centre, rays, owner)


@pytest.mark.parametrize("family", EVERY)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_depth_and_pose_land_on_the_same_world_point_in_another_view(
    family: str, seed: int
) -> None:
    """Nothing lies between a point and a camera that sees it, and nothing seen lies behind it."""
    scene_views = views(seed, family)
    scene, cameras = stage_of(seed, family)
    assert np.array_equal(cameras[1].extrinsic, scene_views.extrinsic[1])
    z, seen = seen_from(scene, cameras[1], points_of(scene_views, 0))
    assert len(z) > 200
    # float32 depth: a point on an outline may be missed by a hair from elsewhere, and no other.
    assert np.mean(seen > z * (1 + 2e-5)) < 0.01
    same = seen >= z * (1 - 2e-5)
    assert same.mean() > 0.4


@pytest.mark.parametrize("wrong", ["half a pixel", "camera to world", "transposed rotation"])
def test_a_wrong_convention_does_not_reproject(wrong: str) -> None:
    family, seed = "room", 0
    scene_views = views(seed, family)
    scene, cameras = stage_of(seed, family)
    z, seen = seen_from(scene, cameras[1], points_of(scene_views, 0, wrong=wrong))
    assert len(z) == 0 or (np.abs(seen - z) <= 2e-5 * z).mean() < 0.1


def test_a_seed_is_one_scene() -> None:
    again = render_views(5, views=3, height=HEIGHT, width=WIDTH)
    for name in ("images", "depth", "extrinsic", "intrinsic"):
        assert np.array_equal(getattr(again, name), getattr(views(5), name))
    assert not np.array_equal(views(5).images, views(6).images)
    assert again.images.dtype == np.uint8
    assert again.depth.dtype == np.float32
    assert again.extrinsic.dtype == again.intrinsic.dtype == np.float64


def test_training_families_never_draw_the_held_out_one() -> None:
    drawn = Counter(
        FAMILIES[int(np.random.default_rng([seed, 1]).integers(len(FAMILIES)))]
        for seed in range(300)
    )
    assert HELD_OUT not in FAMILIES
    assert set(drawn) == set(FAMILIES)
    assert min(drawn.values()) > 60
    assert {views(seed).family for seed in range(4)} <= set(FAMILIES)


def test_hard_scenes_are_drawn_and_named() -> None:
    found: Counter[str] = Counter()
    for seed in range(400):
        stage = make_stage("room", np.random.default_rng(seed))
        found.update(stage.traits or ("plain",))
    assert set(found) == {*families.TRAITS, "plain"}
    assert min(found[trait] for trait in families.TRAITS) > 10


def drawn_with(family: str, *traits: str) -> families.Stage:
    return families._MAKERS[family](np.random.default_rng(3), traits)


@pytest.mark.parametrize("family", EVERY)
def test_traits_change_the_scene(family: str) -> None:
    def patterns(stage: families.Stage) -> list[str]:
        return [shape.texture.pattern for shape in stage.scene.shapes]

    plain, flat = drawn_with(family), drawn_with(family, "textureless")
    assert patterns(plain).count("flat") == 0
    assert patterns(flat).count("flat") >= 2
    assert len(set(patterns(drawn_with(family, "repeated")))) == 1
    widths = [min(s.half[:2]) for s in drawn_with(family, "thin").scene.shapes]
    size = max(drawn_with(family, "thin").standing)
    assert sum(width < 0.03 * size for width in widths) >= 5


def test_wide_paths_are_wider() -> None:
    def turn(traits: tuple[str, ...]) -> float:
        """Mean angle between first and last view, degrees."""
        angles = []
        for seed in range(25):
            rng = np.random.default_rng(seed)
            stage = families._MAKERS["tabletop"](rng, traits)
            first, *_, last = draw_cameras(stage, rng, 3, HEIGHT, WIDTH)
            cosine = first.extrinsic[2, :3] @ last.extrinsic[2, :3]
            angles.append(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
        return float(np.mean(angles))

    assert turn(("wide",)) > 1.25 * turn(())


@pytest.mark.parametrize("family", EVERY)
def test_cameras_are_cameras(family: str) -> None:
    scene_views = views(1, family)
    for extrinsic, intrinsic in zip(scene_views.extrinsic, scene_views.intrinsic, strict=True):
        rotation = extrinsic[:, :3]
        assert np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(rotation) > 0
        assert rotation[1, 2] < -0.5  # the picture's y axis points down in a world with z up
        assert (intrinsic[0, 2], intrinsic[1, 2]) == (WIDTH / 2, HEIGHT / 2)
        assert intrinsic[0, 0] == intrinsic[1, 1] > 0
    assert np.isinf(scene_views.depth).any() == (family == "yard")
    assert (scene_views.depth > 0.05).all()


def test_look_at_puts_the_target_in_the_middle() -> None:
    target = np.array([0.3, 0.2, 0.7])
    pose = look_at(np.array([2.0, -1.0, 1.5]), target, roll_rad=0.2)
    x, y, z = pose[:, :3] @ target + pose[:, 3]
    assert abs(x) < 1e-12
    assert abs(y) < 1e-12
    assert z > 0


# --- shapes ------------------------------------------------------------------------------------

UNIT = st.floats(-1, 1)
ANGLE = st.floats(-3, 3)


@st.composite
def shape_and_rays(draw: st.DrawFn) -> tuple[Shape, np.ndarray, np.ndarray]:
    """A turned solid near the origin, an eye outside of it, and rays roughly towards it."""
    kind = draw(st.sampled_from(["box", "sphere", "cylinder"]))
    a, b, c = (draw(st.floats(0.05, 1.0)) for _ in range(3))
    half = {"box": (a, b, c), "sphere": (a, a, a), "cylinder": (a, a, c)}[kind]
    rotation = yaw(draw(ANGLE)) @ tilt(draw(ANGLE))
    centre = np.array([draw(UNIT), draw(UNIT), draw(UNIT)])
    shape = Shape(kind, centre, np.array(half), rotation, TEXTURE)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    eye = rng.normal(size=3)
    eye = centre + eye / np.linalg.norm(eye) * (shape.radius + draw(st.floats(0.05, 3)))
    aims = centre[:, None] + rng.normal(0, 0.7 * shape.radius, (3, 64))
    return shape, eye, aims - eye[:, None]


def depth_inside(shape: Shape, points: np.ndarray) -> np.ndarray:
    """Signed: > 0 inside, 0 on the surface; in units of the half sizes, [N]."""
    local = shape.rotation.T @ (points - shape.centre[:, None])
    if shape.kind == "box":
        return 1 - np.abs(local / shape.half[:, None]).max(axis=0)
    if shape.kind == "sphere":
        return 1 - np.linalg.norm(local, axis=0) / shape.half[0]
    round_part = np.hypot(local[0], local[1]) / shape.half[0]
    return 1 - np.maximum(round_part, np.abs(local[2]) / shape.half[2])


@given(shape_and_rays())
@settings(max_examples=80, deadline=None)
def test_hits_are_the_first_points_of_the_solid(case: tuple[Shape, np.ndarray, np.ndarray]) -> None:
    shape, eye, rays = case
    t = hit(shape, eye, rays)
    found = np.isfinite(t)
    on = eye[:, None] + t[found] * rays[:, found]
    assert np.allclose(depth_inside(shape, on), 0, atol=1e-7)
    # Along the rest of each ray, and on the way to the hit, nothing is inside.
    reach = np.where(found, t, 2 + 6 / np.linalg.norm(rays, axis=0))
    for part in np.linspace(0, 0.999, 40):
        before = eye[:, None] + part * reach * rays
        assert (depth_inside(shape, before) < 1e-6).all()


@given(shape_and_rays())
@settings(max_examples=80, deadline=None)
def test_culling_never_loses_a_hit(case: tuple[Shape, np.ndarray, np.ndarray]) -> None:
    shape, eye, rays = case
    kept = may_hit(shape, eye, rays)
    found = np.flatnonzero(np.isfinite(hit(shape, eye, rays)))
    assert kept is None or set(found) <= set(kept)
    away = may_hit(shape, eye, -np.abs(rays) * np.sign(shape.centre - eye)[:, None])
    assert away is None or away.size == 0  # straight away from it: nothing is kept


@given(shape_and_rays())
@settings(max_examples=60, deadline=None)
def test_normals_are_unit_and_face_the_viewer(case: tuple[Shape, np.ndarray, np.ndarray]) -> None:
    shape, eye, rays = case
    t = hit(shape, eye, rays)
    found = np.isfinite(t)
    points = eye[:, None] + t[found] * rays[:, found]
    u, v, normals = surface(shape, points)
    assert u.shape == v.shape == t[found].shape
    assert np.allclose(np.linalg.norm(normals, axis=0), 1, atol=1e-6)
    # At an edge two faces meet and either may be named; away from edges the side that is seen is.
    inward = depth_inside(shape, points - 1e-4 * shape.half.min() * normals)
    outward = depth_inside(shape, points + 1e-4 * shape.half.min() * normals)
    assert (inward > -1e-6).all()
    assert (outward < 1e-9).all()


def test_a_sphere_has_the_depth_of_its_formula() -> None:
    centre, radius = np.array([0.0, 4.0, 1.0]), 0.8
    ball = Shape("sphere", centre, np.full(3, radius), np.eye(3), TEXTURE)
    pose = look_at(np.array([0.0, 0.0, 1.0]), centre)
    camera = Camera(pose, np.array([[50.0, 0, 28], [0, 50, 21], [0, 0, 1]]), HEIGHT, WIDTH)
    _, depth = render(Scene((ball,), LIGHT), camera)
    v, u = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    x, y = (u - 28) / 50, (v - 21) / 50
    # |z (x, y, 1) - (0, 0, 4)| = r
    a = x * x + y * y + 1
    inner = 16 - a * (16 - radius**2)
    expected = np.where(inner > 0, (4 - np.sqrt(np.maximum(inner, 0))) / a, np.inf)
    assert np.array_equal(np.isfinite(depth), np.isfinite(expected))
    seen = np.isfinite(depth)
    assert np.allclose(depth[seen], expected[seen], rtol=2e-7)
    assert not np.allclose(depth[seen], np.sqrt(a[seen]) * expected[seen], rtol=1e-4)  # ray length


def test_a_room_is_seen_from_within() -> None:
    room = Shape("box", np.zeros(3), np.array([2.0, 3.0, 1.5]), np.eye(3), TEXTURE, inside=True)
    rays = np.array([[1.0, 0, 0], [0, -1, 0], [0, 0, 1]]).T
    assert np.allclose(hit(room, np.array([0.5, 0, 0]), rays), [1.5, 3.0, 1.5])
    _, _, normals = surface(room, np.array([[2.0], [0.3], [0.2]]))
    assert np.allclose(normals[:, 0], [-1, 0, 0])


# --- pictures ----------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_give_colours(pattern: str) -> None:
    rng = np.random.default_rng(1)
    texture = draw_texture(rng, 1.0, (pattern,))  # type: ignore[arg-type]
    u, v = rng.uniform(-5, 5, (2, 2000)).astype(np.float32)
    shown = colours(texture, u, v)
    assert shown.shape == (3, 2000)
    assert shown.dtype == np.float32
    assert shown.min() >= 0
    assert shown.max() <= 1
    assert np.array_equal(shown, colours(texture, u, v))
    assert shown.std() > (0.001 if pattern == "flat" else 0.005)


def test_edges_are_drawn_with_more_rays() -> None:
    """Against 6 x 6 rays for every pixel; one ray for every pixel is much farther from that."""
    scene, (camera, *_) = stage_of(0, "room")
    picture = render(scene, camera)[0].astype(float)
    fine_k = camera.intrinsic * np.array([[6.0], [6.0], [1.0]])
    fine = render(scene, Camera(camera.extrinsic, fine_k, 6 * HEIGHT, 6 * WIDTH))[0]
    linear = (fine / 255.0) ** scene.light.gamma
    mean = linear.reshape(HEIGHT, 6, WIDTH, 6, 3).mean(axis=(1, 3))
    expected = 255 * mean ** (1 / scene.light.gamma)
    single = fine[3::6, 3::6].astype(float)
    error, error_of_single = (np.abs(p - expected).mean() for p in (picture, single))
    assert error < 0.7 * error_of_single


def test_shadows_fall_away_from_the_lamp() -> None:
    floor = Shape("box", np.array([0, 0, -0.1]), np.array([9.0, 9, 0.1]), np.eye(3),
                  Texture("flat", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 1.0, 0.0, 0.0))  # fmt: skip
    ball = Shape("sphere", np.array([0.0, 0, 1.0]), np.full(3, 0.4), np.eye(3), TEXTURE)
    light = Light(np.array([0.0, 0.0, 3.0]), 0.2, 1.0, 50.0, 1.0, (0, 0, 0), 1e9)
    pose = look_at(np.array([0.0, -6.0, 2.0]), np.array([0.0, 0.0, 0.0]))
    camera = Camera(pose, np.array([[60.0, 0, 28], [0, 60, 21], [0, 0, 1]]), HEIGHT, WIDTH)

    def brightness(scene: Scene, x: float, y: float) -> float:
        u, v, z = camera.intrinsic @ (pose[:, :3] @ np.array([x, y, 0.0]) + pose[:, 3])
        return float(render(scene, camera)[0][int(v / z), int(u / z), 0])

    both, alone = Scene((floor, ball), light), Scene((floor,), light)
    assert brightness(both, 0.0, -0.35) < 0.8 * brightness(alone, 0.0, -0.35)
    assert brightness(both, 2.0, -0.35) == brightness(alone, 2.0, -0.35)


def test_the_air_takes_colour_with_distance() -> None:
    """A wall of one colour, lit from everywhere alone: wall exp(-d / h) + sky (1 - exp(-d / h))."""
    red = Texture("flat", (0.8, 0.2, 0.1), (0.8, 0.2, 0.1), 1.0, 0.0, 0.0)
    wall = Shape("box", np.array([0.0, 5.0, 0.0]), np.array([9.0, 1.0, 9.0]), np.eye(3), red)
    light = Light(np.array([0.0, 0.0, 3.0]), 1.0, 0.0, 1.0, 1.0, (0.5, 0.6, 0.7), 2.0)
    camera = Camera(
        look_at(np.zeros(3), np.array([0.0, 5.0, 0.0])),
        np.array([[40.0, 0, 28], [0, 40, 21], [0, 0, 1]]), HEIGHT, WIDTH,
    )  # fmt: skip
    picture, depth = render(Scene((wall,), light), camera)
    assert np.allclose(depth, 4.0)
    for v, u in ((21, 28), (0, 0)):
        distance = 4 * np.hypot(np.hypot((u + 0.5 - 28) / 40, (v + 0.5 - 21) / 40), 1)
        clear = np.exp(-distance / 2)
        expected = clear * np.array([0.8, 0.2, 0.1]) + (1 - clear) * np.array([0.5, 0.6, 0.7])
        assert np.abs(picture[v, u] / 255 - expected).max() < 0.004
        assert np.abs(picture[v, u] / 255 - (0.8, 0.2, 0.1)).max() > 0.1


@pytest.mark.parametrize(
    "arguments",
    [
        {"seed": -1},
        {"views": 0},
        {"height": 4},
        {"family": "castle"},
    ],
)
def test_what_cannot_be_rendered_is_refused(arguments: dict[str, object]) -> None:
    request: dict[str, object] = {"seed": 1, "views": 1, "height": 28, "width": 28, **arguments}
    with pytest.raises(UsageError):
        render_views(**request)  # type: ignore[arg-type]
