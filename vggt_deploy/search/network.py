"""The whole network in ONNX Runtime, FP32 and with a recipe: how much of the speed is left.

Sums over Linears tell assignments apart, and leave out all that stands between them. So where a
speed was asked for, both networks are exported as `export` does it and timed as they are run.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from vggt_deploy.compare.latency import measure
from vggt_deploy.engines.onnxruntime import open_onnxruntime
from vggt_deploy.export import export
from vggt_deploy.progress import Progress
from vggt_deploy.quantize.schemes import Precision, Quantization, get_scheme
from vggt_deploy.search.records import NetworkTime

REPEATS = 7
WARMUP = 2


def network_times(
    model: str,
    asked: Quantization,
    pixels: NDArray[np.float32],
    *,
    outputs: Sequence[str],
    precision: Precision,
    work: Path,
    config: str | None = None,
    revision: str | None = None,
    calibrate: Path | None = None,
    threads: int | None = None,
    report: Progress,
) -> tuple[NetworkTime, NetworkTime]:
    """FP32 and the recipe, each exported into `work` for as long as it is timed.

    pixels: [S, 3, H, W], what they are timed on
    calibrate: pictures, for static activations alone
    """
    frames, _, height, width = pixels.shape
    times = []
    variants = (Quantization(get_scheme("fp32")), asked)
    with TemporaryDirectory(dir=work, prefix=".exports-") as temporary:
        folder = Path(temporary)
        for done, variant in enumerate(variants):
            report("network speed", done, len(variants))
            artifact = folder / f"variant-{done}"
            static = variant.activations == "static"
            manifest = export(
                model,
                variant,
                output_dir=artifact,
                precision=precision if variant.scheme.integer else None,
                outputs=tuple(outputs),
                height=height,
                width=width,
                frames=(frames, frames, frames),
                config=config,
                revision=revision,
                verify=False,
                calibrate=calibrate if static else None,
                trace_cache=folder / "traces",
            ).manifest
            session = open_onnxruntime(artifact, manifest, provider="cpu", threads=threads)
            try:
                latency, _ = measure(
                    lambda session=session: session.run(pixels[None]),  # type: ignore[misc]
                    warmup=WARMUP,
                    repeats=REPEATS,
                )
            finally:
                session.close()
            rmtree(artifact)
            times.append(NetworkTime(variant.label, latency.n, latency.median_ms, latency.iqr_ms))
        report("network speed", len(variants), len(variants))
    exact, chosen = times
    return exact, chosen
