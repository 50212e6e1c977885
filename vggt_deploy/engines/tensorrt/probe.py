"""Whether this TensorRT builds an engine here: found by building the smallest one."""

from __future__ import annotations

from vggt_deploy.engines.tensorrt.library import Library
from vggt_deploy.errors import BuildError


def build_smallest(library: Library, model: bytes) -> int:
    """Parse a serialized ONNX model of static shapes and build it; bytes of the plan.

    TensorRT-RTX needs no GPU for it. TensorRT does, and takes seconds to load its kernels.

    Raises:
        BuildError: TensorRT says no, with its reason.
    """
    trt = library.trt
    log = library.error_log()
    try:
        builder = trt.Builder(log)
    except TypeError as error:  # pybind11: the factory returned no object
        raise _failure(library, "makes no builder", log.explain()) from error
    network = builder.create_network()
    parser = trt.OnnxParser(network, log)
    if not parser.parse(model):
        raise _failure(library, "reads no ONNX model", log.explain())
    plan = builder.build_serialized_network(network, builder.create_builder_config())
    if plan is None:
        raise _failure(library, "builds no engine", log.explain())
    return int(plan.nbytes)


def _failure(library: Library, what: str, why: str) -> BuildError:
    fix = (
        "reinstall it in a fresh environment: pip install 'vggt-deploy[rtx]'"
        if library.is_rtx
        else "TensorRT builds on the device only: an NVIDIA GPU and a driver that fits its CUDA "
        "(in a container: --gpus all); without a GPU, build with --runtime tensorrt-rtx"
    )
    return BuildError(f"{library.title} {what} here: {why}", fix)
