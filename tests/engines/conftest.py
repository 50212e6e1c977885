"""Small artifacts with the real inputs and outputs, made with onnx alone: no model, no export.

The graph turns brightness into depth and a fixed pose per frame, so what comes out is known:

    depth        = 2 - mean over colours          depth_conf = 1 + first colour
    world_points = images, channels last          world_points_conf = 1 + last colour
    pose_enc     = mean image colour [S, 3] @ M + b   (shift by colour, no turn, FoV 0.9, 1.1)
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from vggt_deploy.manifest import SCHEMA, now, record_files, write_manifest
from vggt_deploy.records import FramesRange, GraphRecord, LayerSummary, Manifest, ModelRecord

HEIGHT, WIDTH = 42, 56
OUTPUTS = ("pose_enc", "depth", "depth_conf", "world_points", "world_points_conf")
POSE_BIAS = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.9, 1.1)
MakeArtifact = Callable[..., Path]


def _graph(height: int, width: int, pose_bias: tuple[float, ...]) -> onnx.ModelProto:
    matrix = np.zeros((3, 9), dtype=np.float32)
    matrix[0, 0] = matrix[1, 1] = 0.5
    constants = {
        "matrix": matrix,
        "bias": np.array(pose_bias, dtype=np.float32),
        "two": np.float32(2),
        "one": np.float32(1),
        "last": np.array([-1], dtype=np.int64),
        "colours": np.array([2], dtype=np.int64),
        "space": np.array([3, 4], dtype=np.int64),
        "first_index": np.int64(0),
        "last_index": np.int64(2),
    }
    node = helper.make_node
    nodes = [
        node("ReduceMean", ["images", "colours"], ["grey"], keepdims=0),
        node("Identity", ["grey"], ["same_grey"]),  # an optimizer removes it
        node("Sub", ["two", "same_grey"], ["flat_depth"]),
        node("Unsqueeze", ["flat_depth", "last"], ["depth"]),
        node("Gather", ["images", "first_index"], ["red"], axis=2),
        node("Add", ["one", "red"], ["depth_conf"]),
        node("Gather", ["images", "last_index"], ["blue"], axis=2),
        node("Add", ["one", "blue"], ["world_points_conf"]),
        node("Transpose", ["images"], ["world_points"], perm=[0, 1, 3, 4, 2]),
        node("ReduceMean", ["images", "space"], ["colour"], keepdims=0),
        node("MatMul", ["colour", "matrix"], ["shift"]),
        node("Add", ["shift", "bias"], ["pose_enc"]),
    ]
    shapes = {
        "pose_enc": [1, "S", 9],
        "depth": [1, "S", height, width, 1],
        "depth_conf": [1, "S", height, width],
        "world_points": [1, "S", height, width, 3],
        "world_points_conf": [1, "S", height, width],
    }
    graph = helper.make_graph(
        nodes,
        "brightness",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, "S", 3, height, width])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def write(
    folder: Path,
    *,
    outputs: tuple[str, ...] = OUTPUTS,
    height: int = HEIGHT,
    width: int = WIDTH,
    frames: tuple[int, int, int] = (1, 3, 6),
    pose_bias: tuple[float, ...] = POSE_BIAS,
    session_options: dict[str, str] | None = None,
    disabled_optimizers: tuple[str, ...] = (),
    target: str = "onnxruntime",
    damage: Callable[[Path], None] | None = None,
) -> Path:
    """An artifact folder; `damage` changes the graph before it is hashed."""
    folder.mkdir(parents=True)
    model = _graph(height, width, pose_bias)
    for tensor in model.graph.initializer:
        if tensor.name == "matrix":  # outside the graph file, as real weights are
            onnx.external_data_helper.set_external_data(tensor, "weights.bin", 0, 0)
            (folder / "weights.bin").write_bytes(b"\0" * 64 + tensor.raw_data)
            onnx.external_data_helper.set_external_data(
                tensor, "weights.bin", 64, len(tensor.raw_data)
            )
            tensor.ClearField("raw_data")
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    if damage is not None:
        damage(folder / "model.onnx")
    manifest = Manifest(
        schema=SCHEMA,
        tool_version="0.test",
        kind="onnx",
        created=now(),
        model=ModelRecord("random:test", "test"),
        scheme="fp32",
        activations="float",
        precision="fp32",
        height=height,
        width=width,
        frames=FramesRange(*frames),
        outputs=outputs,
        graphs={target: GraphRecord("model.onnx", 18, session_options or {}, disabled_optimizers)},
        layers=LayerSummary({}),
        files=record_files(folder),
        versions={},
    )
    write_manifest(folder, manifest)
    return folder


@pytest.fixture
def make_artifact(tmp_path: Path) -> MakeArtifact:
    """Writes an artifact with the given differences, each into a folder of its own."""
    count = 0

    def make(**differences: object) -> Path:
        nonlocal count
        count += 1
        return write(tmp_path / f"artifact-{count}", **differences)  # type: ignore[arg-type]

    return make
