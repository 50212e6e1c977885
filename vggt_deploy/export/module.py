"""Any network as a QDQ graph: the export stage for what is not a VGGT.

    module with real weights ─► trace ─► simplify ─► integers ─┬► model.onnx
                                                               └► model.tensorrt.onnx
    ─► run both in ONNX Runtime against the PyTorch module ─► module.json ─► rename into place

The steps are VGGT's own (`simplify`, `materialize`, `qdq`, `finish`). What is VGGT's alone is left
out: weights that are never in memory, position tables, the camera head's loop, half precision. The
network has to be small enough to be in memory, in FP32, and one that `torch.export` can trace.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

import vggt_deploy
from vggt_deploy.artifact import writing
from vggt_deploy.errors import ExportError, UsageError, VerifyError
from vggt_deploy.export.finish import finish
from vggt_deploy.export.materialize import materialize
from vggt_deploy.export.module_record import (
    RECORD_NAME,
    SCHEMA,
    ModuleArtifact,
    ModuleRecord,
    open_module,
    open_session,
    session_of,
)
from vggt_deploy.export.pipeline import (
    GRAPH_NAMES,
    WEIGHTS_NAME,
    Stored,
    installed_versions,
    session_settings,
)
from vggt_deploy.export.qdq import GraphTarget, insert_integers
from vggt_deploy.export.simplify import simplify
from vggt_deploy.export.trace import to_graph
from vggt_deploy.export.verify import (
    PERTURBATION,
    TOLERANCE,
    TOLERANCE_ROUNDED_FACTOR,
    TOLERANCE_ROUNDED_MOST,
    Arrays,
    compare_outputs,
)
from vggt_deploy.export.weights_file import WeightsFile
from vggt_deploy.manifest import hash_file, now
from vggt_deploy.model.sources import ModelOrigin
from vggt_deploy.progress import Progress, silent
from vggt_deploy.quantize.apply import replace_layers
from vggt_deploy.quantize.plan import layers_in
from vggt_deploy.quantize.prepared import Integers
from vggt_deploy.quantize.schemes import Activations, WeightFormat
from vggt_deploy.records import FileRecord, GraphRecord

__all__ = ["ModuleArtifact", "ModuleRecord", "export_module", "open_module", "open_session"]

MAX_DYNAMIC = 1 << 16


@dataclass(frozen=True)
class _Job:
    """What was asked for."""

    model: nn.Module
    inputs: Mapping[str, Tensor]
    outputs: tuple[str, ...]
    dynamic: Mapping[str, Mapping[int, str]]
    formats: Mapping[str, WeightFormat]
    integers: Integers | None
    activations: Activations
    input_scales: Mapping[str, float]

    @property
    def targets(self) -> tuple[GraphTarget, ...]:
        """Dynamic ranges are found by operators that TensorRT has not."""
        return ("onnxruntime",) if self.activations == "dynamic" else ("onnxruntime", "tensorrt")


def export_module(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str],
    formats: Mapping[str, WeightFormat],
    integers: Integers | None = None,
    *,
    output_dir: Path,
    activations: Activations = "float",
    input_scales: Mapping[str, float] | None = None,
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
    verify: bool = True,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ModuleArtifact:
    """Write a network with quantized layers as graphs that ONNX Runtime and TensorRT read.

    inputs: name -> example, one for each argument of `forward`, in its order; `outputs` names what
    it returns. dynamic: input -> axis -> name, for sizes that are not fixed; the example has at
    least 3 along them (torch takes 1 and 2 for constants).
    formats, integers, activations, input_scales: as for `quantize.apply.replace_layers`.

    Raises:
        UsageError: training mode, weights that are not FP32, a layer or axis that is not there.
        CalibrationError, QuantizeError: as `replace_layers`.
        ExportError, VerifyError: the graph could not be made or is wrong; nothing is left behind.
        ArtifactError: the folder is in use, not empty, or the disk is full.
    """
    job = _Job(
        model,
        dict(inputs),
        tuple(outputs),
        dict(dynamic or {}),
        dict(formats),
        integers,
        activations,
        dict(input_scales or {}),
    )
    _check(job)
    # Refuses, in its own words, formats and scales that make no sense, before the long trace.
    expected = copy.deepcopy(model)
    replace_layers(
        expected, formats, integers, activations=activations, input_scales=job.input_scales
    )
    report = progress or silent
    with writing(Path(output_dir), overwrite=overwrite, marker=RECORD_NAME) as folder:
        record = _write(job, folder, report)
        if verify:
            report("verify", 0, 0)
            errors = _verify(job, expected, folder, record)
            record = dataclasses.replace(record, relative_l2_error=errors)
        text = json.dumps(dataclasses.asdict(record), indent=1, allow_nan=False) + "\n"
        (folder / RECORD_NAME).write_text(text, encoding="utf-8")
    return ModuleArtifact(Path(output_dir), record)


def _check(job: _Job) -> None:
    if job.model.training:
        raise UsageError("the network is in training mode", "call model.eval() first")
    for name, tensor in job.model.state_dict().items():
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise UsageError(f"{name} is {tensor.dtype}, not FP32", "call model.float() first")
    for name, axes in job.dynamic.items():
        shape = job.inputs[name].shape if name in job.inputs else ()
        for axis in axes:
            if not 0 <= axis < len(shape) or shape[axis] < 3:
                raise UsageError(
                    f"axis {axis} of {name!r} can't be dynamic: the example has shape "
                    f"{list(shape)}",
                    "name an axis of an input, and give an example with 3 or more along it",
                )


def _write(job: _Job, folder: Path, progress: Progress) -> ModuleRecord:
    progress("trace", 0, 0)
    sizes = {name for axes in job.dynamic.values() for name in axes.values()}
    dims = {name: torch.export.Dim(name, min=1, max=MAX_DYNAMIC) for name in sorted(sizes)}
    shapes = tuple(
        {axis: dims[size] for axis, size in job.dynamic.get(name, {}).items()}
        for name in job.inputs
    )
    traced = to_graph(job.model, dict(job.inputs), shapes, list(job.outputs))
    source = _traced_weights(traced.graph, job.model)
    simplify(traced)
    layers = {layer.name: layer for layer in layers_in(job.model)}
    with WeightsFile(folder / WEIGHTS_NAME) as weights, torch.no_grad():
        stored = materialize(
            traced.graph,
            source,
            {},
            layers,
            job.formats,
            weights,
            rank_1="tensorrt" in job.targets,
            progress=progress,
            input_scales=job.input_scales,
            integers=job.integers,
            prefix="",
        )
    _require_all(job, stored)
    graphs = {target: _write_graph(job, traced, stored, folder, target) for target in job.targets}
    files = {WEIGHTS_NAME: FileRecord(weights.bytes_written, weights.sha256)}
    for graph in graphs.values():
        path = folder / graph.file
        files[graph.file] = FileRecord(path.stat().st_size, hash_file(path))
    return ModuleRecord(
        schema=SCHEMA,
        tool_version=vggt_deploy.__version__,
        created=now(),
        network=type(job.model).__name__,
        inputs=tuple(job.inputs),
        outputs=job.outputs,
        activations=job.activations,
        formats={name: form.label for name, form in job.formats.items()},
        input_scales=dict(job.input_scales),
        graphs={str(target): graph for target, graph in graphs.items()},
        files=files,
        versions=installed_versions(),
    )


def _write_graph(
    job: _Job, traced: ir.Model, stored: Stored, folder: Path, target: GraphTarget
) -> GraphRecord:
    model = traced.clone()
    insert_integers(model.graph, stored, activations=job.activations, target=target)
    path = folder / GRAPH_NAMES[target]
    four_bit = any(weight.format.bits == 4 for weight in stored.values())
    name = type(job.model).__name__
    opset = finish(model, path, four_bit=four_bit, name=name, prefix="")
    if target == "tensorrt":
        return GraphRecord(path.name, opset)
    return GraphRecord(path.name, opset, *session_settings(job.activations, bool(stored)))


def _require_all(job: _Job, stored: Stored) -> None:
    """Each planned layer has its integers in the graph: none was left float in silence."""
    written = {weight.layer for weight in stored.values()}
    if missing := [name for name in job.formats if name not in written]:
        raise ExportError(
            f"the graph does not read the weight of {missing[0]} under that name: the network "
            "does not use it on the example, or shares it with another layer",
            "leave the layer out of `formats`, or give each layer a weight of its own",
        )


@dataclass(frozen=True)
class _TracedWeights:
    """The float tensors of a traced graph, by the name of their initializer."""

    tensors: Mapping[str, Tensor]
    network: str

    @property
    def origin(self) -> ModelOrigin:
        return ModelOrigin(spec=self.network, kind="file")

    def keys(self) -> tuple[str, ...]:
        return tuple(self.tensors)

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(self.tensors[key].shape)

    def load(self, key: str) -> Tensor:
        return self.tensors[key]


def _traced_weights(graph: ir.Graph, model: nn.Module) -> _TracedWeights:
    """Parameters, buffers, and constants that the trace lifted out of the code, which have no name
    in the module: so the graph is asked, not the module.
    """
    tensors = {}
    for name, value in graph.initializers.items():
        if value.const_value is not None and value.dtype == ir.DataType.FLOAT:
            tensors[name] = torch.from_numpy(value.const_value.numpy().copy())
    return _TracedWeights(tensors, type(model).__name__)


def _verify(
    job: _Job, expected: nn.Module, folder: Path, record: ModuleRecord
) -> dict[str, dict[str, float]]:
    """Every graph on the example, and on one that is shorter along the dynamic axes, so that a size
    frozen into the graph is seen; the rule of `verify` for what is still rounding.
    """
    trials = [job.inputs, *([_shorter(job)] if job.dynamic else [])]
    run = partial(_torch_outputs, expected, job.outputs)
    wanted = [run(trial) for trial in trials]
    limit = TOLERANCE["fp32"]
    if job.activations != "float":
        for trial, still in zip(trials, wanted, strict=True):
            moved = run({name: _moved(value) for name, value in trial.items()})
            own = max(compare_outputs(moved, still).values())
            limit = max(limit, TOLERANCE_ROUNDED_FACTOR * own)
        limit = min(limit, TOLERANCE_ROUNDED_MOST)
    errors: dict[str, dict[str, float]] = {}
    for target, graph in record.graphs.items():
        session = session_of(folder, record, graph.file)
        worst = dict.fromkeys(job.outputs, 0.0)
        for trial, want in zip(trials, wanted, strict=True):
            feed = {name: value.numpy() for name, value in trial.items()}
            got: dict[str, Any] = dict(
                zip(job.outputs, session.run(list(job.outputs), feed), strict=True)
            )
            for name, error in compare_outputs(got, want).items():
                worst[name] = max(worst[name], error)
        if wrong := {name: error for name, error in worst.items() if not error <= limit}:
            listed = ", ".join(f"{name} {error:.2g}" for name, error in wrong.items())
            raise VerifyError(
                f"{graph.file} does not compute what PyTorch computes: relative error of {listed}; "
                f"rounding explains {limit:g}",
                "nothing was written; look at the graph with verify=False",
            )
        errors[target] = worst
    return errors


def _shorter(job: _Job) -> dict[str, Tensor]:
    """The example less the last entry along every dynamic axis."""
    shorter = dict(job.inputs)
    for name, axes in job.dynamic.items():
        for axis in axes:
            shorter[name] = shorter[name].narrow(axis, 0, shorter[name].shape[axis] - 1)
    return {name: value.contiguous() for name, value in shorter.items()}


def _moved(value: Tensor) -> Tensor:
    return value * (1 + PERTURBATION) if value.is_floating_point() else value


@torch.no_grad()
def _torch_outputs(
    model: nn.Module, outputs: Sequence[str], inputs: Mapping[str, Tensor]
) -> Arrays:
    given = model(*inputs.values())
    values = given if isinstance(given, tuple) else (given,)
    if len(values) != len(outputs):
        raise UsageError(
            f"the network returns {len(values)} tensors, {len(outputs)} were named",
            "name each of them",
        )
    return {name: value.numpy() for name, value in zip(outputs, values, strict=True)}
