"""Checkpoint + scheme -> artifact: typed QDQ ONNX graphs, one weights file, a manifest.

The verb is `vggt_deploy.api.export`; the modules, in the order in which the work passes them:

    request      what was asked                     trace        the network as a graph, no weights
    simplify     the graph a reader wants           precision    FP16 and BF16 regions
    calibrate    ranges of static activations       materialize  weights to disk, quantized
    qdq          integers into the graph
    camera       the refinement loop                finish       names, opset, check
    verify       against the PyTorch variant        pipeline     all of it
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vggt_deploy.export.pipeline import ExportResult as ExportResult
    from vggt_deploy.export.pipeline import export as export

__all__ = ["ExportResult", "export"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from vggt_deploy.export import pipeline

    return getattr(pipeline, name)
