"""The steps of `bench.gpu`, each in a process of its own: `python -m bench.gpu_steps JOB.json`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np

from bench.gpu_onnxruntime import run_onnxruntime
from bench.gpu_timing import Arrays, answer, load_batch, time_subject, unavailable
from bench.gpu_torch import run_torch
from bench.steps import write_checkpoint
from bench.worker import Answer, Step, serve
from vggt_deploy.engines.tensorrt.cuda import load_cuda
from vggt_deploy.engines.tensorrt.timing import Mark

# Images that static activations are calibrated on; on the CPU, so a few.
CALIBRATION_IMAGES = 4
_RTX_FALLBACK = "8.0"


def find_device() -> Answer:
    """The CUDA device, and what of it is in use before we start."""
    cuda = load_cuda()
    device = asdict(cuda.device)
    return {"device": {**device, "used_bytes": cuda.device.total_bytes - cuda.free_bytes()}}


def make_images(folder: str, arrays: str, count: int, height: int, width: int) -> Answer:
    """A rendered scene as pictures, and as the one array that every subject is given."""
    from vggt_deploy.data.folders import find_images
    from vggt_deploy.data.images import load_images
    from vggt_deploy.data.scenes import write_scenes

    calibration = Path(folder) / "calibration"
    write_scenes(Path(folder) / "all", views=count, width=width, height=height)
    write_scenes(calibration, views=CALIBRATION_IMAGES, width=width, height=height)
    paths = find_images(Path(folder) / "all").paths
    np.save(arrays, load_images(paths, height=height, width=width).pixels[None])
    return {"images": count, "calibration": str(calibration)}


def export(
    checkpoint: str,
    folder: str,
    name: str,
    height: int,
    width: int,
    frames: list[int],
    calibration: str,
    traces: str,
) -> Answer:
    """The artifact that is called `name`."""
    from vggt_deploy.api import export as export_artifact
    from vggt_deploy.quantize.schemes import parse_label

    variant, _, precision = name.partition("@")
    asked = parse_label(variant)
    result = export_artifact(
        checkpoint,
        asked.label,
        output_dir=Path(folder),
        precision=cast(Any, precision),
        height=height,
        width=width,
        frames=(min(frames), sorted(frames)[len(frames) // 2], max(frames)),
        calibrate=Path(calibration) if asked.needs_pictures else None,
        trace_cache=Path(traces),
        verify=False,
    )
    return {"stages": result.seconds}


def build(artifact: str, folder: str, runtime: str, frames: list[int], tf32: bool) -> Answer:
    """An engine for the device that is here, with one profile for each number of frames.

    One that does not compute as its scheme promises is measured all the same: the table says so.
    """
    from vggt_deploy.api import build as build_engine
    from vggt_deploy.engines.tensorrt.library import has_member, load_library

    library = load_library(runtime)
    capability = load_cuda().device.compute_capability
    trt = library.trt
    if library.is_rtx and not has_member(trt.ComputeCapability, f"SM{capability.replace('.', '')}"):
        # Not a name it knows. Whether the device takes code of an older one, loading will tell.
        capability = _RTX_FALLBACK
    profile = Path(folder).with_suffix(".toml")
    profile.write_text(device_profile(runtime, capability, frames, tf32))
    result = build_engine(
        Path(artifact),
        runtime=runtime,
        device=str(profile),
        output_dir=Path(folder),
        accept_float=True,
    )
    return {"stages": result.seconds, **describe_engine(Path(folder))}


def device_profile(runtime: str, capability: str, frames: list[int], tf32: bool) -> str:
    """The text of a device profile."""
    counts = ", ".join(f'"{count}"' for count in sorted(frames))
    return (
        f'title = "The device of this benchmark, compute capability {capability}"\n'
        f'runtimes = ["{runtime}"]\ncompute_capabilities = ["{capability}"]\n'
        f"frames = [{counts}]\ntf32 = {str(tf32).lower()}\noptimization_level = 3\n"
    )


def describe_engine(folder: Path) -> Answer:
    """What the manifest proves, in numbers."""
    from vggt_deploy.engines.kernels import flop_shares
    from vggt_deploy.manifest import read_manifest

    record = read_manifest(folder, check_hashes=False).engine
    assert record is not None
    return {
        "plan_bytes": (folder / record.file).stat().st_size,
        "build_peak_rss_bytes": record.peak_rss_bytes,
        "runtime_version": record.runtime_version,
        "tf32": record.tf32,
        "linears": len(record.proof.linears),
        "flop_shares": flop_shares(record.proof),
        "attentions": record.proof.attentions,
        "attentions_fused": record.proof.attentions_fused,
        "proof": record.proof.source,
    }


def run_engine(
    folder: str, images: str, arrays: str, frames: int, warmup: int, repeats: int, cuda_graph: bool
) -> Answer:
    """A TensorRT or TensorRT-RTX engine."""
    from vggt_deploy.engines.runtime import open_session
    from vggt_deploy.engines.tensorrt.session import TensorRTSession

    batch = load_batch(images, frames)
    cuda = load_cuda()
    cuda.use()
    free = cuda.free_bytes()
    session = open_session(folder, cuda_graph=cuda_graph)
    assert isinstance(session, TensorRTSession)
    found: Arrays = {}

    def call(mark: Mark) -> None:
        found.update(session.run(batch, mark=mark))

    times = time_subject(cuda, session.parts.stream, call, warmup, repeats)
    held = free - cuda.free_bytes()
    really = {**describe_engine(Path(folder)), "notes": list(session.info.notes)}
    told = answer(times, held, found, arrays, session.info.load_ms / 1e3, really)
    session.close()
    return told


STEPS: dict[str, Step] = {
    "write_checkpoint": write_checkpoint,
    "make_images": make_images,
    "find_device": unavailable(find_device),
    "export": unavailable(export),
    "build": unavailable(build),
    "run_torch": unavailable(run_torch),
    "run_onnxruntime": unavailable(run_onnxruntime),
    "run_engine": unavailable(run_engine),
}

if __name__ == "__main__":
    sys.exit(serve(STEPS, sys.argv[1:]))
