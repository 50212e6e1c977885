"""qat: integers that are trained, not only rounded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from vggt_deploy import options
from vggt_deploy.cli.app import app
from vggt_deploy.cli.arguments import (
    Config,
    Exclude,
    Height,
    Include,
    MaxImages,
    Mode,
    Model,
    Output,
    Revision,
    Sensitive,
    SkipBad,
    Threads,
    Width,
)


@app.command()
def qat(
    output: Output,
    scheme: Annotated[
        str | None,
        typer.Option(
            "--scheme",
            help="What to train: int4_g128, int4_g128+dynamic, int8_pc_sym+static; after +gptq or"
            " +smooth the training begins with what those find.",
        ),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option("--recipe", metavar="FILE", help="Instead: a format for each layer, TOML."),
    ] = None,
    model: Model = options.DEFAULT_MODEL,
    images: Annotated[
        Path | None,
        typer.Option("--images", help="Pictures to train on: a folder, or a folder of scenes."),
    ] = None,
    scenes: Annotated[
        list[Path] | None,
        typer.Option("--scenes", metavar="DIR", help="Instead: scenes, in several (repeatable)."),
    ] = None,
    epochs: Annotated[
        float | None, typer.Option("--epochs", help="How often all pictures are shown.")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option("--lr", help="At its peak; that of the steps goes with it.")
    ] = None,
    task_loss: Annotated[
        float | None,
        typer.Option(
            "--task-loss", metavar="W", help="Weight of the loss against true cameras and depth."
        ),
    ] = None,
    settings: Annotated[
        Path | None,
        typer.Option(
            "--settings", metavar="FILE", help="All numbers of the training, as qat.toml has them."
        ),
    ] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            "--calibrate",
            metavar="DIR",
            help="Pictures for the first ranges of static activations, and for +gptq and +smooth;"
            " default: those of --images.",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint in -o.")
    ] = False,
    seed: Annotated[int | None, typer.Option("--seed", min=0)] = None,
    precision: Annotated[
        str | None,
        typer.Option("--precision", help="Of the training: fp32 or bf16; default: bf16 on a GPU."),
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="cpu or cuda; default: cuda where there is one.")
    ] = None,
    threads: Threads = None,
    height: Height = None,
    width: Width = None,
    mode: Mode = "crop",
    max_images: MaxImages = None,
    skip_bad_images: SkipBad = False,
    include: Include = None,
    exclude: Exclude = None,
    sensitive: Sensitive = None,
    config: Config = None,
    revision: Revision = None,
) -> None:
    """Train a quantized model against its own FP32 outputs; `export --prepared DIR` exports it.

    No labels are needed. On several GPUs: torchrun --nproc-per-node N -m vggt_deploy qat ...
    """
    quantization = options.parse_scheme(scheme, recipe)
    from vggt_deploy import progress
    from vggt_deploy.qat.pipeline import QatRequest
    from vggt_deploy.qat.pipeline import qat as train
    from vggt_deploy.qat.recipe import DEFAULT_RECIPE, changed_recipe, load_recipe

    chosen = changed_recipe(
        load_recipe(DEFAULT_RECIPE if settings is None else settings),
        epochs=epochs,
        learning_rate=learning_rate,
        task_loss=task_loss,
        seed=seed,
        precision=precision,
    )
    request = QatRequest(
        model=model,
        quantization=quantization,
        images=images,
        scenes=tuple(scenes or ()),
        calibrate=calibrate,
        config=config,
        revision=revision,
        height=options.check_size("--height", height),
        width=options.check_size("--width", width),
        mode=options.parse_mode(mode),
        max_images=max_images,
        skip_bad=skip_bad_images,
        include=tuple(include or ()),
        exclude=tuple(exclude or ()),
        sensitive=tuple(sensitive or ()),
    )
    with progress.shown() as shown:
        result = train(
            request, chosen, output, resume=resume, threads=threads, device=device, progress=shown
        )
    if os.environ.get("RANK", "0") != "0":  # torchrun's name for which process this is
        return
    typer.echo(
        f"{result.folder}: {result.label}, {result.steps} steps on {result.device}, "
        f"{result.seconds / 60:.1f} min"
    )
    typer.echo(
        f"loss on {chosen.probe_scenes} of the view sets: {result.probe_before:.4g} as rounded, "
        f"{result.probe_after:.4g} as trained"
    )
    if not result.probe_after < result.probe_before:
        typer.echo(
            "warning: training did not lower the loss: the rounding that it began with is better",
            err=True,
        )
    typer.echo(f"next: vggt-deploy export --model {model} --prepared {output} -o ARTIFACT")
