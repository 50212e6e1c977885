"""scene: something to try things on, with the truth beside it."""

from __future__ import annotations

from typing import Annotated

import typer

from vggt_deploy import options
from vggt_deploy.cli.app import app
from vggt_deploy.cli.arguments import Output, Overwrite


@app.command()
def scene(
    output: Output,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Another seed, another scene.")] = 0,
    views: Annotated[int, typer.Option("--views", min=1, help="Pictures of each scene.")] = 6,
    count: Annotated[
        int,
        typer.Option("--count", min=1, help="N > 1: the scenes of N seeds, in scene_<seed> each."),
    ] = 1,
    family: Annotated[
        str | None,
        typer.Option(
            "--family",
            help="room, tabletop, yard or hall (in no training); default: the seed draws one of"
            " the first three.",
        ),
    ] = None,
    size: Annotated[str, typer.Option("--size", help="WIDTHxHEIGHT in pixels.")] = "448x336",
    overwrite: Overwrite = False,
) -> None:
    """Render scenes with exact depth and cameras, in ETH3D's layout."""
    width, height = options.parse_picture_size(size)
    from vggt_deploy import progress
    from vggt_deploy.data.scenes import write_scenes

    with progress.shown() as shown:
        written = write_scenes(
            output,
            seed=seed,
            count=count,
            views=views,
            width=width,
            height=height,
            family=family,
            overwrite=overwrite,
            progress=shown,
        )
    for one in written:
        traits = f", {', '.join(one.traits)}" if one.traits else ""
        typer.echo(f"{output / one.folder}: {one.family}, seed {one.seed}{traits}, {views} views")
