"""One Linear as an ONNX graph of its own, in the form in which `export` writes it, to be timed.

    float              MatMul(x, W)
    integers, float    MatMul(x, DequantizeLinear(q, s, z)), in ONNX Runtime MatMulNBits
    8 bit, dynamic     MatMulInteger(DynamicQuantizeLinear(x), q) * (sx * s)
    4 bit, dynamic     as with float activations; the session asks for accuracy level 4
    8 bit, static      MatMul(QDQ(x), DequantizeLinear(q, s, z)), a product of integers

Weights are random: what is timed does not depend on their values. Where the last group of a row is
short, the graph has whole groups, as the weights file does, and as wide an input.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from vggt_deploy.quantize.schemes import Activations, PerGroup, WeightFormat

if TYPE_CHECKING:
    import onnx
    from torch import Tensor

OPSET = 21
IR_VERSION = 10
_SEED = 0
_INPUT_SCALE = 0.03  # of x ~ N(0, 1): 127 of them reach 3.8 deviations


@dataclass(frozen=True)
class LinearShape:
    """y [rows, outputs] = x [rows, inputs] @ W [inputs, outputs]."""

    rows: int
    inputs: int
    outputs: int


@dataclass(frozen=True)
class LinearGraph:
    """A model as bytes, the shape of its input x, and what its session must be told."""

    model: bytes
    shape: LinearShape
    session_options: dict[str, str]
    disabled_optimizers: tuple[str, ...]


def linear_graph(
    shape: LinearShape, form: WeightFormat | None, activations: Activations
) -> LinearGraph:
    """The graph of one Linear without bias; `form` None is FP32."""
    from onnx import TensorProto, helper

    if form is not None and isinstance(form.granularity, PerGroup):
        shape = replace(shape, inputs=form.granularity.padded_k(shape.inputs))
    nodes, tensors = _float_parts(shape) if form is None else _parts(shape, form, activations)
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [shape.rows, shape.inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [shape.rows, shape.outputs])],
        tensors,
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
    if form is None:
        return LinearGraph(model.SerializeToString(), shape, {}, ())
    # As `export.pipeline` has it: level 1 computes in FP32, level 4 rounds the activations.
    level = "4" if activations == "dynamic" else "1"
    options = {"session.qdq_matmulnbits_accuracy_level": level}
    return LinearGraph(model.SerializeToString(), shape, options, ("MatMulAddFusion",))


def _float_parts(
    shape: LinearShape,
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    from onnx import helper, numpy_helper

    return [helper.make_node("MatMul", ["x", "w"], ["y"])], [
        numpy_helper.from_array(_weight(shape).t().contiguous().numpy(), "w")
    ]


def _parts(
    shape: LinearShape, form: WeightFormat, activations: Activations
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    from onnx import TensorProto, helper

    from vggt_deploy.quantize.layout import to_onnx_layout
    from vggt_deploy.quantize.qparams import quantize

    layout = to_onnx_layout(quantize(_weight(shape), form))
    kind = TensorProto.INT4 if layout.bits == 4 else TensorProto.INT8
    tensors = [
        helper.make_tensor("q", kind, layout.shape, layout.data.numpy().tobytes(), raw=True),
        helper.make_tensor(
            "s",
            TensorProto.FLOAT,
            tuple(layout.scale.shape),
            layout.scale.numpy().tobytes(),
            raw=True,
        ),
    ]
    named = ["q", "s"]
    if form.stores_zero_point:
        named.append("z")
        zeros = layout.zero_point.numpy().tobytes()
        tensors.append(helper.make_tensor("z", kind, layout.zero_point_shape, zeros, raw=True))
    if activations == "dynamic" and form.bits == 8:
        return _integer_product(named[2:]), tensors
    dequantize = helper.make_node("DequantizeLinear", named, ["w"])
    for name, value in (("axis", layout.axis), ("block_size", layout.block_size)):
        if value is not None:
            dequantize.attribute.append(helper.make_attribute(name, value))
    nodes = [dequantize]
    if activations != "static":
        return [*nodes, helper.make_node("MatMul", ["x", "w"], ["y"])], tensors
    tensors += [
        helper.make_tensor("sx", TensorProto.FLOAT, (), [_INPUT_SCALE]),
        helper.make_tensor("zx", TensorProto.INT8, (), [0]),
    ]
    nodes += [
        helper.make_node("QuantizeLinear", ["x", "sx", "zx"], ["x8"]),
        helper.make_node("DequantizeLinear", ["x8", "sx", "zx"], ["rounded"]),
        helper.make_node("MatMul", ["rounded", "w"], ["y"]),
    ]
    return nodes, tensors


def _integer_product(zero_point: Sequence[str]) -> list[onnx.NodeProto]:
    from onnx import TensorProto, helper

    return [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["x8", "sx", "zx"]),
        helper.make_node("MatMulInteger", ["x8", "q", "zx", *zero_point], ["sums"]),
        helper.make_node("Mul", ["sx", "s"], ["scale"]),
        helper.make_node("Cast", ["sums"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["floats", "scale"], ["y"]),
    ]


def example_input(shape: LinearShape) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """X [rows, inputs], the same each time."""
    drawn = np.random.default_rng(_SEED).standard_normal((shape.rows, shape.inputs))
    return drawn.astype(np.float32)


def _weight(shape: LinearShape) -> Tensor:
    """[outputs, inputs], the same each time."""
    import torch

    generator = torch.Generator().manual_seed(_SEED)
    drawn = torch.randn(shape.outputs, shape.inputs, generator=generator)
    return drawn / math.sqrt(shape.inputs)
