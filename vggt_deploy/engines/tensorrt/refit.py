"""Weights into a weight-stripped engine, from the graph that it was built from.

A stripped plan holds kernels and no weights; the folder of such an engine also holds the graph and
its weights file. TensorRT chose the kernels knowing the weights, so they must be the same to the
last bit: the manifest names the graph and the weights by SHA-256, and `read_manifest` has checked
them before an engine is opened.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

from vggt_deploy.engines.tensorrt.library import Library
from vggt_deploy.errors import ArtifactError, BuildError
from vggt_deploy.manifest import read_manifest
from vggt_deploy.records import Manifest

# TensorRT's class, for readers: the module is known only at run time.
ICudaEngine: TypeAlias = Any


def refit_graph(folder: Path, manifest: Manifest) -> Path:
    """The graph from which a stripped engine gets its weights.

    Raises:
        ArtifactError: the folder does not have it.
    """
    engine = manifest.engine
    if engine is None or not engine.stripped:
        raise ArtifactError(
            f"{folder} holds no weight-stripped engine", "open it as it is: it needs no refit"
        )
    hashes = {record.sha256: name for name, record in manifest.files.items()}
    missing = [
        what
        for what, digest in (("graph", engine.onnx_sha256), ("weights", engine.weights_sha256))
        if digest not in hashes
    ]
    if missing:
        raise ArtifactError(
            f"{folder} holds a weight-stripped engine without the {' and '.join(missing)} that "
            "it was built from",
            "copy the whole engine folder again, or build it again with --strip",
        )
    return folder / hashes[engine.onnx_sha256]


def refit(library: Library, engine: ICudaEngine, folder: Path) -> None:
    """Put the weights into an engine that was opened from `folder`. Needs its GPU.

    Raises:
        ArtifactError: the folder does not have them.
        BuildError: TensorRT refuses.
    """
    graph = refit_graph(folder, read_manifest(folder, check_hashes=False))
    refit_from_graph(library, engine, graph, library.error_log())


def refit_from_graph(library: Library, engine: ICudaEngine, graph: Path, log: Any) -> None:
    """Put the weights of `graph`, and of the files beside it, into `engine`.

    Raises:
        BuildError: TensorRT refuses, or weights are still missing afterwards.
    """
    trt = library.trt
    fix = "build the engine again without --strip"
    try:
        refitter = trt.Refitter(engine, log)
        parser = trt.OnnxParserRefitter(refitter, log)
    except TypeError as error:  # pybind11: the factory returned no object
        raise BuildError(
            f"{library.title} can't put weights into this engine:\n    {log.explain()}", fix
        ) from error
    if not parser.refit_from_file(str(graph)):
        lines = [str(parser.get_error(index).desc()) for index in range(parser.num_errors)]
        said = "\n    ".join(dict.fromkeys(lines)) or log.explain()
        raise BuildError(f"{library.title} can't read weights from {graph}:\n    {said}", fix)
    missing = [str(name) for name in refitter.get_missing_weights()]
    if missing:
        raise BuildError(
            f"{len(missing)} weights of the engine are not in {graph.name}: "
            f"{', '.join(missing[:5])}",
            fix,
        )
    if not refitter.refit_cuda_engine():
        raise BuildError(
            f"{library.title} can't put the weights into the engine:\n    {log.explain()}", fix
        )
