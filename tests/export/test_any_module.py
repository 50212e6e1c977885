"""Networks of a few layers through `quantize.module` and `export.module`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

from torch import nn  # noqa: E402

from vggt_deploy.errors import CalibrationError, ExportError, UsageError, VerifyError  # noqa: E402
from vggt_deploy.export.module import export_module, open_session  # noqa: E402
from vggt_deploy.export.pipeline import GRAPH_NAMES  # noqa: E402
from vggt_deploy.quantize.apply import ModuleWeights  # noqa: E402
from vggt_deploy.quantize.methods import Method  # noqa: E402
from vggt_deploy.quantize.module import module_input_scales, observe_module  # noqa: E402
from vggt_deploy.quantize.prepared import Nearest  # noqa: E402
from vggt_deploy.quantize.qparams import QuantizedTensor  # noqa: E402
from vggt_deploy.quantize.schemes import (  # noqa: E402
    INT4_G32,
    INT8_PC_SYM,
    Activations,
    parse_format,
)


class Two(nn.Module):
    """A Linear, a convolution and a Linear that no example reaches; a constant of the code."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.fields = nn.Linear(4, 3)  # a name that means something inside of `export`
        self.unused = nn.Linear(3, 3)
        self.register_buffer("order", torch.tensor([2, 0, 1, 3]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = self.conv(x).mean((2, 3))[:, self.order]
        answer: torch.Tensor = self.fields(mean) * torch.tensor([1.0, 2.0, 4.0])
        return answer


@pytest.fixture
def two() -> Two:
    torch.manual_seed(0)
    return Two().eval()


PICTURES = {"x": torch.linspace(-1, 1, 3 * 2 * 64).reshape(3, 2, 8, 8).sin()}
FORMATS = {"conv": INT8_PC_SYM, "fields": INT8_PC_SYM}


def test_convolutions_indices_and_constants_of_the_code(two: Two, tmp_path: Path) -> None:
    artifact = export_module(two, PICTURES, ["y"], FORMATS, output_dir=tmp_path / "two")
    (got,) = open_session(artifact, "tensorrt").run(None, {"x": PICTURES["x"].numpy()})
    with torch.no_grad():
        want = two(PICTURES["x"]).numpy()
    np.testing.assert_allclose(got, want, atol=0.02 * np.abs(want).max())
    assert set(artifact.record.formats) == {"conv", "fields"}


@pytest.mark.parametrize("activations", ["float", "dynamic"])
def test_a_last_linear_without_bias_is_the_result_itself(
    activations: Activations, tmp_path: Path
) -> None:
    """Its product is an output of the graph: TensorRT's rank-1 term must be taken off that too."""
    torch.manual_seed(0)
    last = nn.Sequential(nn.Linear(6, 5, bias=False)).eval()
    inputs = {"x": torch.rand(3, 6)}
    form = parse_format("int8_pt_asym")
    artifact = export_module(
        last, inputs, ["y"], {"0": form}, output_dir=tmp_path / "a", activations=activations
    )
    errors = artifact.record.relative_l2_error
    assert errors is not None
    assert set(errors) == ({"onnxruntime"} if activations == "dynamic" else set(GRAPH_NAMES))
    assert max(errors[target]["y"] for target in errors) < 1e-5


def test_a_weight_that_two_layers_share_is_refused(tmp_path: Path) -> None:
    """The graph holds it once, under one of the names: the other layer would stay as it is."""
    tied = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)).eval()
    tied[1].weight = tied[0].weight
    with pytest.raises(ExportError, match="shares it with another"):
        export_module(
            tied,
            {"x": torch.rand(3, 6)},
            ["y"],
            {"0": INT8_PC_SYM, "1": INT8_PC_SYM},
            output_dir=tmp_path / "a",
        )
    assert list(tmp_path.iterdir()) == []


@dataclasses.dataclass
class Fickle:
    """Integers that are others when they are asked for again."""

    model: nn.Module
    asked: int = 0

    def quantized(self, layer, form, scale_dtype) -> QuantizedTensor:  # type: ignore[no-untyped-def]
        self.asked += 1
        found = Nearest(ModuleWeights(self.model)).quantized(layer, form, scale_dtype)
        factor = 1.0 if self.asked <= len(FORMATS) else 1.01
        return dataclasses.replace(found, scale=found.scale * factor)


def test_a_graph_that_computes_something_else_is_not_written(two: Two, tmp_path: Path) -> None:
    with pytest.raises(VerifyError, match="does not compute"):
        export_module(two, PICTURES, ["y"], FORMATS, Fickle(two), output_dir=tmp_path / "wrong")
    assert list(tmp_path.iterdir()) == []


def test_a_layer_that_the_graph_does_not_read_is_no_silent_float(two: Two, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="unused"):
        export_module(
            two, PICTURES, ["y"], {**FORMATS, "unused": INT8_PC_SYM}, output_dir=tmp_path / "a"
        )
    assert list(tmp_path.iterdir()) == []


def test_what_makes_no_sense_is_refused_before_the_trace(
    two: Two, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vggt_deploy.export.module.to_graph", None)
    folder = tmp_path / "refused"
    with pytest.raises(UsageError, match="no layer"):
        export_module(two, PICTURES, ["y"], {"third": INT4_G32}, output_dir=folder)
    with pytest.raises(CalibrationError, match="fields"):
        export_module(two, PICTURES, ["y"], FORMATS, output_dir=folder, activations="static")
    for axes in ({"x": {4: "n"}}, {"x": {1: "channels"}}, {"z": {0: "n"}}):
        with pytest.raises(UsageError, match="dynamic"):
            export_module(two, PICTURES, ["y"], FORMATS, output_dir=folder, dynamic=axes)
    with pytest.raises(UsageError, match="training"):
        export_module(two.train(), PICTURES, ["y"], FORMATS, output_dir=folder)
    with pytest.raises(UsageError, match="FP32"):
        export_module(two.eval().double(), PICTURES, ["y"], FORMATS, output_dir=folder)
    assert list(tmp_path.iterdir()) == []


def test_observing_leaves_the_network_as_it_was(two: Two) -> None:
    seen = observe_module(two, [PICTURES["x"], (PICTURES["x"],)])
    assert set(seen) == {"fields", "unused"}  # inputs of convolutions stay float
    assert seen["fields"].total == 2 * 3 * 4
    assert seen["unused"].total == 0
    two(PICTURES["x"])
    assert seen["fields"].total == 2 * 3 * 4
    assert not any(module._forward_pre_hooks for module in two.modules())
    with torch.no_grad():
        largest = two.conv(PICTURES["x"]).mean((2, 3)).abs().max()
    scales = module_input_scales(seen, ("conv", "fields"), Method("absmax"))
    assert scales == {"fields": pytest.approx(float(largest) / 127)}
    with pytest.raises(CalibrationError, match="unused was not called"):
        module_input_scales(seen, ("unused",), Method("absmax"))


def test_observing_refuses_training_mode_and_nothing(two: Two) -> None:
    with pytest.raises(UsageError, match="no batches"):
        observe_module(two, [])
    with pytest.raises(CalibrationError, match="NaN"):
        observe_module(two, [PICTURES["x"] * torch.nan])
    assert not any(module._forward_pre_hooks for module in two.modules())
    with pytest.raises(UsageError, match="training mode"):
        observe_module(two.train(), [PICTURES["x"]])
