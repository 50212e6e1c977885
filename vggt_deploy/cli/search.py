"""search: formats per layer that keep a size, a loss or a speed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vggt_deploy import options
from vggt_deploy.cli.app import app
from vggt_deploy.cli.arguments import (
    Config,
    MaxImages,
    Mode,
    Model,
    Output,
    Overwrite,
    Precision,
    Revision,
    Threads,
)


@app.command()
def search(
    output: Output,
    sensitivity: Annotated[
        Path,
        typer.Option(
            "--sensitivity", metavar="DIR", help="What `sensitivity` wrote for this model."
        ),
    ],
    model: Model = options.DEFAULT_MODEL,
    scenes: Annotated[
        list[Path] | None,
        typer.Option(
            "--scenes",
            metavar="DIR",
            help="Recipes are tried on these: an ETH3D scene or a folder of them (repeatable); best"
            " not those that the table was measured on.",
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option("--images", help="Instead: one scene, for a table made with --images."),
    ] = None,
    max_size: Annotated[
        str | None,
        typer.Option("--max-size", metavar="SIZE", help="Of the weights as stored: 900MB, 4.5MiB."),
    ] = None,
    max_drop: Annotated[
        list[str] | None,
        typer.Option(
            "--max-drop",
            metavar="MEASURE=X",
            help="Most that may be lost against FP32: auc30=0.5 (points), pose_deg=0.1"
            " (repeatable).",
        ),
    ] = None,
    min_speedup: Annotated[
        float | None,
        typer.Option(
            "--min-speedup",
            metavar="X",
            help="Over FP32, of the network's Linears together, each timed by itself in ONNX"
            " Runtime.",
        ),
    ] = None,
    minimise: Annotated[
        str,
        typer.Option(
            "--minimise",
            metavar="MEASURE",
            help="The loss to make small where size or speed is bounded; with --max-drop alone the"
            " size is.",
        ),
    ] = "output_mse",
    costs: Annotated[
        str,
        typer.Option(
            "--costs", metavar="auto|FILE", help="auto: time the Linears; or an earlier costs.json."
        ),
    ] = "auto",
    precision: Precision = None,
    name: Annotated[str, typer.Option("--name", help="Of the recipe.")] = "searched",
    front: Annotated[
        int,
        typer.Option(
            "--front",
            min=0,
            help="Recipes to find along the front, beside every standard scheme; 0: neither.",
        ),
    ] = 10,
    rounds: Annotated[
        int, typer.Option("--rounds", min=1, help="How often to try before giving up.")
    ] = 8,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            "--calibrate",
            metavar="DIR",
            help="Your images, for a table with static activations alone.",
        ),
    ] = None,
    mode: Mode = "crop",
    max_images: MaxImages = None,
    threads: Threads = None,
    overwrite: Overwrite = False,
    config: Config = None,
    revision: Revision = None,
) -> None:
    """Sensitivity table + budgets -> a recipe for `export --recipe`, tried before it is written."""
    from vggt_deploy.search.records import Budgets
    from vggt_deploy.search.request import parse_bytes, parse_drops

    budgets = Budgets(
        None if max_size is None else parse_bytes(max_size),
        parse_drops(max_drop or ()),
        min_speedup,
    )
    frame = options.parse_mode(mode)
    chosen = options.parse_precision(precision) or "fp32"
    from vggt_deploy import progress
    from vggt_deploy.search.pipeline import search as run
    from vggt_deploy.search.text import summary_lines

    with progress.shown() as shown:
        result = run(
            model,
            output_dir=output,
            sensitivity=sensitivity,
            budgets=budgets,
            scenes=tuple(scenes or ()),
            images=images,
            costs=None if costs == "auto" else Path(costs),
            minimise=minimise,
            precision=chosen,
            name=name,
            front_points=front,
            rounds=rounds,
            calibrate=calibrate,
            mode=frame,
            max_images=max_images,
            config=config,
            revision=revision,
            threads=threads,
            overwrite=overwrite,
            progress=shown,
        )
    typer.echo("\n".join(summary_lines(result)))
    result.require()
    typer.echo(f"recipe, all points and the picture: {output}")
