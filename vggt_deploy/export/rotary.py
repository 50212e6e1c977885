"""RoPE as one operator, for a target that has it.

    Concat(x1 * c - x2 * s, x2 * c + x1 * s), (x1, x2) = Split(x)  ->  RotaryEmbedding(x, c, s)

The folded network turns q and k by one rotate-half over the head (`model.fold.permute_rope`), which
is what the operator computes. ONNX Runtime has had it as a contrib operator for long and with
16-bit kernels; the one in ONNX itself came with opset 23, which TensorRT before 10.15 can't read.
So ONNX Runtime gets the operator and TensorRT the elementary nodes, which its compiler fuses.

The operator wants [N, P, heads * D], a table [P, D / 2], and the position of the first token.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from vggt_deploy.export.graph import NodeBuilder, replace
from vggt_deploy.export.simplify import static_dims

CONTRIB_DOMAIN = "com.microsoft"


@dataclass(frozen=True)
class Rotation:
    """A match: `node` is the Concat; x [N, P, heads, D]; cos and sin [P, 1, D / 2]."""

    node: ir.Node
    x: ir.Value
    cos: ir.Value
    sin: ir.Value


def use_rotary_operator(graph: ir.Graph) -> int:
    """Apply the rule everywhere in place; returns how often it applied."""
    rotations = [match for node in graph if (match := _match(node)) is not None]
    for rotation in rotations:
        _rewrite(graph, rotation)
    return len(rotations)


def _match(node: ir.Node) -> Rotation | None:
    if node.op_type != "Concat" or len(node.inputs) != 2:
        return None
    first, second = _producer(node.inputs[0], "Sub"), _producer(node.inputs[1], "Add")
    if first is None or second is None:
        return None
    terms = [_producer(value, "Mul") for value in (*first.inputs, *second.inputs)]
    if any(term is None for term in terms):
        return None
    x1c, x2s, x2c, x1s = (tuple(term.inputs) for term in terms if term is not None)
    x1, cos = x1c
    x2, sin = x2s
    if (x2c, x1s) != ((x2, cos), (x1, sin)) or x1 is None or x2 is None:
        return None
    split = x1.producer()
    if split is None or split.op_type != "Split" or tuple(split.outputs) != (x1, x2):
        return None
    x = split.inputs[0]
    if x is None or cos is None or sin is None or x.shape is None or len(x.shape) != 4:
        return None
    return Rotation(node, x, cos, sin)


def _producer(value: ir.Value | None, op_type: str) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == op_type else None


def _rewrite(graph: ir.Graph, rotation: Rotation) -> None:
    builder = NodeBuilder(graph, rotation.node)
    x, (old,) = rotation.x, rotation.node.outputs
    assert x.shape is not None
    lead, tokens, heads, width = x.shape
    assert isinstance(tokens, int)
    assert isinstance(heads, int)
    assert isinstance(width, int)
    flat = builder.op(
        "Reshape",
        x,
        builder.constant(f"shape_n_{tokens}_{heads * width}", [-1, tokens, heads * width]),
        name=f"{old.name}_flat",
        dtype=x.dtype,
        shape=[lead, tokens, heads * width],
    )
    node = ir.node(
        "RotaryEmbedding",
        [
            flat,
            builder.constant("rope_first_position", [0]),
            _table(graph, rotation.cos),
            _table(graph, rotation.sin),
        ],
        {"interleaved": 0, "num_heads": heads},
        domain=CONTRIB_DOMAIN,
        outputs=[
            ir.Value(
                name=f"{old.name}_turned",
                shape=flat.shape,
                type=None if x.dtype is None else ir.TensorType(x.dtype),
            )
        ],
        name=f"{old.name}/RotaryEmbedding",
        metadata_props=dict(rotation.node.metadata_props),
    )
    graph.insert_before(rotation.node, node)
    turned = builder.op(
        "Reshape",
        node.outputs[0],
        builder.constant(f"shape_n_{tokens}_{heads}_{width}", [-1, tokens, heads, width]),
        name=f"{old.name}_heads",
        dtype=x.dtype,
        shape=x.shape,
    )
    replace(rotation.node, turned)


def _table(graph: ir.Graph, table: ir.Value) -> ir.Value:
    """[P, 1, D / 2] -> [P, D / 2], once for all readers; folded at load."""
    name = f"{table.name}_table"
    for use in table.uses():
        if use.node.outputs[0].name == name:
            return use.node.outputs[0]
    tokens, _, half = static_dims(table)
    builder = NodeBuilder(graph, next(iter(graph)))
    return builder.op(
        "Reshape",
        table,
        builder.constant(f"shape_{tokens}_{half}", [tokens, half]),
        name=name,
        dtype=table.dtype,
        shape=ir.Shape([tokens, half]),
    )
