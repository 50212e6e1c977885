"""The application that the commands register with, and what becomes of errors."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from vggt_deploy import __version__
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
