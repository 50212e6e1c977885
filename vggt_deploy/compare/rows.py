"""The sweep: an executor measures every variant, and each is held against PyTorch FP32 here."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from vggt_deploy.compare.executors.base import Executor, ask_within
from vggt_deploy.compare.jobs import CalibrateJob, Calibration
from vggt_deploy.compare.judging import Arrays, judged, read_arrays, with_truth_loss
from vggt_deploy.compare.making import Maker
from vggt_deploy.compare.measures import Failure
from vggt_deploy.compare.measuring import Measurer
from vggt_deploy.compare.question import Identity, Settings
from vggt_deploy.compare.report import Row
from vggt_deploy.compare.scenes import Scenes
from vggt_deploy.compare.state import Folder, finished_row, save_row
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
    """All variants of one question, as many at a time as the executor takes."""

    settings: Settings
    folder: Folder
    scenes: Scenes
    identity: Identity
    executor: Executor
    console: Console

    def run(self) -> tuple[Row, ...]:
        """The row of each variant, in order; the reference first.

        Rows are held against the reference, saved and shown as they come. What an executor of
        several machines finishes before the reference waits for it.
        """
        rows, reference = self._kept()
        asked = [variant for variant in self.settings.variants if variant not in rows]
        calibration = self._calibration(asked)
        maker = Maker(self.settings, self.folder, self.scenes, self.executor)
        measurer = Measurer(
            self.settings, self.folder, self.scenes, self.identity, self.executor, maker
        )
        with self._progress() as progress:
            task = progress.add_task("", total=len(self.settings.variants))

            def show(row: Row, *, kept: bool) -> None:
                line = describe_row(row, kept=kept)
                progress.console.print(line, highlight=False, markup=False, soft_wrap=True)
                progress.advance(task)

            def measure(variant: Variant) -> Row:
                progress.update(task, description=variant.label)
                return measurer.row(variant, calibration)

            for row in rows.values():
                show(row, kept=True)
            early: list[tuple[Variant, Row]] = []
            with closing(self._each(asked, measure)) as measured:
                for variant, row in measured:
                    if variant == REFERENCE:
                        reference = self._reference(row)
                        early.insert(0, (variant, row))
                    else:
                        early.append((variant, row))
                    while reference is not None and early:
                        ready, row = early.pop(0)
                        row = self._held_against(row, ready, reference)
                        save_row(self.folder, ready, row)
                        show(row, kept=False)
                        rows[ready] = row
            progress.update(task, description="measured")
        return tuple(rows[variant] for variant in self.settings.variants)

    def _progress(self) -> Progress:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        return Progress(*columns, console=self.console)

    def _kept(self) -> tuple[dict[Variant, Row], Reference | None]:
        """The rows of a former run, in order, and the reference, if it is among them."""
        found = {variant: finished_row(self.folder, variant) for variant in self.settings.variants}
        rows = {variant: row for variant, row in found.items() if row is not None}
        reference = rows.get(REFERENCE)
        if reference is None:
            return rows, None
        arrays = self._arrays(REFERENCE)
        if isinstance(arrays, Failure):  # whole, and not what this question asks for
            del rows[REFERENCE]
            return rows, None
        return rows, Reference(reference, arrays)

    def _each(
        self, variants: Sequence[Variant], measure: Callable[[Variant], Row]
    ) -> Generator[tuple[Variant, Row], None, None]:
        """Each variant with its row as measured, as they finish.

        Closed early (the reference failed, Ctrl-C), it ends what is running before it returns. When
        one of them raises it does so too, and first gives what has finished by then.
        """
        if self.executor.width == 1:
            for variant in variants:
                yield variant, measure(variant)
            return
        with ThreadPoolExecutor(self.executor.width) as pool:
            futures = {pool.submit(measure, variant): variant for variant in variants}
            try:
                for future in as_completed(futures):
                    if future.exception() is not None:
                        break
                    yield futures.pop(future), future.result()
                else:
                    return
                # What has finished beside the one that ends the sweep is kept.
                for other in [one for one in futures if _finished(one)]:
                    yield futures.pop(other), other.result()
                future.result()
            finally:
                if not all(future.done() for future in futures):
                    pool.shutdown(wait=False, cancel_futures=True)
                    self.executor.stop()

    def _reference(self, row: Row) -> Reference:
        """The reference as measured and judged, or the end of the comparison."""
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
        row = judged(row, arrays, arrays, self.scenes.items)
        row = with_truth_loss(row, row)
        if row.failure is not None:
            raise CompareError(
                f"PyTorch FP32, the reference, can't be judged: {row.failure.message}",
                row.failure.fix or "begin again",
            )
        return Reference(row, arrays)

    def _calibration(self, variants: Sequence[Variant]) -> Calibration | Failure | None:
        """The statistics of static activations, collected in a process of its own if need be."""
        asked, scenes = self.settings.calibration, self.scenes
        # Prepared weights bring their own ranges: those of the network as it was changed.
        needed = any(
            v.activations == "static" and not v.quantization.treatment.prepares for v in variants
        )
        if asked is None or not needed:
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
        answer = ask_within(self.executor, self.settings, "calibrate", job, paths)
        return answer if isinstance(answer, Failure) else ready

    def _held_against(self, row: Row, variant: Variant, reference: Reference) -> Row:
        """The row with its metrics; outputs that can't be compared make it a failed one."""
        if variant == REFERENCE:
            return reference.row
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


def _finished(future: Future[Row]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


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
