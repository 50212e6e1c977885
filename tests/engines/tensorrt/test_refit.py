"""Where TensorRT does not take the weights back: each refusal in words."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vggt_deploy.engines.tensorrt.library import Library
from vggt_deploy.engines.tensorrt.refit import refit_from_graph
from vggt_deploy.errors import BuildError


class Log:
    def explain(self) -> str:
        return "the engine was built without the refit flag"


def no_object(*given: Any) -> Any:
    """What pybind11 makes of a factory that returns null."""
    raise TypeError("__init__(): factory function returned nullptr")


@pytest.mark.parametrize("maker", ["Refitter", "OnnxParserRefitter"])
def test_an_engine_that_can_not_be_refitted(maker: str) -> None:
    module: Any = SimpleNamespace(
        Refitter=lambda engine, log: None, OnnxParserRefitter=lambda refitter, log: None
    )
    setattr(module, maker, no_object)
    with pytest.raises(BuildError, match="without the refit flag") as caught:
        refit_from_graph(Library(module, "tensorrt", "10.3.0"), None, Path("g.onnx"), Log())
    assert "--strip" in caught.value.fix
