"""From what the exporter writes to what a reader, ONNX Runtime and TensorRT want to see.

Each rule is an equation on graphs, changes no number, and counts where it applied. No rule looks at
a large weight: at this point weights are names and shapes without data, and a rule that moves
elements of a weight (`transpose_linear_weights`, `unfold_transposed_convolutions`) writes down the
move as a `WeightRef`, to be carried out when the weight is streamed to disk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript import optimizer

from vggt_deploy.export.graph import NodeBuilder, constant_of, replace

# Constants up to this many elements are computed at export: shapes, indices, the ones of a
# parameter-free LayerNorm. No weight that matters is this small and feeds only constants.
FOLD_INPUT_ELEMENTS = 16
FOLD_OUTPUT_ELEMENTS = 8192

FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)

Layout = Literal["as_is", "transposed", "unfolded", "repeated"]


@dataclass(frozen=True)
class WeightRef:
    """A tensor of the traced model that an initializer stands for, and how it lies in the file.

    as_is       as torch holds it
    transposed  Linear [N, K] -> [K, N]
    unfolded    ConvTranspose [C, O, k, k] -> Conv [O * k * k, C, 1, 1]
    repeated    its bias [O] -> [O * k * k], each entry `repeat` times
    """

    name: str
    layout: Layout = "as_is"
    repeat: int = 1


@dataclass(frozen=True)
class Rule:
    """A rewrite: its name, its equation, and the function that applies it everywhere and counts."""

    name: str
    equation: str
    apply: Callable[[ir.Graph], int]


def simplify(model: ir.Model) -> dict[str, int]:
    """Apply every rule in place. Returns rule name -> number of places it changed.

    Afterwards every float initializer of the trace has a `WeightRef` in `value.meta["ref"]`.
    """
    graph = model.graph
    for name, value in graph.initializers.items():
        if value.dtype not in FLOATS:
            continue  # an index is no weight: it keeps its data, and the folder may look into it
        value.meta["ref"] = WeightRef(name)
        value.const_value = None  # a meta tensor: a folder that looks into it would fail
    # The folder makes SplitToSequence and SequenceAt into a Split that no longer says its module,
    # and whose name depends on whether the graph was traced or read from a file.
    modules = {n.inputs[0]: n.metadata_props for n in graph if n.op_type == "SplitToSequence"}
    optimizer.fold_constants(
        model,
        onnx_shape_inference=False,
        input_size_limit=FOLD_INPUT_ELEMENTS,
        output_size_limit=FOLD_OUTPUT_ELEMENTS,
    )
    for node in graph:
        if node.op_type == "Split" and not node.metadata_props:
            node.metadata_props.update(modules.get(node.inputs[0], {}))
            node.name = f"{node.outputs[0].name}/Split"
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.IdentityEliminationPass()(model)
    counts = {}
    for rule in RULES:
        counts[rule.name] = rule.apply(graph)
        remove_unused(model)
    common.CommonSubexpressionEliminationPass()(model)
    remove_unused(model)
    return counts


def remove_unused(model: ir.Model) -> None:
    """Drop nodes and initializers that nothing reads."""
    common.RemoveUnusedNodesPass()(model)
    for name, value in list(model.graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del model.graph.initializers[name]


def static_dims(value: ir.Value) -> list[int]:
    """The shape of a weight; weights have no symbolic sizes."""
    return [size for size in value.shape or () if isinstance(size, int)]


def weight_ref(value: ir.Value | None) -> WeightRef | None:
    """What the initializer stands for, None if the value is not a weight of the model."""
    return None if value is None else value.meta.get("ref")


def static_reshape(graph: ir.Graph) -> int:
    """Reshape(x, Concat(a, n, c)) -> Reshape(x, [a, -1, c]), n the only part not constant."""
    count = 0
    for node in list(graph):
        if node.op_type != "Reshape" or node.inputs[1] is None:
            continue
        shape_node = node.inputs[1].producer()
        if shape_node is None or shape_node.op_type != "Concat":
            continue
        parts = [constant_of(value) for value in shape_node.inputs]
        if sum(part is None for part in parts) > 1:
            continue
        shape = np.concatenate(
            [np.array([-1]) if part is None else part.reshape(-1) for part in parts]
        ).astype(np.int64)
        name = "shape_" + "_".join("n" if size == -1 else str(size) for size in shape)
        node.replace_input_with(1, NodeBuilder(graph, node).constant(name, shape))
        node.attributes.pop("allowzero", None)
        count += 1
    return count


def drop_zero_bias(graph: ir.Graph) -> int:
    """Conv(x, W, 0) -> Conv(x, W): the exporter writes zeros where the module has no bias."""
    count = 0
    for node in list(graph):
        if node.op_type != "Conv" or len(node.inputs) < 3 or weight_ref(node.inputs[2]):
            continue
        bias = node.inputs[2]
        tensor = None if bias is None else ir.convenience.get_const_tensor(bias)
        if tensor is not None and not tensor.numpy().any():
            node.resize_inputs(2)
            count += 1
    return count


def split_gemm(graph: ir.Graph) -> int:
    """Gemm(x, W, b) -> MatMul(x, Transpose(W)) + b, for a weight W that is read transposed.

    The exporter makes a Gemm of a Linear whose input has two axes and the other pair of one whose
    input has more; integers are put into one form. A Gemm that scales its operands or transposes x
    is not a Linear's and stays.
    """
    count = 0
    for node in list(graph):
        if node.op_type != "Gemm" or weight_ref(node.inputs[1]) is None:
            continue
        set_to = {name: attribute.value for name, attribute in node.attributes.items()}
        usual = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 1}
        if set_to.get("transB", 0) != 1 or any(usual[k] != v for k, v in set_to.items()):
            continue
        x, weight = node.inputs[:2]
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        assert x is not None
        assert weight is not None
        (old,) = node.outputs
        builder = NodeBuilder(graph, node)
        turned = builder.op(
            "Transpose",
            weight,
            name=f"{old.name}_weight",
            dtype=weight.dtype,
            shape=list(reversed(list(weight.shape or ()))),
            attributes={"perm": [1, 0]},
        )
        name = f"{old.name}_product" if bias is not None else f"{old.name}_linear"
        whole = builder.op("MatMul", x, turned, name=name, dtype=x.dtype, shape=old.shape)
        if bias is not None:
            name = f"{old.name}_linear"
            whole = builder.op("Add", whole, bias, name=name, dtype=x.dtype, shape=old.shape)
        replace(node, whole)
        count += 1
    return count


def transpose_linear_weights(graph: ir.Graph) -> int:
    """MatMul(x, Transpose(W)) -> MatMul(x, W^T), W^T stored: once, however many MatMuls read it."""
    count = 0
    for node in list(graph):
        if node.op_type != "Transpose":
            continue
        weight = node.inputs[0]
        ref = weight_ref(weight)
        if weight is None or ref is None or len(weight.shape or ()) != 2:
            continue
        name = f"{ref.name}.transposed"
        if name in graph.initializers:
            value = graph.initializers[name]
        else:
            value = _derived(graph, weight, WeightRef(ref.name, "transposed"), name)
            value.shape = ir.Shape(list(reversed(list(weight.shape or ()))))
        replace(node, value)
        for use in value.uses():
            _type_product(use.node, value)
        count += 1
    return count


def _type_product(node: ir.Node, weight: ir.Value) -> None:
    """The exporter leaves the product inside a Linear without type and shape."""
    source, (product,) = node.inputs[0], node.outputs
    if node.op_type == "MatMul" and source is not None and source.shape is not None:
        # A type object of its own: source and product may part ways when precisions are set.
        product.type = None if source.dtype is None else ir.TensorType(source.dtype)
        product.shape = ir.Shape([*list(source.shape)[:-1], static_dims(weight)[1]])


def unfold_transposed_convolutions(graph: ir.Graph) -> int:
    """ConvTranspose(x, W, b), kernel = stride = k -> DepthToSpace(Conv1x1(x, W', b'), k).

    The windows do not overlap, so every output pixel is one dot product over the input channels:
    W'[o k k + i k + j, c] = W[c, o, i, j] and b'[o k k + ...] = b[o]. With W' the output channel is
    axis 0, as in every convolution; which axis a per-channel scale of a ConvTranspose runs along is
    something that versions of TensorRT disagree about.
    """
    count = 0
    for node in list(graph):
        if node.op_type != "ConvTranspose":
            continue
        weight, bias = node.inputs[1], node.inputs[2]
        ref, bias_ref = weight_ref(weight), weight_ref(bias)
        if weight is None or bias is None or ref is None or bias_ref is None:
            continue
        channels, out, kernel, kernel_x = static_dims(weight)
        strides = list(node.attributes["strides"].as_ints())
        plain = (
            strides == [kernel, kernel_x]
            and kernel == kernel_x
            and not any(node.attributes["pads"].as_ints())
            and not any(node.attributes["output_padding"].as_ints())
            and node.attributes["group"].as_int() == 1
        )
        if not plain:
            continue
        unfolded = _derived(graph, weight, WeightRef(ref.name, "unfolded"), f"{ref.name}.unfolded")
        unfolded.shape = ir.Shape([out * kernel * kernel, channels, 1, 1])
        repeated = _derived(
            graph,
            bias,
            WeightRef(bias_ref.name, "repeated", kernel**2),
            f"{bias_ref.name}.repeated",
        )
        repeated.shape = ir.Shape([out * kernel * kernel])
        source, (old,) = node.inputs[0], node.outputs
        assert source is not None
        assert source.shape is not None
        builder = NodeBuilder(graph, node)
        flat = builder.op(
            "Conv",
            source,
            unfolded,
            repeated,
            name=f"{old.name}_unfolded",
            dtype=source.dtype,
            shape=[source.shape[0], out * kernel * kernel, source.shape[2], source.shape[3]],
            attributes={"kernel_shape": [1, 1]},
        )
        folded = builder.op(
            "DepthToSpace",
            flat,
            name=f"{old.name}_image",
            dtype=old.dtype,
            shape=old.shape,
            attributes={"blocksize": kernel, "mode": "CRD"},
        )
        replace(node, folded)
        count += 1
    return count


def _derived(graph: ir.Graph, value: ir.Value, ref: WeightRef, name: str) -> ir.Value:
    """A new initializer for a moved weight; the type is the old one's, the shape the caller's."""
    derived = ir.Value(name=name, type=value.type, shape=value.shape)
    derived.meta["ref"] = ref
    graph.initializers.add(derived)  # register_initializer wants data, which comes later
    return derived


RULES: tuple[Rule, ...] = tuple(
    Rule(function.__name__, (function.__doc__ or "").splitlines()[0], function)
    for function in (
        static_reshape,
        drop_zero_bias,
        split_gemm,
        transpose_linear_weights,
        unfold_transposed_convolutions,
    )
)
