"""The steps, each in a process of its own: `python -m bench.steps JOB.json`.

What people do today (`plain_export` and what starts from its file) is written as the documentation
of those tools shows it: the eager model, the exporter's defaults, ONNX Runtime's own quantizers. No
rewrite of ours is in it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from bench.worker import Answer, Step, serve
from vggt_deploy.compare.contention import watch_others
from vggt_deploy.compare.latency import measure
from vggt_deploy.memory import peak_rss_bytes

HEADS = frozenset({"camera", "depth", "point"})
OUTPUTS = ("pose_enc", "depth", "depth_conf", "world_points", "world_points_conf")
GRAPH = "model.onnx"
MAX_FRAMES = 16
WARMUP = 1
_LOG_ERRORS_ONLY = 3


def identify(model: str) -> Answer:
    """Which architecture, and how many bytes its weights are without the track head."""
    from vggt_deploy.model.weights import check_keys, expected_shapes, open_weights

    config, source = open_weights(model)
    check_keys(source, config, HEADS)
    count = sum(int(np.prod(shape)) for shape in expected_shapes(config, HEADS).values())
    return {"config": config.name, "fp32_bytes": 4 * count}


def write_checkpoint(model: str, path: str) -> Answer:
    """The file that everything starts from: FP32, without the track head."""
    from safetensors.torch import save_file

    from vggt_deploy.model.weights import load_model

    save_file(load_model(model, heads=HEADS).state_dict(), path)
    return {}


def plain_export(checkpoint: str, folder: str, height: int, width: int) -> Answer:
    """The eager model through torch.onnx.export, frames dynamic, everything else by default."""
    import torch

    from vggt_deploy.model.weights import load_model

    class Flat(torch.nn.Module):
        """Tuple outputs, which the exporter wants."""

        def __init__(self) -> None:
            super().__init__()
            self.vggt = load_model(checkpoint, heads=HEADS)

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
            found = self.vggt(images)
            return tuple(found[name] for name in OUTPUTS)

    with torch.no_grad():
        torch.onnx.export(
            Flat(),
            (torch.rand(1, 3, 3, height, width),),  # with 2 frames torch makes 2 a constant
            str(Path(folder) / GRAPH),
            dynamo=True,
            external_data=True,
            input_names=["images"],
            output_names=list(OUTPUTS),
            dynamic_shapes=({1: torch.export.Dim("frames", min=1, max=MAX_FRAMES)},),
        )
    return {}


def quantize_dynamic_matmul(source: str, folder: str) -> Answer:
    """INT8 weights and dynamic activations in MatMul alone: what is fast on a transformer."""
    return _quantize_dynamic(source, folder, ["MatMul"])


def quantize_dynamic_all(source: str, folder: str) -> Answer:
    """The same for every operator that the quantizer takes by default, Conv among them."""
    return _quantize_dynamic(source, folder, None)


def _quantize_dynamic(source: str, folder: str, operators: Sequence[str] | None) -> Answer:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        str(Path(source) / GRAPH),
        str(Path(folder) / GRAPH),
        op_types_to_quantize=operators,
        per_channel=True,
        weight_type=QuantType.QInt8,
        use_external_data_format=True,
    )
    return {}


def quantize_nbits(source: str, folder: str) -> Answer:
    """ONNX Runtime's MatMulNBits with 4-bit weights and activations rounded to 8 bit."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(
        onnx.load(Path(source) / GRAPH), bits=4, block_size=128, is_symmetric=True, accuracy_level=4
    )
    quantizer.process()
    quantizer.model.save_model_to_file(str(Path(folder) / GRAPH), True)
    return {}


def export_ours(
    checkpoint: str,
    folder: str,
    variant: str,
    height: int,
    width: int,
    threads: int,
    pictures: str | None,
) -> Answer:
    """An artifact, without the check against PyTorch: the others check nothing either.

    pictures: a folder to calibrate static activations on, None for all other variants.
    """
    import torch

    from vggt_deploy.api import export

    torch.set_num_threads(threads)
    scheme, _, activations = variant.partition("+")
    result = export(
        checkpoint,
        scheme,
        output_dir=Path(folder),
        activations=cast(Any, activations or "float"),
        height=height,
        width=width,
        frames=(1, 2, MAX_FRAMES),
        verify=False,
        calibrate=None if pictures is None else Path(pictures),
    )
    return {"stages": result.seconds}


def run_torch(
    checkpoint: str, images: str, arrays: str | None, repeats: int, threads: int
) -> Answer:
    """PyTorch FP32, eager, scaled_dot_product_attention."""
    import torch

    from vggt_deploy.model.weights import load_model

    torch.set_num_threads(threads)
    batch = torch.from_numpy(np.load(images))
    start = time.perf_counter()
    model = load_model(checkpoint, heads=HEADS)
    load_s = time.perf_counter() - start

    def call() -> dict[str, NDArray[np.float32]]:
        with torch.inference_mode():
            found = model(batch)
        return {name: found[name].numpy() for name in OUTPUTS}

    return _time(call, load_s, arrays, repeats)


def run_plain(folder: str, images: str, arrays: str | None, repeats: int, threads: int) -> Answer:
    """A plain ONNX file in ONNX Runtime with its default settings."""
    import onnxruntime as ort

    batch = np.load(images)
    options = ort.SessionOptions()
    options.log_severity_level = _LOG_ERRORS_ONLY
    options.intra_op_num_threads = threads
    start = time.perf_counter()
    session = ort.InferenceSession(
        str(Path(folder) / GRAPH), sess_options=options, providers=["CPUExecutionProvider"]
    )
    load_s = time.perf_counter() - start

    def call() -> dict[str, NDArray[np.float32]]:
        return dict(zip(OUTPUTS, session.run(list(OUTPUTS), {"images": batch}), strict=True))

    return _time(call, load_s, arrays, repeats)


def run_ours(folder: str, images: str, arrays: str | None, repeats: int, threads: int) -> Answer:
    """An artifact in ONNX Runtime with its manifest's settings, hashes checked first."""
    import onnxruntime  # noqa: F401  imported here so that opening the artifact does not pay

    from vggt_deploy.engines.runtime import open_session

    batch = np.load(images)
    start = time.perf_counter()
    session = open_session(Path(folder), threads=threads)
    whole_s = time.perf_counter() - start
    load_s = session.info.load_ms / 1e3
    answer = _time(lambda: session.run(batch), load_s, arrays, repeats)
    return {**answer, "check_s": whole_s - load_s}


def _time(
    call: Callable[[], dict[str, NDArray[np.float32]]],
    load_s: float,
    arrays: str | None,
    repeats: int,
) -> Answer:
    with watch_others() as others:
        latency, outputs = measure(call, warmup=WARMUP, repeats=repeats)
    peak = peak_rss_bytes()[0]
    if arrays is not None:
        np.savez(arrays, **cast(Any, outputs))
    return {
        "load_s": load_s,
        "samples_s": [ms / 1e3 for ms in latency.samples_ms],
        "warmup_s": [ms / 1e3 for ms in latency.warmup_ms],
        "peak_rss_bytes": peak,
        "others_cpus": others.cpus,
    }


STEPS: dict[str, Step] = {
    "identify": identify,
    "write_checkpoint": write_checkpoint,
    "plain_export": plain_export,
    "quantize_dynamic_matmul": quantize_dynamic_matmul,
    "quantize_dynamic_all": quantize_dynamic_all,
    "quantize_nbits": quantize_nbits,
    "export_ours": export_ours,
    "run_torch": run_torch,
    "run_plain": run_plain,
    "run_ours": run_ours,
}

if __name__ == "__main__":
    sys.exit(serve(STEPS, sys.argv[1:]))
