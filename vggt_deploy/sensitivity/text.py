"""Results as text for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from vggt_deploy.sensitivity.table import MEASURES, SensitivityTable

if TYPE_CHECKING:
    from vggt_deploy.sensitivity.bisect import BisectResult

SHOWN = 20


def print_sensitivity(table: SensitivityTable, folder: str, out: Console) -> None:
    """The units that cost most, worst first, and where the rest is."""
    names = MEASURES[table.reference]
    rows = sorted(table.measured, key=lambda entry: -(entry.loss or {}).get("output_mse", 0.0))
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("unit", "format", "local error", *names):
        left = column in ("unit", "format")
        shown.add_column(column, justify="left" if left else "right", overflow="fold")
    for entry in rows[:SHOWN]:
        loss = entry.loss or {}
        local = "" if entry.local_error is None else f"{entry.local_error:.3g}"
        cells = [f"{loss[name]:.3g}" if name in loss else "" for name in names]
        shown.add_row(entry.unit, entry.format, local, *cells)
    reference = "the truth" if table.reference == "truth" else "FP32's own outputs"
    out.print(
        f"increase over FP32, against {reference}, over {len(table.scenes)} scenes; "
        f"{len(table.measured)} of {len(table.entries)} entries measured",
        markup=False,
    )
    out.print(shown)
    if len(rows) > SHOWN:
        out.print(f"and {len(rows) - SHOWN} more", markup=False)
    out.print(f"{folder}: sensitivity.json, sensitivity.csv, sensitivity.png", markup=False)


def print_bisect(result: BisectResult, artifact: str, out: Console) -> None:
    """Every block's errors, the verdict, and what to do."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("block", "drift", "own", "expected", "own / expected"):
        shown.add_column(column, justify="left" if column == "block" else "right")
    for place in result.places:
        mark = " <--" if place.place == result.place else ""
        times = f"{place.own / place.expected:.2f}" if place.expected > 0 else ""
        numbers = (f"{value:.3g}" for value in (place.drift, place.own, place.expected))
        shown.add_row(f"{place.place}{mark}", *numbers, times)
    out.print(shown)
    out.print(
        "drift: of the stream against FP32; own: what the block adds wrong, of what it adds; "
        "expected: what plain rounding costs it\n",
        markup=False,
    )
    out.print(
        f"{artifact} ({result.variant}) on {result.pictures} pictures: outputs "
        f"{result.output_error:.3g} off FP32 (relative L2)",
        markup=False,
    )
    out.print(_verdict(result), markup=False)
    if result.cure is not None:
        cure = result.cure
        out.print(
            f"without these layers the outputs are {cure.error_after:.3g} off instead of "
            f"{cure.error_before:.3g}:\n  {_cure(result)}",
            markup=False,
        )
    if result.no_cure is not None:
        out.print(f"no exclusion cures it: {result.no_cure}", markup=False)


def _cure(result: BisectResult) -> str:
    """What to run with: trained weights are exported as they were trained, all of them."""
    if result.variant.split("+")[-1] == "qat":
        return f"train again: vggt-deploy qat ... {result.exclude_option}"
    return result.exclude_option


def _verdict(result: BisectResult) -> str:
    match result.verdict:
        case "damaged":
            return (
                f"damaged: {result.place} is the first block that is off by more than "
                f"{result.tolerance:g} times what its scheme explains. Export again; if that does "
                "not help, exclude"
            )
        case "scheme":
            return (
                f"every block does what its scheme says, and {result.place} loses far more than "
                "the others: the scheme does not suit it"
            )
        case "sound":
            return "sound: every block does what its scheme says, and none stands out"
