"""The steps of `bench.tensorrt_rtx`, each in a process of its own."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from bench.worker import Answer, Step, serve

_CALIBRATION_PICTURES = 2


def calibrate(model: str, folder: str, height: int, width: int) -> Answer:
    """Statistics for static activations, of a few rendered pictures: their values don't matter
    here, as neither size nor types depend on them.
    """
    from vggt_deploy.data.scenes import write_scenes
    from vggt_deploy.quantize.calibration import collect_statistics

    pictures = Path(folder) / "pictures"
    write_scenes(pictures, views=_CALIBRATION_PICTURES)
    collect_statistics(
        model, pictures, output_dir=Path(folder) / "statistics", height=height, width=width
    )
    return {}


def export(
    model: str,
    variant: str,
    precision: str,
    folder: str,
    statistics: str | None,
    height: int,
    width: int,
    frames: Sequence[int],
) -> Answer:
    """An artifact, not verified: that is another bench's matter."""
    from vggt_deploy.api import export as run

    scheme, _, activations = variant.partition("+")
    result = run(
        model,
        scheme,
        output_dir=Path(folder),
        activations=cast(Any, activations or "float"),
        precision=cast(Any, precision),
        height=height,
        width=width,
        frames=_range(frames),
        verify=False,
        calibrate=None if statistics is None else Path(statistics),
    )
    return {"stages": result.seconds}


def build(artifact: str, folder: str, device: str, frames: Sequence[int]) -> Answer:
    """An engine. A broken promise is a number in the table, not an error."""
    from vggt_deploy.build import build as run
    from vggt_deploy.engines.inspect import shares_of
    from vggt_deploy.engines.onnx_weights import packed_bytes

    result = run(
        Path(artifact),
        runtime="tensorrt-rtx",
        device=device,
        output_dir=Path(folder),
        accept_float=True,
        frames=[_range(frames)],
    )
    manifest = result.manifest
    record = manifest.engine
    assert record is not None
    return {
        "stages": result.seconds,
        "runtime_version": record.runtime_version,
        "plan_bytes": manifest.files[record.file].bytes,
        "weights_bytes": record.weights_bytes,
        "packed_bytes": packed_bytes(Path(artifact) / "model.tensorrt.onnx"),
        "linears": len(record.proof.linears),
        "shares": shares_of(record.proof),
        "attentions": record.proof.attentions,
        "attentions_half": record.proof.attentions_half,
        "half_unfused": len(record.proof.half_unfused),
    }


def _range(frames: Sequence[int]) -> tuple[int, int, int]:
    low, usual, high = frames  # JSON made a list of it
    return low, usual, high


STEPS: dict[str, Step] = {"calibrate": calibrate, "export": export, "build": build}

if __name__ == "__main__":
    sys.exit(serve(STEPS, sys.argv[1:]))
