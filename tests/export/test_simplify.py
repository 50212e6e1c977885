"""Each rule on a small graph: it applies, changes no number, and leaves alone what it must."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from vggt_deploy.export.graph import SCOPES_KEY, module_of
from vggt_deploy.export.simplify import RULES, WeightRef, remove_unused, simplify, weight_ref

APPLY = {rule.name: rule.apply for rule in RULES}


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def run(model: ir.Model, tensors: dict[str, Any], feed: np.ndarray, tools: Any) -> np.ndarray:
    """Give the weights their data, in the layout that their references ask for, and run."""
    runtime, materialized = tools
    folder, _ = materialized(model, tensors)
    ir.save(model, folder / "model.onnx")
    (result,) = runtime.model(folder / "model.onnx", {"x": feed}, optimize=False)
    return np.asarray(result)


@pytest.fixture
def tools(runtime: Any, materialized: Any) -> Any:
    return runtime, materialized


def random(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).standard_normal(shape).astype(np.float32))


RESHAPE = """
g (float[n, 4, 6] x) => (float[a, b, c] y) {{
    zero = Constant <value = int64[1] {{0}}>()
    one = Constant <value = int64[1] {{1}}>()
    two = Constant <value = int64[1] {{2}}>()
    six = Constant <value = int64[1] {{6}}>()
    all = Shape (x)
    frames = Gather <axis = 0> (all, zero)
    rows = Gather <axis = 0> (all, one)
    shape = Concat <axis = 0> ({parts})
    y = Reshape (x, shape)
}}
"""


@pytest.mark.parametrize(
    "parts, count", [("frames, two, two, six", 1), ("frames, rows, six", 0), ("two, two, six", 1)]
)
def test_static_reshape(parts: str, count: int, small_model: Any, runtime: Any) -> None:
    """At most one part may be unknown: there is only one -1."""
    text = RESHAPE.format(parts=parts)
    if parts.count(",") == 3:
        text = text.replace("float[a, b, c]", "float[a, b, c, d]")
    model = small_model(text)
    feed = random(1, 4, 6).numpy()
    (before,) = runtime.model(model, {"x": feed}, optimize=False)
    assert APPLY["static_reshape"](model.graph) == count
    remove_unused(model)
    assert operators(model)["Shape"] == (0 if count else 1)
    (after,) = runtime.model(model, {"x": feed}, optimize=False)
    np.testing.assert_array_equal(after, before)
    assert after.shape == before.shape


CONV = """
g (float[1, 3, 5, 5] x, float[2, 3, 3, 3] w) => (float[1, 2, 3, 3] y) {{
    b = Constant <value = float[2] {{{bias}}}>()
    y = Conv <kernel_shape = [3, 3]> (x, w, b)
}}
"""


@pytest.mark.parametrize("bias, count", [("0.0, 0.0", 1), ("0.0, 0.5", 0)])
def test_drop_zero_bias(bias: str, count: int, small_model: Any, tools: Any) -> None:
    feed, tensors = random(1, 3, 5, 5).numpy(), {"w": random(2, 3, 3, 3)}
    before = run(small_model(CONV.format(bias=bias), ("w",)), tensors, feed, tools)
    model = small_model(CONV.format(bias=bias), ("w",))
    assert APPLY["drop_zero_bias"](model.graph) == count
    (conv,) = (node for node in model.graph if node.op_type == "Conv")
    assert len(conv.inputs) == 3 - count
    np.testing.assert_array_equal(run(model, tensors, feed, tools), before)


def test_a_bias_of_the_checkpoint_is_no_zero(small_model: Any) -> None:
    """It has no data yet, which must not be taken for zeros."""
    model = small_model(
        "g (float[1,3,5,5] x, float[2,3,3,3] w, float[2] b) => (float[1,2,3,3] y) {"
        "y = Conv <kernel_shape = [3, 3]> (x, w, b) }",
        ("w", "b"),
    )
    assert APPLY["drop_zero_bias"](model.graph) == 0


LINEAR = """
g (float[2, 4, 6] x, float[5, 6] w) => (float[2, 4, 5] y) {
    first = Transpose <perm = [1, 0]> (w)
    second = Transpose <perm = [1, 0]> (w)
    a = MatMul (x, first)
    b = MatMul (x, second)
    y = Mul (a, b)
}
"""


def test_transpose_linear_weights(small_model: Any, tools: Any) -> None:
    feed, tensors = random(2, 4, 6).numpy(), {"w": random(5, 6)}
    before = run(small_model(LINEAR, ("w",)), tensors, feed, tools)
    model = small_model(LINEAR, ("w",))
    assert APPLY["transpose_linear_weights"](model.graph) == 2
    remove_unused(model)
    assert operators(model) == {"MatMul": 2, "Mul": 1}
    (value,) = model.graph.initializers.values()  # stored once for both
    assert weight_ref(value) == WeightRef("vggt.w", "transposed")
    assert list(value.shape or ()) == [6, 5]
    product = next(node.outputs[0] for node in model.graph if node.op_type == "MatMul")
    assert product.dtype == ir.DataType.FLOAT
    assert list(product.shape or ()) == [2, 4, 5]
    np.testing.assert_array_equal(run(model, tensors, feed, tools), before)


GEMM = """
g (float[4, 6] x, float[5, 6] w, float[5] b) => (float[4, 5] y) {{
    y = Gemm <transB = {turned}, alpha = {alpha}> ({operands})
}}
"""


@pytest.mark.parametrize(
    "operands, operators_left", [("x, w, b", {"MatMul": 1, "Add": 1}), ("x, w", {"MatMul": 1})]
)
def test_split_gemm(
    operands: str, operators_left: dict[str, int], small_model: Any, tools: Any
) -> None:
    text = GEMM.format(turned=1, alpha=1.0, operands=operands)
    feed, tensors = random(4, 6).numpy(), {"w": random(5, 6), "b": random(5)}
    before = run(small_model(text, ("w", "b")), tensors, feed, tools)
    model = small_model(text, ("w", "b"))
    assert APPLY["split_gemm"](model.graph) == 1
    assert APPLY["transpose_linear_weights"](model.graph) == 1
    remove_unused(model)
    assert operators(model) == operators_left
    np.testing.assert_allclose(run(model, tensors, feed, tools), before, rtol=1e-5, atol=1e-6)
    wrong = {**tensors, "w": tensors["w"].flip(0)}
    assert not np.allclose(run(model, wrong, feed, tools), before, rtol=1e-2)


@pytest.mark.parametrize("turned, alpha", [(0, 1.0), (1, 2.0)], ids=["not turned", "scaled"])
def test_a_gemm_that_is_no_linear_stays(turned: int, alpha: float, small_model: Any) -> None:
    model = small_model(GEMM.format(turned=turned, alpha=alpha, operands="x, w, b"), ("w", "b"))
    assert APPLY["split_gemm"](model.graph) == 0
    assert operators(model) == {"Gemm": 1}


def test_an_index_keeps_its_data(small_model: Any) -> None:
    """It is no weight: nothing rounds it, and the folder may compute with it."""
    model = small_model(
        "g (float[4, 6] x, float[6] w, int64[2] i) => (float[2, 6] y) {"
        "t = Gather <axis = 0> (x, i)\n y = Mul (t, w) }",
        ("w",),
    )
    (index,) = (value for value in model.graph.inputs if value.name == "i")
    model.graph.inputs.remove(index)
    index.const_value = ir.tensor(np.array([2, 0]), name="i")
    model.graph.initializers.add(index)
    simplify(model)
    held = model.graph.initializers
    assert weight_ref(held["w"]) == WeightRef("w")
    assert weight_ref(held["i"]) is None
    assert held["i"].const_value is not None


def test_a_transposed_activation_stays(small_model: Any) -> None:
    model = small_model(
        "g (float[4, 6] x) => (float[4, 4] y) {"
        "t = Transpose <perm = [1, 0]> (x)\n y = MatMul (x, t) }"
    )
    assert APPLY["transpose_linear_weights"](model.graph) == 0
    assert operators(model)["Transpose"] == 1


UNFOLD = """
g (float[2, 3, 4, 5] x, float[3, 2, {k}, {k}] w, float[2] b) => (float[2, 2, h, v] y) {{
    y = ConvTranspose <kernel_shape = [{k}, {k}], strides = [{s}, {s}], pads = [{p}, {p}, {p}, {p}],
        output_padding = [0, 0], dilations = [1, 1], group = 1> (x, w, b)
}}
"""


@pytest.mark.parametrize(
    "k, s, p, count",
    [(2, 2, 0, 1), (4, 4, 0, 1), (3, 2, 0, 0), (2, 2, 1, 0)],
    ids=["2x2", "4x4", "windows overlap", "padded"],
)
def test_unfold_transposed_convolutions(
    k: int, s: int, p: int, count: int, small_model: Any, tools: Any
) -> None:
    text = UNFOLD.format(k=k, s=s, p=p)
    feed = random(2, 3, 4, 5).numpy()
    tensors = {"w": random(3, 2, k, k), "b": random(2)}
    before = run(small_model(text, ("w", "b")), tensors, feed, tools)
    model = small_model(text, ("w", "b"))
    assert APPLY["unfold_transposed_convolutions"](model.graph) == count
    remove_unused(model)
    expected = {"Conv": 1, "DepthToSpace": 1} if count else {"ConvTranspose": 1}
    assert operators(model) == expected
    after = run(model, tensors, feed, tools)
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6)
    if count:
        mixed_up = {**tensors, "w": tensors["w"].transpose(2, 3)}
        again = small_model(text, ("w", "b"))
        APPLY["unfold_transposed_convolutions"](again.graph)
        assert not np.allclose(run(again, mixed_up, feed, tools), before, rtol=1e-2)


SPLIT = """
g (float[3, 6] x) => (float[3, 2] y) {
    sizes = Constant <value = int64[2] {2, 4}>()
    zero = Constant <value = int64 {0}>()
    parts = SplitToSequence <axis = -1> (x, sizes)
    part = SequenceAt (parts, zero)
    y = Relu (part)
}
"""


def test_simplify_keeps_the_module_of_a_split(small_model: Any, runtime: Any) -> None:
    """A node without a module would fall out of the half-precision region."""
    model = small_model(SPLIT)
    for node in model.graph:
        node.metadata_props[SCOPES_KEY] = f"['', 'vggt.a.attn', '{node.name}']"
    feed = random(3, 6).numpy()
    (before,) = runtime.model(model, {"x": feed}, optimize=False)
    counts = simplify(model)
    assert set(counts) == {rule.name for rule in RULES}
    assert operators(model) == {"Relu": 1, "Split": 1}
    assert {module_of(node) for node in model.graph} == {"vggt.a.attn"}
    (after,) = runtime.model(model, {"x": feed}, optimize=False)
    np.testing.assert_array_equal(after, before)


def test_every_rule_says_its_equation() -> None:
    for rule in RULES:
        assert "->" in rule.equation, rule.name


def test_rules_apply_to_the_network(exporter: Any, opened: Any) -> None:
    """What they are for is gone from the exported graphs."""
    artifact = opened(exporter.artifact("fp32"))
    for model in artifact.graphs.values():
        nodes = list(model.graph.all_nodes())
        assert not [n for n in nodes if n.op_type in ("ConvTranspose", "SplitToSequence", "Gemm")]
        for node in nodes:
            if node.op_type == "Transpose":
                assert not node.inputs[0].is_initializer(), node.name
        shapes = Path(artifact.folder / "model.onnx").stat().st_size
        assert shapes < 500_000
