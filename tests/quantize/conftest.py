"""Small ONNX graphs, run in ONNX Runtime, to hold our numbers against."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper


class RunGraph:
    """run_graph(nodes, feeds, outputs, initializers, level=None) -> outputs.

    `outputs` maps names to ONNX element types. An initializer is (name, type, shape, bytes).
    `level` is ONNX Runtime's accuracy level for fused MatMulNBits. `operators` holds what is left
    after optimisation.
    """

    def __init__(self, folder: Path) -> None:
        self.optimized = folder / "optimized.onnx"
        self.operators: list[str] = []

    def __call__(
        self,
        nodes: Sequence[onnx.NodeProto],
        feeds: dict[str, np.ndarray],
        outputs: dict[str, int],
        initializers: Sequence[tuple[str, int, Sequence[int], bytes]] = (),
        level: int | None = None,
    ) -> list[Any]:
        graph = helper.make_graph(
            list(nodes),
            "small",
            [
                helper.make_tensor_value_info(
                    name, helper.np_dtype_to_tensor_dtype(a.dtype), list(a.shape)
                )
                for name, a in feeds.items()
            ],
            [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()],
            [
                helper.make_tensor(name, kind, shape, data, raw=True)
                for name, kind, shape, data in initializers
            ],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        options.optimized_model_filepath = str(self.optimized)
        if level is not None:
            options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", str(level))
        session = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self.operators = [n.op_type for n in onnx.load(self.optimized).graph.node]
        return list(session.run(list(outputs), feeds))


@pytest.fixture
def run_graph(tmp_path: Path) -> RunGraph:
    """Runs a small graph in ONNX Runtime's CPU provider."""
    return RunGraph(tmp_path)


@pytest.fixture
def initializers() -> Callable[[Any], list[tuple[str, int, Sequence[int], bytes]]]:
    """OnnxLayout -> the initializers w, s, z of its DequantizeLinear."""

    def make(layout: Any) -> list[tuple[str, int, Sequence[int], bytes]]:
        kind = TensorProto.INT4 if layout.bits == 4 else TensorProto.INT8
        count = math.prod(layout.shape)
        assert layout.data.numel() == (count + 1) // 2 if layout.bits == 4 else count
        return [
            ("w", kind, layout.shape, layout.data.numpy().tobytes()),
            ("s", TensorProto.FLOAT, tuple(layout.scale.shape), layout.scale.numpy().tobytes()),
            ("z", kind, layout.zero_point_shape, layout.zero_point.numpy().tobytes()),
        ]

    return make


@pytest.fixture
def dequantize_node() -> Callable[[Any], onnx.NodeProto]:
    """OnnxLayout -> DequantizeLinear(w, s, z) -> d."""

    def make(layout: Any) -> onnx.NodeProto:
        attributes = {"axis": layout.axis, "block_size": layout.block_size}
        return helper.make_node(
            "DequantizeLinear",
            ["w", "s", "z"],
            ["d"],
            **{k: v for k, v in attributes.items() if v is not None},
        )

    return make
