"""The pictures of quantization-aware training: read once, drawn anew for every step.

What a shard of a step sees depends on the recipe, the scenes, the step's number and the shard's
alone, so a run that is resumed, or that runs on another number of processes, sees the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vggt_deploy.compare.scenes import FoundScene
from vggt_deploy.data.ground_truth import ground_truth
from vggt_deploy.data.images import Mode, load_images
from vggt_deploy.errors import ImageError
from vggt_deploy.progress import Progress
from vggt_deploy.qat.recipe import QatBatchRecipe, QatRecipe
from vggt_deploy.train.batches import Scenes, Targets, make_targets
from vggt_deploy.train.colour import augment_colours, plain_colours

LEAST_KNOWN_PIXELS = 16  # of true depth in a view, for it to take part in the task loss
_PROBE = 1 << 32  # beyond every step's number


@dataclass(frozen=True)
class SceneTruth:
    """What is known of a scene of S views: extrinsic [S, 3, 4], intrinsic [S, 3, 3] at the size of
    the images, depth [S, H, W] (inf: not known).
    """

    extrinsic: NDArray[np.float64]
    intrinsic: NDArray[np.float64]
    depth: NDArray[np.float32]


@dataclass(frozen=True)
class QatScene:
    """images uint8 [S, H, W, 3] at the network's size; sha256 of the files they are from."""

    name: str
    images: NDArray[np.uint8]
    sha256: dict[str, str]
    truth: SceneTruth | None


@dataclass(frozen=True)
class QatBatch:
    """images [B, S, 3, H, W] of 0..1; dense_frames: indices into B * S that the dense heads see;
    known: indices into B of the scenes with truth, which `targets` are of, if there are any.
    """

    images: NDArray[np.float32]
    dense_frames: NDArray[np.int64]
    known: NDArray[np.int64]
    targets: Targets | None = None


def read_scenes(
    found: Sequence[FoundScene],
    height: int,
    width: int,
    mode: Mode,
    *,
    with_truth: bool,
    skip_bad: bool,
    progress: Progress,
) -> tuple[QatScene, ...]:
    """Decode all pictures, 3 H W bytes each; with_truth: also what is known of the scenes.

    Raises:
        ImageError: a picture that can't be read (with `skip_bad`: a scene of which none can).
        SceneError: calibration or depth that is damaged or does not fit, with `with_truth`.
    """
    scenes = []
    for done, scene in enumerate(found):
        progress("pictures", done, len(found))
        batch = load_images(
            scene.images.paths, mode=mode, width=width, height=height, skip_bad=skip_bad
        )
        pixels = np.rint(batch.pixels * 255).astype(np.uint8)  # exact: they are bytes / 255
        truth = None
        if with_truth:
            known = ground_truth(batch.paths, batch.placements, height, width)
            # The losses unproject by a matrix: a scene seen through a lens goes without truth.
            if known is not None and known.depth is not None and known.rays is None:
                truth = SceneTruth(known.extrinsic, known.intrinsic, known.depth)
        names = [f"{scene.name}/{path.name}" for path in batch.paths]
        scenes.append(
            QatScene(
                scene.name,
                np.ascontiguousarray(np.moveaxis(pixels, 1, -1)),
                dict(zip(names, batch.sha256, strict=True)),
                truth,
            )
        )
    progress("pictures", len(found), len(found))
    return tuple(scenes)


def usable_counts(scenes: Sequence[QatScene], batch: QatBatchRecipe) -> tuple[int, ...]:
    """The recipe's view counts that some scene has.

    Raises:
        ImageError: no scene has as many views as the smallest of them.
    """
    largest = max(len(scene.images) for scene in scenes)
    counts = tuple(count for count in batch.view_counts if count <= largest)
    if not counts:
        raise ImageError(
            f"the largest scene has {largest} pictures, and a step draws "
            f"{min(batch.view_counts)} of one scene at least",
            "give scenes of more pictures, or a recipe with smaller batch.view_counts",
        )
    return counts


def qat_batch(scenes: Sequence[QatScene], recipe: QatRecipe, step: int, shard: int) -> QatBatch:
    """What shard 0 .. shards - 1 of a step is shown.

    All shards of a step have scenes of as many views, so they take as long as each other.
    """
    batch = recipe.batch
    counts = usable_counts(scenes, batch)
    weights = np.array([batch.view_weights[batch.view_counts.index(n)] for n in counts])
    drawn = np.random.default_rng([recipe.seed, step]).choice(counts, p=weights / weights.sum())
    rng = np.random.default_rng([recipe.seed, step, 1 + shard])
    frames = batch.frames // batch.shards
    scenes_drawn = _draw(scenes, frames // int(drawn), int(drawn), rng)
    seen = max(1, round(frames * batch.dense_share))
    images, known, targets = _stacked(scenes_drawn)
    return QatBatch(
        augment_colours(images, recipe.colour, rng),
        np.sort(rng.permutation(frames)[:seen]),
        known,
        targets,
    )


def probe_batches(scenes: Sequence[QatScene], recipe: QatRecipe) -> list[QatBatch]:
    """View sets as they are, one scene each, the same whenever they are asked for."""
    counts = usable_counts(scenes, recipe.batch)
    batches = []
    for index in range(recipe.probe_scenes):
        rng = np.random.default_rng([recipe.seed, _PROBE, index])
        views = counts[index % len(counts)]
        images, known, targets = _stacked(_draw(scenes, 1, views, rng))
        batches.append(QatBatch(plain_colours(images), np.arange(views), known, targets))
    return batches


Drawn = tuple[QatScene, NDArray[np.int64]]


def _draw(
    scenes: Sequence[QatScene], count: int, views: int, rng: np.random.Generator
) -> list[Drawn]:
    """Scenes of at least so many views, each as often as it has pictures, and views of them.

    The first view that is drawn is the reference, and may be any.
    """
    large = [scene for scene in scenes if len(scene.images) >= views]
    sizes = np.array([len(scene.images) for scene in large], dtype=np.float64)
    # With repetition only where there are fewer scenes than the step wants.
    chosen = rng.choice(len(large), count, replace=count > len(large), p=sizes / sizes.sum())
    return [(large[i], rng.permutation(len(large[i].images))[:views]) for i in chosen]


def _stacked(
    drawn: Sequence[Drawn],
) -> tuple[NDArray[np.uint8], NDArray[np.int64], Targets | None]:
    """Images [B, S, H, W, 3], the scenes whose truth is known, and their targets."""
    images = np.stack([scene.images[views] for scene, views in drawn])
    truths = [
        (index, scene.images[views], scene.truth, views)
        for index, (scene, views) in enumerate(drawn)
        if scene.truth is not None and _depth_known(scene.truth.depth[views])
    ]
    known = np.array([index for index, *_ in truths], dtype=np.int64)
    if not truths:
        return images, known, None
    targets = make_targets(
        Scenes(
            images=np.stack([pictures for _, pictures, _, _ in truths]),
            depth=np.stack([truth.depth[views] for _, _, truth, views in truths]),
            extrinsic=np.stack([truth.extrinsic[views] for _, _, truth, views in truths]),
            intrinsic=np.stack([truth.intrinsic[views] for _, _, truth, views in truths]),
        )
    )
    return images, known, targets


def _depth_known(depth: NDArray[np.float32]) -> bool:
    """Whether every view [S, H, W] has pixels of known depth."""
    return bool((np.isfinite(depth) & (depth > 0)).sum(axis=(1, 2)).min() >= LEAST_KNOWN_PIXELS)
