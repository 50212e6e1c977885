from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vggt_deploy.export.weights_file import (
    ALIGN_BYTES,
    PAGE_ALIGNED_FROM_BYTES,
    PAGE_BYTES,
    WeightsFile,
)


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(sizes=st.lists(st.integers(1, 300), min_size=1, max_size=12))
def test_tensors_come_back_aligned_and_hashed(sizes: list[int], tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.unlink(missing_ok=True)
    arrays = {f"w{i}": np.arange(size, dtype=np.float32) + 1000 * i for i, size in enumerate(sizes)}
    with WeightsFile(path) as file:
        for name, array in arrays.items():
            file.add(name, array, ir.DataType.FLOAT, array.shape)
    end = 0
    for name, tensor in file.tensors.items():
        assert tensor.offset % ALIGN_BYTES == 0
        assert 0 <= tensor.offset - end < ALIGN_BYTES
        end = tensor.offset + tensor.length
        np.testing.assert_array_equal(tensor.numpy(), arrays[name])
    assert end == file.bytes_written == path.stat().st_size
    assert file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_large_tensor_starts_at_a_page(tmp_path: Path) -> None:
    with WeightsFile(tmp_path / "w") as file:
        file.add("small", np.zeros(1, np.int8), ir.DataType.INT8, (1,))
        big = np.ones(PAGE_ALIGNED_FROM_BYTES, np.int8)
        below = file.add("below", big[1:], ir.DataType.INT8, (len(big) - 1,))
        large = file.add("large", big, ir.DataType.INT8, big.shape)
    assert below.offset == ALIGN_BYTES
    assert large.offset % PAGE_BYTES == 0


def test_a_name_is_stored_once(tmp_path: Path) -> None:
    array = np.ones(4, np.float32)
    with WeightsFile(tmp_path / "w") as file:
        first = file.add("x", array, ir.DataType.FLOAT, (4,))
        again = file.add("x", array, ir.DataType.FLOAT, (4,))
    assert again is first
    assert file.bytes_written == 16


@pytest.mark.parametrize(
    "dtype, shape, array",
    [
        (ir.DataType.FLOAT, (4,), np.ones(3, np.float32)),
        (ir.DataType.FLOAT, (4,), np.ones(4, np.float64)),
        (ir.DataType.FLOAT16, (4,), np.ones(4, np.float32)),
        (ir.DataType.INT4, (4,), np.ones(4, np.uint8)),  # one value a byte: not packed
        (ir.DataType.INT4, (5,), np.ones(2, np.uint8)),
    ],
)
def test_a_wrong_number_of_bytes_is_refused(
    dtype: ir.DataType, shape: tuple[int, ...], array: np.ndarray, tmp_path: Path
) -> None:
    with (
        WeightsFile(tmp_path / "w") as file,
        pytest.raises(ValueError, match=r"^x: \d+ bytes for .* expected \d+"),
    ):
        file.add("x", array, dtype, shape)
    assert file.bytes_written == 0


def test_half_a_byte_a_value(tmp_path: Path) -> None:
    with WeightsFile(tmp_path / "w") as file:
        tensor = file.add("x", np.array([0xE1, 0x07], np.uint8), ir.DataType.INT4, (3,))
    assert tensor.length == 2
    np.testing.assert_array_equal(tensor.numpy().astype(int), [1, -2, 7])  # low nibble first


def test_an_array_that_is_not_contiguous_is_written_in_its_order(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    with WeightsFile(tmp_path / "w") as file:
        tensor = file.add("x", array, ir.DataType.FLOAT, (3, 2))
    np.testing.assert_array_equal(tensor.numpy(), array)


def test_a_file_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(b"mine")
    with pytest.raises(FileExistsError), WeightsFile(tmp_path / "w"):
        pass
    assert (tmp_path / "w").read_bytes() == b"mine"
