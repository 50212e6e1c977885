"""PyTorch on the GPU: the eager network, or through torch.compile."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any, cast

from bench.gpu_timing import Arrays, answer, load_batch, time_subject
from bench.steps import HEADS, OUTPUTS
from bench.worker import Answer
from vggt_deploy.engines.tensorrt.cuda import load_cuda
from vggt_deploy.engines.tensorrt.timing import Mark
from vggt_deploy.errors import RuntimeUnavailableError

_TOP_KERNELS = 6


def run_torch(
    checkpoint: str,
    images: str,
    arrays: str,
    frames: int,
    warmup: int,
    repeats: int,
    tf32: bool,
    half: bool,
    compiled: bool,
) -> Answer:
    """FP32 or, with `half`, BF16 in the aggregator; scaled_dot_product_attention."""
    import torch

    cuda = load_cuda()
    if not torch.cuda.is_available():
        raise RuntimeUnavailableError(
            f"this PyTorch {torch.__version__} sees no CUDA device", "install its CUDA build"
        )
    batch = load_batch(images, frames)
    cuda.use()
    torch.zeros(1, device="cuda")  # its libraries are no part of the model
    free = cuda.free_bytes()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    started = time.perf_counter()
    network = torch_network(checkpoint, "cuda", half=half)
    torch.cuda.synchronize()
    load_s = time.perf_counter() - started
    forward = torch.compile(network, dynamic=False) if compiled else network
    stream = cast(Any, torch.cuda).Stream()
    found: Arrays = {}
    call = _caller(forward, batch, stream, found)
    times = time_subject(cuda, int(stream.cuda_stream), call, warmup, repeats)
    held = free - cuda.free_bytes()
    really = {
        "torch": torch.__version__,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "kernels": _top_kernels(call),
        "peak_allocated_bytes": torch.cuda.max_memory_allocated(),
    }
    return answer(times, held, found, arrays, load_s, really)


def _caller(
    forward: Callable[[Any], dict[str, Any]], batch: Any, stream: Any, found: Arrays
) -> Callable[[Mark], None]:
    import torch

    source = torch.empty(batch.shape, pin_memory=True)
    device = torch.empty(batch.shape, device="cuda")
    hosts: dict[str, torch.Tensor] = {}

    def call(mark: Mark) -> None:
        with torch.inference_mode(), torch.cuda.stream(stream):
            source.copy_(torch.from_numpy(batch))
            mark()
            device.copy_(source, non_blocking=True)
            mark()
            outputs = forward(device)
            mark()
            for name in OUTPUTS:
                if name not in hosts:
                    hosts[name] = torch.empty(outputs[name].shape, pin_memory=True)
                hosts[name].copy_(outputs[name], non_blocking=True)
            mark()
            stream.synchronize()
            found.update({name: host.numpy().copy() for name, host in hosts.items()})

    return call


def torch_network(checkpoint: str, device: str, *, half: bool) -> Callable[[Any], dict[str, Any]]:
    """The eager network; with `half` the aggregator's products are BF16, as upstream runs it.

    Its weights are BF16 then, so that autocast has nothing to convert in a call.
    """
    import torch

    from vggt_deploy.model.weights import load_model

    model = load_model(checkpoint, heads=HEADS).to(device).eval()
    if not half:
        return model
    aggregator = model.aggregator
    for module in aggregator.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            module.to(torch.bfloat16)
    forward = aggregator.forward

    def in_half(*given: Any) -> dict[int, torch.Tensor]:
        with torch.autocast(device, dtype=torch.bfloat16):
            layers = forward(*given)
        return {index: tokens.float() for index, tokens in layers.items()}

    cast(Any, aggregator).forward = in_half
    return model


def _top_kernels(call: Callable[[Mark], None]) -> list[tuple[str, float]]:
    """The kernels that took the most time of one call: what PyTorch really chose."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        call(lambda: None)
        torch.cuda.synchronize()
    times = {event.key: event.self_device_time_total / 1e3 for event in profiled.key_averages()}
    return [(name[:80], ms) for name, ms in Counter(times).most_common(_TOP_KERNELS)]
