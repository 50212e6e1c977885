"""VGGT as a graph, without its weights.

The network is built and traced on torch's meta device: tensors with a shape and no storage. The
1.26 billion parameters of VGGT-1B are therefore not in memory while the graph is made; they are
streamed into the weights file later, one at a time, under the names that the trace gave them.

    images [1, frames, 3, H, W] ──► pose_enc [1, frames, 9], depth [1, frames, H, W, 1], ...

`frames` is symbolic, H and W are fixed: position tables depend on them and are constants of the
graph (`fields.*`), computed once here instead of at every inference.

The camera head refines its pose four times with the same weights. One refinement is traced, as a
graph of its own; `camera` puts it back, as a loop or four times in a row.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import Tensor, nn

from vggt_deploy.errors import ExportError
from vggt_deploy.model.camera_head import POSE_SIZE, CameraHead
from vggt_deploy.model.config import VGGTConfig
from vggt_deploy.model.fields import GridFields
from vggt_deploy.model.vggt import VGGT
from vggt_deploy.outputs import OutputGroup

# 20 is the newest opset that TensorRT 10.3 (JetPack 6) reads, and the first with Gelu.
TRACE_OPSET = 20
FIELDS_PREFIX = "fields."
MODEL_PREFIX = "vggt."
INPUT_NAME = "images"
FRAMES_DIM = "frames"
MAX_TRACED_FRAMES = 4096
# Any number of frames above 2 traces the general graph: with 1 or 2, torch specialises the size.
TRACE_FRAMES = 3


# What the graph hands to the camera head's loop, in this order.
CAMERA_VALUES = ("camera_tokens", "camera_normalised", "camera_pose", "camera_total")


@dataclass(frozen=True)
class TracedNetwork:
    """`main` ends in CAMERA_VALUES (if there is a camera head), then the dense outputs; `camera`
    maps (pose, tokens, normalised) to the correction of the pose.
    """

    main: ir.Model
    camera: ir.Model | None


class _Main(nn.Module):
    """Flat inputs, flat outputs, tables as buffers: what the exporter wants to see."""

    def __init__(self, model: VGGT, fields: GridFields, tensors: Sequence[str]) -> None:
        super().__init__()
        self.vggt = model
        self.tensors = tuple(tensors)
        self.field_names = tuple(fields.named())
        self.fields = nn.Module()
        for name, table in named_fields(fields).items():
            self.fields.register_buffer(name, table.to("meta"), persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        tables = {name: self.fields.get_buffer(_flat(name)) for name in self.field_names}
        fields = GridFields.from_named(tables)
        camera, dense, _ = self.vggt.run_until_camera(images, fields)
        outputs = tuple(dense[name] for name in self.tensors)
        if camera is None:
            return outputs
        tokens, normalised = self.vggt.camera_head.prepare(camera)
        pose = self.vggt.camera_head.empty_pose_tokens.expand(tokens.shape[0], -1, -1)
        return tokens, normalised, pose, torch.zeros_like(pose), *outputs


class _CameraStep(nn.Module):
    """One refinement of the pose."""

    def __init__(self, model: VGGT) -> None:
        super().__init__()
        # Under the name it has in the whole network: initializers are called by it.
        self.vggt = nn.ModuleDict({"camera_head": model.camera_head})

    def forward(self, pose: Tensor, tokens: Tensor, normalised: Tensor) -> Tensor:
        head = self.vggt["camera_head"]
        assert isinstance(head, CameraHead)
        return head.refine(pose, tokens, normalised, 1)


def named_fields(fields: GridFields) -> dict[str, Tensor]:
    """Field tensors under names that a torch buffer can have (no dots)."""
    return {_flat(name): table for name, table in fields.named().items()}


def _flat(name: str) -> str:
    return name.replace(".", "_")


def trace(
    config: VGGTConfig,
    groups: Sequence[OutputGroup],
    fields: GridFields,
    height: int,
    width: int,
    *,
    keep_layer_scale: bool,
) -> TracedNetwork:
    """The graphs of the folded network for one image size.

    Initializers carry names and shapes but no data: `vggt.<key of the folded state dict>` and
    `fields.<field of GridFields>`.

    Raises:
        ExportError: torch could not trace the network.
    """
    heads = frozenset(group.head for group in groups)
    dense = [name for group in groups if group.head != "camera" for name in group.tensors]
    frames = torch.export.Dim(FRAMES_DIM, min=1, max=MAX_TRACED_FRAMES)
    with torch.device("meta"):
        model = VGGT(
            config,
            heads=heads,
            folded=True,
            keep_layer_scale=keep_layer_scale,
            attention="explicit",
        ).eval()
        images = torch.empty(1, TRACE_FRAMES, 3, height, width)
        pose = torch.empty(TRACE_FRAMES, 1, POSE_SIZE)
        tokens = torch.empty(TRACE_FRAMES, 1, 2 * config.embed)
    has_camera = "camera" in heads
    main = to_graph(
        _Main(model, fields, dense),
        {INPUT_NAME: images},
        ({1: frames},),
        [*(CAMERA_VALUES if has_camera else ()), *dense],
    )
    camera = None
    if has_camera:
        arguments = {"pose": pose, "tokens": tokens, "normalised": tokens.clone()}
        camera = to_graph(_CameraStep(model), arguments, ({0: frames},) * 3, ["pose_delta"])
    return TracedNetwork(main, camera)


def to_graph(
    module: nn.Module,
    arguments: dict[str, Tensor],
    dynamic_shapes: tuple[dict[int, torch.export.Dim], ...],
    output_names: list[str],
) -> ir.Model:
    """Any module as the exporter writes it; `arguments` are those of its forward, in order.

    Raises:
        ExportError: torch could not trace it.
    """
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                module.eval(),
                tuple(arguments.values()),
                dynamo=True,
                optimize=False,
                verbose=False,
                opset_version=TRACE_OPSET,
                input_names=list(arguments),
                output_names=output_names,
                dynamic_shapes=dynamic_shapes,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        if _was_interrupted(error):
            raise KeyboardInterrupt from error
        raise ExportError(
            f"torch.onnx could not trace the network: {error}",
            "this is a defect of vggt-deploy or a torch version it was not tested with; "
            "install the versions in constraints.txt",
        ) from error
    assert program is not None
    return program.model


def _was_interrupted(error: BaseException) -> bool:
    """Whether Ctrl-C is behind the error: torch trips over one that comes while it imports parts of
    itself (`torch._dynamo has no attribute exc`) and reports that instead.
    """
    pending: list[BaseException | None] = [error]
    seen: set[int] = set()
    while pending:
        one = pending.pop()
        if isinstance(one, KeyboardInterrupt):
            return True
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            pending += [one.__cause__, one.__context__]
    return False


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks about torchvision and treespecs off the user's screen."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
