"""bundle, verify, unpack, rebuild: from engines to one file, and from that to a device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from vggt_deploy import options
from vggt_deploy.cli.app import app
from vggt_deploy.cli.arguments import AcceptFloat, Json, Overwrite
from vggt_deploy.errors import BundleError

Bundle = Annotated[Path, typer.Argument(help="A file that `vggt-deploy bundle` wrote.")]
PublicKey = Annotated[
    Path | None,
    typer.Option("--public-key", metavar="PEM", help="Accept it only if this key signed it."),
]
Folder = Annotated[Path, typer.Option("-o", "--output", help="Folder to write.")]


@app.command()
def bundle(
    engines: Annotated[
        list[Path], typer.Argument(help="Folders that `vggt-deploy build` (or `export`) wrote.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="File (or folder) to write.")],
    form: Annotated[
        str,
        typer.Option(
            "--format", help="bundle (one file), or triton (a model repository for its server)."
        ),
    ] = "bundle",
    with_onnx: Annotated[
        Path | None,
        typer.Option(
            "--with-onnx", metavar="ARTIFACT", help="Put the ONNX in, so that it can be rebuilt."
        ),
    ] = None,
    accuracy: Annotated[
        Path | None,
        typer.Option(
            "--accuracy",
            metavar="REPORT",
            help="comparison_report.json of `compare`, for its card.",
        ),
    ] = None,
    sign: Annotated[
        Path | None,
        typer.Option(
            "--sign",
            metavar="PEM",
            help="Sign with this Ed25519 key (openssl genpkey -algorithm ed25519).",
        ),
    ] = None,
    model_name: Annotated[
        str | None, typer.Option("--model-name", help="triton: name of the model, if it is one.")
    ] = None,
    instances: Annotated[
        int, typer.Option("--instances", min=1, help="triton: instances on each GPU.")
    ] = 1,
    overwrite: Overwrite = False,
) -> None:
    """Engines -> one checked file for devices, or an NVIDIA Triton model repository."""
    chosen = options.parse_bundle_format(
        form,
        only_bundle={"--with-onnx": with_onnx, "--accuracy": accuracy, "--sign": sign},
        only_triton={
            "--model-name": model_name,
            "--instances": None if instances == 1 else instances,
        },
    )
    from vggt_deploy import api, progress
    from vggt_deploy.engine_tables import print_bundle
    from vggt_deploy.tables import console

    if chosen == "triton":
        names = api.triton_repository(
            engines, output, name=model_name, instances_per_gpu=instances, overwrite=overwrite
        )
        typer.echo(f"{output}: {', '.join(names)}")
        return
    with progress.shown() as shown:
        info = api.bundle(
            engines,
            output,
            with_onnx=with_onnx,
            accuracy=accuracy,
            sign_key=sign,
            overwrite=overwrite,
            progress=shown,
        )
    print_bundle(info, console(), signed=sign is not None)


@app.command()
def verify(
    file: Bundle,
    public_key: PublicKey = None,
    require_fit: Annotated[
        bool,
        typer.Option("--require-fit", help="Exit 1 unless an engine in it is known to run here."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Check a bundle before anything in it is loaded, and say whether this device can run it."""
    from vggt_deploy import api, progress

    with progress.shown() as shown:
        verification = api.verify(file, public_key=public_key, progress=shown)
    if as_json:
        typer.echo(json.dumps(verification.to_json(), indent=1))
    else:
        from vggt_deploy.engine_tables import print_verification
        from vggt_deploy.tables import console

        print_verification(verification, console())
    if require_fit and not verification.runnable:
        raise BundleError(f"no engine of {file} is known to run here", verification.advice)


@app.command()
def unpack(
    file: Bundle,
    output: Folder,
    engine: Annotated[
        str | None, typer.Option("--engine", help="Which one, if the bundle holds several.")
    ] = None,
    public_key: PublicKey = None,
    overwrite: Overwrite = False,
) -> None:
    """Bundle -> engine folder for `run`, after checking all of it."""
    from vggt_deploy import api, progress

    with progress.shown() as shown:
        folder = api.unpack(
            file,
            output,
            engine=engine,
            public_key=public_key,
            overwrite=overwrite,
            progress=shown,
        )
    typer.echo(f"{folder}: run it with `vggt-deploy run {folder} --images DIR -o OUT`")


@app.command()
def rebuild(
    file: Bundle,
    output: Folder,
    device: Annotated[
        str | None,
        typer.Option("--device", help="Default: the device profile of the engine in the bundle."),
    ] = None,
    runtime: Annotated[
        str | None, typer.Option("--runtime", help="Default: that of the engine in the bundle.")
    ] = None,
    public_key: PublicKey = None,
    accept_float: AcceptFloat = False,
    overwrite: Overwrite = False,
) -> None:
    """Make the engine on this device, from the ONNX inside a bundle."""
    from vggt_deploy import api, progress
    from vggt_deploy.engine_tables import print_engine
    from vggt_deploy.tables import console

    with progress.shown() as shown:
        result = api.rebuild(
            file,
            output,
            device=device,
            runtime=runtime,
            public_key=public_key,
            accept_float=accept_float,
            overwrite=overwrite,
            progress=shown,
        )
    print_engine(result.manifest, str(result.folder), console())
