"""What the parent asks of a worker and what it gets back, as JSON files.

    identify   which weights are these? (also downloads them, once, before anything is timed)
    calibrate  images -> statistics, which all variants with static activations share
    prepare    images + treatment -> prepared weights, which all runtimes of a variant share
    export     scheme -> artifact folder
    build      artifact -> engine folder
    measure    one variant on the images: load, time, write the outputs
    compute    the same without timing, for a scene that another machine takes

A worker writes its answer to a temporary name and renames it, so an answer that exists is whole.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

JobKind = Literal["identify", "calibrate", "prepare", "export", "build", "measure", "compute"]


@dataclass(frozen=True)
class ModelQuestion:
    """The model as it was asked for; `revision` is resolved before anything is measured."""

    spec: str
    config: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class LayerPatterns:
    """Patterns that change which layers become integers; empty: the scheme's own choice."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    sensitive: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> LayerPatterns:
        """The inverse of `dataclasses.asdict`."""
        return cls(**{key: tuple(value) for key, value in data.items()})


@dataclass(frozen=True)
class IdentifyJob:
    """Which weights, which architecture; and, for engines, which GPU this machine has."""

    parent: int
    answer: str
    model: ModelQuestion
    gpu: bool


@dataclass(frozen=True)
class Calibration:
    """For static activations: a folder of statistics, and the method, as `--calibration-method`."""

    statistics: str
    method: str
    apart: bool = False

    @classmethod
    def from_json(cls, data: dict[str, Any] | None) -> Calibration | None:
        """The inverse of `dataclasses.asdict`; None for variants without static activations."""
        return None if data is None else cls(**data)


@dataclass(frozen=True)
class CalibrateJob:
    """Collect statistics of `images` in `folder`."""

    parent: int
    answer: str
    model: ModelQuestion
    images: str
    folder: str
    height: int
    width: int
    mode: str
    frames_per_pass: int
    skip_bad: bool
    threads: int


@dataclass(frozen=True)
class PrepareJob:
    """Prepare the weights of one label in `folder`; `images` where it looks at some."""

    parent: int
    answer: str
    model: ModelQuestion
    label: str
    precision: str
    outputs: tuple[str, ...]
    images: str | None
    folder: str
    height: int
    width: int
    mode: str
    frames_per_pass: int
    skip_bad: bool
    layers: LayerPatterns
    threads: int


@dataclass(frozen=True)
class ExportJob:
    """Write the artifact of one scheme; of `prepared` weights, where it has some."""

    parent: int
    answer: str
    model: ModelQuestion
    scheme: str
    label: str
    precision: str
    outputs: tuple[str, ...]
    height: int
    width: int
    frames: tuple[int, int, int]
    folder: str
    trace_cache: str
    verify: bool
    layers: LayerPatterns
    calibration: Calibration | None
    threads: int
    prepared: str | None = None


@dataclass(frozen=True)
class BuildJob:
    """Build an engine from the folder `artifact`; `device`: name or path of a device profile."""

    parent: int
    answer: str
    artifact: str
    folder: str
    runtime: str
    device: str


@dataclass(frozen=True)
class MeasureJob:
    """Measure one variant. `images` is an .npy file [S, 3, H, W]; `arrays` the .npz to write.

    `further`: the same two of the scenes that are run once, untimed, after the timed one. A compute
    job is one of these with `warmup` and `repeats` 0: nothing of it is timed.

    `artifact`: what is opened, of either kind; None for PyTorch.

    `size_probe` is a file that the reference saves its weights to, to be weighed and deleted; None
    for every other variant, and where the weights are a file already.
    """

    parent: int
    answer: str
    model: ModelQuestion
    runtime: str
    scheme: str
    activations: str
    precision: str
    outputs: tuple[str, ...]
    artifact: str | None
    images: str
    arrays: str
    layers: LayerPatterns
    calibration: Calibration | None
    threads: int
    warmup: int
    repeats: int
    size_probe: str | None
    further: tuple[tuple[str, str], ...] = ()
    prepared: str | None = None


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write so that the file is either the old one or the whole new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(data, file, indent=2, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


Job = IdentifyJob | CalibrateJob | PrepareJob | ExportJob | BuildJob | MeasureJob


def write_job(path: Path, job: Job) -> None:
    """Write a job for a worker."""
    write_json(path, asdict(job))


def _model(data: dict[str, Any]) -> ModelQuestion:
    return ModelQuestion(**data["model"])


def _variant_parts(data: dict[str, Any]) -> dict[str, Any]:
    """The nested parts that export and measure jobs have in common."""
    return {
        "model": _model(data),
        "layers": LayerPatterns.from_json(data["layers"]),
        "calibration": Calibration.from_json(data["calibration"]),
    }


def read_identify(path: Path) -> IdentifyJob:
    """Read what `write_job` wrote."""
    data = json.loads(path.read_text(encoding="utf-8"))
    return IdentifyJob(**{**data, "model": _model(data)})


def read_calibrate(path: Path) -> CalibrateJob:
    """Read what `write_job` wrote."""
    data = json.loads(path.read_text(encoding="utf-8"))
    return CalibrateJob(**{**data, "model": _model(data)})


def read_prepare(path: Path) -> PrepareJob:
    """Read what `write_job` wrote."""
    data = json.loads(path.read_text(encoding="utf-8"))
    layers = LayerPatterns.from_json(data["layers"])
    outputs = tuple(data["outputs"])
    return PrepareJob(**{**data, "model": _model(data), "layers": layers, "outputs": outputs})


def read_export(path: Path) -> ExportJob:
    """Read what `write_job` wrote."""
    data = json.loads(path.read_text(encoding="utf-8"))
    low, best, high = data["frames"]
    data |= _variant_parts(data)
    return ExportJob(**{**data, "outputs": tuple(data["outputs"]), "frames": (low, best, high)})


def read_build(path: Path) -> BuildJob:
    """Read what `write_job` wrote."""
    return BuildJob(**json.loads(path.read_text(encoding="utf-8")))


def read_measure(path: Path) -> MeasureJob:
    """Read what `write_job` wrote."""
    data = json.loads(path.read_text(encoding="utf-8"))
    data |= _variant_parts(data)
    data["further"] = tuple((images, arrays) for images, arrays in data["further"])
    return MeasureJob(**{**data, "outputs": tuple(data["outputs"])})
