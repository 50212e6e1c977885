"""compare and report: what variants lose, and the files that say so."""

from __future__ import annotations

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
    Include,
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

Baseline = Annotated[
    Path | None,
    typer.Option(
        "--baseline",
        metavar="OLD",
        help="An earlier report: what changed since, how sure.",
    ),
]
SensitivityOption = Annotated[
    Path | None,
    typer.Option(
        "--sensitivity", metavar="DIR", help="What `sensitivity` wrote of these weights, to show."
    ),
]
Language = Annotated[
    str, typer.Option("--language", help="Of summary and experiment report: en or zh.")
]


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
    frames: Annotated[
        str | None,
        typer.Option(
            "--frames",
            metavar="LIST",
            help="Which pictures of each scene: eth3d-5, eth3d-10, or a TOML file.",
        ),
    ] = None,
    drop_sideways: Annotated[
        bool,
        typer.Option(
            "--drop-sideways",
            help="Leave out frames that stand on their side, by the poses of their scene.",
        ),
    ] = False,
    baseline: Baseline = None,
    sensitivity: SensitivityOption = None,
    language: Language = "en",
    executor: Annotated[
        str,
        typer.Option(
            "--executor",
            help="Where the variants run: local, or ray: the nodes of a Ray cluster.",
        ),
    ] = "local",
    ray_address: Annotated[
        str | None,
        typer.Option("--ray-address", help="Of the cluster; default: as Ray finds it."),
    ] = None,
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
        "frames": frames,
        "drop_sideways": drop_sideways,
        "baseline": baseline,
        "sensitivity": sensitivity,
        "language": language,
        "executor": executor,
        "ray_address": ray_address,
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

    print_report(report, console(), language)
    if limits is not None:
        _hold_against(report, limits)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="The folder of a finished comparison.")],
    baseline: Baseline = None,
    sensitivity: SensitivityOption = None,
    language: Language = "en",
) -> None:
    """Write page, texts and pictures of a comparison again; nothing is measured."""
    from vggt_deploy import api

    written = api.report(folder, baseline=baseline, sensitivity=sensitivity, language=language)
    from vggt_deploy.tables import console, print_report

    print_report(written, console(), language)


def _gates(path: Path | None) -> Gates:
    from vggt_deploy.compare.gates import load_gates

    return load_gates(path)


def _hold_against(report: ComparisonReport, gates: Gates) -> None:
    """Print how the report stands against the gates; a GateError if it is beyond one."""
    from vggt_deploy.compare.gate import check_gate

    result = check_gate(report, gates)
    typer.echo("\n".join(["", "Gate", "====", *result.lines()]))
    result.require()
