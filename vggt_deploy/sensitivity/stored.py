"""The numbers of an artifact, read back from its own weights file.

`quantize.layout` says how a weight lies in the file; here it is turned round again. So a network in
PyTorch can hold exactly what the artifact holds, damage included.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from vggt_deploy.errors import ArtifactError
from vggt_deploy.export.trace import MODEL_PREFIX
from vggt_deploy.quantize.plan import LayerInfo
from vggt_deploy.quantize.qparams import QuantizedTensor
from vggt_deploy.quantize.schemes import PerChannel, PerGroup, Precision, WeightFormat
from vggt_deploy.records import GraphRecord


@dataclass(frozen=True)
class StoredIntegers:
    """`quantize.prepared.Integers` of one graph file; `tensors` by initializer name."""

    file: str
    tensors: Mapping[str, ir.TensorProtocol]

    @classmethod
    def open(cls, artifact: Path, record: GraphRecord) -> StoredIntegers:
        """Of the graph and its subgraphs (the camera head's loop)."""
        model = ir.load(artifact / record.file)
        tensors = {
            str(name): value.const_value
            for graph in (model.graph, *model.graph.subgraphs())
            for name, value in graph.initializers.items()
            if value.const_value is not None
        }
        return cls(record.file, tensors)

    def quantized(
        self, layer: LayerInfo, form: WeightFormat, scale_dtype: Precision
    ) -> QuantizedTensor:
        """The layer's integers in torch's layout.

        Raises:
            ArtifactError: the file holds the layer otherwise.
        """
        q = _integers(self._array(f"{layer.name}.q"), layer)
        scale = self._array(f"{layer.name}.scale").float()
        held = f"{layer.name}.zero_point" in self.tensors
        zero = self._array(f"{layer.name}.zero_point") if held else torch.zeros_like(scale)
        unfolded = layer.kind == "conv_transpose"
        scale, zero = (_parameters(value, layer, form, unfolded) for value in (scale, zero))
        if tuple(q.shape) != layer.shape:
            raise ArtifactError(
                f"{self.file} holds {layer.name} as {list(q.shape)}, not {list(layer.shape)}",
                "the artifact is of another model: give its own with --model",
            )
        return QuantizedTensor(q, scale, zero.to(torch.int8), form, layer.axis, scale_dtype)

    def input_scale(self, layer: str) -> float | None:
        """The scale of a static activation, None where there is none."""
        name = f"{layer}.input_scale"
        return float(self._array(name)) if name in self.tensors else None

    def vectors(self) -> dict[str, Tensor]:
        """Float tensors of one dimension (biases, norms) by their key in the state dict."""
        return {
            name.removeprefix(MODEL_PREFIX): _torch(tensor).float()
            for name, tensor in self.tensors.items()
            if name.startswith(MODEL_PREFIX) and len(tensor.shape) == 1
        }

    def _array(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise ArtifactError(
                f"{self.file} has no {name}, which its manifest promises", "export it again"
            )
        return _torch(self.tensors[name])


def _torch(tensor: ir.TensorProtocol) -> Tensor:
    """As torch holds it; INT4 and BF16, which NumPy lacks, as INT8 and FP32."""
    array = tensor.numpy()
    if tensor.dtype == ir.DataType.INT4:
        array = array.astype(np.int8)
    elif tensor.dtype in (ir.DataType.BFLOAT16, ir.DataType.FLOAT16):
        array = array.astype(np.float32)
    return torch.from_numpy(np.array(array))


def _integers(stored: Tensor, layer: LayerInfo) -> Tensor:
    """[K', N] -> [N, K], or the 1x1 convolution that a ConvTranspose became -> its own shape."""
    if layer.kind == "linear":
        return stored[: layer.shape[1]].t().contiguous()  # K' is K in whole groups
    if layer.kind == "conv_transpose":
        inputs, outputs, kernel, _ = layer.shape
        return stored.reshape(outputs, kernel, kernel, inputs).permute(3, 0, 1, 2).contiguous()
    return stored


def _parameters(value: Tensor, layer: LayerInfo, form: WeightFormat, unfolded: bool) -> Tensor:
    match form.granularity:
        case PerGroup():
            return value.t().contiguous()  # [G, N] -> [N, G]
        case PerChannel() if unfolded:
            return value[:: layer.shape[2] * layer.shape[3]].contiguous()  # one of k * k equal ones
        case _:
            return value
