"""Times of Linears: which graphs are timed, and that the file is what was measured."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import nn

from vggt_deploy.errors import ArtifactError, UsageError
from vggt_deploy.quantize.schemes import INT4_G32, INT4_G64, INT8_PC_ASYM, INT8_PC_SYM, INT8_PT_SYM
from vggt_deploy.search.costs import (
    Costs,
    layer_times,
    linear_calls,
    load_costs,
    measure_costs,
)
from vggt_deploy.search.graphs import LinearShape, example_input, linear_graph

SHAPE = LinearShape(rows=9, inputs=64, outputs=48)


def opened(graph, folder):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    for key, value in graph.session_options.items():
        options.add_session_config_entry(key, value)
    return ort.InferenceSession(
        graph.model,
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=list(graph.disabled_optimizers) or None,
    )


def operators(folder):
    import onnx

    return {node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node}


@pytest.mark.parametrize(
    "form,activations,kernel",
    [
        (INT8_PC_SYM, "float", "MatMulNBits"),
        (INT4_G32, "float", "MatMulNBits"),
        (INT4_G64, "dynamic", "MatMulNBits"),
        (INT8_PC_SYM, "dynamic", "DynamicQuantizeMatMul"),
        (INT8_PC_ASYM, "dynamic", "DynamicQuantizeMatMul"),
        (INT8_PC_SYM, "static", "MatMulIntegerToFloat"),
        (INT8_PT_SYM, "static", "MatMulIntegerToFloat"),
    ],
)
def test_what_is_timed_is_the_kernel_of_an_artifact(form, activations, kernel, tmp_path):
    graph = linear_graph(SHAPE, form, activations)
    feed = {"x": example_input(SHAPE)}
    (y,) = opened(graph, tmp_path).run(None, feed)
    assert kernel in operators(tmp_path)
    (exact,) = opened(linear_graph(SHAPE, None, "float"), tmp_path).run(None, feed)
    error = np.linalg.norm(y - exact) / np.linalg.norm(exact)
    # The same product, rounded: not another one (error 1.4), not the float one (error 0).
    assert 1e-4 < error < 0.2


def test_a_short_last_group_is_timed_as_a_whole_one(tmp_path):
    graph = linear_graph(LinearShape(3, 40, 16), INT4_G32, "float")
    assert graph.shape == LinearShape(3, 64, 16)
    opened(graph, tmp_path).run(None, {"x": example_input(graph.shape)})


class Net(nn.Module):
    """Calls `twice` with 6 rows and with 2, `once` with 6, and `never` not at all."""

    def __init__(self) -> None:
        super().__init__()
        self.once, self.twice, self.never = (nn.Linear(8, 8) for _ in range(3))
        self.conv = nn.Conv2d(1, 1, 1)

    def forward(self, x):
        y = self.twice(self.once(x))
        return self.twice(y[:, :1, :2]).sum() + y.sum()


def test_calls_and_their_times():
    calls = linear_calls(Net(), torch.ones(1, 2, 3, 8))
    assert calls == {"once": (6,), "twice": (6, 2)}
    costs = measure_costs(
        [(LinearShape(rows, 8, 8), label) for rows in (6, 2) for label in ("float", "int8_pc_sym")],
        "float",
        frames=2,
        height=14,
        width=14,
        threads=1,
        repeats=3,
    )
    shapes = dict.fromkeys(("once", "twice", "never"), (8, 8))
    times = layer_times(calls, shapes, ["float", "int8_pc_sym"], costs)
    assert times.keys() == {"once", "twice"}
    one = {rows: costs.time_ms(LinearShape(rows, 8, 8), "int8_pc_sym") for rows in (6, 2)}
    assert times["once"]["int8_pc_sym"] == one[6]
    assert times["twice"]["int8_pc_sym"] == one[6] + one[2]
    with pytest.raises(UsageError, match="not among the costs"):
        costs.time_ms(LinearShape(6, 8, 8), "int4_g32")


def test_costs_are_kept(tmp_path):
    costs = measure_costs(
        [(SHAPE, "float"), (SHAPE, "int8_pc_sym"), (SHAPE, "float")],
        "static",
        frames=1,
        height=14,
        width=28,
        threads=1,
        repeats=4,
    )
    assert [cost.format for cost in costs.linears] == ["float", "int8_pc_sym"]
    assert all(cost.n == 4 and cost.median_ms > 0 <= cost.iqr_ms for cost in costs.linears)
    (tmp_path / "costs.json").write_text(costs.to_json())
    assert load_costs(tmp_path) == load_costs(tmp_path / "costs.json") == costs


def test_costs_that_are_none(tmp_path):
    with pytest.raises(ArtifactError, match="can't read the costs"):
        load_costs(tmp_path)
    good = Costs(1, "onnxruntime 1", "cpu", 1, "float", 1, 14, 14, None, ())
    assert Costs.from_json(good.to_json()) == good
    broken = [
        "{",
        dataclasses.replace(good, schema=2).to_json(),
        good.to_json().replace('"float"', '"int8"'),
        good.to_json().replace('"linears": []', '"linears": [1]'),
        good.to_json().replace('"cpu"', '"processor"', 1),
    ]
    for text in broken:
        with pytest.raises(ArtifactError):
            Costs.from_json(text)
