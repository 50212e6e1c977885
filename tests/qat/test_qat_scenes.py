"""What a step is shown: decided by its number alone, from pictures as they are on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vggt_deploy.compare.scenes import find_scenes
from vggt_deploy.errors import ImageError
from vggt_deploy.progress import silent
from vggt_deploy.qat.recipe import QatRecipe
from vggt_deploy.qat.scenes import (
    QatBatch,
    QatScene,
    probe_batches,
    qat_batch,
    read_scenes,
    usable_counts,
)


def same(a: QatBatch, b: QatBatch) -> bool:
    return np.array_equal(a.images, b.images) and np.array_equal(a.dense_frames, b.dense_frames)


def test_pictures_are_the_bytes_on_disk(
    qat_scenes: tuple[QatScene, ...], scene_folder: Path
) -> None:
    found = find_scenes(None, [scene_folder], max_images=None)
    assert len(found) == len(qat_scenes) == 3
    for scene, on_disk in zip(qat_scenes, found, strict=True):
        for image, path in zip(scene.images, on_disk.images.paths, strict=True):
            assert np.array_equal(image, np.asarray(Image.open(path).convert("RGB")))
        assert len(scene.sha256) == len(scene.images) == 4
        assert scene.truth is not None


def test_a_step_depends_on_its_number_alone(
    qat_scenes: tuple[QatScene, ...], qat_recipe: QatRecipe
) -> None:
    again = qat_batch(qat_scenes, qat_recipe, 3, 1)
    assert same(qat_batch(qat_scenes, qat_recipe, 3, 1), again)
    assert not same(qat_batch(qat_scenes, qat_recipe, 3, 0), again)
    assert not same(qat_batch(qat_scenes, qat_recipe, 4, 1), again)
    assert not same(qat_batch(qat_scenes, replace(qat_recipe, seed=9), 3, 1), again)


def test_shards_have_as_many_views(qat_scenes: tuple[QatScene, ...], qat_recipe: QatRecipe) -> None:
    seen = set()
    for step in range(12):
        shapes = {qat_batch(qat_scenes, qat_recipe, step, shard).images.shape for shard in (0, 1)}
        assert len(shapes) == 1
        (shape,) = shapes
        assert shape[0] * shape[1] == 4
        seen.add(shape[1])
    assert seen == {2, 4}


def test_probes_stay_the_same_and_are_not_recoloured(
    qat_scenes: tuple[QatScene, ...], qat_recipe: QatRecipe
) -> None:
    first, second = probe_batches(qat_scenes, qat_recipe)
    assert same(first, probe_batches(qat_scenes, qat_recipe)[0])
    assert (first.images.shape[1], second.images.shape[1]) == (2, 4)
    stored = {picture.tobytes() for scene in qat_scenes for picture in scene.images}
    shown = np.rint(np.moveaxis(first.images[0], 1, -1) * 255).astype(np.uint8)
    assert all(picture.tobytes() in stored for picture in shown)


def test_scenes_of_few_pictures(qat_scenes: tuple[QatScene, ...], qat_recipe: QatRecipe) -> None:
    few = tuple(replace(scene, images=scene.images[:3], truth=None) for scene in qat_scenes)
    assert usable_counts(few, qat_recipe.batch) == (2,)
    assert qat_batch(few, qat_recipe, 0, 0).images.shape[:2] == (2, 2)
    single = tuple(replace(scene, images=scene.images[:1], truth=None) for scene in qat_scenes)
    with pytest.raises(ImageError, match="the largest scene has 1 pictures"):
        qat_batch(single, qat_recipe, 0, 0)


def test_truth_goes_with_its_scene(
    without_truth: tuple[QatScene, ...], qat_recipe: QatRecipe
) -> None:
    """`known` names the scenes whose targets are given, and only those."""
    middle = {picture.tobytes() for picture in without_truth[1].images}
    plain = replace(
        qat_recipe, colour=replace(qat_recipe.colour, permute=0.0, gamma=0.0, gain=0.0,
        contrast=0.0, balance=0.0, frame_gain=0.0, noise=0.0, blur=0.0),
    )  # fmt: skip
    found = 0
    for step in range(8):
        batch = qat_batch(without_truth, plain, step, 0)
        pictures = np.rint(np.moveaxis(batch.images, 2, -1) * 255).astype(np.uint8)
        of_middle = [i for i, views in enumerate(pictures) if views[0].tobytes() in middle]
        assert batch.known.tolist() == of_middle
        assert (batch.targets is None) == (not of_middle)
        if batch.targets is not None:
            assert len(batch.targets.pose) == len(of_middle)
            found += 1
    assert 0 < found < 8


def test_a_picture_that_is_broken(tmp_path: Path) -> None:
    folder = tmp_path / "scene"
    folder.mkdir()
    Image.new("RGB", (56, 42)).save(folder / "a.png")
    Image.new("RGB", (56, 42)).save(folder / "b.png")
    (folder / "c.png").write_bytes(b"no picture")
    found = find_scenes(folder, (), max_images=None)
    with pytest.raises(ImageError, match=r"c\.png"):
        read_scenes(found, 42, 56, "crop", with_truth=False, skip_bad=False, progress=silent)
    (scene,) = read_scenes(found, 42, 56, "crop", with_truth=False, skip_bad=True, progress=silent)
    assert len(scene.images) == len(scene.sha256) == 2
