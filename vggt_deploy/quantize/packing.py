"""4-bit integers in bytes, as ONNX INT4 stores them.

Row-major order, two to a byte, the first in the low nibble: byte[i] = q[2i] & 15 | q[2i+1] << 4.
An odd count is padded with a zero nibble. q is signed, -8..7, two's complement in its nibble.
"""

from __future__ import annotations

import torch
from torch import Tensor


def pack_int4(q: Tensor) -> Tensor:
    """Int8 tensor of any shape, values -8..7 -> uint8 [ceil(numel / 2)]."""
    flat = q.reshape(-1)
    if flat.dtype != torch.int8:
        raise TypeError(f"pack_int4 takes int8, not {flat.dtype}")
    packed = pack_nibbles(flat[: flat.numel() // 2 * 2 : 2], flat[1::2])
    if flat.numel() % 2:
        packed = torch.cat([packed, (flat[-1:] & 15).view(torch.uint8)])
    return packed


def pack_nibbles(low: Tensor, high: Tensor) -> Tensor:
    """Two int8 tensors of one shape -> uint8 of that shape, `low` in the low nibble."""
    packed = high << 4
    packed |= low & 15
    return packed.view(torch.uint8)


def unpack_int4(packed: Tensor, count: int) -> Tensor:
    """uint8 [ceil(count / 2)] -> int8 [count], the inverse of `pack_int4`."""
    if packed.dtype != torch.uint8 or packed.numel() != (count + 1) // 2:
        raise ValueError(
            f"{count} nibbles need {(count + 1) // 2} uint8, not {packed.numel()} of {packed.dtype}"
        )
    signed = packed.reshape(-1).view(torch.int8)
    q = torch.empty(signed.numel(), 2, dtype=torch.int8, device=packed.device)
    # Arithmetic shifts of a signed byte extend the nibble's sign.
    torch.bitwise_right_shift(signed << 4, 4, out=q[:, 0])
    torch.bitwise_right_shift(signed, 4, out=q[:, 1])
    return q.reshape(-1)[:count]
