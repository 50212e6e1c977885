from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from vggt_deploy.doctor import tensorrt as subject
from vggt_deploy.doctor.one_node import one_node_model
from vggt_deploy.doctor.tensorrt import check_tensorrt
from vggt_deploy.engines.tensorrt.library import load_library
from vggt_deploy.engines.tensorrt.probe import build_smallest
from vggt_deploy.errors import BuildError


def test_tensorrt_rtx_builds_an_engine_without_a_gpu() -> None:
    check = check_tensorrt("tensorrt-rtx")
    assert check.state == "ok", check
    assert "built a one-node engine" in check.found


def test_a_library_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    check = check_tensorrt("tensorrt")
    assert check.state == "missing"
    assert "can't be imported" in check.found
    assert "vggt-deploy[tensorrt]" in check.fix


def test_a_library_that_builds_nothing_is_not_ok(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "one_node_model", lambda: b"not a model")
    check = check_tensorrt("tensorrt-rtx")
    assert check.state == "missing"
    assert "reads no ONNX model" in check.found
    assert check.fix


def test_a_model_that_can_not_be_built() -> None:
    """Input and output are named "x" and "y"; with an operator that there is not, parsing fails."""
    library = load_library("tensorrt-rtx")
    assert build_smallest(library, one_node_model()) > 1000
    with pytest.raises(BuildError, match="reads no ONNX model"):
        build_smallest(library, one_node_model().replace(b"Relu", b"Nope"))


@pytest.mark.parametrize(
    "builder, said",
    [
        ("none", "makes no builder here: no CUDA-capable device"),
        ("no plan", "builds no engine here: no CUDA-capable device"),
    ],
)
def test_tensorrt_without_a_gpu(builder: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What TensorRT does there: pybind11 finds no builder, or the build returns None."""
    real = load_library("tensorrt-rtx")

    class Builder:
        def __init__(self, log: Any) -> None:
            log.log(real.trt.ILogger.Severity.ERROR, "no CUDA-capable device is detected")
            if builder == "none":
                raise TypeError("pybind11::init(): factory function returned nullptr")

        def create_network(self) -> None:
            return None

        def create_builder_config(self) -> None:
            return None

        def build_serialized_network(self, network: None, config: None) -> None:
            return None

    fake = SimpleNamespace(
        __version__="11.1.0.106",
        ILogger=real.trt.ILogger,
        Builder=Builder,
        OnnxParser=lambda network, log: SimpleNamespace(parse=lambda model: True),
    )
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    check = check_tensorrt("tensorrt")
    assert check.state == "missing"
    assert said in check.found
    assert "--runtime tensorrt-rtx" in check.fix


@pytest.mark.gpu
def test_tensorrt_on_a_gpu() -> None:
    pytest.importorskip("tensorrt")
    assert check_tensorrt("tensorrt").state == "ok"
