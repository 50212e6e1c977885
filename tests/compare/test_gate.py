"""The gates: what the file may say, and what becomes of a report that is held against them."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vggt_deploy.compare.environment import Environment
from vggt_deploy.compare.gate import check_gate
from vggt_deploy.compare.gates import Gates, Limits, Protocol, default_gates, load_gates
from vggt_deploy.compare.measures import Failure
from vggt_deploy.compare.metrics import TensorMetrics
from vggt_deploy.compare.paired import Difference, TruthLoss
from vggt_deploy.compare.protocol import MetricProtocol
from vggt_deploy.compare.report import SCHEMA, ComparisonReport, Row
from vggt_deploy.compare.truth import TruthMean
from vggt_deploy.errors import GateError, UsageError
from vggt_deploy.quantize.schemes import parse_label

SCENES = 8
SHA256 = "a" * 64
GATES = Gates(
    Protocol("vggt-nano", SCENES, 4, 84, 112),
    {
        "int8_pc_sym": Limits(auc30=1.0, auc5=2.0, abs_rel=0.01, point_error=0.01),
        "onnxruntime/int8_pc_sym": Limits(auc30=0.5),
        "int4_g128": Limits(auc30=5.0),
    },
)
TEXT = """
[protocol]
model = "vggt-nano"
scenes = 8
views = 4
height = 84
width = 112

[most.int8_pc_sym]
auc30 = 1
abs_rel = 0.5
"""


def made_row(
    label: str, auc30: float = 0.0, *, abs_rel: float | None = 0.0, n: int = SCENES
) -> Row:
    """A finished row that lost so much; `abs_rel` None: no true depth."""
    runtime, _, scheme = label.partition("/")
    name, activations = scheme.partition("+")[::2]

    def lost(value: float | None) -> Difference | None:
        return None if value is None else Difference(n, value, value - 0.1, value + 0.1)

    return Row(
        runtime,
        name,
        activations or "float",
        "done",
        "real",
        accuracy={"depth": TensorMetrics(values=1, nonfinite_variant=0, nonfinite_reference=0)},
        truth=truth_mean(n),
        truth_loss=TruthLoss(
            **dict.fromkeys(("auc_30", "auc_5", "auc_3"), lost(auc30)),
            **dict.fromkeys(("abs_rel", "point_error"), lost(abs_rel)),
            **dict.fromkeys(("abs_rel_affine", "overall_m", "f_score")),
        ),
    )


def truth_mean(scenes: int) -> TruthMean:
    """Means of those that have a gate; gates look at no others."""
    none = dict.fromkeys(field.name for field in fields(TruthMean))
    counts = dict.fromkeys(("scenes", "pose_scenes", "depth_scenes", "point_scenes"), scenes)
    gated = {"auc_3": 20.0, "auc_5": 40.0, "auc_30": 80.0, "abs_rel": 0.05, "point_error": 0.04}
    return TruthMean(**{**none, **counts, **gated, "f_scores": ()})  # type: ignore[arg-type]


def failed_row(label: str, status: Any, message: str) -> Row:
    row = made_row(label)
    failure = Failure("measure", message, unavailable=status == "not run")
    return replace(row, status=status, failure=failure, truth=None, truth_loss=None)


def made_report(*rows: Row, **question: Any) -> ComparisonReport:
    asked = {
        "model": {"spec": "vggt-nano", "kind": "package", "sha256": SHA256},
        "images": {"frames": 4, "height": 84, "width": 112},
    }
    return ComparisonReport(
        schema=SCHEMA,
        created="",
        folder=Path(),
        question=asked | question,
        environment=Environment("", "", "", (), 1, 1, None, {}),
        command=(),
        rows=(made_row("torch/fp32"), *rows),
        recommendations=(),
        notes=(),
        protocol=MetricProtocol("", "", "", "", ""),
    )


# -- verdicts ----------------------------------------------------------------------------------


def test_rows_within_their_limits_pass() -> None:
    result = check_gate(
        made_report(made_row("torch/int8_pc_sym", 0.9), made_row("torch/int4_g128", 4.9)), GATES
    )
    assert result.passed
    result.require()
    assert {line.verdict for line in result.checked} == {"within"}
    assert result.summary() == "gate passed: 5 limits of 2 rows hold"


def test_one_row_beyond_one_limit_is_named_with_numbers() -> None:
    result = check_gate(
        made_report(made_row("torch/int8_pc_sym", 1.5), made_row("torch/int4_g128", 4.9)), GATES
    )
    assert not result.passed
    (line,) = result.broken
    assert (line.label, line.quantity, line.found) == ("torch/int8_pc_sym", "auc30", 1.5)
    with pytest.raises(
        GateError, match=r"int8_pc_sym: auc30 lost 1\.5 \(1\.4 to 1\.6\), limit <= 1"
    ):
        result.require()
    assert any("beyond" in text and "1.5" in text for text in result.lines())


@given(st.floats(-100, 100), st.floats(0, 100))
def test_a_limit_holds_up_to_itself(found: float, limit: float) -> None:
    gates = replace(GATES, most={"int8_pc_sym": Limits(auc30=limit)})
    result = check_gate(made_report(made_row("torch/int8_pc_sym", found)), gates)
    assert result.passed == (found <= limit)


def test_not_a_number_is_beyond() -> None:
    assert not check_gate(made_report(made_row("torch/int4_g128", math.nan)), GATES).passed


def test_the_limit_of_a_runtime_goes_before_that_of_the_scheme() -> None:
    rows = [made_row(f"{runtime}/int8_pc_sym", 0.9) for runtime in ("torch", "onnxruntime")]
    result = check_gate(made_report(*rows), GATES)
    assert [line.label for line in result.broken] == ["onnxruntime/int8_pc_sym"]
    # And it is the whole of it: the scheme's other limits are not added.
    assert [x.quantity for x in result.checked if x.label.startswith("onnx")] == ["auc30"]


def test_static_activations_are_another_scheme() -> None:
    result = check_gate(
        made_report(made_row("torch/int8_pc_sym"), made_row("torch/int8_pc_sym+static", 99.0)),
        GATES,
    )
    assert result.passed
    assert result.ungated == ("torch/int8_pc_sym+static",)
    assert any("without a gate: torch/int8_pc_sym+static" in text for text in result.lines())


def test_a_failed_row_is_broken_and_says_why() -> None:
    rows = (made_row("torch/int8_pc_sym"), failed_row("torch/int4_g128", "failed", "SIGSEGV"))
    result = check_gate(made_report(*rows), GATES)
    with pytest.raises(GateError, match="torch/int4_g128: failed, SIGSEGV"):
        result.require()
    assert any("SIGSEGV" in text for text in result.lines())


def test_nan_in_an_output_that_the_truth_does_not_see_is_broken() -> None:
    row = made_row("torch/int8_pc_sym")
    spoiled = {"depth_conf": TensorMetrics(values=9, nonfinite_variant=1, nonfinite_reference=0)}
    result = check_gate(made_report(replace(row, accuracy=spoiled)), GATES)
    assert [line.verdict for line in result.broken] == ["failed"]
    assert check_gate(made_report(row), GATES).passed


@pytest.mark.parametrize("status", ["not run", "refused"])
def test_what_this_machine_cannot_run_is_said_and_decides_nothing(status: str) -> None:
    other = failed_row("tensorrt-rtx/int8_pc_sym", status, "no CUDA device")
    result = check_gate(made_report(made_row("torch/int8_pc_sym"), other), GATES)
    assert result.passed
    assert any("no CUDA device" in text for text in result.lines())
    alone = check_gate(made_report(other), GATES)
    assert not alone.passed  # nothing was held against anything
    with pytest.raises(GateError, match="no variant was held against a limit"):
        alone.require()


def test_a_quantity_without_truth_or_with_too_few_scenes_is_broken() -> None:
    no_depth = made_report(made_row("torch/int8_pc_sym", abs_rel=None))
    result = check_gate(no_depth, GATES)
    assert {line.quantity for line in result.broken} == {"abs_rel", "point_error"}
    assert {line.verdict for line in result.broken} == {"not measured"}
    few = made_report(made_row("torch/int8_pc_sym", n=SCENES - 1))
    assert "known of 7 scenes" in check_gate(few, GATES).broken[0].reason
    without = replace(made_row("torch/int8_pc_sym"), truth_loss=None)
    assert len(check_gate(made_report(without), GATES).broken) == 4


def test_gates_without_a_row_are_said() -> None:
    result = check_gate(made_report(made_row("torch/int8_pc_sym")), GATES)
    assert result.passed
    assert result.absent == ("onnxruntime/int8_pc_sym", "int4_g128")
    assert any("not in this report" in text for text in result.lines())


def test_a_report_without_any_gated_row_does_not_pass() -> None:
    assert not check_gate(made_report(made_row("torch/bf16")), GATES).passed
    assert not check_gate(made_report(), GATES).passed


# -- the reference -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "limits, passed",
    [
        (Limits(auc30=80.0, auc5=40.0, abs_rel=0.05, point_error=0.04), True),
        (Limits(auc30=80.1), False),
        (Limits(auc5=40.1), False),
        (Limits(abs_rel=0.0499), False),
        (Limits(point_error=0.0399), False),
    ],
)
def test_fp32_itself_has_to_be_good(limits: Limits, passed: bool) -> None:
    """Where all rows broke in the same way, none lost anything against FP32."""
    report = made_report(made_row("torch/int8_pc_sym"))
    assert check_gate(report, replace(GATES, reference=limits)).passed == passed


def test_a_good_reference_alone_is_no_pass() -> None:
    gates = replace(GATES, reference=Limits(auc30=1.0))
    assert not check_gate(made_report(), gates).passed


# -- the protocol ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "question, message",
    [
        ({"model": {"spec": "random:vggt-nano", "sha256": None}}, "the model is random:vggt-nano"),
        ({"images": {"frames": 5, "height": 84, "width": 112}}, "number of views is 5, not 4"),
        ({"images": {"frames": 4, "height": 70, "width": 112}}, "the height is 70, not 84"),
        ({"images": {"frames": 4, "height": 84, "width": 98}}, "the width is 98, not 112"),
    ],
)
def test_a_report_made_otherwise_is_refused(question: dict[str, Any], message: str) -> None:
    row = made_row("torch/int8_pc_sym")
    check_gate(made_report(row), GATES)
    with pytest.raises(GateError, match=message):
        check_gate(made_report(row, **question), GATES)


def test_the_hash_decides_where_it_is_given() -> None:
    row = made_row("torch/int8_pc_sym")
    gates = replace(GATES, protocol=replace(GATES.protocol, sha256=SHA256))
    by_file = {"spec": "run/model.safetensors", "sha256": SHA256}
    assert check_gate(made_report(row, model=by_file), gates).passed
    with pytest.raises(GateError, match="SHA-256 of the weights is bbb"):
        check_gate(made_report(row, model=by_file | {"sha256": "b" * 64}), gates)
    with pytest.raises(GateError, match="the model is run/model"):
        check_gate(made_report(row, model=by_file), GATES)


def test_too_few_scenes_or_none_with_truth() -> None:
    row = made_row("torch/int8_pc_sym")
    for reference in (
        made_row("torch/fp32", n=SCENES - 1),
        replace(made_row("torch/fp32"), truth=None),
    ):
        report = replace(made_report(row), rows=(reference, row))
        with pytest.raises(GateError, match="scenes with truth, the gates ask for 8"):
            check_gate(report, GATES)


# -- the file ----------------------------------------------------------------------------------


def loaded(tmp_path: Path, text: str) -> Gates:
    path = tmp_path / "gates.toml"
    path.write_text(text, encoding="utf-8")
    return load_gates(path)


def test_a_file_is_read_whole(tmp_path: Path) -> None:
    more = '[most."onnxruntime/int8_pc_sym+static"]\nauc5 = 2.5\n[reference]\nauc30 = 50\n'
    assert loaded(tmp_path, TEXT + more) == Gates(
        Protocol("vggt-nano", 8, 4, 84, 112),
        {
            "int8_pc_sym": Limits(auc30=1.0, abs_rel=0.5),
            "onnxruntime/int8_pc_sym+static": Limits(auc5=2.5),
        },
        Limits(auc30=50.0),
    )


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("auc30 = 1", "auc3O = 1", r"gates\.most\[int8_pc_sym\] has an unknown field 'auc3O'"),
        ("auc30 = 1", "auc30 = true", r"auc30 is bool, expected float"),
        ("auc30 = 1", "auc30 = '1'", r"auc30 is str"),
        ("auc30 = 1", "auc30 = nan", r"auc30 is nan, expected a number of 0 or more"),
        ("auc30 = 1", "auc30 = inf", r"auc30 is inf"),
        ("auc30 = 1", "auc30 = -0.1", r"auc30 is -0\.1"),
        ("auc30 = 1", "auc30 = 1\nauc30 = 2", "not TOML"),
        ("most.int8_pc_sym", "most.int9", "unknown scheme 'int9'"),
        ("most.int8_pc_sym", "most.'int4_g128+static'", "4-bit weights"),
        ("most.int8_pc_sym", "most.'int8_pc_sym+float'", "no row has this label"),
        ("most.int8_pc_sym", "most.'torch/int8_pc_sym+float'", "no row has this label"),
        ("most.int8_pc_sym", "most.'cuda/int8_pc_sym'", "unknown runtime 'cuda'"),
        ("most.int8_pc_sym", "most.'torch/fp32'", "this is the reference"),
        ("[most.int8_pc_sym]", "[least.int8_pc_sym]", "unknown field 'least'"),
        ("auc30 = 1\nabs_rel = 0.5", "", r"gates\.most\[int8_pc_sym\] holds no limit"),
        ("[most.int8_pc_sym]\nauc30 = 1\nabs_rel = 0.5", "[most]", "gates.most is empty"),
        ("views = 4", "", "lacks the field 'views'"),
        ("views = 4", "views = 0", "views is 0, expected 1 or more"),
        ("views = 4", "views = 4.0", "views is float"),
        ("views = 4", "view = 4", "unknown field 'view'"),
        ("width = 112", "width = 112\n[reference]", "gates.reference holds no limit"),
    ],
)
def test_what_makes_no_sense_is_refused_by_file_and_key(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert old in TEXT
    loaded(tmp_path, TEXT)
    with pytest.raises(UsageError, match=message) as caught:
        loaded(tmp_path, TEXT.replace(old, new))
    assert str(tmp_path / "gates.toml") in caught.value.message


def test_no_file_and_no_text(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="can't be read"):
        load_gates(tmp_path / "absent.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="can't be read"):
        load_gates(tmp_path / "binary.toml")


def test_the_gates_that_come_with_the_package() -> None:
    assert default_gates().is_file()
    gates = load_gates()
    assert gates.protocol.model == "vggt-nano"
    for label in gates.most:
        parse_label(label.rpartition("/")[2])
