"""Engines of every scheme that TensorRT can run, built by TensorRT-RTX without a GPU.

    python -m bench.tensorrt_rtx                             VGGT-1B, random weights
    python -m bench.tensorrt_rtx --model random:vggt-tiny    the same in a few minutes
    python -m bench.tensorrt_rtx --only fp16,int8_pc_sym+static

For each: seconds to export and to build, peak memory of both processes, bytes of the plan and of
its weights beside the packed weights of the graph, what the GEMMs of the quantized Linears compute
in (proven from the builder's own record) and whether attention fused. One process per step; a step
that fails is a row with its error. Nothing is run: that needs a GPU.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.messages import say, say_step
from bench.process import Settings, StepResult, run_step
from bench.report import GIB
from vggt_deploy.artifact import locked
from vggt_deploy.compare.environment import describe_environment, usable_cpus
from vggt_deploy.compare.jobs import write_json
from vggt_deploy.errors import DeployError, UsageError
from vggt_deploy.options import parse_frames

SCHEMA = 1
INTERRUPTED = 130
MB = 1e6
STEPS = "bench.tensorrt_rtx_steps"
# The integer schemes compute what is not integer in FP16, where attention has fused kernels.
BESIDE_INTEGERS = "fp16"
VARIANTS = (
    "fp32",
    "fp16",
    "bf16",
    "int8_pt_sym",
    "int8_pt_asym",
    "int8_pc_sym",
    "int8_pc_asym",
    "int8_pc_sym+static",
    "int8_pc_asym+static",
    "int8_pt_sym+static",
    "int8_pt_asym+static",
    "int4_g32",
    "int4_g64",
    "int4_g128",
    "int4_g256",
    "mixed",
)
HEADER = (
    "",
    "export (s)",
    "build (s)",
    "peak, export (GiB)",
    "peak, build (GiB)",
    "plan (MB)",
    "weights in it (MB)",
    "packed weights (MB)",
    "plan / packed",
    "GEMMs of the quantized Linears, by operations",
    "FP16/BF16 attentions fused",
    "remark",
)
NOTES = """\
- export, build: whole processes, imports included; peak: VmHWM of each.
- packed weights: integers, scales and everything float of the graph, each once.
- GEMMs: int8 multiplies integers; int8-weight, int4-weight turn weights to float inside the kernel;
  int8-stored, int4-stored turn them to float before it (small file, no faster); float has floats in
  the plan. Proven for every Linear from what the builder logs of its layers.
- Nothing was run: speed and numbers on a GPU are not known from this."""


@dataclass(frozen=True)
class Row:
    """A variant, exported and built."""

    variant: str
    precision: str
    export: StepResult
    build: StepResult | None

    @property
    def error(self) -> str | None:
        """Of the step that failed."""
        return self.export.error or (None if self.build is None else self.build.error)


@dataclass(frozen=True)
class Question:
    """What is measured, as asked on the command line."""

    model: str
    variants: tuple[str, ...]
    device: str
    height: int
    width: int
    frames: tuple[int, int, int]


def precision_of(variant: str) -> str:
    """The float type of a variant."""
    return variant if variant in ("fp32", "fp16", "bf16") else BESIDE_INTEGERS


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [HEADER, *map(_cells, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADER))]

    def text(cells: Sequence[str]) -> str:
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([text(HEADER), rule, *map(text, lines[1:])])


def _cells(row: Row) -> tuple[str, ...]:
    built = row.build
    said: Mapping[str, Any] = {} if built is None else built.answer
    plan, packed = said.get("plan_bytes"), said.get("packed_bytes")
    fused = "-"
    if said.get("attentions_half"):
        fused = f"{said['attentions_half'] - said['half_unfused']} of {said['attentions_half']}"
    shares = said.get("shares", {}).get("flops", {})
    return (
        row.variant,
        f"{row.export.seconds:.1f}" if row.export.ok else "-",
        f"{built.seconds:.1f}" if built is not None and built.ok else "-",
        _scaled(row.export.peak_rss_bytes, GIB, 2),
        _scaled(None if built is None else built.peak_rss_bytes, GIB, 2),
        _scaled(plan, MB, 1),
        _scaled(said.get("weights_bytes"), MB, 1),
        _scaled(packed, MB, 1),
        f"{plan / packed:.3f}" if plan and packed else "-",
        ", ".join(f"{kind} {share:.1%}" for kind, share in shares.items()) or "-",
        fused,
        ""
        if row.error is None
        else "FAILED: " + " ".join(row.error.split())[:160].replace("|", "/"),
    )


def _scaled(count: int | None, unit: float, digits: int) -> str:
    return "-" if count is None else f"{count / unit:.{digits}f}"


def run(question: Question, out: Path) -> int:
    """Measure, save, print. Exit code as the command line of vggt-deploy has them."""
    out = out.resolve()
    work, logs = out / "tensorrt_rtx_work", out / "tensorrt_rtx_logs"
    out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    finished = False
    with locked(out / "tensorrt_rtx"):
        for folder in (work, logs):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        settings = Settings(logs, usable_cpus(), timeout_s=7200.0, module=STEPS)
        started = datetime.now(UTC).isoformat(timespec="seconds")
        try:
            _measure(question, work, settings, rows)
            finished = True
        except KeyboardInterrupt:
            say("interrupted: this is what was done")
        finally:
            shutil.rmtree(work, ignore_errors=True)
    _save(question, rows, out, started=started, finished=finished)
    if not finished:
        return INTERRUPTED
    return 1 if any(row.error for row in rows) else 0


def _measure(question: Question, work: Path, settings: Settings, rows: list[Row]) -> None:
    size = {"height": question.height, "width": question.width}
    statistics: str | None = None
    if any(variant.endswith("+static") for variant in question.variants):
        calibrated = run_step(
            "calibrate",
            "calibrate",
            {"model": question.model, "folder": str(work), **size},
            settings,
        )
        say_step("calibrated", calibrated)
        if calibrated.error is not None:
            raise DeployError(calibrated.error, f"see {settings.folder / 'calibrate.log'}")
        statistics = str(work / "statistics")
    for variant in question.variants:
        rows.append(_row(question, variant, work, settings, statistics))


def _row(
    question: Question, variant: str, work: Path, settings: Settings, statistics: str | None
) -> Row:
    """Export and build one variant; its files are gone afterwards."""
    artifact, engine = work / "artifact", work / "engine"
    precision = precision_of(variant)
    exported = run_step(
        "export",
        f"export-{variant}",
        {
            "model": question.model,
            "variant": variant,
            "precision": precision,
            "folder": str(artifact),
            "statistics": statistics if variant.endswith("+static") else None,
            "height": question.height,
            "width": question.width,
            "frames": question.frames,
        },
        settings,
    )
    say_step(f"exported {variant}", exported)
    built = None
    if exported.ok:
        arguments = {
            "artifact": str(artifact),
            "folder": str(engine),
            "device": question.device,
            "frames": question.frames,
        }
        built = run_step("build", f"build-{variant}", arguments, settings)
        say_step(f"built {variant}", built)
    for folder in (artifact, engine):
        shutil.rmtree(folder, ignore_errors=True)
    return Row(variant, precision, exported, built)


def _save(
    question: Question, rows: Sequence[Row], out: Path, *, started: str, finished: bool
) -> None:
    environment = describe_environment().to_json()
    versions = sorted({r.build.answer["runtime_version"] for r in rows if r.build and r.build.ok})
    low, usual, high = question.frames
    count = f"{low}" if low == high else f"{low} to {high}, tuned for {usual},"
    size = f"{count} frames of {question.height} x {question.width}"
    machine = f"{environment['cpu']}, {environment['usable_cpus']} CPUs"
    lines = [
        f"{question.model}, {size}, device profile {question.device}, one optimization profile",
        f"TensorRT-RTX {', '.join(versions) or 'unknown'}, no GPU needed; {machine}",
        f"started {started}" + ("" if finished else "; INTERRUPTED: not everything was done"),
    ]
    text = "\n".join([*(f"- {line}" for line in lines), "", table(rows), "", NOTES, ""])
    values = {
        "schema": SCHEMA,
        "started": started,
        "finished": finished,
        **asdict(question),
        "environment": environment,
        "rows": [{**asdict(row), "error": row.error} for row in rows],
    }
    write_json(out / "tensorrt_rtx.json", values)
    (out / "tensorrt_rtx.md").write_text(text)
    print(text)
    say(f"saved as {out / 'tensorrt_rtx.md'} and tensorrt_rtx.json")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 all rows, 1 a row failed, 2 wrong usage, 130 interrupted."""
    options = _parser().parse_args(arguments)
    try:
        variants = tuple(options.only.split(",")) if options.only else VARIANTS
        if unknown := [variant for variant in variants if variant not in VARIANTS]:
            raise UsageError(
                f"unknown variant {unknown[0]!r}", f"use some of {', '.join(VARIANTS)}"
            )
        question = Question(
            options.model,
            variants,
            options.device,
            options.height,
            options.width,
            parse_frames(options.frames),
        )
        return run(question, options.out)
    except DeployError as error:
        print(error, file=sys.stderr)
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.tensorrt_rtx",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", default="random:vggt-1b", help="checkpoint, Hugging Face id or random:<config>")
    add("--device", default="rtx4090", help="device profile (default rtx4090)")
    add("--height", type=int, default=168)
    add("--width", type=int, default=224)
    add(
        "--frames", default="2", help="MIN:OPT:MAX, or one number: kernels for it alone (default 2)"
    )
    add("--only", metavar="LABEL,...", help=f"rows to run, of: {', '.join(VARIANTS)}")
    add("--out", type=Path, default=Path("bench/out"), help="results (default bench/out)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
