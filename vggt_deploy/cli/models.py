"""schemes, export, compare: from a checkpoint to artifacts, and what they lose."""

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
    MaxImages,
    Mode,
    Model,
    Output,
    Outputs,
    Overwrite,
    Precision,
    Revision,
    Sensitive,
    SkipBad,
    Threads,
    Width,
)

if TYPE_CHECKING:
    from vggt_deploy.compare.gates import Gates
    from vggt_deploy.compare.report import ComparisonReport


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


@app.command()
def compare(
    output: Output,
    images: Annotated[
        Path | None,
        typer.Option("--images", help="One scene: a folder of images, or an ETH3D scene."),
    ] = None,
    scenes: Annotated[
        list[Path] | None,
        typer.Option(
            "--scenes",
            metavar="DIR",
            help="Instead: an ETH3D scene, or a folder of them (repeatable). Timed on the first.",
        ),
    ] = None,
    model: Model = options.DEFAULT_MODEL,
    schemes: Annotated[
        str, typer.Option("--schemes", help="all, or labels such as int8_pc_sym+dynamic,int4_g128.")
    ] = "all",
    runtimes: Annotated[
        str,
        typer.Option("--runtimes", help="Some of torch,onnxruntime,tensorrt,tensorrt-rtx."),
    ] = "torch,onnxruntime",
    device: Annotated[
        str | None,
        typer.Option(
            "--device",
            help="Device profile of engines (tensorrt, tensorrt-rtx): a name such as h200, or a"
            " TOML file.",
        ),
    ] = None,
    max_images: MaxImages = None,
    skip_bad_images: SkipBad = False,
    mode: Mode = "crop",
    height: Annotated[
        int | None,
        typer.Option("--height", help="In pixels; default: what the images give at this width."),
    ] = None,
    width: Width = None,
    outputs: Outputs = "all",
    precision: Precision = None,
    include: Include = None,
    exclude: Exclude = None,
    sensitive: Sensitive = None,
    calibrate: Calibrate = None,
    calibration_method: CalibrationMethod = None,
    config: Config = None,
    revision: Revision = None,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Timed runs per variant.")] = 5,
    warmup: Annotated[int, typer.Option("--warmup", min=0, help="Runs before timing.")] = 2,
    threads: Threads = None,
    timeout_s: Annotated[
        float,
        typer.Option("--timeout", help="Seconds that one export, build or measurement may take."),
    ] = 3600.0,
    verify: Annotated[
        bool, typer.Option("--verify", help="Also let each export check itself against PyTorch.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the comparison in the output folder.")
    ] = False,
    overwrite: Overwrite = False,
    gate: Annotated[
        bool,
        typer.Option(
            "--gate", help="Exit with 1 if a variant lost more, by the truth, than its gate allows."
        ),
    ] = False,
    gates: Annotated[
        Path | None,
        typer.Option(
            "--gates", metavar="FILE", help="Your own gates, instead of the shipped ones."
        ),
    ] = None,
) -> None:
    """Schemes x runtimes on your images, against PyTorch FP32: size, time, memory, accuracy."""
    # Read before anything is measured: a mistake in the file should not cost an hour.
    limits = _gates(gates) if gate or gates is not None else None
    options.check_size("--height", height)
    request: dict[str, Any] = {
        "mode": options.parse_mode(mode),
        "width": options.check_size("--width", width),
        "outputs": options.parse_outputs(outputs),
        "precision": options.parse_precision(precision),
        "include": tuple(include or ()),
        "exclude": tuple(exclude or ()),
        "sensitive": tuple(sensitive or ()),
        "calibrate": calibrate,
        **({} if calibration_method is None else {"calibration_method": calibration_method}),
    }
    from vggt_deploy import api

    report = api.compare(
        model,
        images,
        output_dir=output,
        scenes=tuple(scenes or ()),
        schemes=schemes,
        runtimes=runtimes,
        device=device,
        max_images=max_images,
        skip_bad_images=skip_bad_images,
        height=height,
        config=config,
        revision=revision,
        repeats=repeats,
        warmup=warmup,
        threads=threads,
        timeout_s=timeout_s,
        verify=verify,
        resume=resume,
        overwrite=overwrite,
        **request,
    )
    from vggt_deploy.tables import console, print_report

    print_report(report, console())
    if limits is not None:
        _hold_against(report, limits)


def _gates(path: Path | None) -> Gates:
    from vggt_deploy.compare.gates import load_gates

    return load_gates(path)


def _hold_against(report: ComparisonReport, gates: Gates) -> None:
    """Print how the report stands against the gates; a GateError if it is beyond one."""
    from vggt_deploy.compare.gate import check_gate

    result = check_gate(report, gates)
    typer.echo("\n".join(["", "Gate", "====", *result.lines()]))
    result.require()
