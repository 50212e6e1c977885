"""Fake quantization of any network: integers in the forward pass, gradients in the backward pass.

A layer rounds its weight (and its input, where activations are 8 bit) to what the integers stand
for, in floats; the gradient goes through the rounding as if it were not there. Steps are learned as
well, by LSQ (arXiv:1902.08153). For a weight w of a group with step s, zero point z (0 where
symmetric), r = w / s, low = qmin - z and high = qmax - z:

    forward    w' = s clamp(round_half_even(r), low, high)
    dw'/dw     1 for low < r < high, else 0
    dw'/ds     round(r) - r for low < r < high, else low or high
    scaled     dL/ds <- dL/ds / sqrt(n qmax), n weights with this step (input: its K features)

What is learned is t with s = s0 exp(t), s0 the step it began with: positive by construction, equal
to s0 to the last bit at t = 0, and an optimizer that moves every number by about its learning rate
(Adam) moves every step by the same share of itself. s is rounded to the type that it will be stored
in, and kept a normal number of it.

The forward pass computes with the very numbers that `quantize.apply` makes of the finished
integers, in the same order: with FP32 scales the outputs are equal to the last bit.

Dynamic activations have no step to learn: their range follows the input, so nothing is clipped and
the gradient goes straight through. Zero points of asymmetric weights stay where they began: moving
one by 1 is no small change, and has no gradient.

    formats = {layer.name: form for layer in layers_in(model) if layer.kind == "linear"}
    insert_fake(model, formats, "static", None, input_scales)
    ...                                       # train; `set_enabled(model, False)` to warm up
    scales = input_scales_of(model)
    replace_layers(model, formats, Finished(finish(model)), ..., input_scales=scales)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod, sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vggt_deploy.errors import CalibrationError, QuantizeError
from vggt_deploy.quantize.activations import round_per_group, round_per_tensor, round_static
from vggt_deploy.quantize.apply import quantized_module
from vggt_deploy.quantize.plan import LayerInfo, layers_in
from vggt_deploy.quantize.prepared import Integers
from vggt_deploy.quantize.qparams import TORCH_DTYPE, QuantizedTensor, quantize
from vggt_deploy.quantize.schemes import (
    Activations,
    PerChannel,
    PerGroup,
    PerTensor,
    Precision,
    WeightFormat,
)

INPUT_LEVELS = 127
# A weight that is moved into the cell of its integer ends this far from the cell's middle, in steps
# (half a step would be its edge, where rounding errors decide).
INSIDE = 0.45


class _RoundWeight(torch.autograd.Function):
    """rows [R, L], step [R, 1], zero point [R, 1] -> what the integers stand for, [R, L]."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, step: Tensor, zero: Tensor, form: WeightFormat) -> Tensor:
        ctx.save_for_backward(rows, step, zero)
        ctx.form = form
        return _integers(rows, step, zero, form).sub_(zero).mul_(step)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        rows, step, zero = ctx.saved_tensors
        form: WeightFormat = ctx.form
        ratio = rows / step
        low, high = form.qmin - zero, form.qmax - zero
        inside = (ratio > low) & (ratio < high)
        slope = ratio.round().clamp_(low, high).sub_(ratio.mul_(inside))
        scaled = (grad * slope).sum(1, keepdim=True) / sqrt(rows.shape[1] * form.qmax)
        return grad * inside, scaled, None, None


class _RoundInput(torch.autograd.Function):
    """x [..., K] of one step [] -> `activations.round_static`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor) -> Tensor:
        ctx.save_for_backward(x, step)
        return round_static(x, step)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, step = ctx.saved_tensors
        ratio = x / step
        low, high = -INPUT_LEVELS - 1, INPUT_LEVELS
        inside = (ratio > low) & (ratio < high)
        slope = ratio.round().clamp_(low, high).sub_(ratio.mul_(inside))
        scaled = (grad * slope).sum() / sqrt(x.shape[-1] * INPUT_LEVELS)
        return grad * inside, scaled


class _Through(torch.autograd.Function):
    """(x, rounded) -> rounded; its gradient is x's, unchanged."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rounded: Tensor) -> Tensor:
        del ctx, x
        return rounded.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        del ctx
        return grad, None


class LearnedStep(nn.Module):
    """s = s0 exp(t): `initial` is s0 (a buffer), `log_growth` is t, both in the step's shape."""

    initial: Tensor

    def __init__(self, initial: Tensor, dtype: Precision) -> None:
        super().__init__()
        self.dtype = dtype
        self.register_buffer("initial", initial.detach().clone().float())
        self.log_growth = nn.Parameter(torch.zeros_like(self.initial))

    def forward(self) -> Tensor:
        """The step, float32, a normal number of its type."""
        stored = TORCH_DTYPE[self.dtype]
        limits = torch.finfo(stored)
        grown = (self.initial * self.log_growth.exp()).clamp(limits.tiny, limits.max)
        return grown.to(stored).float()


class FakeWeight(nn.Module):
    """Weight -> what its integers stand for, in the weight's shape; the step is learned.

    Starts with the steps and zero points of `start` (shaped as there: [], [N] or [N, G]).
    """

    zero_point: Tensor

    def __init__(self, start: QuantizedTensor) -> None:
        super().__init__()
        self.format, self.axis = start.format, start.axis
        self.step = LearnedStep(start.scale, start.scale_dtype)
        self.register_buffer("zero_point", start.zero_point.to(torch.int8))

    def forward(self, weight: Tensor) -> Tensor:
        rows = to_rows(weight, self.format, self.axis)
        step = self.step().view(-1, 1)
        zero = self.zero_point.float().view(-1, 1)
        rounded: Tensor = _RoundWeight.apply(rows, step, zero, self.format)  # type: ignore[no-untyped-call]
        return from_rows(rounded, weight.shape, self.format, self.axis)

    @torch.no_grad()
    def quantized(self, weight: Tensor) -> QuantizedTensor:
        """The integers of the present weight and steps."""
        step = self.step()
        rows = to_rows(weight.detach(), self.format, self.axis)
        zero = self.zero_point.float().view(-1, 1)
        q = _integers(rows, step.view(-1, 1), zero, self.format).to(torch.int8)
        q = from_rows(q, weight.shape, self.format, self.axis)
        zero_point = self.zero_point.clone()
        return QuantizedTensor(q, step, zero_point, self.format, self.axis, self.step.dtype)

    def extra_repr(self) -> str:
        return self.format.label


class FakeInput(nn.Module):
    """Input -> what its 8-bit integers stand for, as `quantize.apply.QuantLinear` rounds it."""

    def __init__(
        self,
        form: WeightFormat,
        activations: Activations,
        scale: float | None,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.activations: Activations = activations
        self.group = form.granularity.size if isinstance(form.granularity, PerGroup) else None
        self.step = None
        if scale is not None:
            self.step = LearnedStep(torch.tensor(scale, device=device), "fp32")

    def forward(self, x: Tensor) -> Tensor:
        if self.activations == "float":
            return x
        x = x.float()
        if self.step is not None:
            rounded: Tensor = _RoundInput.apply(x, self.step())  # type: ignore[no-untyped-call]
            return rounded
        plain = x.detach()
        found = (
            round_per_tensor(plain) if self.group is None else round_per_group(plain, self.group)
        )
        through: Tensor = _Through.apply(x, found)  # type: ignore[no-untyped-call]
        return through

    def extra_repr(self) -> str:
        return self.activations


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


def settled(weight: Tensor, start: QuantizedTensor) -> Tensor:
    """The weight, moved into the cell of its integer where it lies outside, the rest as it is.

    Integers chosen otherwise than by rounding (GPTQ) are then what training begins with.
    """
    rows = to_rows(weight, start.format, start.axis)
    step, zero = start.scale.view(-1, 1), start.zero_point.float().view(-1, 1)
    q = to_rows(start.q.float(), start.format, start.axis)
    middle = (q - zero) * step
    moved = middle + (rows - middle).clamp(-INSIDE * step, INSIDE * step)
    held = _integers(rows, step, zero, start.format) == q
    return from_rows(torch.where(held, rows, moved), weight.shape, start.format, start.axis)


def to_rows(weight: Tensor, form: WeightFormat, axis: int) -> Tensor:
    """A weight -> [R, L], one row per step; a short last group is padded with zeros."""
    moved = weight.movedim(axis, 0)
    match form.granularity:
        case PerTensor():
            return moved.reshape(1, -1)
        case PerChannel():
            return moved.reshape(moved.shape[0], -1)
        case PerGroup() as group:
            k = moved.shape[1]
            padding = group.padded_k(k) - k
            padded = F.pad(moved, (0, padding)) if padding else moved
            return padded.reshape(-1, group.fitted(k))


def from_rows(rows: Tensor, shape: torch.Size, form: WeightFormat, axis: int) -> Tensor:
    """The inverse of `to_rows`, contiguous."""
    n = shape[axis]
    rest = [side for i, side in enumerate(shape) if i != axis]
    flat = rows.reshape(n, -1)[:, : prod(rest)]
    return flat.reshape(n, *rest).movedim(0, axis).contiguous()


def _integers(rows: Tensor, step: Tensor, zero: Tensor, form: WeightFormat) -> Tensor:
    """The integers, as floats. A division, as in `qparams`: 1 / step would move some ties."""
    return (rows / step).round_().add_(zero).clamp_(form.qmin, form.qmax)


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
