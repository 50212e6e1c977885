"""The PyTorch variant of a scheme: modules that hold the integers, and a VGGT made of them.

The modules keep what the file keeps (int8, or nibbles two to a byte, with scale and zero point) and
turn the weight to float each time they run: small in memory, no faster than FP32. They compute what
the ONNX variant computes, up to FP32 rounding.

`build_quantized` starts from the meta device and fills one layer at a time, so that beside the
finished model only one float weight is in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vggt_deploy.errors import CalibrationError, ModelError, QuantizeError, UsageError
from vggt_deploy.model.sources import ModelOrigin
from vggt_deploy.model.vggt import VGGT
from vggt_deploy.quantize.activations import round_per_group, round_per_tensor, round_static
from vggt_deploy.quantize.half import half_inside
from vggt_deploy.quantize.packing import pack_int4, unpack_int4
from vggt_deploy.quantize.plan import keeps_layer_scale, layer_precision, layers_in, plan
from vggt_deploy.quantize.prepared import Integers, Nearest, Prepared
from vggt_deploy.quantize.qparams import TORCH_DTYPE, QuantizedTensor, dequantize
from vggt_deploy.quantize.schemes import (
    Activations,
    PerGroup,
    Precision,
    Scheme,
    WeightFormat,
    check_activations,
)

if TYPE_CHECKING:
    from vggt_deploy.model.config import VGGTConfig
    from vggt_deploy.model.sources import WeightSource


class QuantizedModule(nn.Module):
    """Integers, scale and zero point of one weight, and the bias beside it, as buffers.

    `q` is int8 in the weight's shape, or for 4 bit uint8 [ceil(numel / 2)] (see `packing`).
    """

    q: Tensor
    scale: Tensor
    zero_point: Tensor
    bias: Tensor | None

    def __init__(self, quantized: QuantizedTensor, bias: Tensor | None) -> None:
        super().__init__()
        self.format: WeightFormat = quantized.format
        self.shape = quantized.q.shape
        self.axis = quantized.axis
        self.scale_dtype: Precision = quantized.scale_dtype
        packed = quantized.format.bits == 4
        self.register_buffer("q", pack_int4(quantized.q) if packed else quantized.q)
        self.register_buffer("scale", quantized.scale)
        self.register_buffer("zero_point", quantized.zero_point)
        self.register_buffer("bias", bias)

    @property
    def quantized(self) -> QuantizedTensor:
        """The weight as `qparams.quantize` gave it."""
        packed = self.format.bits == 4
        q = unpack_int4(self.q, self.shape.numel()).view(self.shape) if packed else self.q
        return QuantizedTensor(
            q, self.scale, self.zero_point, self.format, self.axis, self.scale_dtype
        )

    @property
    def weight(self) -> Tensor:
        """The dequantized weight, in the type the layer computes in."""
        return dequantize(self.quantized).to(TORCH_DTYPE[self.scale_dtype])

    def extra_repr(self) -> str:
        return f"{self.format.label}, {list(self.shape)}, bias={self.bias is not None}"


class QuantLinear(QuantizedModule):
    """y = x @ dequantize(q).T + bias, x [..., K], which becomes 8 bit first unless "float".

    input_scale: float32 [], for "static" alone. The rounding and the product after it are FP32
    whatever the dtype of x, to which y returns.
    """

    input_scale: Tensor | None

    def __init__(
        self,
        quantized: QuantizedTensor,
        bias: Tensor | None,
        activations: Activations = "float",
        input_scale: float | None = None,
    ) -> None:
        super().__init__(quantized, bias)
        self.activations: Activations = activations
        grouped = isinstance(quantized.format.granularity, PerGroup)
        unknown = grouped != (quantized.format.bits == 4) or (grouped and activations == "static")
        if activations != "float" and unknown:
            raise QuantizeError(
                f"no runtime has {activations} activations beside {quantized.format.label} weights",
                "use 8 bit per tensor or channel, or 4-bit groups with dynamic activations",
            )
        if (activations == "static") != (input_scale is not None):
            raise QuantizeError(
                f"{activations} activations with input scale {input_scale}",
                "static activations need a calibrated scale, and only they take one",
            )
        scale = None if input_scale is None else torch.tensor(input_scale, dtype=torch.float32)
        self.register_buffer("input_scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        if self.activations == "float":
            return F.linear(x, weight, self.bias)
        bias = None if self.bias is None else self.bias.float()
        return F.linear(self._rounded(x.float()), weight.float(), bias).to(x.dtype)

    def _rounded(self, x: Tensor) -> Tensor:
        if self.input_scale is not None:
            return round_static(x, self.input_scale)
        match self.format.granularity:
            case PerGroup(size):
                return round_per_group(x, size)
            case _:
                return round_per_tensor(x)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, activations={self.activations}"


class QuantConv2d(QuantizedModule):
    """Conv2d with the dequantized weight; strides and padding of the layer it stands for."""

    def __init__(self, quantized: QuantizedTensor, bias: Tensor | None, like: nn.Conv2d) -> None:
        super().__init__(quantized, bias)
        self.stride, self.dilation, self.groups = like.stride, like.dilation, like.groups
        self.padding = like.padding
        if like.padding_mode != "zeros":
            raise QuantizeError(f"padding mode {like.padding_mode}", "exclude the layer")

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(
            x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )


class QuantConvTranspose2d(QuantizedModule):
    """ConvTranspose2d with the dequantized weight [C_in, C_out / groups, kh, kw]."""

    def __init__(
        self, quantized: QuantizedTensor, bias: Tensor | None, like: nn.ConvTranspose2d
    ) -> None:
        super().__init__(quantized, bias)
        self.stride, self.dilation, self.groups = like.stride, like.dilation, like.groups
        self.padding, self.output_padding = like.padding, like.output_padding

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose2d(
            x,
            self.weight,
            self.bias,
            self.stride,
            self.padding,  # type: ignore[arg-type]
            self.output_padding,
            self.groups,
            self.dilation,
        )


def quantized_module(
    layer: nn.Module,
    quantized: QuantizedTensor,
    bias: Tensor | None,
    activations: Activations = "float",
    input_scale: float | None = None,
) -> QuantizedModule:
    """The module that stands for `layer` (whose own tensors may be on the meta device).

    Convolutions are weight-only: their inputs stay float whatever `activations`.
    """
    match layer:
        case nn.Linear():
            return QuantLinear(quantized, bias, activations, input_scale)
        case nn.Conv2d():
            return QuantConv2d(quantized, bias, layer)
        case nn.ConvTranspose2d():
            return QuantConvTranspose2d(quantized, bias, layer)
    raise TypeError(f"no quantized form of {type(layer).__name__}")


@torch.no_grad()
def build_quantized(
    config: VGGTConfig,
    source: WeightSource,
    scheme: Scheme,
    *,
    activations: Activations = "float",
    input_scales: Mapping[str, float] | None = None,
    heads: frozenset[str] | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    sensitive: Sequence[str] = (),
    precision: Precision | None = None,
    formats: Mapping[str, WeightFormat] | None = None,
    prepared: Prepared | None = None,
) -> VGGT:
    """A folded VGGT with the scheme applied, in eval mode.

    `source` gives folded weights, with LayerScale kept where `keeps_layer_scale(precision)`.
    input_scales: layer -> scale, for static activations (`calibration.input_scales` with the same
    precision); every quantized Linear needs one.
    formats: exactly these layers in these formats, in place of the scheme's choice by patterns.
    prepared: integers, changed float tensors, formats and input scales from there.

    precision (None: the scheme's own) fp16 or bf16: inside `plan.in_half_region` all is in that
    type, as in an exported graph: inputs (the RoPE tables too), float weights, biases, the qk-norm,
    integer weights' scales and what they dequantize to, and every result down to the output, which
    returns to FP32. Outside of it all is FP32. How a kernel computes within one operation is its
    own matter: torch's fused attention does not round the scores, a graph's MatMul does.
    """
    check_activations(scheme, activations)
    precision = precision or scheme.precision
    with torch.device("meta"):
        model = VGGT(
            config, heads=heads, folded=True, keep_layer_scale=keeps_layer_scale(precision)
        )
    _check_source(model, source, precision)
    layers = layers_in(model)
    integers: Integers = Nearest(source)
    if prepared is not None:
        prepared.require_precision(precision)
        integers, source = prepared, prepared.source(source)
        formats, input_scales = prepared.formats_of(layers), prepared.record.input_scales
    elif formats is None:
        formats = plan(scheme, layers, include=include, exclude=exclude, sensitive=sensitive)
    _replace(model, formats, integers, source, activations, input_scales, precision)
    for name, parameter in list(model.named_parameters()):
        if parameter.is_meta:
            value = _load(source, name, layer_precision(name, precision))
            _set(model, name, nn.Parameter(value, requires_grad=False))
    if precision != "fp32":
        half_inside(model, TORCH_DTYPE[precision])
    return model.eval()


@torch.no_grad()
def replace_layers(
    model: nn.Module,
    formats: Mapping[str, WeightFormat],
    integers: Integers | None = None,
    *,
    activations: Activations = "float",
    input_scales: Mapping[str, float] | None = None,
) -> None:
    """Put quantized modules in place of these layers of any network, in FP32.

    integers: None rounds the network's own weights (`prepared.Nearest`). Biases are the network's.
    input_scales: layer -> scale, for static activations; every Linear among `formats` needs one.

    Raises:
        UsageError: no Linear or convolution has that name.
        QuantizeError, CalibrationError: a weight that is not finite, a scale that is missing.
    """
    source = ModuleWeights(model)
    known = {layer.name for layer in layers_in(model)}
    if unknown := sorted(formats.keys() - known):
        raise UsageError(
            f"{unknown[0]} is no layer of this network", f"use some of: {', '.join(sorted(known))}"
        )
    _replace(model, formats, integers or Nearest(source), source, activations, input_scales, "fp32")


@dataclass(frozen=True)
class ModuleWeights:
    """The tensors of a network in memory, as a weight source."""

    module: nn.Module

    @property
    def origin(self) -> ModelOrigin:
        return ModelOrigin(spec=type(self.module).__name__, kind="file")

    def keys(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.module.named_parameters())

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(self.module.get_parameter(key).shape)

    def load(self, key: str) -> Tensor:
        return self.module.get_parameter(key).detach().float()


def _replace(
    model: nn.Module,
    formats: Mapping[str, WeightFormat],
    integers: Integers,
    source: WeightSource,
    activations: Activations,
    input_scales: Mapping[str, float] | None,
    precision: Precision,
) -> None:
    layers = {layer.name: layer for layer in layers_in(model)}
    for name, form in formats.items():
        type_name = layer_precision(name, precision)
        quantized = integers.quantized(layers[name], form, type_name)
        old = model.get_submodule(name)
        bias = None
        if old.bias is not None:
            bias = _load(source, f"{name}.bias", type_name)
        scale = None
        if activations == "static" and layers[name].kind == "linear":
            scale = _input_scale(input_scales, name)
        _set(model, name, quantized_module(old, quantized, bias, activations, scale))


def _input_scale(scales: Mapping[str, float] | None, layer: str) -> float:
    if scales is None or layer not in scales:
        raise CalibrationError(
            f"no calibrated scale for the input of {layer}",
            "pass input_scales=calibration.input_scales(...) of all quantized Linears",
        )
    scale = scales[layer]
    if not torch.finfo(torch.float32).tiny <= scale <= torch.finfo(torch.float32).max:
        raise CalibrationError(
            f"input scale {scale} of {layer} is no positive normal FP32 number",
            "take it from calibration.input_scales or module.module_input_scales",
        )
    return scale


def _check_source(model: nn.Module, source: WeightSource, precision: Precision) -> None:
    held = frozenset(source.keys())
    missing = [name for name, _ in model.named_parameters() if name not in held]
    kept = any(key.endswith(".gamma") for key in held)
    if kept != keeps_layer_scale(precision):
        raise ModelError(
            f"the weight source {'keeps' if kept else 'has folded'} LayerScale, and precision "
            f"{precision} {'folds' if kept else 'keeps'} it",
            "pass FoldedWeights(..., keep_layer_scale=keeps_layer_scale(precision))",
        )
    if missing:
        raise ModelError(
            f"the weight source lacks {len(missing)} tensors: {', '.join(missing[:4])}",
            "pass a folded source (fold.FoldedWeights) of a checkpoint that has these heads",
        )


def _load(source: WeightSource, key: str, precision: Precision) -> Tensor:
    value = source.load(key).to(TORCH_DTYPE[precision])
    if precision == "fp16" and not bool(torch.isfinite(value).all()):
        raise QuantizeError(f"{key} holds values beyond FP16's 65504", "use bf16 or fp32")
    return value


def _set(model: nn.Module, name: str, value: nn.Module | nn.Parameter) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, value)
