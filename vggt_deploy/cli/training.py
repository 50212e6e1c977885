"""train: a small model from nothing on rendered scenes, and its scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vggt_deploy.cli.app import app
from vggt_deploy.cli.arguments import Threads
from vggt_deploy.errors import UsageError

if TYPE_CHECKING:
    from vggt_deploy.train.evaluate import Scores
    from vggt_deploy.train.recipe import TrainingRecipe

DEFAULT_CONFIG = "vggt-nano"


@app.command()
def train(
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="Folder to write: the run, or with --evaluate the scores."
        ),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option("--cache", help="Folder for the rendered scenes; used again if it fits."),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option("--config", help="The model, by the recipe that comes with it: vggt-nano."),
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option("--recipe", help="A recipe of your own (TOML) instead.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")
    ] = False,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="Instead of the recipe's.")
    ] = None,
    scenes: Annotated[
        int | None,
        typer.Option("--scenes", min=1, help="Train, or with --evaluate score, on this many."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Instead of the recipe's.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option("--precision", help="fp32 or bf16; default: bf16 on a GPU.")
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="cpu or cuda; default: cuda where there is one.")
    ] = None,
    threads: Threads = None,
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="Don't train: score --model on unseen scenes.")
    ] = False,
    model: Annotated[
        str | None, typer.Option("--model", help="With --evaluate: a file, a folder or vggt-nano.")
    ] = None,
) -> None:
    """Train a model from nothing on rendered scenes with exact poses and depth, and score it."""
    if evaluate:
        training_only = {
            "--cache": cache, "--recipe": recipe, "--resume": resume or None, "--seed": seed,
            "--steps": steps, "--precision": precision, "--device": device,
        }  # fmt: skip
        _refuse_options(training_only, "--evaluate")
        _evaluate(model or DEFAULT_CONFIG, config, scenes, threads, output)
        return
    _refuse_options({"--model": model}, "training")
    if output is None or cache is None:
        raise UsageError("a training needs -o and --cache", "give -o RUN --cache DIR")
    chosen = _recipe(config, recipe, scenes, seed=seed, steps=steps, precision=precision)
    from vggt_deploy import api, progress

    with progress.shown() as shown:
        result = api.train(
            chosen, cache, output, resume=resume, threads=threads, device=device, progress=shown
        )
    took = f"{result.steps} steps on {result.device}, {result.seconds / 60:.1f} min"
    typer.echo(f"{result.folder}: {took}")
    _print(result.scores)


def _evaluate(
    model: str, config: str | None, scenes: int | None, threads: int | None, output: Path | None
) -> None:
    from vggt_deploy import api, progress
    from vggt_deploy.train.evaluate import SCORED_SCENES

    with progress.shown() as shown:
        scores = api.evaluate(
            model,
            scenes=scenes or SCORED_SCENES,
            threads=threads,
            output_dir=output,
            config=config,
            progress=shown,
        )
    _print(scores)


def _recipe(
    config: str | None, recipe: Path | None, scenes: int | None, **changes: int | str | None
) -> TrainingRecipe:
    """The recipe asked for, with what the command line changes in it."""
    from vggt_deploy.train.recipe import changed_recipe, load_recipe, named_recipe

    if config is not None and recipe is not None:
        raise UsageError("--config and --recipe both name a recipe", "drop one of them")
    chosen = load_recipe(named_recipe(config or DEFAULT_CONFIG) if recipe is None else recipe)
    if scenes is not None:
        chosen = replace(chosen, scenes=replace(chosen.scenes, count=scenes))
    return changed_recipe(chosen, {k: v for k, v in changes.items() if v is not None})


def _refuse_options(given: Mapping[str, object], what: str) -> None:
    for name, value in given.items():
        if value is not None:
            raise UsageError(f"{name} has no meaning with {what}", f"drop {name}")


def _print(scores: Scores) -> None:
    from vggt_deploy.tables import console
    from vggt_deploy.train.text import print_scores

    print_scores(scores, console())
