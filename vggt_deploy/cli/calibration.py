"""calibrate: what goes into each layer, on pictures of yours."""

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
    Overwrite,
    Revision,
    SkipBad,
    Width,
)


@app.command()
def calibrate(
    images: Annotated[
        Path,
        typer.Option(
            "--images", help="A folder of images, an ETH3D scene, or a folder of ETH3D scenes."
        ),
    ],
    output: Output,
    model: Model = options.DEFAULT_MODEL,
    height: Height = None,
    width: Width = None,
    max_images: MaxImages = None,
    frames_per_pass: Annotated[
        int,
        typer.Option(
            "--frames-per-pass", min=1, help="Views in one pass; as many as will be run together."
        ),
    ] = 8,
    select: Annotated[
        int | None,
        typer.Option(
            "--select",
            min=1,
            help="Choose this many view sets (passes), the most different ones, and leave outlier "
            "frames out; default: all images.",
        ),
    ] = None,
    skip_bad_images: SkipBad = False,
    mode: Mode = "crop",
    overwrite: Overwrite = False,
    config: Config = None,
    revision: Revision = None,
) -> None:
    """Your images -> statistics of every layer's input, for `export --activations static`."""
    request: dict[str, Any] = {
        "height": options.check_size("--height", height),
        "width": options.check_size("--width", width),
        "mode": options.parse_mode(mode),
    }
    from vggt_deploy import api, progress
    from vggt_deploy.engine_tables import print_statistics
    from vggt_deploy.tables import console

    with progress.shown() as shown:
        statistics = api.calibrate(
            model,
            images,
            output_dir=output,
            max_images=max_images,
            frames_per_pass=frames_per_pass,
            skip_bad_images=skip_bad_images,
            select=select,
            overwrite=overwrite,
            config=config,
            revision=revision,
            progress=shown,
            **request,
        )
    print_statistics(statistics, str(output), console())
