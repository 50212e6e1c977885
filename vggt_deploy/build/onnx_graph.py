"""Reading an ONNX graph without its weights: who writes what, types, shapes, small tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import numpy_helper

from vggt_deploy.errors import BuildError
from vggt_deploy.manifest import is_plain_name

_EXPORT = "export the artifact again"


@dataclass(frozen=True)
class OnnxGraph:
    """A graph with its subgraphs flattened (names of values are unique in an ONNX model).

    types: value -> TensorProto data type, as declared or inferred
    """

    model: onnx.ModelProto
    folder: Path
    nodes: tuple[onnx.NodeProto, ...]
    producers: Mapping[str, onnx.NodeProto]
    initializers: Mapping[str, onnx.TensorProto]
    types: Mapping[str, int]

    def producer(self, value: str, *op_types: str) -> onnx.NodeProto | None:
        """The node that writes the value, if it is one of these operators."""
        node = self.producers.get(value)
        return node if node is not None and node.op_type in op_types else None

    def array(self, name: str) -> npt.NDArray[np.generic]:
        """The numbers of an initializer, read from beside the graph if they lie there.

        Raises:
            BuildError: the weights file lacks them.
        """
        tensor = onnx.TensorProto()
        tensor.CopyFrom(self.initializers[name])
        try:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                _read_external(tensor, self.folder)
            return numpy_helper.to_array(tensor)
        except (OSError, ValueError) as error:
            raise BuildError(f"the numbers of {name} can't be read: {error}", _EXPORT) from error


def read_graph(path: Path) -> OnnxGraph:
    """The graph without the weights that lie beside it.

    Raises:
        BuildError: the file is missing, no ONNX graph, or contradicts itself.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except (OSError, DecodeError) as error:
        raise BuildError(f"{path} is not a readable ONNX graph: {error}", _EXPORT) from error
    if not model.graph.node:
        raise BuildError(f"{path} is an ONNX graph without nodes", _EXPORT)
    graphs = list(_graphs(model.graph))
    types = _types(graphs)
    if any(output not in types for g in graphs for node in g.node for output in node.output):
        types = {**_types(list(_graphs(_inferred(model).graph))), **types}
    nodes = tuple(node for graph in graphs for node in graph.node)
    return OnnxGraph(
        model=model,
        folder=path.parent,
        nodes=nodes,
        producers={output: node for node in nodes for output in node.output if output},
        initializers={t.name: t for graph in graphs for t in graph.initializer},
        types=types,
    )


def static_shapes(graph: OnnxGraph, frames: int) -> dict[str, tuple[int, ...]]:
    """Value -> shape, for an input whose every symbolic size is `frames`.

    Raises:
        BuildError: the shapes contradict each other.
    """
    fixed = onnx.ModelProto()
    fixed.CopyFrom(graph.model)
    dims = [dim for value in fixed.graph.input for dim in value.type.tensor_type.shape.dim]
    names = {dim.dim_param for dim in dims if dim.dim_param}
    for value in (*fixed.graph.input, *fixed.graph.output, *fixed.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in names:
                dim.dim_value = frames  # the fields are a oneof: the name goes
    known = dict(_shapes(fixed))
    # What the exporter wrote as an expression ("5*frames") is inferred instead.
    del fixed.graph.value_info[:]
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    known.update(_shapes(_inferred(fixed)))
    return known


def _inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return onnx.shape_inference.infer_shapes(model, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise BuildError(f"the graph contradicts itself: {error}", _EXPORT) from error


def attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    """An integer attribute of the node."""
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def layer_of(node: onnx.NodeProto) -> str:
    """`<layer>/MatMul_2` -> `<layer>`; a node named otherwise stands for itself."""
    return node.name.rpartition("/")[0] or node.name or node.op_type


def _read_external(tensor: onnx.TensorProto, folder: Path) -> None:
    """Put the bytes into the tensor. onnx's own reader refuses a file with a second hard link."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    if not is_plain_name(location):
        raise ValueError(f"{location!r} is not a file name inside the folder of the graph")
    length = int(entries.get("length", -1))
    with (folder / location).open("rb") as file:
        file.seek(int(entries.get("offset", 0)))
        data = file.read(length)
    if length >= 0 and len(data) != length:
        raise ValueError(f"{location} is cut short")
    del tensor.external_data[:]
    tensor.data_location = onnx.TensorProto.DEFAULT
    tensor.raw_data = data


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for held in node.attribute:
            for inner in (*([held.g] if held.HasField("g") else []), *held.graphs):
                yield from _graphs(inner)


def _types(graphs: list[onnx.GraphProto]) -> dict[str, int]:
    types: dict[str, int] = {}
    for graph in graphs:
        types.update({tensor.name: tensor.data_type for tensor in graph.initializer})
        for value in (*graph.input, *graph.value_info, *graph.output):
            types[value.name] = value.type.tensor_type.elem_type
    return types


def _shapes(model: onnx.ModelProto) -> Iterator[tuple[str, tuple[int, ...]]]:
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        dims = value.type.tensor_type.shape.dim
        if dims and all(dim.HasField("dim_value") for dim in dims):
            yield value.name, tuple(dim.dim_value for dim in dims)
