"""data: real scenes from their publishers."""

from __future__ import annotations

from typing import Annotated

import typer

from vggt_deploy import options
from vggt_deploy.cli.app import app
from vggt_deploy.cli.arguments import Output

data = typer.Typer(no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]})
app.add_typer(data, name="data")


@data.callback()
def _data() -> None:
    """Fetch real scenes with ground truth."""


@data.command()
def eth3d(
    output: Output,
    scenes: Annotated[
        str,
        typer.Option(
            "--scenes", help="Training scenes, courtyard,delivery_area,..., or all (13 scenes)."
        ),
    ],
    kinds: Annotated[
        str | None,
        typer.Option(
            "--with",
            metavar="KINDS",
            help="Beside the undistorted pictures: depth,occlusion,scan_eval,scan_clean,jpg,raw. "
            "depth and occlusion bring jpg too if its calibration is not there: they lie on the "
            "distorted pictures.",
        ),
    ] = None,
    base_url: Annotated[
        str | None,
        typer.Option("--base-url", metavar="URL", help="A mirror; default: ETH3D's own server."),
    ] = None,
    keep_archives: Annotated[
        bool, typer.Option("--keep-archives", help="Leave the archives in OUTPUT/archives.")
    ] = False,
) -> None:
    """Fetch scenes of ETH3D (CC BY-NC-SA 4.0), each archive once; what was cut is gone on with."""
    from vggt_deploy import progress
    from vggt_deploy.data.eth3d_archives import BASE_URL, LICENCE, check_kinds, check_scenes
    from vggt_deploy.data.eth3d_fetch import fetch_eth3d

    names = check_scenes(options.parse_list(scenes, "--scenes"))
    wanted = check_kinds(options.parse_list(kinds, "--with") if kinds is not None else ())
    typer.echo(LICENCE, err=True)
    with progress.shown() as shown:
        fetched = fetch_eth3d(
            names,
            output,
            kinds=wanted,
            base_url=base_url or BASE_URL,
            keep_archives=keep_archives,
            progress=shown,
        )
    for archive in fetched.archives:
        sha256 = "as known" if archive.sha256_known else f"not known, found {archive.sha256}"
        typer.echo(
            f"{archive.name}: {archive.origin}, {archive.bytes / 1e6:.1f} MB, SHA-256 {sha256}; "
            f"{archive.files} files, {archive.unpacked_bytes / 1e6:.1f} MB"
        )
    for note in fetched.notes:
        typer.echo(f"note: {note}", err=True)
    typer.echo(f"Scenes:  {', '.join(str(folder) for folder in fetched.scenes)}")
    typer.echo(f"Licence: {fetched.licence}")
