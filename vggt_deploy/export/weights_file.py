"""The weights of an artifact: one file, written front to back, shared by all of its graphs.

Layout: tensors one after another, each starting at a multiple of 64 bytes, or of 4096 when it is
large enough for a runtime to map it instead of reading it. Nothing is held in memory but the tensor
being written, and the SHA-256 is taken on the way, so that the file is never read back.

    weights.bin:  [tensor 0][pad][tensor 1][pad] ...
    model.onnx:   initializer "x" -> (location="weights.bin", offset, length, dtype, shape)
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

ALIGN_BYTES = 64
PAGE_BYTES = 4096
PAGE_ALIGNED_FROM_BYTES = 1 << 20


class WeightsFile:
    """Append-only writer. `add` returns the external tensor that a graph refers to.

    Example:
        with WeightsFile(folder / "weights.bin") as weights:
            value.const_value = weights.add("w", array, ir.DataType.INT8, (1024, 4096))
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bytes_written = 0
        self._hash = hashlib.sha256()
        self._file: BinaryIO | None = None
        self._tensors: dict[str, ir.ExternalTensor] = {}

    def __enter__(self) -> Self:
        self._file = self.path.open("xb")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._file is not None
        self._file.close()
        self._file = None

    @property
    def sha256(self) -> str:
        """Digest of everything written so far."""
        return self._hash.hexdigest()

    @property
    def tensors(self) -> dict[str, ir.ExternalTensor]:
        """Name -> tensor, in the order of writing."""
        return dict(self._tensors)

    def add(
        self, name: str, data: npt.NDArray[np.generic], dtype: ir.DataType, shape: Sequence[int]
    ) -> ir.ExternalTensor:
        """Append the bytes of `data`, which must be what ONNX stores for `dtype` and `shape`.

        For INT4, `data` is uint8 with two values a byte, low nibble first; for BFLOAT16, uint16.
        A name that was written before is returned as it is: two graphs share one copy.
        """
        if name in self._tensors:
            return self._tensors[name]
        expected_bytes = -(-int(np.prod(shape, dtype=np.int64)) * dtype.bitwidth // 8)
        if data.nbytes != expected_bytes:
            raise ValueError(
                f"{name}: {data.nbytes} bytes for {dtype} {tuple(shape)}, expected {expected_bytes}"
            )
        align = PAGE_BYTES if data.nbytes >= PAGE_ALIGNED_FROM_BYTES else ALIGN_BYTES
        self._write(b"\0" * (-self.bytes_written % align))
        offset = self.bytes_written
        self._write(np.ascontiguousarray(data).reshape(-1).view(np.uint8).data)
        tensor = ir.ExternalTensor(
            self.path.name,
            offset,
            data.nbytes,
            dtype,
            shape=ir.Shape(shape),
            name=name,
            base_dir=self.path.parent,
        )
        self._tensors[name] = tensor
        return tensor

    def _write(self, data: bytes | memoryview) -> None:
        assert self._file is not None, "WeightsFile is used inside a with block"
        self._file.write(data)
        self._hash.update(data)
        self.bytes_written += len(data)
