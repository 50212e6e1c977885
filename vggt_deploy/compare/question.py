"""What is asked: settings, pictures, and the JSON by which two questions are told apart."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vggt_deploy.compare.calibration import CalibrationQuestion
from vggt_deploy.compare.devices import DeviceQuestion
from vggt_deploy.compare.environment import describe_environment
from vggt_deploy.compare.jobs import LayerPatterns, ModelQuestion
from vggt_deploy.compare.variants import Variant
from vggt_deploy.data.folders import find_images
from vggt_deploy.data.images import load_images
from vggt_deploy.errors import UsageError
from vggt_deploy.quantize.schemes import SCHEMES, Precision
from vggt_deploy.records import FramesRange

QUESTION_SCHEMA = 3
FRAMES_AT_LEAST = 16  # what the kept artifacts accept, so that they are of use afterwards


@dataclass(frozen=True)
class Identity:
    """What the model spec turned out to be, and for engines the GPU that is here; the answer of the
    identify job.
    """

    config: str
    kind: Literal["file", "hub", "random"]
    revision: str | None
    sha256: str | None
    licence: str | None
    checkpoint_bytes: int | None
    gpu: str | None = None


@dataclass(frozen=True)
class Settings:
    """Everything that was asked for except the pictures."""

    model: ModelQuestion
    variants: tuple[Variant, ...]
    outputs: tuple[str, ...]
    precision: Precision | None
    layers: LayerPatterns
    calibration: CalibrationQuestion | None
    warmup: int
    repeats: int
    threads: int
    verify: bool
    timeout_s: float
    device: DeviceQuestion | None = None

    def check(self) -> None:
        """Refuse numbers that can't mean anything, before anything is started."""
        for name, value, least in (
            ("warmup", self.warmup, 0),
            ("repeats", self.repeats, 1),
            ("threads", self.threads, 1),
        ):
            if value < least:
                raise UsageError(f"{name} is {value}", f"use {least} or more")
        if not self.timeout_s > 0:
            raise UsageError(f"the time limit is {self.timeout_s} s", "use more than 0 seconds")

    def precision_of(self, variant: Variant) -> Precision:
        """Float type of what is not integer: an integer scheme can be given another one."""
        scheme = SCHEMES[variant.scheme]
        return self.precision if scheme.integer and self.precision else scheme.precision

    def resolved(self, identity: Identity) -> Settings:
        """Architecture and commit pinned, so that every worker gets the same weights."""
        revision = identity.revision if identity.kind == "hub" else self.model.revision
        return replace(self, model=replace(self.model, config=identity.config, revision=revision))


@dataclass(frozen=True)
class Pictures:
    """The pixels that every variant gets, [S, 3, H, W], and where they are from."""

    pixels: NDArray[np.float32]
    paths: tuple[Path, ...]
    sha256: tuple[str, ...]
    skipped: tuple[str, ...]
    skip_bad: bool
    mode: str
    note: str

    @property
    def frames(self) -> int:
        return int(self.pixels.shape[0])

    @property
    def accepted(self) -> FramesRange:
        """The frame counts of the artifacts."""
        return FramesRange(1, self.frames, max(self.frames, FRAMES_AT_LEAST))

    @property
    def height(self) -> int:
        return int(self.pixels.shape[2])

    @property
    def width(self) -> int:
        return int(self.pixels.shape[3])

    def save(self, path: Path) -> None:
        """Write the pixels for the workers; the same question gives the same bytes."""
        temporary = path.with_name(f".{path.name}.tmp")
        with temporary.open("wb") as file:
            np.save(file, self.pixels)
        temporary.replace(path)

    def to_json(self) -> dict[str, Any]:
        """The part of the question that the pictures are."""
        files = [
            {"name": path.name, "sha256": sha256}
            for path, sha256 in zip(self.paths, self.sha256, strict=True)
        ]
        return {
            "folder": str(self.paths[0].parent),
            "files": files,
            "skipped": list(self.skipped),
            "mode": self.mode,
            "frames": self.frames,
            "height": self.height,
            "width": self.width,
            # Guards against a change in decoding or resizing that leaves the files alone.
            "pixels_sha256": hashlib.sha256(np.ascontiguousarray(self.pixels).data).hexdigest(),
        }


def read_pictures(
    images_dir: Path | str,
    *,
    max_images: int | None,
    mode: Literal["crop", "pad"],
    width: int,
    height: int | None,
    skip_bad: bool,
) -> Pictures:
    """Find and load the pictures."""
    found = find_images(images_dir, max_images=max_images)
    batch = load_images(found.paths, mode=mode, width=width, height=height, skip_bad=skip_bad)
    skipped = tuple(f"{item.path.name}: {item.reason}" for item in batch.skipped)
    size = f"{len(batch.paths)} x {batch.height} x {batch.width} pixels"
    note = f"{found.note}; {size}"
    if skipped:
        note += f"; left out: {'; '.join(skipped)}"
    return Pictures(
        pixels=np.ascontiguousarray(batch.pixels, dtype=np.float32),
        paths=batch.paths,
        sha256=batch.sha256,
        skipped=skipped,
        skip_bad=skip_bad,
        mode=mode,
        note=note,
    )


def build_question(settings: Settings, pictures: Pictures, identity: Identity) -> dict[str, Any]:
    """The question as JSON. Whatever can change a number is in it; a time limit is not."""
    environment = describe_environment()
    weights = asdict(identity)
    gpu = weights.pop("gpu")
    return {
        "schema": QUESTION_SCHEMA,
        "model": {"spec": settings.model.spec, **weights},
        "images": pictures.to_json(),
        "variants": _labels(settings.variants),
        "outputs": list(settings.outputs),
        "precision": settings.precision,
        "layers": {key: list(value) for key, value in asdict(settings.layers).items()},
        "calibration": settings.calibration and settings.calibration.to_json(),
        "device": settings.device and {**settings.device.to_json(), "gpu": gpu},
        "warmup": settings.warmup,
        "repeats": settings.repeats,
        "threads": settings.threads,
        "verify": settings.verify,
        "machine": {"cpu": environment.cpu, "python": environment.python},
        "versions": environment.versions,
    }


def _labels(variants: Sequence[Variant]) -> list[str]:
    return [variant.label for variant in variants]
