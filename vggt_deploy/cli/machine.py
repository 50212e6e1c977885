"""doctor: what this machine can do."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from vggt_deploy import options
from vggt_deploy.cli.app import app
from vggt_deploy.cli.arguments import Json


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
