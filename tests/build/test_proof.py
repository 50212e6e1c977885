"""The proof, on engines that TensorRT-RTX has really built."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper  # noqa: E402

from vggt_deploy.build import build  # noqa: E402
from vggt_deploy.build.builder import build_plan  # noqa: E402
from vggt_deploy.build.expect import expected_attentions, expected_linears  # noqa: E402
from vggt_deploy.build.settings import BuildSettings  # noqa: E402
from vggt_deploy.engines.inspect import inspect_engine  # noqa: E402
from vggt_deploy.engines.kernels import (  # noqa: E402
    float_linears,
    fused_attentions,
    parse_layer_record,
    prove,
)
from vggt_deploy.engines.onnx_weights import packed_bytes  # noqa: E402
from vggt_deploy.engines.tensorrt import inspector  # noqa: E402
from vggt_deploy.engines.tensorrt.library import Library  # noqa: E402
from vggt_deploy.errors import BuildError, RuntimeUnavailableError  # noqa: E402
from vggt_deploy.records import FramesRange, ProofRecord  # noqa: E402

HEAD, TOKENS = 64, 14
ONE = (FramesRange(1, 2, 5),)
THREE = (FramesRange(1, 1, 1), FramesRange(2, 3, 4), FramesRange(5, 5, 5))
Proven = Callable[..., ProofRecord]


@pytest.fixture
def proven(rtx: Library, graph: Any) -> Proven:
    """A model -> the proof of its engine."""

    def run(model: Any, profiles: tuple[FramesRange, ...] = ONE) -> ProofRecord:
        path = graph(model)
        built = build_plan(rtx, path, BuildSettings(profiles, targets=((8, 9),)))
        linears, attentions = expected_linears(path, 2), expected_attentions(path)
        layers = parse_layer_record(built.layers)
        proof = prove(layers, linears, attentions, "builder layer record")
        assert fused_attentions(layers) == proof.attentions_fused
        return proof

    return run


def verdicts(proof: ProofRecord) -> dict[str, str]:
    return {name: linear.computes for name, linear in proof.linears.items()}


def test_quantized_on_both_sides_is_an_integer_gemm(proven: Proven, two_linears: Any) -> None:
    proof = proven(two_linears())
    assert verdicts(proof) == {"block.fc1": "int8", "block.fc2": "int8"}
    assert float_linears(proof) == {}
    fc1 = proof.linears["block.fc1"]
    assert (fc1.inputs, fc1.outputs, fc1.applications) == (14, 64, 1)
    assert fc1.rows == 2 * 3 * 14  # two frames of three colours, 14 rows each
    assert fc1.flops == 2 * 14 * 64 * fc1.rows
    assert fc1.weight_bytes == 14 * 64 + 4 * 64


@pytest.mark.parametrize("removed", [0, 1])
def test_without_quantized_activations_it_is_not(
    removed: int, proven: Proven, two_linears: Any
) -> None:
    proof = proven(two_linears(static=(removed != 0, removed != 1)))
    names = ["block.fc1", "block.fc2"]
    assert float_linears(proof) == {names[removed]: "int8-weight"}
    assert verdicts(proof)[names[1 - removed]] == "int8"


def test_every_profile_must_keep_it(proven: Proven, two_linears: Any) -> None:
    assert set(verdicts(proven(two_linears(), THREE)).values()) == {"int8"}
    assert set(verdicts(proven(two_linears(static=(False,) * 2), THREE)).values()) == {
        "int8-weight"
    }


def test_with_a_fixed_number_of_frames(proven: Proven, two_linears: Any) -> None:
    """No size is open then: what is a weight is known from where it comes from."""
    assert set(verdicts(proven(two_linears(frames=2), ())).values()) == {"int8"}
    weight_only = two_linears(static=(False, False), frames=2)
    assert set(verdicts(proven(weight_only, ())).values()) == {"int8-weight"}


def test_a_weight_with_two_readers_is_written_out_as_floats(proven: Proven, network: Any) -> None:
    """TensorRT-RTX dequantizes it once, into memory, and multiplies floats."""
    a = network.linear("images", "head", 14, 14, static=False)
    weight = next(n for n in network.nodes if n.name == "head/DequantizeLinear")
    again = network.node("DequantizeLinear", list(weight.input), "head/DequantizeLinear_1", axis=1)
    out = network.node("MatMul", [network.node("Relu", [a], "relu"), again], "head/MatMul_1")
    proof = proven(network.model(out))
    assert verdicts(proof) == {"head": "int8-stored"}
    assert proof.linears["head"].applications == 2
    assert proof.linears["head"].weight_bytes == 14 * 14 + 4 * 14


def four_bit(network: Any, x: str, *, group: int) -> str:
    values = np.random.default_rng(0).integers(-7, 8, 14 * 64)
    # 14 inputs are padded to 64, as `export` pads a last group.
    rows = np.zeros((64, 64), np.int64)
    rows[:14] = values.reshape(14, 64)
    network.weights.append(
        helper.make_tensor("fc.q", TensorProto.INT4, [64, 64], rows.reshape(-1).tolist())
    )
    scale = network.constant("fc.scale", np.full((64 // group, 64), 0.01, np.float32))
    pads = network.constant("pads", np.array([0] * 9 + [50], np.int64))
    padded = network.node("Pad", [x, pads], "fc/Pad")
    w = network.node(
        "DequantizeLinear", ["fc.q", scale], "fc/DequantizeLinear", axis=0, block_size=group
    )
    return str(network.node("MatMul", [padded, w], "fc/MatMul"))


@pytest.mark.parametrize("group", [16, 32, 64])
def test_four_bit_groups_keep_four_bits(group: int, proven: Proven, network: Any) -> None:
    """Inside the kernel or before it; never as floats in the plan."""
    model = network.model(four_bit(network, "images", group=group))
    model.opset_import[0].version = 21
    proof = proven(model)
    assert verdicts(proof)["fc"] in ("int4-weight", "int4-stored")
    assert proof.linears["fc"].weight_bytes == 64 * 64 // 2 + 4 * 64 * (64 // group)


def test_the_rank_1_term_leaves_the_integer_gemm_alone(proven: Proven, network: Any) -> None:
    """Asymmetric weights, W8A8: x8 @ q * s - rowsum(x8) * (s z)."""
    product = network.linear("images", "fc", 14, 64, static=True)
    axes = network.constant("axes", np.array([-1], np.int64))
    rows = network.node("ReduceSum", ["fc/Input_DequantizeLinear:0", axes], "fc/ReduceSum")
    term = network.constant("fc.scale_times_zero", np.linspace(-1, 1, 64, dtype=np.float32))
    rank_1 = network.node("Mul", [rows, term], "fc/Mul")
    proof = proven(network.model(network.node("Sub", [product, rank_1], "fc/Sub")))
    assert verdicts(proof) == {"fc": "int8"}


def test_float_weights_are_no_quantized_linear(proven: Proven, network: Any) -> None:
    weight = network.constant("w", np.ones((14, 64), np.float32))
    proof = proven(network.model(network.node("MatMul", ["images", weight], "fc/MatMul")))
    assert proof.linears == {}


def attention(network: Any, kind: int, *, blocks: int = 1) -> Any:
    """softmax(q q^T) q over 14 tokens with heads of 64, in FP16 or FP32."""
    numpy_kind = {1: np.float32, 10: np.float16}[kind]
    weight = network.constant("w", np.full((TOKENS, HEAD), 0.05, np.float32))
    x = network.node("MatMul", ["images", weight], "embed/MatMul")
    shape = network.constant("shape", np.array([-1, 3, TOKENS, HEAD], np.int64))
    x = network.node("Reshape", [x, shape], "reshape")
    x = network.node("Cast", [x], "cast", to=kind)
    for index in range(blocks):
        name = f"blocks.{index}.attn"
        scale = network.constant(f"{name}.scale", np.array(0.125, numpy_kind))
        q = network.node("Mul", [x, scale], f"{name}/Mul")
        k = network.node("Transpose", [x], f"{name}/Transpose", perm=[0, 1, 3, 2])
        scores = network.node("MatMul", [q, k], f"{name}/MatMul")
        weights = network.node("Softmax", [scores], f"{name}/Softmax", axis=-1)
        x = network.node("MatMul", [weights, x], f"{name}/MatMul_1")
    return network.model(network.node("Cast", [x], "out", to=TensorProto.FLOAT))


@pytest.mark.parametrize("profiles", [ONE, THREE])
def test_half_precision_attention_fuses(
    profiles: tuple[FramesRange, ...], proven: Proven, network: Any
) -> None:
    proof = proven(attention(network, TensorProto.FLOAT16, blocks=2), profiles)
    assert (proof.attentions, proof.attentions_fused, proof.attentions_half) == (2, 2, 2)
    assert proof.half_unfused == ()


def test_attention_in_fp32_does_not_and_promised_nothing(proven: Proven, network: Any) -> None:
    proof = proven(attention(network, TensorProto.FLOAT))
    assert (proof.attentions, proof.attentions_fused, proof.attentions_half) == (1, 0, 0)
    assert proof.half_unfused == ()


def test_half_precision_attention_that_does_not_fuse_is_named(proven: Proven, network: Any) -> None:
    """The scores also leave the engine, so they must exist in memory."""
    model = attention(network, TensorProto.FLOAT16)
    scores = helper.make_tensor_value_info("blocks.0.attn/MatMul:0", TensorProto.FLOAT16, None)
    model.graph.output.append(scores)
    proof = proven(onnx.shape_inference.infer_shapes(model))
    assert (proof.attentions_fused, proof.attentions_half) == (0, 1)
    assert proof.half_unfused == ("blocks.0.attn",)


def test_another_engine_proves_nothing(rtx: Library, graph: Any, two_linears: Any) -> None:
    path = graph(two_linears())
    built = build_plan(rtx, path, BuildSettings(ONE, targets=((8, 9),)))
    expected = {f"other.{name}": value for name, value in expected_linears(path, 2).items()}
    renamed = {
        name: type(value)(**{**vars(value), "products": (f"{name}/MatMul",)})
        for name, value in expected.items()
    }
    proof = prove(parse_layer_record(built.layers), renamed, (), "builder layer record")
    assert set(verdicts(proof).values()) == {"unseen"}
    assert len(float_linears(proof)) == 2


@pytest.fixture
def engine(save_artifact: Any, two_linears: Any, tmp_path: Path) -> Path:
    """A W8A8 engine folder, built by the pipeline."""
    artifact = save_artifact(tmp_path / "artifact", two_linears())
    folder = tmp_path / "engine"
    build(artifact, runtime="tensorrt-rtx", device="rtx4090", output_dir=folder)
    return folder


def test_inspect_tells_what_was_proven(engine: Path) -> None:
    found = inspect_engine(engine)
    assert found.header is not None
    assert found.header.runtime == "tensorrt-rtx"
    assert found.shares == {key: {"int8": 1.0} for key in ("layers", "flops", "bytes")}
    assert found.layers == {"block.fc1": 14 * 64 + 256, "block.fc2": 64 * 32 + 128}
    assert found.packed_bytes == packed_bytes(engine.parent / "artifact" / "model.tensorrt.onnx")
    assert found.weights_ratio is not None
    assert found.weights_ratio >= 1  # nothing is missing; in a graph this small, padding is most
    assert found.memory[0].frames.min == 1
    assert found.memory[0].activation_bytes is None  # only a GPU tells
    assert (found.live is None) == (found.live_reason is not None)
    assert json.loads(json.dumps(found.to_json()))["proof"]["source"] == "builder layer record"


def test_inspect_says_why_it_did_not_ask_the_live_engine(
    engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> str:
        raise RuntimeUnavailableError("no CUDA device: of this test", "buy one")

    monkeypatch.setattr(inspector, "inspector_json", refuse)
    found = inspect_engine(engine)
    assert found.live is None
    assert found.live_reason == "no CUDA device: of this test"


@pytest.mark.parametrize("left, verdict", [("Int8", "int8"), ("Half", "int8-weight")])
def test_the_live_engine_has_the_last_word(
    left: str, verdict: str, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answer is written here, as TensorRT 11 would: there is no GPU to ask."""

    def gemm(name: str, inputs: int, outputs: int, dtype: str) -> dict[str, Any]:
        return {
            "Name": name,
            "LayerType": "gemm",
            "Inputs": [{"Name": "x", "Dimensions": [-1, inputs], "Datatype": dtype}],
            "Constants": [{"Name": "w", "Dimensions": [inputs, outputs], "Datatype": "Int8"}],
            "Outputs": [{"Name": "y", "Dimensions": [-1, outputs], "Datatype": "Float"}],
            "Metadata": f"[ONNX Layer: {name}]",
        }

    layers = [gemm("block.fc1/MatMul", 14, 64, left), gemm("block.fc2/MatMul", 64, 32, "Int8")]
    answer = json.dumps({"Layers": layers, "I/O Tensors": []})
    monkeypatch.setattr(inspector, "inspector_json", lambda *arguments: answer)
    live = inspect_engine(engine).live
    assert live is not None
    assert live.differs == ({} if verdict == "int8" else {"block.fc1": ("int8", verdict)})
    assert live.shares["layers"][verdict] >= 0.5


@pytest.mark.gpu
def test_the_live_engine_agrees_with_its_builder(engine: Path) -> None:
    found = inspect_engine(engine)
    assert found.live_reason is None
    assert found.live is not None
    assert found.live.differs == {}


def test_the_graph_must_be_read(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"hello, world")
    with pytest.raises(BuildError, match="not a readable ONNX graph"):
        expected_linears(tmp_path / "model.onnx", 1)
    with pytest.raises(BuildError, match="not a readable ONNX graph"):
        expected_attentions(tmp_path / "absent.onnx")
