"""ONNX Runtime's CUDA provider, on our stream, with input and outputs bound to device memory."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.gpu_timing import Arrays, answer, load_batch, time_subject
from bench.worker import Answer
from vggt_deploy.engines.tensorrt.buffers import Buffers
from vggt_deploy.engines.tensorrt.cuda import Cuda, load_cuda
from vggt_deploy.engines.tensorrt.timing import Mark
from vggt_deploy.errors import RuntimeUnavailableError

_CUDA = "CUDAExecutionProvider"
_FLOAT_BYTES = 4


def run_onnxruntime(
    folder: str, images: str, arrays: str, frames: int, warmup: int, repeats: int, tf32: bool
) -> Answer:
    """An artifact's ONNX Runtime graph, with the session settings of its manifest."""
    import onnxruntime as ort

    cuda = load_cuda()
    if _CUDA not in ort.get_available_providers():
        raise RuntimeUnavailableError(
            f"this onnxruntime {ort.__version__} has no {_CUDA}", "pip install onnxruntime-gpu"
        )
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()
    batch = load_batch(images, frames)
    cuda.use()
    stream, buffers = cuda.create_stream(), Buffers(cuda)
    free = cuda.free_bytes()
    started = time.perf_counter()
    session = _open(ort, Path(folder), Path(arrays).with_suffix(""), stream, tf32)
    load_s = time.perf_counter() - started
    found: Arrays = {}
    call = _caller(session, cuda, stream, buffers, batch, found)
    call(lambda: None)  # the one call that is profiled, to see where the nodes ran
    placed = placement(Path(session.end_profiling()))
    times = time_subject(cuda, stream, call, warmup, repeats)
    held = free - cuda.free_bytes()
    really = {"onnxruntime": ort.__version__, "tf32": tf32, **placed}
    return answer(times, held, found, arrays, load_s, really)


def _open(ort: Any, folder: Path, profile: Path, stream: int, tf32: bool) -> Any:
    from vggt_deploy.manifest import read_manifest

    graph = read_manifest(folder, check_hashes=False).graphs["onnxruntime"]
    options = ort.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(profile)
    for key, value in graph.session_options.items():
        options.add_session_config_entry(key, value)
    session = ort.InferenceSession(
        str(folder / graph.file),
        sess_options=options,
        providers=[
            (_CUDA, {"user_compute_stream": str(stream), "use_tf32": str(int(tf32))}),
            "CPUExecutionProvider",
        ],
        disabled_optimizers=list(graph.disabled_optimizers) or None,
        enable_fallback=False,
    )
    if session.get_providers()[0] != _CUDA:
        raise RuntimeUnavailableError(
            f"onnxruntime opened {', '.join(session.get_providers())} in place of {_CUDA}",
            "check driver, CUDA and cuDNN",
        )
    return session


def _caller(
    session: Any,
    cuda: Cuda,
    stream: int,
    buffers: Buffers,
    batch: NDArray[np.float32],
    found: Arrays,
) -> Callable[[Mark], None]:
    binding = session.io_binding()
    source = buffers.pinned("images", batch.shape)
    device = buffers.device("images", batch.nbytes)
    name = session.get_inputs()[0].name
    binding.bind_input(name, "cuda", 0, np.float32, batch.shape, device)
    hosts, addresses = {}, {}
    for name, shape in output_shapes(batch.shape).items():
        hosts[name] = buffers.pinned(name, shape)
        addresses[name] = buffers.device(name, _FLOAT_BYTES * math.prod(shape))
        binding.bind_output(name, "cuda", 0, np.float32, shape, addresses[name])

    def call(mark: Mark) -> None:
        np.copyto(source, batch)
        mark()
        cuda.copy_to_device(device, source.ctypes.data, source.nbytes, stream)
        mark()
        session.run_with_iobinding(binding)
        mark()
        for name, host in hosts.items():
            cuda.copy_to_host(host.ctypes.data, addresses[name], host.nbytes, stream)
        mark()
        cuda.synchronize(stream)
        found.update({name: host.copy() for name, host in hosts.items()})

    return call


def placement(profile: Path) -> Answer:
    """From ONNX Runtime's profile: nodes and their time by provider."""
    nodes: Counter[str] = Counter()
    micros: Counter[str] = Counter()
    for event in json.loads(profile.read_text()):
        provider = event.get("args", {}).get("provider")
        if event.get("cat") == "Node" and provider and event["name"].endswith("_kernel_time"):
            nodes[provider] += 1
            micros[provider] += int(event["dur"])
    return {"nodes": dict(nodes), "launch_ms": {name: us / 1e3 for name, us in micros.items()}}


def output_shapes(images: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Shapes of the five outputs for images [1, S, 3, H, W]."""
    _, frames, _, height, width = images
    return {
        "pose_enc": (1, frames, 9),
        "depth": (1, frames, height, width, 1),
        "depth_conf": (1, frames, height, width),
        "world_points": (1, frames, height, width, 3),
        "world_points_conf": (1, frames, height, width),
    }
