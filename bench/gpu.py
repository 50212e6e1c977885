"""What VGGT costs on an NVIDIA GPU, with whatever is installed: PyTorch, ONNX Runtime, TensorRT.

    python -m bench.gpu                                  VGGT-1B with random weights; takes hours
    python -m bench.gpu --only torch_bf16,trt_int8 --frames 1,10
    python -m bench.gpu --keep DIR                       artifacts and engines are used again

Everything is made once; then every row runs at every number of frames, in a process of its own.
What can't run here says why. The table is written anew after every row.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from bench.gpu_report import Finding, document
from bench.gpu_rows import REFERENCE, ROWS, Row, choose
from bench.messages import say
from bench.process import Settings, StepResult, run_step
from vggt_deploy.artifact import locked
from vggt_deploy.compare.environment import describe_environment, usable_cpus
from vggt_deploy.compare.jobs import write_json
from vggt_deploy.errors import ArtifactError, DeployError, UsageError
from vggt_deploy.manifest import MANIFEST_NAME

SCHEMA = 1
INTERRUPTED = 130
_CLOCKS = (
    "clocks.sm,clocks.mem,temperature.gpu,power.draw,utilization.gpu,clocks_event_reasons.active"
)


@dataclass(frozen=True)
class Question:
    """What is measured, as asked on the command line."""

    model: str
    rows: tuple[Row, ...]
    height: int
    width: int
    frames: tuple[int, ...]
    warmup: int
    repeats: int


@dataclass(frozen=True)
class Places:
    """Results in `out`; what is run in `work`; jobs, logs and arrays in `logs`."""

    out: Path
    work: Path
    logs: Path

    @property
    def checkpoint(self) -> Path:
        return self.work / "checkpoint" / "model.safetensors"

    @property
    def images(self) -> Path:
        return self.logs / "images.npy"

    def artifact(self, name: str) -> Path:
        return self.work / "artifacts" / name

    def engine(self, row: Row) -> Path:
        """Rows that differ only in how the engine is run share it."""
        return self.work / "engines" / f"{row.kind}-{row.artifact}-{'tf32' if row.tf32 else 'fp32'}"


class Bench:
    """One run: what was asked, and what is known so far."""

    def __init__(self, question: Question, places: Places, settings: Settings) -> None:
        self.question = question
        self.places = places
        self.settings = settings
        self.header: dict[str, Any] = {}
        self.made: dict[str, StepResult] = {}
        self.unmade: dict[str, str] = {}
        self.findings = [
            Finding(row, frames) for frames in question.frames for row in question.rows
        ]

    def run(self) -> None:
        """Everything, saving after each row."""
        device = self._describe()
        if device is None:
            return
        self._prepare()
        for row in self.question.rows:
            self._make(row)
            self.save(finished=False)
        for finding in self.findings:
            self._measure(finding)
            self.save(finished=False)

    def _describe(self) -> dict[str, Any] | None:
        """The device; without one every row says so and nothing is made."""
        question = self.question
        result = self._step("find_device", "find-device", {})
        device = result.answer.get("device")
        self.header = {
            "schema": SCHEMA,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "model": question.model,
            "height": question.height,
            "width": question.width,
            "frames": question.frames,
            "warmup": question.warmup,
            "repeats": question.repeats,
            "device": device,
            "environment": describe_environment().to_json(),
        }
        if device is None:
            why = result.error or str(result.answer.get("unavailable"))
            for finding in self.findings:
                finding.not_run = why
        return device

    def _prepare(self) -> None:
        """The checkpoint that all start from, and the images that all are given."""
        question, places = self.question, self.places
        made = places.checkpoint.with_suffix(".txt")  # of which model; written when it is whole
        if not made.exists():
            made.parent.mkdir(parents=True, exist_ok=True)
            self._must("write_checkpoint", model=question.model, path=str(places.checkpoint))
            made.write_text(question.model, encoding="utf-8")
        elif made.read_text(encoding="utf-8") != question.model:
            raise UsageError(
                f"{places.work} holds {made.read_text(encoding='utf-8')}, not {question.model}",
                "give another folder with --keep",
            )
        size = {"height": question.height, "width": question.width}
        told = self._must(
            "make_images",
            folder=str(places.logs / "images"),
            arrays=str(places.images),
            count=max(question.frames),
            **size,
        )
        self.header["calibration"] = told["calibration"]

    def _must(self, step: str, **arguments: Any) -> dict[str, Any]:
        result = self._step(step, step.replace("_", "-"), arguments)
        if result.error is not None:
            raise ArtifactError(f"{step} failed: {result.error}", f"see {self.places.logs}")
        return result.answer

    def _make(self, row: Row) -> None:
        """Artifact and engine of a row, unless an earlier row or run has made them."""
        if row.artifact is None:
            return
        question, places = self.question, self.places
        artifact = places.artifact(row.artifact)
        arguments = {
            "checkpoint": str(places.checkpoint),
            "name": row.artifact,
            "height": question.height,
            "width": question.width,
            "frames": list(question.frames),
            "calibration": self.header["calibration"],
            "traces": str(places.work / "traces"),
        }
        if not self._make_folder("export", artifact, arguments) or row.kind == "onnxruntime":
            return
        self._make_folder(
            "build",
            places.engine(row),
            {
                "artifact": str(artifact),
                "runtime": row.kind,
                "frames": list(question.frames),
                "tf32": row.tf32,
            },
        )

    def _make_folder(self, step: str, folder: Path, arguments: dict[str, Any]) -> bool:
        if folder.name in self.unmade:
            return False
        if (folder / MANIFEST_NAME).exists():
            return True
        folder.parent.mkdir(parents=True, exist_ok=True)
        result = self._step(step, f"{step}-{folder.name}", {**arguments, "folder": str(folder)})
        self.made[folder.name] = result
        why = result.error or result.answer.get("unavailable")
        if why is not None:
            self.unmade[folder.name] = f"{step} of {folder.name}: {why}"
        return why is None

    def _measure(self, finding: Finding) -> None:
        row, places = finding.row, self.places
        needs = [places.engine(row).name] if row.kind.startswith("tensorrt") else []
        for name in [row.artifact, *needs]:
            if name in self.unmade:
                finding.not_run = self.unmade[name]
                return
        arrays = places.logs / f"{row.label}-{finding.frames}.npz"
        common = {
            "images": str(places.images),
            "arrays": str(arrays),
            "frames": finding.frames,
            "warmup": self.question.warmup,
            "repeats": self.question.repeats,
        }
        before = clocks()
        name = f"run-{row.label}-{finding.frames}"
        finding.run = self._step(*self._running(row, name), common=common)
        finding.run.answer["clocks"] = [before, clocks()]
        reference = places.logs / f"{REFERENCE}-{finding.frames}.npz"
        if finding.reason is None and reference.exists():
            finding.errors = output_errors(reference, arrays)
        if row.label != REFERENCE:
            arrays.unlink(missing_ok=True)

    def _running(self, row: Row, name: str) -> tuple[str, str, dict[str, Any]]:
        """Step, name and what is special to the row."""
        places = self.places
        if row.kind == "torch":
            own = {"checkpoint": str(places.checkpoint), "tf32": row.tf32}
            return "run_torch", name, {**own, "half": row.half, "compiled": row.compiled}
        if row.kind == "onnxruntime":
            folder = str(places.artifact(str(row.artifact)))
            return "run_onnxruntime", name, {"folder": folder, "tf32": row.tf32}
        own = {"folder": str(places.engine(row)), "cuda_graph": row.cuda_graph}
        return "run_engine", name, own

    def _step(
        self, step: str, name: str, arguments: dict[str, Any], common: dict[str, Any] | None = None
    ) -> StepResult:
        result = run_step(step, name, {**arguments, **(common or {})}, self.settings)
        why = result.error or result.answer.get("unavailable")
        say(f"{name}: {result.seconds:.1f} s" + ("" if why is None else f"; {why}"))
        return result

    def save(self, *, finished: bool) -> str:
        """Write JSON and table of what is known."""
        rows = [finding.to_json() for finding in self.findings]
        made = {name: result.__dict__ for name, result in self.made.items()}
        text = document(self._header_lines(finished), self.findings)
        content = {**self.header, "finished": finished, "made": made, "rows": rows}
        write_json(self.places.out / "gpu.json", content)
        (self.places.out / "gpu.md").write_text(text)
        return text

    def _header_lines(self, finished: bool) -> list[str]:
        header = self.header
        device, machine = header["device"], header["environment"]
        gpu = "no CUDA device"
        if device is not None:
            gpu = (
                f"{device['name']}, compute capability {device['compute_capability']}, driver "
                f"{device['driver_release']}; {device['used_bytes'] / 1e9:.1f} GB in use before"
            )
        versions = [f"{name} {version}" for name, version in machine["versions"].items()]
        size = f"{header['height']} x {header['width']}"
        lines = [
            f"{header['model']} without track head; frames of {size}",
            gpu,
            ", ".join(versions) + f", Python {machine['python']}, {machine['system']}",
            f"n = {header['repeats']} calls after {header['warmup']} to warm up, one process each",
            f"started {header['started']}",
        ]
        return lines if finished else [*lines, "NOT FINISHED: not everything was done"]


def output_errors(reference: Path, found: Path) -> dict[str, float]:
    """||y - y_reference|| / ||y_reference|| of each output."""
    with np.load(reference) as wanted, np.load(found) as given:
        return {
            name: float(np.linalg.norm(given[name] - wanted[name]) / np.linalg.norm(wanted[name]))
            for name in wanted.files
        }


def clocks() -> str | None:
    """Clocks, temperature, power and throttling, as nvidia-smi says; None without it."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    query = [tool, f"--query-gpu={_CLOCKS}", "--format=csv,noheader", "--id=0"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30)
    except subprocess.TimeoutExpired as error:
        return str(error)
    return done.stdout.strip() or done.stderr.strip()


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0: every row ran, or can't here; 1: a row failed; 2: wrong usage; 130: Ctrl-C."""
    options = _parser().parse_args(arguments)
    try:
        question = _question(options)
        with _places(options.out, options.keep) as places:
            settings = Settings(places.logs, usable_cpus(), options.timeout, "bench.gpu_steps")
            bench = Bench(question, places, settings)
            try:
                bench.run()
            except KeyboardInterrupt:
                say("interrupted: what was done is saved")
                return INTERRUPTED
            print(bench.save(finished=True))
            say(f"saved as {places.out / 'gpu.md'} and gpu.json")
            failed = any(f.failed for f in bench.findings)
            failed = failed or any(result.error for result in bench.made.values())
            return 1 if failed else 0
    except DeployError as error:
        print(error, file=sys.stderr)
        return error.exit_code


@contextlib.contextmanager
def _places(out: Path, keep: Path | None) -> Iterator[Places]:
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    work = out / "gpu-work" if keep is None else keep.resolve()
    logs = out / "gpu-logs"
    with locked(out / "gpu"):
        shutil.rmtree(logs, ignore_errors=True)
        for folder in (work, logs):
            folder.mkdir(parents=True, exist_ok=True)
        try:
            yield Places(out, work, logs)
        finally:
            if keep is None:
                shutil.rmtree(work, ignore_errors=True)


def _question(options: argparse.Namespace) -> Question:
    try:
        frames = tuple(sorted({int(text) for text in options.frames.split(",")}))
    except ValueError:
        frames = ()
    if not frames or frames[0] < 1:
        raise UsageError(f"--frames {options.frames}", "give numbers of frames, such as 1,4,10,30")
    if options.warmup < 0 or options.repeats < 1:
        raise UsageError("nothing to time", "give --warmup 0 or more and --repeats 1 or more")
    return Question(
        model=options.model,
        rows=choose(options.only),
        height=options.height,
        width=options.width,
        frames=frames,
        warmup=options.warmup,
        repeats=options.repeats,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", default="random:vggt-1b", help="checkpoint, Hugging Face id or random:<config>")
    add("--height", type=int, default=350)
    add("--width", type=int, default=518)
    add("--frames", default="1,4,10,30", help="default 1,4,10,30")
    add("--warmup", type=int, default=20, help="calls that are not timed (default 20)")
    add("--repeats", type=int, default=100, help="timed calls (default 100)")
    add("--timeout", type=float, default=3600.0, help="seconds for one step (default 3600)")
    labels = ", ".join(row.label for row in ROWS)
    add("--only", metavar="LABEL,...", help=f"rows to run, of: {labels}")
    add("--out", type=Path, default=Path("bench/out"), help="results (default bench/out)")
    add("--keep", type=Path, metavar="DIR", help="keep what is made there; what is there is used")
    return parser


if __name__ == "__main__":
    sys.exit(main())
