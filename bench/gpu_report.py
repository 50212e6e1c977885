"""From what was measured on a GPU to JSON and a Markdown table for each number of frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from bench.gpu_rows import BASELINE, Row
from bench.process import StepResult

GB = 1e9
_REASON_LENGTH = 200
HEADER = (
    "",
    "GPU p50 (ms)",
    "p90",
    "p99",
    "end to end p50 (ms)",
    "p90",
    "vs PyTorch BF16",
    "device memory (GB)",
    "worst output error",
    "load (s)",
    "what ran",
)
NOTES = """\
- GPU: between two CUDA events on the subject's own stream, around the network alone, input and
  outputs on the device. End to end: arrays in host memory to arrays in host memory, by the clock;
  every subject copies through pinned buffers. One call at a time. Percentiles are over all timed
  calls.
- vs PyTorch BF16: its GPU p50 / this row's; above 1 is faster.
- device memory: what is in use on the device because of the row after its last call (weights,
  kernels, activations, what allocators keep), without the CUDA context and, for PyTorch, its
  libraries.
- worst output error: the largest ||y - y_PyTorch FP32|| / ||y_PyTorch FP32|| of the five outputs.
  It shows that the row computes the right thing; with random weights it says nothing of accuracy.
- what ran: engines by their proof (share of the quantized Linears' operations by what their product
  is made of; attention blocks in one kernel); ONNX Runtime by the nodes of a profiled call;
  PyTorch's kernels are in the JSON."""


@dataclass
class Finding:
    """One row at one number of frames."""

    row: Row
    frames: int
    run: StepResult | None = None
    errors: dict[str, float] = field(default_factory=dict)
    not_run: str | None = None

    @property
    def reason(self) -> str | None:
        """Why there are no numbers, or None."""
        if self.not_run is not None:
            return f"not run: {self.not_run}"
        if self.run is None:
            return "not run: the benchmark ended before"
        if self.run.error is not None:
            return f"FAILED: {self.run.error}"
        if "unavailable" in self.run.answer:
            return f"not run: {self.run.answer['unavailable']}"
        return None

    @property
    def failed(self) -> bool:
        """It could have run, and did not."""
        return self.run is not None and self.run.error is not None

    def to_json(self) -> dict[str, Any]:
        """With every sample."""
        return {**asdict(self), "reason": self.reason}


def document(header: Sequence[str], findings: Sequence[Finding]) -> str:
    """The whole Markdown file."""
    parts = ["\n".join(f"- {line}" for line in header)]
    for frames in sorted({finding.frames for finding in findings}):
        some = [finding for finding in findings if finding.frames == frames]
        parts.append(f"### {frames} frame{'s' if frames > 1 else ''}\n\n{table(some)}")
    return "\n\n".join([*parts, NOTES, ""])


def table(findings: Sequence[Finding]) -> str:
    """The findings of one number of frames as a Markdown table."""
    baseline = next((f for f in findings if f.row.label == BASELINE and f.reason is None), None)
    reference = None if baseline is None else _answer(baseline)["network"]["p50_ms"]
    lines = [HEADER, *(_cells(finding, reference) for finding in findings)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADER))]

    def text(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if i in (0, len(HEADER) - 1) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "| " + " | ".join(padded) + " |"

    left, *middle, right = widths
    rule = ["-" * left, *("-" * (width - 1) + ":" for width in middle), "-" * right]
    return "\n".join([text(HEADER), text(rule), *map(text, lines[1:])])


def _answer(finding: Finding) -> Mapping[str, Any]:
    assert finding.run is not None
    return finding.run.answer


def _cells(finding: Finding, baseline_ms: float | None) -> tuple[str, ...]:
    reason = finding.reason
    if reason is not None:
        words = " ".join(reason.split()).replace("|", "/")
        short = words if len(words) <= _REASON_LENGTH else words[:_REASON_LENGTH] + "…"
        return (finding.row.title, *("-" for _ in HEADER[2:]), short)
    answer = _answer(finding)
    gpu, wall = answer["network"], answer["end_to_end"]
    error = max(finding.errors.values(), default=None)
    return (
        finding.row.title,
        *(f"{gpu[name]:.2f}" for name in ("p50_ms", "p90_ms", "p99_ms")),
        *(f"{wall[name]:.2f}" for name in ("p50_ms", "p90_ms")),
        "-" if baseline_ms is None else f"{baseline_ms / gpu['p50_ms']:.2f} x",
        f"{answer['device_bytes'] / GB:.2f}",
        "-" if error is None else f"{error:.1e}",
        f"{answer['load_s']:.1f}",
        what_ran(answer["really"]),
    )


def what_ran(really: Mapping[str, Any]) -> str:
    """What the subject says that it computed in, in a few words."""
    if "proof" in really:
        shares = ", ".join(f"{share:.0%} {name}" for name, share in really["flop_shares"].items())
        fused = f"{really['attentions_fused']} of {really['attentions']} attentions fused"
        tf32 = ", TF32" if really["tf32"] else ""
        return "; ".join(filter(None, [shares, fused + tf32, *really["notes"]]))
    if "nodes" in really:
        nodes = ", ".join(f"{count} nodes {name}" for name, count in really["nodes"].items())
        return nodes + (", TF32" if really["tf32"] else "")
    return f"float32_matmul_precision {really['float32_matmul_precision']}"
