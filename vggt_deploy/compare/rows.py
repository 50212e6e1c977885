"""From a variant to its row: export and measure it in processes, then hold it against FP32."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from vggt_deploy.compare.asking import ask
from vggt_deploy.compare.calibration import calibration_of
from vggt_deploy.compare.jobs import CalibrateJob, Calibration, Job, JobKind, MeasureJob
from vggt_deploy.compare.judging import Arrays, judged, read_arrays, with_truth_loss
from vggt_deploy.compare.latency import Latency
from vggt_deploy.compare.making import Maker
from vggt_deploy.compare.measures import Failure, GpuMeasure, Measured
from vggt_deploy.compare.question import Identity, Settings
from vggt_deploy.compare.report import Row
from vggt_deploy.compare.scenes import Scenes
from vggt_deploy.compare.state import Folder, Paths, finished_row, save_row
from vggt_deploy.compare.subjects import wanted_tensors
from vggt_deploy.compare.variants import REFERENCE, Variant
from vggt_deploy.errors import CompareError
from vggt_deploy.quantize.statistics import holds_statistics


@dataclass(frozen=True)
class Reference:
    """PyTorch FP32: its row, and what it computed of each scene."""

    row: Row
    arrays: tuple[Arrays, ...]


@dataclass(frozen=True)
class Sweep:
    """All variants of one question, one after the other."""

    settings: Settings
    folder: Folder
    scenes: Scenes
    identity: Identity
    command: tuple[str, ...]
    console: Console

    @cached_property
    def _maker(self) -> Maker:
        return Maker(self.settings, self.folder, self.scenes, self._ask)

    def run(self) -> tuple[Row, ...]:
        """The row of each variant, in order; the reference first."""
        rows: list[Row] = []
        calibration = self._calibration()
        reference: Reference | None = None
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
                    row = self._row(variant, calibration)
                if variant == REFERENCE:
                    reference = self._reference(row, kept=kept)
                    row = reference.row
                elif not kept:
                    assert reference is not None  # `parse_variants` puts it first
                    row = self._held_against(row, variant, reference)
                if not kept:
                    save_row(self.folder, variant, row)
                line = describe_row(row, kept=kept)
                progress.console.print(line, highlight=False, markup=False, soft_wrap=True)
                progress.advance(task)
                rows.append(row)
            progress.update(task, description="measured")
        return tuple(rows)

    def _reference(self, row: Row, *, kept: bool) -> Reference:
        """The reference with its outputs, or the end of the comparison."""
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
        if not kept:
            row = judged(row, arrays, arrays, self.scenes.items)
            row = with_truth_loss(row, row)
            if row.failure is not None:
                raise CompareError(
                    f"PyTorch FP32, the reference, can't be judged: {row.failure.message}",
                    row.failure.fix or "begin again",
                )
        return Reference(row, arrays)

    def _calibration(self) -> Calibration | Failure | None:
        """The statistics of static activations, collected in a process of its own if need be."""
        asked, scenes = self.settings.calibration, self.scenes
        # Prepared weights bring their own ranges: those of the network as it was changed.
        static = [
            v
            for v in self.settings.variants
            if v.activations == "static" and not v.quantization.treatment.prepares
        ]
        if asked is None or all(finished_row(self.folder, v) is not None for v in static):
            return None
        if asked.statistics:
            return Calibration(str(asked.folder), asked.method)
        ready = Calibration(str(self.folder.calibration), asked.method)
        # The question is the same as that of the run that left them, and they are written whole.
        if holds_statistics(self.folder.calibration):
            return ready
        self.console.print(f"calibrating on {asked.folder}", highlight=False, markup=False)
        paths = self.folder.paths("calibrate")
        job = CalibrateJob(
            parent=os.getpid(),
            answer=str(paths.answer),
            model=self.settings.model,
            images=str(asked.folder),
            folder=str(self.folder.calibration),
            height=scenes.height,
            width=scenes.width,
            mode=scenes.mode,
            frames_per_pass=scenes.frames,
            skip_bad=scenes.skip_bad,
            threads=self.settings.threads,
        )
        answer = self._ask("calibrate", job, paths)
        return answer if isinstance(answer, Failure) else ready

    def _row(self, variant: Variant, calibrated: Calibration | Failure | None) -> Row:
        """The row as measured, before it is held against anything."""
        support = variant.support
        text = f"{support.level}: {support.note}" if support.note else support.level
        row = Row(
            variant.runtime,
            variant.scheme,
            variant.activations,
            "failed",
            text,
            treatment=variant.treatment,
        )
        if not support.runs:
            failure = Failure("scheme table", f"{variant.runtime} does not run it: {support.note}")
            return replace(row, status="refused", failure=failure)
        prepared = self._maker.prepared(variant)
        if isinstance(prepared, Failure):
            return replace(row, failure=prepared)
        calibration = calibration_of(variant, calibrated) if prepared is None else None
        if isinstance(calibration, Failure):
            return replace(row, failure=calibration)
        if variant.runtime != "torch":
            made = self._maker.artifact(variant, calibration, prepared)
            if isinstance(made, Failure):
                return replace(row, failure=made)
            row = replace(row, export=made)
        if variant.engine:
            built = self._maker.engine(variant)
            if isinstance(built, Failure):
                return _without_numbers(row, built)
            row = replace(row, build=built)
        job = self.folder.job(variant.slug)
        row = replace(row, command=(*self.command, "measure", str(job)))
        measured = self._measure(variant, row, calibration, prepared)
        if isinstance(measured, Failure):
            return _without_numbers(row, measured)
        return replace(row, status="done", measured=measured)

    def _opened(self, variant: Variant) -> Path | None:
        """What a variant's process opens: artifact or engine; None for PyTorch."""
        if variant.runtime == "torch":
            return None
        return self.folder.engine(variant) if variant.engine else self.folder.artifact(variant)

    def _measure(
        self, variant: Variant, row: Row, calibration: Calibration | None, prepared: Path | None
    ) -> Measured | Failure:
        settings, opened = self.settings, self._opened(variant)
        paths = self.folder.paths(variant.slug)
        weigh = variant == REFERENCE and self.identity.checkpoint_bytes is None
        arrays = self._array_files(variant)
        for path in arrays:
            path.unlink(missing_ok=True)
        images = [str(self.folder.images(scene)) for scene in range(len(arrays))]
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
            images=images[0],
            arrays=str(arrays[0]),
            layers=settings.layers,
            calibration=calibration,
            threads=settings.threads,
            warmup=settings.warmup,
            repeats=settings.repeats,
            size_probe=str(self.folder.work / "weights.pt") if weigh else None,
            further=tuple(zip(images[1:], map(str, arrays[1:]), strict=True)),
            prepared=None if prepared is None else str(prepared),
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

    def _held_against(self, row: Row, variant: Variant, reference: Reference) -> Row:
        """The row with its metrics; outputs that can't be compared make it a failed one."""
        if row.status == "done":
            arrays = self._arrays(variant)
            if isinstance(arrays, Failure):
                row = replace(row, status="failed", failure=arrays, measured=None)
            else:
                row = judged(row, arrays, reference.arrays, self.scenes.items)
                row = with_truth_loss(row, reference.row)
        # All that is to be known of the further scenes is in the row; a disk holds few of them.
        for path in self._array_files(variant)[1:]:
            path.unlink(missing_ok=True)
        return row

    def _array_files(self, variant: Variant) -> list[Path]:
        """Where the variant's outputs are, scene by scene."""
        return [self.folder.arrays(variant, scene) for scene in range(len(self.scenes.items))]

    def _arrays(self, variant: Variant) -> tuple[Arrays, ...] | Failure:
        return read_arrays(self._array_files(variant), wanted_tensors(self.settings.outputs))


def _without_numbers(row: Row, failure: Failure) -> Row:
    """A row that failed, or that has nothing here to run on."""
    return replace(row, status="not run" if failure.unavailable else "failed", failure=failure)


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
