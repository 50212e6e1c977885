"""Traces, kept: several schemes of one model and size start from the same graph.

The trace holds no weights and knows no scheme, and takes longer than everything else together for a
small model. A comparison of twenty schemes keeps it in its own folder under a name made of all that
it depends on; nothing is ever looked up elsewhere.

    <cache>/<digest>.main.onnx, <digest>.camera.onnx     initializers are names and shapes only
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import onnx_ir as ir
import torch

import vggt_deploy
from vggt_deploy.export.trace import TracedNetwork, trace
from vggt_deploy.model.config import VGGTConfig
from vggt_deploy.model.fields import GridFields
from vggt_deploy.outputs import OutputGroup

# Initializers keep the place of their data open; nothing reads a file of this name.
NO_DATA = "not-stored"


def cached_trace(
    cache: Path | None,
    config: VGGTConfig,
    groups: Sequence[OutputGroup],
    fields: GridFields,
    height: int,
    width: int,
    *,
    keep_layer_scale: bool,
) -> TracedNetwork:
    """`trace.trace`, or what it gave earlier for the same arguments and versions."""
    if cache is None:
        return trace(config, groups, fields, height, width, keep_layer_scale=keep_layer_scale)
    question = {
        "config": asdict(config),
        "outputs": [group.name for group in groups],
        "size": [height, width],
        "keep_layer_scale": keep_layer_scale,
        "versions": [vggt_deploy.__version__, torch.__version__, ir.__version__],
    }
    digest = hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()[:16]
    main, camera = cache / f"{digest}.main.onnx", cache / f"{digest}.camera.onnx"
    has_camera = any(group.head == "camera" for group in groups)
    if main.is_file() and (camera.is_file() or not has_camera):
        return TracedNetwork(ir.load(main), ir.load(camera) if has_camera else None)
    network = trace(config, groups, fields, height, width, keep_layer_scale=keep_layer_scale)
    cache.mkdir(parents=True, exist_ok=True)
    if network.camera is not None:
        _save(network.camera, camera)
    _save(network.main, main)
    return network


def _save(model: ir.Model, path: Path) -> None:
    for name, value in model.graph.initializers.items():
        assert value.dtype is not None
        assert value.shape is not None
        value.const_value = ir.ExternalTensor(
            NO_DATA, 0, 0, value.dtype, shape=value.shape, name=name
        )
    partial = path.with_suffix(f".{os.getpid()}.partial")
    ir.save(model, partial, format="protobuf")
    partial.replace(path)
