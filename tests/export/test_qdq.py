"""Integers in small graphs, against float64 and against DequantizeLinear."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from vggt_deploy.errors import ExportError, QuantizeError
from vggt_deploy.export.qdq import insert_integers
from vggt_deploy.export.simplify import RULES, remove_unused
from vggt_deploy.quantize.apply import QuantLinear
from vggt_deploy.quantize.qparams import dequantize, quantize
from vggt_deploy.quantize.schemes import (
    INT4_G32,
    INT4_G128,
    INT8_PC_ASYM,
    INT8_PC_SYM,
    INT8_PT_ASYM,
    INT8_PT_SYM,
    WeightFormat,
)

KEY = "l.weight"
SCALE = 2.0**-5  # of static activations: |x| up to 3.97, so the largest saturate
FORMATS = [INT8_PT_SYM, INT8_PT_ASYM, INT8_PC_SYM, INT8_PC_ASYM, INT4_G32, INT4_G128]


class Case:
    """y = x @ W.T in ONNX, W [N, K] quantized."""

    def __init__(self, n: int, k: int, form: WeightFormat, small_model: Any) -> None:
        generator = np.random.default_rng(n + k)
        self.form = form
        # Off centre, so that zero points and row sums matter.
        self.weight = torch.from_numpy((generator.standard_normal((n, k)) + 0.3).astype(np.float32))
        self.x = generator.standard_normal((2, 3, k)).astype(np.float32) + np.float32(0.5)
        text = f"""g (float[2, f, {k}] x, float[{n}, {k}] w) => (float[2, f, {n}] y) {{
            t = Transpose <perm = [1, 0]> (w)
            p = MatMul (x, t)
            y = Identity (p)
        }}"""
        self.model = small_model(text, ("w",))
        value = self.model.graph.initializers["w"]
        value.meta["ref"] = type(value.meta["ref"])(f"vggt.{KEY}")
        next(rule for rule in RULES if rule.name == "transpose_linear_weights").apply(
            self.model.graph
        )
        remove_unused(self.model)

    @property
    def exact(self) -> np.ndarray:
        """The product with the dequantized weight, in float64."""
        weight = dequantize(quantize(self.weight, self.form)).numpy().astype(np.float64)
        return self.x.astype(np.float64) @ weight.T

    def write(self, materialized: Any, **options: Any) -> tuple[Path, dict[str, int]]:
        scales = {"l": SCALE} if options.get("activations") == "static" else None
        folder, stored = materialized(
            self.model, {KEY: self.weight}, {"l": self.form}, input_scales=scales
        )
        counts = insert_integers(
            self.model.graph, stored, **{"activations": "float", "target": "onnxruntime", **options}
        )
        self.model.opset_imports[""] = 21
        ir.save(self.model, folder / "model.onnx")
        return folder / "model.onnx", counts

    @property
    def exact_integers(self) -> np.ndarray:
        """The product of the integers, exact in int64, then scaled."""
        q = quantize(self.weight, self.form)
        x8 = np.clip(np.rint(self.x / np.float32(SCALE)), -128, 127).astype(np.int64)
        zero = q.zero_point.numpy().astype(np.int64).reshape(-1, 1)
        sums = x8 @ (q.q.numpy().astype(np.int64) - zero).T
        return sums * SCALE * q.scale.numpy().astype(np.float64).reshape(-1)

    @property
    def operators(self) -> Counter[str]:
        return Counter(node.op_type for node in self.model.graph)


def error(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.label)
@pytest.mark.parametrize("optimize", [True, False], ids=["fused", "plain"])
def test_a_matmul_computes_with_the_dequantized_weight(
    form: WeightFormat,
    target: str,
    optimize: bool,
    small_model: Any,
    materialized: Any,
    runtime: Any,
) -> None:
    case = Case(16, 256, form, small_model)
    path, counts = case.write(materialized, target=target)
    assert counts == {"l": 1}
    (y,) = runtime.model(path, {"x": case.x}, optimize=optimize)
    assert error(y, case.exact) < 1e-6
    assert error(y, case.x.astype(np.float64) @ case.weight.double().numpy().T) > 1e-3


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
@pytest.mark.parametrize(
    "form", [INT8_PT_SYM, INT8_PT_ASYM, INT8_PC_SYM, INT8_PC_ASYM], ids=lambda form: form.label
)
@pytest.mark.parametrize("optimize", [True, False], ids=["fused", "plain"])
def test_static_activations_are_integer_products(
    form: WeightFormat,
    target: str,
    optimize: bool,
    small_model: Any,
    materialized: Any,
    runtime: Any,
) -> None:
    """Zero points and the rank-1 form that TensorRT gets: both are the sum over integers."""
    case = Case(16, 64, form, small_model)
    path, counts = case.write(materialized, activations="static", target=target)
    assert counts == {"l": 1}
    rank_1 = target == "tensorrt" and not form.symmetric
    extra = {"ReduceSum": 1, "Mul": 1, "Sub": 1} if rank_1 else {}
    plain = {"QuantizeLinear": 1, "DequantizeLinear": 2, "MatMul": 1, "Identity": 1}
    assert case.operators == plain | extra
    (y,) = runtime.model(path, {"x": case.x}, optimize=optimize)
    assert error(y, case.exact_integers) < 1e-6
    assert error(case.exact, case.exact_integers) > 1e-3  # the floats are something else


def test_a_rank_1_term_of_the_float_input_would_be_wrong(
    small_model: Any, materialized: Any, runtime: Any
) -> None:
    """The twin: rowsum(x) for rowsum(x'), which differ by what was rounded off."""
    case = Case(16, 64, INT8_PC_ASYM, small_model)
    path, _ = case.write(materialized, activations="static", target="tensorrt")
    (rowsum,) = (node for node in case.model.graph if node.op_type == "ReduceSum")
    assert rowsum.inputs[0].producer().op_type == "DequantizeLinear"
    rowsum.replace_input_with(0, case.model.graph.inputs[0])
    ir.save(case.model, path)
    (y,) = runtime.model(path, {"x": case.x})
    assert error(y, case.exact_integers) > 1e-4


@pytest.mark.parametrize("second, pairs", [(SCALE, 1), (2 * SCALE, 2)])
def test_layers_that_read_one_tensor_share_its_rounding(
    second: float, pairs: int, small_model: Any, materialized: Any, runtime: Any
) -> None:
    generator = np.random.default_rng(0)
    model = small_model(
        """g (float[2, f, 32] x, float[32, 8] a, float[32, 8] b) => (float[2, f, 8] y) {
            p = MatMul (x, a)
            q = MatMul (x, b)
            y = Add (p, q)
        }""",
        ("a", "b"),
    )
    for name in ("a", "b"):
        value = model.graph.initializers[name]
        ref = type(value.meta["ref"])
        value.meta["ref"] = ref(f"vggt.{name}.weight", "transposed")
    weights = {
        f"{n}.weight": torch.from_numpy(generator.standard_normal((8, 32)).astype(np.float32))
        for n in ("a", "b")
    }
    scales = {"a": SCALE, "b": second}
    folder, stored = materialized(
        model, weights, dict.fromkeys(scales, INT8_PC_SYM), input_scales=scales
    )
    insert_integers(model.graph, stored, activations="static", target="tensorrt")
    operators = Counter(node.op_type for node in model.graph)
    assert operators["QuantizeLinear"] == pairs
    assert operators["DequantizeLinear"] == pairs + 2
    ir.save(model, folder / "model.onnx")
    x = generator.standard_normal((2, 3, 32)).astype(np.float32)
    (y,) = runtime.model(folder / "model.onnx", {"x": x})
    want = sum(
        QuantLinear(quantize(weights[f"{n}.weight"], INT8_PC_SYM), None, "static", s)(
            torch.from_numpy(x)
        ).numpy()
        for n, s in scales.items()
    )
    assert error(y, want) < 1e-6


def test_static_without_a_scale_is_refused(small_model: Any, materialized: Any) -> None:
    case = Case(8, 32, INT8_PC_SYM, small_model)
    _, stored = materialized(case.model, {KEY: case.weight}, {"l": case.form})
    with pytest.raises(ExportError, match="l has no calibrated input scale"):
        insert_integers(case.model.graph, stored, activations="static", target="tensorrt")


@pytest.mark.parametrize("form", [INT8_PT_ASYM, INT8_PC_ASYM], ids=lambda f: f.label)
def test_asymmetric_for_tensorrt(
    form: WeightFormat, small_model: Any, materialized: Any, runtime: Any
) -> None:
    """Zero points are zeros, and what they did is a rank-1 term."""
    case = Case(16, 64, form, small_model)
    path, _ = case.write(materialized, target="tensorrt")
    assert case.operators == {
        "DequantizeLinear": 1, "MatMul": 1, "ReduceSum": 1, "Mul": 1, "Sub": 1, "Identity": 1,
    }  # fmt: skip
    initializers = case.model.graph.initializers
    assert not initializers["l.zeros"].const_value.numpy().any()
    assert "l.zero_point" not in initializers
    (y,) = runtime.model(path, {"x": case.x})
    assert error(y, case.exact) < 1e-6

    term = initializers["l.scale_times_zero"]
    term.const_value = ir.tensor(np.zeros(term.const_value.shape.numpy(), np.float32))
    ir.save(case.model, path)
    (without,) = runtime.model(path, {"x": case.x})
    assert error(without, case.exact) > 1e-2


@pytest.mark.parametrize(
    "k, form, padded, block",
    [
        (192, INT4_G128, 256, 128),  # a short last group
        (40, INT4_G32, 64, 32),
        (48, INT4_G128, 48, 64),  # a row shorter than a group
        (9, INT4_G32, 9, 16),
    ],
)
@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_short_groups(
    k: int,
    form: WeightFormat,
    padded: int,
    block: int,
    target: str,
    small_model: Any,
    materialized: Any,
    runtime: Any,
) -> None:
    case = Case(16, k, form, small_model)
    path, _ = case.write(materialized, target=target)
    assert case.operators["Pad"] == (1 if padded != k else 0)
    q = case.model.graph.initializers["l.q"].const_value
    assert tuple(q.shape) == (padded, 16)
    assert not q.numpy()[k:].astype(int).any()
    (node,) = (node for node in case.model.graph if node.op_type == "DequantizeLinear")
    assert node.attributes["block_size"].as_int() == block
    for optimize in (True, False):
        (y,) = runtime.model(path, {"x": case.x}, optimize=optimize)
        assert error(y, case.exact) < 1e-6


def test_an_odd_number_of_nibbles_cannot_be_padded(small_model: Any, materialized: Any) -> None:
    case = Case(3, 33, INT4_G32, small_model)
    with pytest.raises(ExportError, match=r"\[3, 33\] with an odd number"):
        case.write(materialized)


@pytest.mark.parametrize("form", FORMATS[:4], ids=lambda form: form.label)
def test_dynamic_activations_are_an_integer_product(
    form: WeightFormat, small_model: Any, materialized: Any, runtime: Any
) -> None:
    case = Case(16, 256, form, small_model)
    path, _ = case.write(materialized, activations="dynamic")
    assert case.operators["DynamicQuantizeLinear"] == case.operators["MatMulInteger"] == 1
    assert not case.operators["DequantizeLinear"]
    module = QuantLinear(quantize(case.weight, form), None, "dynamic")
    with torch.no_grad():
        want = module(torch.from_numpy(case.x)).numpy()
    for optimize in (True, False):
        (y,) = runtime.model(path, {"x": case.x}, optimize=optimize)
        assert error(y, want) < 1e-6
        assert 1e-4 < error(y, case.exact) < 5e-2  # rounded activations, and nothing worse


def test_dynamic_4_bit_keeps_dequantize_linear(small_model: Any, materialized: Any) -> None:
    """ONNX Runtime quantizes the activations inside MatMulNBits."""
    case = Case(16, 64, INT4_G32, small_model)
    case.write(materialized, activations="dynamic")
    assert case.operators["DequantizeLinear"] == 1
    assert not case.operators["MatMulInteger"]


def test_a_weight_that_something_else_reads(small_model: Any, materialized: Any) -> None:
    case = Case(16, 64, INT8_PC_SYM, small_model)
    graph = case.model.graph
    (weight,) = graph.initializers.values()
    graph.append(ir.node("Relu", [weight]))
    with pytest.raises(ExportError, match="weight of l is read by Relu input 0") as caught:
        case.write(materialized)
    assert "--exclude l" in caught.value.fix


def test_a_weight_that_nothing_reads(small_model: Any, materialized: Any) -> None:
    case = Case(16, 64, INT8_PC_SYM, small_model)
    graph = case.model.graph
    (product,) = (node for node in graph if node.op_type == "MatMul")
    product.replace_input_with(1, graph.inputs[0])
    with pytest.raises(ExportError, match="no operator reads the weight of l"):
        case.write(materialized)


def test_a_weight_that_is_not_finite_is_named(small_model: Any, materialized: Any) -> None:
    case = Case(16, 64, INT8_PC_SYM, small_model)
    case.weight[3, 4] = float("nan")
    with pytest.raises(QuantizeError, match=r"^l: the weight holds NaN"):
        case.write(materialized)


CONV = """
g (float[1, 3, 6, 6] x, float[4, 3, 3, 3] w) => (float[1, 4, 4, 4] y) {
    y = Conv <kernel_shape = [3, 3]> (x, w)
}
"""


@pytest.mark.parametrize("form", [INT8_PC_SYM, INT8_PT_SYM, INT8_PC_ASYM], ids=lambda f: f.label)
def test_a_convolution_is_the_same_spelled_out(
    form: WeightFormat, small_model: Any, materialized: Any, runtime: Any
) -> None:
    """Cast and Mul for ONNX Runtime, DequantizeLinear for TensorRT: the same weight to the bit."""
    weight = torch.from_numpy(np.random.default_rng(1).standard_normal((4, 3, 3, 3))).float()
    weights, outputs, operators = [], [], []
    x = np.random.default_rng(2).standard_normal((1, 3, 6, 6)).astype(np.float32)
    for target in ("onnxruntime", "tensorrt"):
        model = small_model(CONV, ("w",))
        value = model.graph.initializers["w"]
        value.meta["ref"] = type(value.meta["ref"])(f"vggt.{KEY}")
        folder, stored = materialized(model, {KEY: weight}, {"l": form}, "conv")
        insert_integers(model.graph, stored, activations="dynamic", target=target)
        (conv,) = (node for node in model.graph if node.op_type == "Conv")
        model.graph.outputs.append(conv.inputs[1])
        ir.save(model, folder / "model.onnx")
        y, used = runtime.model(folder / "model.onnx", {"x": x}, optimize=False)
        outputs.append(y)
        weights.append(used)
        operators.append({node.op_type for node in model.graph})
    assert operators[1] == {"Conv", "DequantizeLinear"}
    if form.symmetric:
        assert "DequantizeLinear" not in operators[0]
    want = dequantize(quantize(weight, form)).numpy()
    for used in weights:
        np.testing.assert_array_equal(used.view(np.uint32), want.view(np.uint32))
    np.testing.assert_array_equal(outputs[0], outputs[1])
