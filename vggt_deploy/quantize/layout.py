"""A quantized weight as a file holds it: contiguous arrays in the layout of ONNX MatMul.

ONNX computes y = x @ B with B [K, N]; torch holds a Linear weight as [N, K]. So

    8 bit      data int8 [K, N]
    4 bit      data uint8 [ceil(K * N / 2)]: nibbles of [K, N] row-major, low first
    scale      [] per tensor · [N] per channel (DequantizeLinear axis 1)
               [G, N] per group (DequantizeLinear axis 0, block_size)
    zero_point as scale, in the type of data (4 bit: packed the same way)

The transposition moves integers, never floats, and 4-bit ones after they were packed: two output
channels share a byte, so [N, K] packs to [N / 2, K] bytes, and that is what is transposed. It holds
for even N; an odd N packs across rows and takes one int8 copy more.

Convolutions keep their own layout: ONNX Conv and ConvTranspose hold weights as torch does.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vggt_deploy.quantize.packing import pack_int4, pack_nibbles
from vggt_deploy.quantize.qparams import QuantizedTensor
from vggt_deploy.quantize.schemes import PerChannel, PerGroup, PerTensor


@dataclass(frozen=True, slots=True)
class OnnxLayout:
    """Contiguous tensors whose bytes go into the file, and the attributes of DequantizeLinear.

    `shape` is the logical shape of the integers ([K, N], or the convolution's). `axis` is None per
    tensor; `block_size` is None unless grouped. `scale` is float32 and holds values of the format's
    scale type, so casting it to that type is exact.
    """

    data: Tensor
    shape: tuple[int, ...]
    bits: int
    scale: Tensor
    zero_point: Tensor
    zero_point_shape: tuple[int, ...]
    axis: int | None
    block_size: int | None


def to_onnx_layout(qt: QuantizedTensor) -> OnnxLayout:
    """Linear [N, K] -> [K, N] (packed if 4 bit); a convolution (over two axes) stays as it is."""
    linear = qt.q.dim() == 2
    scale, zero_point = qt.scale, qt.zero_point
    axis: int | None = None
    block_size: int | None = None
    match qt.format.granularity:
        case PerTensor():
            pass
        case PerChannel():
            axis = 1 if linear else qt.axis
        case PerGroup() as group:
            axis, block_size = 0, _block_size(group, qt.q.shape[1])
            scale, zero_point = scale.t().contiguous(), zero_point.t().contiguous()
    four = qt.format.bits == 4
    shape = tuple(reversed(qt.q.shape)) if linear else tuple(qt.q.shape)
    return OnnxLayout(
        data=_integers(qt.q, linear=linear, four=four),
        shape=shape,
        bits=qt.format.bits,
        scale=scale,
        zero_point=pack_int4(zero_point) if four else zero_point,
        zero_point_shape=tuple(zero_point.shape),
        axis=axis,
        block_size=block_size,
    )


def _block_size(group: PerGroup, k: int) -> int:
    """The group size, or for a row shorter than a group the next power of two from 16 up.

    One group holds the whole row then, so any block of at least K means the same; ONNX Runtime
    fuses only powers of two from 16 up into MatMulNBits (K = 100: 100 stays unfused, 128 fuses).
    """
    if k >= group.size:
        return group.size
    return min(group.size, max(16, 1 << (k - 1).bit_length()))


def _integers(q: Tensor, *, linear: bool, four: bool) -> Tensor:
    if not four:
        return q.t().contiguous() if linear else q.contiguous()
    if not linear:
        return pack_int4(q)
    if q.shape[0] % 2:
        return pack_int4(q.t().contiguous())
    return pack_nibbles(q[0::2], q[1::2]).t().contiguous().view(-1)
