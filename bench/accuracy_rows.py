"""The rows of `bench.accuracy`: labels of ours, ModelOpt's rows beside those of the same bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bench import modelopt_rows
from vggt_deploy.errors import UsageError
from vggt_deploy.quantize.schemes import parse_label

FP32 = "fp32"
TRAINED = "+qat"
_INT8, _INT4 = "int8_pc_sym+static", "int4_g128"
# Bits first, then each switch alone, then together.
LABELS: tuple[str, ...] = (
    "int8_pc_sym",
    "int8_pc_sym+dynamic",
    "int8_pt_sym+static",
    _INT8,
    f"{_INT8}+a=absmax",
    f"{_INT8}+a=p99.99",
    f"{_INT8}+w=mse",
    f"{_INT8}+apart",
    f"{_INT8}+smooth",
    f"{_INT8}+smooth=0.5",
    f"{_INT8}+rotate",
    f"{_INT8}+gptq",
    f"{_INT8}+apart+smooth+rotate",
    f"{_INT8}+apart+smooth+rotate+gptq",
    _INT4,
    f"{_INT4}+w=mse",
    f"{_INT4}+smooth",
    f"{_INT4}+w=mse+smooth",
    f"{_INT4}+rotate",
    f"{_INT4}+gptq",
    f"{_INT4}+apart+gptq",
    f"{_INT4}+w=mse+gptq",
    f"{_INT4}+smooth+rotate+gptq",
    f"{_INT4}+w=mse+smooth+rotate+gptq",
    "int4_g32",
    "int4_g32+smooth+rotate+gptq",
    "int4_g128+dynamic",
    "int4_g128+dynamic+smooth+rotate+gptq",
    "mixed",
    "mixed+smooth+rotate+gptq",
)


@dataclass(frozen=True)
class Row:
    """One row of the table; `step` is the step of `bench.accuracy_steps` that makes it.

    prepared: the folder that a row of that step takes its weights from
    """

    label: str
    step: Literal["fp32", "ours", "modelopt", "prepared"]
    prepared: Path | None = None

    @property
    def bits(self) -> str:
        """Scheme and activations: rows of the same stand together in the table."""
        if self.step == "modelopt":
            return modelopt_rows.BY_LABEL[self.label].layers
        quantization = parse_label(self.label.removesuffix(TRAINED))
        mode = quantization.activations
        return quantization.scheme.name + ("" if mode == "float" else f"+{mode}")


def choose(labels: str | None, modelopt: str, prepared: Sequence[Path] = ()) -> tuple[Row, ...]:
    """Rows in the order of the table, FP32 first.

    labels: comma-separated labels of ours, None for LABELS; modelopt: "all", "none", or
    comma-separated labels of `modelopt_rows.ROWS`; prepared: folders that `vggt-deploy qat` wrote.

    Raises:
        UsageError: a label that is unknown, said twice, or no integers at all.
        ArtifactError: a folder that holds no prepared weights.
    """
    ours = LABELS if labels is None else _split(labels)
    known = {row.label for row in modelopt_rows.ROWS}
    theirs = {"all": tuple(modelopt_rows.BY_LABEL), "none": ()}.get(modelopt)
    if theirs is None:
        theirs = _split(modelopt)
    if unknown := [label for label in theirs if label not in known]:
        raise UsageError(
            f"no row of ModelOpt is called {unknown[0]!r}",
            f"use all, none, or some of: {', '.join(modelopt_rows.BY_LABEL)}",
        )
    rows = [Row(label, "ours") for label in ours if label != FP32]
    rows += [Row(label, "modelopt") for label in theirs]
    rows += [_trained(folder) for folder in prepared]
    names = [row.label for row in rows]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"{twice} is asked for twice", "name every row once")
    order = list(dict.fromkeys(row.bits for row in rows))  # unknown labels end here
    return (Row(FP32, "fp32"), *sorted(rows, key=lambda row: order.index(row.bits)))


def _trained(folder: Path) -> Row:
    """`int4_g128+qat`: the row of a folder, by what its record says."""
    from vggt_deploy.quantize.prepared import read_prepared

    record = read_prepared(folder).record
    suffix = TRAINED if record.made_by == "qat" else ""
    return Row(f"{record.label}{suffix}", "prepared", folder.resolve())


def counterparts(rows: tuple[Row, ...]) -> tuple[tuple[str, str], ...]:
    """(ModelOpt's label, ours) of the rows that do most nearly the same, where both are there."""
    present = {row.label for row in rows}
    return tuple(
        (theirs.label, theirs.beside)
        for theirs in modelopt_rows.ROWS
        if theirs.label in present and theirs.beside in present
    )


def _split(text: str) -> tuple[str, ...]:
    return tuple(label.strip() for label in text.split(",") if label.strip())
