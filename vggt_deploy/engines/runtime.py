"""What every runtime offers: open an artifact, say what really runs, run images, close.

    with contextlib.closing(open_session(Path("vggt-1b-int8_pc_sym"))) as session:
        outputs = session.run(images)          # images [1, S, 3, H, W], float32 RGB in 0..1

An ONNX artifact runs in ONNX Runtime, an engine in the TensorRT it was built with, on the GPU. The
artifact's hashes are checked before its graph or engine is read. A runtime, provider or shape that
can't be had is an error; nothing is replaced by something else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vggt_deploy.errors import UsageError
from vggt_deploy.manifest import read_manifest
from vggt_deploy.records import FramesRange, Manifest

RUNTIMES = ("onnxruntime", "tensorrt", "tensorrt-rtx")
PROVIDERS = ("cpu", "cuda")
# Bicubic resizing overshoots nothing after uint8, so images are in 0..1; a little room for callers
# that resize in float. What this catches is 0..255, and mean and std already subtracted.
_RANGE = (-0.1, 1.1)


@dataclass(frozen=True)
class SessionInfo:
    """What was opened and what runs it.

    load_ms: creating the session, from file to ready, without the hash check
    threads: as asked for; None leaves it to the runtime
    frames: the smallest and the largest count; `profiles` may leave gaps between them
    profiles: the counts that each optimization profile of an engine takes; empty for ONNX Runtime
    device: the GPU of an engine, in words
    notes: what the runtime says about this engine on this device
    """

    artifact: Path
    variant: str
    runtime: str
    runtime_version: str
    provider: str
    threads: int | None
    load_ms: float
    outputs: tuple[str, ...]
    height: int
    width: int
    frames: FramesRange
    profiles: tuple[FramesRange, ...] = ()
    device: str | None = None
    cuda_graph: bool = False
    notes: tuple[str, ...] = ()


class Session(Protocol):
    """An open artifact. `run` may be called any number of times until `close`."""

    @property
    def info(self) -> SessionInfo:
        """What was opened and what runs it."""

    def run(self, images: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Images [1, S, 3, H, W] to the outputs of the manifest, named and shaped as upstream."""

    def close(self) -> None:
        """Give back the memory; a second call does nothing."""


class Runtime(Protocol):
    """How one runtime opens an artifact whose manifest has been read and checked."""

    def __call__(
        self,
        artifact: Path,
        manifest: Manifest,
        *,
        provider: str,
        threads: int | None,
        cuda_graph: bool = False,
    ) -> Session:
        """Open it as asked, or say why that can't be."""


def open_session(
    artifact: Path | str,
    *,
    runtime: str | None = None,
    provider: str | None = None,
    threads: int | None = None,
    cuda_graph: bool = False,
    check_hashes: bool = True,
    progress: Callable[[int], None] | None = None,
) -> Session:
    """Check the artifact, then open it. `progress` gets the bytes hashed since its last call.

    runtime: None is the one that the artifact is for
    provider: None is cpu for ONNX Runtime, cuda for an engine, which runs nowhere else
    cuda_graph: replay the launches of an engine as one graph; worth it where the GPU waits for them
    check_hashes: False is for a caller that has just written or checked the files
    """
    if runtime is not None and runtime not in RUNTIMES:
        raise UsageError(f"unknown runtime {runtime!r}", f"use one of: {', '.join(RUNTIMES)}")
    if provider is not None and provider not in PROVIDERS:
        raise UsageError(f"unknown provider {provider!r}", f"use one of: {', '.join(PROVIDERS)}")
    if threads is not None and threads < 1:
        raise UsageError(f"threads is {threads}", "give 1 or more, or leave it out")
    artifact = Path(artifact)
    # What can't be right is said before gigabytes are hashed; what is opened has been hashed.
    manifest = read_manifest(artifact, check_hashes=False)
    chosen = choose_runtime(artifact, manifest, runtime)
    provider = _provider(artifact, chosen, provider, threads, cuda_graph)
    if check_hashes:
        manifest = read_manifest(artifact, progress=progress)
    opener = _opener(chosen)
    return opener(artifact, manifest, provider=provider, threads=threads, cuda_graph=cuda_graph)


def _opener(runtime: str) -> Runtime:
    """The libraries below are imported when an artifact is opened, not before."""
    if runtime == "onnxruntime":
        from vggt_deploy.engines.onnxruntime import open_onnxruntime

        return open_onnxruntime
    from vggt_deploy.engines.tensorrt.session import open_tensorrt

    return open_tensorrt


def choose_runtime(artifact: Path, manifest: Manifest, runtime: str | None) -> str:
    """The runtime that the artifact is for, or a UsageError if another one is asked for."""
    if manifest.engine is None:
        if runtime in (None, "onnxruntime"):
            return "onnxruntime"
        raise UsageError(
            f"{artifact} holds ONNX graphs, and {runtime} runs engines",
            f"build one: vggt-deploy build {artifact} --runtime {runtime} --device PROFILE;"
            " or leave --runtime out",
        )
    built_for = manifest.engine.runtime
    if runtime in (None, built_for):
        return built_for
    fix = (
        "give the ONNX artifact that it was built from, or leave --runtime out"
        if runtime == "onnxruntime"
        else f"leave --runtime out; or build one: vggt-deploy build ARTIFACT --runtime {runtime}"
        " --device PROFILE"
    )
    raise UsageError(f"{artifact} is an engine for {built_for}, not for {runtime}", fix)


def _provider(
    artifact: Path, runtime: str, provider: str | None, threads: int | None, cuda_graph: bool
) -> str:
    """The provider that runs it, after refusing options that the runtime has no meaning for."""
    if runtime == "onnxruntime":
        if cuda_graph:
            raise UsageError(
                f"a CUDA graph was asked for, and {artifact} runs in ONNX Runtime",
                "leave it out, or build an engine",
            )
        return provider or "cpu"
    if provider not in (None, "cuda"):
        raise UsageError(
            f"{artifact} is an engine for {runtime}: it runs on a GPU, not on provider {provider}",
            "leave --provider out; on a CPU run the ONNX artifact that it was built from",
        )
    if threads is not None:
        raise UsageError(
            f"{threads} threads were asked for, and {artifact} is an engine: it runs on a GPU",
            "leave --threads out",
        )
    return "cuda"


def accepted_frames(manifest: Manifest) -> tuple[FramesRange, ...]:
    """The frame counts that the artifact takes: a range, or one for each profile of an engine."""
    return (manifest.frames,) if manifest.engine is None else manifest.engine.profiles


def check_frames(count: int, accepted: Sequence[FramesRange]) -> None:
    """Raise a UsageError unless one of the `accepted` ranges has `count`."""
    if any(frames.min <= count <= frames.max for frames in accepted):
        return
    takes = " or ".join(
        f"{f.min}" if f.min == f.max else f"{f.min} to {f.max}"
        for f in sorted(accepted, key=lambda f: f.min)
    )
    below = [frames.max for frames in accepted if frames.max < count]
    raise UsageError(
        f"{count} images, but this artifact takes {takes}",
        f"use --max-images {max(below)}, or make one that takes {count}"
        if below
        else f"give at least {min(f.min for f in accepted)} images, or make one that takes {count}",
    )


def check_images(images: NDArray[np.float32], info: SessionInfo) -> None:
    """Raise a UsageError unless `images` are what the session's graph was made for."""
    if images.ndim != 5 or images.shape[0] != 1 or images.shape[2] != 3:
        expected = f"[1, S, 3, {info.height}, {info.width}]"
        raise UsageError(
            f"images of shape {list(images.shape)}, expected {expected}",
            "stack the frames of one scene along axis 1: batch.pixels[None]",
        )
    if images.shape[3:] != (info.height, info.width):
        raise UsageError(
            f"images are {images.shape[3]} rows x {images.shape[4]} columns,"
            f" this artifact is made for {info.height} x {info.width}",
            "load them with load_images(..., width, height) of the artifact,"
            " or export one for this size",
        )
    if images.dtype != np.float32:
        raise UsageError(f"images are {images.dtype}, expected float32", "convert them to 0..1")
    check_frames(images.shape[1], info.profiles or (info.frames,))
    low, high = float(images.min()), float(images.max())
    if not (low >= _RANGE[0] and high <= _RANGE[1]):  # false for NaN too
        raise UsageError(
            f"image values run from {low:.4g} to {high:.4g}, expected 0 to 1",
            "divide by 255, and do not subtract a mean: the model does that",
        )
