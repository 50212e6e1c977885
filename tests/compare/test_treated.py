"""Treated labels in a comparison: prepared once, the same numbers in every runtime."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from vggt_deploy.compare import compare
from vggt_deploy.compare.calibration import ask_calibration, calibration_of
from vggt_deploy.compare.jobs import Calibration
from vggt_deploy.compare.measures import Failure
from vggt_deploy.compare.variants import Variant, parse_variants
from vggt_deploy.errors import UsageError

LABEL = "int8_pc_sym+static+smooth=0.5+gptq"


def test_prepared_once_and_run_by_both(
    tmp_path: Path, write_pictures: Callable[..., tuple[Path, ...]]
) -> None:
    write_pictures(tmp_path / "pictures", 2, size=(112, 84))
    write_pictures(tmp_path / "others", 2, size=(112, 84))

    def run(**options: bool) -> dict[str, str]:
        report = compare(
            "random:vggt-tiny",
            tmp_path / "pictures",
            output_dir=tmp_path / "out",
            schemes=[LABEL],
            calibrate=tmp_path / "others",
            width=56,
            repeats=1,
            warmup=0,
            threads=1,
            console=Console(quiet=True),
            **options,
        )
        return {row.label: row.status for row in report.rows}

    expected = {"torch/fp32": "done", f"torch/{LABEL}": "done", f"onnxruntime/{LABEL}": "done"}
    assert run() == expected
    out = tmp_path / "out"
    assert [path.name for path in (out / "work" / "prepared").iterdir()] == [LABEL]
    made = (out / "work" / "prepared" / LABEL / "prepared.json").stat().st_mtime_ns
    with (
        np.load(out / "outputs" / f"torch-{LABEL}.npz") as torch_outputs,
        np.load(out / "outputs" / f"onnxruntime-{LABEL}.npz") as onnx_outputs,
        np.load(out / "outputs" / "torch-fp32.npz") as reference,
    ):
        for name in ("depth", "world_points"):
            apart = np.abs(torch_outputs[name] - onnx_outputs[name]).max()
            lost = np.abs(torch_outputs[name] - reference[name]).max()
            assert apart < lost / 2
    # What was prepared is kept where a row is measured again.
    (out / "rows" / f"onnxruntime-{LABEL}.json").unlink()
    assert run(resume=True) == expected
    assert (out / "work" / "prepared" / LABEL / "prepared.json").stat().st_mtime_ns == made
    report = json.loads((out / "comparison_report.json").read_text())
    assert {row["treatment"] for row in report["rows"]} == {"", "smooth=0.5+gptq"}


def test_what_looks_at_pictures_needs_them(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="looks at pictures"):
        ask_calibration(None, "mse", parse_variants("int4_g32+gptq", "torch"))
    assert ask_calibration(None, "mse", parse_variants("int4_g32+w=mse", "torch")) is None


def test_the_label_goes_before_the_option() -> None:
    collected = Calibration("statistics", "absmax")

    def of(treatment: str) -> Calibration | Failure | None:
        return calibration_of(Variant("torch", "int8_pc_sym", "static", treatment), collected)

    assert of("") == collected
    assert of("a=p99.9+apart") == Calibration("statistics", "percentile:99.9", apart=True)
    assert calibration_of(Variant("torch", "int8_pc_sym"), collected) is None
    failure = Failure("calibrate", "no")
    assert calibration_of(Variant("torch", "int8_pc_sym", "static"), failure) is failure
    assert calibration_of(Variant("torch", "int8_pc_sym"), failure) is None


def test_the_option_is_not_swallowed(
    tmp_path: Path, write_pictures: Callable[..., tuple[Path, ...]]
) -> None:
    """--calibration-method where it would reach nothing, or not all that it seems to."""
    write_pictures(tmp_path / "p", 2, size=(112, 84))

    def ask(schemes: str, method: str = "absmax") -> object:
        return ask_calibration(tmp_path / "p", method, parse_variants(schemes, "torch"))

    with pytest.raises(UsageError, match="does not reach"):
        ask("int8_pc_sym+static,int8_pc_sym+static+smooth")
    with pytest.raises(UsageError, match="no variant has static"):
        ask("int4_g32+gptq")
    assert ask("int8_pc_sym+static,int8_pc_sym+static+a=absmax+smooth") is not None
    assert ask("int4_g32+gptq", "mse") is not None
