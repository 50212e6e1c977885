from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vggt_deploy.quantize.packing import pack_int4, unpack_int4

nibbles = st.lists(st.integers(-8, 7), max_size=33)


@given(nibbles)
def test_bytes_are_those_of_the_definition_and_come_back(values: list[int]) -> None:
    packed = pack_int4(torch.tensor(values, dtype=torch.int8))
    padded = values + [0] * (len(values) % 2)
    wanted = [
        (low & 15) | (high & 15) << 4 for low, high in zip(padded[::2], padded[1::2], strict=True)
    ]
    assert packed.dtype == torch.uint8
    assert packed.tolist() == wanted
    assert unpack_int4(packed, len(values)).tolist() == values


def test_swapped_nibbles_would_be_noticed() -> None:
    q = torch.tensor([1, -2, 3, 4], dtype=torch.int8)
    packed = pack_int4(q)
    assert packed.tolist() == [0xE1, 0x43]
    swapped = (packed << 4) | (packed >> 4)
    assert unpack_int4(swapped, 4).tolist() == [-2, 1, 4, 3]


def test_four_bit_numbers_take_four_bits() -> None:
    q = torch.randint(-7, 8, (64, 128), dtype=torch.int8)
    assert pack_int4(q).nbytes * 2 == q.nbytes
    assert np.array_equal(unpack_int4(pack_int4(q), q.numel()).view(64, 128).numpy(), q.numpy())


def test_wrong_types_and_counts_are_refused() -> None:
    with pytest.raises(TypeError, match="int8"):
        pack_int4(torch.zeros(4, dtype=torch.int32))
    with pytest.raises(ValueError, match="nibbles"):
        unpack_int4(torch.zeros(3, dtype=torch.uint8), 8)
    with pytest.raises(ValueError, match="nibbles"):
        unpack_int4(torch.zeros(3, dtype=torch.int8), 6)
