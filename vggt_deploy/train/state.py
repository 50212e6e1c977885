"""What a training leaves behind while it runs: a checkpoint to go on from, and its log.

    RUN/checkpoint.pt       weights, optimizer, step, recipe, the unfinished line of the log
    RUN/training_log.csv    a line every LOG_STEPS steps
    RUN/encoder_checkpoint.pt, RUN/encoder_log.csv    the same of the encoder's own training

A checkpoint is written beside the old one and renamed over it, so there is always a whole one. It
holds no random state: what a step draws depends on its number alone.
"""

from __future__ import annotations

import csv
import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vggt_deploy.errors import ArtifactError
from vggt_deploy.train.recipe import TrainingRecipe, recipe_toml

CHECKPOINT_FILE = "checkpoint.pt"
LOG_FILE = "training_log.csv"
ENCODER_CHECKPOINT_FILE = "encoder_checkpoint.pt"
ENCODER_LOG_FILE = "encoder_log.csv"
_FORMAT = 1


@dataclass
class Window:
    """Sums over the steps since the last line of the log."""

    steps: int = 0
    total: float = 0.0
    pose: float = 0.0
    depth: float = 0.0
    points: float = 0.0
    match: float = 0.0
    motion: float = 0.0
    gradient_norm: float = 0.0
    skipped: int = 0
    skipped_in_row: int = 0

    def restart(self) -> None:
        """Begin the next line; a row of skipped steps goes on across lines."""
        self.__init__(skipped_in_row=self.skipped_in_row)  # type: ignore[misc]


@dataclass(frozen=True)
class LogRow:
    """One line of the log: means since the line before, and now and then scores on scenes that are
    not trained on (empty otherwise).
    """

    step: int
    learning_rate: float
    total: float
    pose: float
    depth: float
    points: float
    match: float
    motion: float
    gradient_norm: float
    skipped: int
    frames_per_second: float
    auc_30: float | None = None
    auc_5: float | None = None
    rotation_deg: float | None = None
    abs_rel: float | None = None
    point_error: float | None = None


@dataclass(frozen=True)
class EncoderLogRow:
    """One line of the encoder's log: means since the line before; `found` is the share of patches
    whose partner in the other view came first.
    """

    step: int
    learning_rate: float
    depth: float
    match: float
    found: float
    frames_per_second: float


@dataclass(frozen=True)
class Checkpoint:
    """Everything that the next step needs; `step` steps are done."""

    step: int
    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    window: Window = field(default_factory=Window)


def save_checkpoint(
    run: Path, checkpoint: Checkpoint, recipe: TrainingRecipe, name: str = CHECKPOINT_FILE
) -> None:
    content = {
        "format": _FORMAT,
        "recipe": recipe_toml(recipe),
        "step": checkpoint.step,
        "model": dict(checkpoint.model),
        "optimizer": dict(checkpoint.optimizer),
        "window": vars(checkpoint.window),
    }
    write_content(run, name, content)


def write_content(run: Path, name: str, content: Mapping[str, Any]) -> None:
    """Write a checkpoint's content so that the file is the old one or the whole new one."""
    partial = run / f".{name}.partial"
    with partial.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(run / name)


def read_content(run: Path, name: str, wanted_format: object) -> dict[str, Any]:
    """What `write_content` wrote under "format": `wanted_format`; tensors and plain values alone.

    Raises:
        ArtifactError: there is none, it is damaged, or of another version.
    """
    path = run / name
    if not path.is_file():
        raise ArtifactError(f"{run} holds no {name}", "train without --resume")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise ArtifactError(
            f"{path} is damaged: {error}", "train anew into another folder, without --resume"
        ) from error
    if not isinstance(content, dict) or content.get("format") != wanted_format:
        raise ArtifactError(
            f"{path} is no checkpoint of this version", "train anew into another folder"
        )
    return content


def load_checkpoint(run: Path, recipe: TrainingRecipe, name: str = CHECKPOINT_FILE) -> Checkpoint:
    """The checkpoint of a run of this very recipe.

    Raises:
        ArtifactError: there is none, it is damaged, or it is of another recipe.
    """
    path = run / name
    content = read_content(run, name, _FORMAT)
    if content["recipe"] != recipe_toml(recipe):
        raise ArtifactError(
            f"{path} is of another recipe: {_first_difference(content['recipe'], recipe)}",
            "resume with the same options, or train into another folder",
        )
    return Checkpoint(
        content["step"], content["model"], content["optimizer"], Window(**content["window"])
    )


def _first_difference(text: str, recipe: TrainingRecipe) -> str:
    for old, new in zip(text.splitlines(), recipe_toml(recipe).splitlines(), strict=False):
        if old != new:
            return f"it has {old!r}, not {new!r}"
    return "it has other lines"


def start_rows(path: Path, kind: type[LogRow] | type[EncoderLogRow], done: int) -> None:
    """A log with the lines up to step `done`; what a killed run wrote after its checkpoint goes."""
    rows = []
    if done and path.is_file():
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if int(row["step"]) <= done]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(kind)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def append_row(path: Path, row: LogRow | EncoderLogRow) -> None:
    cells = {name: _cell(value) for name, value in vars(row).items()}
    with path.open("a", newline="", encoding="utf-8") as file:
        csv.DictWriter(file, list(cells), lineterminator="\n").writerow(cells)


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.6g}"
