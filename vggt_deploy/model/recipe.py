"""Deterministic random weights: every key of a state dict has a value that depends on its name,
its shape and a seed alone, so no file has to be stored or shipped.

    n = standard normal of `shape` from PCG64([crc32(key), seed])

and, by the last part of the key (the first line that fits):

    gamma                       0.4 + 0.05 n
    weight of one dimension     1 + 0.2 n
    bias, in_proj_bias          0.05 n; + 0.5 on the two field-of-view entries of the pose's bias
    weight of four dimensions   n / sqrt(product of shape[1:])
    two dimensions              n / sqrt(shape[-1])
    anything else               0.5 n

The scale keeps activations of a deep stack near one, so that errors are visible in every output.
"""

from __future__ import annotations

import math
import zlib

import numpy as np
import torch
from torch import Tensor

POSE_BIAS = "camera_head.pose_branch.fc2.bias"
FIELD_OF_VIEW = slice(7, 9)


def recipe_tensor(key: str, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """The float32 value of `key` under `seed`."""
    generator = np.random.Generator(np.random.PCG64([zlib.crc32(key.encode()), seed]))
    n = generator.standard_normal(math.prod(shape), dtype=np.float32).reshape(shape)
    leaf = key.rsplit(".", 1)[-1]
    if leaf == "gamma":
        n = np.float32(0.4) + np.float32(0.05) * n
    elif leaf == "weight" and len(shape) == 1:
        n = np.float32(1) + np.float32(0.2) * n
    elif leaf in ("bias", "in_proj_bias"):
        n *= np.float32(0.05)
        if key == POSE_BIAS:
            n[FIELD_OF_VIEW] += np.float32(0.5)
    elif leaf == "weight" and len(shape) == 4:
        n /= np.float32(math.sqrt(math.prod(shape[1:])))
    elif len(shape) == 2:
        n /= np.float32(math.sqrt(shape[-1]))
    else:
        n *= np.float32(0.5)
    return torch.from_numpy(n)
