"""Artifacts and engines of a comparison: each made once, in a process of its own, and kept."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, Generic, TypeVar

from vggt_deploy.compare.executors.base import Executor, ask_within
from vggt_deploy.compare.jobs import (
    BuildJob,
    Calibration,
    ExportJob,
    Job,
    JobKind,
    PrepareJob,
)
from vggt_deploy.compare.measures import BuildMeasure, ExportMeasure, Failure
from vggt_deploy.compare.question import Settings
from vggt_deploy.compare.scenes import Scenes
from vggt_deploy.compare.state import Folder, Paths
from vggt_deploy.compare.variants import Variant
from vggt_deploy.errors import ArtifactError
from vggt_deploy.manifest import read_manifest

WEIGHTS_NAME = "weights.bin"  # as `export` names it
PREPARED_NAME = "prepared.json"  # as `quantize.prepared` does, which imports torch

T = TypeVar("T")  # what is made


class Once(Generic[T]):
    """One result for each key: the first who asks makes it, others wait for the same."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._made: dict[str, Future[T]] = {}

    def get(self, key: str, make: Callable[[], T]) -> T:
        """What `make` returned, or raised, on the first call with this key."""
        with self._lock:
            future = self._made.get(key)
            first = future is None
            if future is None:
                future = self._made[key] = Future()
        if first:
            try:
                future.set_result(make())
            except BaseException as error:  # Ctrl-C as well: nobody may wait for ever
                future.set_exception(error)
                raise
        return future.result()


@dataclass(frozen=True)
class Maker:
    """Makes what the variants of one question run, or takes what a former run of it made."""

    settings: Settings
    folder: Folder
    scenes: Scenes
    executor: Executor
    # By scheme: an artifact serves all runtimes, and an export that failed would fail again.
    exports: Once[ExportMeasure | Failure] = field(default_factory=Once)
    preparations: Once[Path | Failure] = field(default_factory=Once)

    def prepared(self, variant: Variant) -> Path | Failure | None:
        """Prepared weights of the variant's label; None where plain rounding is all it asks."""
        label = variant.scheme_label
        if not variant.quantization.treatment.prepares:
            return None
        return self.preparations.get(label, lambda: self._prepare(variant))

    def _ask(self, kind: JobKind, job: Job, paths: Paths) -> dict[str, Any] | Failure:
        return ask_within(self.executor, self.settings, kind, job, paths)

    def _prepare(self, variant: Variant) -> Path | Failure:
        settings, scenes, target = self.settings, self.scenes, self.folder.prepared(variant)
        paths = self.folder.paths(f"prepare-{variant.scheme_label}")
        looks = variant.quantization.needs_pictures
        assert not looks or settings.calibration is not None  # `ask_calibration` has seen to it
        job = PrepareJob(
            parent=os.getpid(),
            answer=str(paths.answer),
            model=settings.model,
            label=variant.scheme_label,
            precision=settings.precision_of(variant),
            outputs=settings.outputs,
            images=str(settings.calibration.folder) if looks and settings.calibration else None,
            folder=str(target),
            height=scenes.height,
            width=scenes.width,
            mode=scenes.mode,
            frames_per_pass=scenes.frames,
            skip_bad=scenes.skip_bad,
            layers=settings.layers,
            threads=settings.threads,
        )
        # Written whole, and answered after that: both are there, or it is done again.
        if (target / PREPARED_NAME).is_file() and paths.answer.is_file():
            return target
        answer = self._ask("prepare", job, paths)
        return answer if isinstance(answer, Failure) else target

    def artifact(
        self, variant: Variant, calibration: Calibration | None, prepared: Path | None
    ) -> ExportMeasure | Failure:
        """The artifact of the variant's scheme, in the output folder."""
        return self.exports.get(
            variant.scheme_label, lambda: self._export(variant, calibration, prepared)
        )

    def _export(
        self, variant: Variant, calibration: Calibration | None, prepared: Path | None
    ) -> ExportMeasure | Failure:
        settings, target = self.settings, self.folder.artifact(variant)
        paths = self.folder.paths(f"export-{variant.scheme_label}")
        frames = self.scenes.accepted
        job = ExportJob(
            parent=os.getpid(),
            answer=str(paths.answer),
            model=settings.model,
            scheme=variant.scheme,
            label=variant.scheme_label,
            precision=settings.precision_of(variant),
            outputs=settings.outputs,
            height=self.scenes.height,
            width=self.scenes.width,
            frames=(frames.min, frames.opt, frames.max),
            folder=str(target),
            trace_cache=str(self.folder.traces),
            verify=settings.verify,
            layers=settings.layers,
            calibration=calibration,
            threads=settings.threads,
            prepared=None if prepared is None else str(prepared),
        )
        answer = _former_answer(target, paths) or self._ask("export", job, paths)
        if isinstance(answer, Failure):
            return answer
        try:
            return ExportMeasure(**answer, bytes_total=folder_bytes(target))
        except (TypeError, OSError) as error:
            return Failure("export", f"its answer does not fit: {error}")

    def engine(self, variant: Variant) -> BuildMeasure | Failure:
        """The variant's engine, in the output folder."""
        device = self.settings.device
        assert device is not None  # `ask_device` has seen to it
        artifact, target = self.folder.artifact(variant), self.folder.engine(variant)
        paths = self.folder.paths(f"build-{variant.slug}")
        job = BuildJob(
            parent=os.getpid(),
            answer=str(paths.answer),
            artifact=str(artifact),
            folder=str(target),
            runtime=variant.runtime,
            device=device.asked,
        )
        former = _former_answer(target, paths) if _built_from(target, artifact) else None
        answer = former or self._ask("build", job, paths)
        if isinstance(answer, Failure):
            return answer
        try:
            return BuildMeasure.from_json({**answer, "bytes_total": folder_bytes(target)})
        except (TypeError, KeyError, OSError) as error:
            return Failure("build", f"its answer does not fit: {error}")


def _former_answer(target: Path, paths: Paths) -> dict[str, Any] | None:
    """The answer of a job that a former run of this question finished, if its folder is whole."""
    try:
        read_manifest(target)
        answer: dict[str, Any] = json.loads(paths.answer.read_text(encoding="utf-8"))["ok"]
    except (ArtifactError, OSError, ValueError, KeyError, TypeError):
        return None  # whatever is wrong with it, it is made again
    return answer


def _built_from(engine: Path, artifact: Path) -> bool:
    """Whether the engine was built from this very artifact, which may have been exported again."""
    try:
        record = read_manifest(engine, check_hashes=False).engine
        source = read_manifest(artifact, check_hashes=False)
    except ArtifactError:
        return False
    graph = source.graphs.get("tensorrt")
    if record is None or graph is None:
        return False
    return (record.onnx_sha256, record.weights_sha256) == tuple(
        source.files[name].sha256 for name in (graph.file, WEIGHTS_NAME)
    )


def folder_bytes(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
