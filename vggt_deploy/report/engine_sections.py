"""The parts of the summary that are about engines: what was built, and what could not be run."""

from __future__ import annotations

from vggt_deploy.compare.report import ComparisonReport
from vggt_deploy.report.text import megabytes, table, wrap

HOW_ENGINES = """\
engines    built for the device profile, one process each: seconds of the whole build, peak of its
           memory. "weights" in the plan, "packed": the graph's, each once. Proof: what the
           products of the quantized Linears compute in, by operations, as TensorRT itself records.
           Their latency is wall clock too, arrays in host memory to arrays in host memory, but of
           the GPU, beside rows of this CPU; "network" is the GPU's time for the network alone,
           between CUDA events, the median of as many further calls. "GPU MB" is device memory of
           the engine and its buffers. All runtimes have the same artifact of a scheme, which is
           exported once.\
"""


def engine_lines(report: ComparisonReport) -> list[str]:
    """What was built, whether or not it could be run here."""
    header = (
        "variant", "plan MB", "weights", "packed", "build s", "peak MB", "network ms", "GPU MB",
        "proof",
    )  # fmt: skip
    rows, notes = [], []
    for row in report.rows:
        build, gpu = row.build, row.measured.gpu if row.measured else None
        if build is None:
            continue
        memory = gpu.engine_bytes + gpu.buffer_bytes if gpu else None
        rows.append(
            (
                row.label,
                megabytes(build.plan_bytes),
                megabytes(build.weights_bytes),
                megabytes(build.packed_bytes),
                f"{build.seconds:.1f}",
                f"{build.peak_rss_bytes / 1e6:.0f}",
                f"{gpu.network_ms:.2f}" if gpu else row.status,
                f"{memory / 1e6:.0f}" if memory is not None else "-",
                build.proof,
            )
        )
        notes += [f"{row.label}: {note}" for note in build.notes]
    return [*table(header, rows), *notes] if rows else []


def not_run_lines(report: ComparisonReport) -> list[str]:
    """Rows that nothing is wrong with, by what is missing here."""
    groups: dict[tuple[str, str | None], list[str]] = {}
    for row in report.rows:
        if row.status == "not run" and row.failure is not None:
            key = (row.failure.message, row.failure.fix)
            groups.setdefault(key, []).append(row.label)
    lines = []
    for (message, fix), labels in groups.items():
        lines.append(f"not run: {message}")
        lines += [f"    {line}" for line in wrap(", ".join(labels), 110)]
        lines += [f"    to run them: {fix}"] if fix else []
    return lines
