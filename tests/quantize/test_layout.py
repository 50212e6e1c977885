"""The layout of a file, and bit equality with ONNX Runtime's Quantize- and DequantizeLinear."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from vggt_deploy.quantize.layout import OnnxLayout, to_onnx_layout
from vggt_deploy.quantize.packing import pack_int4, unpack_int4
from vggt_deploy.quantize.qparams import QuantizedTensor, dequantize, quantize
from vggt_deploy.quantize.schemes import SCHEMES, PerGroup, WeightFormat

FORMATS = {
    **{name: s.linear for name, s in SCHEMES.items() if s.linear is not None and name != "mixed"},
    "int8_g32": WeightFormat(8, PerGroup(32)),
    "int8_g32_asym": WeightFormat(8, PerGroup(32), symmetric=False),
    "int4_g32_asym": WeightFormat(4, PerGroup(32), symmetric=False),
}
SHAPES = [(48, 256), (33, 64), (5, 100), (16, 9)]
by_format = pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS.keys())
by_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def weight(shape: tuple[int, ...]) -> torch.Tensor:
    spread = 10.0 ** torch.linspace(-4, 4, shape[0]).view(-1, *[1] * (len(shape) - 1))
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)) * spread + 0.1 * spread


def bits(a: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(a).view(np.uint32)


@by_shape
@by_format
def test_integers_are_transposed_and_packed(shape: tuple[int, int], form: WeightFormat) -> None:
    qt = quantize(weight(shape), form)
    layout = to_onnx_layout(qt)
    transposed = qt.q.t().contiguous()
    assert layout.shape == tuple(transposed.shape)
    expected = pack_int4(transposed) if form.bits == 4 else transposed
    assert torch.equal(layout.data, expected)
    assert all(t.is_contiguous() for t in (layout.data, layout.scale, layout.zero_point))
    assert layout.data.nbytes == (transposed.numel() * form.bits + 7) // 8
    stored = layout.data.nbytes + layout.scale.nbytes
    if form.stores_zero_point:
        stored += layout.zero_point.nbytes
    assert stored == qt.stored_bytes


@by_shape
@by_format
def test_dequantized_bits_are_those_of_onnx_runtime(
    shape: tuple[int, int],
    form: WeightFormat,
    run_graph: Any,
    initializers: Callable[[OnnxLayout], list[Any]],
    dequantize_node: Callable[[OnnxLayout], onnx.NodeProto],
) -> None:
    qt = quantize(weight(shape), form)
    layout = to_onnx_layout(qt)
    nodes = [dequantize_node(layout)]
    (theirs,) = run_graph(nodes, {}, {"d": TensorProto.FLOAT}, initializers(layout))
    ours = dequantize(qt).t().contiguous().numpy()
    assert np.array_equal(bits(theirs), bits(ours))

    for name, wrong in wrong_results(qt).items():
        assert not np.array_equal(bits(theirs), bits(dequantize(wrong).t().numpy())), name


def wrong_results(qt: QuantizedTensor) -> dict[str, QuantizedTensor]:
    """Mistakes that have been made: each must change the dequantized weight."""
    flat = qt.q.flatten()
    swapped = flat[: flat.numel() // 2 * 2].view(-1, 2).flip(1).flatten()
    swapped = torch.cat([swapped, flat[swapped.numel() :]]).view(qt.q.shape)
    wrong = {
        "swapped nibbles": replace(qt, q=swapped),
        "next scale": replace(qt, scale=torch.nextafter(qt.scale, torch.tensor(torch.inf))),
    }
    if not qt.format.symmetric:
        wrong["no zero point"] = replace(qt, zero_point=torch.zeros_like(qt.zero_point))
        wrong["wrapped"] = replace(qt, q=(qt.q.to(torch.int16) + 128).to(torch.int8))
    return wrong


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("name", ["int8_pc_sym", "int8_pc_asym", "int8_pt_sym", "int8_pt_asym"])
def test_convolutions_keep_their_layout(
    axis: int,
    name: str,
    run_graph: Any,
    initializers: Callable[[OnnxLayout], list[Any]],
    dequantize_node: Callable[[OnnxLayout], onnx.NodeProto],
) -> None:
    qt = quantize(weight((6, 4, 3, 3)), FORMATS[name], axis=axis)
    layout = to_onnx_layout(qt)
    assert layout.shape == (6, 4, 3, 3)
    assert torch.equal(layout.data, qt.q)
    nodes = [dequantize_node(layout)]
    (theirs,) = run_graph(nodes, {}, {"d": TensorProto.FLOAT}, initializers(layout))
    assert np.array_equal(bits(theirs), bits(dequantize(qt).numpy()))


@by_shape
@by_format
def test_integers_are_those_of_onnx_runtime_quantize_linear(
    shape: tuple[int, int], form: WeightFormat, run_graph: Any
) -> None:
    """QuantizeLinear with our scale and zero point: same division, same half to even."""
    w = weight(shape)
    w[0, :] = torch.arange(shape[1]) / 2 - shape[1] / 4  # ties where the scale allows
    qt = quantize(w, form)
    layout = to_onnx_layout(qt)
    kind = TensorProto.INT4 if form.bits == 4 else TensorProto.INT8
    attributes = {"axis": layout.axis, "block_size": layout.block_size}
    nodes = [
        helper.make_node(
            "QuantizeLinear",
            ["x", "s", "z"],
            ["q"],
            **{k: v for k, v in attributes.items() if v is not None},
        ),
        helper.make_node("Cast", ["q"], ["y"], to=TensorProto.INT32),
    ]
    given = [
        ("s", TensorProto.FLOAT, tuple(layout.scale.shape), layout.scale.numpy().tobytes()),
        ("z", kind, layout.zero_point_shape, layout.zero_point.numpy().tobytes()),
    ]
    x = np.ascontiguousarray(w.t().numpy())
    (theirs,) = run_graph(nodes, {"x": x}, {"y": TensorProto.INT32}, given)
    assert np.array_equal(theirs, qt.q.t().numpy())
    truncated = (dequantize(qt).t() / layout_scale(layout)).numpy().astype(np.int32) - 1
    assert not np.array_equal(theirs, truncated)


def layout_scale(layout: OnnxLayout) -> torch.Tensor:
    """The scale of each element of [K, N]."""
    if layout.block_size is None:
        return layout.scale
    return layout.scale.repeat_interleave(layout.block_size, dim=0)[: layout.shape[0]]


@pytest.mark.parametrize("k, block", [(256, 128), (128, 128), (100, 128), (64, 64), (9, 16)])
def test_block_size_is_one_that_onnx_runtime_fuses(
    k: int,
    block: int,
    run_graph: Any,
    initializers: Callable[[OnnxLayout], list[Any]],
    dequantize_node: Callable[[OnnxLayout], onnx.NodeProto],
) -> None:
    qt = quantize(weight((32, k)), SCHEMES["int4_g128"].linear or FORMATS["int4_g128"])
    layout = to_onnx_layout(qt)
    assert layout.block_size == block
    nodes = [dequantize_node(layout), helper.make_node("MatMul", ["x", "d"], ["y"])]
    x = np.random.default_rng(0).standard_normal((7, k)).astype(np.float32)
    (y,) = run_graph(nodes, {"x": x}, {"y": TensorProto.FLOAT}, initializers(layout), level=1)
    assert run_graph.operators == ["MatMulNBits"]
    expected = x @ dequantize(qt).t().numpy()
    np.testing.assert_allclose(y, expected, atol=2e-6 * np.abs(expected).max())


def test_an_odd_number_of_channels_packs_across_rows() -> None:
    qt = quantize(weight((5, 64)), FORMATS["int4_g32"])
    layout = to_onnx_layout(qt)
    assert torch.equal(unpack_int4(layout.data, 320).view(64, 5), qt.q.t())
