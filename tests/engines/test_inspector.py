"""Asking a live engine, with a TensorRT written here: the calls, their order, and what goes wrong.

`test_the_live_engine_agrees_with_its_builder` in `tests/build` asks a real one, on a GPU.
"""

from __future__ import annotations

import enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vggt_deploy.engines.tensorrt import inspector
from vggt_deploy.errors import DeployError, RuntimeUnavailableError
from vggt_deploy.records import FramesRange

FOLDER = Path("engine")


class Mode(enum.Enum):
    INPUT = 1
    OUTPUT = 2


class Engine:
    """An engine with one input; `calls` is what was asked of it."""

    def __init__(self, *, context: bool = True, shapes: bool = True) -> None:
        self.calls: list[Any] = []
        self.has_context = context
        self.takes_shapes = shapes
        self.names = {"images": Mode.INPUT, "depth": Mode.OUTPUT}
        self.num_io_tensors = len(self.names)

    def get_tensor_name(self, index: int) -> str:
        return list(self.names)[index]

    def get_tensor_mode(self, name: str) -> Mode:
        return self.names[name]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return {"images": (1, -1, 3, 42, 56), "depth": (1, -1, 42, 56, 1)}[name]

    def create_execution_context(self, strategy: str) -> Any:
        self.calls.append(("context", strategy))
        return self if self.has_context else None

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.calls.append(("shape", name, shape))
        return self.takes_shapes

    def create_engine_inspector(self) -> Any:
        self.calls.append("inspector")
        return SimpleNamespace(
            execution_context=None,
            get_engine_information=lambda kind: f"{kind} after {len(self.calls)} calls",
        )


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> Any:
    """An engine -> what the function makes of it; what was done before is in `engine.calls`."""

    def run(engine: Engine) -> str:
        trt = SimpleNamespace(
            ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="no memory"),
            TensorIOMode=Mode,
            LayerInformationFormat=SimpleNamespace(JSON="JSON"),
        )
        library = SimpleNamespace(trt=trt, title="TensorRT 0")
        cuda = SimpleNamespace(device="gpu", use=lambda: engine.calls.append("use"))
        loaded = SimpleNamespace(engine=engine, log=SimpleNamespace(explain=lambda: "its words"))

        def note(name: str, result: Any = None) -> Any:
            def call(*arguments: object) -> Any:
                engine.calls.append(name)
                return result

            return call

        for name, result in {
            "require_machine": (library, cuda),
            "require_version": None,
            "require_device": None,
            "load_engine": loaded,
        }.items():
            monkeypatch.setattr(inspector, name, note(name, result))
        record: Any = SimpleNamespace(profiles=(FramesRange(2, 3, 4), FramesRange(5, 6, 7)))
        return inspector.inspector_json(FOLDER, record)

    return run


def test_it_is_asked_for_the_typical_shapes_and_gets_no_memory(ask: Any) -> None:
    engine = Engine()
    assert ask(engine) == "JSON after 8 calls"
    assert engine.calls == [
        "require_machine",
        "require_version",
        "require_device",
        "use",
        "load_engine",
        ("context", "no memory"),
        ("shape", "images", (1, 3, 3, 42, 56)),
        "inspector",
    ]


@pytest.mark.parametrize(
    "options, words", [({"context": False}, "no execution context"), ({"shapes": False}, "refuses")]
)
def test_what_tensorrt_refuses_is_said_in_its_words(
    options: dict[str, bool], words: str, ask: Any
) -> None:
    with pytest.raises(DeployError, match=f"{words}.*its words"):
        ask(Engine(**options))


def test_nothing_is_loaded_on_the_wrong_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*arguments: object) -> None:
        raise RuntimeUnavailableError("no CUDA device", "use another machine")

    def load(*arguments: object) -> None:
        raise AssertionError("the plan was loaded")

    monkeypatch.setattr(inspector, "require_machine", refuse)
    monkeypatch.setattr(inspector, "load_engine", load)
    anything: Any = SimpleNamespace()
    with pytest.raises(RuntimeUnavailableError, match="no CUDA device"):
        inspector.inspector_json(FOLDER, anything)
