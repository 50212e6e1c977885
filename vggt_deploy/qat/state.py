"""What quantization-aware training leaves behind while it runs: a checkpoint, and its log.

    RUN/qat_checkpoint.pt   weights, steps of the rounding, optimizer, recipe, what it began from
    RUN/qat_log.csv         a line every LOG_STEPS steps

A checkpoint is written beside the old one and renamed over it, so there is always a whole one. It
holds no random state: what a step draws depends on its number alone.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from vggt_deploy.errors import ArtifactError
from vggt_deploy.train.state import read_content, write_content

CHECKPOINT_FILE = "qat_checkpoint.pt"
LOG_FILE = "qat_log.csv"
_FORMAT = 1


@dataclass
class Window:
    """Sums over the steps since the last line of the log; `losses` as in distill.LOSSES."""

    steps: int = 0
    losses: list[float] = field(default_factory=list)
    gradient_norm: float = 0.0
    skipped: int = 0
    skipped_in_row: int = 0

    def restart(self) -> None:
        """Begin the next line; a row of skipped steps goes on across lines."""
        self.__init__(skipped_in_row=self.skipped_in_row)  # type: ignore[misc]


@dataclass(frozen=True)
class QatLogRow:
    """One line of the log: means since the line before; probe_loss: the total loss of the same few
    view sets, in the first and the last line.
    """

    step: int
    learning_rate: float
    total: float
    pose: float
    depth: float
    points: float
    confidence: float
    features: float
    task: float
    gradient_norm: float
    skipped: int
    frames_per_second: float
    probe_loss: float | None = None


@dataclass(frozen=True)
class Checkpoint:
    """Everything that the next step needs; `step` steps are done. probe_loss: before the first."""

    step: int
    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    probe_loss: float
    window: Window = field(default_factory=Window)


def save_checkpoint(run: Path, checkpoint: Checkpoint, question: Mapping[str, str]) -> None:
    """question: what the run was asked for, by name; a resumed run must be asked for the same."""
    content = {
        "format": _FORMAT,
        "question": dict(question),
        "step": checkpoint.step,
        "model": dict(checkpoint.model),
        "optimizer": dict(checkpoint.optimizer),
        "probe_loss": checkpoint.probe_loss,
        "window": vars(checkpoint.window),
    }
    write_content(run, CHECKPOINT_FILE, content)


def load_checkpoint(run: Path, question: Mapping[str, str]) -> Checkpoint:
    """The checkpoint of a run that was asked for just this.

    Raises:
        ArtifactError: there is none, it is damaged, or it is of another question.
    """
    path = run / CHECKPOINT_FILE
    content = read_content(run, CHECKPOINT_FILE, _FORMAT)
    asked = content["question"]
    for name, answer in question.items():
        if asked.get(name) != answer:
            raise ArtifactError(
                f"{path} is of another run: {_difference(name, str(asked.get(name)), answer)}",
                "resume with the same options and files, or train into another folder",
            )
    return Checkpoint(
        content["step"],
        content["model"],
        content["optimizer"],
        content["probe_loss"],
        Window(**content["window"]),
    )


def _difference(name: str, old: str, new: str) -> str:
    for before, after in zip(old.splitlines(), new.splitlines(), strict=False):
        if before != after:
            return f"its {name} has {before!r}, not {after!r}"
    return f"its {name} has other lines"


def start_rows(path: Path, done: int) -> None:
    """A log with the lines up to step `done`; what a killed run wrote after its checkpoint goes."""
    rows = []
    if done and path.is_file():
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if int(row["step"]) <= done]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(QatLogRow)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def append_row(path: Path, row: QatLogRow) -> None:
    cells = {name: _cell(value) for name, value in vars(row).items()}
    with path.open("a", newline="", encoding="utf-8") as file:
        csv.DictWriter(file, list(cells), lineterminator="\n").writerow(cells)


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.6g}"
