"""All rows together, what follows from them, and what a script may require."""

from __future__ import annotations

import json

import pytest

from vggt_deploy.doctor import Check, Diagnosis, diagnose
from vggt_deploy.doctor.abilities import abilities
from vggt_deploy.errors import RuntimeUnavailableError, UsageError


@pytest.fixture(scope="module")
def diagnosis() -> Diagnosis:
    return diagnose()


def test_every_row_of_this_machine(diagnosis: Diagnosis) -> None:
    names = [check.name for check in diagnosis.checks]
    assert len(names) == len({name.lower() for name in names})
    assert not any("," in name for name in names), "--require splits at commas"
    for check in diagnosis.checks:
        assert check.state in ("ok", "missing", "unknown")
        assert check.found
        assert bool(check.fix) == (check.state == "missing"), check
    assert json.loads(json.dumps(diagnosis.to_json()))["checks"][0]["name"] == "python"
    assert {"python", "cpu", "memory", "disk", "torch", "onnxruntime", "Jetson"} <= set(names)


def test_this_machine_can_export_build_with_rtx_and_run_on_its_cpu(diagnosis: Diagnosis) -> None:
    diagnosis.require(["export", "build tensorrt-rtx", "run onnxruntime", "TensorRT-RTX"])


ROWS = (
    Check("packages for run", "ok", "numpy"),
    Check("tensorrt", "ok", "10.3.0"),
    Check("cuda-bindings", "missing", "not installed", "install bindings"),
    Check("CUDA device", "missing", "no driver", "get a GPU"),
    Check("Jetson", "unknown", "a board without a release file"),
)


def test_an_ability_needs_all_of_its_rows() -> None:
    rows = {check.name: check for check in abilities(ROWS)}
    lacking = rows["run tensorrt"]
    assert (lacking.state, lacking.found) == ("missing", "lacks: cuda-bindings, CUDA device")
    assert lacking.fix == "install bindings; get a GPU"
    here = [*ROWS[:2], Check("cuda-bindings", "ok", "13"), Check("CUDA device", "ok", "H200")]
    rows = {check.name: check for check in abilities(here)}
    assert rows["run tensorrt"].state == "ok"
    assert rows["run tensorrt"].found.startswith("vggt-deploy run ENGINE")
    # No row of its own is as good as missing; unknown is not enough.
    assert rows["run onnxruntime"].found == "lacks: onnxruntime, onnxruntime CPU"
    doubtful = [*ROWS[:2], Check("cuda-bindings", "unknown", "?"), Check("CUDA device", "ok", "x")]
    assert {c.name: c for c in abilities(doubtful)}["run tensorrt"].state == "missing"
    # What has no advice of its own leaves no hole in the list.
    doubtful[-1] = Check("CUDA device", "missing", "no driver", "get a GPU")
    assert {c.name: c for c in abilities(doubtful)}["run tensorrt"].fix == "get a GPU"


def test_abilities_speak_of_rows_that_there_are(diagnosis: Diagnosis) -> None:
    names = {check.name for check in diagnosis.checks}
    for check in abilities([]):
        assert set(check.found.removeprefix("lacks: ").split(", ")) <= names


def test_require_names_all_that_is_missing() -> None:
    diagnosis = Diagnosis("1", ROWS)
    diagnosis.require(["TENSORRT", "packages for run"])
    diagnosis.require([])
    with pytest.raises(RuntimeUnavailableError) as caught:
        diagnosis.require(["tensorrt", "cuda-bindings", "cuda device", "jetson"])
    assert caught.value.exit_code == 1
    for part in ("cuda-bindings (not installed)", "CUDA device (no driver)", "Jetson ("):
        assert part in caught.value.message
    assert "tensorrt (" not in caught.value.message
    assert "install bindings; get a GPU" in caught.value.fix


def test_the_same_advice_is_given_once() -> None:
    rows = (
        Check("build tensorrt", "missing", "lacks: tensorrt", "install; it"),
        Check("run tensorrt", "missing", "lacks: tensorrt, CUDA device", "install; it; get a GPU"),
        Check("run tensorrt-rtx", "missing", "lacks: CUDA device", "get a GPU"),
    )
    with pytest.raises(RuntimeUnavailableError) as caught:
        Diagnosis("1", rows).require([row.name for row in rows])
    assert caught.value.fix == "install; it; get a GPU"


def test_require_refuses_a_name_it_does_not_know() -> None:
    with pytest.raises(UsageError, match="nothing called 'tensorflow'") as caught:
        Diagnosis("1", ROWS).require(["tensorrt", "tensorflow"])
    assert caught.value.exit_code == 2
    assert "CUDA device" in caught.value.fix
