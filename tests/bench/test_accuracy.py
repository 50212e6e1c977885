"""The accuracy bench: which rows, the same scenes for all, losses with the right sign, resuming."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # bench is no part of the package

from bench import accuracy, accuracy_steps, modelopt_rows
from bench.accuracy_report import BOTH, Finding, Report, beside_modelopt, table, to_csv
from bench.accuracy_rows import FP32, LABELS, Row, choose, counterparts
from bench.accuracy_scenes import (
    CALIBRATION,
    CALIBRATION_SEED,
    SceneQuestion,
    ensure_scenes,
    read_set,
)
from bench.modelopt_rows import BY_LABEL, ROWS, configuration
from bench.process import Settings, StepResult
from vggt_deploy.data.scenes import INDEX
from vggt_deploy.data.synthetic import HELD_OUT, render_views
from vggt_deploy.errors import ArtifactError, ModelError, QuantizeError, UsageError
from vggt_deploy.model.weights import open_weights
from vggt_deploy.quantize.plan import layers_of, plan
from vggt_deploy.quantize.prepare import PrepareRequest, prepare
from vggt_deploy.quantize.schemes import get_scheme, parse_label
from vggt_deploy.train.evaluate import SETS

SMALL = SceneQuestion(
    scenes=2, views=2, height=84, width=112, calibration_scenes=1, calibration_views=2
)
ARGUMENTS = ("--scenes", "2", "--views", "2", "--threads", "1", "--calibration-scenes", "1")


# --- which rows ---------------------------------------------------------------------------------


def test_fp32_comes_first_and_rows_of_the_same_bits_stand_together() -> None:
    rows = choose(None, "all")
    assert rows[0] == Row(FP32, "fp32")
    assert {row.label for row in rows} == {FP32, *LABELS, *BY_LABEL}
    bits = [row.bits for row in rows]
    changes = sum(a != b for a, b in pairwise(bits))
    assert changes == len(set(bits)) - 1


def test_every_row_of_modelopt_has_one_of_ours_beside_it() -> None:
    assert counterparts(choose(None, "all")) == tuple((row.label, row.beside) for row in ROWS)
    for row in ROWS:
        layers, beside = parse_label(row.layers), parse_label(row.beside)
        assert (layers.scheme, layers.activations) == (beside.scheme, beside.activations)
    assert counterparts(choose("int4_g128", "modelopt:int4,modelopt:int4_awq")) == (
        ("modelopt:int4", "int4_g128"),
    )


@pytest.mark.parametrize(
    "labels, modelopt",
    [
        ("int4_g128,int5", "none"),
        ("int4_g128,int4_g128", "none"),
        ("int4_g128+static", "none"),
        (None, "modelopt:int5"),
    ],
)
def test_a_row_that_can_not_be_is_refused(labels: str | None, modelopt: str) -> None:
    with pytest.raises(UsageError):
        choose(labels, modelopt)


# --- the scenes ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "scenes"
    assert ensure_scenes(folder, SMALL, threads=1)
    return folder


def test_scenes_are_the_sets_of_the_evaluation_with_their_truth(scenes: Path) -> None:
    for one, family in zip(SETS, (None, HELD_OUT), strict=True):
        found = list(read_set(scenes, one.name))
        assert [scene.name for scene in found] == [
            f"{one.name}/{one.first_seed + i}" for i in range(2)
        ]
        drawn = render_views(one.first_seed + 1, views=2, height=84, width=112, family=family)
        truth = found[1].truth
        assert truth is not None
        np.testing.assert_array_equal(found[1].pixels[1, 2] * 255, drawn.images[1, :, :, 2])
        np.testing.assert_array_equal(truth.extrinsic, drawn.extrinsic)
        np.testing.assert_array_equal(truth.depth, drawn.depth)


def test_what_is_calibrated_on_is_in_no_set(scenes: Path) -> None:
    listed = json.loads((scenes / CALIBRATION / INDEX).read_text())["scenes"]
    seeds = {scene["seed"] for scene in listed}
    assert seeds == {CALIBRATION_SEED}
    for one in SETS:
        assert not seeds & set(range(one.first_seed, one.first_seed + 1000))


def test_scenes_are_rendered_once_and_again_for_another_question(tmp_path: Path) -> None:
    question = SceneQuestion(1, 2, 28, 42, 1, 1)
    folder = tmp_path / "scenes"
    assert ensure_scenes(folder, question, threads=1)
    assert not ensure_scenes(folder, question, threads=1)
    assert ensure_scenes(folder, SceneQuestion(1, 3, 28, 42, 1, 1), threads=1)
    assert next(read_set(folder, "unseen")).pixels.shape == (3, 3, 28, 42)
    (folder / "key.json").write_text("{")  # cut short
    assert ensure_scenes(folder, question, threads=1)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_text("mine")
    with pytest.raises(ArtifactError):
        ensure_scenes(tmp_path, SMALL, threads=1)
    assert (tmp_path / "holiday.jpg").read_text() == "mine"


@pytest.mark.parametrize("wrong", [{"scenes": 0}, {"views": 1}, {"calibration_views": 0}])
def test_a_question_without_an_answer_is_refused(wrong: dict[str, int]) -> None:
    right = asdict(SceneQuestion(1, 2, 28, 28, 1, 1))
    with pytest.raises(UsageError):
        SceneQuestion(**{**right, **wrong})


# --- the steps ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(scenes: Path) -> dict[str, Any]:
    return {
        "model": "vggt-nano",
        "sha256": open_weights("vggt-nano")[1].origin.sha256,
        "folder": str(scenes.parent),
        "height": 84,
        "width": 112,
        "views": 2,
        "threads": 1,
    }


@pytest.fixture(scope="module")
def reference(run: dict[str, Any]) -> dict[str, Any]:
    return accuracy_steps.fp32(run)


def errors(answer: Mapping[str, Any]) -> list[float]:
    return [scene["output_error"] for one in SETS for scene in answer["measures"][one.name]]


def test_fp32_is_its_own_reference(reference: dict[str, Any]) -> None:
    assert errors(reference) == [0.0] * 4
    for one in SETS:
        for scene in reference["measures"][one.name]:
            assert set(scene) >= {"auc3", "auc5", "auc30", "abs_rel", "point_error"}


def test_weights_that_change_while_it_runs_are_refused(run: dict[str, Any]) -> None:
    for step, label in (
        (accuracy_steps.ours, "int4_g128"),
        (accuracy_steps.modelopt, "modelopt:int4"),
    ):
        with pytest.raises(ModelError, match="changed since"):
            step(label, {**run, "sha256": "of others"})


def test_prepared_weights_are_a_row(
    run: dict[str, Any], reference: dict[str, Any], tmp_path: Path
) -> None:
    """Plain rounding, as a folder and as a label, measures the same; another format does not."""
    (tmp_path / "q").mkdir()
    config, source = open_weights(run["model"])
    request = PrepareRequest(parse_label("int4_g32+w=mse"), "fp32", run["height"], run["width"])
    prepare(config, source, request, tmp_path / "q")
    rows = choose("int4_g32", "none", [tmp_path / "q"])
    assert [row.label for row in rows] == ["fp32", "int4_g32", "int4_g32+w=mse"]
    assert rows[2].bits == rows[1].bits
    assert rows[2].prepared == (tmp_path / "q").resolve()
    mine = accuracy_steps.prepared(str(tmp_path / "q"), run)
    same = accuracy_steps.ours("int4_g32+w=mse", run)
    other = accuracy_steps.ours("int4_g32", run)
    assert mine["measures"] == same["measures"] != other["measures"]
    assert mine["stored_bytes"] == same["stored_bytes"]
    with pytest.raises(ArtifactError, match=r"holds no prepared\.json"):
        choose("int4_g32", "none", [tmp_path])


def test_fewer_bits_lose_more_and_take_less(reference: dict[str, Any], run: dict[str, Any]) -> None:
    eight, four = (accuracy_steps.ours(label, run) for label in ("int8_pc_sym", "int4_g128"))
    assert all(0 < a < b / 3 for a, b in zip(errors(eight), errors(four), strict=True))
    assert four["stored_bytes"] < eight["stored_bytes"] < reference["stored_bytes"] / 2.5
    assert reference["config"] == "vggt-nano"


def test_a_label_that_needs_pictures_looks_at_those_of_the_run(
    reference: dict[str, Any], run: dict[str, Any]
) -> None:
    plain = accuracy_steps.ours("int8_pc_sym", run)
    static = accuracy_steps.ours("int8_pc_sym+static", run)
    assert max(errors(static)) > max(errors(plain))  # inputs of 8 bit lose something
    assert max(errors(static)) < 0.2
    assert static["seconds"] > 0
    assert not list(Path(run["folder"]).glob(".prepare-*"))  # nothing stays behind


# --- what is said about them --------------------------------------------------------------------


def measured(label: str, step: str, auc: float, depth: float, error: float) -> Finding:
    """The same numbers on every one of three scenes of each set, but for what makes scenes hard."""
    hard = (0.0, 10.0, 30.0)
    scenes = [
        {"auc5": 60 - h + auc, "abs_rel": 0.1 + h / 100 + depth, "output_error": error}
        for h in hard
    ]
    answer = {
        "stored_bytes": 5_000_000,
        "seconds": 2.0,
        "remarks": [],
        "measures": {one.name: scenes for one in SETS},
    }
    return Finding(Row(label, step), StepResult(step, 3.0, 1 << 30, None, answer))  # type: ignore[arg-type]


@pytest.fixture
def report() -> Report:
    findings = (
        measured(FP32, "fp32", 0.0, 0.0, 0.0),
        measured("int4_g128", "ours", -2.5, 0.03, 0.1),
        measured("int4_g128+gptq", "ours", +1.0, -0.01, 0.05),
        measured("modelopt:int4", "modelopt", -4.5, 0.02, 0.2),
        Finding(Row("int4_g64", "ours"), StepResult("ours", 1.0, None, "no | disk")),
        Finding(Row("modelopt:int4_awq", "modelopt"), None, modelopt_rows.NOT_INSTALLED),
    )
    return Report(findings)


def cells(text: str, label: str) -> dict[str, str]:
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    row = next(line for line in lines if line[0] == label)
    return dict(zip(lines[0], row, strict=True))


def test_losses_are_by_scene_and_above_zero_is_worse(report: Report) -> None:
    text = table(report, BOTH)
    worse, better = cells(text, "int4_g128"), cells(text, "int4_g128+gptq")
    # All scenes lose the same, however hard they are: the interval has no width.
    assert worse["AUC@5 lost"] == "+2.50 (+2.50, +2.50)"
    assert worse["AbsRel more"] == "+0.0300 (+0.0300, +0.0300)"
    assert better["AUC@5 lost"] == "-1.00 (-1.00, -1.00)"
    assert better["AbsRel more"] == "-0.0100 (-0.0100, -0.0100)"
    assert cells(text, FP32)["AUC@5 lost"] == f"{60 - 40 / 3:.2f}"
    assert worse["AUC@3 lost"] == "-"  # not measured is not 0


def test_a_row_without_numbers_says_why(report: Report) -> None:
    text = table(report, BOTH)
    assert cells(text, "int4_g64")["remark"] == "FAILED: no / disk"
    assert cells(text, "modelopt:int4_awq")["remark"].startswith("not run: nvidia-modelopt")
    assert cells(text, "int4_g64")["AUC@5 lost"] == "-"
    assert "remark" not in table(report, "unseen")
    assert [finding.failed for finding in report.findings] == [False] * 4 + [True, False]


def test_beside_modelopt_is_theirs_minus_ours(report: Report) -> None:
    pairs = (("modelopt:int4", "int4_g128"), ("modelopt:int4_awq", "int4_g128+gptq"))
    text = beside_modelopt(report, pairs).partition("\n\n|")[2]
    row = cells(f"|{text}", "modelopt:int4")
    assert row["ours"] == "int4_g128"
    assert row["AUC@5"] == "+2.00 (+2.00, +2.00)"
    assert row["AbsRel"] == "-0.0100 (-0.0100, -0.0100)"
    assert "modelopt:int4_awq" not in text  # it has no numbers
    assert beside_modelopt(report, pairs[1:]) == ""


def test_the_csv_has_every_number_once(report: Report) -> None:
    lines = list(csv.DictReader(io.StringIO(to_csv(report))))
    keys = [(line["row"], line["set"], line["measure"]) for line in lines]
    assert len(set(keys)) == len(keys) == 4 * 3 * 3
    one = lines[keys.index(("int4_g128", "unseen", "auc5"))]
    assert float(one["lost"]) == pytest.approx(2.5)
    assert (one["scenes"], one["bits"], one["stored_bytes"]) == ("3", "int4_g128", "5000000")


# --- the whole ----------------------------------------------------------------------------------


class Steps:
    """The steps without their processes: what they answer is made up, what they write is not."""

    def __init__(self, *, failing: str = "", interrupting: str = "") -> None:
        self.failing, self.interrupting = failing, interrupting
        self.done: list[str] = []

    def __call__(
        self, step: str, name: str, arguments: Mapping[str, Any], settings: Settings
    ) -> StepResult:
        label = arguments.get("label", FP32)
        if label == self.interrupting:
            raise KeyboardInterrupt
        self.done.append(label)
        if label == self.failing:
            return StepResult(step, 1.0, None, "on purpose")
        error = 0.0 if label == FP32 else 0.1
        result = measured(label, step, -1.0 * len(self.done), 0.0, error).result
        assert result is not None
        return result


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    monkeypatch.setattr(accuracy, "ensure_scenes", lambda *a, **k: False)
    monkeypatch.setattr(accuracy.modelopt_rows, "installed", lambda: False)
    monkeypatch.setattr(accuracy, "source_hash", lambda folder: "as it is")
    for one in SETS:
        (tmp_path / f"reference_{one.name}.npz").touch()

    def run(steps: Steps, *more: str, labels: str = "int4_g128,int4_g64") -> int:
        monkeypatch.setattr(accuracy, "run_step", steps)
        return accuracy.main([*ARGUMENTS, "--labels", labels, "--out", str(tmp_path), *more])

    return run


def test_a_run_writes_everything(bench: Callable[..., int], tmp_path: Path) -> None:
    assert bench(Steps()) == 0
    data = json.loads((tmp_path / "accuracy.json").read_text())
    assert data["finished"] is True
    rows = {row["label"]: row for row in data["rows"]}
    assert rows["int4_g64"]["sets"]["both"]["auc5"]["lost"] == pytest.approx(2.0)
    assert len(rows["int4_g64"]["scenes"]["unseen"]) == 3
    assert rows["modelopt:int4"]["error"] == modelopt_rows.NOT_INSTALLED
    assert (tmp_path / "accuracy.png").stat().st_size > 10_000
    assert "NOT FINISHED" not in (tmp_path / "accuracy.md").read_text()


def test_a_row_that_fails_does_not_end_the_run(bench: Callable[..., int], tmp_path: Path) -> None:
    steps = Steps(failing="int4_g128")
    assert bench(steps) == 1
    assert steps.done == [FP32, "int4_g128", "int4_g64"]
    assert "FAILED: on purpose" in (tmp_path / "accuracy.md").read_text()


def test_without_fp32_there_is_nothing_to_compare_with(
    bench: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    steps = Steps(failing=FP32)
    assert bench(steps) == UsageError.exit_code
    assert steps.done == [FP32]
    assert "on purpose" in capsys.readouterr().err


def test_an_interrupted_run_goes_on_where_it_stopped(
    bench: Callable[..., int], tmp_path: Path
) -> None:
    assert bench(Steps(interrupting="int4_g64")) == accuracy.INTERRUPTED
    assert "NOT FINISHED" in (tmp_path / "accuracy.md").read_text()
    assert json.loads((tmp_path / "accuracy.json").read_text())["finished"] is False
    steps = Steps()
    assert bench(steps, "--resume") == 0
    assert steps.done == ["int4_g64"]
    (tmp_path / "reference_unseen.npz").unlink()
    lost = Steps()
    assert bench(lost, "--resume") == 0  # what rows are compared with is gone
    assert lost.done == [FP32, "int4_g128", "int4_g64"]
    again = Steps()
    assert bench(again) == 0  # without --resume nothing is kept
    assert again.done == [FP32, "int4_g128", "int4_g64"]


def test_rows_of_another_question_or_code_are_not_taken(
    bench: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert bench(Steps(), "--resume") == ArtifactError.exit_code  # nothing to go on with
    assert bench(Steps()) == 0
    assert bench(Steps(), "--resume", "--views", "3") == ArtifactError.exit_code
    assert "another question" in capsys.readouterr().err
    assert bench(Steps(), "--resume") == 0
    monkeypatch.setattr(accuracy, "source_hash", lambda folder: "other code")
    assert bench(Steps(), "--resume") == ArtifactError.exit_code


# --- ModelOpt -----------------------------------------------------------------------------------

PUBLISHED = {
    "quant_cfg": [
        {"quantizer_name": "*", "enable": False},
        {"quantizer_name": "*weight_quantizer", "cfg": {"num_bits": 8, "axis": 0}},
        {"quantizer_name": "*input_quantizer", "cfg": {"num_bits": 8, "axis": None}},
        {"quantizer_name": "*lm_head*", "enable": False},
    ],
    "algorithm": "smoothquant",
}


def test_modelopt_is_told_the_layers_of_ours_one_by_one() -> None:
    from vggt_deploy.model.config import get_config

    layers = layers_of(get_config("vggt-nano"), accuracy_steps.HEADS)
    formats = plan(get_scheme("int8_pc_sym"), layers)
    chosen = [layer for layer in layers if layer.name in formats]
    row = BY_LABEL["modelopt:int8_smoothquant_0.5"]
    asked = configuration(PUBLISHED, row, chosen)
    entries = {entry["quantizer_name"]: entry for entry in asked["quant_cfg"]}
    assert asked["quant_cfg"][0] == {"quantizer_name": "*", "enable": False}
    assert asked["algorithm"] == {"method": "smoothquant", "alpha": 0.5}
    weights = {name.removesuffix(".weight_quantizer") for name in entries if "weight_" in name}
    inputs = {name.removesuffix(".input_quantizer") for name in entries if "input_" in name}
    assert weights == set(formats)
    assert inputs == {layer.name for layer in chosen if layer.kind == "linear"}
    for layer in chosen:
        if layer.kind != "linear":
            cfg = entries[f"{layer.name}.weight_quantizer"]["cfg"]
            assert cfg == {"num_bits": 8, "axis": layer.axis}
    assert configuration(PUBLISHED, BY_LABEL["modelopt:int8"], chosen)["algorithm"] == "smoothquant"


def test_a_configuration_of_another_make_is_refused() -> None:
    with pytest.raises(QuantizeError, match=r"\*weight_quantizer"):
        configuration({"quant_cfg": [], "algorithm": "max"}, ROWS[0], [])


def test_a_quantizer_too_many_or_too_few_is_an_error() -> None:
    def quantizer(on: bool) -> nn.Module:
        module = nn.Identity()
        module.is_enabled = on
        return module

    network = nn.ModuleDict({name: nn.Module() for name in ("a", "b")})
    network["a"].weight_quantizer = quantizer(True)
    network["b"].weight_quantizer = quantizer(False)
    modelopt_rows._require(network, "weight_quantizer", {"a"})
    for wrong in ({"a", "b"}, {"b"}, set()):
        with pytest.raises(QuantizeError):
            modelopt_rows._require(network, "weight_quantizer", wrong)


def test_a_module_without_quantizers_has_no_multiplication() -> None:
    assert modelopt_rows._pre_scale(nn.Linear(2, 2)) is None
    smoothed = nn.Module()
    object.__setattr__(smoothed, "input_quantizer", SimpleNamespace(pre_quant_scale=3))
    assert modelopt_rows._pre_scale(smoothed) == 3


def test_modelopt_rounds_weights_as_we_do(reference: dict[str, Any], run: dict[str, Any]) -> None:
    """Its 4-bit blocks without calibration are our groups: the two tables have one zero."""
    pytest.importorskip("modelopt", reason="nvidia-modelopt is an extra")
    theirs = accuracy_steps.modelopt("modelopt:int4", run)
    ours = accuracy_steps.ours("int4_g128", run)
    other = accuracy_steps.ours("int4_g64", run)
    assert errors(theirs) == pytest.approx(errors(ours), rel=0.05)
    assert errors(theirs) != pytest.approx(errors(other), rel=0.05)
    assert theirs["stored_bytes"] == ours["stored_bytes"]
    assert theirs["version"]
