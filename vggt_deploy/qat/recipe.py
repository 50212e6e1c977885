"""Every number that decides what quantization-aware training makes, as frozen dataclasses and TOML.

    recipe = load_recipe(DEFAULT_RECIPE)
    text = recipe_toml(recipe)                       # parse_recipe(text) == recipe

Read strictly: an unknown or missing key, a wrong type and a value out of range are UsageErrors.
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from vggt_deploy import typed_json
from vggt_deploy.errors import UsageError
from vggt_deploy.train.recipe import ColourRecipe, OptimizerRecipe, recipe_text, recipe_toml

RECIPES = Path(__file__).parent / "recipes"
DEFAULT_RECIPE = RECIPES / "default.toml"


@dataclass(frozen=True)
class QatBatchRecipe:
    """One step's pictures.

    frames        views of all scenes of a step together
    shards        parts of a step, each with frames / shards views; a step's gradient is the mean of
                  theirs. One thread, or with several processes one process, works on one
    view_counts   how many views a scene has in a step; each divides frames / shards
    view_weights  how often each of them
    dense_share   share of a shard's frames that the depth and point heads see
    """

    frames: int
    shards: int
    view_counts: tuple[int, ...]
    view_weights: tuple[float, ...]
    dense_share: float


@dataclass(frozen=True)
class DistillRecipe:
    """Weights of the loss; see `distill`."""

    pose: float
    translation: float
    rotation: float
    field_of_view: float
    iteration_decay: float
    huber: float
    depth: float
    points: float
    confidence: float
    features: float
    task: float


@dataclass(frozen=True)
class QatRecipe:
    """All of it.

    epochs        how often as many pictures are shown as there are
    float_steps   steps at the start with fake quantization off; none for a label that prepares
                  weights, whose floats are moved towards the integers before
    step_peak     learning rate of the logarithms of the steps, where the weights' is at its peak
    probe_scenes  view sets, drawn once and without changes of colour, whose loss the log has before
                  the first and after the last step
    precision     "auto" is bf16 on a GPU and fp32 on a CPU
    """

    seed: int
    epochs: float
    float_steps: int
    step_peak: float
    probe_scenes: int
    precision: Literal["auto", "fp32", "bf16"]
    batch: QatBatchRecipe
    colour: ColourRecipe
    loss: DistillRecipe
    optimizer: OptimizerRecipe

    def __post_init__(self) -> None:
        for wrong, why in _problems(self):
            if wrong:
                raise _refuse(why)

    def steps(self, pictures: int) -> int:
        """How many steps the epochs are with so many pictures, 1 at least."""
        return max(1, math.ceil(self.epochs * pictures / self.batch.frames))


def _problems(recipe: QatRecipe) -> list[tuple[bool, str]]:
    """What would make no sense, each with what is wanted instead."""
    batch, optimizer = recipe.batch, recipe.optimizer
    numbers = _numbers(dataclasses.asdict(recipe))
    counts = batch.view_counts
    return [
        (not all(math.isfinite(n) and n >= 0 for n in numbers), "no number may be negative or NaN"),
        (recipe.epochs <= 0, "epochs must be more than 0"),
        (recipe.probe_scenes < 1, "probe_scenes must be 1 or more"),
        (not counts or min(counts) < 1, "batch.view_counts must be 1 or more each"),
        (len(counts) != len(batch.view_weights), "batch.view_weights must be one per view count"),
        (min(batch.view_weights, default=0) <= 0, "batch.view_weights must be more than 0"),
        (batch.shards < 1 or batch.frames % batch.shards > 0, "batch.shards must divide frames"),
        (
            any(n < 1 or batch.frames // max(1, batch.shards) % n for n in counts),
            "batch.view_counts must divide frames / shards",
        ),
        (not 0 < batch.dense_share <= 1, "batch.dense_share must be in 0 .. 1, not 0"),
        (max(recipe.colour.permute, recipe.colour.blur) > 1, "probabilities must not exceed 1"),
        (recipe.loss.huber <= 0, "loss.huber must be more than 0"),
        (optimizer.clip_norm <= 0, "optimizer.clip_norm must be more than 0"),
        (optimizer.peak <= 0, "optimizer.peak must be more than 0"),
        (max(optimizer.beta1, optimizer.beta2) >= 1, "optimizer.beta1 and beta2 must be below 1"),
    ]


def load_recipe(path: Path) -> QatRecipe:
    return parse_recipe(recipe_text(path), str(path))


def parse_recipe(text: str, where: str = "recipe") -> QatRecipe:
    """The recipe in a TOML text; `where` names it in errors."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _refuse(f"{where} is not TOML: {error}") from error
    return cast(QatRecipe, typed_json.decode(QatRecipe, table, where, _refuse))


def changed_recipe(
    recipe: QatRecipe,
    *,
    epochs: float | None = None,
    learning_rate: float | None = None,
    task_loss: float | None = None,
    seed: int | None = None,
    precision: str | None = None,
) -> QatRecipe:
    """The recipe with what the command line changes in it, as strictly checked as one from a file.

    A learning rate scales those of weights and steps alike.
    """
    table = tomllib.loads(recipe_toml(recipe))
    top = {"epochs": epochs, "seed": seed, "precision": precision}
    table |= {key: value for key, value in top.items() if value is not None}
    if learning_rate is not None:
        times = learning_rate / recipe.optimizer.peak
        table["step_peak"] = recipe.step_peak * times
        table["optimizer"] |= {"peak": learning_rate, "final": recipe.optimizer.final * times}
    if task_loss is not None:
        table["loss"]["task"] = task_loss
    return cast(QatRecipe, typed_json.decode(QatRecipe, table, "recipe", _refuse_option))


def _refuse_option(problem: str) -> UsageError:
    return UsageError(problem, "check --epochs, --lr, --task-loss, --seed and --precision")


def _numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [found for item in value.values() for found in _numbers(item)]
    if isinstance(value, tuple | list):
        return [found for item in value for found in _numbers(item)]
    return [float(value)] if isinstance(value, int | float) else []


def _refuse(why: str) -> UsageError:
    return UsageError(f"the QAT recipe can't be used: {why}", "correct the recipe's TOML file")
