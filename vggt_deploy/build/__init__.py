"""Artifact + device profile -> engine folder: a serialized TensorRT engine, its proof, a manifest.

The verb is `vggt_deploy.api.build`; the modules, in the order in which the work passes them:

    profiles     devices, as TOML               machine      the GPU that is here, or none
    settings     what is asked of TensorRT      check        what it would refuse, said first
    configure    settings -> TensorRT's own     timing       kernels timed before
    builder      graph -> plan                  plan_file    the plan on its way to disk
    monitor      how far it is                  interrupt    Ctrl-C meanwhile
    expect       what has to be proven          pipeline     all of it
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vggt_deploy.build.pipeline import BuildResult as BuildResult
    from vggt_deploy.build.pipeline import build as build

__all__ = ["BuildResult", "build"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from vggt_deploy.build import pipeline

    return getattr(pipeline, name)
