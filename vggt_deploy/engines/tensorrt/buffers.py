"""Device and pinned host memory of a session: by name, grown when needed, given back together."""

from __future__ import annotations

import contextlib
import ctypes
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggt_deploy.engines.tensorrt.cuda import Cuda
from vggt_deploy.errors import DeployError

_FLOAT_BYTES = 4


class Buffers:
    """Memory that outlives a run. What is asked for again under a name is reused if it is enough.

    Nothing may be running on the memory when a buffer grows, and pinned arrays end with `close`.
    """

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._device: dict[str, tuple[int, int]] = {}  # name -> address, bytes
        self._pinned: dict[str, tuple[int, int]] = {}

    @property
    def device_bytes(self) -> int:
        """Bytes on the device."""
        return sum(size for _, size in self._device.values())

    @property
    def pinned_bytes(self) -> int:
        """Bytes of pinned host memory."""
        return sum(size for _, size in self._pinned.values())

    def device(self, name: str, size: int) -> int:
        """Address of at least `size` bytes on the device."""
        held = self._device.get(name)
        if held is not None and held[1] >= size:
            return held[0]
        if held is not None:
            # Given back first: the old and the new one together may not fit.
            del self._device[name]
            self._cuda.free(held[0])
        address = self._cuda.allocate(size)
        self._device[name] = (address, size)
        return address

    def pinned(self, name: str, shape: Sequence[int]) -> NDArray[np.float32]:
        """A float32 array on pinned memory, valid until it grows or `close`."""
        size = _FLOAT_BYTES * math.prod(shape)
        held = self._pinned.get(name)
        if held is None or held[1] < size:
            if held is not None:
                del self._pinned[name]
                self._cuda.free_pinned(held[0])
            held = (self._cuda.allocate_pinned(size), size)
            self._pinned[name] = held
        memory: Any = (ctypes.c_byte * size).from_address(held[0])
        return np.frombuffer(memory, dtype=np.float32).reshape(shape)

    def close(self) -> None:
        """Give everything back; a second call does nothing."""
        # After an error inside a kernel every call fails, and the driver frees it all by itself.
        while self._device:
            with contextlib.suppress(DeployError):
                self._cuda.free(self._device.popitem()[1][0])
        while self._pinned:
            with contextlib.suppress(DeployError):
                self._cuda.free_pinned(self._pinned.popitem()[1][0])
