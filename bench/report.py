"""From what was measured to JSON and a Markdown table.

forward     median over all timed calls of all rounds, in brackets fastest and slowest
load        median over the rounds
peak        the largest over the rounds
vs X        X's median / this row's median: above 1 is faster than X
others      CPUs that other processes kept busy during the calls, the worst round
slower      than the faster of the FP32 graphs in ONNX Runtime, by the medians
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from bench.process import StepResult
from bench.rows import OURS_FP32, PLAIN_FP32, TORCH_FP32, Row

GIB = 1 << 30
MB = 1_000_000
# Share of the CPUs that others may take before a row's times are called into question.
BUSY_SHARE = 0.1
# Medians closer than this are not told apart.
SAME = 0.03
_ERROR_LENGTH = 160
HEADER = (
    "",
    "make it (s)",
    "peak (GiB)",
    "on disk (MB)",
    "load (s)",
    "peak RSS when running (GiB)",
    "forward (s)",
    "vs PyTorch FP32",
    "vs ONNX Runtime FP32",
    "worst output error",
    "others (CPUs)",
    "remark",
)


@dataclass
class Finding:
    """What is known of one row so far."""

    row: Row
    made: StepResult | None = None
    disk_bytes: int | None = None
    runs: list[StepResult] = field(default_factory=list)
    output_errors: dict[str, float] = field(default_factory=dict)
    error: str | None = None

    @property
    def samples_s(self) -> list[float]:
        return [s for run in self.runs if run.ok for s in run.answer["samples_s"]]

    @property
    def forward_s(self) -> float | None:
        return statistics.median(self.samples_s) if self.samples_s else None

    @property
    def others_cpus(self) -> float | None:
        """The most that other processes took during one of the runs."""
        return _largest([run.answer.get("others_cpus") for run in self.runs])

    def to_json(self) -> dict[str, Any]:
        """The row with every sample."""
        return {
            **asdict(self),
            "forward_median_s": self.forward_s,
            "n": len(self.samples_s),
        }


def _largest(values: Sequence[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def table(findings: Sequence[Finding]) -> str:
    """The findings as a Markdown table, padded so that it can be read as it is."""
    forwards = {finding.row.label: finding.forward_s for finding in findings}
    lines = [HEADER, *(_cells(finding, forwards) for finding in findings)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADER))]

    def text(cells: Sequence[str]) -> str:
        padded = (
            cell.ljust(width) if i in (0, len(HEADER) - 1) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "| " + " | ".join(padded) + " |"

    left, *middle, right = widths
    rule = ["-" * left, *("-" * (width - 1) + ":" for width in middle), "-" * right]
    return "\n".join([text(HEADER), text(rule), *map(text, lines[1:])])


def _cells(finding: Finding, forwards: Mapping[str, float | None]) -> tuple[str, ...]:
    made = finding.made
    runs = [run for run in finding.runs if run.ok]
    make = "-"
    if made is not None and made.ok:
        make = ("+ " if finding.row.made_from else "") + f"{made.seconds:.1f}"
    loads = [run.answer["load_s"] for run in runs]
    checks = [run.answer["check_s"] for run in runs if "check_s" in run.answer]
    load = f"{statistics.median(loads):.2f}" if loads else "-"
    if checks:
        load += f" (+{statistics.median(checks):.2f})"
    forward = "-"
    if samples := finding.samples_s:
        forward = f"{statistics.median(samples):.3f} ({min(samples):.3f}-{max(samples):.3f})"
    error = max(finding.output_errors.values(), default=None)
    return (
        finding.row.title,
        make,
        _gib(made.peak_rss_bytes if made else None),
        f"{finding.disk_bytes / MB:.1f}" if finding.disk_bytes is not None else "-",
        load,
        _gib(_largest([run.answer["peak_rss_bytes"] for run in runs])),
        forward,
        _ratio(forwards.get(TORCH_FP32), finding.forward_s),
        _ratio(forwards.get(PLAIN_FP32), finding.forward_s),
        "-" if error is None else f"{error:.1e}",
        "-" if finding.others_cpus is None else f"{finding.others_cpus:.1f}",
        "; ".join(_remarks(finding, forwards)),
    )


def _remarks(finding: Finding, forwards: Mapping[str, float | None]) -> list[str]:
    remarks = []
    if finding.error is not None:
        text = " ".join(finding.error.split()).replace("|", "/")
        short = text if len(text) <= _ERROR_LENGTH else text[:_ERROR_LENGTH] + "…"
        remarks.append(f"FAILED: {short}")
    verdict = beside_fp32(finding, forwards)
    return remarks if verdict is None else [*remarks, verdict]


def beside_fp32(finding: Finding, forwards: Mapping[str, float | None]) -> str | None:
    """Words for a quantized row that is not faster than the faster FP32 graph beside it."""
    own = finding.forward_s
    known = [forwards.get(label) for label in (PLAIN_FP32, OURS_FP32)]
    fp32 = min((value for value in known if value is not None), default=None)
    if finding.row.label in (TORCH_FP32, PLAIN_FP32, OURS_FP32) or own is None or fp32 is None:
        return None
    if own > fp32 * (1 + SAME):
        return f"SLOWER than FP32 in ONNX Runtime ({fp32 / own:.2f} x)"
    if own > fp32 * (1 - SAME):
        return "no faster than FP32 in ONNX Runtime"
    return None


def _ratio(reference_s: float | None, own_s: float | None) -> str:
    return "-" if reference_s is None or own_s is None else f"{reference_s / own_s:.2f} x"


def _gib(count: int | float | None) -> str:
    return "-" if count is None else f"{count / GIB:.2f}"


NOTES = """\
- make it: the whole process, from the start of the interpreter to its end; "+" is on top of the
  plain export that it starts from. peak: VmHWM of that process.
- on disk: everything that was written, graphs, weights and manifest (PyTorch: the checkpoint).
- load: until the model or session is ready, files in the page cache; in brackets the hash check
  that an artifact gets before it is opened.
- forward: median (fastest-slowest). vs: above 1 x is faster; ONNX Runtime FP32 is the plain export.
  "Slower than FP32" is against the faster of the two FP32 graphs in ONNX Runtime.
- worst output error: the largest ||y - y_PyTorch|| / ||y_PyTorch|| of the five outputs, on noise
  images. It shows that the row computes the right thing, not what it is worth on photographs."""


def document(header: Sequence[str], findings: Sequence[Finding], cpus: int) -> str:
    """The whole Markdown file."""
    notes = NOTES
    worst = _largest([finding.others_cpus for finding in findings])
    if worst is not None and worst > BUSY_SHARE * cpus:
        notes += (
            f"\n- NOISY: other processes kept up to {worst:.1f} of {cpus} CPUs busy meanwhile."
            "\n  Sizes and memory stand; for times repeat the run on a quiet machine."
        )
    return "\n".join([*(f"- {line}" for line in header), "", table(findings), "", notes, ""])
