"""The few graph operations that every rewrite needs, on top of onnx_ir."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

SCOPES_KEY = "pkg.torch.onnx.name_scopes"
# What torch writes for nodes that it made itself.
NO_MODULE = "_empty_nn_module_stack_from_metadata_hook"

Dims = Sequence[int | ir.SymbolicDim]
Attributes = Mapping[str, int | float | str | Sequence[int]]


@dataclass(frozen=True)
class NodeBuilder:
    """Makes nodes in front of `anchor`; they inherit its metadata, so they stay in its module.

    Example: `NodeBuilder(graph, matmul).op("MatMul", x, w, name="qkv", dtype=..., shape=...)`
    """

    graph: ir.Graph
    anchor: ir.Node

    def op(
        self,
        op_type: str,
        *inputs: ir.Value,
        name: str,
        dtype: ir.DataType | None,
        shape: ir.Shape | Dims | None,
        attributes: Attributes | None = None,
    ) -> ir.Value:
        """One node with one output, called `name`."""
        (value,) = self.ops(op_type, *inputs, names=[name], attributes=attributes)
        value.type = None if dtype is None else ir.TensorType(dtype)
        value.shape = shape if isinstance(shape, ir.Shape) or shape is None else ir.Shape(shape)
        return value

    def ops(
        self,
        op_type: str,
        *inputs: ir.Value,
        names: Sequence[str],
        attributes: Attributes | None = None,
    ) -> Sequence[ir.Value]:
        """One node with `len(names)` outputs, whose types the caller sets."""
        node = ir.node(
            op_type,
            list(inputs),
            attributes,
            outputs=[ir.Value(name=name) for name in names],
            name=f"{names[0]}/{op_type}",
            metadata_props=dict(self.anchor.metadata_props),
        )
        self.graph.insert_before(self.anchor, node)
        return node.outputs

    def constant(self, name: str, array: npt.ArrayLike) -> ir.Value:
        """A small initializer, kept inside the graph file. The same name gives the same value."""
        if name in self.graph.initializers:
            return self.graph.initializers[name]
        return add_initializer(self.graph, name, ir.tensor(np.asarray(array), name=name))


def add_initializer(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """Register `tensor` as an initializer of the graph under `name`."""
    value = ir.Value(
        name=name,
        shape=ir.Shape(tensor.shape.numpy()),
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )
    graph.register_initializer(value)
    return value


def module_of(node: ir.Node) -> str:
    """Dotted path of the torch module that the node comes from, "" when it is not known.

    The exporter records the stack of modules, innermost last, as the text of a Python list.
    """
    scopes = node.metadata_props.get(SCOPES_KEY, "")
    parts = [part.strip(" '\"") for part in scopes.strip("[]").split(",")]
    # The last entry is the node itself; the one before it the module that ran it.
    module = parts[-2] if len(parts) >= 2 else ""
    return "" if module == NO_MODULE else module


def constant_of(value: ir.Value | None) -> npt.NDArray[np.generic] | None:
    """The array of a small constant (initializer or Constant node), None for anything else."""
    if value is None:
        return None
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None or tensor.size > 64 or value.meta.get("ref"):
        return None
    return tensor.numpy()


def replace(node: ir.Node, new: ir.Value) -> None:
    """Let `new` stand where the only output of `node` stood, and drop the node.

    An output of the graph keeps its name, which is the one that its user knows.
    """
    (old,) = node.outputs
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    if new.shape is None:
        new.shape = old.shape
    if new.type is None:  # shared from here on with nobody: `old` is gone
        new.type = old.type
    is_result = old.is_graph_output()
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    if is_result:
        old.name, new.name = f"{old.name}_replaced", old.name
    graph.remove(node, safe=True)
