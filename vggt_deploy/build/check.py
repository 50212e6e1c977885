"""What TensorRT would refuse, or accept in silence and compute wrongly, said before it is asked.

TensorRT names a node of its own making, if any; this check names the layer and the cure. What
TensorRT-RTX 1.7, which shares its parser with TensorRT, makes of each wrong graph is in the tests.
Some of it builds there and is refused all the same: what NVIDIA documents as wrong (a scale that is
computed, one of another half-precision type), or what would build and compute something else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto

from vggt_deploy.build.check_qdq import check_quantization
from vggt_deploy.build.findings import Finding
from vggt_deploy.build.onnx_graph import OnnxGraph, attribute, layer_of, read_graph
from vggt_deploy.engines.tensorrt.library import TensorRTRuntime
from vggt_deploy.errors import BuildError

# Finding is re-exported: who calls the check needs no other module.
__all__ = ["Finding", "check_graph", "require_sound"]

_MOST_SHOWN = 20
_OLDEST_OPSET = 9
# (from this TensorRT on, newest opset that its parser reads), newest first. Documented: 20 up to
# 10.1, 24 from 10.15 on; 10.6 moved to ONNX 1.17, 10.14 brought Attention, which is of opset 23.
_NEWEST_OPSETS = (((10, 14), 24), ((10, 6), 22), ((10, 0), 20))
_RTX_NEWEST_OPSET = 24

_OTHER_GRAPH = "build from model.tensorrt.onnx: this is a graph for another runtime"
_STATIC = "use --activations static, or float"
# Operator -> cure. The parser of no TensorRT 10 or 11 has them.
_ABSENT = {
    **dict.fromkeys(("DynamicQuantizeLinear", "MatMulInteger", "ConvInteger"), _STATIC),
    **dict.fromkeys(("QLinearMatMul", "QLinearConv"), "export a graph of Q/DQ pairs"),
    **dict.fromkeys(
        ("Unique", "Compress", "Det", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot"),
        "write it with other operators",
    ),
    **dict.fromkeys(
        ("SequenceAt", "SequenceConstruct", "SplitToSequence", "Optional"), "unroll it"
    ),
}
# Operator -> the TensorRT 10 release that brought it. TensorRT-RTX 1.7 has them all.
_ARRIVED = {"Attention": (10, 14), "RotaryEmbedding": (10, 15), "RMSNormalization": (10, 15)}
# Operators whose operands must agree in type, and which of their inputs those are.
_SAME_TYPE: dict[str, slice] = {
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "MatMul", "Gemm"), slice(None)),
    **dict.fromkeys(("Min", "Max", "Sum", "Mean", "Concat", "Conv", "ConvTranspose"), slice(None)),
    **dict.fromkeys(("Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual"), slice(None)),
    **dict.fromkeys(("PRelu", "LayerNormalization"), slice(None)),
    "Where": slice(1, None),
}
_UNCASTABLE = (TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT8E4M3FN)


@dataclass(frozen=True)
class _Target:
    runtime: TensorRTRuntime
    version: tuple[int, ...]
    dynamic_profile: bool

    @property
    def title(self) -> str:
        name = "TensorRT-RTX" if self.runtime == "tensorrt-rtx" else "TensorRT"
        return f"{name} {'.'.join(map(str, self.version))}"


def check_graph(
    graph: Path,
    *,
    runtime: TensorRTRuntime,
    version: tuple[int, ...],
    dynamic_profile: bool,
) -> tuple[Finding, ...]:
    """Everything in the graph that this TensorRT would stumble over; empty for a sound graph.

    version: of the TensorRT that is to build it; dynamic_profile: whether the build has an
    optimization profile. Of the weights, only scales and zero points are read.

    Raises:
        BuildError: the file is no ONNX graph, or its scales can't be read.
    """
    read = read_graph(graph)
    target = _Target(runtime, version, dynamic_profile)
    found: list[Finding] = []
    rules: tuple[Callable[[OnnxGraph, _Target], Iterator[Finding]], ...] = (
        _opset,
        _names,
        _inputs,
        _operators,
        _operand_types,
    )
    for rule in rules:
        found.extend(rule(read, target))
    found.extend(check_quantization(read))
    return tuple(dict.fromkeys(found))


def require_sound(findings: tuple[Finding, ...]) -> None:
    """Refuse a graph with findings.

    Raises:
        BuildError: there are some; all are listed, each with its cure.
    """
    if not findings:
        return
    cures = tuple(dict.fromkeys(finding.cure for finding in findings))
    shown = [f"{finding.layer}: {finding.problem}" for finding in findings[:_MOST_SHOWN]]
    if len(findings) > _MOST_SHOWN:
        shown.append(f"and {len(findings) - _MOST_SHOWN} more")
    count = f"{len(findings)} things" if len(findings) > 1 else "one thing"
    raise BuildError(
        "\n    ".join([f"TensorRT can't build this graph, {count} to put right:", *shown]),
        "; ".join(cures),
    )


def _opset(graph: OnnxGraph, target: _Target) -> Iterator[Finding]:
    newest = _RTX_NEWEST_OPSET
    if target.runtime == "tensorrt":
        newest = next((n for since, n in _NEWEST_OPSETS if target.version >= since), 0)
    for entry in graph.model.opset_import:
        if entry.domain not in ("", "ai.onnx"):
            continue
        cure = "export again"
        if entry.version > newest:
            cure = "use a newer TensorRT, or a scheme without 4-bit weights (they need opset 21)"
        if not _OLDEST_OPSET <= entry.version <= newest:
            yield Finding(
                "the graph",
                f"it has opset {entry.version}, {target.title} reads {_OLDEST_OPSET} to {newest}",
                cure,
            )


def _names(graph: OnnxGraph, target: _Target) -> Iterator[Finding]:
    counts = Counter(node.name for node in graph.nodes if node.name)
    for name, count in counts.items():
        if count > 1:
            problem = f"{count} nodes are called {name!r}: TensorRT refuses or renames the second"
            yield Finding(name, problem, "export again; `export` numbers them")


def _inputs(graph: OnnxGraph, target: _Target) -> Iterator[Finding]:
    if target.dynamic_profile:
        return
    for value in graph.model.graph.input:
        if value.name in graph.initializers:
            continue
        dims = value.type.tensor_type.shape.dim
        if not value.type.tensor_type.HasField("shape") or any(
            not dim.HasField("dim_value") for dim in dims
        ):
            sizes = ", ".join(dim.dim_param or str(dim.dim_value) for dim in dims)
            yield Finding(
                value.name,
                f"the input [{sizes}] has no fixed size, and there is no optimization profile",
                "give the device profile a list of frames",
            )


def _operators(graph: OnnxGraph, target: _Target) -> Iterator[Finding]:
    for node in graph.nodes:
        for problem, cure in _operator(graph, node, target):
            yield Finding(layer_of(node), problem, cure)


def _operator(graph: OnnxGraph, node: onnx.NodeProto, target: _Target) -> Iterator[tuple[str, str]]:
    """(problem, cure) of one node, leaving types apart."""
    name = node.op_type
    if node.domain not in ("", "ai.onnx"):
        yield (
            f"{node.domain}.{name} is no ONNX operator, {target.title} has no kernel",
            _OTHER_GRAPH,
        )
        return
    if name in _ABSENT:
        yield f"{target.title} has no kernel for {name}", _ABSENT[name]
    since = _ARRIVED.get(name)
    if since and target.runtime == "tensorrt" and target.version < since:
        yield (
            f"{name} came with TensorRT {'.'.join(map(str, since))}, this is {target.title}",
            "export it written out in other operators, as `export` does",
        )
    if name == "Attention" and any(a.name == "softmax_precision" for a in node.attribute):
        yield "TensorRT refuses softmax_precision", "drop the attribute"
    if name == "Attention" and graph.types.get(node.input[0]) == TensorProto.FLOAT:
        yield "there are no kernels for Attention in FP32", "export with --precision fp16 or bf16"
    if name == "Resize" and attribute(node, "antialias", 0):
        yield "TensorRT can't resize with antialias", "compute the table at export"
    if name == "Cast" and attribute(node, "to", 0) in _UNCASTABLE:
        yield "TensorRT casts to no 4-bit or FP8 type", "use QuantizeLinear"
    if name in ("Loop", "Scan", "If"):
        yield (
            f"a {name} is compiled apart: nothing fuses across its border, no CUDA graph holds it",
            _OTHER_GRAPH + "; model.tensorrt.onnx has the iterations written out",
        )


def _operand_types(graph: OnnxGraph, target: _Target) -> Iterator[Finding]:
    for node in graph.nodes:
        operands = _SAME_TYPE.get(node.op_type)
        if operands is None:
            continue
        known = {name: graph.types.get(name, 0) for name in node.input[operands] if name}
        types = {kind for kind in known.values() if kind}
        if len(types) > 1:
            pairs = (f"{n} {TensorProto.DataType.Name(kind)}" for n, kind in known.items() if kind)
            yield Finding(
                layer_of(node),
                f"the operands of {node.op_type} differ in type: {', '.join(pairs)}",
                "put a Cast where the types meet; TensorRT converts nothing by itself",
            )
