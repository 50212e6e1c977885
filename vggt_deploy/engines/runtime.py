"""What every runtime offers: open an artifact, say what really runs, run images, close.

    with contextlib.closing(open_session(Path("vggt-1b-int8_pc_sym"))) as session:
        outputs = session.run(images)          # images [1, S, 3, H, W], float32 RGB in 0..1

The artifact's hashes are checked before its graph is read. A runtime, provider or shape that can't
be had is an error; nothing is replaced by something else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vggt_deploy.errors import UsageError
from vggt_deploy.manifest import read_manifest
from vggt_deploy.records import FramesRange, Manifest

RUNTIMES = ("onnxruntime",)
PROVIDERS = ("cpu", "cuda")
# Bicubic resizing overshoots nothing after uint8, so images are in 0..1; a little room for callers
# that resize in float. What this catches is 0..255, and mean and std already subtracted.
_RANGE = (-0.1, 1.1)


@dataclass(frozen=True)
class SessionInfo:
    """What was opened and what runs it.

    load_ms: creating the session, from file to ready, without the hash check
    threads: as asked for; None leaves it to the runtime
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
        self, artifact: Path, manifest: Manifest, *, provider: str, threads: int | None
    ) -> Session:
        """Open it on `provider`, or say why that can't be."""


def open_session(
    artifact: Path | str,
    *,
    runtime: str = "onnxruntime",
    provider: str = "cpu",
    threads: int | None = None,
    check_hashes: bool = True,
    progress: Callable[[int], None] | None = None,
) -> Session:
    """Check the artifact, then open it. `progress` gets the bytes hashed since its last call.

    `check_hashes=False` is for a caller that has just written or checked the files.
    """
    if provider not in PROVIDERS:
        raise UsageError(f"unknown provider {provider!r}", f"use one of: {', '.join(PROVIDERS)}")
    if threads is not None and threads < 1:
        raise UsageError(f"threads is {threads}", "give 1 or more, or leave it out")
    open_with = _runtime(runtime)
    artifact = Path(artifact)
    manifest = read_manifest(artifact, check_hashes=check_hashes, progress=progress)
    return open_with(artifact, manifest, provider=provider, threads=threads)


def _runtime(name: str) -> Runtime:
    if name == "onnxruntime":
        from vggt_deploy.engines.onnxruntime import open_onnxruntime

        return open_onnxruntime
    raise UsageError(f"unknown runtime {name!r}", f"use one of: {', '.join(RUNTIMES)}")


def check_frames(count: int, frames: FramesRange) -> None:
    """Raise a UsageError unless the artifact takes `count` images at once."""
    if not frames.min <= count <= frames.max:
        takes = f"{frames.min}" if frames.min == frames.max else f"{frames.min} to {frames.max}"
        raise UsageError(
            f"{count} images, but this artifact takes {takes}",
            f"use --max-images {frames.max}"
            if count > frames.max
            else f"give at least {frames.min} images, or export with --frames {count}:...",
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
    check_frames(images.shape[1], info.frames)
    low, high = float(images.min()), float(images.max())
    if not (low >= _RANGE[0] and high <= _RANGE[1]):  # false for NaN too
        raise UsageError(
            f"image values run from {low:.4g} to {high:.4g}, expected 0 to 1",
            "divide by 255, and do not subtract a mean: the model does that",
        )
