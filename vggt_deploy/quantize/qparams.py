"""The numbers: float weight -> integers, scales, zero points, and back. Defined here alone.

Symmetric    scale = amax / qmax, q = round_half_even(w / scale), zero point 0       (qmax 127 or 7)
Asymmetric   lo = min(w, 0), hi = max(w, 0), scale = (hi - lo) / (2**bits - 1)
             zp = round_half_even(-lo / scale)
             q = clamp(round_half_even(w / scale) + zp, 0, 2**bits - 1)
             stored as q - 2**(bits-1) and zp - 2**(bits-1), so one signed file serves every target
Back         w' = (q - zp) * scale, in FP32: the bits of ONNX DequantizeLinear

A range of zero gives scale 1. The scale is rounded to the type it will be stored in before q is
computed with it, and raised to that type's smallest normal number where it would be subnormal or
zero (runtimes flush those, TensorRT refuses zero). The division is a division, as in ONNX
QuantizeLinear: multiplying by 1 / scale moves some ties.

Layout: scale and zero_point are [] per tensor, [N] per channel, [N, G] per group, N the output
channels, G = ceil(K / size).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vggt_deploy.errors import QuantizeError
from vggt_deploy.quantize.schemes import (
    FLOAT_BYTES,
    PerChannel,
    PerGroup,
    PerTensor,
    Precision,
    WeightFormat,
)

TORCH_DTYPE: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}

# rows [R, L], low [R, 1], high [R, 1] of everything in them -> the range to keep, inside of that.
RangeOf = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]

_CHUNK = 1 << 20  # weights per pass: the FP32 scratch stays at 4 MiB, inside the cache


@dataclass(frozen=True, slots=True)
class QuantizedTensor:
    """Integers in the weight's own shape, with what turns them back into floats.

    q int8 (also for 4 bit: `packing` makes bytes of it); scale float32 holding values that
    `scale_dtype` represents; zero_point int8 shaped as scale; `axis` the output-channel axis of q.
    """

    q: Tensor
    scale: Tensor
    zero_point: Tensor
    format: WeightFormat
    axis: int = 0
    scale_dtype: Precision = "fp32"

    @property
    def stored_bytes(self) -> int:
        """Bytes on disk: 4-bit integers count half a byte, scales in their stored type."""
        n = self.q.shape[self.axis]
        k = self.q.numel() // n
        return self.format.stored_bytes(n, k, FLOAT_BYTES[self.scale_dtype])


def quantize(
    weight: Tensor,
    form: WeightFormat,
    *,
    axis: int = 0,
    scale_dtype: Precision = "fp32",
    range_of: RangeOf | None = None,
) -> QuantizedTensor:
    """Quantize one weight.

    weight: Linear [N, K] or Conv [N, C, kh, kw] with axis 0, ConvTranspose [C_in, C_out, kh, kw]
    with axis 1. Groups are for [N, K] only.
    range_of: chooses a narrower range for each row of `scale_rows`, beyond which integers saturate;
    None: all of it (`ranges` has others).
    """
    if weight.numel() == 0:
        raise QuantizeError("the weight is empty", "exclude the layer")
    if isinstance(form.granularity, PerGroup) and (weight.dim() != 2 or axis != 0):
        raise QuantizeError(
            f"groups are runs of inputs of a Linear weight [N, K]; this weight is "
            f"{list(weight.shape)} with output axis {axis}",
            "use a per-channel format for convolutions",
        )
    moved = weight.detach().movedim(axis, 0)
    rows = scale_rows(moved.float(), form)
    low, high = _range(rows)
    if range_of is not None:
        low, high = range_of(rows, low, high)
    scale, zero_point = scale_and_zero(low, high, form, scale_dtype)
    q = _round(rows, scale, zero_point, form, saturate=range_of is not None)

    shape: tuple[int, ...] = ()
    match form.granularity:
        case PerChannel():
            shape = (moved.shape[0],)
        case PerGroup() as group:
            shape = (moved.shape[0], group.groups(moved.shape[1]))
            if q.numel() != moved.numel():  # the last group was padded
                q = q.view(moved.shape[0], -1)[:, : moved.shape[1]].contiguous()
    q = q.view(moved.shape)
    if axis:
        q = q.movedim(0, axis).contiguous()
    return QuantizedTensor(
        q, scale.view(shape), zero_point.to(torch.int8).view(shape), form, axis, scale_dtype
    )


def input_scale(limit: float, scale_dtype: Precision = "fp32") -> float:
    """The scale of a static activation whose |x| up to `limit` is kept: limit / 127, stored so."""
    span = torch.tensor(limit, dtype=torch.float64)
    return float(_stored_scale(span, 127, TORCH_DTYPE[scale_dtype]))


def dequantize(qt: QuantizedTensor) -> Tensor:
    """(q - zero_point) * scale in float32, in the shape of q."""
    weight = qt.q.to(torch.float32)
    scale, zero_point = qt.scale, qt.zero_point.to(torch.float32)
    view = weight
    match qt.format.granularity:
        case PerChannel():
            shape = [1] * weight.dim()
            shape[qt.axis] = -1
            scale, zero_point = scale.view(shape), zero_point.view(shape)
        case PerGroup() as group:
            n, k = weight.shape
            size = group.fitted(k)
            if k % size:
                scale, zero_point = (
                    t.repeat_interleave(size, dim=1)[:, :k] for t in (scale, zero_point)
                )
            else:
                view = weight.view(n, -1, size)
                scale, zero_point = scale.unsqueeze(-1), zero_point.unsqueeze(-1)
    if not qt.format.symmetric:
        view -= zero_point  # exact: integers of 9 bits
    view *= scale
    return weight


def scale_rows(weight: Tensor, form: WeightFormat) -> Tensor:
    """[N, ...] -> [R, L], one row per scale; a short last group is padded with zeros."""
    match form.granularity:
        case PerTensor():
            return weight.reshape(1, -1)
        case PerChannel():
            return weight.reshape(weight.shape[0], -1)
        case PerGroup() as group:
            padding = group.padded_k(weight.shape[1]) - weight.shape[1]
            padded = F.pad(weight, (0, padding)) if padding else weight
            return padded.reshape(-1, group.fitted(weight.shape[1]))


def _range(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest of each row [R, 1], widened to contain zero."""
    if rows.shape[0] == 1:  # reducing one long row along a dim does not use the second thread
        smallest, largest = rows.aminmax()
        low, high = smallest.reshape(1, 1), largest.reshape(1, 1)
    else:
        # Two reductions: aminmax over a dim is not vectorised and takes ten times as long.
        low, high = rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)
    # Minimum and maximum hand on NaN, so this sees every non-finite weight.
    if not bool((torch.isfinite(low) & torch.isfinite(high)).all()):
        raise QuantizeError(
            "the weight holds NaN or infinity", "repair the checkpoint, or exclude the layer"
        )
    return low.clamp_(max=0), high.clamp_(min=0)


def scale_and_zero(
    low: Tensor, high: Tensor, form: WeightFormat, scale_dtype: Precision
) -> tuple[Tensor, Tensor]:
    """Scale float32 [R, 1] (values of `scale_dtype`) and stored zero point float32 [R, 1].

    low <= 0 <= high: float32 [R, 1], what is kept.
    """
    # Float64 for these few numbers: high - low of two huge FP32 weights would overflow.
    low64, high64 = low.double(), high.double()
    if form.symmetric:
        span, levels = torch.maximum(high64, -low64), form.qmax
    else:
        span, levels = high64 - low64, form.qmax - form.qmin
    scale = _stored_scale(span, levels, TORCH_DTYPE[scale_dtype])
    if form.symmetric:
        return scale, torch.zeros_like(scale)
    zero_point = torch.round(-low / scale).clamp_(0, levels)
    return scale, zero_point.add_(form.qmin)


def _stored_scale(span: Tensor, levels: int, dtype: torch.dtype) -> Tensor:
    """Scale of a float64 span: a float32 that is a normal number of `dtype`; 1 for a span of 0."""
    rounded = (span / levels).float().to(dtype)
    if bool(torch.isinf(rounded).any()):
        raise QuantizeError(
            f"a scale of {float(span.max()) / levels:.3g} does not fit in {dtype}",
            "use fp32 or bf16 as precision, or exclude the layer",
        )
    scale = rounded.float().clamp_(min=torch.finfo(dtype).tiny)
    return scale.masked_fill_(span == 0, 1.0)


def _round(
    rows: Tensor, scale: Tensor, zero_point: Tensor, form: WeightFormat, *, saturate: bool
) -> Tensor:
    """[R, L] -> int8 [R, L], a chunk at a time; torch.round is half to even.

    Symmetric up to the largest weight needs no clamp. Rounding the scale to BF16, the coarsest
    type, moves it by at most 2**-8 of its value, so |w / scale| <= 127 * (1 + 2**-8) = 127.496,
    which rounds to 127.
    Asymmetric does: round(hi / scale) and round(-lo / scale) may both round up and sum to 256.
    """
    q = torch.empty(rows.shape, dtype=torch.int8, device=rows.device)
    one = rows.shape[0] == 1
    along = 1 if one else 0
    step = _CHUNK if one else max(1, _CHUNK // rows.shape[1])
    for start in range(0, rows.shape[along], step):
        count = min(step, rows.shape[along] - start)
        piece = slice(None) if one else slice(start, start + count)
        scratch = (rows.narrow(along, start, count) / scale[piece]).round_()
        if not form.symmetric:
            scratch.add_(zero_point[piece])
        if saturate or not form.symmetric:
            scratch.clamp_(form.qmin, form.qmax)
        q.narrow(along, start, count).copy_(scratch)
    return q
