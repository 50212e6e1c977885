"""Rounding with a gradient: what fake quantization does to one weight or one input.

The gradient goes through the rounding as if it were not there. Steps are learned as well, by LSQ
(arXiv:1902.08153). For a weight w of a group with step s, zero point z (0 where symmetric),
r = w / s, low = qmin - z and high = qmax - z:

    forward    w' = s clamp(round_half_even(r), low, high)
    dw'/dw     1 for low < r < high, else 0
    dw'/ds     round(r) - r for low < r < high, else low or high
    scaled     dL/ds <- dL/ds / sqrt(n qmax), n weights with this step (input: its K features)

What is learned is t with s = s0 exp(t), s0 the step it began with: positive by construction, equal
to s0 to the last bit at t = 0, and an optimizer that moves every number by about its learning rate
(Adam) moves every step by the same share of itself. s is rounded to the type that it will be stored
in, and kept a normal number of it.

Dynamic activations have no step to learn: their range follows the input, so nothing is clipped and
the gradient goes straight through. Zero points of asymmetric weights stay where they began: moving
one by 1 is no small change, and has no gradient.
"""

from __future__ import annotations

from math import prod, sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vggt_deploy.quantize.activations import round_per_group, round_per_tensor, round_static
from vggt_deploy.quantize.qparams import TORCH_DTYPE, QuantizedTensor
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
