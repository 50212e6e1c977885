"""The little of the CUDA runtime that running an engine needs, through NVIDIA's cuda-bindings.

    cuda = load_cuda()              # or one RuntimeUnavailableError that says what is missing
    stream = cuda.create_stream()

Every function of the bindings returns a tuple with the error first; here an error is a DeployError
that names the call. Handles and device addresses are plain integers. Memory sizes are bytes.
"""

from __future__ import annotations

import importlib
from typing import Any

from vggt_deploy.engines.device import CudaDevice, cuda_device
from vggt_deploy.errors import DeployError, RuntimeUnavailableError

_OUT_OF_MEMORY = "cudaErrorMemoryAllocation"


def load_cuda() -> Cuda:
    """The CUDA runtime and its first device (CUDA_VISIBLE_DEVICES chooses which one is first).

    Raises:
        RuntimeUnavailableError: no cuda-bindings, no driver, or no device.
    """
    device = cuda_device(0)
    if isinstance(device, str):
        raise RuntimeUnavailableError(
            f"no CUDA device: {device}",
            "run it on a machine with an NVIDIA GPU, its driver and cuda-bindings"
            " (see `vggt-deploy doctor`)",
        )
    return Cuda(importlib.import_module("cuda.bindings.runtime"), device)


class Cuda:
    """The CUDA runtime on one device, which is made that of the thread that calls `use`."""

    def __init__(self, runtime: Any, device: CudaDevice) -> None:
        self._runtime = runtime
        self.device = device

    def _call(self, function: str, *arguments: Any) -> Any:
        """What the function returns after its error: nothing, a value, or a tuple."""
        runtime = self._runtime
        status, *values = getattr(runtime, function)(*arguments)
        if status == runtime.cudaError_t.cudaSuccess:
            return values[0] if len(values) == 1 else tuple(values)
        runtime.cudaGetLastError()  # or the next, innocent call of TensorRT finds this error
        out_of_memory = getattr(status, "name", "") == _OUT_OF_MEMORY
        raise DeployError(
            f"CUDA: {function} failed with {_describe(runtime, status)}",
            "give fewer images, build with smaller frame counts, or free the GPU for this process"
            if out_of_memory
            else "open the engine again; if it comes back, see the kernel's log (dmesg) for Xid",
        )

    def use(self) -> None:
        """Make the device that of the calling thread."""
        self._call("cudaSetDevice", self.device.index)

    def free_bytes(self) -> int:
        """Device memory that is free, of all processes."""
        return int(self._call("cudaMemGetInfo")[0])

    # Memory

    def allocate(self, size: int) -> int:
        """Address of `size` bytes on the device, aligned to 256 bytes."""
        return int(self._call("cudaMalloc", size))

    def free(self, address: int) -> None:
        """Give back what `allocate` gave."""
        self._call("cudaFree", address)

    def allocate_pinned(self, size: int) -> int:
        """Address of `size` bytes of host memory that the device copies from and to directly."""
        return int(self._call("cudaMallocHost", size))

    def free_pinned(self, address: int) -> None:
        """Give back what `allocate_pinned` gave."""
        self._call("cudaFreeHost", address)

    def copy_to_device(self, target: int, source: int, size: int, stream: int) -> None:
        """Enqueue a copy from host to device."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", target, source, size, kind, stream)

    def copy_to_host(self, target: int, source: int, size: int, stream: int) -> None:
        """Enqueue a copy from device to host."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", target, source, size, kind, stream)

    # Streams

    def create_stream(self) -> int:
        """A stream that does not wait for the default stream."""
        flags = self._runtime.cudaStreamNonBlocking
        return int(self._call("cudaStreamCreateWithFlags", flags))

    def synchronize(self, stream: int) -> None:
        """Wait until everything on the stream is done; errors of that work come up here."""
        self._call("cudaStreamSynchronize", stream)

    def destroy_stream(self, stream: int) -> None:
        """Give the stream back."""
        self._call("cudaStreamDestroy", stream)

    # Events

    def create_event(self) -> int:
        """An event that takes the time when the stream gets to it."""
        return int(self._call("cudaEventCreate"))

    def record(self, event: int, stream: int) -> None:
        """Enqueue the event."""
        self._call("cudaEventRecord", event, stream)

    def elapsed_ms(self, start: int, end: int) -> float:
        """Milliseconds between two events that have both passed; resolution about 0.5 us."""
        return float(self._call("cudaEventElapsedTime", start, end))

    def destroy_event(self, event: int) -> None:
        """Give the event back."""
        self._call("cudaEventDestroy", event)

    # Graphs

    def begin_capture(self, stream: int) -> None:
        """From now on, what this thread puts on the stream is recorded and not run."""
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)

    def end_capture(self, stream: int) -> int:
        """The recorded work, ready to be launched."""
        graph = self._call("cudaStreamEndCapture", stream)
        try:
            return int(self._call("cudaGraphInstantiate", graph, 0))
        finally:
            self._call("cudaGraphDestroy", graph)

    def launch(self, executable: int, stream: int) -> None:
        """Enqueue a recorded graph."""
        self._call("cudaGraphLaunch", executable, stream)

    def destroy_graph(self, executable: int) -> None:
        """Give back what `end_capture` gave."""
        self._call("cudaGraphExecDestroy", executable)


def _describe(runtime: Any, status: Any) -> str:
    """In words: "cudaErrorNoDevice (no CUDA-capable device is detected)"."""
    _, text = runtime.cudaGetErrorString(status)
    words = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
    return f"{getattr(status, 'name', status)} ({words})"
