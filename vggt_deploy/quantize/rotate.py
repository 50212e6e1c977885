"""Values of attention turned by a Hadamard matrix, which costs no operator (QuaRot, 2404.00456).

Attention mixes values over tokens and never over channels, so a matrix R on the channels of one
head goes through it. R on the rows of the value projection, its inverse on the columns of the
output projection:

    sum_t p_t (R v_t) = R (sum_t p_t v_t),   W_proj R^T R z = W_proj z,   R = H / sqrt(D)

H is Sylvester's, H_1 = [1], H_2D = [[H_D, H_D], [H_D, -H_D]]: symmetric, and R R = 1. Each channel
of the output projection's input becomes a sum of all of the head with equal weights, so one that
stands out is spread over D, and its range falls by up to sqrt(D). D must be a power of two; it is
32 and 64 (camera head: 64 and 128) in vggt-nano and VGGT-1B.

Left alone:
- Queries and keys. Their product is not quantized, and in the aggregator a LayerNorm with an affine
  of each channel stands between their projection and it.
- The token stream. QuaRot turns it after LayerNorms became RMS norms, whose mean is taken off by
  whoever writes to the stream. Here the camera head reads the un-normalised concatenation of two
  streams, and its gate, shift and scale multiply channel by channel, in the basis of the
  checkpoint; the dense heads normalise that concatenation with a mean over both. Turned streams
  would have to be turned back by an operator before them.
- The input of fc2. GELU acts on each channel, so the turn would be an operator of its own, run for
  every token (`bench/hadamard_mlp.py` measures what it would buy).
"""

from __future__ import annotations

import torch
from torch import Tensor

from vggt_deploy.errors import UsageError


def hadamard(size: int) -> Tensor:
    """R = H / sqrt(size), float64 [size, size]: orthogonal and symmetric.

    Raises:
        UsageError: size is no power of two.
    """
    if size < 1 or size & (size - 1):
        raise UsageError(
            f"there is no Hadamard matrix of this kind for {size} channels, only for powers of two",
            "leave rotate out for this model",
        )
    matrix = torch.ones(1, 1, dtype=torch.float64)
    pair = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    while matrix.shape[0] < size:
        matrix = torch.kron(pair, matrix)
    return matrix.div_(size**0.5)


def rotate_rows(rows: Tensor, heads: int) -> Tensor:
    """R on the rows of each head: the value part [C, K] of a qkv weight, or [C] of its bias."""
    apart = rows.double().reshape(heads, rows.shape[0] // heads, -1)
    return (hadamard(apart.shape[1]) @ apart).reshape(rows.shape)


def rotate_columns(weight: Tensor, heads: int) -> Tensor:
    """W R^T with R on the columns of each head: the weight [N, C] of an output projection."""
    apart = weight.double().reshape(weight.shape[0], heads, -1)
    return (apart @ hadamard(apart.shape[2]).T).reshape(weight.shape)
