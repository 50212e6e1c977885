"""Proof of what an engine computes in: for every quantized Linear, the types of its GEMM.

    int8         Int8 x Int8: the integer GEMM
    int8-weight  Int8 (int4-weight: Int4) weights, turned to float inside the kernel of the GEMM
    int8-stored  Int8 (int4-stored: Int4) in the plan, written out as floats by a kernel of its own
                 before each float GEMM: a small file, and no gain in a run
    float        the builder turned the weight to float: nothing is gained
    unseen       no layer of the engine was recognized as the product

A verdict is taken from the layer that names the product's node and reads an operand of the size of
its weight. A layer that only names the node is its epilogue: the builder moves scales and biases
to where they cost nothing. What is not recognized counts as unseen, and so as not proven.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from vggt_deploy.engines.layer_record import EngineLayer as EngineLayer
from vggt_deploy.engines.layer_record import EngineTensor
from vggt_deploy.engines.layer_record import parse_inspector as parse_inspector
from vggt_deploy.engines.layer_record import parse_layer_record as parse_layer_record
from vggt_deploy.records import LinearRecord, ProofRecord

Source = Literal["builder layer record", "engine inspector"]

# From the most that can be gained to nothing.
VERDICTS = (
    "int8",
    "int8-weight",
    "int4-weight",
    "int8-stored",
    "int4-stored",
    "float",
    "unseen",
)
_HALVES = ("half", "bfloat16")
# The builder pads weights with zeros up to its kernels' alignment: 1024 x 9 lies as 1024 x 10.
_ALIGNMENTS = (1, 2, 4, 8, 16, 32)
# A kernel's name says its types where TensorRT 10 lists no weights: ..._gemm_i8f16_i8i32_f16_...
# multiplies Int8 and sums in Int32.
_INT8_TACTICS = ("i8i32", "i8i8", "s8s8", "imma", "int8")


@dataclass(frozen=True)
class LinearExpectation:
    """A quantized Linear as the ONNX graph has it.

    outputs, inputs: N and K (rounded up to whole groups)
    products: names of its MatMul nodes, one per application
    rows: of the left operand, summed over the products
    weight_bytes: of its integers and scales
    """

    outputs: int
    inputs: int
    products: tuple[str, ...]
    rows: int
    weight_bytes: int


@dataclass(frozen=True)
class AttentionExpectation:
    """softmax(q k^T) v in the ONNX graph, as three node names; dtype: of the softmax ("half")."""

    scores: str
    softmax: str
    values: str
    dtype: str


def prove(
    layers: Sequence[EngineLayer],
    linears: Mapping[str, LinearExpectation],
    attentions: Iterable[AttentionExpectation],
    source: Source,
) -> ProofRecord:
    """Find every Linear and attention of the graph in the engine, and say what it became."""
    engine = _Engine(layers)
    records = {}
    for name, linear in linears.items():
        verdicts = [_verdict(engine, node, linear) for node in linear.products]
        records[name] = LinearRecord(
            computes=max(verdicts, key=VERDICTS.index),
            outputs=linear.outputs,
            inputs=linear.inputs,
            applications=len(linear.products),
            rows=linear.rows,
            weight_bytes=linear.weight_bytes,
        )
    found = [(one, engine.fuses(one)) for one in attentions]
    halves = [(one, fused) for one, fused in found if one.dtype in _HALVES]
    return ProofRecord(
        source=source,
        linears=records,
        attentions=len(found),
        attentions_fused=sum(fused for _, fused in found),
        attentions_half=len(halves),
        half_unfused=tuple(one.softmax.rpartition("/")[0] for one, fused in halves if not fused),
    )


def expectations(proof: ProofRecord) -> dict[str, LinearExpectation]:
    """What to look for in an engine, from a proof that was written down: nodes by their naming."""
    return {
        name: LinearExpectation(
            outputs=one.outputs,
            inputs=one.inputs,
            products=tuple(
                f"{name}/MatMul" + (f"_{n}" if n else "") for n in range(one.applications)
            ),
            rows=one.rows,
            weight_bytes=one.weight_bytes,
        )
        for name, one in proof.linears.items()
    }


def fused_attentions(layers: Iterable[EngineLayer]) -> int:
    """Softmaxes that share a kernel with two products of the same module, in every profile."""
    fused: dict[str, bool] = {}
    for layer in layers:
        owners = [node.rpartition("/") for node in layer.nodes]
        products = Counter(module for module, _, name in owners if name.startswith("MatMul"))
        for node, (module, _, name) in zip(layer.nodes, owners, strict=True):
            if name.startswith("Softmax"):
                fused[node] = fused.get(node, True) and products[module] >= 2
    return sum(fused.values())


def float_linears(proof: ProofRecord) -> dict[str, str]:
    """Of a scheme that promises integer GEMMs: the Linears without one -> what they compute in."""
    return {n: r.computes for n, r in proof.linears.items() if r.computes != "int8"}


def layer_shares(proof: ProofRecord) -> dict[str, float]:
    """Verdict -> its share of the quantized Linears, in 0..1; empty where none is quantized."""
    return _shares((r.computes, 1) for r in proof.linears.values())


def flop_shares(proof: ProofRecord) -> dict[str, float]:
    """Verdict -> its share of the operations of the quantized Linears."""
    return _shares((r.computes, r.flops) for r in proof.linears.values())


def byte_shares(proof: ProofRecord) -> dict[str, float]:
    """Verdict -> its share of the packed bytes of the quantized Linears."""
    return _shares((r.computes, r.weight_bytes) for r in proof.linears.values())


def _shares(weighted: Iterable[tuple[str, int]]) -> dict[str, float]:
    sums = dict.fromkeys(VERDICTS, 0)
    for verdict, weight in weighted:
        sums[verdict] += weight
    total = sum(sums.values())
    return {verdict: value / total for verdict, value in sums.items() if value}


class _Engine:
    """Layers by the node they name, and which tensors of a layer come from constants alone."""

    def __init__(self, layers: Sequence[EngineLayer]) -> None:
        self.naming: dict[str, list[EngineLayer]] = {}
        # (layer, operand) -> the float operand's integers. Names are reused, order is of execution.
        self._origins: dict[tuple[str, str], tuple[EngineTensor, ...]] = {}
        written: dict[str, tuple[EngineTensor, ...] | None] = {}
        for layer in layers:
            for node in dict.fromkeys(layer.nodes):
                self.naming.setdefault(node, []).append(layer)
            origins = list(layer.constants)
            constant = True
            for tensor in layer.inputs:
                origin = written.get(tensor.name)
                if origin is None or tensor.elements is None:
                    constant = False
                else:
                    self._origins[layer.name, tensor.name] = origin
                    origins += origin
            for tensor in layer.outputs:
                written[tensor.name] = tuple(origins) if constant else None

    def constants_behind(
        self, layer: EngineLayer, tensor: EngineTensor
    ) -> tuple[EngineTensor, ...] | None:
        """The constants that an input is computed from, None if it depends on the run's input."""
        return self._origins.get((layer.name, tensor.name))

    def fuses(self, attention: AttentionExpectation) -> bool:
        """Whether, in every profile, one kernel has both products and the softmax."""
        wanted = {attention.scores, attention.softmax, attention.values}
        kernels = self.naming.get(attention.softmax, [])
        return bool(kernels) and all(wanted <= set(kernel.nodes) for kernel in kernels)


def _verdict(engine: _Engine, node: str, linear: LinearExpectation) -> str:
    """What one product computes in: the worst of the kernels that it was split into."""
    naming = engine.naming.get(node, [])
    gemms = sum(layer.kind == "gemm" for layer in naming)
    sizes = _weight_sizes(linear, max(gemms, 1))
    found = [_kernel_verdict(engine, layer, linear, sizes) for layer in naming]
    return max((v for v in found if v is not None), key=VERDICTS.index, default="unseen")


def _weight_sizes(linear: LinearExpectation, parts: int) -> frozenset[int]:
    """The numbers of elements that its weight may have, whole or in equal parts."""
    rounded = {
        _round_up(linear.outputs, a) * _round_up(linear.inputs, b)
        for a in _ALIGNMENTS
        for b in _ALIGNMENTS
    }
    return frozenset(rounded | {size // parts for size in rounded if size % parts == 0})


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _kernel_verdict(
    engine: _Engine, layer: EngineLayer, linear: LinearExpectation, sizes: frozenset[int]
) -> str | None:
    """None: the layer is not the product."""
    weights = [t.dtype for t in layer.constants if t.elements in sizes]
    activations = []
    for tensor in layer.inputs:
        constants = engine.constants_behind(layer, tensor)
        if constants is None or tensor.elements not in sizes:
            activations.append(tensor)
            continue
        integers = {t.dtype for t in constants if t.dtype in ("int8", "int4")}
        stored = tensor.dtype not in ("int8", "int4") and len(integers) == 1
        weights.append(f"{integers.pop()}-stored" if stored else tensor.dtype)
    if not activations:
        return None  # it prepares the weight
    left_is_int8 = _left_is_int8(layer, activations, linear)
    if not weights:
        by_name = layer.kind == "gemm" and left_is_int8
        return "int8" if by_name and _is_int8_tactic(layer.tactic) else None
    return max((_operand_verdict(w, left_is_int8) for w in weights), key=VERDICTS.index)


def _operand_verdict(weight: str, left_is_int8: bool) -> str:
    if weight.endswith("-stored"):
        return weight
    if weight == "int8":
        return "int8" if left_is_int8 else "int8-weight"
    return "int4-weight" if weight == "int4" else "float"


def _left_is_int8(
    layer: EngineLayer, activations: Sequence[EngineTensor], linear: LinearExpectation
) -> bool:
    """A GEMM's left operand comes first; a fusion lists its operands in any order.

    Then it is the integer one of the right width: what else a fusion adds (residual, bias, rank-1
    term) this package leaves in float. A GEMM of another width is another Linear's, with the
    epilogue of this one before it.
    """
    widths = {_round_up(linear.inputs, a) for a in _ALIGNMENTS}
    if layer.kind == "gemm":
        return activations[0].dtype == "int8" and not widths.isdisjoint(activations[0].dims)
    return any(t.dtype == "int8" and t.dims and t.dims[-1] in widths for t in activations)


def _is_int8_tactic(tactic: str) -> bool:
    return any(mark in tactic.lower() for mark in _INT8_TACTICS)
