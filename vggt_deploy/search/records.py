"""What a search found: `search.json`, field by field. No torch, no scipy."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, cast

from vggt_deploy import typed_json
from vggt_deploy.errors import ArtifactError, DeployError
from vggt_deploy.records import ModelRecord

SCHEMA = 1
SEARCH_NAME = "search.json"
RECIPE_NAME = "recipe.toml"
NEAREST_NAME = "nearest.toml"
PICTURE_NAME = "pareto.png"

PointKind = Literal["standard", "front", "round"]


@dataclass(frozen=True)
class Budgets:
    """What was asked for; None and absent: not.

    max_bytes: of all weights as they are stored
    max_drop: measure -> largest mean loss over the scenes, as `sensitivity.table.MEASURES` has it
    min_speedup: of the network's timed Linears together, over FP32
    """

    max_bytes: int | None = None
    max_drop: dict[str, float] = field(default_factory=dict)
    min_speedup: float | None = None


@dataclass(frozen=True)
class Point:
    """One assignment that was run, or could not be (`note` says why, `loss` is None).

    kind: a standard scheme, a step along the front, or a round of meeting the budgets
    bytes: of all weights as stored. time_ms: of the timed Linears; speedup: over FP32's
    predicted: measure -> sum over the units; None for a standard scheme
    loss, interval: measured, mean over the scenes and its 95 % interval
    proven: whether no other choice is better by the prediction
    units: unit -> label of its format
    broken: the budgets that it breaks, in words; only of rounds
    """

    name: str
    kind: PointKind
    bytes: int
    time_ms: float | None
    speedup: float | None
    predicted: dict[str, float] | None
    loss: dict[str, float] | None
    interval: dict[str, tuple[float, float]] = field(default_factory=dict)
    proven: bool | None = None
    units: dict[str, str] = field(default_factory=dict)
    broken: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class NetworkTime:
    """The whole network in ONNX Runtime: median and interquartile range of n calls."""

    label: str
    n: int
    median_ms: float
    iqr_ms: float


@dataclass(frozen=True)
class SearchResult:
    """All of it. `chosen` and `nearest` are indices into `points`, one of them None.

    network: FP32 and the recipe, where a speed was asked for; else empty
    minimised: the quantity that was made small within the budgets
    estimated: how many (unit, format) losses were estimated from local errors
    """

    schema: int
    tool_version: str
    model: ModelRecord
    scenes: tuple[str, ...]
    table_scenes: tuple[str, ...]
    reference: Literal["truth", "outputs"]
    activations: str
    precision: str
    height: int
    width: int
    budgets: Budgets
    minimised: str
    estimated: int
    baseline: dict[str, float]
    points: tuple[Point, ...]
    chosen: int | None
    nearest: int | None
    network: tuple[NetworkTime, ...] = ()

    def require(self) -> Point:
        """The point that meets the budgets.

        Raises:
            DeployError: none does; the nearest is named.
        """
        if self.chosen is not None:
            return self.points[self.chosen]
        if self.nearest is None:
            raise DeployError(
                "no choice of formats meets the budgets, by size and predicted time alone",
                "allow more: a larger --max-size, a smaller --min-speedup, or more formats in the "
                "sensitivity table",
            )
        point = self.points[self.nearest]
        raise DeployError(
            f"no recipe that was tried meets the budgets; the nearest, {NEAREST_NAME}, breaks: "
            f"{'; '.join(point.broken)}",
            "allow more, or put finer formats into the sensitivity table (--formats)",
        )

    def to_json(self) -> str:
        """As in the file; ValueError for a number that is not finite."""
        return json.dumps(asdict(self), indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> SearchResult:
        """The inverse; ArtifactError where it is something else."""
        try:
            value = typed_json.parse(text)
        except (ValueError, RecursionError) as error:
            raise _refuse(f"the result is no JSON: {error}") from error
        result = cast("SearchResult", typed_json.decode(cls, value, "search", _refuse))
        if result.schema != SCHEMA:
            raise _refuse(f"a search of schema {result.schema}, this version reads {SCHEMA}")
        for index in (result.chosen, result.nearest):
            if index is not None and not 0 <= index < len(result.points):
                raise _refuse(f"it points at {index} of {len(result.points)} points")
        return result


def read_search(folder: Path) -> SearchResult:
    """The result in a folder that `search` wrote.

    Raises:
        ArtifactError: there is none, or it is of another version.
    """
    path = Path(folder) / SEARCH_NAME
    try:
        return SearchResult.from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(
            f"can't read {path}: {error}", "give a folder that `vggt-deploy search` wrote"
        ) from error


def _refuse(problem: str) -> DeployError:
    return ArtifactError(problem, "it was not written by this version: search again")
