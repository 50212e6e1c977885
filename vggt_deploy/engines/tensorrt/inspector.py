"""The engine inspector: what a live engine says of its own layers. Needs a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

from vggt_deploy.engines.tensorrt.library import Library
from vggt_deploy.engines.tensorrt.load import (
    load_engine,
    require_device,
    require_machine,
    require_version,
)
from vggt_deploy.errors import DeployError
from vggt_deploy.records import EngineRecord

# TensorRT's class, for readers: the module is known only at run time.
ICudaEngine: TypeAlias = Any


def inspector_json(folder: Path, record: EngineRecord) -> str:
    """The inspector's JSON for the typical frame count, of a plan whose hash was checked.

    Raises:
        RuntimeUnavailableError: no TensorRT, no GPU, or not the ones that it was built for.
        DeployError: TensorRT can't load it.
    """
    library, cuda = require_machine(folder, record)
    require_version(folder, record, library)
    require_device(folder, record, cuda.device)
    cuda.use()
    loaded = load_engine(folder, record, library, cuda.device)
    return describe_layers(library, loaded.engine, record.profiles[0].opt, loaded.log)


def describe_layers(library: Library, engine: ICudaEngine, frames: int, log: Any) -> str:
    """The inspector's JSON of a loaded engine, with every open dimension set to `frames`.

    frames: within the first optimization profile, which a new context has.

    Raises:
        DeployError: TensorRT makes no context, or refuses the shapes.
    """
    trt = library.trt
    # Without memory: nothing is run. With shapes: TensorRT 10 hides types of dynamic ones.
    context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    if context is None:
        raise DeployError(
            f"{library.title} makes no execution context: {log.explain()}", "free the GPU"
        )
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        if engine.get_tensor_mode(name) != trt.TensorIOMode.INPUT:
            continue
        shape = tuple(frames if size == -1 else size for size in engine.get_tensor_shape(name))
        if not context.set_input_shape(name, shape):
            raise DeployError(
                f"{library.title} refuses images of {shape}: {log.explain()}", "build it again"
            )
    inspector = engine.create_engine_inspector()
    inspector.execution_context = context
    return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
