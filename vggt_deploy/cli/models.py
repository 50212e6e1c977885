"""schemes, export: from a checkpoint to artifacts."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vggt_deploy import options
from vggt_deploy.cli.app import app
from vggt_deploy.cli.arguments import (
    Calibrate,
    CalibrationMethod,
    Config,
    Exclude,
    Height,
    Include,
    Json,
    Model,
    Outputs,
    Overwrite,
    Precision,
    Revision,
    Sensitive,
    Width,
)

if TYPE_CHECKING:
    pass


@app.command()
def schemes(as_json: Json = False) -> None:
    """The quantization schemes, what they cost, and which target runs them for real."""
    from vggt_deploy.api import schemes as scheme_rows

    rows = scheme_rows()
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows], indent=1))
        return
    from vggt_deploy.tables import console, print_schemes

    print_schemes(rows, console())


@app.command()
def export(
    scheme: Annotated[
        str | None,
        typer.Option("--scheme", help="What the weights become: see `vggt-deploy schemes`."),
    ] = None,
    model: Model = options.DEFAULT_MODEL,
    recipe: Annotated[
        Path | None,
        typer.Option(
            "--recipe", metavar="FILE", help="Instead of a scheme: a format for each layer, TOML."
        ),
    ] = None,
    prepared: Annotated[
        Path | None,
        typer.Option("--prepared", metavar="DIR", help="Instead of a scheme: what `qat` wrote."),
    ] = None,
    activations: Annotated[
        str | None,
        typer.Option(
            "--activations", help="float (weight-only), static (calibrated) or dynamic (CPU only)."
        ),
    ] = None,
    calibrate: Calibrate = None,
    calibration_method: CalibrationMethod = None,
    weight_range: Annotated[
        str | None,
        typer.Option(
            "--weight-range",
            help="How far a weight's integers reach: absmax, mse or percentile:P (word w=).",
        ),
    ] = None,
    smooth: Annotated[
        str | None,
        typer.Option(
            "--smooth",
            help="Move scale from activations into weights: auto, or an exponent from 0 to 1.",
        ),
    ] = None,
    rotate: Annotated[
        bool, typer.Option("--rotate", help="Turn attention's values by a Hadamard matrix.")
    ] = False,
    rounding: Annotated[
        str | None, typer.Option("--rounding", help="nearest, or gptq (looks at --calibrate).")
    ] = None,
    special_apart: Annotated[
        bool,
        typer.Option(
            "--special-apart", help="Camera and register tokens count as much as all patches."
        ),
    ] = False,
    precision: Precision = None,
    outputs: Outputs = "all",
    height: Height = None,
    width: Width = None,
    frames: Annotated[
        str, typer.Option("--frames", help="Frames per run that it must take, min:opt:max.")
    ] = "1:5:16",
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="Folder to write; default <model>-<scheme>[-<activations>]."
        ),
    ] = None,
    include: Include = None,
    exclude: Exclude = None,
    sensitive: Sensitive = None,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Compare with PyTorch before finishing.")
    ] = True,
    overwrite: Overwrite = False,
    config: Config = None,
    revision: Revision = None,
) -> None:
    """Checkpoint -> artifact: ONNX graphs, one weights file and a manifest."""
    words = options.treatment_words(
        smooth=smooth,
        rotate=rotate,
        rounding=rounding,
        weight_range=weight_range,
        apart=special_apart,
    )
    chosen = None
    if prepared is None:
        chosen = options.parse_scheme(scheme, recipe, activations, words)
        label = chosen.label
    else:
        label = options.only_prepared(prepared, scheme, recipe, activations, words)
    request: dict[str, Any] = {
        "prepared": prepared,
        "calibrate": calibrate,
        "calibration_method": calibration_method,
        "precision": options.parse_precision(precision),
        "outputs": options.parse_outputs(outputs),
        "height": options.check_size("--height", height),
        "width": options.check_size("--width", width),
        "frames": options.parse_frames(frames),
        "output_dir": output or options.default_output(model, label),
        "include": tuple(include or ()),
        "exclude": tuple(exclude or ()),
        "sensitive": tuple(sensitive or ()),
    }
    from vggt_deploy import api, progress
    from vggt_deploy.tables import console, print_artifact

    with progress.shown() as shown:
        result = api.export(
            model,
            chosen,
            verify=verify,
            overwrite=overwrite,
            config=config,
            revision=revision,
            progress=shown,
            **request,
        )
    print_artifact(result.manifest, str(result.folder), result.seconds, console())
