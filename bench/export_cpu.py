"""What it costs to get VGGT into ONNX Runtime on a CPU, and how that runs: ours beside the rest.

    python -m bench.export_cpu                              VGGT-1B, random weights: `make bench`
    python -m bench.export_cpu --model random:vggt-tiny     the same in a minute or two
    python -m bench.export_cpu --only plain_fp32,int8_pc_sym+dynamic --keep artifacts

First everything is made, then everything is run, in rounds, so that a busy minute of the machine
falls on all rows alike. A step that fails is a row with its error. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from bench.machine import available_memory_bytes, load_average, read_through
from bench.messages import say, say_step
from bench.process import Settings, run_step
from bench.report import Finding, document
from bench.rows import ROWS, TORCH_FP32, Row, choose, disk_bytes, memory_bytes, to_make
from vggt_deploy.artifact import locked, require_free_space
from vggt_deploy.compare.environment import describe_environment, usable_cpus
from vggt_deploy.compare.jobs import write_json
from vggt_deploy.data.scenes import write_scenes
from vggt_deploy.errors import ArtifactError, DeployError, UsageError

SCHEMA = 1
INTERRUPTED = 130
SEED = 0
# Enough for scales that are in use; accuracy is not measured here.
CALIBRATION_PICTURES = 4
# A load average above this share of the CPUs before we have started is someone else's work.
BUSY_SHARE = 0.25
GB = 1e9


@dataclass(frozen=True)
class Question:
    """What is measured, as asked on the command line."""

    model: str
    rows: tuple[Row, ...]
    height: int
    width: int
    frames: int
    rounds: int
    repeats: int
    threads: int
    timeout_s: float


@dataclass(frozen=True)
class Places:
    """Results in `out`; files that are run in `work`; logs of the steps in `logs`."""

    out: Path
    work: Path
    logs: Path

    @property
    def checkpoint(self) -> Path:
        return self.work / "checkpoint" / "model.safetensors"

    @property
    def images(self) -> Path:
        return self.logs / "images.npy"

    @property
    def pictures(self) -> Path:
        return self.work / "pictures"

    def arrays(self, label: str) -> Path:
        return self.logs / f"{label}.npz"

    def files(self, row: Row) -> Path:
        """The folder that holds what the row runs."""
        return self.checkpoint.parent if row.label == TORCH_FP32 else self.work / row.label


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes as the command line of vggt-deploy has them."""
    options = _parser().parse_args(arguments)
    try:
        question = _question(options)
        with _places(options.out, options.keep) as places:
            return _run(question, places)
    except DeployError as error:
        print(error, file=sys.stderr)
        return error.exit_code


def _run(question: Question, places: Places) -> int:
    settings = Settings(places.logs, question.threads, question.timeout_s)
    findings = {row.label: Finding(row) for row in question.rows}
    header: dict[str, Any] = {}
    code = INTERRUPTED
    try:
        header |= _describe(question, settings)
        _check_room(question, header["fp32_bytes"], places)
        _prepare(question, places, settings)
        _make(question, places, settings, findings)
        os.sync()  # what is still being written would disturb the timed reads
        _measure(question, places, settings, findings)
        code = 1 if any(finding.error for finding in findings.values()) else 0
    except KeyboardInterrupt:
        say("interrupted: this is what was done")
    if header:
        _save(header, list(findings.values()), places, finished=code < INTERRUPTED)
    return code


def _describe(question: Question, settings: Settings) -> dict[str, Any]:
    """Who measures what, where; says aloud if the machine is busy."""
    load = load_average()
    identity = run_step("identify", "identify", {"model": question.model}, settings)
    if identity.error is not None:
        raise UsageError(identity.error, "give a checkpoint, a Hugging Face id or random:<config>")
    if load is not None and load > BUSY_SHARE * usable_cpus():
        say(
            f"WARNING: the machine is busy (load average {load:.2f} on {usable_cpus()} CPUs): "
            "times will be too long; rows that others disturbed are marked"
        )
    return {
        "schema": SCHEMA,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": question.model,
        **identity.answer,
        "height": question.height,
        "width": question.width,
        "frames": question.frames,
        "rounds": question.rounds,
        "repeats_per_round": question.repeats,
        "threads": question.threads,
        "load_average_at_start": load,
        "environment": describe_environment().to_json(),
    }


def _check_room(question: Question, fp32_bytes: int, places: Places) -> None:
    """A disk that is too small is an error now; too little memory can only be a warning."""
    disk = disk_bytes(question.rows, fp32_bytes)
    memory = memory_bytes(question.rows, fp32_bytes)
    free = available_memory_bytes()
    found = "" if free is None else f" ({free / GB:.1f} GB are available)"
    say(
        f"FP32 weights are {fp32_bytes / GB:.2f} GB; all steps need {disk / GB:.1f} GB in "
        f"{places.work}, the hungriest {memory / GB:.1f} GB of memory{found}"
    )
    require_free_space(places.work, disk)
    if free is not None and free < memory:
        say("WARNING: not enough memory for the hungriest step; it may end as a failed row")


def _prepare(question: Question, places: Places, settings: Settings) -> None:
    """The checkpoint that every row starts from, and the images."""
    places.checkpoint.parent.mkdir(parents=True)
    arguments = {"model": question.model, "path": str(places.checkpoint)}
    result = run_step("write_checkpoint", "checkpoint", arguments, settings)
    if result.error is not None:
        raise ArtifactError(f"the checkpoint could not be written: {result.error}", "see above")
    say(f"checkpoint written in {result.seconds:.1f} s")
    shape = (1, question.frames, 3, question.height, question.width)
    images = np.random.default_rng(SEED).random(shape, dtype=np.float32)
    np.save(places.images, images)
    if any(row.calibrated for row in question.rows):
        write_scenes(
            places.pictures,
            seed=SEED,
            views=CALIBRATION_PICTURES,
            width=question.width,
            height=question.height,
        )


def _make(
    question: Question,
    places: Places,
    settings: Settings,
    findings: Mapping[str, Finding],
) -> None:
    """Every file that the rows run, and those that they start from."""
    failed: dict[str, str] = {}
    for row in to_make(question.rows):
        finding = findings.get(row.label, Finding(row))
        if row.made_from in failed:
            cause = f"{row.made_from} could not be made: {failed[row.made_from]}"
            finding.error = failed[row.label] = cause
            continue
        folder = places.files(row)
        if row.kind == "plain":
            folder.mkdir()
        result = run_step(
            str(row.step), f"make-{row.label}", _making(row, question, places), settings
        )
        finding.made = result
        if result.ok:
            finding.disk_bytes = _folder_bytes(folder)
        else:
            finding.error = failed[row.label] = str(result.error)
        say_step(f"made {row.label}", result)
    if TORCH_FP32 in findings:
        findings[TORCH_FP32].disk_bytes = _folder_bytes(places.checkpoint.parent)


def _making(row: Row, question: Question, places: Places) -> dict[str, Any]:
    folder = str(places.files(row))
    if row.made_from is not None:
        return {"source": str(places.work / row.made_from), "folder": folder}
    size = {"height": question.height, "width": question.width}
    common = {"checkpoint": str(places.checkpoint), "folder": folder, **size}
    if row.kind == "plain":
        return common
    pictures = str(places.pictures) if row.calibrated else None
    return {**common, "variant": row.variant, "threads": question.threads, "pictures": pictures}


def _measure(
    question: Question,
    places: Places,
    settings: Settings,
    findings: Mapping[str, Finding],
) -> None:
    """Rounds over all rows that could be made; a row that failed once is not tried again."""
    for number in range(1, question.rounds + 1):
        for finding in findings.values():
            if finding.error is not None:
                continue
            row = finding.row
            read_through(places.files(row))
            result = run_step(
                f"run_{row.kind}",
                f"run-{row.label}-{number}",
                _running(row, question, places, first=number == 1),
                settings,
            )
            finding.runs.append(result)
            finding.error = result.error
            say_step(f"round {number}: ran {row.label}", result)
            if number == 1 and result.ok and TORCH_FP32 in findings:
                finding.output_errors = _output_errors(places, row)


def _running(row: Row, question: Question, places: Places, *, first: bool) -> dict[str, Any]:
    if row.label == TORCH_FP32:
        source = {"checkpoint": str(places.checkpoint)}
    else:
        source = {"folder": str(places.files(row))}
    return {
        **source,
        "images": str(places.images),
        "arrays": str(places.arrays(row.label)) if first else None,
        "repeats": question.repeats,
        "threads": question.threads,
    }


def _output_errors(places: Places, row: Row) -> dict[str, float]:
    """||y - y_PyTorch|| / ||y_PyTorch|| of each output; empty for PyTorch itself."""
    reference = places.arrays(TORCH_FP32)
    if row.label == TORCH_FP32 or not reference.exists():
        return {}
    with np.load(reference) as wanted, np.load(places.arrays(row.label)) as found:
        return {
            name: float(np.linalg.norm(found[name] - wanted[name]) / np.linalg.norm(wanted[name]))
            for name in wanted.files
        }


def _save(
    header: dict[str, Any],
    findings: Sequence[Finding],
    places: Places,
    *,
    finished: bool,
) -> None:
    lines = _header_lines(header) + ([] if finished else ["INTERRUPTED: not everything was done"])
    text = document(lines, findings, header["environment"]["usable_cpus"])
    rows = [finding.to_json() for finding in findings]
    write_json(places.out / "export_cpu.json", {**header, "finished": finished, "rows": rows})
    (places.out / "export_cpu.md").write_text(text)
    print(text)
    say(f"saved as {places.out / 'export_cpu.md'} and export_cpu.json")


def _header_lines(header: dict[str, Any]) -> list[str]:
    machine = header["environment"]
    versions = machine["versions"]
    load = header["load_average_at_start"]
    size = f"{header['height']} x {header['width']}"
    calls = f"{header['rounds']} rounds x {header['repeats_per_round']} calls"
    shown = ("vggt-deploy", "torch", "onnxruntime", "onnx")
    model = f"{header['model']} without track head, {header['fp32_bytes'] / 1e6:.0f} MB in FP32"
    processor = f"{machine['cpu']} ({', '.join(machine['cpu_flags'])})"
    before = "unknown" if load is None else f"{load:.2f}"
    return [
        f"{model}; {header['frames']} frames of {size}",
        f"{processor}, {machine['usable_cpus']} CPUs; threads: {header['threads']}",
        f"load average at the start: {before}",
        ", ".join(f"{name} {versions[name]}" for name in shown if name in versions)
        + f", Python {machine['python']}, {machine['system']}",
        f"n = {calls}, each round in a new process with one call to warm up",
        f"started {header['started']}",
    ]


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@contextlib.contextmanager
def _places(out: Path, keep: Path | None) -> Iterator[Places]:
    """Folders for one run. What a killed run left in `out` is removed, `--keep` must be empty."""
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    work = out / "work" if keep is None else keep.resolve()
    logs = out / "logs"
    with locked(out / "export_cpu"):
        if keep is None:
            shutil.rmtree(work, ignore_errors=True)
        elif work.exists() and any(work.iterdir()):
            raise ArtifactError(f"{work} is not empty", "give another folder with --keep")
        shutil.rmtree(logs, ignore_errors=True)
        for folder in (work, logs):
            folder.mkdir(parents=True, exist_ok=True)
        try:
            yield Places(out, work, logs)
        finally:
            if keep is None:
                shutil.rmtree(work, ignore_errors=True)


def _question(options: argparse.Namespace) -> Question:
    counts = {name: getattr(options, name) for name in ("frames", "rounds", "repeats", "threads")}
    for name, value in counts.items():
        if value < 1:
            raise UsageError(f"--{name} {value}", "give 1 or more")
    return Question(
        model=options.model,
        rows=choose(options.only),
        height=options.height,
        width=options.width,
        timeout_s=options.timeout,
        **counts,
    )


def _parser() -> argparse.ArgumentParser:
    labels = ", ".join(row.label for row in ROWS)
    parser = argparse.ArgumentParser(
        prog="python -m bench.export_cpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", default="random:vggt-1b", help="checkpoint, Hugging Face id or random:<config>")
    add("--height", type=int, default=168)
    add("--width", type=int, default=224)
    add("--frames", type=int, default=2)
    add("--rounds", type=int, default=2, help="processes per row (default 2)")
    add("--repeats", type=int, default=5, help="timed calls in each of them (default 5)")
    add("--threads", type=int, default=usable_cpus(), help="default: all usable CPUs")
    add("--timeout", type=float, default=3600.0, help="seconds for one step (default 3600)")
    add("--only", metavar="LABEL,...", help=f"rows to run, of: {labels}")
    add("--out", type=Path, default=Path("bench/out"), help="results (default bench/out)")
    add("--keep", type=Path, metavar="DIR", help="keep checkpoint, graphs and artifacts there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
