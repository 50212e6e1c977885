"""Results as text for a terminal: everything here takes a typed result and prints it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from vggt_deploy.compare.report import ComparisonReport
    from vggt_deploy.doctor import Diagnosis
    from vggt_deploy.engines.run import RunResult
    from vggt_deploy.quantize.targets import SchemeRow
    from vggt_deploy.records import Manifest

_LEVEL_STYLE = {"real": "green", "builds": "cyan", "storage": "yellow", "emulated": "yellow"}
_STATE_STYLE = {"ok": "green", "missing": "yellow", "unknown": "cyan"}
# A table in a pipe or file is not cut to 80 columns.
_WIDTH_WITHOUT_TERMINAL = 160


def console() -> Console:
    """Standard output, as wide as the terminal, or wide enough for a table where there is none."""
    plain = Console(highlight=False)
    if plain.is_terminal:
        return plain
    return Console(highlight=False, width=_WIDTH_WITHOUT_TERMINAL)


def print_schemes(rows: Sequence[SchemeRow], out: Console) -> None:
    """One line per variant; what a target makes of it, with numbered notes below."""
    targets = list(rows[0].targets)
    notes: dict[str, int] = {}
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("scheme", "activations", "bits", "per", "bytes/weight", *targets):
        right = column in ("bits", "bytes/weight")
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    for row in rows:
        cells = [row.scheme, row.activations, row.bits, row.granularity]
        cells.append(f"{row.bytes_per_weight:.3f}")
        supports = []
        for target in targets:
            support = row.targets[target]
            style = _LEVEL_STYLE.get(support.level, "red")
            text = Text(support.level, style)
            if support.note:
                number = notes.setdefault(support.note, len(notes) + 1)
                text.append(f" ({number})", "dim")
            supports.append(text)
        table.add_row(*cells, *supports)
    # Words cut in the middle can't be read; a line that is too long is left to the terminal.
    unlimited = out.options.update(max_width=10_000)
    out.width = max(out.width, Measurement.get(out, unlimited, table).maximum)
    out.print(table)
    out.print()
    for note, number in notes.items():
        out.print(f"({number}) {note}", markup=False)
    out.print(
        "\nreal: kernels that use the integers or halves; storage: kept small, computed in float;\n"
        "builds: the builder accepts it, not run by the authors; emulated: right numbers, no gain; "
        "no: refused"
    )


def print_diagnosis(diagnosis: Diagnosis, out: Console) -> None:
    """One line per check, and what to do about it."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in (f"vggt-deploy {diagnosis.version}", "state", "found", "to change it"):
        table.add_column(column, overflow="fold")
    for check in diagnosis.checks:
        state = Text(check.state, _STATE_STYLE[check.state])
        table.add_row(Text(check.name), state, Text(check.found), Text(check.fix, "dim"))
    out.print(table)


def print_artifact(
    manifest: Manifest, folder: str, seconds: dict[str, float], out: Console
) -> None:
    """What an export wrote."""
    out.print(f"{folder}: {manifest.variant}, {manifest.bytes_total / 1e6:.1f} MB", markup=False)
    for name, record in manifest.files.items():
        out.print(f"  {name:<24} {record.bytes / 1e6:>10.1f} MB", markup=False)
    frames = manifest.frames
    out.print(
        f"  {frames.min} to {frames.max} frames of {manifest.height} x {manifest.width}, outputs: "
        f"{', '.join(manifest.outputs)}",
        markup=False,
    )
    out.print(f"  {len(manifest.layers.quantized)} layers hold integers", markup=False)
    timing = ", ".join(f"{stage} {value:.1f} s" for stage, value in seconds.items())
    out.print(f"  {timing}", markup=False)
    if manifest.verification is None:
        out.print("  not verified against PyTorch (--no-verify)", markup=False)


def print_report(report: ComparisonReport, out: Console, language: str) -> None:
    """The summary of a comparison, as written to its folder, and where the page is."""
    from vggt_deploy.compare.report import PAGE_NAME
    from vggt_deploy.report.languages import speaker
    from vggt_deploy.report.summary import summary_text

    out.print(summary_text(report, speaker(language).language), markup=False, soft_wrap=True)
    out.print(f"{report.folder / PAGE_NAME}", markup=False, soft_wrap=True)


def print_run(result: RunResult, out: Console) -> None:
    """What a run wrote, and what to know about it."""
    info = result.session
    out.print(
        f"{result.images} images through {info.variant} in {result.forward_ms:.0f} ms "
        f"({info.runtime} {info.runtime_version}, {info.provider}); {result.found}",
        markup=False,
    )
    for note in result.notes:
        out.print(f"note: {note}", markup=False)
    out.print(f"{result.folder}:", markup=False)
    for name in result.files:
        out.print(f"  {name}", markup=False)
