"""Reading what TensorRT says of its layers, and the verdicts, on written records.

The record of TensorRT-RTX is as its version 1.7 logs it. The JSON of TensorRT 10 and 11 is written
after NVIDIA's documentation and users' reports: no GPU was at hand. `tests/build/test_proof.py`
proves real engines.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vggt_deploy.engines.kernels import (
    VERDICTS,
    AttentionExpectation,
    LinearExpectation,
    byte_shares,
    expectations,
    float_linears,
    flop_shares,
    fused_attentions,
    layer_shares,
    prove,
)
from vggt_deploy.engines.layer_record import (
    EngineLayer,
    EngineTensor,
    onnx_nodes,
    parse_inspector,
    parse_layer_record,
)
from vggt_deploy.errors import BuildError
from vggt_deploy.records import LinearRecord, ProofRecord

NODE = "blocks.0.mlp.fc1/MatMul"
FC1 = LinearExpectation(4096, 1024, (NODE,), 394, 4096 * 1024 + 4 * 4096)
ATTENTION = AttentionExpectation("a/MatMul", "a/Softmax", "a/MatMul_1", "half")

RECORD = """[VERBOSE] Something before
Layers:
Name: __mye1_0, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0, Metadata: 
Name: __myl_MulMinMaxRounCast_1, LayerType: kgen, Inputs: [ { Name: x, Dimensions: [-1,1024], Strides: [1024,1], StrideOrder: [1,0], Datatype: Half, Format: (Linear) Row major linear format }], Constants: [ { Name: s, Dimensions: [1], Strides: [1], StrideOrder: [0], Datatype: Half, Format: (Linear) Row major linear format }], Outputs: [ { Name: x8, Dimensions: [-1,1024], Strides: [1024,1], StrideOrder: [1,0], Datatype: Int8, Format: (Arbitrary) Format with stride order = [1,0] }], TacticName: __myl_MulMinMaxRounCast_0xd9, StreamId: 0, Metadata: [ONNX Layer: blocks.0.mlp.fc1/Input_QuantizeLinear]
Name: __mye2, LayerType: signal, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0, EventId: 1, Metadata: 
Name: blocks.0.mlp.fc1/MatMul_2, LayerType: gemm, Inputs: [ { Name: x8, Dimensions: [-1,1024], Strides: [1024,1], StrideOrder: [1,0], Datatype: Int8, Format: (Linear) Row major linear format }], Constants: [ { Name: w, Dimensions: [1024,4096], Strides: [4096,1], StrideOrder: [1,0], Datatype: Int8, Format: (Linear) Row major linear format }, { Name: alpha, Dimensions: [1], Strides: [1], StrideOrder: [0], Datatype: Float, Format: (Linear) Row major linear format }], Outputs: [ { Name: y, Dimensions: [-1,4096], Strides: [4096,1], StrideOrder: [1,0], Datatype: Half, Format: (Linear) Row major linear format }], TacticName: __myelin_CASK_STUB, StreamId: 0, Metadata: [ONNX Layer: blocks.0.mlp.fc1/MatMul][ONNX Layer: blocks.0.mlp.fc1/DequantizeLinear]

I/O Tensors:
 Name: images, IOMode: Input, DataType: Float, Dimensions: [1,-1,3,168,224]
"""  # noqa: E501, W291 - as TensorRT-RTX writes it


def test_the_builders_record() -> None:
    shape, quantize, signal, gemm = parse_layer_record(RECORD)
    assert (shape.kind, signal.kind, shape.inputs, shape.nodes) == ("shape_call", "signal", (), ())
    assert quantize.outputs == (EngineTensor("x8", (-1, 1024), "int8"),)
    assert gemm == EngineLayer(
        "blocks.0.mlp.fc1/MatMul_2",
        "gemm",
        (EngineTensor("x8", (-1, 1024), "int8"),),
        (EngineTensor("w", (1024, 4096), "int8"), EngineTensor("alpha", (1,), "float")),
        (EngineTensor("y", (-1, 4096), "half"),),
        "__myelin_CASK_STUB",
        ("blocks.0.mlp.fc1/MatMul", "blocks.0.mlp.fc1/DequantizeLinear"),
    )
    proof = prove(parse_layer_record(RECORD), {"blocks.0.mlp.fc1": FC1}, (), "builder layer record")
    assert float_linears(proof) == {}


@pytest.mark.parametrize("text", ["", "no record", "Layers:\nsomething else\n\nI/O Tensors:"])
def test_no_record(text: str) -> None:
    with pytest.raises(BuildError, match="not known"):
        parse_layer_record(text)


def test_a_record_that_was_cut_is_refused_or_shorter() -> None:
    """A layer that is missing makes its Linear unseen, never Int8."""
    whole = len(parse_layer_record(RECORD))
    for end in range(RECORD.index("Layers:") + 8, len(RECORD), 7):
        try:
            layers = parse_layer_record(RECORD[:end])
        except BuildError:
            continue
        assert len(layers) <= whole
        proof = prove(layers, {"fc1": FC1}, (), "builder layer record")
        if len(layers) < whole:
            assert proof.linears["fc1"].computes == "unseen"


JSON_10 = {
    "Layers": [
        {
            "Name": "__myl_MulMinMaxRounCast_myl0_1",
            "LayerType": "kgen",
            "Inputs": [
                {"Name": "x", "Dimensions": [394, 1024], "Format/Datatype": "Half"},
            ],
            "Outputs": [{"Name": "x8", "Dimensions": [394, 1024], "Format/Datatype": "Int8"}],
            "TacticName": "__myl_MulMinMaxRounCast_0xd9",
            "StreamId": 0,
            "Metadata": "[ONNX Layer: blocks.0.mlp.fc1/Input_QuantizeLinear]",
        },
        {
            "Name": "blocks.0.mlp.fc1/MatMul_myl0_2",
            "LayerType": "gemm",
            "Inputs": [{"Name": "x8", "Dimensions": [394, 1024], "Format/Datatype": "Int8"}],
            "Outputs": [{"Name": "y", "Dimensions": [394, 4096], "Format/Datatype": "Half"}],
            "TacticName": "sm80_xmma_gemm_i8i8_i8i32_f32_tn_n_tilesize128x128x64_stage4",
            "StreamId": 0,
            "Metadata": "[ONNX Layer: blocks.0.mlp.fc1/DequantizeLinear]\u001e"
            "[ONNX Layer: blocks.0.mlp.fc1/MatMul]\u001f[ONNX Layer: blocks.0.mlp.fc1/Add]",
        },
        {
            "Name": "conv",
            "LayerType": "CaskConvolution",
            "Inputs": [
                {
                    "Name": "images",
                    "Location": "Device",
                    "Dimensions": [2, 3, 14, 14],
                    "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format",
                }
            ],
            "Outputs": [
                {"Name": "c", "Dimensions": [2, 8, 1, 1], "Format/Datatype": "Row major FP16"}
            ],
            "Weights": {"Type": "Int8", "Count": 4704},
            "Bias": {"Type": "Float", "Count": 8},
            "Metadata": "[ONNX Layer: conv/Conv]",
        },
    ],
    "Bindings": ["images", "y"],
}

JSON_11 = {
    "Layers": [
        {
            "Name": "blocks.0.mlp.fc1/MatMul_myl0_2",
            "LayerType": "gemm",
            "Inputs": [
                {
                    "Name": "x8",
                    "Dimensions": [-1, 1024],
                    "Strides": [1024, 1],
                    "Datatype": "Int8",
                    "Format": "(Linear) Row major linear format",
                }
            ],
            "Constants": [
                {
                    "Name": "w",
                    "Dimensions": [1024, 4096],
                    "Datatype": "Int8",
                    "Format": "(Linear) Row major linear format",
                }
            ],
            "Outputs": [{"Name": "y", "Dimensions": [-1, 4096], "Datatype": "BFloat16"}],
            "TacticName": "",
            "StreamId": 0,
            "Metadata": "[ONNX Layer: blocks.0.mlp.fc1/MatMul]",
        }
    ],
    "I/O Tensors": [{"Name": "images", "IOMode": "Input", "DataType": "Float"}],
}


def changed(value: Any, old: str, new: str) -> str:
    text = json.dumps(value)
    assert old in text
    return text.replace(old, new)


def test_the_inspector_of_tensorrt_10() -> None:
    quantize, gemm, convolution = parse_inspector(json.dumps(JSON_10))
    assert quantize.outputs[0].dtype == "int8"
    assert gemm.nodes == tuple(
        f"blocks.0.mlp.fc1/{name}" for name in ("DequantizeLinear", "MatMul", "Add")
    )
    assert convolution.inputs[0].dtype == "int8"
    assert convolution.outputs[0].dtype == "half"
    assert convolution.constants == (EngineTensor("weights", (4704,), "int8"),)


def proven(text: str) -> str:
    proof = prove(parse_inspector(text), {"fc1": FC1}, (), "engine inspector")
    assert proof.source == "engine inspector"
    return proof.linears["fc1"].computes


def test_verdicts_from_the_inspector() -> None:
    """TensorRT 10 lists no weights of a GEMM: the kernel's name must say what it multiplies."""
    assert proven(json.dumps(JSON_10)) == "int8"
    assert proven(changed(JSON_10, "_gemm_i8i8_i8i32_f32", "_gemm_i8f16_i8i32_f16")) == "int8"
    assert proven(changed(JSON_10, "_gemm_i8i8_i8i32_f32", "_gemm_unknown")) == "unseen"
    floats = changed(JSON_10, '394, 1024], "Format/Datatype": "Int8"', '1], "Datatype": "Half"')
    assert proven(floats) == "unseen"
    assert proven(json.dumps(JSON_11)) == "int8"
    assert proven(changed(JSON_11, '1024], "Strides": [1024, 1], "Datatype": "Int8"',
                          '1024], "Datatype": "BFloat16"')) == "int8-weight"  # fmt: skip
    assert proven(changed(JSON_11, '4096], "Datatype": "Int8"', '4096], "Datatype": "Half"')) == (
        "float"
    )


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "no JSON"),
        ("[]", "no list of layers"),
        ('{"Layers": {}}', "no list of layers"),
        ('{"Layers": ["a + b", "c"], "Bindings": []}', "only the names"),
        ('{"Layers": [{"LayerType": "gemm"}]}', "no name"),
        ('{"Layers": [1]}', "no name"),
        ("[" * 100_000, "no JSON"),
    ],
)
def test_what_is_no_detailed_inspection(text: str, words: str) -> None:
    with pytest.raises(BuildError, match=words):
        parse_inspector(text)


def test_types_that_hide_behind_dynamic_shapes() -> None:
    hidden = changed(JSON_10, '"Half"', '"N/A due to dynamic shapes"')
    assert parse_inspector(hidden)  # the others are known
    for known in ("Int8", "Thirty-two wide channel vectorized row major Int8 format"):
        hidden = hidden.replace(f'"Format/Datatype": "{known}"',
                                '"Format/Datatype": "N/A due to dynamic shapes"')  # fmt: skip
    with pytest.raises(BuildError, match="dynamic shapes"):
        parse_inspector(hidden)


@pytest.mark.parametrize(
    "metadata, nodes",
    [
        ("", ()),
        ("[ONNX Layer: a/MatMul]", ("a/MatMul",)),
        ("[ONNX Layer: a][ONNX Layer: b]", ("a", "b")),
        ("[ONNX Layer: a]\x1e[ONNX Layer: b]\x1f[ONNX Layer: c]", ("a", "b", "c")),
        ("[ONNX Layer: a[0]]\x1f[ONNX Layer: b]", ("a[0]", "b")),
        ("something else", ()),
    ],
)
def test_onnx_nodes(metadata: str, nodes: tuple[str, ...]) -> None:
    assert onnx_nodes(metadata) == nodes


names = st.text("abc./_019 ", min_size=1, max_size=12).map(str.strip).filter(bool)
sizes = st.lists(st.integers(-1, 9), max_size=4).map(tuple)
tensors = st.builds(
    EngineTensor, names, sizes, st.sampled_from(["Int8", "Int4", "Half", "Float", "BFloat16"])
)
layers = st.builds(
    EngineLayer,
    names,
    st.sampled_from(["gemm", "kgen", "runtime_fusion"]),
    *[st.lists(tensors, max_size=3).map(tuple)] * 3,
    names,
    st.lists(names, max_size=3).map(tuple),
)


def written(layer: EngineLayer) -> str:
    """As the builder writes it."""

    def group(found: tuple[EngineTensor, ...]) -> str:
        items = (
            f"{{ Name: {t.name}, Dimensions: [{','.join(map(str, t.dims))}], Strides: [1], "
            f"StrideOrder: [0], Datatype: {t.dtype}, Format: (Arbitrary) Format with stride "
            "order = [1,2,0] }"
            for t in found
        )
        return "[" + ", ".join(f" {item}" for item in items) + "]"

    nodes = "".join(f"[ONNX Layer: {name}]" for name in layer.nodes)
    return (
        f"Name: {layer.name}, LayerType: {layer.kind}, Inputs: {group(layer.inputs)}, Constants: "
        f"{group(layer.constants)}, Outputs: {group(layer.outputs)}, TacticName: {layer.tactic}, "
        f"StreamId: 0, Metadata: {nodes}"
    )


def lowered(layer: EngineLayer) -> EngineLayer:
    def low(found: tuple[EngineTensor, ...]) -> tuple[EngineTensor, ...]:
        return tuple(dataclasses.replace(t, dtype=t.dtype.lower()) for t in found)

    return dataclasses.replace(
        layer,
        inputs=low(layer.inputs),
        constants=low(layer.constants),
        outputs=low(layer.outputs),
    )


@given(st.lists(layers, min_size=1, max_size=4))
def test_what_is_written_is_read(found: list[EngineLayer]) -> None:
    text = "Layers:\n" + "\n".join(map(written, found)) + "\n\nI/O Tensors:\n Name: x"
    assert parse_layer_record(text) == tuple(map(lowered, found))


def tensor(name: str, *dims: int, dtype: str) -> EngineTensor:
    return EngineTensor(name, dims, dtype)


def kernel(
    *inputs: EngineTensor, weights: tuple[EngineTensor, ...] = (), kind: str = "runtime_fusion"
) -> EngineLayer:
    output = tensor("y", -1, 4096, dtype="half")
    return EngineLayer("kernel", kind, inputs, weights, (output,), "", (NODE,))


X8 = tensor("x8", -1, 1024, dtype="int8")
X16 = tensor("x", -1, 1024, dtype="half")
W8 = tensor("w", 1024, 4096, dtype="int8")
W4 = tensor("w", 1024, 4096, dtype="int4")
W16 = tensor("w", 1024, 4096, dtype="half")
SCALE = tensor("s", 1, 4096, dtype="half")
RESIDUAL = tensor("residual", -1, 4096, dtype="float")
DEQUANTIZER = EngineLayer("dq", "kgen", (), (W8, SCALE), (W16,), "", ("fc1/DequantizeLinear",))
EPILOGUE = EngineLayer("epilogue", "kgen", (RESIDUAL,), (SCALE,), (RESIDUAL,), "", (NODE,))


@pytest.mark.parametrize(
    "engine, verdict",
    [
        ([kernel(X8, weights=(W8,), kind="gemm")], "int8"),
        ([kernel(X8, weights=(W8,))], "int8"),
        ([kernel(RESIDUAL, X8, weights=(SCALE, W8))], "int8"),
        ([kernel(X8, weights=(W8,), kind="gemm"), EPILOGUE], "int8"),
        ([kernel(X16, weights=(W8,), kind="gemm")], "int8-weight"),
        ([kernel(X16, weights=(SCALE, W8))], "int8-weight"),
        ([kernel(X16, weights=(SCALE, W4))], "int4-weight"),
        ([kernel(X16, weights=(W16,))], "float"),
        ([kernel(X16, weights=(tensor("w", 4096, 1024, dtype="float"),), kind="gemm")], "float"),
        ([DEQUANTIZER, kernel(X16, W16)], "int8-stored"),
        ([DEQUANTIZER, kernel(X8, W16, kind="gemm")], "int8-stored"),
        ([EPILOGUE], "unseen"),
        ([], "unseen"),
        # One good kernel does not excuse another (a second profile, a part of the product).
        ([kernel(X8, weights=(W8,)), kernel(X16, weights=(W8,))], "int8-weight"),
        ([kernel(X8, weights=(W8,)), kernel(X16, weights=(W16,))], "float"),
        # In two parts along the outputs.
        ([kernel(X8, weights=(tensor("a", 1024, 2048, dtype="int8"),), kind="gemm"),
          kernel(X8, weights=(tensor("b", 1024, 2048, dtype="int8"),), kind="gemm")], "int8"),
        # A quantized residual is not a quantized left operand.
        ([kernel(X16, tensor("r", -1, 4096, dtype="int8"), weights=(W8,))], "int8-weight"),
        # fc2, whose weight is as large, with the epilogue of fc1 in front: not fc1's own product.
        ([kernel(tensor("h8", -1, 4096, dtype="int8"), weights=(W8,), kind="gemm")], "int8-weight"),
        ([kernel(tensor("h8", -1, 4096, dtype="int8"), weights=(W8,))], "int8-weight"),
    ],
)  # fmt: skip
def test_verdicts(engine: list[EngineLayer], verdict: str) -> None:
    proof = prove(engine, {"fc1": FC1}, (), "builder layer record")
    assert proof.linears["fc1"].computes == verdict


@pytest.mark.parametrize(
    "dims, verdict",
    [((1024, 9), "int8"), ((1024, 10), "int8"), ((16, 1024), "int8"), ((1024, 50), "unseen")],
)
def test_a_weight_may_be_padded(dims: tuple[int, ...], verdict: str) -> None:
    narrow = dataclasses.replace(FC1, outputs=9)
    engine = [kernel(X8, weights=(EngineTensor("w", dims, "int8"),))]
    proof = prove(engine, {"fc2": narrow}, (), "builder layer record")
    assert proof.linears["fc2"].computes == verdict


def test_a_linear_is_as_good_as_its_worst_application() -> None:
    twice = dataclasses.replace(FC1, products=(NODE, NODE + "_1"))
    good = kernel(X8, weights=(W8,))
    bad = dataclasses.replace(kernel(X16, weights=(W8,)), nodes=(NODE + "_1",))
    assert prove([good, bad], {"fc1": twice}, (), "builder layer record").linears[
        "fc1"
    ].computes == "int8-weight"  # fmt: skip
    missing = prove([good], {"fc1": twice}, (), "builder layer record")
    assert missing.linears["fc1"].computes == "unseen"


def attention(*nodes: str) -> EngineLayer:
    return EngineLayer("attention", "kgen", (X16,), (), (X16,), "", nodes)


@pytest.mark.parametrize(
    "engine, fused",
    [
        ([attention("a/MatMul", "a/Softmax", "a/MatMul_1")], 1),
        ([attention("a/MatMul", "a/Softmax"), attention("a/MatMul_1")], 0),
        ([attention("a/MatMul", "a/Softmax", "a/MatMul_1"), attention("a/Softmax")], 0),
        ([attention("a/MatMul", "b/MatMul", "a/Softmax")], 0),
        ([], 0),
    ],
)
def test_fused_attention(engine: list[EngineLayer], fused: int) -> None:
    proof = prove(engine, {}, [ATTENTION], "builder layer record")
    assert (proof.attentions, proof.attentions_fused, proof.attentions_half) == (1, fused, 1)
    assert proof.half_unfused == (() if fused else ("a",))
    assert fused_attentions(engine) == fused
    single = dataclasses.replace(ATTENTION, dtype="float")
    assert prove(engine, {}, [single], "builder layer record").half_unfused == ()


def linear(computes: str, outputs: int, rows: int, stored: int) -> LinearRecord:
    return LinearRecord(computes, outputs, 10, 1, rows, stored)


def test_shares() -> None:
    linears = {
        "a": linear("int8", 30, 10, 100),
        "b": linear("int8", 10, 10, 100),
        "c": linear("float", 10, 40, 200),
    }
    proof = ProofRecord("builder layer record", linears, 0, 0)
    assert layer_shares(proof) == {"int8": pytest.approx(2 / 3), "float": pytest.approx(1 / 3)}
    assert flop_shares(proof) == {"int8": 0.5, "float": 0.5}
    assert byte_shares(proof) == {"int8": 0.5, "float": 0.5}
    nothing = ProofRecord("builder layer record", {}, 0, 0)
    assert layer_shares(nothing) == flop_shares(nothing) == byte_shares(nothing) == {}


verdict_records = st.builds(linear, st.sampled_from(VERDICTS), *[st.integers(1, 10**6)] * 3)


@given(st.dictionaries(names, verdict_records, min_size=1, max_size=8))
def test_shares_sum_to_one(linears: dict[str, LinearRecord]) -> None:
    proof = ProofRecord("builder layer record", linears, 0, 0)
    for shares in (layer_shares(proof), flop_shares(proof), byte_shares(proof)):
        assert sum(shares.values()) == pytest.approx(1)
    assert set(layer_shares(proof)) == {one.computes for one in linears.values()}


def test_a_written_proof_says_what_to_look_for() -> None:
    """`inspect` asks a live engine for the same nodes, by their naming."""
    wanted = {"blocks.0.mlp.fc1": dataclasses.replace(FC1, products=(NODE, NODE + "_1"))}
    engine = [
        dataclasses.replace(kernel(X8, weights=(W8,)), nodes=(NODE, NODE + "_1")),
    ]
    assert expectations(prove(engine, wanted, (), "builder layer record")) == wanted
