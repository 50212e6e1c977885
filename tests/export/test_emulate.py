"""BF16 by FP32 and rounding, against ml_dtypes, which rounds after every operation."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from vggt_deploy.export.emulate import emulate

BF16 = ml_dtypes.bfloat16

# ONNX text gives a bfloat16 by its bits: 16256 is 1.0.
GRAPH = """
g (float[3, 4] x) => (float[3, 2] y) <bfloat16[1] one = {16256}> {
    h = Cast <to = 16> (x)
    p = MatMul (h, w)
    s = Add (p, one)
    m = Mul (s, s)
    y = Cast <to = 1> (m)
}
"""


def graph(small_model: Any, weight: np.ndarray) -> ir.Model:
    model: ir.Model = small_model(
        GRAPH.replace("g (float[3, 4] x)", "g (float[3, 4] x, bfloat16[4, 2] w)")
    )
    value = next(v for v in model.graph.inputs if v.name == "w")
    model.graph.inputs.remove(value)
    value.const_value = ir.Tensor(weight.astype(BF16), dtype=ir.DataType.BFLOAT16, name="w")
    model.graph.initializers.add(value)
    for node in model.graph:
        last = node.outputs[0].name == "y"
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT if last else ir.DataType.BFLOAT16)
    return model


def test_every_result_is_rounded(small_model: Any, runtime: Any) -> None:
    generator = np.random.default_rng(0)
    x = (generator.integers(-800, 800, (3, 4)) / 7).astype(np.float32)
    weight = generator.integers(-3, 4, (4, 2)).astype(np.float32)
    model = graph(small_model, weight)
    assert emulate(model.graph) == 4
    (y,) = runtime.model(model, {"x": x}, optimize=False)

    h = x.astype(BF16)
    p = (h.astype(np.float32) @ weight).astype(BF16)
    s = (p + np.array(1, BF16)).astype(BF16)
    want = (s * s).astype(BF16).astype(np.float32)
    np.testing.assert_array_equal(y, want)
    for wrong in (
        ((h.astype(np.float32) @ weight) + 1) ** 2,  # rounded only on entry
        (((x @ weight) + 1) ** 2).astype(BF16).astype(np.float32),  # only at the end
    ):
        assert not np.array_equal(y, wrong)


def test_no_operator_is_left_in_bf16_but_casts(small_model: Any) -> None:
    model = graph(small_model, np.ones((4, 2), np.float32))
    emulate(model.graph)
    for node in model.graph:
        types = [value.dtype for value in (*node.inputs, *node.outputs) if value is not None]
        assert node.op_type == "Cast" or set(types) <= {ir.DataType.FLOAT}, node.name


def test_an_fp32_graph_stays_as_it_is(small_model: Any) -> None:
    model = small_model("g (float[2] x) => (float[2] y) { y = Relu (x) }")
    assert emulate(model.graph) == 0
    assert len(model.graph) == 1
