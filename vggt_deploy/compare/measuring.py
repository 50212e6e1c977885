"""From a variant to its row as measured: export, build and measure, each a job of its own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from vggt_deploy.compare.calibration import calibration_of
from vggt_deploy.compare.executors.base import Executor, ask_within
from vggt_deploy.compare.jobs import Calibration, MeasureJob
from vggt_deploy.compare.latency import Latency
from vggt_deploy.compare.making import Maker
from vggt_deploy.compare.measures import Failure, GpuMeasure, Measured
from vggt_deploy.compare.question import Identity, Settings
from vggt_deploy.compare.report import Row
from vggt_deploy.compare.scenes import Scenes
from vggt_deploy.compare.state import Folder
from vggt_deploy.compare.variants import REFERENCE, Variant


@dataclass(frozen=True)
class Measurer:
    """Measures the variants of one question; several at a time, if the executor takes them."""

    settings: Settings
    folder: Folder
    scenes: Scenes
    identity: Identity
    executor: Executor
    maker: Maker

    def row(self, variant: Variant, calibrated: Calibration | Failure | None) -> Row:
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
        prepared = self.maker.prepared(variant)
        if isinstance(prepared, Failure):
            return replace(row, failure=prepared)
        calibration = calibration_of(variant, calibrated) if prepared is None else None
        if isinstance(calibration, Failure):
            return replace(row, failure=calibration)
        if variant.runtime != "torch":
            made = self.maker.artifact(variant, calibration, prepared)
            if isinstance(made, Failure):
                return replace(row, failure=made)
            row = replace(row, export=made)
        if variant.engine:
            built = self.maker.engine(variant)
            if isinstance(built, Failure):
                return _without_numbers(row, built)
            row = replace(row, build=built)
        job = self.folder.job(variant.slug)
        row = replace(row, command=(*self.executor.command, "measure", str(job)))
        return self._measured(variant, row, self._job(variant, calibration, prepared))

    def array_files(self, variant: Variant) -> list[Path]:
        """Where the variant's outputs are, scene by scene."""
        return [self.folder.arrays(variant, scene) for scene in range(len(self.scenes.items))]

    def _job(
        self, variant: Variant, calibration: Calibration | None, prepared: Path | None
    ) -> MeasureJob:
        """The timed job: the first scene, and the further ones where one process runs them all."""
        settings, opened = self.settings, self._opened(variant)
        weigh = variant == REFERENCE and self.identity.checkpoint_bytes is None
        arrays = self.array_files(variant)
        images = [str(self.folder.images(scene)) for scene in range(len(arrays))]
        further = tuple(zip(images[1:], map(str, arrays[1:]), strict=True))
        return MeasureJob(
            parent=os.getpid(),
            answer=str(self.folder.answer(variant.slug)),
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
            size_probe=str(self.folder.size_probe) if weigh else None,
            further=() if self.executor.splits_scenes else further,
            prepared=None if prepared is None else str(prepared),
        )

    def _opened(self, variant: Variant) -> Path | None:
        """What a variant's process opens: artifact or engine; None for PyTorch."""
        if variant.runtime == "torch":
            return None
        return self.folder.engine(variant) if variant.engine else self.folder.artifact(variant)

    def _measured(self, variant: Variant, row: Row, job: MeasureJob) -> Row:
        for path in self.array_files(variant):
            path.unlink(missing_ok=True)
        answer = ask_within(
            self.executor,
            self.settings,
            "measure",
            job,
            self.folder.paths(variant.slug),
            timed=True,
        )
        if isinstance(answer, Failure):
            return _without_numbers(row, answer)
        notes: list[str] | Failure = []
        if self.executor.splits_scenes:
            notes = self._further(variant, job)
        if isinstance(notes, Failure):
            return _without_numbers(row, notes)
        try:
            machine = answer.pop("machine")
            measured = self._weighed(variant, row, answer, notes)
        except (KeyError, TypeError) as error:
            message = f"its answer does not fit: {type(error).__name__} {error}"
            return replace(row, failure=Failure("measure", message))
        return replace(row, status="done", measured=measured, machine=machine)

    def _further(self, variant: Variant, timed: MeasureJob) -> list[str] | Failure:
        """Run the further scenes as jobs of their own, all at once; notes on how that went."""
        numbers = range(1, len(self.scenes.items))
        if not numbers:
            return []
        with ThreadPoolExecutor(len(numbers)) as pool:
            answers = list(pool.map(partial(self._compute, variant, timed), numbers))
        notes: list[str] = []
        for number, answer in zip(numbers, answers, strict=True):
            scene = f"scene {self.scenes.items[number].name}"
            if isinstance(answer, Failure):
                return replace(answer, message=f"{scene}: {answer.message}")
            notes += [f"{scene}: {note}" for note in answer.get("notes", [])]
        return notes

    def _compute(
        self, variant: Variant, timed: MeasureJob, number: int
    ) -> dict[str, Any] | Failure:
        paths = self.folder.paths(f"{variant.slug}.{number:03d}")
        job = replace(
            timed,
            answer=str(paths.answer),
            images=str(self.folder.images(number)),
            arrays=str(self.folder.arrays(variant, number)),
            warmup=0,
            repeats=0,
            size_probe=None,
        )
        return ask_within(self.executor, self.settings, "compute", job, paths)

    def _weighed(
        self, variant: Variant, row: Row, answer: dict[str, Any], notes: Sequence[str]
    ) -> Measured:
        """The worker's answer with the size on disk, whose meaning depends on the variant."""
        gpu = answer.get("gpu")
        answer = {
            **answer,
            "latency": Latency.from_json(answer["latency"]),
            "gpu": GpuMeasure(**gpu) if gpu else None,
            "notes": (*answer["notes"], *notes),
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
        return Measured(**{**answer, **size})


def _without_numbers(row: Row, failure: Failure) -> Row:
    """A row that failed, or that has nothing here to run on."""
    return replace(row, status="not run" if failure.unavailable else "failed", failure=failure)
