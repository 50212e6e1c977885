"""Recipe -> scenes -> steps -> weights: the verb `train`.

RUN/model.safetensors   the weights, fp16, with recipe, seed and steps in the metadata
RUN/training.toml       the recipe
RUN/training_log.csv    losses and scores on the way
RUN/checkpoint.pt       to go on from
RUN/encoder_*           log and checkpoint of the encoder's own training, which comes first
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from vggt_deploy import __version__
from vggt_deploy.artifact import locked
from vggt_deploy.errors import ArtifactError, RuntimeUnavailableError, UsageError
from vggt_deploy.model.config import get_config
from vggt_deploy.model.vggt import VGGT
from vggt_deploy.progress import Progress, silent
from vggt_deploy.train.evaluate import SCORED_SCENES, Scores, evaluate
from vggt_deploy.train.initial import initial_model
from vggt_deploy.train.loop import Trainer, run_steps
from vggt_deploy.train.pool import Renderer, ensure_pool, render_scene, worker_count
from vggt_deploy.train.pretrain import pretrain_encoder
from vggt_deploy.train.recipe import VALIDATION_SEED, SceneRecipe, TrainingRecipe, recipe_toml
from vggt_deploy.train.scoring import SCORED_VIEWS, SceneTruth
from vggt_deploy.train.state import CHECKPOINT_FILE, ENCODER_CHECKPOINT_FILE, load_checkpoint

MODEL_FILE = "model.safetensors"
RECIPE_FILE = "training.toml"
VALIDATION_SCENES = 24


@dataclass(frozen=True)
class TrainResult:
    """Where the weights are, and how long it took (this call alone, if it was resumed)."""

    folder: Path
    device: str
    steps: int
    seconds: float
    scores: Scores


def train(
    recipe: TrainingRecipe,
    cache: Path,
    run: Path,
    *,
    resume: bool = False,
    threads: int | None = None,
    device: str | None = None,
    progress: Progress | None = None,
    render: Renderer = render_scene,
    scored_scenes: int = SCORED_SCENES,
) -> TrainResult:
    """Train by a recipe, with the scenes in `cache` (rendered first where missing), into `run`.

    `scored_scenes` is how many scenes of each set the weights are scored on at the end; `device`
    cpu or cuda, None: cuda where PyTorch sees one.

    Raises:
        ArtifactError: `run` holds something, or with `resume` no checkpoint of this recipe; or
            `cache` holds other scenes.
        RuntimeUnavailableError: cuda was asked for and PyTorch sees none.
        KeyboardInterrupt: Ctrl-C or SIGTERM; a checkpoint is written and `resume` goes on from it.
    """
    report = progress or silent
    device = training_device(device)
    run = run.expanduser().resolve()
    workers = worker_count(threads)
    begun_s = time.perf_counter()
    with locked(run):
        in_encoder = not (run / CHECKPOINT_FILE).is_file()
        resumable = not in_encoder or (run / ENCODER_CHECKPOINT_FILE).is_file()
        if not resume and run.exists() and any(run.iterdir()):
            raise ArtifactError(
                f"{run} exists and is not empty",
                ("add --resume to go on, or " if resumable else "") + "give another folder with -o",
            )
        name = ENCODER_CHECKPOINT_FILE if in_encoder and resumable else CHECKPOINT_FILE
        checkpoint = load_checkpoint(run, recipe, name) if resume else None
        pool = ensure_pool(cache, recipe.scenes, workers=workers, progress=report, render=render)
        run.mkdir(parents=True, exist_ok=True)
        (run / RECIPE_FILE).write_text(recipe_toml(recipe), encoding="utf-8")
        model = initial_model(get_config(recipe.config), recipe.initial, recipe.seed).to(device)
        if in_encoder:
            pretrain_encoder(
                model, recipe, pool, run, checkpoint=checkpoint, threads=workers, progress=report
            )
        trainer = Trainer(model, recipe, pool)
        if checkpoint is not None and not in_encoder:
            trainer.restore(checkpoint)
        scored = validation_scenes(recipe, render)
        run_steps(trainer, run, scored, threads=workers, progress=report)
        write_model(run / MODEL_FILE, trainer.model, recipe)
        scores = evaluate(
            run / MODEL_FILE,
            config=recipe.config,
            size=(recipe.scenes.height, recipe.scenes.width),
            scenes=scored_scenes,
            threads=workers,
            output_dir=run,
            progress=report,
        )
    return TrainResult(run, device, recipe.steps, time.perf_counter() - begun_s, scores)


def training_device(asked: str | None) -> str:
    """What was asked for, cpu or cuda; None: cuda where PyTorch sees one."""
    found = torch.cuda.is_available()
    if asked is None:
        return "cuda" if found else "cpu"
    if asked not in ("cpu", "cuda"):
        raise UsageError(f"unknown device {asked!r}", "train on cpu or cuda")
    if asked == "cuda" and not found:
        raise RuntimeUnavailableError(
            "PyTorch sees no CUDA device", "leave --device out, or install PyTorch for CUDA"
        )
    return asked


def validation_scenes(recipe: TrainingRecipe, render: Renderer) -> list[SceneTruth]:
    """Scenes of the training's families that it never sees, for the log."""
    sizes = SceneRecipe(1, SCORED_VIEWS, recipe.scenes.height, recipe.scenes.width)
    seeds = range(VALIDATION_SEED, VALIDATION_SEED + VALIDATION_SCENES)
    return [SceneTruth.of(render(seed, sizes)) for seed in seeds]


def write_model(path: Path, model: VGGT, recipe: TrainingRecipe) -> None:
    """Weights as fp16: half the size, and rounded far below what training resolves."""
    tensors = {
        name: value.detach().half().cpu().contiguous() for name, value in model.state_dict().items()
    }
    training = {
        "vggt_deploy": __version__,
        "seed": recipe.seed,
        "steps": recipe.steps,
        "recipe": recipe_toml(recipe),
    }
    partial = path.with_name(f".{path.name}.partial")
    # One entry: the library writes several in an order that differs from run to run.
    save_file(tensors, partial, {"training": json.dumps(training)})
    partial.rename(path)
