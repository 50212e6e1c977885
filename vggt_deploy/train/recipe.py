"""Every number that decides what a training makes, as frozen dataclasses and as TOML.

    recipe = load_recipe(named_recipe("vggt-nano"))
    text = recipe_toml(recipe)                       # parse_recipe(text) == recipe

Read strictly: an unknown or missing key, a wrong type and a value out of range are UsageErrors. One
recipe and the code that reads it determine the weights, on one kind of machine and thread count.
"""

from __future__ import annotations

import dataclasses
import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from vggt_deploy import typed_json
from vggt_deploy.errors import UsageError
from vggt_deploy.model.config import get_config

RECIPES = Path(__file__).parent / "recipes"
VALIDATION_SEED = 900_000  # the scenes that the log's scores are of begin here


@dataclass(frozen=True)
class SceneRecipe:
    """The pool: scenes with the seeds 0 .. count - 1, each seen from `views` places on a path."""

    count: int
    views: int
    height: int
    width: int


@dataclass(frozen=True)
class BatchRecipe:
    """One step's scenes.

    frames        views of all scenes of a step together, the same in every step
    shards        parts of a step, each with frames / shards views; a step's gradient is the mean of
                  theirs. One thread works on one, so what comes out does not depend on the threads
    view_counts   how many views a scene has in a step; each divides frames / shards
    view_weights  how often each of them
    widen_until   the part of the training over which the window of the path, from which a scene's
                  views are drawn, grows from as many views as are drawn to the whole path
    mirror        probability that a scene is mirrored
    dense_share   share of a shard's frames that the depth and point heads see
    """

    frames: int
    shards: int
    view_counts: tuple[int, ...]
    view_weights: tuple[float, ...]
    widen_until: float
    mirror: float
    dense_share: float


@dataclass(frozen=True)
class ColourRecipe:
    """Changes of colour: probabilities, standard deviations of logarithms, and noise in 0..1.

    permute   probability that a scene's channels change places
    gamma, gain, contrast, balance   deviation of the logarithm, one draw a scene; balance a channel
    frame_gain  deviation of the logarithm, one draw a frame
    noise     largest standard deviation of the noise of a scene
    blur      probability that a scene is blurred by [1, 2, 1] / 4 in both directions
    """

    permute: float
    gamma: float
    gain: float
    contrast: float
    balance: float
    frame_gain: float
    noise: float
    blur: float


@dataclass(frozen=True)
class LossRecipe:
    """Weights of the loss; see `losses`.

    pose_from  part of the training before which the pose does not count; then the camera head is
               set by what it is given (see `centre`). At 0 it counts from the start as it is
    """

    pose: float
    pose_from: float
    depth: float
    point: float
    translation: float
    rotation: float
    field_of_view: float
    huber: float
    iteration_decay: float
    confidence: float
    gradient: float
    gradient_scales: int
    match: float
    match_blocks: tuple[int, ...]
    motion: float
    motion_pairs: tuple[int, ...]


@dataclass(frozen=True)
class InitialRecipe:
    """Weights before the first step; see `initial`. field_of_view is vertical, horizontal, radians;
    depth in units of the mean distance.
    """

    linear_gain: float
    convolution_gain: float
    token_deviation: float
    output_deviation: float
    layer_scale: float
    attention_gain: float
    field_of_view: tuple[float, float]
    depth: float


@dataclass(frozen=True)
class OptimizerRecipe:
    """AdamW, with a linear warm-up and a cosine from `peak` to `final` over the steps."""

    peak: float
    final: float
    warmup_steps: int
    beta1: float
    beta2: float
    weight_decay: float
    clip_norm: float


@dataclass(frozen=True)
class EncoderRecipe:
    """The encoder by itself, before the rest; see `pretrain`. `steps` 0 leaves it out.

    pairs      of views in a step, in `shards` equal parts
    farthest   most places on the path between the two views of a pair
    cells      depth is asked for in cells x cells places of a patch
    match_width, temperature   of the cosines by which patches are matched
    depth, match   weights of the losses
    peak, warmup_steps   of the learning rate; the rest is the optimizer's
    """

    steps: int
    pairs: int
    shards: int
    farthest: int
    cells: int
    match_width: int
    temperature: float
    depth: float
    match: float
    peak: float
    warmup_steps: int

    def optimizer(self, recipe: OptimizerRecipe) -> OptimizerRecipe:
        """The optimizer's numbers in this stage."""
        return dataclasses.replace(recipe, peak=self.peak, warmup_steps=self.warmup_steps)


@dataclass(frozen=True)
class TrainingRecipe:
    """All of it. `config` names the sizes in model/config.py; `precision` "auto" is bf16 on a GPU
    and fp32 on a CPU, where bf16 is no faster.
    """

    config: str
    seed: int
    steps: int
    precision: Literal["auto", "fp32", "bf16"]
    scenes: SceneRecipe
    batch: BatchRecipe
    colour: ColourRecipe
    loss: LossRecipe
    initial: InitialRecipe
    optimizer: OptimizerRecipe
    encoder: EncoderRecipe

    def __post_init__(self) -> None:
        for wrong, why in _problems(self):
            if wrong:
                raise _refuse(why)


def _problems(recipe: TrainingRecipe) -> list[tuple[bool, str]]:
    """What would make no sense, each with what is wanted instead."""
    config, scenes, batch = get_config(recipe.config), recipe.scenes, recipe.batch
    config.grid(scenes.height, scenes.width)
    counts = batch.view_counts
    numbers = [value for _, value in _numbers(dataclasses.asdict(recipe))]
    colour = recipe.colour
    shares = (batch.widen_until, batch.mirror, colour.permute, colour.blur, recipe.loss.pose_from)
    return [
        (not all(math.isfinite(n) and n >= 0 for n in numbers), "no number may be negative or NaN"),
        (recipe.steps < 1, "steps must be 1 or more"),
        (not 1 <= scenes.count <= VALIDATION_SEED, "scenes.count must be in 1 .. 900000"),
        (not counts or min(counts) < 2, "batch.view_counts must be 2 or more each"),
        (len(counts) != len(batch.view_weights), "batch.view_weights must be one per view count"),
        (sum(batch.view_weights) <= 0, "batch.view_weights must not all be 0"),
        (batch.shards < 1 or batch.frames % batch.shards > 0, "batch.shards must divide frames"),
        (
            any(n < 2 or batch.frames // max(1, batch.shards) % n for n in counts),
            "batch.view_counts must divide frames / shards",
        ),
        (max(counts, default=0) > scenes.views, "batch.view_counts must not exceed scenes.views"),
        (not 0 < batch.dense_share <= 1, "batch.dense_share must be in 0 .. 1, not 0"),
        (max(shares) > 1, "probabilities and shares must not exceed 1"),
        (
            min(recipe.encoder.pairs, recipe.encoder.shards) < 1
            or recipe.encoder.pairs % recipe.encoder.shards > 0,
            "encoder.shards must divide encoder.pairs",
        ),
        (
            not 1 <= recipe.encoder.farthest < scenes.views,
            "encoder.farthest must be in 1 .. scenes.views - 1",
        ),
        (
            min(recipe.encoder.cells, recipe.encoder.match_width) < 1,
            "encoder.cells and encoder.match_width must be 1 or more",
        ),
        (recipe.encoder.temperature <= 0, "encoder.temperature must be more than 0"),
        (
            any(
                not 0 <= block < config.depth
                for block in (*recipe.loss.match_blocks, *recipe.loss.motion_pairs)
            ),
            f"loss.match_blocks and motion_pairs must be in 0 .. {config.depth - 1}",
        ),
        (recipe.initial.depth <= 0, "initial.depth must be more than 0"),
        (recipe.loss.huber <= 0, "loss.huber must be more than 0"),
        (recipe.optimizer.clip_norm <= 0, "optimizer.clip_norm must be more than 0"),
        (
            max(recipe.optimizer.beta1, recipe.optimizer.beta2) >= 1,
            "optimizer.beta1 and beta2 must be below 1",
        ),
    ]


def named_recipe(config: str) -> Path:
    """The recipe that comes with the package for a config."""
    path = RECIPES / f"{config}.toml"
    if not path.is_file():
        known = ", ".join(sorted(found.stem for found in RECIPES.glob("*.toml")))
        raise UsageError(f"there is no recipe for {config!r}", f"train one of: {known}")
    return path


def load_recipe(path: Path) -> TrainingRecipe:
    return parse_recipe(recipe_text(path), str(path))


def recipe_text(path: Path) -> str:
    """The content of a recipe's file, of any kind of recipe."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"can't read the recipe {path}: {error}", "give a TOML file") from error


def parse_recipe(text: str, where: str = "recipe") -> TrainingRecipe:
    """The recipe in a TOML text; `where` names it in errors."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _refuse(f"{where} is not TOML: {error}") from error
    return cast(TrainingRecipe, typed_json.decode(TrainingRecipe, table, where, _refuse))


def recipe_toml(recipe: Any) -> str:
    """The TOML text of a recipe, a dataclass of any kind: plain values, then a table per part."""
    lines, tables = [], []
    for key, value in dataclasses.asdict(recipe).items():
        if isinstance(value, dict):
            rows = "".join(f"{name} = {_toml(item)}\n" for name, item in value.items())
            tables.append(f"\n[{key}]\n{rows}")
        else:
            lines.append(f"{key} = {_toml(value)}\n")
    return "".join([*lines, *tables])


def changed_recipe(recipe: TrainingRecipe, changes: Mapping[str, int | str]) -> TrainingRecipe:
    """The recipe with other values at its top level, as strictly checked as one from a file."""
    table = {**tomllib.loads(recipe_toml(recipe)), **changes}
    return cast(TrainingRecipe, typed_json.decode(TrainingRecipe, table, "recipe", _refuse))


def _toml(value: Any) -> str:
    """Strings, numbers and lists of them are written alike in JSON and TOML, but for 1e-06."""
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value)


def _numbers(value: Any, name: str = "") -> list[tuple[str, float]]:
    if isinstance(value, dict):
        return [found for key, item in value.items() for found in _numbers(item, f"{name}.{key}")]
    if isinstance(value, tuple | list):
        return [found for item in value for found in _numbers(item, name)]
    return [(name, float(value))] if isinstance(value, int | float) else []


def _refuse(why: str) -> UsageError:
    return UsageError(f"the training recipe can't be used: {why}", "correct the recipe's TOML file")
