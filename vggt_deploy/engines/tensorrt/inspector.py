"""The engine inspector: what a live engine says of its own layers. Needs a GPU."""

from __future__ import annotations

from pathlib import Path

from vggt_deploy.engines.tensorrt.load import (
    load_engine,
    require_device,
    require_machine,
    require_version,
)
from vggt_deploy.errors import DeployError
from vggt_deploy.records import EngineRecord, Manifest


def inspector_json(folder: Path, manifest: Manifest, record: EngineRecord) -> str:
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
    trt, engine = library.trt, loaded.engine
    # Without memory: nothing is run. With shapes: TensorRT 10 hides types of dynamic ones.
    context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    if context is None:
        raise DeployError(
            f"{library.title} makes no execution context: {loaded.log.explain()}", "free the GPU"
        )
    frames = record.profiles[0].opt  # of the profile that a new context has
    shape = (1, frames, 3, manifest.height, manifest.width)
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs = [n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
    if not all(context.set_input_shape(name, shape) for name in inputs):
        raise DeployError(
            f"{library.title} refuses images of {shape}: {loaded.log.explain()}", "build it again"
        )
    inspector = engine.create_engine_inspector()
    inspector.execution_context = context
    return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
