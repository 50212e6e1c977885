"""Scores of a model on rendered scenes that no training has seen, beside the best constant answer.

    unseen     the families of the training, seeds 1,000,000 and up
    held-out   a family that is in no training, seeds 2,000,000 and up

Distances between clouds of points are left out (None, no F-scores): 400 nearest-neighbour searches
would take longer than all the rest.

The same model, package and kind of processor give the same numbers, on any number of threads.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

from vggt_deploy import typed_json
from vggt_deploy.compare.truth import TruthMean, mean_metrics, truth_metrics
from vggt_deploy.data.synthetic import HELD_OUT, render_views
from vggt_deploy.errors import ArtifactError, DeployError, UsageError
from vggt_deploy.model.vggt import VGGT
from vggt_deploy.model.weights import load_model, open_weights
from vggt_deploy.progress import Progress, silent
from vggt_deploy.train.baseline import CANDIDATES, constant_prediction
from vggt_deploy.train.initial import TRAINED_HEADS
from vggt_deploy.train.pool import worker_count
from vggt_deploy.train.scoring import SCORED_VIEWS, SceneTruth, model_metrics, single_threads

SCORES_FILE = "scores.json"
SCORED_SCENES = 100
_SCHEMA = 2


@dataclass(frozen=True)
class SceneSet:
    """Scenes of one family (None: the training's mixture) from a first seed on."""

    name: str
    first_seed: int
    family: str | None


SETS = (SceneSet("unseen", 1_000_000, None), SceneSet("held-out", 2_000_000, HELD_OUT))
TRAINING = SceneSet("training", 0, None)


@dataclass(frozen=True)
class SetScores:
    """Means over the scenes of one set, and the seed of the training scene whose path the constant
    answer took.
    """

    name: str
    first_seed: int
    model: TruthMean
    constant: TruthMean
    constant_path: int


@dataclass(frozen=True)
class Scores:
    """`sha256` of the file of the weights; None for random ones."""

    schema: int
    config: str
    sha256: str | None
    views: int
    height: int
    width: int
    sets: tuple[SetScores, ...]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Scores:
        """The inverse; ArtifactError where it is something else."""
        try:
            value = typed_json.parse(text)
        except (ValueError, RecursionError) as error:
            raise _refuse(f"scores: {error}") from error
        scores = cast(Scores, typed_json.decode(cls, value, "scores", _refuse))
        if scores.schema != _SCHEMA:
            raise _refuse(f"scores of schema {scores.schema}")
        return scores


def _refuse(problem: str) -> DeployError:
    return ArtifactError(problem, "it was not written by this version; evaluate again")


def evaluate(
    model: str | Path,
    *,
    scenes: int = SCORED_SCENES,
    threads: int | None = None,
    output_dir: Path | None = None,
    config: str | None = None,
    size: tuple[int, int] | None = None,
    progress: Progress | None = None,
) -> Scores:
    """Score the model that a spec names on both sets; with `output_dir`, write scores.json there.

    The weights are computed in FP32, whatever the file holds; `size` (height, width) is that of the
    scenes' pictures, by default the one that the config is for.

    Raises:
        UsageError: fewer than one scene.
        ModelError: the weights can't be found or read, or lack one of the three heads.
    """
    if scenes < 1:
        raise UsageError(f"{scenes} scenes can't be scored", "ask for 1 or more")
    sizes, source = open_weights(model, config=config)
    network = load_model(source, sizes, heads=TRAINED_HEADS)
    report = _counted(progress or silent, CANDIDATES + scenes * len(SETS))
    height, width = sizes.size if size is None else size
    with single_threads(worker_count(threads)) as executor:
        training = _rendered(TRAINING, CANDIDATES, (height, width), executor, report)
        scored = [_set_scores(network, one, training, scenes, executor, report) for one in SETS]
    result = Scores(
        _SCHEMA, sizes.name, source.origin.sha256, SCORED_VIEWS, height, width, tuple(scored)
    )
    if output_dir is not None:
        output_dir.mkdir(parents=True, exist_ok=True)
        (output_dir / SCORES_FILE).write_text(result.to_json(), encoding="utf-8")
    return result


def _set_scores(
    network: VGGT,
    one: SceneSet,
    training: list[SceneTruth],
    count: int,
    executor: Executor,
    report: Callable[[], None],
) -> SetScores:
    height, width = training[0].depth.shape[1:]
    truths = _rendered(one, count, (height, width), executor, report)
    constant = constant_prediction(training, truths)
    return SetScores(
        name=one.name,
        first_seed=one.first_seed,
        model=mean_metrics(model_metrics(network, truths, executor)),
        constant=mean_metrics([truth_metrics(constant.outputs, truth) for truth in truths]),
        constant_path=TRAINING.first_seed + constant.scene,
    )


def _rendered(
    one: SceneSet,
    count: int,
    size: tuple[int, int],
    executor: Executor,
    report: Callable[[], None],
) -> list[SceneTruth]:
    def draw(seed: int) -> SceneTruth:
        height, width = size
        views = render_views(
            seed, views=SCORED_VIEWS, height=height, width=width, family=one.family
        )
        return SceneTruth.of(views)

    scenes = []
    for scene in executor.map(draw, range(one.first_seed, one.first_seed + count)):
        scenes.append(scene)
        report()
    return scenes


def _counted(progress: Progress, total: int) -> Callable[[], None]:
    """Reports one scene more each time it is called."""
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        progress("scenes", done, total)

    return count
