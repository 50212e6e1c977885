"""The command line: parse, call one library function, print.

Exit codes: 0 done, 1 the job failed, 2 wrong usage, 130 interrupted. Errors go to stderr with what
to do about them. Nothing heavy is imported before a command needs it: `--help` answers at once.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from vggt_deploy import __version__, options
from vggt_deploy.errors import DeployError


class _Group(TyperGroup):
    """Turns the failures that a user can do something about into a message and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except DeployError as error:
            _complain(str(error))
            raise typer.Exit(error.exit_code) from error
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if package in ("", "vggt_deploy"):
                raise
            _complain(
                f"this command needs the package {package}, which is not installed\n"
                "  fix: pip install 'vggt-deploy[cpu]' (`vggt-deploy doctor` lists what is missing)"
            )
            raise typer.Exit(1) from error
        except KeyboardInterrupt as error:
            typer.echo("interrupted", err=True)
            raise typer.Exit(130) from error


def _complain(text: str) -> None:
    typer.echo(f"error: {text}", err=True)


app = typer.Typer(
    cls=_Group,
    name="vggt-deploy",
    help="Quantize VGGT, export it as ONNX, run it, and measure what was lost on the way.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Entry point of `vggt-deploy`."""
    app()


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"vggt-deploy {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    pass


Model = Annotated[
    str,
    typer.Option(
        "--model",
        help="A .safetensors or .pt file, a Hugging Face id, or random:CONFIG (random:vggt-1b).",
    ),
]
Config = Annotated[
    str | None,
    typer.Option("--config", help="Architecture, if it is not to be found from the weights."),
]
Revision = Annotated[
    str | None, typer.Option("--revision", help="Branch, tag or commit of a Hugging Face model.")
]
Precision = Annotated[
    str | None,
    typer.Option("--precision", help="fp32, fp16 or bf16 for what is not integer."),
]
Outputs = Annotated[
    str, typer.Option("--outputs", help="Some of pose,depth,points; other heads are left out.")
]
Mode = Annotated[
    str, typer.Option("--mode", help="How images are brought to size: crop or pad, as upstream.")
]
Threads = Annotated[
    int | None, typer.Option("--threads", min=1, help="Default: the cores that it may use.")
]
Include = Annotated[
    list[str] | None,
    typer.Option(
        "--include",
        metavar="PATTERN",
        help="Also quantize layers that match this pattern (repeatable).",
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude",
        metavar="PATTERN",
        help="Keep layers that match this pattern in float (repeatable).",
    ),
]
Sensitive = Annotated[
    list[str] | None,
    typer.Option(
        "--sensitive",
        metavar="PATTERN",
        help="Scheme mixed: layers to keep at 8 bit, by pattern (repeatable).",
    ),
]
Images = Annotated[Path, typer.Option("--images", help="A folder of images, or an ETH3D scene.")]
MaxImages = Annotated[
    int | None, typer.Option("--max-images", min=1, help="Use the first N images only.")
]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad-images", help="Leave unreadable images out instead of stopping.")
]
Output = Annotated[Path, typer.Option("-o", "--output", help="Folder to write.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace the output folder if vggt-deploy made it.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


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
        str, typer.Option("--scheme", help="What the weights become: see `vggt-deploy schemes`.")
    ],
    model: Model = options.DEFAULT_MODEL,
    activations: Annotated[
        str, typer.Option("--activations", help="float (weight-only) or dynamic (ONNX Runtime).")
    ] = "float",
    precision: Precision = None,
    outputs: Outputs = "all",
    height: Annotated[
        int, typer.Option("--height", help="Image height in pixels, a multiple of 14.")
    ] = options.DEFAULT_HEIGHT,
    width: Annotated[
        int, typer.Option("--width", help="Image width in pixels, a multiple of 14.")
    ] = options.DEFAULT_WIDTH,
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
    chosen = options.parse_scheme(scheme, activations)
    request: dict[str, Any] = {
        "activations": chosen.activations,
        "precision": options.parse_precision(precision),
        "outputs": options.parse_outputs(outputs),
        "height": options.check_size("--height", height),
        "width": options.check_size("--width", width),
        "frames": options.parse_frames(frames),
        "output_dir": output or options.default_output(model, *chosen),
        "include": tuple(include or ()),
        "exclude": tuple(exclude or ()),
        "sensitive": tuple(sensitive or ()),
    }
    from vggt_deploy import api, progress
    from vggt_deploy.tables import console, print_artifact

    with progress.shown() as shown:
        result = api.export(
            model,
            chosen.scheme,
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
    images: Images,
    output: Output,
    model: Model = options.DEFAULT_MODEL,
    schemes: Annotated[
        str, typer.Option("--schemes", help="all, or labels such as int8_pc_sym+dynamic,int4_g128.")
    ] = "all",
    runtimes: Annotated[
        str, typer.Option("--runtimes", help="Some of torch,onnxruntime.")
    ] = "torch,onnxruntime",
    max_images: MaxImages = None,
    skip_bad_images: SkipBad = False,
    mode: Mode = "crop",
    height: Annotated[
        int | None,
        typer.Option("--height", help="In pixels; default: what the images give at this width."),
    ] = None,
    width: Annotated[
        int, typer.Option("--width", help="Image width in pixels, a multiple of 14.")
    ] = options.DEFAULT_WIDTH,
    outputs: Outputs = "all",
    precision: Precision = None,
    include: Include = None,
    exclude: Exclude = None,
    sensitive: Sensitive = None,
    config: Config = None,
    revision: Revision = None,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Timed runs per variant.")] = 5,
    warmup: Annotated[int, typer.Option("--warmup", min=0, help="Runs before timing.")] = 2,
    threads: Threads = None,
    timeout_s: Annotated[
        float, typer.Option("--timeout", help="Seconds that one export or measurement may take.")
    ] = 3600.0,
    verify: Annotated[
        bool, typer.Option("--verify", help="Also let each export check itself against PyTorch.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the comparison in the output folder.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Schemes x runtimes on your images, against PyTorch FP32: size, time, memory, accuracy."""
    if height is not None:
        options.check_size("--height", height)
    request: dict[str, Any] = {
        "mode": options.parse_mode(mode),
        "width": options.check_size("--width", width),
        "outputs": options.parse_outputs(outputs),
        "precision": options.parse_precision(precision),
        "include": tuple(include or ()),
        "exclude": tuple(exclude or ()),
        "sensitive": tuple(sensitive or ()),
    }
    from vggt_deploy import api

    report = api.compare(
        model,
        images,
        output_dir=output,
        schemes=schemes,
        runtimes=runtimes,
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


@app.command()
def run(
    artifact: Annotated[Path, typer.Argument(help="A folder that `vggt-deploy export` wrote.")],
    images: Images,
    output: Output,
    max_images: MaxImages = None,
    skip_bad_images: SkipBad = False,
    mode: Mode = "crop",
    runtime: Annotated[str, typer.Option("--runtime", help="onnxruntime.")] = "onnxruntime",
    provider: Annotated[str, typer.Option("--provider", help="cpu or cuda.")] = "cpu",
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


@app.command()
def doctor(as_json: Json = False) -> None:
    """What this machine can do, and what to install for the rest."""
    from vggt_deploy.api import diagnose

    diagnosis = diagnose()
    if as_json:
        typer.echo(json.dumps(diagnosis.to_json(), indent=1))
        return
    from vggt_deploy.tables import console, print_diagnosis

    print_diagnosis(diagnosis, console())


@app.command("sample-images")
def sample_images(
    output: Output,
    count: Annotated[int, typer.Option("--count", min=1, help="How many views.")] = 5,
    seed: Annotated[int, typer.Option("--seed", help="Another seed, another room.")] = 0,
    size: Annotated[str, typer.Option("--size", help="WIDTHxHEIGHT in pixels.")] = "640x480",
    overwrite: Overwrite = False,
) -> None:
    """Write views of a rendered room, to try things with."""
    pixels = options.parse_picture_size(size)
    from vggt_deploy.artifact import writing
    from vggt_deploy.data.samples import write_sample_images

    with writing(output, overwrite=overwrite, marker="view_000.png") as folder:
        paths = write_sample_images(folder, count=count, seed=seed, size=pixels)
    typer.echo(f"{output}: {len(paths)} images")
