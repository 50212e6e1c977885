from __future__ import annotations

import warnings

import pytest

from vggt_deploy.doctor import onnxruntime as subject
from vggt_deploy.doctor import packages
from vggt_deploy.doctor.one_node import one_node_model
from vggt_deploy.doctor.onnxruntime import check_onnxruntime, check_provider


def test_the_hand_made_model_is_valid_onnx() -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load_from_string(one_node_model())
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["Relu"]


def test_a_library_that_does_not_import(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: str) -> None:
        raise OSError("libcudart.so.12: cannot open shared object file")

    monkeypatch.setattr(packages.importlib, "import_module", broken)
    (check,) = check_onnxruntime()
    assert check.state == "missing"
    assert "does not import: libcudart.so.12" in check.found


def test_the_cpu_provider_runs_a_model() -> None:
    rows = {check.name: check for check in check_onnxruntime()}
    assert rows["onnxruntime CPU"].state == "ok"


def test_a_provider_that_is_only_claimed_is_not_ok() -> None:
    """A build that offers a provider which no session gets: the runtime falls back, we say so."""
    ort = pytest.importorskip("onnxruntime")
    name = "CUDAExecutionProvider"
    if name in ort.get_available_providers():
        pytest.skip("this build has the CUDA provider")
    assert check_provider(ort, name, ["CPUExecutionProvider"]).found.startswith("not part of")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check = check_provider(ort, name, [name])
    assert check.state == "missing"
    assert "vggt-deploy[gpu]" in check.fix


def test_a_provider_that_can_not_run_the_model_is_not_ok(monkeypatch: pytest.MonkeyPatch) -> None:
    ort = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(subject, "one_node_model", lambda: b"not a model")
    check = check_provider(ort, "CPUExecutionProvider", ["CPUExecutionProvider"])
    assert check.state == "missing"
    assert check.found


def test_both_builds_of_onnxruntime_together_are_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(subject, "installed_version", lambda _: "1.0")
    check = check_onnxruntime()[0]
    assert check.state == "missing"
    assert "overwrite each other" in check.found
