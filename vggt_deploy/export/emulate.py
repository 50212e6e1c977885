"""BF16 on a CPU runtime without BF16 kernels: compute in FP32, round every result to BF16.

    y = Op(x)  in BF16   ->   y = Cast_fp32(Cast_bf16(Op_fp32(x)))

That is what a BF16 kernel with FP32 accumulation gives, up to the order of its sums. Used to verify
an exported BF16 graph, never shipped.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import onnx_ir as ir

from vggt_deploy.export.graph import NodeBuilder
from vggt_deploy.records import GraphRecord

FLOAT, BF16 = ir.DataType.FLOAT, ir.DataType.BFLOAT16


def write_fp32_emulation(folder: Path, record: GraphRecord) -> GraphRecord:
    """Write the emulation of a graph beside it; the caller removes the file when done."""
    model = ir.load(folder / record.file)
    emulate(model.graph)
    emulated = dataclasses.replace(record, file=f"emulated.{record.file}")
    ir.save(model, folder / emulated.file)
    return emulated


def emulate(graph: ir.Graph) -> int:
    """Rewrite in place; returns how many operators are emulated. Subgraphs (heads) are FP32 anyway.

    Weights stay BF16 in the file and are cast, which is exact.
    """
    wide: dict[ir.Value, ir.Value] = {}
    count = 0
    for node in list(graph):
        for index, value in enumerate(node.inputs):
            if value is None:
                continue
            if value.is_initializer() and value.dtype == BF16 and value not in wide:
                wide[value] = NodeBuilder(graph, node).op(
                    "Cast", value, name=f"{value.name}.fp32", dtype=FLOAT, shape=value.shape,
                    attributes={"to": int(FLOAT)},
                )  # fmt: skip
            if value in wide:
                node.replace_input_with(index, wide[value])
        narrow = [output for output in node.outputs if output.dtype == BF16]
        if not narrow:
            continue
        count += 1
        if node.op_type == "Cast":
            node.attributes["to"] = ir.AttrInt64("to", int(BF16))
        for output in narrow:
            _round_trip(graph, node, output, wide)
    return count


def _round_trip(
    graph: ir.Graph, node: ir.Node, output: ir.Value, wide: dict[ir.Value, ir.Value]
) -> None:
    """Readers of `output` get it rounded to BF16, as FP32."""
    casted = output
    if node.op_type != "Cast":
        output.type = ir.TensorType(FLOAT)
        casted = _cast_after(graph, node, output, BF16)
    producer = casted.producer()
    assert producer is not None
    wide[output] = _cast_after(graph, producer, casted, FLOAT)


def _cast_after(graph: ir.Graph, node: ir.Node, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    cast = ir.node(
        "Cast",
        [value],
        {"to": int(dtype)},
        outputs=[
            ir.Value(
                name=f"{value.name}.{dtype.name.lower()}",
                shape=value.shape,
                type=ir.TensorType(dtype),
            )
        ],
        name=f"{value.name}/to_{dtype.name.lower()}",
    )
    graph.insert_after(node, cast)
    return cast.outputs[0]
