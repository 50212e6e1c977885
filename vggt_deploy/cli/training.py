"""train: a small model from nothing, on rendered scenes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from vggt_deploy.cli.app import app
from vggt_deploy.cli.arguments import Threads


@app.command()
def train(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the run to write.")],
    cache: Annotated[
        Path, typer.Option("--cache", help="Folder for the rendered scenes; used again if it fits.")
    ],
    config: Annotated[
        str, typer.Option("--config", help="The model, by the recipe that comes with it.")
    ] = "vggt-nano",
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
        typer.Option("--scenes", min=1, help="Instead of the recipe's number of scenes."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Instead of the recipe's number of steps.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option("--precision", help="fp32 or bf16, instead of the recipe's.")
    ] = None,
    threads: Threads = None,
) -> None:
    """Train a model from nothing on rendered scenes with exact poses and depth."""
    from vggt_deploy import progress
    from vggt_deploy.errors import UsageError
    from vggt_deploy.train import train as run_training
    from vggt_deploy.train.recipe import load_recipe, named_recipe

    chosen = load_recipe(named_recipe(config) if recipe is None else recipe)
    changes: dict[str, Any] = {"seed": seed, "steps": steps, "precision": precision}
    if precision not in (None, "fp32", "bf16"):
        raise UsageError(f"unknown precision {precision!r}", "use fp32 or bf16")
    if scenes is not None:
        changes["scenes"] = replace(chosen.scenes, count=scenes)
    chosen = replace(
        chosen, **{name: value for name, value in changes.items() if value is not None}
    )
    with progress.shown() as shown:
        result = run_training(chosen, cache, output, resume=resume, threads=threads, progress=shown)
    typer.echo(f"{result.folder}: {result.steps} steps, {result.seconds / 60:.1f} min")
