"""The rows of the table: four things that people do today, and what this package makes.

A row is made (PyTorch FP32 is there already) and then run. `made_from` names the row whose file it
starts from: its making time is in addition to that row's. `share` is its size on disk as a part of
the FP32 weights, rounded up: only for asking whether the disk is large enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vggt_deploy.errors import UsageError

Kind = Literal["torch", "plain", "ours"]

TORCH_FP32 = "torch_fp32"
PLAIN_FP32 = "plain_fp32"
OURS_FP32 = "fp32"


@dataclass(frozen=True)
class Row:
    """One line of the table. `step` of `steps.py` makes it; `variant` is what `export` is asked."""

    label: str
    title: str
    kind: Kind
    share: float
    step: str | None = None
    made_from: str | None = None
    variant: str | None = None

    @property
    def calibrated(self) -> bool:
        """Static activations: making it runs PyTorch FP32 on a few pictures first."""
        return self.variant is not None and self.variant.endswith("+static")


def _ours(label: str, share: float) -> Row:
    return Row(label, f"vggt-deploy {label}", "ours", share, "export_ours", variant=label)


ROWS: tuple[Row, ...] = (
    Row(TORCH_FP32, "PyTorch FP32", "torch", 1.0),
    Row(PLAIN_FP32, "plain torch.onnx.export, FP32", "plain", 1.01, "plain_export"),
    Row(
        "plain_int8_dynamic",
        "+ quantize_dynamic, INT8 per channel, MatMul",
        "plain",
        0.45,
        "quantize_dynamic_matmul",
        made_from=PLAIN_FP32,
    ),
    Row(
        "plain_int8_dynamic_all",
        "+ quantize_dynamic, INT8 per channel, its default operators",
        "plain",
        0.45,
        "quantize_dynamic_all",
        made_from=PLAIN_FP32,
    ),
    Row(
        "plain_int4_b128",
        "+ MatMulNBits, 4 bit, block 128, accuracy level 4",
        "plain",
        0.36,
        "quantize_nbits",
        made_from=PLAIN_FP32,
    ),
    _ours(OURS_FP32, 1.01),
    _ours("int8_pc_sym", 0.27),
    _ours("int8_pc_sym+dynamic", 0.27),
    _ours("int8_pc_asym+dynamic", 0.27),
    _ours("int8_pc_sym+static", 0.27),
    _ours("int8_pc_asym+static", 0.27),
    _ours("int4_g128", 0.16),
    _ours("int4_g128+dynamic", 0.16),
    _ours("mixed+dynamic", 0.25),
)
BY_LABEL = {row.label: row for row in ROWS}


def choose(only: str | None) -> tuple[Row, ...]:
    """The rows of a comma-separated list of labels, in the table's order; all without a list."""
    if only is None:
        return ROWS
    wanted = [label.strip() for label in only.split(",") if label.strip()]
    unknown = [label for label in wanted if label not in BY_LABEL]
    if not wanted:
        raise UsageError("no row is named", f"use {', '.join(BY_LABEL)}")
    if unknown:
        raise UsageError(f"no such row: {', '.join(unknown)}", f"use {', '.join(BY_LABEL)}")
    return tuple(row for row in ROWS if row.label in wanted)


def to_make(rows: Sequence[Row]) -> tuple[Row, ...]:
    """The rows that have to be made so that `rows` can run: those, and what they start from."""
    labels = {row.label for row in rows} | {row.made_from for row in rows}
    return tuple(row for row in ROWS if row.label in labels and row.step is not None)


def disk_bytes(rows: Sequence[Row], fp32_bytes: int) -> int:
    """Bytes that all of it takes at once: the checkpoint, and every file that is made."""
    return int(fp32_bytes * (1.0 + sum(row.share for row in to_make(rows)))) + (64 << 20)


def memory_bytes(rows: Sequence[Row], fp32_bytes: int) -> int:
    """What the hungriest step was seen to take, as a multiple of the weights, and the libraries."""
    steps = {row.step for row in to_make(rows)}
    if steps & {"quantize_dynamic_matmul", "quantize_dynamic_all"}:
        factor = 3.1
    elif "plain_export" in steps:
        factor = 2.2
    elif any(row.calibrated for row in rows):
        factor = 1.5
    else:
        factor = 1.2
    return int(fp32_bytes * factor) + (600 << 20)
