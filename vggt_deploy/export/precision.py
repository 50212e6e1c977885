"""Typed graphs: FP16 or BF16 where a matrix product pays for it, FP32 everywhere else.

    half    the inside of every attention and MLP of encoder, frame and global blocks: from the
            Linear's input to its output, biases, qk-norm, RoPE, softmax, GELU
    FP32    the residual stream, the LayerNorms on it, LayerScale, the special tokens, the patch
            convolution (0.1 % of the work, and no BF16 before opset 22), and all heads

This is what autocast makes of upstream's model, written into the graph: TensorRT 11 has no
precision switch, it computes in the types it reads. The residual stream stays FP32 because its
outliers grow over the blocks and FP16 ends at 65504, and because BF16 has eight bits to hold a sum
of 48 terms with.

    x: FP32 -> Cast -> [half region] -> Cast -> x + y: FP32

Tables and constants inside the region are computed in FP32 and rounded once.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir

from vggt_deploy.export.graph import NodeBuilder, add_initializer, module_of
from vggt_deploy.export.simplify import remove_unused, weight_ref
from vggt_deploy.export.trace import MODEL_PREFIX
from vggt_deploy.quantize.plan import in_half_region
from vggt_deploy.quantize.schemes import Precision

IR_DTYPE: dict[Precision, ir.DataType] = {
    "fp32": ir.DataType.FLOAT,
    "fp16": ir.DataType.FLOAT16,
    "bf16": ir.DataType.BFLOAT16,
}


def set_precision(model: ir.Model, precision: Precision) -> int:
    """Give every value of the half region the type, with Casts at its borders; returns how many.

    Weights only change their declared type here; the numbers are rounded when they are written.
    """
    if precision == "fp32":
        return 0
    graph, half = model.graph, IR_DTYPE[precision]
    casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
    for node in list(graph):
        wanted = (
            half
            if in_half_region(module_of(node).removeprefix(MODEL_PREFIX))
            else ir.DataType.FLOAT
        )
        for index, value in enumerate(node.inputs):
            if value is None or value.dtype not in (ir.DataType.FLOAT, half):
                continue
            if value.dtype != wanted:
                node.replace_input_with(index, _as(graph, node, value, wanted, casts))
        if wanted == half:
            for output in node.outputs:
                if output.dtype == ir.DataType.FLOAT:
                    # A new type object: clones of a graph share theirs.
                    output.type = ir.TensorType(half)
    remove_unused(model)
    return len(casts)


def _as(
    graph: ir.Graph,
    node: ir.Node,
    value: ir.Value,
    dtype: ir.DataType,
    casts: dict[tuple[ir.Value, ir.DataType], ir.Value],
) -> ir.Value:
    """The value in another type: a rounded constant, a re-declared weight, or one shared Cast."""
    key = (value, dtype)
    if key in casts:
        return casts[key]
    suffix = dtype.name.lower()
    if value.is_initializer():
        ref = weight_ref(value)
        name = f"{value.name}.{suffix}"
        if ref is not None:
            twin = ir.Value(name=name, shape=value.shape, type=ir.TensorType(dtype))
            twin.meta["ref"] = ref
            graph.initializers.add(twin)
        else:
            assert value.const_value is not None
            twin = add_initializer(graph, name, _rounded(value.const_value, dtype, name))
    else:
        twin = NodeBuilder(graph, node).op(
            "Cast",
            value,
            name=f"{value.name}.{suffix}",
            dtype=dtype,
            shape=value.shape,
            attributes={"to": int(dtype)},
        )
    casts[key] = twin
    return twin


def _rounded(tensor: ir.TensorProtocol, dtype: ir.DataType, name: str) -> ir.TensorProtocol:
    numpy_dtype = np.float16 if dtype == ir.DataType.FLOAT16 else ml_dtypes.bfloat16
    return ir.Tensor(tensor.numpy().astype(numpy_dtype), dtype=dtype, name=name)
