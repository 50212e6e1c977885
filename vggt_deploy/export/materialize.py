"""Streams the weights: checkpoint -> fold -> quantize or round -> file, one tensor at a time.

The graph at this point holds names, shapes, types and `WeightRef`s; afterwards every initializer
points into the weights file, and the planned ones are described by a `StoredWeight`. Peak memory is
the largest single tensor (67 MB in VGGT-1B) and its integers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import Tensor

from vggt_deploy.errors import CalibrationError, ExportError
from vggt_deploy.export.qdq import StoredWeight
from vggt_deploy.export.simplify import WeightRef, weight_ref
from vggt_deploy.export.trace import FIELDS_PREFIX, MODEL_PREFIX
from vggt_deploy.export.weights_file import WeightsFile
from vggt_deploy.model.sources import WeightSource
from vggt_deploy.progress import Progress
from vggt_deploy.quantize.layout import OnnxLayout, to_onnx_layout
from vggt_deploy.quantize.plan import LayerInfo
from vggt_deploy.quantize.prepared import Integers, Nearest
from vggt_deploy.quantize.qparams import QuantizedTensor
from vggt_deploy.quantize.schemes import PerChannel, PerGroup, Precision, WeightFormat

TORCH_DTYPE: dict[ir.DataType, torch.dtype] = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
}
SCALE_DTYPE: dict[ir.DataType, Precision] = {
    ir.DataType.FLOAT: "fp32",
    ir.DataType.FLOAT16: "fp16",
    ir.DataType.BFLOAT16: "bf16",
}
INPUT_ZERO_POINT = "input_zero_point"


def materialize(
    graph: ir.Graph,
    source: WeightSource,
    fields: Mapping[str, Tensor],
    layers: Mapping[str, LayerInfo],
    formats: Mapping[str, WeightFormat],
    weights: WeightsFile,
    *,
    rank_1: bool,
    progress: Progress,
    input_scales: Mapping[str, float] | None = None,
    integers: Integers | None = None,
    prefix: str = MODEL_PREFIX,
) -> dict[str, StoredWeight]:
    """Write every initializer of the graph. Returns initializer name -> its stored integers.

    integers: None rounds the source's weights. With `rank_1`, an asymmetric Linear also gets the
    vector s * z that TensorRT's form needs.
    input_scales: layer -> scale of its input, for static activations.
    prefix: what the trace put before the source's keys.
    """
    scales = input_scales or {}
    integers = integers or Nearest(source)
    values = [value for value in graph.initializers.values() if weight_ref(value) is not None]
    stored: dict[str, StoredWeight] = {}
    for done, value in enumerate(values):
        ref = weight_ref(value)
        assert ref is not None
        progress("weights", done, len(values))
        layer = layer_of(ref, prefix)
        if layer in formats and not ref.name.endswith(".bias"):
            writer = _LayerWriter(layers[layer], formats[layer], ref, value, weights, rank_1)
            written = writer.write(integers)
            if layer in scales:
                written = writer.with_input(written, scales[layer])
            stored[str(value.name)] = written
        else:
            tensor = _load(ref, source, fields, prefix)
            value.const_value = _write_float(weights, value, _move(tensor, ref))
    progress("weights", len(values), len(values))
    return stored


def layer_of(ref: WeightRef, prefix: str = MODEL_PREFIX) -> str:
    """`vggt.camera_head.trunk.0.attn.qkv.weight` -> `camera_head.trunk.0.attn.qkv`."""
    return ref.name.removeprefix(prefix).rpartition(".")[0]


def _load(
    ref: WeightRef, source: WeightSource, fields: Mapping[str, Tensor], prefix: str
) -> Tensor:
    field = ref.name.removeprefix(FIELDS_PREFIX)
    if ref.name.startswith(FIELDS_PREFIX) and field in fields:
        return fields[field]
    return source.load(ref.name.removeprefix(prefix))


def _move(tensor: Tensor, ref: WeightRef) -> Tensor:
    """Carry out what the rewrite of the graph wrote down."""
    match ref.layout:
        case "as_is":
            return tensor
        case "transposed":
            return tensor.t()
        case "repeated":
            return tensor.repeat_interleave(ref.repeat)
        case "unfolded":
            channels, out, kernel, _ = tensor.shape
            return tensor.permute(1, 2, 3, 0).reshape(out * kernel * kernel, channels, 1, 1)


def _write_float(weights: WeightsFile, value: ir.Value, tensor: Tensor) -> ir.ExternalTensor:
    assert value.dtype is not None
    rounded = tensor.detach().to(TORCH_DTYPE[value.dtype]).contiguous()
    if value.dtype != ir.DataType.FLOAT and not bool(torch.isfinite(rounded).all()):
        raise ExportError(
            f"{value.name} holds values that do not fit in {value.dtype.name}",
            "use --precision bf16 or fp32",
        )
    return weights.add(str(value.name), _bytes_of(rounded), value.dtype, tuple(tensor.shape))


def _bytes_of(tensor: Tensor) -> npt.NDArray[np.generic]:
    """The array to write; NumPy has no bfloat16, so its two bytes as an integer."""
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy()
    return tensor.numpy()


class _LayerWriter:
    """Writes the integers, scales and zero points of one layer."""

    def __init__(
        self,
        layer: LayerInfo,
        form: WeightFormat,
        ref: WeightRef,
        value: ir.Value,
        weights: WeightsFile,
        rank_1: bool,
    ) -> None:
        assert value.dtype is not None
        self.layer, self.form, self.ref, self.weights = layer, form, ref, weights
        self.dtype = value.dtype
        self.rank_1 = rank_1 and not form.symmetric and layer.kind == "linear"
        if self.rank_1 and isinstance(form.granularity, PerGroup):
            # A zero point per group needs a row sum per group: a product of rank G, not 1.
            raise ExportError(
                f"{layer.name}: groups with zero points have no form for TensorRT",
                "use symmetric groups, or dynamic activations (ONNX Runtime only)",
            )

    def write(self, integers: Integers) -> StoredWeight:
        quantized = integers.quantized(self.layer, self.form, SCALE_DTYPE[self.dtype])
        if self.ref.layout == "unfolded":
            quantized = _unfold(quantized)
        layout = to_onnx_layout(quantized)
        integer = ir.DataType.INT4 if layout.bits == 4 else ir.DataType.INT8
        data, shape, padding = _padded(layout, self.form)
        scale = self._float("scale", layout.scale)
        zero_point = symmetric = None
        if self.form.stores_zero_point:
            values, zero_shape = layout.zero_point.numpy(), layout.zero_point_shape
            zero_point = self.weights.add(self._name("zero_point"), values, integer, zero_shape)
            symmetric = zero_point
            if self.rank_1:
                zeros = np.zeros_like(values)
                symmetric = self.weights.add(self._name("zeros"), zeros, integer, zero_shape)
        return StoredWeight(
            layer=self.layer.name,
            format=self.form,
            q=self.weights.add(self._name("q"), data, integer, shape),
            scale=scale,
            zero_point=zero_point,
            symmetric_zero_point=symmetric,
            correction=self._correction(quantized) if self.rank_1 else None,
            axis=layout.axis,
            block_size=layout.block_size,
            padding=padding,
        )

    def with_input(self, written: StoredWeight, scale: float) -> StoredWeight:
        """Also store the scale of the layer's input, and the zero point that all inputs share."""
        tensor = torch.tensor(scale, dtype=torch.float64)
        stored = tensor.to(TORCH_DTYPE[self.dtype])
        if float(stored) != scale:
            raise CalibrationError(
                f"input scale {scale} of {self.layer.name} is no number of type {self.dtype.name}",
                "take it from calibration.input_scales or module.module_input_scales",
            )
        zero = self.weights.add(INPUT_ZERO_POINT, np.zeros((), np.int8), ir.DataType.INT8, ())
        return dataclasses.replace(
            written, input_scale=self._float("input_scale", tensor), input_zero_point=zero
        )

    def _correction(self, quantized: QuantizedTensor) -> ir.ExternalTensor:
        """Scale times zero point: what a row sum of the input is multiplied with."""
        return self._float("scale_times_zero", quantized.scale * quantized.zero_point)

    def _float(self, part: str, tensor: Tensor) -> ir.ExternalTensor:
        rounded = tensor.to(TORCH_DTYPE[self.dtype]).contiguous()
        return self.weights.add(
            self._name(part), _bytes_of(rounded), self.dtype, tuple(tensor.shape)
        )

    def _name(self, part: str) -> str:
        return f"{self.layer.name}.{part}"


def _unfold(quantized: QuantizedTensor) -> QuantizedTensor:
    """The integers of a ConvTranspose [C, O, k, k] as those of the 1x1 convolution it became."""
    _, _, kernel, _ = quantized.q.shape
    scale, zero_point = quantized.scale, quantized.zero_point
    if isinstance(quantized.format.granularity, PerChannel):
        scale = scale.repeat_interleave(kernel * kernel)
        zero_point = zero_point.repeat_interleave(kernel * kernel)
    return QuantizedTensor(
        _move(quantized.q, WeightRef("", "unfolded")).contiguous(),
        scale,
        zero_point,
        quantized.format,
        axis=0,
        scale_dtype=quantized.scale_dtype,
    )


def _padded(
    layout: OnnxLayout, form: WeightFormat
) -> tuple[npt.NDArray[np.generic], tuple[int, ...], int]:
    """Data and shape with K rounded up to whole groups, and by how much: zero rows at the end."""
    data = layout.data.numpy()
    if not isinstance(form.granularity, PerGroup) or layout.block_size is None:
        return data, layout.shape, 0
    k, n = layout.shape
    padding = form.granularity.padded_k(k) - k
    if padding == 0:
        return data, layout.shape, 0
    if layout.bits == 4 and (k * n) % 2:
        raise ExportError(
            f"a 4-bit weight [{n}, {k}] with an odd number of elements can't be padded",
            "exclude the layer",
        )
    zero_rows = np.zeros(-(-padding * n * layout.bits // 8), np.uint8)
    padded = np.concatenate([data.reshape(-1).view(np.uint8), zero_rows])
    return padded, (k + padding, n), padding
