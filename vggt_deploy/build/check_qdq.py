"""The part of the check that looks at QuantizeLinear, DequantizeLinear and what they hold.

TensorRT quantizes symmetrically to INT8 and (weights, in blocks) INT4, with positive scales. Its
sources: the parser's importer of both operators and NvInfer.h; what TensorRT-RTX 1.7 does with each
wrong graph is held by the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx
from onnx import TensorProto

from vggt_deploy.build.findings import Finding
from vggt_deploy.build.onnx_graph import OnnxGraph, attribute, layer_of

_UNSIGNED: dict[int, str] = {TensorProto.UINT8: "UINT8", TensorProto.UINT4: "UINT4"}
_FOUR_BIT = (TensorProto.INT4, TensorProto.UINT4)
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
_HALF_SMALLEST_NORMAL = float(np.finfo(np.float16).smallest_normal)
_REQUANTIZE = "quantize again; `export` never writes such a scale, so the graph was edited"
_SYMMETRIC = (
    "use model.tensorrt.onnx of the artifact, where an asymmetric weight is written without zero "
    "points, or a symmetric scheme"
)


def check_quantization(graph: OnnxGraph) -> Iterator[Finding]:
    """Findings of every QuantizeLinear and DequantizeLinear, each initializer looked at once."""
    scales: set[str] = set()
    zeros: set[str] = set()
    rules: tuple[Callable[[OnnxGraph, onnx.NodeProto], Iterator[Finding]], ...] = (
        _types,
        _shape,
        _constants,
    )
    for node in graph.nodes:
        if node.op_type == "MatMul":
            yield from _four_bit_product(graph, node)
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        for rule in rules:
            yield from rule(graph, node)
        if node.input[1] in graph.initializers and node.input[1] not in scales:
            scales.add(node.input[1])
            yield from _scale_values(graph, node)
        zero = _zero_point(node)
        if zero in graph.initializers and zero not in zeros:
            zeros.add(zero)
            if np.any(graph.array(zero).astype(np.int32)):
                problem = f"the zero points {zero} are not all 0, and TensorRT takes no others"
                yield Finding(layer_of(node), problem, _SYMMETRIC)
    yield from _integer_readers(graph)


def _zero_point(node: onnx.NodeProto) -> str:
    return node.input[2] if len(node.input) > 2 else ""


def _integer_type(graph: OnnxGraph, node: onnx.NodeProto) -> int:
    """The integer type that the node writes or reads, 0 if the graph does not say."""
    if zero := _zero_point(node):
        return graph.types.get(zero, 0)
    if node.op_type == "QuantizeLinear":
        return attribute(node, "output_dtype", 0)
    # What comes from a QuantizeLinear is that node's matter.
    return graph.types[node.input[0]] if node.input[0] in graph.initializers else 0


def _types(graph: OnnxGraph, node: onnx.NodeProto) -> Iterator[Finding]:
    layer, zero = layer_of(node), _zero_point(node)
    integer = _integer_type(graph, node)
    if integer in _UNSIGNED:
        problem = f"it quantizes to {_UNSIGNED[integer]}, TensorRT only to signed types"
        yield Finding(layer, problem, _SYMMETRIC)
    if not integer and node.op_type == "QuantizeLinear":
        yield Finding(
            layer,
            "QuantizeLinear without a zero point means UINT8 to ONNX and INT8 to TensorRT",
            "give it an INT8 zero point of 0",
        )
    if zero and attribute(node, "output_dtype", 0) and node.op_type == "DequantizeLinear":
        yield Finding(
            layer,
            "DequantizeLinear has a zero point and output_dtype, which TensorRT takes for a "
            "contradiction",
            "drop output_dtype: the type of the scale says the same",
        )
    if node.op_type == "QuantizeLinear":
        yield from _scale_type(graph, node)


def _scale_type(graph: OnnxGraph, node: onnx.NodeProto) -> Iterator[Finding]:
    """A half-precision scale must have the type of what it quantizes; FP32 goes with all."""
    value, scale = (graph.types.get(name, 0) for name in node.input[:2])
    if scale in _FLOATS[1:] and value in _FLOATS and scale != value:
        kinds = [TensorProto.DataType.Name(kind) for kind in (scale, value)]
        problem = "the scale is {}, what it quantizes {}".format(*kinds)
        yield Finding(layer_of(node), problem, "give the scale the type of the input")


def _shape(graph: OnnxGraph, node: onnx.NodeProto) -> Iterator[Finding]:
    """Scales that don't fit the data: TensorRT divides the sizes and asks no more."""
    layer = layer_of(node)
    data, scale = (graph.initializers.get(name) for name in node.input[:2])
    if data is None or scale is None:
        return
    sizes, counts = tuple(data.dims), tuple(scale.dims)
    block = attribute(node, "block_size", 0)
    if data.data_type in _FOUR_BIT and int(np.prod(sizes)) % 2:
        yield Finding(layer, f"{sizes} is an odd number of 4-bit weights", "pad it to an even one")
    if len(counts) == 0 or (len(counts) == 1 and counts[0] == 1 and not block):
        return
    axis = attribute(node, "axis", 1)
    axis += len(sizes) if axis < 0 else 0
    cure = "export again: group size and scales come from different weights"
    if len(counts) == 1:
        if axis >= len(sizes) or counts[0] != sizes[axis]:
            problem = f"{counts[0]} scales along axis {axis} of a weight of {sizes}"
            yield Finding(layer, problem, cure)
    elif len(counts) != len(sizes) or axis >= len(sizes):
        yield Finding(layer, f"scales of {counts} for a weight of {sizes}", cure)
    else:
        wanted = list(sizes)
        wanted[axis] = -(-sizes[axis] // block) if block else counts[axis]
        whole = sizes[axis] % (block or max(counts[axis], 1)) == 0
        if list(counts) != wanted or not whole:
            yield Finding(
                layer,
                f"groups of {block} in a weight of {sizes} must be whole and have scales of "
                f"{tuple(wanted)}, there are {counts}",
                cure,
            )


def _constants(graph: OnnxGraph, node: onnx.NodeProto) -> Iterator[Finding]:
    names = {"scale": node.input[1], "zero point": _zero_point(node)}
    for what, name in names.items():
        if name and name not in graph.initializers and not _is_constant(graph, name):
            yield Finding(
                layer_of(node),
                f"the {what} is computed in the graph, TensorRT wants a constant",
                "use static activations (--activations static) or none (float)",
            )


def _is_constant(graph: OnnxGraph, name: str) -> bool:
    node = graph.producer(name, "Constant", "Cast")
    if node is None:
        return False
    return node.op_type == "Constant" or node.input[0] in graph.initializers


def _scale_values(graph: OnnxGraph, node: onnx.NodeProto) -> Iterator[Finding]:
    name = node.input[1]
    scale = graph.array(name)
    values = scale.astype(np.float32)
    bad = int(np.count_nonzero(~(values > 0) | ~np.isfinite(values)))
    if bad:
        problem = f"{bad} of {values.size} scales in {name} are not positive numbers"
        yield Finding(layer_of(node), problem, _REQUANTIZE)
    elif scale.dtype == np.float16 and (
        small := int(np.count_nonzero(values < _HALF_SMALLEST_NORMAL))
    ):
        yield Finding(
            layer_of(node),
            f"{small} of {values.size} FP16 scales in {name} are under "
            f"{_HALF_SMALLEST_NORMAL:.2g}, where FP16 loses its digits",
            "export with --precision bf16 or fp32; `export` itself raises such scales",
        )


def _four_bit_product(graph: OnnxGraph, node: onnx.NodeProto) -> Iterator[Finding]:
    left = graph.producer(node.input[0], "DequantizeLinear")
    right = graph.producer(node.input[1], "DequantizeLinear")
    if left is None or right is None or graph.types.get(right.input[0]) not in _FOUR_BIT:
        return
    if graph.producer(left.input[0], "QuantizeLinear") is not None:
        yield Finding(
            layer_of(node),
            "INT4 weights meet quantized activations: there is no such kernel. TensorRT stops in "
            "its compiler, or multiplies with the group scales after the sum, which is wrong",
            "use --activations float with 4-bit schemes, or an 8-bit scheme",
        )


def _integer_readers(graph: OnnxGraph) -> Iterator[Finding]:
    """Stored integers may feed a DequantizeLinear and nothing else."""
    integers = {
        name
        for name, tensor in graph.initializers.items()
        if tensor.data_type in (TensorProto.INT8, *_FOUR_BIT, TensorProto.UINT8)
    }
    for node in graph.nodes:
        if node.op_type in ("DequantizeLinear", "QuantizeLinear"):
            continue
        for name in node.input:
            if name in integers:
                yield Finding(
                    layer_of(node),
                    f"{node.op_type} reads the stored integers {name}, only DequantizeLinear may",
                    "build from model.tensorrt.onnx: this is a graph for another runtime",
                )
