"""What quantizing one unit costs: the table that `sensitivity` writes and others read. No torch.

    sensitivity.json    SensitivityTable, field by field
    sensitivity.csv     one line per entry, one column per measure, for a spreadsheet

A unit is a block, a layer, a kind of layer or a head. An entry is one unit in one format: its
`layers` hold integers of `format`, all other weights are FP32.
"""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, cast, get_args

from vggt_deploy import typed_json
from vggt_deploy.artifact import write_text
from vggt_deploy.errors import ArtifactError, DeployError
from vggt_deploy.records import ModelRecord

SCHEMA = 1
TABLE_NAME = "sensitivity.json"
CSV_NAME = "sensitivity.csv"

By = Literal["block", "layer", "kind", "head"]
UNITS: tuple[By, ...] = get_args(By)
Reference = Literal["truth", "outputs"]

_AUC = ("auc3", "auc5", "auc30")
_GEOMETRY = ("pose_deg", "pose_median_deg", "abs_rel", "point_error")
_FROM_FP32 = ("same3", "same5", "output_mse")
OUTPUT_MEASURES = (*_GEOMETRY, *_FROM_FP32)
TRUTH_MEASURES = (*_AUC, *OUTPUT_MEASURES)
MEASURES: dict[Reference, tuple[str, ...]] = {"truth": TRUTH_MEASURES, "outputs": OUTPUT_MEASURES}
"""Measure -> what more of it means; in `loss` above 0 is worse than FP32.

auc3, auc5, auc30   points of AUC@3, @5 and @30 degrees lost
pose_deg            mean over the pairs of views of the pose error (the larger of the angles between
                    the rotations and between the baselines), degrees; pose_median_deg: its median
abs_rel             of the depth, after one scale per scene
point_error         median distance of the points relative to the scene's size, after alignment
same3, same5        100 minus AUC@3 and @5 of the poses held against FP32's own: how far they moved,
                    which is no accuracy, but shows where the poses of FP32 are far off themselves
output_mse          ||y - y_fp32||^2 / ||y_fp32||^2, the mean over the output tensors

Reference "truth": all but the last three against the truth, minus the same of FP32. Reference
"outputs": FP32's own outputs stand for the truth, so FP32's errors are 0 and AUC is not taken.
"""


@dataclass(frozen=True)
class Entry:
    """One unit in one format.

    layers: those of the unit that hold integers in `format` (a label, as `WeightFormat.label`)
    local_error: root of the summed squares of the layers' relative L2 errors, each given float
        inputs (see `local`); None: not taken
    loss: measure -> mean over the scenes of what was lost, above 0 is worse, without measures that
        no scene allows; None: the unit was not among those of the second pass
    interval: measure -> the 95 % bootstrap interval of that mean; empty for a single scene
    """

    unit: str
    layers: tuple[str, ...]
    format: str
    local_error: float | None
    loss: dict[str, float] | None = None
    interval: dict[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class SensitivityTable:
    """All entries of one model on the same scenes.

    scenes: their names; height, width: of the pictures, in pixels
    activations: of the layers that hold integers (float: only weights are rounded)
    baseline: measure -> FP32's own (AUC in percent); empty for reference "outputs"
    """

    schema: int
    model: ModelRecord
    scenes: tuple[str, ...]
    reference: Reference
    by: By
    height: int
    width: int
    activations: str
    baseline: dict[str, float]
    entries: tuple[Entry, ...]

    @property
    def formats(self) -> tuple[str, ...]:
        """Labels of the formats, each once, in the order of the entries."""
        return tuple(dict.fromkeys(entry.format for entry in self.entries))

    @property
    def measured(self) -> tuple[Entry, ...]:
        """The entries that the second pass has measured."""
        return tuple(entry for entry in self.entries if entry.loss is not None)

    def to_json(self) -> str:
        """As in the file; ValueError for a number that is not finite."""
        return json.dumps(asdict(self), indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> SensitivityTable:
        """The inverse; ArtifactError where it is something else."""
        table = cast("SensitivityTable", _decode(cls, text, "the table"))
        if table.schema != SCHEMA:
            raise _refuse(f"it is a table of schema {table.schema}, this version reads {SCHEMA}")
        known = set(MEASURES[table.reference])
        for entry in table.entries:
            check_entry(entry, known)
        keys = [(entry.unit, entry.format) for entry in table.entries]
        if len(set(keys)) != len(keys):
            raise _refuse("it has a unit twice in the same format")
        return table

    def to_csv(self) -> str:
        """One line per entry; a number that was not measured is an empty cell."""
        names = MEASURES[self.reference]
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        bounds = [f"{name}_{end}" for name in names for end in ("low", "high")]
        writer.writerow(["unit", "format", "layers", "local_error", *names, *bounds])
        for entry in self.entries:
            loss = entry.loss or {}
            ends = [entry.interval.get(name, ("", "")) for name in names]
            writer.writerow(
                [
                    entry.unit,
                    entry.format,
                    len(entry.layers),
                    "" if entry.local_error is None else entry.local_error,
                    *(loss.get(name, "") for name in names),
                    *(value for pair in ends for value in pair),
                ]
            )
        return out.getvalue()


def entry_line(entry: Entry) -> str:
    """One entry as one line of JSON, for a file that grows by a line per finished entry."""
    return json.dumps(asdict(entry), allow_nan=False) + "\n"


def parse_entry(line: str) -> Entry:
    """The inverse of `entry_line`; ArtifactError where it is something else."""
    return cast("Entry", _decode(Entry, line, "an entry"))


def check_entry(entry: Entry, measures: set[str]) -> None:
    """ArtifactError unless its measures are known ones and its intervals are two ordered ends."""
    unknown = (set(entry.loss or {}) | set(entry.interval)) - measures
    if unknown:
        raise _refuse(f"{entry.unit} has the unknown measure {sorted(unknown)[0]!r}")
    for name, ends in entry.interval.items():
        # The reader of JSON takes a tuple of any length.
        if len(list(ends)) != 2 or ends[0] > ends[1]:
            raise _refuse(f"{entry.unit}: the interval of {name} is {list(ends)}")
    values = [*(entry.loss or {}).values(), *(e for ends in entry.interval.values() for e in ends)]
    # JSON writes 1e999 without a complaint, and reads it as infinity.
    if not all(math.isfinite(value) for value in [*values, entry.local_error or 0.0]):
        raise _refuse(f"{entry.unit} has a number that is not finite")


def write_table(folder: Path, table: SensitivityTable) -> None:
    """sensitivity.json and sensitivity.csv, each whole or not at all."""
    for name, text in ((TABLE_NAME, table.to_json()), (CSV_NAME, table.to_csv())):
        write_text(folder / name, text)


def read_table(path: Path) -> SensitivityTable:
    """The table of a folder that `sensitivity` wrote, or of its sensitivity.json.

    Raises:
        ArtifactError: there is none, or it is not a finished table of this version.
    """
    file = path / TABLE_NAME if path.is_dir() else path
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ArtifactError(
            f"there is no {file}",
            "give a folder that `vggt-deploy sensitivity` has finished (--resume finishes one)",
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise _refuse(f"{file} can't be read: {error}") from error
    return SensitivityTable.from_json(text)


def _decode(kind: type, text: str, where: str) -> object:
    try:
        value = typed_json.parse(text)
    except (ValueError, RecursionError) as error:
        raise _refuse(f"{where} is no JSON: {error}") from error
    return typed_json.decode(kind, value, where, _refuse)


def _refuse(problem: str) -> DeployError:
    return ArtifactError(
        problem, "it was not written by this version: run `vggt-deploy sensitivity` again"
    )
