from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from vggt_deploy.geometry import pose_encoding_to_camera, unproject_depth
from vggt_deploy.train.batches import (
    Scenes,
    Targets,
    draw_scenes,
    in_first_camera,
    make_targets,
    mirrored,
    training_batch,
    view_window,
)
from vggt_deploy.train.pool import ScenePool
from vggt_deploy.train.recipe import TrainingRecipe


@pytest.fixture
def scenes(tiny_pool: ScenePool) -> Scenes:
    """4 scenes of 3 views with exact depth (the pool's is float16)."""
    drawn = draw_scenes(tiny_pool, 4, 3, 6, np.random.default_rng(0))
    # The plane z = 4 again, in float32: z = (4 - c_z) / (R^T ray)_z.
    height, width = drawn.depth.shape[2:]
    v, u = np.mgrid[:height, :width] + 0.5
    pixels = np.stack([u, v, np.ones_like(u)], axis=-1)
    depth = np.empty(drawn.depth.shape, np.float32)
    for index in np.ndindex(drawn.depth.shape[:2]):
        rays = pixels @ np.linalg.inv(drawn.intrinsic[index]).T @ drawn.extrinsic[index][:, :3]
        centre = -drawn.extrinsic[index][:, :3].T @ drawn.extrinsic[index][:, 3]
        depth[index] = (4 - centre[2]) / rays[..., 2]
    depth[~np.isfinite(drawn.depth)] = np.inf
    return replace(drawn, depth=depth)


def plane_heights(scenes: Scenes, shift: float = 0.5) -> NDArray[np.float64]:
    """World z of every known pixel; 4 if images, depth and cameras fit one another."""
    found = []
    for depth, extrinsic, intrinsic in zip(
        scenes.depth, scenes.extrinsic, scenes.intrinsic, strict=True
    ):
        intrinsic = intrinsic.copy()
        # `unproject_depth` has whole pixels: the half goes into the principal point.
        intrinsic[:, :2, 2] -= shift
        known = np.isfinite(depth)
        points = unproject_depth(np.where(known, depth, 1).astype(np.float64), extrinsic, intrinsic)
        found.append(points[known][:, 2])
    return np.concatenate(found)


def test_a_mirrored_scene_is_a_scene(scenes: Scenes) -> None:
    which = np.array([True, False, True, True])
    mirror = mirrored(scenes, which)
    np.testing.assert_allclose(plane_heights(mirror), 4, atol=1e-5)
    assert np.linalg.det(mirror.extrinsic[..., :3]) == pytest.approx(1)
    np.testing.assert_array_equal(mirror.images[0], scenes.images[0][:, :, ::-1])
    np.testing.assert_array_equal(mirror.images[1], scenes.images[1])
    # The camera goes the other way along x, and nowhere else.
    path, back = (
        -np.einsum("...ji,...j->...i", s.extrinsic[..., :3], s.extrinsic[..., 3])
        for s in (scenes, mirror)
    )
    np.testing.assert_allclose(back[which], path[which] * [-1, 1, 1], atol=1e-12)
    again = mirrored(mirror, which)
    np.testing.assert_allclose(again.extrinsic, scenes.extrinsic)
    np.testing.assert_allclose(again.intrinsic, scenes.intrinsic)


@pytest.mark.parametrize("wrong", ["principal point", "extrinsic", "depth"])
def test_a_mirror_that_forgets_something_is_seen(scenes: Scenes, wrong: str) -> None:
    mirror = mirrored(scenes, np.ones(4, bool))
    broken = {
        "principal point": replace(mirror, intrinsic=scenes.intrinsic),
        "extrinsic": replace(mirror, extrinsic=scenes.extrinsic),
        "depth": replace(mirror, depth=scenes.depth),
    }[wrong]
    assert np.abs(plane_heights(broken) - 4).max() > 1e-3


def decoded_errors(targets: Targets, scale: float = 1.0, shift: float = 0.0) -> float:
    """Largest distance between the target points, and target depth unprojected by target poses."""
    worst = 0.0
    height, width = targets.depth.shape[2:]
    for pose, depth, points, valid in zip(
        targets.pose, targets.depth, targets.points, targets.valid, strict=True
    ):
        extrinsic, intrinsic = pose_encoding_to_camera(pose, height, width)
        intrinsic[:, :2, 2] -= 0.5 + shift
        expected = unproject_depth(depth.astype(np.float64) * scale, extrinsic, intrinsic)
        worst = max(worst, float(np.abs(expected - points)[valid].max()))
    return worst


def test_pose_depth_and_points_say_the_same(scenes: Scenes) -> None:
    intrinsic = scenes.intrinsic.copy()
    intrinsic[..., :2, 2] = np.array(scenes.depth.shape[:1:-1]) / 2  # a pose has no principal point
    targets = make_targets(replace(scenes, intrinsic=intrinsic))
    assert decoded_errors(targets) < 1e-5
    assert decoded_errors(targets, scale=1.01) > 1e-3
    assert decoded_errors(targets, shift=0.5) > 1e-3
    turned = replace(targets, pose=targets.pose[..., [0, 1, 2, 6, 3, 4, 5, 7, 8]])
    assert decoded_errors(turned) > 1e-2  # w first
    swapped = replace(targets, pose=targets.pose[..., [0, 1, 2, 3, 4, 5, 6, 8, 7]])
    assert decoded_errors(swapped) > 1e-2  # horizontal field of view first


def test_the_first_view_is_the_world_and_the_mean_distance_the_unit(scenes: Scenes) -> None:
    targets = make_targets(scenes)
    np.testing.assert_allclose(targets.pose[:, 0, :7], [[0, 0, 0, 0, 0, 0, 1]] * 4, atol=1e-7)
    assert (targets.pose[..., 6] > 0).all()
    for points, depth, valid in zip(targets.points, targets.depth, targets.valid, strict=True):
        assert np.linalg.norm(points[valid], axis=-1).mean() == pytest.approx(1, abs=1e-5)
        np.testing.assert_allclose(points[0][..., 2], depth[0], atol=1e-6)
        assert not valid[:, : 42 // 12].any()
        assert valid[:, 42 // 12 :].all()
        assert (depth[~valid] == 0).all()
        assert (points[~valid] == 0).all()
    # Another world, another unit: the same targets.
    turn = scenes.extrinsic[0, 2]
    moved = scenes.extrinsic.copy()
    moved[..., 3] += (moved[..., :3] @ np.array([3.0, -2, 5])[:, None])[..., 0]
    moved[..., :3] = moved[..., :3] @ turn[:, :3]
    moved[..., 3] *= 2.5
    again = make_targets(replace(scenes, extrinsic=moved, depth=scenes.depth * np.float32(2.5)))
    np.testing.assert_allclose(again.pose, targets.pose, atol=1e-5)
    np.testing.assert_allclose(again.points, targets.points, atol=1e-5)


def test_target_points_project_onto_their_pixels_in_every_view(scenes: Scenes) -> None:
    """A world point that frame 0 sees is found by frame 1's camera where frame 1's map says."""
    targets = make_targets(scenes)
    extrinsic = in_first_camera(scenes.extrinsic)
    height, width = scenes.depth.shape[2:]
    v, u = np.mgrid[:height, :width] + 0.5
    for scene in range(4):
        unit = np.linalg.norm(extrinsic[scene, 1, :, 3]) / np.linalg.norm(
            targets.pose[scene, 1, :3]
        )
        for frame in range(3):
            camera = extrinsic[scene, frame]
            seen = targets.points[scene, frame] * unit @ camera[:, :3].T + camera[:, 3]
            known = targets.valid[scene, frame]
            pixel = seen[known] @ scenes.intrinsic[scene, frame].T
            found = pixel[:, :2] / pixel[:, 2:]
            np.testing.assert_allclose(found, np.stack([u, v], axis=-1)[known], atol=1e-3)


def test_a_batch_depends_on_step_and_shard_alone(
    tiny_pool: ScenePool, tiny_recipe: TrainingRecipe
) -> None:
    first, again, other_step, other_shard = (
        training_batch(tiny_pool, tiny_recipe, step, shard)
        for step, shard in ((3, 0), (3, 0), (4, 0), (3, 1))
    )
    np.testing.assert_array_equal(first.images, again.images)
    np.testing.assert_array_equal(first.targets.points, again.targets.points)
    np.testing.assert_array_equal(first.dense_frames, again.dense_frames)
    assert first.images.shape == other_shard.images.shape
    assert not np.array_equal(first.images, other_shard.images)
    assert first.images.shape != other_step.images.shape or not np.array_equal(
        first.images, other_step.images
    )


def test_all_view_counts_come_and_the_dense_frames_are_a_share(
    tiny_pool: ScenePool, tiny_recipe: TrainingRecipe
) -> None:
    counts = set()
    for step in range(6):
        batch = training_batch(tiny_pool, tiny_recipe, step, 0)
        scenes, views = batch.images.shape[:2]
        counts.add(views)
        assert scenes * views == 6
        assert len(batch.dense_frames) == 3
        assert all(a < b for a, b in pairwise(batch.dense_frames))
        assert batch.images.dtype == np.float32
        assert batch.images.min() >= 0
        assert batch.images.max() <= 1
    assert counts == {2, 3}


def test_the_window_grows_to_the_whole_path() -> None:
    assert [view_window(4, 8, 0.4, done) for done in (0, 0.2, 0.4, 1)] == [4, 6, 8, 8]
    assert view_window(3, 8, 0.0, 0.0) == 8


def test_views_are_drawn_from_the_window_without_repetition(tiny_pool: ScenePool) -> None:
    rng = np.random.default_rng(1)
    firsts = set()
    for _ in range(30):
        drawn = draw_scenes(tiny_pool, 5, 3, 4, rng)
        for images in drawn.images:
            places = [
                next(
                    view
                    for scene in tiny_pool.images
                    for view, known in enumerate(scene)
                    if np.array_equal(known, image)
                )
                for image in images
            ]
            assert len(set(places)) == 3
            assert max(places) - min(places) <= 3
            firsts.add(int(np.argsort(places)[0]))
    assert firsts == {0, 1, 2}  # any view may be the reference
