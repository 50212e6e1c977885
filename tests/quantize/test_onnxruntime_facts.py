"""What the table of targets says of ONNX Runtime's CPU provider, tried out.

If one of these fails after an upgrade, the table and the exporter's session options need a look.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from vggt_deploy.quantize.layout import OnnxLayout, to_onnx_layout
from vggt_deploy.quantize.qparams import dequantize, quantize
from vggt_deploy.quantize.schemes import INT4_G32, INT8_PC_SYM, WeightFormat

K, N = 64, 48


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((9, K)).astype(np.float32)


@pytest.fixture
def weight() -> torch.Tensor:
    return torch.randn(N, K, generator=torch.Generator().manual_seed(0))


def typed_matmul(kind: int, weight: torch.Tensor) -> tuple[list[onnx.NodeProto], list[Any]]:
    dtype = torch.float16 if kind == TensorProto.FLOAT16 else torch.bfloat16
    data = weight.t().contiguous().to(dtype).view(torch.int16).numpy().tobytes()
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], to=kind),
        helper.make_node("MatMul", ["half", "w"], ["product"]),
        helper.make_node("Cast", ["product"], ["y"], to=TensorProto.FLOAT),
    ]
    return nodes, [("w", kind, [K, N], data)]


def test_fp16_is_computed_in_fp32(x: np.ndarray, weight: torch.Tensor, run_graph: Any) -> None:
    nodes, given = typed_matmul(TensorProto.FLOAT16, weight)
    (y,) = run_graph(nodes, {"x": x}, {"y": TensorProto.FLOAT}, given)
    rounded_weight = weight.half().float().numpy()
    single = x @ rounded_weight.T
    half = x.astype(np.float16).astype(np.float32) @ rounded_weight.T
    assert np.abs(y - single).max() < 1e-5
    assert np.abs(y - half.astype(np.float16)).max() > 1e-4


def test_bf16_has_no_kernels(x: np.ndarray, weight: torch.Tensor, run_graph: Any) -> None:
    nodes, given = typed_matmul(TensorProto.BFLOAT16, weight)
    with pytest.raises(Exception, match="NOT_IMPLEMENTED"):
        run_graph(nodes, {"x": x}, {"y": TensorProto.FLOAT}, given)


@pytest.mark.parametrize("form", [INT4_G32, INT8_PC_SYM], ids=lambda f: f.label)
def test_float_activations_need_accuracy_level_1(
    form: WeightFormat,
    x: np.ndarray,
    weight: torch.Tensor,
    run_graph: Any,
    initializers: Callable[[OnnxLayout], list[Any]],
    dequantize_node: Callable[[OnnxLayout], onnx.NodeProto],
) -> None:
    """Without the option, a weight-only graph has its activations rounded to 8 bit."""
    qt = quantize(weight, form)
    layout = to_onnx_layout(qt)
    nodes = [dequantize_node(layout), helper.make_node("MatMul", ["x", "d"], ["y"])]
    exact = x @ dequantize(qt).numpy().T

    def error(level: int | None) -> float:
        feeds, out = {"x": x}, {"y": TensorProto.FLOAT}
        (y,) = run_graph(nodes, feeds, out, initializers(layout), level)
        assert run_graph.operators == ["MatMulNBits"]
        return float(np.abs(y - exact).max() / np.abs(exact).max())

    assert error(1) < 2e-6
    assert error(None) > 1e-3
    assert error(4) == error(None)
