"""8-bit activations, static and dynamic, against ONNX Runtime's own kernels."""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from vggt_deploy.errors import QuantizeError
from vggt_deploy.quantize.activations import round_per_group, round_per_tensor, round_static
from vggt_deploy.quantize.apply import QuantLinear
from vggt_deploy.quantize.layout import OnnxLayout, to_onnx_layout
from vggt_deploy.quantize.qparams import dequantize, quantize
from vggt_deploy.quantize.schemes import SCHEMES, PerGroup, WeightFormat

FLOAT = TensorProto.FLOAT
INT8_FORMATS = ("int8_pt_sym", "int8_pt_asym", "int8_pc_sym", "int8_pc_asym")


def linear_format(name: str) -> WeightFormat:
    form = SCHEMES[name].linear
    assert form is not None
    return form


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    """Activations of unlike rows, not centred on zero."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    return x * torch.linspace(0.05, 3, shape[-2]).unsqueeze(-1) + 0.3


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


@pytest.mark.parametrize("shift", [0.0, 5.0, -5.0])
@pytest.mark.parametrize("seed", range(10))
def test_per_tensor_rounding_is_dynamic_quantize_linear(
    seed: int, shift: float, run_graph: Any
) -> None:
    x = tokens(7, 33, seed=seed) + shift
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    (theirs,) = run_graph(nodes, {"x": x.numpy()}, {"y": FLOAT})
    ours = round_per_tensor(x).numpy()
    assert np.array_equal(theirs, ours)
    assert not np.array_equal(theirs, x.numpy())
    truncated = (x / ((x.max() - x.min()) / 255)).trunc()
    assert not np.array_equal(theirs, truncated.numpy())


@pytest.mark.parametrize(
    "kind, numpy_type", [(FLOAT, np.float32), (TensorProto.FLOAT16, np.float16)]
)
def test_static_rounding_is_quantize_linear(kind: int, numpy_type: Any, run_graph: Any) -> None:
    """To the bit, ties and both ends included; in FP16 the division and the product are FP32."""
    generator = np.random.default_rng(0)
    scale = numpy_type(0.0123)
    ties = (np.arange(-140, 141) + 0.5).astype(np.float32) * np.float32(scale)
    x = np.concatenate([generator.standard_normal(20_000), ties]).astype(numpy_type)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    given = [
        ("s", kind, [], scale.tobytes()),
        ("z", TensorProto.INT8, [], np.zeros((), np.int8).tobytes()),
    ]
    q, y = run_graph(nodes, {"x": x}, {"q": TensorProto.INT8, "y": kind}, given)
    s = torch.tensor(float(scale))
    ours = round_static(torch.from_numpy(x).float(), s)
    np.testing.assert_array_equal((ours / s).round().numpy(), q.astype(np.float32))
    np.testing.assert_array_equal(ours.numpy().astype(numpy_type), y)
    assert (q.min(), q.max()) == (-128, 127)
    # Twins: a reciprocal moves ties, and half away from zero is another rule.
    reciprocal = (torch.from_numpy(x).float() * (1 / s)).round().clamp(-128, 127)
    if kind == FLOAT:
        assert (reciprocal.numpy() != q).any()
    away = np.sign(x) * np.floor(np.abs(x.astype(np.float32)) / np.float32(scale) + 0.5)
    assert (np.clip(away, -128, 127) != q).any()


@pytest.mark.parametrize("name", INT8_FORMATS)
@pytest.mark.parametrize("rows", [1, 17])
def test_static_int8_layer_is_an_integer_product(
    rows: int,
    name: str,
    run_graph: Any,
    initializers: Callable[[OnnxLayout], list[Any]],
    dequantize_node: Callable[[OnnxLayout], onnx.NodeProto],
) -> None:
    k, n, scale = 96, 40, 0.021
    qt = quantize(tokens(n, k, seed=1), linear_format(name))
    x = tokens(rows, k)
    layout = to_onnx_layout(qt)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
        dequantize_node(layout),
        helper.make_node("MatMul", ["xd", "d"], ["y"]),
    ]
    given = [
        *initializers(layout),
        ("xs", FLOAT, [], np.float32(scale).tobytes()),
        ("xz", TensorProto.INT8, [], np.zeros((), np.int8).tobytes()),
    ]
    (theirs,) = run_graph(nodes, {"x": x.numpy()}, {"y": FLOAT}, given)
    assert sorted(run_graph.operators) == ["MatMulIntegerToFloat", "QuantizeLinear"]
    layer = QuantLinear(qt, None, "static", scale)
    assert relative(layer(x).numpy(), theirs) < 1e-6
    assert relative(QuantLinear(qt, None, "float")(x).numpy(), theirs) > 1e-4
    assert relative(QuantLinear(qt, None, "dynamic")(x).numpy(), theirs) > 1e-4
    assert relative(QuantLinear(qt, None, "static", 1.01 * scale)(x).numpy(), theirs) > 1e-4
    half = QuantLinear(qt, torch.zeros(n), "static", scale)(x.half())
    assert half.dtype == torch.float16
    # The input is in FP16 here, so ties move; the integers are the same ones.
    assert relative(half.float().numpy(), theirs) < 1e-2


def test_static_needs_a_scale_and_8_bit_rows() -> None:
    w = torch.randn(8, 64)
    plain = quantize(w, linear_format("int8_pc_sym"))
    with pytest.raises(QuantizeError, match="input scale None"):
        QuantLinear(plain, None, "static")
    for activations in ("float", "dynamic"):
        with pytest.raises(QuantizeError, match="only they take one"):
            QuantLinear(plain, None, activations, 0.1)  # type: ignore[arg-type]
    for form in (WeightFormat(8, PerGroup(32)), WeightFormat(4, PerGroup(32))):
        with pytest.raises(QuantizeError, match="no runtime has static"):
            QuantLinear(quantize(w, form), None, "static", 0.1)


def test_zeros_stay_zeros() -> None:
    zeros = torch.zeros(3, 8)
    assert torch.equal(round_per_tensor(zeros), zeros)
    assert torch.equal(round_per_group(zeros, 4), zeros)
    half = torch.cat([zeros, tokens(3, 8)], dim=1)
    assert torch.equal(round_per_group(half, 8)[:, :8], zeros)


def test_group_rounding_by_hand() -> None:
    x = torch.tensor([[127.0, 0.5, 1.5, -2.5, 1.27, 0.004, -0.006]])
    expected = torch.tensor([[127.0, 0.0, 2.0, -2.0, 1.27, 0.0, -0.01]])
    torch.testing.assert_close(round_per_group(x, 4), expected)
    assert torch.equal(round_per_group(x, 128), round_per_group(x, 7))
    assert not torch.equal(round_per_group(x, 4), round_per_group(x, 8))


@pytest.mark.parametrize("name", INT8_FORMATS)
@pytest.mark.parametrize("rows", [1, 17])
def test_int8_layer_is_dynamic_quantize_linear_and_matmul_integer(
    rows: int,
    name: str,
    run_graph: Any,
    initializers: Callable[[OnnxLayout], list[Any]],
) -> None:
    k, n = 96, 40
    qt = quantize(tokens(n, k, seed=1), linear_format(name))
    bias = torch.randn(n)
    x = tokens(rows, k)
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["xq", "xs", "xz"]),
        helper.make_node("MatMulInteger", ["xq", "w", "xz", "z"], ["sum"]),
        helper.make_node("Cast", ["sum"], ["product"], to=FLOAT),
        helper.make_node("Mul", ["xs", "s"], ["scales"]),
        helper.make_node("Mul", ["product", "scales"], ["scaled"]),
        helper.make_node("Add", ["scaled", "b"], ["y"]),
    ]
    given = [*initializers(to_onnx_layout(qt)), ("b", FLOAT, [n], bias.numpy().tobytes())]
    (theirs,) = run_graph(nodes, {"x": x.numpy()}, {"y": FLOAT}, given)
    ours = QuantLinear(qt, bias, "dynamic")(x).numpy()
    assert relative(ours, theirs) < 1e-6
    # An unrounded input, or a forgotten zero point, is far away from that.
    assert relative(QuantLinear(qt, bias, "float")(x).numpy(), theirs) > 1e-4
    if not qt.format.symmetric:
        dropped = dequantize(qt) + qt.zero_point.unsqueeze(-1) * qt.scale.unsqueeze(-1)
        assert relative((round_per_tensor(x) @ dropped.t() + bias).numpy(), theirs) > 1e-2


@pytest.mark.skipif(
    platform.machine() not in {"x86_64", "AMD64"},
    reason="accuracy level 4 is another kernel on other CPUs",
)
@pytest.mark.parametrize("rows", [1, 17])
@pytest.mark.parametrize(
    "k, size", [(256, 32), (256, 64), (512, 128), (512, 256), (300, 128), (100, 128)]
)
def test_int4_layer_is_matmul_nbits_at_accuracy_level_4(
    k: int,
    size: int,
    rows: int,
    run_graph: Any,
    initializers: Callable[[OnnxLayout], list[Any]],
    dequantize_node: Callable[[OnnxLayout], onnx.NodeProto],
) -> None:
    qt = quantize(tokens(40, k, seed=1), WeightFormat(4, PerGroup(size)))
    layout = to_onnx_layout(qt)
    x = tokens(rows, k)
    nodes = [dequantize_node(layout), helper.make_node("MatMul", ["x", "d"], ["y"])]

    def theirs(level: int | None) -> np.ndarray:
        (y,) = run_graph(nodes, {"x": x.numpy()}, {"y": FLOAT}, initializers(layout), level)
        assert run_graph.operators == ["MatMulNBits"]
        return np.asarray(y)

    dynamic = QuantLinear(qt, None, "dynamic")(x).numpy()
    floating = QuantLinear(qt, None, "float")(x).numpy()
    # Their sums are of unsigned nibbles less 8 times the row sum: a few bits cancel.
    assert relative(dynamic, theirs(4)) < 1e-5
    assert relative(floating, theirs(1)) < 2e-6
    # Twins: the other mode, and groups of another length, are visibly something else.
    assert relative(floating, theirs(4)) > 1e-4
    other = round_per_group(x, size // 2) @ dequantize(qt).t()
    assert relative(other.numpy(), theirs(4)) > 1e-4


def test_dynamic_activations_have_no_kernel_for_other_formats() -> None:
    w = torch.randn(8, 64)
    for form in (
        WeightFormat(8, PerGroup(32)),
        WeightFormat(4, linear_format("int8_pc_sym").granularity),
    ):
        qt = quantize(w, form)
        QuantLinear(qt, None, "float")
        with pytest.raises(QuantizeError, match="no runtime"):
            QuantLinear(qt, None, "dynamic")
