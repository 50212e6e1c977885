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
    from vggt_deploy.build import build as build
    from vggt_deploy.compare import compare as compare
    from vggt_deploy.data.eth3d_fetch import fetch_eth3d as fetch_eth3d
    from vggt_deploy.data.scenes import write_scenes as scene
    from vggt_deploy.doctor import diagnose as diagnose
    from vggt_deploy.engines.inspect import inspect_engine as inspect
    from vggt_deploy.engines.run import run as run
    from vggt_deploy.export import export as export
    from vggt_deploy.qat.pipeline import qat as qat
    from vggt_deploy.quantize.calibration import collect_statistics as calibrate
    from vggt_deploy.quantize.targets import scheme_rows as schemes
    from vggt_deploy.report.write import rewrite as report
    from vggt_deploy.search.pipeline import search as search
    from vggt_deploy.sensitivity.bisect import bisect as bisect
    from vggt_deploy.sensitivity.pipeline import sensitivity as sensitivity
    from vggt_deploy.ship.bundle import bundle as bundle
    from vggt_deploy.ship.rebuild import rebuild as rebuild
    from vggt_deploy.ship.triton import write_triton_repository as triton_repository
    from vggt_deploy.ship.verify import unpack as unpack
    from vggt_deploy.ship.verify import verify as verify
    from vggt_deploy.train.evaluate import evaluate as evaluate
    from vggt_deploy.train.pipeline import train as train
    from vggt_deploy.visualize import visualize as visualize

__all__ = [
    "bisect",
    "build",
    "bundle",
    "calibrate",
    "compare",
    "diagnose",
    "evaluate",
    "export",
    "fetch_eth3d",
    "inspect",
    "qat",
    "rebuild",
    "report",
    "run",
    "scene",
    "schemes",
    "search",
    "sensitivity",
    "train",
    "triton_repository",
    "unpack",
    "verify",
    "visualize",
]

# Verb -> (module, function). The same as the imports above, which are for tools that read types.
_VERBS = {
    "bisect": ("vggt_deploy.sensitivity.bisect", "bisect"),
    "build": ("vggt_deploy.build", "build"),
    "bundle": ("vggt_deploy.ship.bundle", "bundle"),
    "calibrate": ("vggt_deploy.quantize.calibration", "collect_statistics"),
    "compare": ("vggt_deploy.compare", "compare"),
    "diagnose": ("vggt_deploy.doctor", "diagnose"),
    "evaluate": ("vggt_deploy.train.evaluate", "evaluate"),
    "export": ("vggt_deploy.export", "export"),
    "fetch_eth3d": ("vggt_deploy.data.eth3d_fetch", "fetch_eth3d"),
    "inspect": ("vggt_deploy.engines.inspect", "inspect_engine"),
    "qat": ("vggt_deploy.qat.pipeline", "qat"),
    "rebuild": ("vggt_deploy.ship.rebuild", "rebuild"),
    "report": ("vggt_deploy.report.write", "rewrite"),
    "run": ("vggt_deploy.engines.run", "run"),
    "scene": ("vggt_deploy.data.scenes", "write_scenes"),
    "schemes": ("vggt_deploy.quantize.targets", "scheme_rows"),
    "search": ("vggt_deploy.search.pipeline", "search"),
    "sensitivity": ("vggt_deploy.sensitivity.pipeline", "sensitivity"),
    "train": ("vggt_deploy.train.pipeline", "train"),
    "triton_repository": ("vggt_deploy.ship.triton", "write_triton_repository"),
    "unpack": ("vggt_deploy.ship.verify", "unpack"),
    "verify": ("vggt_deploy.ship.verify", "verify"),
    "visualize": ("vggt_deploy.visualize", "visualize"),
}


def __getattr__(name: str) -> Any:
    if name not in _VERBS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, function = _VERBS[name]
    return getattr(import_module(module), function)


def __dir__() -> list[str]:
    return sorted([*globals(), *_VERBS])
