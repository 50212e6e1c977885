"""A quantizer that is wrong on purpose must not get through the gates that come with vggt-nano.

The real comparison with the real weights, on as many scenes as the gates ask for. Its workers run
in this process, where the `quantize` of `prepared.Nearest` can be replaced; nothing else is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from vggt_deploy.compare import asking, compare, pipeline, worker
from vggt_deploy.compare.gate import REFERENCE, GateResult, check_gate
from vggt_deploy.compare.gates import Gates, load_gates
from vggt_deploy.compare.processes import Outcome
from vggt_deploy.data.eth3d import write_scene
from vggt_deploy.data.synthetic import render_views
from vggt_deploy.quantize import prepared
from vggt_deploy.quantize.qparams import QuantizedTensor, quantize

SCHEME = "int8_pc_asym"
FIRST_SEED = 1_000_000  # in no training
Fault = Callable[[QuantizedTensor], QuantizedTensor]
Compared = Callable[..., GateResult]


def scale_too_large(made: QuantizedTensor) -> QuantizedTensor:
    """The integers were made with one scale and are read with another."""
    return dataclasses.replace(made, scale=made.scale * 1.1)


def wrapped_zero_point(made: QuantizedTensor) -> QuantizedTensor:
    """The zero point 0..255 put into int8 without the minus 128: above 127 it wraps."""
    if made.format.symmetric:
        return made
    wrapped = (made.zero_point.to(torch.int16) + 128).to(torch.int8)
    return dataclasses.replace(made, zero_point=wrapped)


@pytest.fixture(scope="module")
def gates() -> Gates:
    return load_gates()


@pytest.fixture(scope="module")
def scenes(gates: Gates, tmp_path_factory: pytest.TempPathFactory) -> Path:
    protocol = gates.protocol
    folder = tmp_path_factory.mktemp("scenes")
    for seed in range(FIRST_SEED, FIRST_SEED + protocol.scenes):
        size = {"height": protocol.height, "width": protocol.width}
        write_scene(folder / f"scene_{seed}", render_views(seed, views=protocol.views, **size))
    return folder


@pytest.fixture
def compared(
    gates: Gates, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Compared:
    """`compared(fault, runtimes)`: how the scheme stands against the gates, made with the fault."""

    def run_here(command: Sequence[str], **_: Any) -> Outcome:
        return Outcome(worker.main(command[-2:]), timed_out=False, seconds=0.0, tail=())

    monkeypatch.setattr(asking, "run_process", run_here)
    monkeypatch.setattr(worker, "die_with_parent", lambda parent: None)
    monkeypatch.setattr(pipeline, "draw", lambda *_: None)  # seconds each time

    def run(fault: Fault | None, runtimes: str) -> GateResult:
        if fault is not None:
            monkeypatch.setattr(prepared, "quantize", lambda *a, **k: fault(quantize(*a, **k)))
        report = compare(
            gates.protocol.model,
            output_dir=tmp_path / "out",
            scenes=[scenes],
            schemes=SCHEME,
            runtimes=runtimes,
            warmup=0,
            repeats=1,
            threads=1,
            console=Console(quiet=True),
        )
        assert [row.status for row in report.rows] == ["done"] * len(report.rows)
        return check_gate(report, gates)

    return run


def broken_variants(result: GateResult) -> set[str]:
    return {line.label for line in result.broken if line.label != REFERENCE}


def test_the_quantizer_as_it_is_passes(compared: Compared) -> None:
    result = compared(None, "torch,onnxruntime")
    assert broken_variants(result) == set(), result.lines()
    held = {line.label for line in result.checked if line.verdict == "within"}
    assert {f"torch/{SCHEME}", f"onnxruntime/{SCHEME}"} <= held


def test_a_scale_that_is_a_tenth_too_large_does_not(compared: Compared) -> None:
    result = compared(scale_too_large, "torch,onnxruntime")
    assert broken_variants(result) == {f"torch/{SCHEME}", f"onnxruntime/{SCHEME}"}, result.lines()


def test_a_zero_point_that_wraps_does_not(compared: Compared) -> None:
    result = compared(wrapped_zero_point, "torch")
    assert broken_variants(result) == {f"torch/{SCHEME}"}, result.lines()
