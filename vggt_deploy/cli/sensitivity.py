"""sensitivity, bisect: what each part loses, and which part broke an artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vggt_deploy import options
from vggt_deploy.cli.app import app
from vggt_deploy.cli.arguments import (
    Config,
    Height,
    MaxImages,
    Mode,
    Model,
    Output,
    Revision,
    Threads,
    Width,
)


@app.command()
def sensitivity(
    output: Output,
    scheme: Annotated[
        str,
        typer.Option(
            "--scheme", help="Which layers, in which formats, with which activations: a label."
        ),
    ] = "int8_pc_sym",
    scenes: Annotated[
        list[Path] | None,
        typer.Option(
            "--scenes",
            metavar="DIR",
            help="An ETH3D scene with its truth, or a folder of them (repeatable).",
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            "--images", help="Instead: a folder of pictures; FP32's outputs stand for the truth."
        ),
    ] = None,
    model: Model = options.DEFAULT_MODEL,
    by: Annotated[
        str, typer.Option("--by", help="What is quantized at a time: block, layer, kind or head.")
    ] = "block",
    top: Annotated[
        int | None,
        typer.Option(
            "--top",
            min=1,
            help="Units, the worst by local error, that are measured beside the camera head's; "
            "default: all of a small model.",
        ),
    ] = None,
    formats: Annotated[
        str | None,
        typer.Option(
            "--formats", help="Weight formats to try on each unit: int8_pc_sym,int4_g128."
        ),
    ] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option("--calibrate", metavar="DIR", help="Static activations: pictures to see."),
    ] = None,
    height: Height = None,
    width: Width = None,
    mode: Mode = "crop",
    max_images: MaxImages = None,
    config: Config = None,
    revision: Revision = None,
    threads: Threads = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the measurement in the output folder.")
    ] = False,
) -> None:
    """Quantize one block, layer, kind or head at a time, and measure what is lost in geometry."""
    request: dict[str, Any] = {
        "by": by,
        "mode": options.parse_mode(mode),
        "height": options.check_size("--height", height),
        "width": options.check_size("--width", width),
        "formats": () if formats is None else options.parse_list(formats, "--formats"),
    }
    from vggt_deploy import progress
    from vggt_deploy.sensitivity.pipeline import sensitivity as measure
    from vggt_deploy.sensitivity.text import print_sensitivity
    from vggt_deploy.tables import console

    with progress.shown() as shown:
        table = measure(
            model,
            output_dir=output,
            scheme=scheme,
            images=images,
            scenes=tuple(scenes or ()),
            top=top,
            calibrate=calibrate,
            max_images=max_images,
            config=config,
            revision=revision,
            threads=threads,
            resume=resume,
            progress=shown,
            **request,
        )
    print_sensitivity(table, str(output), console())


@app.command()
def bisect(
    artifact: Annotated[Path, typer.Argument(help="A folder that `export` wrote.")],
    images: Annotated[Path, typer.Option("--images", help="A folder of pictures of one scene.")],
    model: Annotated[
        str | None,
        typer.Option("--model", help="Its checkpoint; default: the one that its manifest names."),
    ] = None,
    tolerance: Annotated[
        float,
        typer.Option(
            "--tolerance",
            help="A block is damaged beyond this many times what rounding costs it.",
        ),
    ] = 2.0,
    mode: Mode = "crop",
    max_images: Annotated[
        int | None,
        typer.Option(
            "--max-images", min=1, help="Default: as many as the artifact is usually given."
        ),
    ] = None,
    threads: Threads = None,
) -> None:
    """Find the first block where an artifact leaves FP32, and the exclusion that cures it."""
    request: dict[str, Any] = {"mode": options.parse_mode(mode)}
    from vggt_deploy import progress
    from vggt_deploy.sensitivity.bisect import bisect as search
    from vggt_deploy.sensitivity.text import print_bisect
    from vggt_deploy.tables import console

    with progress.shown() as shown:
        result = search(
            artifact,
            images,
            model=model,
            tolerance=tolerance,
            max_images=max_images,
            threads=threads,
            progress=shown,
            **request,
        )
    print_bisect(result, str(artifact), console())
