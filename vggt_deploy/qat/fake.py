"""Fake quantization of any network: integers in the forward pass, gradients in the backward pass.

A layer rounds its weight (and its input, where activations are 8 bit) to what the integers stand
for, in floats; `rounding` says how the gradient gets through, and how steps are learned. Parameters
stay where they were and keep their names.

The forward pass computes with the very numbers that `quantize.apply` makes of the finished
integers, in the same order: with FP32 scales the outputs are equal to the last bit.

    formats = {layer.name: form for layer in layers_in(model) if layer.kind == "linear"}
    insert_fake(model, formats, "static", None, input_scales)
    ...                                       # train; `set_enabled(model, False)` to warm up
    scales = input_scales_of(model)
    replace_layers(model, formats, Finished(finish(model)), ..., input_scales=scales)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vggt_deploy.errors import CalibrationError, QuantizeError
from vggt_deploy.qat.rounding import FakeInput, FakeWeight, LearnedStep, settled
from vggt_deploy.quantize.apply import quantized_module
from vggt_deploy.quantize.plan import LayerInfo, layers_in
from vggt_deploy.quantize.prepared import Integers
from vggt_deploy.quantize.qparams import QuantizedTensor, quantize
from vggt_deploy.quantize.schemes import Activations, Precision, WeightFormat


class FakeQuantLinear(nn.Linear):
    """A Linear whose weight and input are rounded while `enabled`; weight and bias are its own."""

    def __init__(
        self,
        layer: nn.Linear,
        start: QuantizedTensor,
        activations: Activations = "float",
        input_scale: float | None = None,
    ) -> None:
        super().__init__(
            layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta"
        )
        self.weight, self.bias = layer.weight, layer.bias
        self.enabled = True
        self.fake_weight = FakeWeight(start)
        self.fake_input = FakeInput(start.format, activations, input_scale, layer.weight.device)

    def forward(self, x: Tensor) -> Tensor:
        if not self.enabled:
            return F.linear(x, self.weight, self.bias)
        return F.linear(self.fake_input(x), self.fake_weight(self.weight), self.bias)


class FakeQuantConv2d(nn.Conv2d):
    """A Conv2d whose weight is rounded while `enabled`; its input stays float."""

    def __init__(self, layer: nn.Conv2d, start: QuantizedTensor) -> None:
        super().__init__(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,  # type: ignore[arg-type]
            layer.stride,  # type: ignore[arg-type]
            layer.padding,  # type: ignore[arg-type]
            layer.dilation,  # type: ignore[arg-type]
            layer.groups,
            layer.bias is not None,
            device="meta",
        )
        self.weight, self.bias = layer.weight, layer.bias
        self.enabled = True
        self.fake_weight = FakeWeight(start)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.fake_weight(self.weight) if self.enabled else self.weight
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class FakeQuantConvTranspose2d(nn.ConvTranspose2d):
    """A ConvTranspose2d whose weight is rounded while `enabled`; its input stays float."""

    def __init__(self, layer: nn.ConvTranspose2d, start: QuantizedTensor) -> None:
        super().__init__(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,  # type: ignore[arg-type]
            layer.stride,  # type: ignore[arg-type]
            layer.padding,  # type: ignore[arg-type]
            layer.output_padding,  # type: ignore[arg-type]
            layer.groups,
            layer.bias is not None,
            layer.dilation,  # type: ignore[arg-type]
            device="meta",
        )
        self.weight, self.bias = layer.weight, layer.bias
        self.enabled = True
        self.fake_weight = FakeWeight(start)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        del output_size  # as in `QuantConvTranspose2d`, which is given none
        weight = self.fake_weight(self.weight) if self.enabled else self.weight
        return F.conv_transpose2d(
            x,
            weight,
            self.bias,
            self.stride,
            self.padding,  # type: ignore[arg-type]
            self.output_padding,
            self.groups,
            self.dilation,
        )


FakeLayer = FakeQuantLinear | FakeQuantConv2d | FakeQuantConvTranspose2d


@dataclass(frozen=True)
class Finished:
    """The integers that `finish` gives, as a source of integers (`quantize.prepared.Integers`)."""

    integers: Mapping[str, QuantizedTensor]

    def quantized(
        self, layer: LayerInfo, form: WeightFormat, scale_dtype: Precision
    ) -> QuantizedTensor:
        """The layer's integers; QuantizeError where they are of another format."""
        found = self.integers.get(layer.name)
        if found is None or (found.format, found.scale_dtype) != (form, scale_dtype):
            have = "float" if found is None else f"{found.format.label}, {found.scale_dtype} scales"
            raise QuantizeError(
                f"{layer.name} was trained as {have}, not as {form.label}, {scale_dtype} scales",
                "ask for the formats that fake quantization was inserted with",
            )
        return found


@torch.no_grad()
def insert_fake(
    model: nn.Module,
    formats: Mapping[str, WeightFormat],
    activations: Activations = "float",
    initial: Integers | None = None,
    input_scales: Mapping[str, float] | None = None,
    *,
    scale_dtype: Precision = "fp32",
) -> None:
    """Put fake quantization in place of the layers that `formats` names; parameters stay the same.

    initial: integers to begin with; a weight that lies outside of the cell of its integer is moved
    just inside. None: each weight is rounded by itself (`qparams.quantize`).
    input_scales: layer -> scale to begin with, for static activations (convolutions need none).

    Raises:
        QuantizeError: a layer that is not there, or activations that no runtime has beside it.
        CalibrationError: a Linear without an input scale.
    """
    layers = {layer.name: layer for layer in layers_in(model)}
    for name, form in formats.items():
        if name not in layers:
            raise QuantizeError(
                f"the network has no layer {name!r} that could be quantized",
                "take the names from quantize.plan.layers_in(model)",
            )
        layer, old = layers[name], model.get_submodule(name)
        weight = old.get_parameter("weight")
        if initial is None:
            start = quantize(weight, form, axis=layer.axis, scale_dtype=scale_dtype)
        else:
            start = _on(initial.quantized(layer, form, scale_dtype), weight.device)
            weight.copy_(settled(weight, start))
        scale = None
        if activations == "static" and layer.kind == "linear":
            scale = _input_scale(input_scales, name)
        mode = activations if layer.kind == "linear" else "float"
        # What this layer will become: refuses, in its own words, what no runtime has.
        quantized_module(old, start, None, mode, scale)
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, _fake(old, start, mode, scale))


def set_enabled(model: nn.Module, enabled: bool) -> None:
    """Turn fake quantization of all layers on, or off: then they compute in float."""
    for _, layer in fake_layers(model):
        layer.enabled = enabled


def fake_layers(model: nn.Module) -> Iterator[tuple[str, FakeLayer]]:
    """The layers that `insert_fake` put in, with their names."""
    for name, module in model.named_modules():
        if isinstance(module, FakeLayer):
            yield name, module


def finish(model: nn.Module) -> dict[str, QuantizedTensor]:
    """Layer -> the integers that its weight and steps have now.

    Raises:
        QuantizeError: a weight or step is NaN or infinite.
    """
    found = {}
    for name, layer in fake_layers(model):
        quantized = layer.fake_weight.quantized(layer.weight)
        finite = torch.isfinite(quantized.scale).all() & torch.isfinite(layer.weight).all()
        if not bool(finite):
            raise QuantizeError(
                f"{name} has weights or steps that are not finite",
                "train with a lower learning rate",
            )
        found[name] = quantized
    return found


def input_scales_of(model: nn.Module) -> dict[str, float]:
    """Layer -> the scale that its input has now; empty unless activations are static."""
    found = {}
    for name, layer in fake_layers(model):
        if isinstance(layer, FakeQuantLinear) and layer.fake_input.step is not None:
            found[name] = float(layer.fake_input.step().detach())
    return found


def step_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are logarithms of steps: they want a rate of their own, and no decay."""
    return {
        f"{name}.log_growth": module.log_growth
        for name, module in model.named_modules()
        if isinstance(module, LearnedStep)
    }


def _fake(
    old: nn.Module, start: QuantizedTensor, activations: Activations, scale: float | None
) -> FakeLayer:
    match old:
        case nn.Linear():
            return FakeQuantLinear(old, start, activations, scale)
        case nn.Conv2d():
            return FakeQuantConv2d(old, start)
        case nn.ConvTranspose2d():
            return FakeQuantConvTranspose2d(old, start)
    raise TypeError(f"no fake quantization of {type(old).__name__}")


def _input_scale(scales: Mapping[str, float] | None, layer: str) -> float:
    if scales is None or layer not in scales:
        raise CalibrationError(
            f"no calibrated scale for the input of {layer}",
            "pass input_scales of all Linears that are quantized",
        )
    return scales[layer]


def _on(quantized: QuantizedTensor, device: torch.device) -> QuantizedTensor:
    return QuantizedTensor(
        quantized.q.to(device),
        quantized.scale.to(device),
        quantized.zero_point.to(device),
        quantized.format,
        quantized.axis,
        quantized.scale_dtype,
    )
