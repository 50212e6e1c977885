"""What an ONNX graph holds, for `engines.kernels.prove` to look for in the engine.

A quantized Linear is a MatMul whose right operand comes from a DequantizeLinear of stored integers.
Nodes are named `<layer>/MatMul` or `<layer>/MatMul_<n>`; that is how `export` writes them, and how
an engine names what it fused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path

import onnx
from onnx import TensorProto

from vggt_deploy.build.onnx_graph import OnnxGraph, layer_of, read_graph, static_shapes
from vggt_deploy.engines.kernels import AttentionExpectation, LinearExpectation
from vggt_deploy.errors import BuildError

_DTYPES: dict[int, str] = {
    TensorProto.FLOAT: "float",
    TensorProto.FLOAT16: "half",
    TensorProto.BFLOAT16: "bfloat16",
}
_BITS: dict[int, int] = {
    TensorProto.FLOAT: 32,
    TensorProto.FLOAT16: 16,
    TensorProto.BFLOAT16: 16,
    TensorProto.INT8: 8,
    TensorProto.UINT8: 8,
    TensorProto.INT4: 4,
    TensorProto.UINT4: 4,
}
# What may stand between the scores and the softmax, or the softmax and the values.
_PASSING = ("Cast", "Reshape", "Transpose", "Identity")

Product = tuple[onnx.NodeProto, onnx.NodeProto]  # MatMul and the DequantizeLinear of its weight


def expected_linears(graph: Path, frames: int) -> dict[str, LinearExpectation]:
    """Every quantized Linear, with the rows that a run of `frames` frames multiplies.

    Raises:
        BuildError: the file is no ONNX graph, or the sizes of a product can't be inferred.
    """
    read = read_graph(graph)
    found: dict[str, list[Product]] = {}
    for node in read.nodes:
        if node.op_type != "MatMul":
            continue
        weight = read.producer(node.input[1], "DequantizeLinear")
        if weight is not None and weight.input[0] in read.initializers:
            found.setdefault(layer_of(node), []).append((node, weight))
    if not found:
        return {}
    shapes = static_shapes(read, frames)
    return {layer: _linear(products, read, shapes) for layer, products in found.items()}


def expected_attentions(graph: Path) -> tuple[AttentionExpectation, ...]:
    """Every MatMul -> Softmax -> MatMul of the graph, in its order.

    Raises:
        BuildError: the file is no ONNX graph.
    """
    read = read_graph(graph)
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in read.nodes:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found = []
    for node in read.nodes:
        if node.op_type != "Softmax":
            continue
        scores = _before(read, node.input[0])
        values = next(_after(readers, node.output[0]), None)
        if scores is not None and values is not None:
            dtype = _DTYPES.get(read.types.get(node.output[0], 0), "unknown")
            found.append(AttentionExpectation(scores.name, node.name, values.name, dtype))
    return tuple(found)


def _linear(
    products: list[Product], read: OnnxGraph, shapes: Mapping[str, tuple[int, ...]]
) -> LinearExpectation:
    _, weight = products[0]
    q = read.initializers[weight.input[0]]
    inputs, outputs = q.dims
    rows = 0
    for node, _ in products:
        shape = shapes.get(node.input[0])
        if not shape or shape[-1] != inputs:
            raise BuildError(
                f"{node.name}: its left operand has the shape {shape}, its weight {tuple(q.dims)}",
                "the graph was edited after the export: export it again",
            )
        rows += prod(shape[:-1])
    return LinearExpectation(
        outputs=outputs,
        inputs=inputs,
        products=tuple(node.name for node, _ in products),
        rows=rows,
        weight_bytes=_packed_bytes(q) + _packed_bytes(read.initializers[weight.input[1]]),
    )


def _packed_bytes(tensor: onnx.TensorProto) -> int:
    return (prod(int(size) for size in tensor.dims) * _BITS[tensor.data_type] + 7) // 8


def _before(read: OnnxGraph, value: str) -> onnx.NodeProto | None:
    """The MatMul that the value comes from, through nodes that compute nothing."""
    while (node := read.producers.get(value)) is not None:
        if node.op_type == "MatMul":
            return node
        if node.op_type not in _PASSING:
            return None
        value = node.input[0]
    return None


def _after(readers: Mapping[str, list[onnx.NodeProto]], value: str) -> Iterator[onnx.NodeProto]:
    """The MatMuls whose left operand the value becomes, through nodes that compute nothing."""
    for node in readers.get(value, ()):
        if node.op_type == "MatMul" and node.input[0] == value:
            yield node
        elif node.op_type in _PASSING:
            yield from _after(readers, node.output[0])
