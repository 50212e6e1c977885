"""TensorRT-RTX reads and builds the graphs meant for TensorRT. Its builder needs no GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import tensorrt_rtx as trt

from vggt_deploy.build.builder import build_plan
from vggt_deploy.build.check import check_graph
from vggt_deploy.build.expect import expected_attentions, expected_linears
from vggt_deploy.build.settings import BuildSettings
from vggt_deploy.engines.kernels import float_linears, parse_layer_record, prove
from vggt_deploy.engines.tensorrt.library import Library, load_library
from vggt_deploy.quantize.targets import scheme_rows
from vggt_deploy.records import FramesRange, ProofRecord

GRAPH = "model.tensorrt.onnx"
TF32_OFF = BuildSettings((FramesRange(1, 2, 5),), targets=((8, 9),), tf32=False)
# The others are slow tests: seconds each on a quiet machine, and nothing new in kind.
FEW = {"int8_pc_asym", "mixed", "int8_pc_sym+static", "int8_pc_asym+static"}


class Parsed:
    """Network and builder of a graph; they must live as long as each other."""

    def __init__(self, path: str) -> None:
        self.logger = trt.Logger(trt.Logger.ERROR)
        self.builder = trt.Builder(self.logger)
        flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        self.network = self.builder.create_network(flags)
        self.parser = trt.OnnxParser(self.network, self.logger)
        self.accepted = self.parser.parse_from_file(path)
        self.errors = [str(self.parser.get_error(i)) for i in range(self.parser.num_errors)]


@pytest.mark.parametrize(
    "variant, options",
    [
        ("int8_pc_sym", {}),
        ("int8_pc_asym", {}),
        ("int4_g128", {}),
        ("int8_pc_sym", {"precision": "fp16"}),
    ],
)
def test_it_parses_the_tensorrt_graph(variant: str, options: dict[str, Any], exporter: Any) -> None:
    folder = exporter.artifact(variant, **options)
    parsed = Parsed(str(folder / GRAPH))
    assert parsed.accepted, parsed.errors
    network = parsed.network
    outputs = [network.get_output(i).name for i in range(network.num_outputs)]
    assert outputs == ["pose_enc", "depth", "depth_conf", "world_points", "world_points_conf"]
    image = network.get_input(0)
    assert (image.name, tuple(image.shape)) == ("images", (1, -1, 3, 56, 84))


def test_onnx_runtimes_graph_is_another(exporter: Any) -> None:
    """With zero points and a contrib operator: why there are two files."""
    folder = exporter.artifact("int8_pc_asym")
    assert not Parsed(str(folder / "model.onnx")).accepted
    findings = check_graph(
        folder / "model.onnx", runtime="tensorrt-rtx", version=(1, 7), dynamic_profile=True
    )
    problems = " ".join(finding.problem for finding in findings)
    assert "are not all 0" in problems
    assert "com.microsoft.RotaryEmbedding" in problems


@pytest.fixture(scope="session")
def rtx() -> Library:
    return load_library("tensorrt-rtx")


@pytest.fixture(scope="session")
def pictures(
    tmp_path_factory: pytest.TempPathFactory, write_pictures: Callable[..., tuple[Path, ...]]
) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder, 2, size=(84, 56))
    return folder


@pytest.fixture
def artifact(exporter: Any, pictures: Path) -> Any:
    """A variant -> its artifact with FP16 inside and the pose alone, which has every Linear."""

    def make(variant: str) -> Path:
        scheme = variant.partition("+")[0]
        options: dict[str, Any] = {"outputs": ("pose",)}
        if scheme not in ("fp32", "fp16", "bf16"):
            options["precision"] = "fp16"
        if variant.endswith("+static"):
            options["calibrate"] = pictures
        return Path(exporter.artifact(variant, **options))

    return make


def proof_of(rtx: Library, graph: Path, plan: Path) -> ProofRecord:
    """Build the graph and read what it became."""
    built = build_plan(rtx, graph, TF32_OFF, plan)
    return prove(
        parse_layer_record(built.layers),
        expected_linears(graph, 2),
        expected_attentions(graph),
        "builder layer record",
    )


def cases() -> list[Any]:
    """Every scheme, with float and with static activations."""
    labels = dict.fromkeys(
        row.scheme if row.activations == "float" else f"{row.scheme}+{row.activations}"
        for row in scheme_rows()
        if row.activations != "dynamic"
    )
    marks = {True: (), False: (pytest.mark.slow,)}
    return [pytest.param(label, marks=marks[label in FEW]) for label in labels]


@pytest.mark.parametrize("variant", cases())
def test_every_scheme_builds_and_computes_what_it_promises(
    variant: str, artifact: Any, rtx: Library, tmp_path: Path
) -> None:
    graph = artifact(variant) / GRAPH
    assert (
        check_graph(graph, runtime="tensorrt-rtx", version=rtx.version, dynamic_profile=True) == ()
    )
    proof = proof_of(rtx, graph, tmp_path / "plan")
    verdicts = {linear.computes for linear in proof.linears.values()}
    if variant.endswith("+static"):
        assert verdicts == {"int8"}
    elif variant in ("fp32", "fp16", "bf16"):
        assert verdicts == set()
    elif variant.startswith("int8"):
        # The camera head applies its weights four times, so they are written out as floats.
        assert verdicts == {"int8-weight", "int8-stored"}
    else:
        assert verdicts <= {"int8-weight", "int8-stored", "int4-weight", "int4-stored"}
        assert verdicts & {"int4-weight", "int4-stored"}
    assert proof.half_unfused == ()
    assert proof.attentions_half == (0 if variant == "fp32" else 10)


def test_a_linear_whose_input_stays_float_is_found(
    artifact: Any, rtx: Library, tmp_path: Path
) -> None:
    """One Q/DQ pair is taken out of a W8A8 graph."""
    folder = artifact("int8_pc_sym+static")
    model = ir.load(folder / GRAPH)
    layer = "aggregator.frame_blocks.1.mlp.fc1"
    product = next(node for node in model.graph if node.name == f"{layer}/MatMul")
    pair = product.inputs[0].producer()
    assert pair.op_type == "DequantizeLinear"
    quantize = pair.inputs[0].producer()
    assert quantize.op_type == "QuantizeLinear"
    product.replace_input_with(0, quantize.inputs[0])
    (tmp_path / "weights.bin").hardlink_to(folder / "weights.bin")
    ir.save(model, tmp_path / GRAPH)
    proof = proof_of(rtx, tmp_path / GRAPH, tmp_path / "plan")
    assert float_linears(proof) == {layer: "int8-weight"}


@pytest.mark.slow
def test_the_plan_holds_no_weight_twice(artifact: Any, rtx: Library, tmp_path: Path) -> None:
    """Weights in the plan against the packed ones; tables and padding come on top."""
    from vggt_deploy.engines.onnx_weights import packed_bytes

    graph = artifact("int8_pc_sym+static") / GRAPH
    built = build_plan(rtx, graph, TF32_OFF, tmp_path / "plan")
    floats = build_plan(rtx, artifact("fp32") / GRAPH, TF32_OFF, tmp_path / "floats")
    packed = packed_bytes(graph)
    assert built.weights_bytes is not None
    assert floats.weights_bytes is not None
    assert packed <= built.weights_bytes < 2 * packed
    assert floats.weights_bytes > 1.5 * built.weights_bytes
