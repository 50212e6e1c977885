"""8-bit activations: what a layer's input becomes when it is rounded at run time.

Static, as ONNX QuantizeLinear and DequantizeLinear: one calibrated scale, zero point 0, signed.

    q = clamp(round_half_even(x / scale), -128, 127), back: q * scale

Dynamic beside 8-bit weights, as ONNX DynamicQuantizeLinear: one scale for the tensor, unsigned.

    lo = min(x, 0), hi = max(x, 0), scale = (hi - lo) / 255, zp = round_half_even(-lo / scale)
    q = clamp(round_half_even(x / scale) + zp, 0, 255), back: (q - zp) * scale

Dynamic beside 4-bit groups, as MatMulNBits of ONNX Runtime 1.31 at accuracy level 4: one scale per
row and group of `size` inputs, signed, found by experiment and equal to 3e-7 on an AVX512-VNNI CPU.

    scale = amax / 127, q = round_half_even(x * (127 / amax)), back: q * scale

The last depends on the CPU: it is the x86 kernels' and plain NEON's way. Without an integer
kernel (x86 before AVX2) level 4 computes in FP32, and an ARM build with KleidiAI may take one
asymmetric scale per row. The others are fixed by the ONNX standard; but x86 CPUs without VNNI may
saturate 16-bit intermediate sums of the unsigned x signed products of the second.

The functions return floats that stand for those integers; the product is then an ordinary FP32 one,
which differs from an exact integer sum by FP32 rounding only.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def round_static(x: Tensor, scale: Tensor) -> Tensor:
    """QuantizeLinear (INT8, zero point 0) and back: float32 of any shape, scale float32 []."""
    # A division, as in ONNX: multiplying by 1 / scale moves some ties.
    return (x / scale).round_().clamp_(-128, 127).mul_(scale)


def round_per_tensor(x: Tensor) -> Tensor:
    """DynamicQuantizeLinear and back: float32 of any shape -> float32 of that shape."""
    low, high = x.aminmax()
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = (high - low) / 255
    scale = torch.where(scale == 0, 1.0, scale)
    zero_point = torch.round(-low / scale).clamp(0, 255)
    q = (x / scale).round_().add_(zero_point).clamp_(0, 255)
    return q.sub_(zero_point).mul_(scale)


def round_per_group(x: Tensor, size: int) -> Tensor:
    """Signed 8 bit per row and group and back: float32 [..., K] -> [..., K].

    A short last group is as if padded with zeros.
    """
    k = x.shape[-1]
    size = min(size, k)
    padded = F.pad(x, (0, -k % size)) if k % size else x
    groups = padded.reshape(*x.shape[:-1], -1, size)
    amax = torch.maximum(groups.amax(-1, keepdim=True), -groups.amin(-1, keepdim=True))
    # The kernel multiplies by the reciprocal; a division would move some ties.
    inverse = torch.where(amax == 0, 0.0, 127 / amax)
    rounded = (groups * inverse).round_().mul_(amax / 127)
    return rounded.reshape(padded.shape)[..., :k]
