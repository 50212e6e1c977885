"""doctor, sample-images: the machine, and something to try it on."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from vggt_deploy import options
from vggt_deploy.cli.app import app
from vggt_deploy.cli.arguments import Json, Output, Overwrite


@app.command()
def doctor(
    as_json: Json = False,
    require: Annotated[
        str | None,
        typer.Option("--require", help="Exit 1 unless these are there: onnxruntime,tensorrt,..."),
    ] = None,
) -> None:
    """What this machine can do, and what to install for the rest."""
    from vggt_deploy.api import diagnose

    diagnosis = diagnose()
    if as_json:
        typer.echo(json.dumps(diagnosis.to_json(), indent=1))
    else:
        from vggt_deploy.tables import console, print_diagnosis

        print_diagnosis(diagnosis, console())
    if require is not None:
        diagnosis.require(options.parse_list(require, "--require"))


@app.command("sample-images")
def sample_images(
    output: Output,
    count: Annotated[int, typer.Option("--count", min=1, help="How many views.")] = 5,
    seed: Annotated[int, typer.Option("--seed", help="Another seed, another room.")] = 0,
    size: Annotated[str, typer.Option("--size", help="WIDTHxHEIGHT in pixels.")] = "640x480",
    overwrite: Overwrite = False,
) -> None:
    """Write views of a rendered room, to try things with."""
    pixels = options.parse_picture_size(size)
    from vggt_deploy.artifact import writing
    from vggt_deploy.data.samples import write_sample_images

    with writing(output, overwrite=overwrite, marker="view_000.png") as folder:
        paths = write_sample_images(folder, count=count, seed=seed, size=pixels)
    typer.echo(f"{output}: {len(paths)} images")
