"""Ctrl-C while torch traces."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from vggt_deploy.errors import ExportError
from vggt_deploy.export import trace


def failing(interrupted: bool) -> Any:
    """`torch.onnx.export` as it fails: a second error hides the first, its own wraps both."""

    def export(*arguments: Any, **options: Any) -> None:
        try:
            try:
                raise KeyboardInterrupt if interrupted else ImportError
            except (KeyboardInterrupt, ImportError):
                raise AttributeError("module 'torch._dynamo' has no attribute 'exc'")  # noqa: B904
        except AttributeError as error:
            raise torch.onnx.errors.OnnxExporterError("step 1/3") from error

    return export


@pytest.mark.parametrize("interrupted, expected", [(True, KeyboardInterrupt), (False, ExportError)])
def test_an_interrupt_that_torch_hides_is_one(
    monkeypatch: pytest.MonkeyPatch, interrupted: bool, expected: type[BaseException]
) -> None:
    monkeypatch.setattr(torch.onnx, "export", failing(interrupted))
    with pytest.raises(expected):
        trace.to_graph(nn.Identity(), {"x": torch.zeros(1)}, ({},), ["y"])
