"""The integers and scales of the file are those of `quantize.qparams`, to the bit.

What the file must hold is derived here again from the definition of the layouts, not by the code
that wrote it.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from vggt_deploy.export.simplify import remove_unused
from vggt_deploy.model.fold import FoldedWeights
from vggt_deploy.model.weights import open_weights
from vggt_deploy.quantize.apply import QuantizedModule, build_quantized
from vggt_deploy.quantize.plan import LayerInfo, keeps_layer_scale, layer_precision, layers_of, plan
from vggt_deploy.quantize.qparams import QuantizedTensor, dequantize
from vggt_deploy.quantize.schemes import PerGroup, Precision, get_scheme

HEADS = frozenset({"camera", "depth", "point"})
CASES: list[tuple[str, Precision]] = [
    ("int8_pt_sym", "fp32"),
    ("int8_pt_asym", "fp32"),
    ("int8_pc_sym", "fp32"),
    ("int8_pc_asym", "fp32"),
    ("int4_g32", "fp32"),
    ("int4_g256", "fp32"),
    ("mixed", "fp32"),
    ("int8_pc_sym", "fp16"),
    ("int4_g64", "bf16"),
]
# Windows of kernel x kernel that do not overlap: these two are unfolded into 1x1 convolutions.
UNFOLDED = re.compile(r"(depth|point)_head\.resize_layers\.[01]")


def torch_variant(scheme: str, precision: Precision) -> dict[str, QuantizedTensor]:
    """Layer -> the integers in the PyTorch variant."""
    config, source = open_weights("random:vggt-tiny")
    folded = FoldedWeights(source, config, keep_layer_scale=keeps_layer_scale(precision))
    model = build_quantized(config, folded, get_scheme(scheme), heads=HEADS, precision=precision)
    return {
        name: module.quantized
        for name, module in model.named_modules()
        if isinstance(module, QuantizedModule)
    }


def layers() -> dict[str, LayerInfo]:
    config, _ = open_weights("random:vggt-tiny")
    return {layer.name: layer for layer in layers_of(config, HEADS)}


def expected(name: str, kind: str, qt: QuantizedTensor) -> dict[str, np.ndarray]:
    """q, scale and zero_point as the file must hold them."""
    q, scale, zero = qt.q.numpy(), qt.scale.numpy(), qt.zero_point.numpy()
    if kind == "linear":
        q, scale, zero = q.T, scale.T, zero.T  # [N] stays [N], [N, G] becomes [G, N]
    elif UNFOLDED.fullmatch(name):
        channels, out, kernel, _ = q.shape
        unfolded = np.empty((out * kernel * kernel, channels, 1, 1), np.int8)
        for o in range(out):
            for i in range(kernel):
                for j in range(kernel):
                    unfolded[o * kernel**2 + i * kernel + j, :, 0, 0] = q[:, o, i, j]
        q, scale, zero = unfolded, np.repeat(scale, kernel**2), np.repeat(zero, kernel**2)
    parts = {"q": q, "scale": scale, "zero_point": zero}
    if not qt.format.stores_zero_point:
        assert not parts.pop("zero_point").any()
    return parts


@pytest.mark.parametrize("scheme, precision", CASES)
def test_file_and_torch_modules_hold_the_same_numbers(
    scheme: str, precision: Precision, exporter: Any, opened: Any
) -> None:
    artifact = opened(exporter.artifact(scheme, precision=precision))
    tensors = artifact.tensors()
    modules = torch_variant(scheme, precision)
    infos = layers()
    formats = plan(get_scheme(scheme), list(infos.values()))
    assert set(modules) == set(formats) == set(artifact.manifest.layers.quantized)
    for name, qt in modules.items():
        assert artifact.manifest.layers.quantized[name] == qt.format.label == formats[name].label
        parts = expected(name, infos[name].kind, qt)
        assert (f"{name}.zero_point" in tensors) == ("zero_point" in parts)
        for part, want in parts.items():
            stored = tensors[f"{name}.{part}"]
            assert tuple(stored.shape) == want.shape
            if part == "scale":
                assert (
                    stored.dtype
                    == {
                        "fp32": ir.DataType.FLOAT,
                        "fp16": ir.DataType.FLOAT16,
                        "bf16": ir.DataType.BFLOAT16,
                    }[layer_precision(name, precision)]
                )
            else:
                assert stored.dtype.bitwidth == qt.format.bits
            got = stored.numpy().astype(np.float32)
            np.testing.assert_array_equal(got, want.astype(np.float32), err_msg=f"{name}.{part}")


def run_constants(
    folder: Path, file: str, values: dict[str, str], runtime: Any, scratch: Path
) -> dict[str, np.ndarray]:
    """Name -> array that ONNX Runtime computes for the value of that name."""
    model = ir.load(folder / file)
    by_name = {str(o.name): o for node in model.graph for o in node.outputs}
    model.graph.outputs[:] = [by_name[name] for name in values.values()]
    remove_unused(model)
    scratch.mkdir(exist_ok=True)
    shutil.copy(folder / "weights.bin", scratch)
    ir.save(model, scratch / file)
    images = np.zeros((1, 1, 3, 56, 84), np.float32)
    arrays = runtime.model(scratch / file, {"images": images}, optimize=False)
    return dict(zip(values, arrays, strict=True))


@pytest.mark.parametrize(
    "scheme", ["int8_pt_asym", "int8_pc_sym", "int8_pc_asym", "int4_g32", "int4_g256"]
)
def test_onnx_runtime_dequantizes_to_the_same_bits(
    scheme: str, exporter: Any, opened: Any, runtime: Any, tmp_path: Path
) -> None:
    """DequantizeLinear for Linears, Cast and Mul for convolutions: both are (q - z) * s in FP32."""
    artifact = opened(exporter.artifact(scheme))
    infos = layers()
    values: dict[str, str] = {}
    for node in artifact.graphs["onnxruntime"].graph:
        output = str(node.outputs[0].name)
        if node.op_type == "DequantizeLinear":
            values[str(node.inputs[0].name).removesuffix(".q")] = output
        elif output.endswith(".dequantized"):
            values[output.removesuffix(".dequantized")] = output
    assert {infos[name].kind for name in values} == {"linear", "conv", "conv_transpose"}
    assert len(values) == sum(
        not name.startswith("camera") for name in artifact.manifest.layers.quantized
    )
    modules = torch_variant(scheme, "fp32")
    got = run_constants(artifact.folder, "model.onnx", values, runtime, tmp_path / "x")
    for name, array in got.items():
        floats = dequantize(modules[name])
        fake = QuantizedTensor(floats, torch.ones(()), torch.zeros(()), modules[name].format)
        want = (
            floats.numpy().T
            if infos[name].kind == "linear"
            else expected(name, infos[name].kind, fake)["q"]
            if not UNFOLDED.fullmatch(name)
            else unfold(floats.numpy())
        )
        np.testing.assert_array_equal(array.view(np.uint32), want.view(np.uint32), err_msg=name)


def unfold(weight: np.ndarray) -> np.ndarray:
    """[C, O, k, k] -> [O * k * k, C, 1, 1]."""
    channels, out, kernel, _ = weight.shape
    moved = np.ascontiguousarray(weight.transpose(1, 2, 3, 0))
    return moved.reshape(out * kernel * kernel, channels, 1, 1)


@pytest.mark.parametrize("variant", ["int8_pc_sym", "int8_pc_asym", "int4_g32"])
def test_the_file_holds_each_tensor_once_and_nothing_else(
    variant: str, exporter: Any, opened: Any
) -> None:
    artifact = opened(exporter.artifact(variant))
    tensors = sorted(artifact.tensors().values(), key=lambda t: t.offset)
    end = 0
    for tensor in tensors:
        assert 0 <= tensor.offset - end < 64, tensor.name
        end = tensor.offset + tensor.length
    assert end == (artifact.folder / "weights.bin").stat().st_size
    places = {name: (tensor.offset, tensor.length) for name, tensor in artifact.tensors().items()}
    for model in artifact.graphs.values():
        for graph in (model.graph, *model.graph.subgraphs()):
            for name, value in graph.initializers.items():
                stored = value.const_value
                if isinstance(stored, ir.ExternalTensor):
                    assert (stored.offset, stored.length) == places[name]


@pytest.mark.parametrize("variant", ["int8_pc_sym", "int4_g32", "int4_g32+dynamic"])
def test_a_camera_weight_has_one_reader_in_the_loop(
    variant: str, exporter: Any, opened: Any
) -> None:
    """Where the integers have two, ONNX Runtime fuses neither."""
    artifact = opened(exporter.artifact(variant))
    graph = artifact.graphs["onnxruntime"].graph
    planned = [n for n in artifact.manifest.layers.quantized if n.startswith("camera_head.")]
    (loop,) = (node for node in graph if node.op_type == "Loop")
    body = loop.attributes["body"].as_graph()
    integers = [name for name in body.initializers if name.endswith(".q")]
    assert sorted(integers) == sorted(f"{name}.q" for name in planned)
    assert not [n for n in graph.initializers if n.startswith("camera_head.") and n.endswith(".q")]
    for name in integers:
        (use,) = body.initializers[name].uses()
        assert use.node.graph is body
        assert len(use.node.outputs[0].uses()) == 1


def test_group_sizes_are_those_of_the_rows(exporter: Any, opened: Any) -> None:
    """K is 32 to 256 in vggt-tiny: groups of 256 are one group a row, its block a power of two."""
    artifact = opened(exporter.artifact("int4_g256"))
    infos = layers()
    seen = set()
    for node in artifact.graphs["onnxruntime"].graph.all_nodes():
        if node.op_type != "DequantizeLinear":
            continue
        name = str(node.inputs[0].name).removesuffix(".q")
        k = infos[name].shape[1]
        assert isinstance(plan(get_scheme("int4_g256"), [infos[name]])[name].granularity, PerGroup)
        assert node.attributes["block_size"].as_int() == k
        assert node.attributes["axis"].as_int() == 0
        seen.add(k)
    assert seen >= {32, 64, 128, 256}
