"""Typed graphs: which values are half, as ONNX's own type inference sees them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from safetensors.torch import save_file

from vggt_deploy.errors import ExportError, QuantizeError
from vggt_deploy.export.graph import SCOPES_KEY
from vggt_deploy.export.precision import set_precision
from vggt_deploy.export.verify import probe_images as images_of
from vggt_deploy.model.weights import open_weights
from vggt_deploy.quantize.plan import in_half_region

CASES = [("fp16", "fp16"), ("bf16", "bf16"), ("int8_pc_asym", "fp16"), ("int4_g32", "bf16")]
HALF = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}
FLOATS = (onnx.TensorProto.FLOAT, *HALF.values())
# 2 encoder, 4 frame and 4 global blocks, an attention and an MLP each.
REGIONS = 20


def inferred(path: Path) -> tuple[onnx.ModelProto, dict[str, int]]:
    """The model, and value -> element type from its inputs and operators, not from declarations."""
    model = onnx.load(path, load_external_data=False)
    del model.graph.value_info[:]
    known = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in (*known.graph.value_info, *known.graph.input, *known.graph.output)
    }
    types.update({tensor.name: tensor.data_type for tensor in known.graph.initializer})
    return model, types


@pytest.mark.parametrize("scheme, precision", CASES)
def test_half_inside_attention_and_mlp_and_nowhere_else(
    scheme: str, precision: str, exporter: Any
) -> None:
    folder = exporter.artifact(scheme, precision=precision)
    # TensorRT's graph: type inference does not know ONNX Runtime's own operators.
    model, types = inferred(folder / "model.tensorrt.onnx")
    seen: Counter[tuple[str, bool]] = Counter()
    casts = 0
    for node in model.graph.node:
        module = node.name.rpartition("/")[0]
        half = in_half_region(module)
        if node.op_type == "Cast":
            casts += {types[node.input[0]], types[node.output[0]]} <= set(FLOATS)
            continue
        for name in node.output:
            if types[name] in FLOATS:
                wanted = HALF[precision] if half else onnx.TensorProto.FLOAT
                assert types[name] == wanted, node.name
        seen[node.op_type, half] += 1
    assert seen["MatMul", True] >= REGIONS * 2
    assert seen["Softmax", True] == REGIONS / 2
    assert seen["Gelu", True] == REGIONS / 2
    assert seen["LayerNormalization", False] >= REGIONS
    assert seen["Conv", True] == 0
    # One into each region and one out of it: none is undone by another on the way.
    assert casts == 2 * REGIONS


@pytest.mark.parametrize("scheme, precision", CASES[2:])
def test_scales_are_in_the_type_of_the_activations(
    scheme: str, precision: str, exporter: Any
) -> None:
    folder = exporter.artifact(scheme, precision=precision)
    model, types = inferred(folder / "model.tensorrt.onnx")
    readers = {name: node for node in model.graph.node for name in node.input}
    found = Counter()
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear":
            product = readers[node.output[0]]
            assert types[node.input[1]] == types[node.output[0]] == types[product.input[0]]
            found[types[node.input[1]]] += 1
    assert found[HALF[precision]] == 40  # qkv, proj, fc1, fc2 of ten blocks
    assert found[onnx.TensorProto.FLOAT] > 0


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_the_float_weights_of_the_region_are_half_on_disk(
    precision: str, exporter: Any, opened: Any
) -> None:
    half = opened(exporter.artifact(precision))
    full = opened(exporter.artifact("fp32"))
    numpy_type = np.float16 if precision == "fp16" else ml_dtypes.bfloat16
    region = 0
    for name, tensor in half.tensors().items():
        source = name.removesuffix(".float16").removesuffix(".bfloat16")
        plain = full.tensors().get(source)
        if source == name or plain is None:
            assert tensor.dtype == ir.DataType.FLOAT, name
            continue
        region += 1
        if precision == "bf16":  # FP16 keeps LayerScale apart, so its weights are other numbers
            want = plain.numpy().astype(numpy_type)
            np.testing.assert_array_equal(
                tensor.numpy().view(np.uint16), want.view(np.uint16), err_msg=name
            )
        assert 2 * tensor.length == plain.length
    assert region > 80


def test_half_precision_is_near_fp32_and_not_equal(exporter: Any, runtime: Any) -> None:
    images = images_of(2, 56, 84)
    full = runtime.artifact(exporter.artifact("fp32"), images)
    half = runtime.artifact(exporter.artifact("fp16"), images)
    for name, want in full.items():
        assert np.isfinite(half[name]).all()
        error = np.linalg.norm(half[name] - want) / np.linalg.norm(want)
        assert 1e-6 < error < 2e-2, name


@pytest.mark.parametrize(
    "scheme, precision, value, error",
    [
        ("fp16", None, 1e5, ExportError),
        ("int8_pc_sym", "fp16", 1e8, QuantizeError),
        ("fp16", None, 6e4, None),
        ("int8_pc_sym", "fp16", 1e5, None),  # a scale of 800 is fine
        ("bf16", None, 1e8, None),
    ],
)
def test_weights_beyond_65504(
    scheme: str,
    precision: Any,
    value: float,
    error: type[Exception] | None,
    exporter: Any,
    tmp_path: Path,
) -> None:
    """FP16 ends there; the error names the layer, and nothing is left."""
    _, source = open_weights("random:vggt-tiny")
    # A copy of the keys without the track head, which takes the longest to make.
    tensors = {key: source.load(key) for key in source.keys() if "track" not in key}  # noqa: SIM118
    key = "aggregator.global_blocks.2.mlp.fc1.weight"
    tensors[key] = tensors[key].clone()
    tensors[key][5, 7] = value
    save_file(tensors, tmp_path / "model.safetensors")
    arguments = {
        "model": str(tmp_path / "model.safetensors"),
        "config": "vggt-tiny",
        "precision": precision,
        "verify": False,
    }
    if error is None:
        assert exporter.export(tmp_path / "a", scheme, **arguments).bytes_total > 0
        return
    with pytest.raises(error, match=r"global_blocks\.2\.mlp\.fc1") as caught:
        exporter.export(tmp_path / "a", scheme, **arguments)
    assert "bf16" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


SMALL = """
g (float[2, 4] x) => (float[2, 4] y, float[2, 4] z) <float[4] b = {0.1, 0.2, 0.3, 0.4}> {
    h = Relu (x)
    a = Add (h, b)
    c = Mul (h, a)
    y = Add (c, x)
    z = Sub (y, b)
}
"""


def test_casts_are_shared_and_constants_rounded(small_model: Any, runtime: Any) -> None:
    model = small_model(SMALL)
    scopes = {"a": "vggt.aggregator.frame_blocks.0.mlp", "c": "vggt.aggregator.frame_blocks.0.mlp"}
    for node in model.graph:
        for output in node.outputs:
            output.type = ir.TensorType(ir.DataType.FLOAT)
        scope = scopes.get(str(node.outputs[0].name), "vggt.aggregator")
        node.metadata_props[SCOPES_KEY] = f"['', '{scope}', '{node.name}']"
    before = model.clone()
    set_precision(model, "fp16")
    operators = Counter(node.op_type for node in model.graph)
    assert operators["Cast"] == 2  # h once for both readers, c on its way out
    assert set(model.graph.initializers) == {"b", "b.float16"}
    x = torch.linspace(-1, 2, 8).reshape(2, 4).numpy()
    y, z = runtime.model(model, {"x": x}, optimize=False)
    b = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
    h = np.maximum(x, 0).astype(np.float16)
    want = (h * (h + b.astype(np.float16))).astype(np.float32) + x
    # ONNX Runtime computes FP16 in FP32 and leaves out roundings in between.
    np.testing.assert_allclose(y, want, rtol=1e-3)
    np.testing.assert_array_equal(z, y - b)
    exact, _ = runtime.model(before, {"x": x}, optimize=False)
    assert not np.array_equal(y, exact)
    assert set_precision(before, "fp32") == 0
    assert "Cast" not in {node.op_type for node in before.graph}
