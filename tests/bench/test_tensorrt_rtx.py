"""The table of engines: what it asks for, and what it says of a step that fails."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # bench is no part of the package

from bench import tensorrt_rtx
from bench.process import Settings, StepResult
from bench.tensorrt_rtx import VARIANTS, Row, main, precision_of, table
from bench.tensorrt_rtx_steps import STEPS
from vggt_deploy.quantize.targets import scheme_rows

BUILT = {
    "runtime_version": "1.7.1.116",
    "plan_bytes": 1_250_000_000,
    "weights_bytes": 1_200_000_000,
    "packed_bytes": 1_190_000_000,
    "shares": {"flops": {"int8": 0.75, "float": 0.25}},
    "attentions_half": 72,
    "half_unfused": 2,
}


def step(name: str, answer: dict[str, Any] | None = None, error: str | None = None) -> StepResult:
    return StepResult(name, 2.0, 3 << 30, error, answer or {})


def test_it_has_every_scheme_that_tensorrt_can_run() -> None:
    able = {
        row.scheme if row.activations == "float" else f"{row.scheme}+{row.activations}"
        for row in scheme_rows()
        if row.targets["tensorrt-rtx"].level != "no"
    }
    assert set(VARIANTS) == able
    assert len(VARIANTS) == len(able)
    assert [precision_of(v) for v in ("fp32", "bf16", "mixed")] == ["fp32", "bf16", "fp16"]


def test_a_row_of_the_table() -> None:
    row = Row("int8_pc_sym+static", "fp16", step("export"), step("build", BUILT))
    line = table([row]).splitlines()[2]
    assert [cell.strip() for cell in line.strip("|").split("|")] == [
        *("int8_pc_sym+static", "2.0", "2.0", "3.00", "3.00", "1250.0", "1200.0", "1190.0"),
        *("1.050", "int8 75.0%, float 25.0%", "70 of 72", ""),
    ]


def test_a_step_that_fails_is_a_row_with_its_error() -> None:
    no_export = Row("fp32", "fp32", step("export", error="disk is full"), None)
    no_build = Row("fp16", "fp16", step("export"), step("build", error="layer x | is wrong"))
    lines = table([no_export, no_build]).splitlines()
    assert "FAILED: disk is full" in lines[2]
    assert "FAILED: layer x / is wrong" in lines[3]
    assert len({line.count("|") for line in lines}) == 1
    assert "1.050" not in lines[3]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """Steps are answered here: `mixed` can't be exported, `fp16` can't be built."""
    calls: list[tuple[str, dict[str, Any]]] = []

    def answer(
        name: str, label: str, arguments: Mapping[str, Any], settings: Settings
    ) -> StepResult:
        assert settings.module == "bench.tensorrt_rtx_steps"
        assert name in STEPS
        calls.append((label, dict(arguments)))
        if label == "export-mixed" or label == "build-fp16":
            return step(name, error="on purpose")
        if name == "export":
            Path(arguments["folder"]).mkdir()
        return step(name, BUILT if name == "build" else {})

    monkeypatch.setattr(tensorrt_rtx, "run_step", answer)
    return calls


def test_every_variant_is_exported_then_built(
    asked: list[tuple[str, dict[str, Any]]], tmp_path: Path
) -> None:
    only = "fp16,mixed,int8_pc_sym+static,fp32"
    assert main(["--only", only, "--out", str(tmp_path), "--model", "random:vggt-tiny"]) == 1
    assert [label for label, _ in asked] == [
        *("calibrate", "export-fp16", "build-fp16", "export-mixed"),
        *("export-int8_pc_sym+static", "build-int8_pc_sym+static", "export-fp32", "build-fp32"),
    ]
    arguments = dict(asked)
    assert arguments["export-int8_pc_sym+static"]["statistics"].endswith("statistics")
    assert arguments["export-fp32"]["statistics"] is None
    saved = json.loads((tmp_path / "tensorrt_rtx.json").read_text())
    assert saved["finished"]
    assert [row["error"] for row in saved["rows"]] == ["on purpose", "on purpose", None, None]
    assert "FAILED: on purpose" in (tmp_path / "tensorrt_rtx.md").read_text()
    assert not (tmp_path / "tensorrt_rtx_work").exists()


def test_all_is_well(asked: list[tuple[str, dict[str, Any]]], tmp_path: Path) -> None:
    assert main(["--only", "fp32", "--out", str(tmp_path)]) == 0
    assert [label for label, _ in asked] == ["export-fp32", "build-fp32"]


def test_ctrl_c_shows_what_was_done(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted(*arguments: object) -> StepResult:
        raise KeyboardInterrupt

    monkeypatch.setattr(tensorrt_rtx, "run_step", interrupted)
    assert main(["--only", "fp32", "--out", str(tmp_path)]) == 130
    assert not json.loads((tmp_path / "tensorrt_rtx.json").read_text())["finished"]
    assert "INTERRUPTED" in (tmp_path / "tensorrt_rtx.md").read_text()


def test_an_unknown_variant_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--only", "int3"]) == 2
    assert "unknown variant 'int3'" in capsys.readouterr().err
