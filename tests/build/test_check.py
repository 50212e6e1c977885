"""Our check against the real TensorRT-RTX: every graph that it refuses, or builds wrongly, is
named by us first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from vggt_deploy.build.check import Finding, check_graph, require_sound  # noqa: E402
from vggt_deploy.engines.tensorrt.library import Library  # noqa: E402
from vggt_deploy.errors import BuildError  # noqa: E402

RTX = (1, 7, 1, 116)
K, N = 64, 128
Nodes = list[Any]


@dataclass(frozen=True)
class Graphs:
    """Writes a graph over `x`, checks it, and asks TensorRT-RTX."""

    folder: Path
    library: Library

    def save(self, model: Any) -> Path:
        path = self.folder / f"graph_{len(list(self.folder.iterdir()))}.onnx"
        onnx.save(model, path)
        return path

    def check(self, model: Any, **options: Any) -> tuple[Finding, ...]:
        target: dict[str, Any] = {
            "runtime": "tensorrt-rtx",
            "version": RTX,
            "dynamic_profile": False,
        }
        return check_graph(self.save(model), **{**target, **options})

    def refusal(self, model: Any) -> str | None:
        """TensorRT-RTX's words, None if it builds the graph."""
        trt, log = self.library.trt, self.library.error_log()
        builder = trt.Builder(log)
        network = builder.create_network(0)
        parser = trt.OnnxParser(network, log)
        if not parser.parse(model.SerializeToString()):
            return " ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
        config = builder.create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.SM86, 0)
        if builder.build_serialized_network(network, config) is not None:
            return None
        return str(log.explain())


@pytest.fixture
def graphs(tmp_path: Path, rtx: Library) -> Graphs:
    return Graphs(tmp_path, rtx)


def node(operator: str, inputs: list[str], output: str, **attributes: Any) -> Any:
    return helper.make_node(operator, inputs, [output], name=f"block.fc/{operator}", **attributes)


def named(name: str, operator: str, inputs: list[str], output: str, **attributes: Any) -> Any:
    return helper.make_node(operator, inputs, [output], name=name, **attributes)


def make(
    nodes: Nodes,
    *,
    opset: int = 20,
    dtype: int = TensorProto.FLOAT,
    shape: tuple[int | str, ...] = (2, K),
    **constants: Any,
) -> Any:
    tensors = [
        value
        if isinstance(value, onnx.TensorProto)
        else numpy_helper.from_array(np.asarray(value), name)
        for name, value in constants.items()
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info("y", dtype, None)],
        tensors,
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


RANDOM = np.random.default_rng(0)
Q8 = RANDOM.integers(-127, 128, (K, N)).astype(np.int8)
SCALES = np.full(N, 0.01, np.float32)
ZEROS = np.zeros(N, np.int8)
GROUPS = np.full((2, N), 0.01, np.float32)
QUANTIZE = [
    named("block.fc/Input_QuantizeLinear", "QuantizeLinear", ["x", "xs", "xz"], "xq"),
    named("block.fc/Input_DequantizeLinear", "DequantizeLinear", ["xq", "xs", "xz"], "xd"),
]
GRID = {"xs": np.float32(0.02), "xz": np.int8(0)}


def with_value(array: Any, value: float) -> Any:
    changed = array.copy()
    changed[5] = value
    return changed


def four_bits(shape: tuple[int, int]) -> Any:
    values = RANDOM.integers(-7, 8, int(np.prod(shape))).tolist()
    return helper.make_tensor("q", TensorProto.INT4, shape, values)


def linear(*, x: str = "x", zero: bool = True, **attributes: Any) -> Nodes:
    inputs = ["q", "s", "z"] if zero else ["q", "s"]
    weight = node("DequantizeLinear", inputs, "w", **{"axis": 1, **attributes})
    return [weight, node("MatMul", [x, "w"], "y")]


def int8(**changes: Any) -> Any:
    return make(linear(), **{"q": Q8, "s": SCALES, "z": ZEROS, **changes})


def int4(block: int, scales: Any = GROUPS, *, quantized: bool = False, **options: Any) -> Any:
    nodes = linear(x="xd" if quantized else "x", zero=False, axis=0, block_size=block)
    grid = GRID if quantized else {}
    before = QUANTIZE if quantized else []
    arguments = {"q": four_bits((K, N)), "s": scales, "opset": 21, **grid, **options}
    return make([*before, *nodes], **arguments)


def activations(**grid: Any) -> Any:
    return make([*QUANTIZE, *linear(x="xd")], q=Q8, s=SCALES, z=ZEROS, **{**GRID, **grid})


def loop() -> Any:
    body = helper.make_graph(
        [
            named("body/Identity", "Identity", ["go"], "go_on"),
            named("body/Add", "Add", ["v", "v"], "twice"),
        ],
        "body",
        [
            helper.make_tensor_value_info("trip", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, [2, K]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("twice", TensorProto.FLOAT, [2, K]),
        ],
    )
    trips = {"count": np.array(4, np.int64), "yes": np.array(True)}
    return make([node("Loop", ["count", "yes", "x"], "y", body=body)], **trips)


HALF_SCALES = np.full(N, 0.01, np.float16)
HALF = {"dtype": TensorProto.FLOAT16}

SOUND = {
    "int8 weights": int8(),
    "int4 groups": int4(32),
    "static activations": activations(),
    "half precision": int8(s=HALF_SCALES, **HALF),
    "power of another type": make([node("Pow", ["x", "c"], "y")], c=np.float16(2)),
    "nodes without names": make(
        [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Relu", ["r"], ["y"])]
    ),
}

# What TensorRT-RTX refuses -> words of ours, and of its own.
REFUSED = {
    "non-zero zero point": (int8(z=with_value(ZEROS, 1)), "zero points z are not all 0",
        "Non-zero zero point is not supported",
    ),
    "activations' zero point": (activations(xz=np.int8(3)), "zero points xz are not all 0",
        "Non-zero zero point is not supported",
    ),
    "UINT8 weights": (
        int8(q=Q8.view(np.uint8), z=ZEROS.view(np.uint8)),
        "quantizes to UINT8",
        "Found unsupported input type of UINT8",
    ),
    "scale of zero": (int8(s=with_value(SCALES, 0)), "1 of 128 scales in s are not positive",
        "must all be positive",
    ),
    "negative scale": (int8(s=with_value(SCALES, -1)), "1 of 128 scales in s are not positive",
        "must all be positive",
    ),
    "scale that is no number": (int8(s=with_value(SCALES, np.nan)), "not positive numbers",
        "must all be positive",
    ),
    "underflown FP16 scale": (int8(s=with_value(HALF_SCALES, 1e-9), **HALF), "not positive",
        "must all be positive",
    ),
    "scales of the other axis": (
        int8(s=np.full(K, 0.01, np.float32), z=np.zeros(K, np.int8)),
        "64 scales along axis 1",
        "number of scales is not equal to the number of output channels",
    ),
    "odd number of 4-bit weights": (
        make(
            linear(zero=False, axis=0, block_size=3),
            q=four_bits((3, 5)),
            s=np.full((1, 5), 0.01, np.float32),
            opset=21,
            shape=(2, 3),
        ),
        "odd number of 4-bit weights",
        "odd tensor volume",
    ),
    "types that differ in a sum": (
        make([node("Add", ["x", "c"], "y")], c=np.ones(K, np.float16)),
        "operands of Add differ in type: x FLOAT, c FLOAT16",
        "must have same input types",
    ),
    "types that differ in a product": (
        make([node("MatMul", ["x", "c"], "y")], c=np.ones((K, N), np.float16)),
        "operands of MatMul differ",
        "must have same input types",
    ),
    "types that differ in Concat": (
        make([node("Concat", ["x", "c"], "y", axis=0)], c=np.ones((3, K), np.float16)),
        "operands of Concat differ",
        "must all be of the same type",
    ),
    "types that differ in LayerNormalization": (
        make([node("LayerNormalization", ["x", "c"], "y")], c=np.ones(K, np.float16)),
        "operands of LayerNormalization differ",
        "must have identical types",
    ),
    "types that differ in Where": (
        make(
            [node("Greater", ["x", "c"], "b"), node("Where", ["b", "x", "d"], "y")],
            c=np.zeros(K, np.float32),
            d=np.zeros(K, np.float16),
        ),
        "operands of Where differ in type: x FLOAT, d FLOAT16",
        "of same type",
    ),
    "no profile": (
        make(linear(), q=Q8, s=SCALES, z=ZEROS, shape=("frames", K)),
        r"the input \[frames, 64\] has no fixed size",
        "no optimization profile has been defined",
    ),
    "a name twice": (
        make([*QUANTIZE, named(QUANTIZE[0].name, "QuantizeLinear", ["x", "xs", "xz"], "again"),
              named("last", "DequantizeLinear", ["again", "xs", "xz"], "other"),
              node("Add", ["xd", "other"], "y")], **GRID),
        "2 nodes are called 'block.fc/Input_QuantizeLinear'",
        "Failed attempt to rename a layer",
    ),
    "quantized at run time": (
        make([
            helper.make_node("DynamicQuantizeLinear", ["x"], ["a", "b", "c"], name="block.fc/D"),
            node("DequantizeLinear", ["a", "b", "c"], "y"),
        ]),
        "no kernel for DynamicQuantizeLinear",
        "false",
    ),
    "MatMulInteger": (
        make([QUANTIZE[0], node("MatMulInteger", ["xq", "q"], "a"),
              node("Cast", ["a"], "y", to=TensorProto.FLOAT)], q=Q8, **GRID),
        "no kernel for MatMulInteger",
        "false",
    ),
    "an operator of another domain": (
        make(
            [node("MatMulNBits", ["x", "q", "s"], "y", domain="com.microsoft", K=K, N=N, bits=4,
                  block_size=32)],
            q=np.zeros((N, 2, 16), np.uint8), s=np.ones(2 * N, np.float32),
        ),
        "com.microsoft.MatMulNBits is no ONNX operator",
        "input tensor A must be FP16",
    ),
    "an operator without kernel": (
        make([node("Det", ["x"], "y")], shape=(3, 3)), "no kernel for Det",
        "false",
    ),
    "antialias": (
        make([node("Resize", ["x", "", "c"], "y", mode="linear", antialias=1)],
             c=np.array([1, 1, 0.5, 0.5], np.float32), shape=(1, 3, 8, 8)),
        "antialias",
        "Antialiasing is not supported",
    ),
    "integers that feed a Cast": (
        make([node("Cast", ["q"], "w", to=TensorProto.FLOAT), node("MatMul", ["x", "w"], "y")],
             q=Q8),
        "Cast reads the stored integers q",
        "only allowed before DQ",
    ),
    "integers that feed a Transpose": (
        make([node("Transpose", ["q"], "qt", perm=[1, 0]),
              node("DequantizeLinear", ["qt", "s", "z"], "w", axis=1),
              node("MatMul", ["x", "w"], "y")],
             q=np.ascontiguousarray(Q8.T), s=SCALES, z=ZEROS),
        "Transpose reads the stored integers q",
        "only allowed before DQ",
    ),
    "a Cast to INT4": (
        make([node("Cast", ["x"], "a", to=TensorProto.INT4),
              named("back", "Cast", ["a"], "y", to=TensorProto.FLOAT)], opset=21),
        "casts to no 4-bit",
        "has datatype Int4 but is not produced by",
    ),
    "INT4 with static activations, frames x tokens": (
        int4(32, quantized=True, shape=(3, 5, K)),
        "INT4 weights meet quantized activations",
        "CHECK(is_constant()) failed",
    ),
}  # fmt: skip

# What TensorRT-RTX builds in silence, and what it should not -> words of ours.
SILENT = {
    "infinite scale": (int8(s=with_value(SCALES, np.inf)), "not positive numbers"),
    "FP16 scale without digits": (int8(s=with_value(HALF_SCALES, 1e-6), **HALF), "FP16 loses its"),
    "INT4 scales of zero": (int4(32, np.zeros_like(GROUPS)), "256 of 256 scales"),
    "INT4 block size and scales": (int4(16), r"need|whole and have scales of \(4, 128\)"),
    "INT4 groups that do not divide": (int4(48), "groups of 48"),
    "INT4 with static activations": (int4(32, quantized=True), "INT4 weights meet"),
    "Q without zero point": (
        make([node("QuantizeLinear", ["x", "xs"], "xq"),
              node("DequantizeLinear", ["xq", "xs"], "y")], xs=np.float32(0.02)),
        "means UINT8 to ONNX and INT8 to TensorRT",
    ),
    "FP16 scale for FP32": (
        make([*QUANTIZE, node("Relu", ["xd"], "y")], opset=23,
             xs=np.float16(0.02), xz=np.int8(0)),
        "the scale is FLOAT16, what it quantizes FLOAT",
    ),
    "zero point and output_dtype": (
        make(linear(output_dtype=TensorProto.FLOAT), q=Q8, s=SCALES, z=ZEROS, opset=23),
        "zero point and output_dtype",
    ),
    "a scale that is computed": (
        make([node("ReduceMax", ["x"], "xs", keepdims=0), *QUANTIZE, node("Relu", ["xd"], "y")],
             xz=np.int8(0)),
        "the scale is computed in the graph",
    ),
    "a loop": (loop(), "a Loop is compiled apart"),
    "an opset of the future": (make([node("Relu", ["x"], "y")], opset=25), "has opset 25"),
}  # fmt: skip


@pytest.mark.parametrize("case", SOUND)
def test_a_sound_graph_passes_both(case: str, graphs: Graphs) -> None:
    assert graphs.check(SOUND[case]) == ()
    assert graphs.refusal(SOUND[case]) is None


@pytest.mark.parametrize("case", REFUSED)
def test_what_tensorrt_refuses_we_name_first(case: str, graphs: Graphs) -> None:
    model, words, their_words = REFUSED[case]
    with pytest.raises(BuildError, match=words):
        require_sound(graphs.check(model))
    assert their_words in (graphs.refusal(model) or "it builds")


@pytest.mark.parametrize("case", SILENT)
def test_what_tensorrt_builds_in_silence_we_refuse(case: str, graphs: Graphs) -> None:
    model, words = SILENT[case]
    with pytest.raises(BuildError, match=words):
        require_sound(graphs.check(model))
    assert graphs.refusal(model) is None


def test_a_finding_names_layer_and_cure(graphs: Graphs) -> None:
    (finding,) = graphs.check(int8(z=with_value(ZEROS, 1)))
    assert finding.layer == "block.fc"
    assert "model.tensorrt.onnx" in finding.cure
    assert str(finding).startswith("block.fc: ")


def test_all_findings_are_listed_and_each_once(graphs: Graphs) -> None:
    model = int8(z=with_value(ZEROS, 1), s=with_value(SCALES, -1))
    findings = graphs.check(model)
    assert len(findings) == 2
    with pytest.raises(BuildError, match="2 things") as caught:
        require_sound(findings)
    assert all(finding.problem in caught.value.message for finding in findings)
    assert all(finding.cure in caught.value.fix for finding in findings)
    many = tuple(Finding(f"layer {i}", "is wrong", "mend it") for i in range(50))
    with pytest.raises(BuildError, match="and 30 more") as caught:
        require_sound(many)
    assert caught.value.fix == "mend it"
    require_sound(())


@pytest.mark.parametrize(
    "version, opset, sound",
    [
        ((10, 3, 0), 20, True),
        ((10, 3, 0), 21, False),
        ((10, 16, 1, 11), 24, True),
        ((11, 4, 0, 106), 24, True),
        ((11, 4, 0, 106), 25, False),
        ((10, 3, 0), 8, False),
    ],
)
def test_opsets_by_version(
    version: tuple[int, ...], opset: int, sound: bool, graphs: Graphs
) -> None:
    model = make([node("Relu", ["x"], "y")], opset=opset)
    findings = graphs.check(model, runtime="tensorrt", version=version)
    assert (findings == ()) == sound


def test_operators_by_version(graphs: Graphs) -> None:
    model = make(
        [node("Attention", ["x", "x", "x"], "y")],
        opset=23, dtype=TensorProto.FLOAT16, shape=(1, 4, 16, 64),
    )  # fmt: skip
    check: Callable[..., tuple[Finding, ...]] = graphs.check
    assert check(model) == ()
    (old,) = [f for f in check(model, runtime="tensorrt", version=(10, 13)) if "came" in f.problem]
    assert "TensorRT 10.14" in old.problem
    assert check(model, runtime="tensorrt", version=(10, 14)) == ()


def test_a_profile_makes_open_sizes_sound(graphs: Graphs) -> None:
    model, _, _ = REFUSED["no profile"]
    assert graphs.check(model, dynamic_profile=True) == ()


def test_types_are_inferred_where_the_graph_does_not_say(graphs: Graphs) -> None:
    """Between the Cast and the sum no type is written down."""
    half = node("Cast", ["x"], "half", to=TensorProto.FLOAT16)
    model = make([half, node("Add", ["half", "x"], "y")])
    (finding,) = graphs.check(model)
    assert "half FLOAT16, x FLOAT" in finding.problem


def test_the_scales_must_be_there(graphs: Graphs, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(int8(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    options: dict[str, Any] = {"runtime": "tensorrt-rtx", "version": RTX, "dynamic_profile": False}
    assert check_graph(path, **options) == ()
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(BuildError, match="can't be read"):
        check_graph(path, **options)


def test_four_bit_integer_gemm_scales_after_the_sum(rtx: Library) -> None:
    """Why the silent one is refused: scales of [2, 128] become one row of 256 behind the GEMM."""
    trt, log = rtx.trt, rtx.error_log(keep=lambda message: message.startswith("Layers:"))
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    assert parser.parse(int4(32, quantized=True).SerializeToString())
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    assert builder.build_serialized_network(network, config) is not None
    from vggt_deploy.engines.kernels import parse_layer_record

    layers = parse_layer_record(log.records[-1])
    gemm = next(layer for layer in layers if layer.kind == "gemm")
    assert [tensor.dtype for tensor in gemm.inputs] == ["int8", "int8"]
    assert layers[-1].constants[0].dims == (1, 2 * N)
    assert layers[-1].outputs[0].dims == (2, N)
