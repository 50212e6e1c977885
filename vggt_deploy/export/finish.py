"""The last touch on a graph: names that a profiler's reader understands, opset, and the check."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import onnx_ir as ir

import vggt_deploy
from vggt_deploy.errors import ExportError
from vggt_deploy.export.graph import module_of
from vggt_deploy.export.rotary import CONTRIB_DOMAIN
from vggt_deploy.export.simplify import remove_unused
from vggt_deploy.export.trace import MODEL_PREFIX

# TensorRT 10.3 reads opsets up to 20; INT4 and block_size arrived with 21.
BASE_OPSET = 20
INT4_OPSET = 21
IR_VERSION = {BASE_OPSET: 9, INT4_OPSET: 10}


def finish(
    model: ir.Model,
    path: Path,
    *,
    four_bit: bool,
    name: str = "vggt",
    prefix: str = MODEL_PREFIX,
) -> int:
    """Name the nodes, set the versions, write and check. Returns the opset.

    Nodes are called `<module>/<operator>`, so that an engine's layer list and a profile say which
    layer of the checkpoint they mean. name: the graph's; prefix: of its modules, left out of names.

    Raises:
        ExportError: the ONNX checker refuses the graph.
    """
    opset = INT4_OPSET if four_bit else BASE_OPSET
    remove_unused(model)
    counts: Counter[str] = Counter()
    for graph in (model.graph, *model.graph.subgraphs()):
        for node in graph:
            _rename(node, counts, prefix)
            node.metadata_props.clear()
            node.doc_string = None
        for value in (*graph.inputs, *graph.outputs, *graph.initializers.values()):
            value.metadata_props.clear()
    model.graph.name = name
    model.graph.doc_string = model.doc_string = None
    model.graph.metadata_props.clear()
    model.metadata_props.clear()
    model.opset_imports.clear()
    model.opset_imports[""] = opset
    if any(node.domain == CONTRIB_DOMAIN for node in model.graph):
        model.opset_imports[CONTRIB_DOMAIN] = 1
    model.ir_version = IR_VERSION[opset]
    model.producer_name = "vggt-deploy"
    model.producer_version = vggt_deploy.__version__
    ir.save(model, path)
    try:
        onnx.checker.check_model(path, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(
            f"the ONNX checker refuses {path.name}: {error}",
            "this is a defect of vggt-deploy: report it with the command you ran",
        ) from error
    return opset


def _rename(node: ir.Node, counts: Counter[str], prefix: str) -> None:
    module = module_of(node).removeprefix(prefix)
    name = f"{module}/{node.op_type}" if module else str(node.name or node.op_type)
    number = counts[name]
    counts[name] += 1
    node.name = name if number == 0 else f"{name}_{number}"
