"""Integers into the graph: each planned weight becomes a DequantizeLinear, or an integer product.

    weight-only        MatMul(x, W)  ->  MatMul(x, DequantizeLinear(q, s, z))
    dynamic, 8 bit     MatMul(x, W)  ->  MatMulInteger(x8, q, zx, z) * (sx * s)
                                         with x8, sx, zx = DynamicQuantizeLinear(x)
    static             MatMul(x, W)  ->  MatMul(x', DequantizeLinear(q, s, z))
                                         with x' = DequantizeLinear(QuantizeLinear(x, sx, 0), sx, 0)
    TensorRT, asymmetric (it takes no zero points), exactly:
                       MatMul(x, DequantizeLinear(q, s, z))
                         = MatMul(x, DequantizeLinear(q, s, 0)) - rowsum(x) * (s * z)
                       static: the same with x' for x on both sides
    Conv(x, W)         ->  Conv(x, DequantizeLinear(q, s, 0))     weight-only in every scheme
    ONNX Runtime       ->  Conv(x, Cast(q) * s)                    the same bits, see _spelled_out

Static activations are INT8 with zero point 0, which TensorRT demands and ONNX Runtime multiplies as
fast; both have an integer kernel for this pattern. Layers that read the same tensor with the same
scale share one pair: TensorRT would run a kernel for each.

The integers are those of `quantize.qparams`, moved into the layout of the operator, never changed.
Dynamic 4-bit needs no other graph: ONNX Runtime quantizes the activations inside MatMulNBits when
the session asks for accuracy level 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from vggt_deploy.errors import ExportError
from vggt_deploy.export.graph import NodeBuilder, add_initializer, replace
from vggt_deploy.quantize.schemes import Activations, WeightFormat

GraphTarget = Literal["onnxruntime", "tensorrt"]


@dataclass(frozen=True)
class StoredWeight:
    """A quantized weight as it lies in the weights file.

    q: Linear [K', N] (K' = K rounded up to whole groups), Conv as torch. scale and zero_point: []
    per tensor, [N] per channel (`axis`), [G, N] in groups of `block_size` along axis 0.
    correction: s * z [N] (or []), only for an asymmetric Linear. input_scale, input_zero_point: []
    of the activations, only for a Linear with static ones.
    """

    layer: str
    format: WeightFormat
    q: ir.ExternalTensor
    scale: ir.ExternalTensor
    zero_point: ir.ExternalTensor | None
    symmetric_zero_point: ir.ExternalTensor | None
    correction: ir.ExternalTensor | None
    axis: int | None
    block_size: int | None
    padding: int
    input_scale: ir.ExternalTensor | None = None
    input_zero_point: ir.ExternalTensor | None = None


SharedInputs = dict[tuple[ir.Value, float], ir.Value]
"""(tensor, scale) -> the tensor rounded to 8 bit, as floats."""


def insert_integers(
    graph: ir.Graph,
    stored: Mapping[str, StoredWeight],
    *,
    activations: Activations,
    target: GraphTarget,
) -> dict[str, int]:
    """Rewrite every operator that reads a planned weight. Returns layer -> operators rewritten.

    `stored` is keyed by the name of the initializer that holds the float weight.

    Raises:
        ExportError: a planned weight is read by an operator without a rule here, or by none.
    """
    rewritten: dict[str, int] = {}
    shared: SharedInputs = {}
    for name, weight in stored.items():
        users = [(node, index) for node, index in graph.initializers[name].uses()]
        for node, index in users:
            if index != 1 or node.op_type not in ("MatMul", "Conv", "ConvTranspose"):
                raise ExportError(
                    f"the weight of {weight.layer} is read by {node.op_type} input {index}, "
                    "for which there is no quantized form",
                    f"exclude the layer: --exclude {weight.layer}",
                )
            if node.op_type == "MatMul":
                if activations == "static":
                    _round_input(graph, node, weight, shared)
                _rewrite_matmul(graph, node, weight, activations=activations, target=target)
            else:
                builder = NodeBuilder(graph, node)
                spelled = target == "onnxruntime" and weight.format.symmetric
                form = _spelled_out if spelled else _dequantize
                node.replace_input_with(1, form(builder, weight))
        if not users:
            raise ExportError(
                f"no operator reads the weight of {weight.layer}",
                f"exclude the layer: --exclude {weight.layer}",
            )
        del graph.initializers[name]
        rewritten[weight.layer] = len(users)
    return rewritten


def _rewrite_matmul(
    graph: ir.Graph,
    node: ir.Node,
    weight: StoredWeight,
    *,
    activations: Activations,
    target: GraphTarget,
) -> None:
    builder = NodeBuilder(graph, node)
    x = node.inputs[0]
    assert x is not None
    name = str(node.outputs[0].name)
    if activations == "dynamic" and weight.format.bits == 8:
        replace(node, _integer_product(builder, x, weight, node.outputs[0]))
        return
    if weight.padding:
        x = _pad_inputs(builder, x, weight.padding, name)
        node.replace_input_with(0, x)
    if target == "onnxruntime" or weight.correction is None:
        node.replace_input_with(1, _dequantize(builder, weight))
        return
    # Asymmetric for TensorRT: the symmetric product, less the rank-1 term.
    node.replace_input_with(1, _dequantize(builder, weight, symmetric=True))
    (product,) = node.outputs
    rows = builder.op(
        "ReduceSum",
        x,
        builder.constant("last_axis", [-1]),
        name=f"{name}_rowsum",
        dtype=x.dtype,
        shape=[*list(x.shape)[:-1], 1] if x.shape is not None else None,
        attributes={"keepdims": 1},
    )
    term = builder.op(
        "Mul",
        rows,
        _initializer(graph, weight.correction),
        name=f"{name}_rank1",
        dtype=x.dtype,
        shape=product.shape if len(weight.correction.shape) else rows.shape,
    )
    _subtract_after(graph, node, term)


def _round_input(
    graph: ir.Graph, node: ir.Node, weight: StoredWeight, shared: SharedInputs
) -> None:
    """Put QuantizeLinear and DequantizeLinear in front of the left operand of a MatMul."""
    scale_tensor, zero_tensor = weight.input_scale, weight.input_zero_point
    x = node.inputs[0]
    if scale_tensor is None or zero_tensor is None or x is None:
        raise ExportError(
            f"{weight.layer} has no calibrated input scale", "give --calibrate a folder of images"
        )
    key = (x, float(scale_tensor.numpy()))
    if key not in shared:
        builder = NodeBuilder(graph, node)
        scale, zero = _initializer(graph, scale_tensor), _initializer(graph, zero_tensor)
        name = str(node.outputs[0].name)
        rounded = builder.op(
            "QuantizeLinear", x, scale, zero,
            name=f"{name}_input_int8", dtype=ir.DataType.INT8, shape=x.shape,
        )  # fmt: skip
        shared[key] = builder.op(
            "DequantizeLinear", rounded, scale, zero,
            name=f"{name}_input_rounded", dtype=x.dtype, shape=x.shape,
        )  # fmt: skip
    node.replace_input_with(0, shared[key])


def _subtract_after(graph: ir.Graph, node: ir.Node, term: ir.Value) -> None:
    """Let every reader of the node's output read output - term instead."""
    (product,) = node.outputs
    difference = ir.node(
        "Sub",
        [product, term],
        outputs=[
            ir.Value(
                name=f"{product.name}_asymmetric",
                shape=product.shape,
                type=product.type,
            )
        ],
        name=f"{product.name}/Sub",
        metadata_props=dict(node.metadata_props),
    )
    graph.insert_after(node, difference)
    for user, index in list(product.uses()):
        if user is not difference:
            user.replace_input_with(index, difference.outputs[0])
    for index, result in enumerate(graph.outputs):
        if result is product:  # a Linear without bias may be the network's last
            graph.outputs[index] = difference.outputs[0]
            product.name, difference.outputs[0].name = f"{product.name}_symmetric", product.name


def _integer_product(
    builder: NodeBuilder, x: ir.Value, weight: StoredWeight, product: ir.Value
) -> ir.Value:
    """MatMulInteger(x8, q, zx, z) * (sx * s): one fused kernel in ONNX Runtime."""
    name = str(product.name)
    x8, x_scale, x_zero = builder.ops(
        "DynamicQuantizeLinear", x, names=[f"{name}_x8", f"{name}_x_scale", f"{name}_x_zero"]
    )
    x8.dtype, x8.shape = ir.DataType.UINT8, x.shape
    x_scale.dtype, x_scale.shape = ir.DataType.FLOAT, ir.Shape([])
    x_zero.dtype, x_zero.shape = ir.DataType.UINT8, ir.Shape([])
    sums = builder.op(
        "MatMulInteger",
        x8,
        _initializer(builder.graph, weight.q),
        x_zero,
        *([] if weight.zero_point is None else [_initializer(builder.graph, weight.zero_point)]),
        name=f"{name}_int32",
        dtype=ir.DataType.INT32,
        shape=product.shape,
    )
    scale = builder.op(
        "Mul",
        x_scale,
        _initializer(builder.graph, weight.scale),
        name=f"{name}_scale",
        dtype=ir.DataType.FLOAT,
        shape=ir.Shape(weight.scale.shape),
    )
    floats = builder.op(
        "Cast",
        sums,
        name=f"{name}_float",
        dtype=ir.DataType.FLOAT,
        shape=product.shape,
        attributes={"to": int(ir.DataType.FLOAT)},
    )
    return builder.op(
        "Mul",
        floats,
        scale,
        name=f"{name}_scaled",
        dtype=ir.DataType.FLOAT,
        shape=product.shape,
    )


def _spelled_out(builder: NodeBuilder, weight: StoredWeight) -> ir.Value:
    """Cast(q) * s, which is what DequantizeLinear computes, for a convolution in ONNX Runtime.

    It folds constants at load except DequantizeLinear, which it keeps for its own fusions; there is
    none for a convolution. Folded, the convolution runs on the blocked layout, up to twice as fast,
    and nothing is dequantized per inference. TensorRT refuses integers that feed a Cast.
    """
    graph = builder.graph
    floats = builder.op(
        "Cast",
        _initializer(graph, weight.q),
        name=f"{weight.layer}.float",
        dtype=weight.scale.dtype,
        shape=ir.Shape(weight.q.shape),
        attributes={"to": int(weight.scale.dtype)},
    )
    scale = _initializer(graph, weight.scale)
    if weight.axis is not None:
        axes = [axis for axis in range(len(weight.q.shape)) if axis != weight.axis]
        scale = builder.op(
            "Unsqueeze",
            scale,
            builder.constant("axes_" + "_".join(map(str, axes)), axes),
            name=f"{weight.layer}.scale_per_channel",
            dtype=weight.scale.dtype,
            shape=None,
        )
    return builder.op(
        "Mul",
        floats,
        scale,
        name=f"{weight.layer}.dequantized",
        dtype=weight.scale.dtype,
        shape=ir.Shape(weight.q.shape),
    )


def _dequantize(builder: NodeBuilder, weight: StoredWeight, *, symmetric: bool = False) -> ir.Value:
    """DequantizeLinear of the stored integers; with `symmetric`, as if the zero point were 0."""
    attributes: dict[str, int] = {}
    if weight.axis is not None:
        attributes["axis"] = weight.axis
    if weight.block_size is not None:
        attributes["block_size"] = weight.block_size
    zero_point = weight.symmetric_zero_point if symmetric else weight.zero_point
    inputs = [weight.q, weight.scale, *([] if zero_point is None else [zero_point])]
    return builder.op(
        "DequantizeLinear",
        *(_initializer(builder.graph, tensor) for tensor in inputs),
        name=f"{weight.layer}.dequantized_{builder.anchor.outputs[0].name}",
        dtype=weight.scale.dtype,
        shape=ir.Shape(weight.q.shape),
        attributes=attributes,
    )


def _pad_inputs(builder: NodeBuilder, x: ir.Value, padding: int, name: str) -> ir.Value:
    """X [..., K] -> [..., K'] with zeros, which meet the zero weights of a padded last group."""
    assert x.shape is not None
    *lead, last = x.shape
    pads = [0] * len(x.shape) + [0] * len(lead) + [padding]
    return builder.op(
        "Pad",
        x,
        builder.constant(f"pad_{len(x.shape)}d_{padding}", pads),
        name=f"{name}_padded",
        dtype=x.dtype,
        shape=[*lead, int(last) + padding] if isinstance(last, int) else None,
    )


def _initializer(graph: ir.Graph, tensor: ir.ExternalTensor) -> ir.Value:
    name = str(tensor.name)
    if name in graph.initializers:
        return graph.initializers[name]
    return add_initializer(graph, name, tensor)
