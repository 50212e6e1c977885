"""Tiny graphs and artifacts, made by hand: TensorRT-RTX builds them in a fraction of a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("tensorrt_rtx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from vggt_deploy.engines.tensorrt.library import Library, load_library  # noqa: E402
from vggt_deploy.manifest import SCHEMA, record_files, write_manifest  # noqa: E402
from vggt_deploy.records import (  # noqa: E402
    FramesRange,
    GraphRecord,
    LayerSummary,
    Manifest,
    ModelRecord,
)

SIZE = 14
WEIGHTS = "weights.bin"
GRAPH = "model.tensorrt.onnx"


@pytest.fixture(scope="session")
def rtx() -> Library:
    """The installed TensorRT-RTX."""
    return load_library("tensorrt-rtx")


class Network:
    """Nodes and initializers of a graph over `images`, [1, frames, 3, 14, 14]."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self._random = np.random.default_rng(0)

    def constant(self, name: str, value: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(value, name))
        return name

    def node(self, operator: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(
            helper.make_node(operator, inputs, [f"{name}:0"], name=name, **attributes)
        )
        return f"{name}:0"

    def linear(self, x: str, layer: str, inputs: int, outputs: int, *, static: bool) -> str:
        """An Int8 weight per channel; `static`: the input is quantized too."""
        q = self._random.integers(-127, 128, (inputs, outputs)).astype(np.int8)
        scale = np.full(outputs, 0.01, np.float32)
        weight = [self.constant(f"{layer}.q", q), self.constant(f"{layer}.s", scale)]
        weight.append(self.constant(f"{layer}.z", np.zeros(outputs, np.int8)))
        w = self.node("DequantizeLinear", weight, f"{layer}/DequantizeLinear", axis=1)
        if static:
            grid = [
                self.constant(f"{layer}.xs", np.float32(0.02)),
                self.constant(f"{layer}.xz", np.int8(0)),
            ]
            x = self.node("QuantizeLinear", [x, *grid], f"{layer}/Input_QuantizeLinear")
            x = self.node("DequantizeLinear", [x, *grid], f"{layer}/Input_DequantizeLinear")
        return self.node("MatMul", [x, w], f"{layer}/MatMul")

    def softmax_chain(self, layers: int) -> str:
        """A graph that takes its time: every layer has another size."""
        x, inputs = "images", SIZE
        for index in range(layers):
            outputs = 64 + 8 * (index % 7)
            weight = self._random.normal(size=(inputs, outputs)).astype(np.float32)
            product = self.node(
                "MatMul", [x, self.constant(f"w{index}", weight)], f"{index}/MatMul"
            )
            x, inputs = self.node("Softmax", [product], f"{index}/Softmax"), outputs
        return x

    def model(self, output: str, *, frames: int | str = "frames") -> Any:
        image = [1, frames, 3, SIZE, SIZE]
        graph = helper.make_graph(
            self.nodes,
            "tiny",
            [helper.make_tensor_value_info("images", TensorProto.FLOAT, image)],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
            self.weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        return onnx.shape_inference.infer_shapes(model)


def two_linears(*, static: tuple[bool, bool] = (True, True), frames: int | str = "frames") -> Any:
    """Images -> fc1 (14 -> 64) -> Gelu -> fc2 (64 -> 32)."""
    network = Network()
    hidden = network.linear("images", "block.fc1", SIZE, 64, static=static[0])
    hidden = network.node("Gelu", [hidden], "block/Gelu")
    output = network.linear(hidden, "block.fc2", 64, 32, static=static[1])
    return network.model(output, frames=frames)


def save_artifact(folder: Path, model: Any, **changes: Any) -> Path:
    """`model` with its weights beside it, and a manifest."""
    folder.mkdir(parents=True)
    onnx.save(
        model,
        folder / GRAPH,
        save_as_external_data=True,
        location=WEIGHTS,
        size_threshold=64,
    )
    values: dict[str, Any] = {
        "schema": SCHEMA,
        "tool_version": "0",
        "kind": "onnx",
        "created": "2026-01-01T00:00:00Z",
        "model": ModelRecord("random:tiny", "tiny"),
        "scheme": "int8_pc_sym",
        "activations": "static",
        "precision": "fp32",
        "height": SIZE,
        "width": SIZE,
        "frames": FramesRange(1, 2, 5),
        "outputs": (model.graph.output[0].name,),
        "graphs": {"tensorrt": GraphRecord(GRAPH, 20)},
        "layers": LayerSummary({"block.fc1": "int8_pc_sym", "block.fc2": "int8_pc_sym"}),
        "files": record_files(folder),
        "versions": {},
    }
    write_manifest(folder, Manifest(**{**values, **changes}))
    return folder


@pytest.fixture
def network() -> Network:
    """An empty network."""
    return Network()


@pytest.fixture(name="two_linears")
def two_linears_fixture() -> Callable[..., Any]:
    """Makes a model of two quantized Linears; `static`: which of them multiply integers."""
    return two_linears


@pytest.fixture(name="save_artifact")
def save_artifact_fixture() -> Callable[..., Path]:
    """Folder, model and what its manifest says other than usual -> an artifact."""
    return save_artifact


@pytest.fixture
def graph(tmp_path: Path) -> Callable[[Any], Path]:
    """An ONNX model -> its file."""

    def save(model: Any) -> Path:
        path = tmp_path / f"graph_{len(list(tmp_path.glob('graph_*')))}.onnx"
        onnx.save(model, path)
        return path

    return save
