"""visualize: depth, confidence, points and cameras of a run or comparison, to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vggt_deploy.cli.app import app
from vggt_deploy.cli.arguments import Output, Overwrite


@app.command()
def visualize(
    source: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="A folder that `vggt-deploy run` or `compare` wrote."),
    ],
    output: Output,
    variant: Annotated[
        str | None,
        typer.Option("--variant", help="Of a comparison: which one; default torch/fp32."),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option("--images", help="The photographs of a run that kept none."),
    ] = None,
    max_points: Annotated[
        int, typer.Option("--max-points", min=1, help="Keep at most this many points.")
    ] = 1_000_000,
    min_confidence: Annotated[
        float,
        typer.Option(
            "--min-confidence",
            min=0,
            max=100,
            help="Percentile of confidence that a point must reach; 0 keeps all.",
        ),
    ] = 25.0,
    overwrite: Overwrite = False,
) -> None:
    """Depth, confidence, coloured points and cameras as pictures, PLY, GLB and a page."""
    from vggt_deploy.visualize import visualize as show_it

    shown = show_it(
        source,
        output,
        variant=variant,
        images_dir=images,
        max_points=max_points,
        min_confidence=min_confidence,
        overwrite=overwrite,
        progress=lambda stage: typer.echo(f"{stage} ...", err=True),
    )
    points = f", {shown.points.written} points" if shown.points is not None else ""
    typer.echo(f"{shown.subject}: {shown.images} pictures, {shown.cameras} cameras{points}")
    for note in shown.notes:
        typer.echo(f"note: {note}")
    typer.echo(f"page: {shown.page}")
    typer.echo(f"{shown.folder}:")
    for name in shown.files:
        typer.echo(f"  {name}")
