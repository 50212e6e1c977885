"""The calls of the CUDA runtime: they exist with these arguments, and their errors are words."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cuda.bindings import runtime

from vggt_deploy.engines.tensorrt.buffers import Buffers
from vggt_deploy.engines.tensorrt.cuda import load_cuda
from vggt_deploy.errors import DeployError, RuntimeUnavailableError


def calls(text: str) -> Iterator[tuple[str, int]]:
    """self._call("cudaMalloc", size) and its like: the function and the number of arguments."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "self._call":
            name = node.args[0]
            if isinstance(name, ast.Constant):
                yield str(name.value), len(node.args) - 1


def arguments(function: str) -> int:
    """As the first line of the docstring says: `cudaMemcpyAsync(dst, src, size_t count, ...)`."""
    head = (getattr(runtime, function).__doc__ or "").partition("\n")[0]
    inside = head.partition("(")[2].rpartition(")")[0]
    return len([part for part in inside.split(",") if part.strip()])


def wrong_calls(text: str) -> list[str]:
    return [
        f"{name} with {count} arguments"
        for name, count in calls(text)
        if not hasattr(runtime, name) or arguments(name) != count
    ]


def test_every_call_exists_in_the_bindings(repository: Path) -> None:
    text = (repository / "vggt_deploy/engines/tensorrt/cuda.py").read_text()
    assert len(set(calls(text))) > 15
    assert wrong_calls(text) == []
    for constant in (
        runtime.cudaMemcpyKind.cudaMemcpyHostToDevice,
        runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost,
        runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal,
    ):
        assert constant.name in text
    assert "self._runtime.cudaStreamNonBlocking" in text
    assert runtime.cudaStreamNonBlocking == 1


def test_a_wrong_call_is_seen() -> None:
    text = 'self._call("cudaMallocc", 1)\nself._call("cudaMalloc", 1, 2)\nself._call("cudaFree", 1)'
    assert wrong_calls(text) == ["cudaMallocc with 1 arguments", "cudaMalloc with 2 arguments"]


def test_the_fake_takes_what_the_bindings_take(machine: Any, repository: Path) -> None:
    text = (repository / "vggt_deploy/engines/tensorrt/cuda.py").read_text()
    for name, count in calls(text):
        fake = getattr(type(machine.cuda), name)
        assert fake.__code__.co_argcount - 1 == count, name


def test_an_error_names_the_call_and_is_not_left_pending(machine: Any) -> None:
    cuda = load_cuda()
    machine.cuda.fails["cudaMalloc"] = (machine.cuda.cudaError_t.cudaErrorMemoryAllocation, 0)
    with pytest.raises(DeployError) as caught:
        cuda.allocate(4)
    assert "cudaMalloc failed with cudaErrorMemoryAllocation (the words of" in caught.value.message
    assert machine.cuda.calls[-2:] == ["cudaGetLastError", "cudaGetErrorString"]


def test_no_driver(machine: Any) -> None:
    status = machine.cuda.cudaError_t.cudaErrorInsufficientDriver
    machine.cuda.fails["cudaGetDeviceCount"] = (status, 0)
    with pytest.raises(RuntimeUnavailableError, match=r"no CUDA device: .*InsufficientDriver"):
        load_cuda()


def test_buffers_are_reused_grown_and_given_back(machine: Any) -> None:
    buffers = Buffers(load_cuda())
    first = buffers.device("a", 100)
    assert buffers.device("a", 100) == first
    assert buffers.device("a", 50) == first
    other = buffers.device("b", 10)
    assert buffers.device("a", 200) not in (first, other)
    assert (buffers.device_bytes, len(machine.cuda.device)) == (210, 2)
    array = buffers.pinned("a", (2, 3))
    array[...] = 7
    assert (buffers.pinned("a", (3, 2)) == 7).all()
    assert buffers.pinned_bytes == 24
    assert buffers.pinned("a", (2, 4)).shape == (2, 4)
    buffers.close()
    buffers.close()
    assert machine.cuda.leaks() == []
    assert (buffers.device_bytes, buffers.pinned_bytes) == (0, 0)


def test_a_buffer_that_can_not_grow_is_gone_and_not_freed_twice(machine: Any) -> None:
    buffers = Buffers(load_cuda())
    buffers.device("a", 100)
    seen = machine.cuda.calls.count("cudaMalloc")
    machine.cuda.fails["cudaMalloc"] = (machine.cuda.cudaError_t.cudaErrorMemoryAllocation, seen)
    with pytest.raises(DeployError, match="cudaMalloc"):
        buffers.device("a", 200)
    assert buffers.device_bytes == 0
    buffers.close()
    assert machine.cuda.leaks() == []


@pytest.mark.gpu
def test_the_real_thing() -> None:
    """Memory there and back, a stream, events and free memory on a CUDA device."""
    cuda = load_cuda()
    cuda.use()
    stream, buffers = cuda.create_stream(), Buffers(cuda)
    start, end = cuda.create_event(), cuda.create_event()
    there, back = buffers.pinned("there", (1000,)), buffers.pinned("back", (1000,))
    there[...] = range(1000)
    back[...] = 0
    device = buffers.device("device", there.nbytes)
    cuda.record(start, stream)
    cuda.copy_to_device(device, there.ctypes.data, there.nbytes, stream)
    cuda.copy_to_host(back.ctypes.data, device, back.nbytes, stream)
    cuda.record(end, stream)
    cuda.synchronize(stream)
    assert (back == there).all()
    assert 0 < cuda.elapsed_ms(start, end) < 1000
    assert 0 < cuda.free_bytes() <= cuda.device.total_bytes
    with pytest.raises(DeployError, match="cudaErrorMemoryAllocation"):
        cuda.allocate(1 << 50)
    buffers.close()
    for event in (start, end):
        cuda.destroy_event(event)
    cuda.destroy_stream(stream)
