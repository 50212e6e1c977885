"""Artifacts and engines of a comparison: each made once, in a process of its own, and kept."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vggt_deploy.compare.jobs import BuildJob, Calibration, ExportJob, Job, JobKind
from vggt_deploy.compare.measures import BuildMeasure, ExportMeasure, Failure
from vggt_deploy.compare.question import Settings
from vggt_deploy.compare.scenes import Scenes
from vggt_deploy.compare.state import Folder, Paths
from vggt_deploy.compare.variants import Variant
from vggt_deploy.errors import ArtifactError
from vggt_deploy.manifest import read_manifest

WEIGHTS_NAME = "weights.bin"  # as `export` names it

Ask = Callable[[JobKind, Job, Paths], dict[str, Any] | Failure]


@dataclass(frozen=True)
class Maker:
    """Makes what the variants of one question run, or takes what a former run of it made."""

    settings: Settings
    folder: Folder
    scenes: Scenes
    ask: Ask
    # By scheme: an artifact serves all runtimes, and an export that failed would fail again.
    exports: dict[str, ExportMeasure | Failure] = field(default_factory=dict)

    def artifact(
        self, variant: Variant, calibration: Calibration | None
    ) -> ExportMeasure | Failure:
        """The artifact of the variant's scheme, in the output folder."""
        label = variant.scheme_label
        if label not in self.exports:
            self.exports[label] = self._export(variant, calibration)
        return self.exports[label]

    def _export(self, variant: Variant, calibration: Calibration | None) -> ExportMeasure | Failure:
        settings, target = self.settings, self.folder.artifact(variant)
        paths = self.folder.paths(f"export-{variant.scheme_label}")
        frames = self.scenes.accepted
        job = ExportJob(
            parent=os.getpid(),
            answer=str(paths.answer),
            model=settings.model,
            scheme=variant.scheme,
            activations=variant.activations,
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
        )
        answer = _former_answer(target, paths) or self.ask("export", job, paths)
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
        answer = former or self.ask("build", job, paths)
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
