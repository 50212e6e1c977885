"""From a variant to its row: export and measure it in processes, then hold it against FP32."""

from __future__ import annotations

import json
import os
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from vggt_deploy.compare.asking import Paths, ask
from vggt_deploy.compare.geometry import geometry_metrics
from vggt_deploy.compare.jobs import (
    BuildJob,
    CalibrateJob,
    Calibration,
    ExportJob,
    Job,
    JobKind,
    MeasureJob,
)
from vggt_deploy.compare.latency import Latency
from vggt_deploy.compare.metrics import tensor_metrics
from vggt_deploy.compare.question import Identity, Pictures, Settings
from vggt_deploy.compare.report import (
    BuildMeasure,
    ExportMeasure,
    Failure,
    GpuMeasure,
    Measured,
    Row,
)
from vggt_deploy.compare.state import Folder, finished_row, save_row
from vggt_deploy.compare.subjects import wanted_tensors
from vggt_deploy.compare.variants import REFERENCE, Variant
from vggt_deploy.errors import ArtifactError, CompareError
from vggt_deploy.manifest import read_manifest
from vggt_deploy.quantize.statistics import holds_statistics

Arrays = dict[str, NDArray[np.float32]]
WEIGHTS_NAME = "weights.bin"  # as `export` names it


@dataclass(frozen=True)
class Sweep:
    """All variants of one question, one after the other."""

    settings: Settings
    folder: Folder
    pictures: Pictures
    identity: Identity
    command: tuple[str, ...]
    console: Console
    # By scheme: an artifact serves all runtimes, and an export that failed would fail again.
    exports: dict[str, ExportMeasure | Failure] = field(default_factory=dict)

    def run(self) -> tuple[Row, ...]:
        """The row of each variant, in order; the reference first."""
        rows: list[Row] = []
        calibration = self._calibration()
        reference: Arrays = {}
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self.console) as progress:
            task = progress.add_task("", total=len(self.settings.variants))
            for variant in self.settings.variants:
                progress.update(task, description=variant.label)
                row = finished_row(self.folder, variant)
                kept = row is not None
                if row is None:
                    row = self._row(variant, reference, calibration)
                if variant == REFERENCE:
                    reference = self._reference(row)
                    row = row if kept else self._with_accuracy(row, variant, reference)
                if not kept:
                    save_row(self.folder, variant, row)
                line = describe_row(row, kept=kept)
                progress.console.print(line, highlight=False, markup=False, soft_wrap=True)
                progress.advance(task)
                rows.append(row)
            progress.update(task, description="measured")
        return tuple(rows)

    def _reference(self, row: Row) -> Arrays:
        """The reference's outputs, or the end of the comparison."""
        if row.failure is not None:
            tail = "".join(f"\n  {line}" for line in row.failure.tail[-5:])
            raise CompareError(
                f"PyTorch FP32, the reference, failed: {row.failure.message}{tail}",
                row.failure.fix
                or f"see {self.folder.log(REFERENCE.slug)}; then go on with --resume",
            )
        arrays = self._arrays(REFERENCE)
        if isinstance(arrays, Failure):
            raise CompareError(f"the reference's outputs: {arrays.message}", "begin again")
        return arrays

    def _calibration(self) -> Calibration | Failure | None:
        """The statistics of static activations, collected in a process of its own if need be."""
        asked, pictures = self.settings.calibration, self.pictures
        static = [v for v in self.settings.variants if v.activations == "static"]
        if asked is None or all(finished_row(self.folder, v) is not None for v in static):
            return None
        if asked.statistics:
            return Calibration(str(asked.folder), asked.method)
        ready = Calibration(str(self.folder.calibration), asked.method)
        # The question is the same as that of the run that left them, and they are written whole.
        if holds_statistics(self.folder.calibration):
            return ready
        self.console.print(f"calibrating on {asked.folder}", highlight=False, markup=False)
        paths = self._paths("calibrate")
        job = CalibrateJob(
            parent=os.getpid(),
            answer=str(paths.answer),
            model=self.settings.model,
            images=str(asked.folder),
            folder=str(self.folder.calibration),
            height=pictures.height,
            width=pictures.width,
            mode=pictures.mode,
            frames_per_pass=pictures.frames,
            skip_bad=pictures.skip_bad,
            threads=self.settings.threads,
        )
        answer = self._ask("calibrate", job, paths)
        return answer if isinstance(answer, Failure) else ready

    def _row(
        self, variant: Variant, reference: Arrays, calibrated: Calibration | Failure | None
    ) -> Row:
        support = variant.support
        text = f"{support.level}: {support.note}" if support.note else support.level
        row = Row(variant.runtime, variant.scheme, variant.activations, "failed", text)
        if not support.runs:
            failure = Failure("scheme table", f"{variant.runtime} does not run it: {support.note}")
            return replace(row, status="refused", failure=failure)
        calibration = calibrated if variant.activations == "static" else None
        if isinstance(calibration, Failure):
            return replace(row, failure=calibration)
        if variant.runtime != "torch":
            label = variant.scheme_label
            if label not in self.exports:
                self.exports[label] = self._artifact(variant, calibration)
            made = self.exports[label]
            if isinstance(made, Failure):
                return replace(row, failure=made)
            row = replace(row, export=made)
        if variant.engine:
            built = self._engine(variant)
            if isinstance(built, Failure):
                return _without_numbers(row, built)
            row = replace(row, build=built)
        job = self.folder.job(variant.slug)
        row = replace(row, command=(*self.command, "measure", str(job)))
        measured = self._measure(variant, row, calibration)
        if isinstance(measured, Failure):
            return _without_numbers(row, measured)
        row = replace(row, status="done", measured=measured)
        return row if variant == REFERENCE else self._with_accuracy(row, variant, reference)

    def _paths(self, name: str) -> Paths:
        return Paths(self.folder.job(name), self.folder.answer(name), self.folder.log(name))

    def _artifact(
        self, variant: Variant, calibration: Calibration | None
    ) -> ExportMeasure | Failure:
        """Export the scheme in its own process; the artifact stays in the output folder."""
        settings, pictures, target = self.settings, self.pictures, self.folder.artifact(variant)
        paths = self._paths(f"export-{variant.scheme_label}")
        frames = pictures.accepted
        job = ExportJob(
            parent=os.getpid(),
            answer=str(paths.answer),
            model=settings.model,
            scheme=variant.scheme,
            activations=variant.activations,
            precision=settings.precision_of(variant),
            outputs=settings.outputs,
            height=pictures.height,
            width=pictures.width,
            frames=(frames.min, frames.opt, frames.max),
            folder=str(target),
            trace_cache=str(self.folder.traces),
            verify=settings.verify,
            layers=settings.layers,
            calibration=calibration,
            threads=settings.threads,
        )
        answer = _former_answer(target, paths) or self._ask("export", job, paths)
        if isinstance(answer, Failure):
            return answer
        try:
            return ExportMeasure(**answer, bytes_total=folder_bytes(target))
        except (TypeError, OSError) as error:
            return Failure("export", f"its answer does not fit: {error}")

    def _engine(self, variant: Variant) -> BuildMeasure | Failure:
        """Build the engine in its own process; it stays in the output folder."""
        device = self.settings.device
        assert device is not None  # `ask_device` has seen to it
        artifact, target = self.folder.artifact(variant), self.folder.engine(variant)
        paths = self._paths(f"build-{variant.slug}")
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

    def _opened(self, variant: Variant) -> Path | None:
        """What a variant's process opens: artifact or engine; None for PyTorch."""
        if variant.runtime == "torch":
            return None
        return self.folder.engine(variant) if variant.engine else self.folder.artifact(variant)

    def _measure(
        self, variant: Variant, row: Row, calibration: Calibration | None
    ) -> Measured | Failure:
        settings, opened = self.settings, self._opened(variant)
        paths = self._paths(variant.slug)
        weigh = variant == REFERENCE and self.identity.checkpoint_bytes is None
        arrays = self.folder.arrays(variant)
        arrays.unlink(missing_ok=True)
        job = MeasureJob(
            parent=os.getpid(),
            answer=str(paths.answer),
            model=settings.model,
            runtime=variant.runtime,
            scheme=variant.scheme,
            activations=variant.activations,
            precision=settings.precision_of(variant),
            outputs=settings.outputs,
            artifact=None if opened is None else str(opened),
            images=str(self.folder.images),
            arrays=str(arrays),
            layers=settings.layers,
            calibration=calibration,
            threads=settings.threads,
            warmup=settings.warmup,
            repeats=settings.repeats,
            size_probe=str(self.folder.work / "weights.pt") if weigh else None,
        )
        answer = self._ask("measure", job, paths)
        if isinstance(answer, Failure):
            return answer
        try:
            return self._weighed(variant, row, answer)
        except (KeyError, TypeError) as error:
            return Failure("measure", f"its answer does not fit: {type(error).__name__} {error}")

    def _weighed(self, variant: Variant, row: Row, answer: dict[str, Any]) -> Measured:
        """The worker's answer with the size on disk, whose meaning depends on the variant."""
        gpu = answer.get("gpu")
        answer = {
            **answer,
            "latency": Latency.from_json(answer["latency"]),
            "gpu": GpuMeasure(**gpu) if gpu else None,
        }
        saved = answer.pop("saved_bytes")
        size: dict[str, Any] = {"disk_bytes": None, "disk_kind": None}
        if row.build is not None:
            size = {"disk_bytes": row.build.bytes_total, "disk_kind": "engine folder"}
        elif row.export is not None:
            size = {"disk_bytes": row.export.bytes_total, "disk_kind": "artifact folder"}
        elif variant == REFERENCE and self.identity.checkpoint_bytes is not None:
            size = {
                "disk_bytes": self.identity.checkpoint_bytes,
                "disk_kind": "checkpoint file",
            }
        elif saved is not None:
            size = {"disk_bytes": saved, "disk_kind": "state dict saved"}
        return Measured(**{**answer, **size, "notes": tuple(answer["notes"])})

    def _ask(self, kind: JobKind, job: Job, paths: Paths) -> dict[str, Any] | Failure:
        settings = self.settings
        return ask(
            self.command, kind, job, paths, timeout_s=settings.timeout_s, threads=settings.threads
        )

    def _arrays(self, variant: Variant) -> Arrays | Failure:
        """What a variant computed, or why it can't be read."""
        wanted = wanted_tensors(self.settings.outputs)
        try:
            # Opened here: np.load leaves the file open when the archive is broken.
            with self.folder.arrays(variant).open("rb") as raw, np.load(raw) as file:
                return {name: file[name] for name in wanted}
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            return Failure("accuracy", f"its outputs can't be read: {error}")

    def _with_accuracy(self, row: Row, variant: Variant, reference: Arrays) -> Row:
        """The row with its metrics; outputs that can't be compared make it a failed one."""
        arrays = self._arrays(variant)
        if isinstance(arrays, Failure):
            return replace(row, status="failed", failure=arrays, measured=None)
        try:
            accuracy = {
                name: tensor_metrics(name, array, reference[name]) for name, array in arrays.items()
            }
        except CompareError as error:
            failure = Failure("accuracy", error.message, error.fix)
            return replace(row, status="failed", failure=failure, measured=None)
        geometry = geometry_metrics(arrays, reference, self.pictures.height, self.pictures.width)
        return replace(row, accuracy=accuracy, geometry=geometry)


def _without_numbers(row: Row, failure: Failure) -> Row:
    """A row that failed, or that has nothing here to run on."""
    return replace(row, status="not run" if failure.unavailable else "failed", failure=failure)


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


def describe_row(row: Row, *, kept: bool) -> str:
    """One line for a person who watches."""
    head = f"{row.label:<32}"
    built = ""
    if row.build is not None:
        plan, seconds = row.build.plan_bytes / 1e6, row.build.seconds
        built = f"; plan {plan:.4g} MB, built in {seconds:.1f} s; {row.build.proof}"
    if row.failure is not None:
        stage = "" if row.status == "not run" else f" ({row.failure.stage})"
        return f"{head} {row.status}{stage}: {row.failure.message}{built}"
    assert row.measured is not None
    text = f"{row.measured.latency.median_ms:.4g} ms{built}"
    return f"{head} {text}{', from the former run' if kept else ''}"
