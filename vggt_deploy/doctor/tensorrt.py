"""TensorRT and TensorRT-RTX, each by building a one-node engine with it."""

from __future__ import annotations

from vggt_deploy.doctor.checks import Check
from vggt_deploy.doctor.one_node import one_node_model
from vggt_deploy.engines.tensorrt.library import TensorRTRuntime, load_library
from vggt_deploy.engines.tensorrt.probe import build_smallest
from vggt_deploy.errors import BuildError, RuntimeUnavailableError


def check_tensorrt(runtime: TensorRTRuntime) -> Check:
    """Import it, and build a one-node engine."""
    try:
        library = load_library(runtime)
    except RuntimeUnavailableError as error:
        return Check(runtime, "missing", error.message, error.fix)
    try:
        size = build_smallest(library, one_node_model())
    except BuildError as error:
        return Check(runtime, "missing", error.message, error.fix)
    return Check(runtime, "ok", f"{library.version_text}, built a one-node engine ({size} bytes)")
