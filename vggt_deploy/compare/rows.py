"""From a variant to its row: export and measure it in processes, then hold it against FP32."""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
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

from vggt_deploy.compare.geometry import geometry_metrics
from vggt_deploy.compare.jobs import (
    CalibrateJob,
    Calibration,
    ExportJob,
    IdentifyJob,
    Job,
    JobKind,
    MeasureJob,
    write_job,
)
from vggt_deploy.compare.latency import Latency
from vggt_deploy.compare.metrics import tensor_metrics
from vggt_deploy.compare.processes import run_process
from vggt_deploy.compare.question import Identity, Pictures, Settings
from vggt_deploy.compare.report import ExportMeasure, Failure, Measured, Row
from vggt_deploy.compare.state import Folder, finished_row, save_row
from vggt_deploy.compare.subjects import wanted_tensors
from vggt_deploy.compare.variants import REFERENCE, Variant
from vggt_deploy.errors import ArtifactError, CompareError
from vggt_deploy.manifest import read_manifest
from vggt_deploy.quantize.statistics import holds_statistics

Arrays = dict[str, NDArray[np.float32]]
FRAMES_AT_LEAST = 16  # what the kept artifacts accept, so that they are of use afterwards


@dataclass(frozen=True)
class Paths:
    """Files of one job: what is asked, what came back, what was said (None: straight to stderr)."""

    job: Path
    answer: Path
    log: Path | None


def ask(
    command: Sequence[str],
    kind: JobKind,
    job: Job,
    paths: Paths,
    *,
    timeout_s: float,
    threads: int,
) -> dict[str, Any] | Failure:
    """Run one job in a process of its own; its answer, or how it failed."""
    stage: Any = "measure" if kind == "identify" else kind
    paths.answer.unlink(missing_ok=True)
    write_job(paths.job, job)
    # OpenMP reads its variable when the library is loaded, before any set_num_threads.
    environment = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    outcome = run_process(
        [*command, kind, str(paths.job)],
        log=paths.log,
        timeout_s=timeout_s,
        environment=environment,
    )
    try:
        answer = json.loads(paths.answer.read_text(encoding="utf-8"))
    except FileNotFoundError:
        message = outcome.describe() + (", but left no answer" if outcome.ok else "")
        return Failure(stage, message, tail=outcome.tail)
    except ValueError as error:
        message = f"{outcome.describe()}, and its answer is not JSON: {error}"
        return Failure(stage, message, tail=outcome.tail)
    if isinstance(answer, dict) and isinstance(answer.get("error"), dict):
        said = answer["error"]
        return Failure(stage, str(said.get("message")), said.get("fix"), outcome.tail)
    if not outcome.ok:
        return Failure(stage, outcome.describe(), tail=outcome.tail)
    if not isinstance(answer, dict) or not isinstance(answer.get("ok"), dict):
        return Failure(stage, "its answer has neither a result nor an error", tail=outcome.tail)
    result: dict[str, Any] = answer["ok"]
    return result


def identify_model(settings: Settings, command: Sequence[str], console: Console) -> Identity:
    """Ask a worker which weights these are. An error here ends the comparison: no row could run."""
    console.print(f"looking at {settings.model.spec}", highlight=False, markup=False)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        # No log: the licence of the weights and the progress of their download are for the user.
        paths = Paths(root / "job.json", root / "answer.json", None)
        job = IdentifyJob(os.getpid(), str(paths.answer), settings.model)
        # No time limit of its own: this is where a checkpoint is downloaded.
        limit = max(settings.timeout_s, 24 * 3600.0)
        found = ask(command, "identify", job, paths, timeout_s=limit, threads=settings.threads)
    if isinstance(found, Failure):
        fix = found.fix or "see its output above, and check the model spec"
        raise CompareError(found.message, fix)
    try:
        return Identity(**found)
    except TypeError as error:
        raise CompareError(
            f"the worker's answer does not fit: {error}", "use one version"
        ) from error


@dataclass(frozen=True)
class Sweep:
    """All variants of one question, one after the other."""

    settings: Settings
    folder: Folder
    pictures: Pictures
    identity: Identity
    command: tuple[str, ...]
    console: Console

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
        export: ExportMeasure | None = None
        if variant.runtime != "torch":
            made = self._artifact(variant, calibration)
            if isinstance(made, Failure):
                return replace(row, failure=made)
            export = made
        job = self.folder.job(variant.slug)
        row = replace(row, export=export, command=(*self.command, "measure", str(job)))
        measured = self._measure(variant, export, calibration)
        if isinstance(measured, Failure):
            return replace(row, failure=measured)
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
        frames = pictures.frames
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
            frames=(1, frames, max(frames, FRAMES_AT_LEAST)),
            folder=str(target),
            trace_cache=str(self.folder.traces),
            verify=settings.verify,
            layers=settings.layers,
            calibration=calibration,
            threads=settings.threads,
        )
        answer = self._former_export(target, paths) or self._ask("export", job, paths)
        if isinstance(answer, Failure):
            return answer
        try:
            return ExportMeasure(**answer, bytes_total=folder_bytes(target))
        except (TypeError, OSError) as error:
            return Failure("export", f"its answer does not fit: {error}")

    def _former_export(self, target: Path, paths: Paths) -> dict[str, Any] | None:
        """The answer of an export that a former run of this question finished, if it is whole."""
        try:
            read_manifest(target)
            answer: dict[str, Any] = json.loads(paths.answer.read_text(encoding="utf-8"))["ok"]
        except (ArtifactError, OSError, ValueError, KeyError, TypeError):
            return None  # whatever is wrong with it, it is exported again
        return answer

    def _measure(
        self, variant: Variant, export: ExportMeasure | None, calibration: Calibration | None
    ) -> Measured | Failure:
        settings = self.settings
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
            artifact=str(self.folder.artifact(variant)) if export is not None else None,
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
            return self._weighed(variant, export, answer)
        except (KeyError, TypeError) as error:
            return Failure("measure", f"its answer does not fit: {type(error).__name__} {error}")

    def _weighed(
        self, variant: Variant, export: ExportMeasure | None, answer: dict[str, Any]
    ) -> Measured:
        """The worker's answer with the size on disk, whose meaning depends on the variant."""
        answer = {**answer, "latency": Latency.from_json(answer["latency"])}
        saved = answer.pop("saved_bytes")
        size: dict[str, Any] = {"disk_bytes": None, "disk_kind": None}
        if export is not None:
            size = {"disk_bytes": export.bytes_total, "disk_kind": "artifact folder"}
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


def folder_bytes(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def describe_row(row: Row, *, kept: bool) -> str:
    """One line for a person who watches."""
    head = f"{row.label:<32}"
    if row.failure is not None:
        return f"{head} {row.status} ({row.failure.stage}): {row.failure.message}"
    assert row.measured is not None
    text = f"{row.measured.latency.median_ms:.4g} ms"
    return f"{head} {text}{', from the former run' if kept else ''}"
