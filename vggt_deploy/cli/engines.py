"""build, inspect, run: from an artifact to an engine, and to depth, cameras and points."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from vggt_deploy import options
from vggt_deploy.cli.app import app
from vggt_deploy.cli.arguments import (
    AcceptFloat,
    Images,
    Json,
    MaxImages,
    Mode,
    Output,
    Overwrite,
    SkipBad,
    Threads,
)


@app.command()
def build(
    artifact: Annotated[Path, typer.Argument(help="A folder that `vggt-deploy export` wrote.")],
    device: Annotated[
        str,
        typer.Option(
            "--device", help="A device profile: a TOML file, or a shipped name such as h200."
        ),
    ],
    runtime: Annotated[
        str, typer.Option("--runtime", help="tensorrt (on the device), or tensorrt-rtx (anywhere).")
    ],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Folder to write; default <artifact>-<device>."),
    ] = None,
    frames: Annotated[
        list[str] | None,
        typer.Option(
            "--frames",
            metavar="MIN:OPT:MAX",
            help="A range of frame counts, instead of the profile's (repeatable).",
        ),
    ] = None,
    strip: Annotated[
        bool,
        typer.Option("--strip", help="Leave the weights out; they are refitted when it loads."),
    ] = False,
    accept_float: AcceptFloat = False,
    timing_cache: Annotated[
        Path | None,
        typer.Option("--timing-cache", metavar="DIR", help="Where kernel timings are kept."),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Artifact + device profile -> TensorRT engine, with proof of what it computes in."""
    ranges = None if not frames else tuple(options.parse_frames(text) for text in frames)
    from vggt_deploy import api, progress
    from vggt_deploy.engine_tables import print_engine
    from vggt_deploy.tables import console

    with progress.shown() as shown:
        result = api.build(
            artifact,
            runtime=runtime,
            device=device,
            output_dir=output or options.default_engine(artifact, device),
            frames=ranges,
            strip=strip,
            accept_float=accept_float,
            timing_cache_dir=timing_cache,
            overwrite=overwrite,
            progress=shown,
        )
    print_engine(result.manifest, str(result.folder), console())


@app.command()
def inspect(
    engine: Annotated[
        Path, typer.Argument(help="A folder that `vggt-deploy build` or `export` wrote.")
    ],
    as_json: Json = False,
) -> None:
    """What every matrix product computes in, what the weights take, whether attention is fused."""
    from vggt_deploy import api

    inspection = api.inspect(engine)
    if as_json:
        typer.echo(json.dumps(inspection.to_json(), indent=1))
        return
    from vggt_deploy.engine_tables import print_inspection
    from vggt_deploy.tables import console

    print_inspection(inspection, console())


@app.command()
def run(
    artifact: Annotated[
        Path, typer.Argument(help="A folder that `vggt-deploy export` or `build` wrote.")
    ],
    images: Images,
    output: Output,
    max_images: MaxImages = None,
    skip_bad_images: SkipBad = False,
    mode: Mode = "crop",
    runtime: Annotated[
        str | None,
        typer.Option(
            "--runtime", help="Default: what the folder is for (onnxruntime, tensorrt, ...)."
        ),
    ] = None,
    provider: Annotated[
        str | None, typer.Option("--provider", help="ONNX Runtime: cpu (the default) or cuda.")
    ] = None,
    threads: Threads = None,
    conf_percentile: Annotated[
        float,
        typer.Option(
            "--conf-percentile",
            min=0,
            max=100,
            help="Leave out this share of the least sure points.",
        ),
    ] = 25.0,
    max_points: Annotated[
        int, typer.Option("--max-points", min=1, help="Keep at most this many points.")
    ] = 1_000_000,
    overwrite: Overwrite = False,
) -> None:
    """Artifact + images -> depth maps, cameras and a coloured point cloud."""
    chosen = options.parse_mode(mode)
    from vggt_deploy import api
    from vggt_deploy.tables import console, print_run

    result = api.run(
        artifact,
        images,
        output,
        max_images=max_images,
        mode=chosen,
        runtime=runtime,
        provider=provider,
        threads=threads,
        conf_percentile=conf_percentile,
        max_points=max_points,
        skip_bad_images=skip_bad_images,
        overwrite=overwrite,
        progress=lambda stage: typer.echo(f"{stage} ...", err=True),
    )
    print_run(result, console())
