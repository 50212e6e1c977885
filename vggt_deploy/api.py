"""The verbs of the command line as functions with typed results, for scripts and notebooks.

    from vggt_deploy.api import compare, diagnose, export, run, schemes

    artifact = export("facebook/VGGT-1B", "int8_pc_sym", output_dir=Path("vggt-1b-int8")).folder
    run(artifact, Path("photographs"), Path("result"))

Each name is imported on first use, so that `diagnose()` needs no torch and `run()` no onnx. All of
them raise a `DeployError` (see `vggt_deploy.errors`) for what a user can put right.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vggt_deploy.compare import compare as compare
    from vggt_deploy.doctor import diagnose as diagnose
    from vggt_deploy.engines.run import run as run
    from vggt_deploy.export import export as export
    from vggt_deploy.quantize.targets import scheme_rows as schemes

__all__ = ["compare", "diagnose", "export", "run", "schemes"]

# Verb -> (module, function). The same as the imports above, which are for tools that read types.
_VERBS = {
    "compare": ("vggt_deploy.compare", "compare"),
    "diagnose": ("vggt_deploy.doctor", "diagnose"),
    "export": ("vggt_deploy.export", "export"),
    "run": ("vggt_deploy.engines.run", "run"),
    "schemes": ("vggt_deploy.quantize.targets", "scheme_rows"),
}


def __getattr__(name: str) -> Any:
    if name not in _VERBS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, function = _VERBS[name]
    return getattr(import_module(module), function)


def __dir__() -> list[str]:
    return sorted([*globals(), *_VERBS])
