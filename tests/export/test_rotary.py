"""Rotate-half as one operator: where it is one, and nowhere else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vggt_deploy.export.rotary import use_rotary_operator
from vggt_deploy.export.simplify import remove_unused

TOKENS, HEADS, WIDTH = 3, 2, 4
HALF = WIDTH // 2
# x1 * c - x2 * s beside x2 * c + x1 * s
TEXT = """
g (float[f, 3, 2, 4] x) => (float[f, 3, 2, 4] y)
<float[3, 1, 2] c = {{{cos}}}, float[3, 1, 2] s = {{{sin}}}, int64[2] sizes = {{2, 2}},
 float[f, 3, 2, 4] r> {{
    r = Relu (x)
    x1, x2 = Split <axis = -1> (r, sizes)
    a = Mul ({a})
    b = Mul ({b})
    d = Mul ({d})
    e = Mul ({e})
    left = Sub (a, b)
    right = {last} (d, e)
    y = Concat <axis = -1> (left, right)
}}
"""
RIGHT = {"a": "x1, c", "b": "x2, s", "d": "x2, c", "e": "x1, s", "last": "Add"}


def text(**wrong: str) -> str:
    angles = np.linspace(0.1, 1.2, TOKENS * HALF)
    tables = {
        "cos": ", ".join(f"{value:.6f}" for value in np.cos(angles)),
        "sin": ", ".join(f"{value:.6f}" for value in np.sin(angles)),
    }
    return TEXT.format(**{**RIGHT, **tables, **wrong})


def test_rotate_half_becomes_one_operator(small_model: Any, runtime: Any) -> None:
    x = np.random.default_rng(0).random((2, TOKENS, HEADS, WIDTH), np.float32)
    model = small_model(text())
    (before,) = runtime.model(model, {"x": x}, optimize=False)
    assert use_rotary_operator(model.graph) == 1
    remove_unused(model)
    model.opset_imports["com.microsoft"] = 1
    operators = [node.op_type for node in model.graph]
    assert operators.count("RotaryEmbedding") == 1
    assert not {"Mul", "Split", "Concat"} & set(operators)
    (after,) = runtime.model(model, {"x": x}, optimize=False)
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6)
    assert not np.allclose(after, x, rtol=1e-2)


@pytest.mark.parametrize(
    "wrong",
    [
        {"last": "Sub"},
        {"a": "x1, s"},
        {"d": "x1, c", "e": "x2, s"},
        {"a": "x2, c", "b": "x1, s"},
    ],
    ids=["sign", "sine for cosine", "halves swapped on the right", "halves swapped on the left"],
)
def test_what_only_looks_like_it_stays(wrong: dict[str, str], small_model: Any) -> None:
    model = small_model(text(**wrong))
    assert use_rotary_operator(model.graph) == 0
    assert "RotaryEmbedding" not in {node.op_type for node in model.graph}


def test_it_applies_to_every_turned_block(exporter: Any, opened: Any) -> None:
    """To q and k of four frame and four global blocks, in ONNX Runtime's graph only."""
    graphs = opened(exporter.artifact("int8_pc_sym")).graphs
    counts = {
        target: sum(node.op_type == "RotaryEmbedding" for node in model.graph)
        for target, model in graphs.items()
    }
    assert counts == {"onnxruntime": 16, "tensorrt": 0}
