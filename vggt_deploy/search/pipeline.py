"""The search: a sensitivity table and budgets -> a recipe that was run, and the front around it.

    <folder>/recipe.toml    what `export --recipe` takes; nearest.toml where no recipe keeps them
    <folder>/search.json    every assignment that was tried, predicted and measured (`records`)
    <folder>/costs.json     the times of the Linears that speed was predicted from
    <folder>/pareto.png     loss against size, with every standard scheme

Every number of an assignment but its time is measured: its bytes are counted, its losses are those
of a run on the scenes beside FP32. Its time is a sum over Linears that were timed by themselves;
where a speed is asked for, the recipe's network is also exported and timed whole (`network`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Literal, get_args

import torch

import vggt_deploy
from vggt_deploy.artifact import writing
from vggt_deploy.compare.environment import describe_environment, usable_cpus
from vggt_deploy.compare.scenes import Scenes, check_asked, find_scenes, read_scenes
from vggt_deploy.errors import SceneError, UsageError
from vggt_deploy.model.config import VGGTConfig
from vggt_deploy.model.sources import WeightSource
from vggt_deploy.model.vggt import VGGT
from vggt_deploy.model.weights import open_weights
from vggt_deploy.options import parse_mode
from vggt_deploy.outputs import OUTPUT_GROUPS
from vggt_deploy.progress import Progress, silent
from vggt_deploy.quantize.plan import LayerInfo, keeps_layer_scale, layers_in, plan
from vggt_deploy.quantize.recipe import FLOAT, recipe_toml
from vggt_deploy.quantize.schemes import (
    SCHEMES,
    Activations,
    Precision,
    Quantization,
    takes_activations,
)
from vggt_deploy.quantize.statistics import model_record
from vggt_deploy.quantize.treatment import DEFAULT_INPUT_RANGE
from vggt_deploy.records import ModelRecord
from vggt_deploy.search.choices import MSE, Choices, as_scheme, choices
from vggt_deploy.search.costs import (
    COSTS_NAME,
    Calls,
    Costs,
    layer_times,
    linear_calls,
    load_costs,
    measure_costs,
    shapes_of,
)
from vggt_deploy.search.knapsack import Choice
from vggt_deploy.search.picture import draw
from vggt_deploy.search.points import Ground, front, standards, tried
from vggt_deploy.search.records import (
    NEAREST_NAME,
    RECIPE_NAME,
    SCHEMA,
    SEARCH_NAME,
    Budgets,
    NetworkTime,
    Point,
    SearchResult,
)
from vggt_deploy.search.request import check_request
from vggt_deploy.search.rounds import ROUNDS, Rounds, goal, meet
from vggt_deploy.search.text import recipe_comments
from vggt_deploy.search.trial import begin_trial
from vggt_deploy.sensitivity.switch import folded_model
from vggt_deploy.sensitivity.table import SensitivityTable, read_table
from vggt_deploy.train.pool import worker_count
from vggt_deploy.train.scoring import single_threads

HEADS = frozenset(group.head for group in OUTPUT_GROUPS.values())
FRONT_POINTS = 10
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


def search(
    model: str,
    *,
    output_dir: Path,
    sensitivity: Path,
    budgets: Budgets,
    scenes: Sequence[Path] = (),
    images: Path | None = None,
    costs: Path | None = None,
    minimise: str = MSE,
    precision: Precision = "fp32",
    name: str = "searched",
    front_points: int = FRONT_POINTS,
    rounds: int = ROUNDS,
    calibrate: Path | None = None,
    mode: Literal["crop", "pad"] = "crop",
    max_images: int | None = None,
    config: str | None = None,
    revision: str | None = None,
    threads: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> SearchResult:
    """Find formats for the units of a sensitivity table that keep the budgets, and try them.

    sensitivity: a folder that `sensitivity` wrote, of this model at the size of its pictures
    scenes, images: what assignments are tried on, brought to the table's size; best not the
        table's own, whose noise the choice has seen
    costs: costs.json of an earlier search on this machine; None: measured
    minimise: the loss that is made small where size or time is bounded
    front_points: how many assignments along the front are found and tried, beside the standard
        schemes; 0: none of either
    calibrate: pictures, for a table with static activations alone

    A result whose `chosen` is None met no budgets; `SearchResult.require` says so as an error.

    Raises:
        UsageError: the request makes no sense, or the table is of another model.
        ModelError, ImageError, SceneError, CalibrationError: weights, pictures or truth can't be
        had. QuantizeError: an output is not finite. ArtifactError: the folder, table or costs.
    """
    table = read_table(Path(sensitivity))
    check_request(table, budgets, minimise, front_points, rounds, calibrate)
    check_asked(images, scenes)
    report = progress or silent
    with writing(Path(output_dir), overwrite=overwrite, marker=SEARCH_NAME) as folder:
        sizes, source = open_weights(model, config=config, revision=revision)
        read = read_scenes(
            find_scenes(images, scenes, max_images=max_images),
            mode=mode,
            width=table.width,
            height=table.height,
            skip_bad=False,
            need_truth=table.reference == "truth",
        )
        record = model_record(sizes, source)
        _check_fits(table, record, read)
        job = _Job(
            table, budgets, minimise, precision, name, front_points, rounds,
            sizes, source, record, read, threads, report, model, config, revision,
        )  # fmt: skip
        return _search(job, folder, costs, calibrate)


@dataclass(frozen=True)
class _Job:
    """The request, with what it names read or opened."""

    table: SensitivityTable
    budgets: Budgets
    minimise: str
    precision: Precision
    name: str
    front_points: int
    rounds: int
    config: VGGTConfig
    source: WeightSource
    record: ModelRecord
    scenes: Scenes
    threads: int | None
    report: Progress
    spec: str
    config_name: str | None
    revision: str | None

    @property
    def heads(self) -> frozenset[str]:
        return HEADS & self.config.available_heads

    @property
    def activations(self) -> Activations:
        """Those that the table was measured with."""
        known: tuple[Activations, ...] = get_args(Activations)
        for mode in known:
            if self.table.activations == mode:
                return mode
        raise UsageError(
            f"the sensitivity table has unknown activations {self.table.activations!r}",
            "run `vggt-deploy sensitivity` again with this version",
        )


def _search(job: _Job, folder: Path, costs: Path | None, calibrate: Path | None) -> SearchResult:
    network = folded_model(job.config, job.source, job.heads)
    layers = layers_in(network)
    labels = _labels(job, layers)
    calls = linear_calls(network, torch.from_numpy(job.scenes.first.pixels)[None])
    shapes = {
        layer.name: layer.shape
        for layer in layers
        if layer.kind == "linear" and layer.name in calls
    }
    timed = _costs(job, calls, shapes, labels, costs)
    (folder / COSTS_NAME).write_text(timed.to_json(), encoding="utf-8")
    times = layer_times(calls, shapes, labels, timed)
    stored = {precision: _stored(job, precision) for precision in PRECISIONS}
    options = choices(job.table, stored[job.precision], layers, job.precision, times)
    scales = _input_scales(job, tuple(shapes), calibrate)
    with single_threads(worker_count(job.threads)) as executor:
        job.report("FP32", 0, 0)
        trial = begin_trial(
            job.config, job.source, network, job.scenes.items, job.table.reference,
            job.activations, scales, executor,
        )  # fmt: skip
        ground = Ground(trial, stored, layers, options, times, job.budgets, job.precision)
        found = _rounds(job, ground)
        around: tuple[Point, ...] = ()
        if job.front_points:
            around = standards(ground, job.report)
            around += front(ground, around, job.minimise, job.front_points, job.report)
    result = _result(job, options, trial.baseline, around, found)
    return _finished(job, folder, options, layers, result, calibrate)


def _stored(job: _Job, precision: Precision) -> VGGT:
    """The network as an artifact of that precision holds it, on the meta device."""
    with torch.device("meta"):
        keep = keeps_layer_scale(precision)
        return VGGT(job.config, heads=job.heads, folded=True, keep_layer_scale=keep)


def _rounds(job: _Job, ground: Ground) -> Rounds:
    numbers = count(1)

    def attempt(choice: Choice) -> Point:
        number = next(numbers)
        job.report("rounds", number - 1, job.rounds)
        return tried(ground, choice, f"{job.name}-{number}", "round")

    wanted = goal(job.budgets, ground.choices, ground.float_ms, job.minimise)
    found = meet(ground.choices, wanted, job.budgets, attempt, rounds=job.rounds)
    job.report("rounds", job.rounds, job.rounds)
    return found


def _labels(job: _Job, layers: Sequence[LayerInfo]) -> tuple[str, ...]:
    """Every format that an assignment of this search may give to a Linear."""
    found = dict.fromkeys([FLOAT, *job.table.formats])
    kinds = {layer.name: layer.kind for layer in layers}
    for scheme in SCHEMES.values():
        if scheme.integer and takes_activations(scheme, job.activations):
            formats = plan(scheme, layers)
            found |= dict.fromkeys(
                form.label for name, form in formats.items() if kinds[name] == "linear"
            )
    return tuple(found)


def _costs(
    job: _Job,
    calls: Mapping[str, Calls],
    shapes: Mapping[str, tuple[int, ...]],
    labels: Sequence[str],
    costs: Path | None,
) -> Costs:
    if costs is not None:
        kept = load_costs(costs)
        if kept.activations != job.activations:
            raise UsageError(
                f"the costs are of {kept.activations} activations, the sensitivity table of "
                f"{job.activations} ones",
                "use --costs auto",
            )
        here = (describe_environment().cpu, job.threads or usable_cpus())
        if (kept.cpu, kept.threads) != here:
            raise UsageError(
                f"the costs were timed on {kept.cpu} with {kept.threads} threads, and this is "
                f"{here[0]} with {here[1]}",
                "use --costs auto",
            )
        return kept
    wanted = [
        (one, label)
        for name, shape in shapes.items()
        for one in shapes_of(shape, calls[name])
        for label in labels
    ]
    return measure_costs(
        wanted,
        job.activations,
        frames=job.scenes.frames,
        height=job.scenes.height,
        width=job.scenes.width,
        threads=job.threads,
        progress=job.report,
    )


def _input_scales(
    job: _Job, linears: Sequence[str], calibrate: Path | None
) -> dict[str, float] | None:
    """Layer -> scale of its input where activations are static."""
    if calibrate is None:
        return None
    from vggt_deploy.quantize.calibration import Pictures, input_scales, observe

    pictures = Pictures(
        Path(calibrate), job.scenes.height, job.scenes.width, mode=parse_mode(job.scenes.mode)
    )
    statistics = observe(job.config, job.source, pictures, job.report)
    seen = [name for name in linears if name in statistics.layers]
    return input_scales(statistics, seen, DEFAULT_INPUT_RANGE, job.precision)


def _result(
    job: _Job,
    options: Choices,
    baseline: dict[str, float],
    around: tuple[Point, ...],
    found: Rounds,
) -> SearchResult:
    def place(index: int | None) -> int | None:
        return None if index is None else len(around) + index

    return SearchResult(
        schema=SCHEMA,
        tool_version=vggt_deploy.__version__,
        model=job.record,
        scenes=tuple(scene.name for scene in job.scenes.items),
        table_scenes=job.table.scenes,
        reference=job.table.reference,
        activations=job.activations,
        precision=job.precision,
        height=job.scenes.height,
        width=job.scenes.width,
        budgets=job.budgets,
        minimised=job.minimise,
        estimated=options.estimated,
        baseline=baseline,
        points=(*around, *found.points),
        chosen=place(found.chosen),
        nearest=place(found.nearest),
    )


def _finished(
    job: _Job,
    folder: Path,
    options: Choices,
    layers: Sequence[LayerInfo],
    result: SearchResult,
    calibrate: Path | None,
) -> SearchResult:
    """Write the recipe, time its network if a speed was asked for, and write the rest."""
    index = result.chosen if result.chosen is not None else result.nearest
    if index is not None:
        point = result.points[index]
        formats = options.formats_of(point.units)
        scheme = as_scheme(
            job.name, point.units, formats, job.table.by, layers, job.precision,
            "formats found by vggt-deploy search",
        )  # fmt: skip
        asked = Quantization(scheme, job.activations if scheme.integer else "float")
        if job.budgets.min_speedup is not None:
            result = replace(result, network=_network(job, folder, asked, calibrate))
        text = recipe_toml(asked, recipe_comments(result, point))
        file = RECIPE_NAME if result.chosen is not None else NEAREST_NAME
        (folder / file).write_text(text, encoding="utf-8")
    (folder / SEARCH_NAME).write_text(result.to_json(), encoding="utf-8")
    draw(result, folder)
    return result


def _network(
    job: _Job, folder: Path, asked: Quantization, calibrate: Path | None
) -> tuple[NetworkTime, NetworkTime]:
    from vggt_deploy.search.network import network_times  # onnx, for those who ask for a speed

    return network_times(
        job.spec,
        asked,
        job.scenes.first.pixels,
        outputs=[name for name, group in OUTPUT_GROUPS.items() if group.head in job.heads],
        precision=job.precision,
        work=folder,
        config=job.config_name,
        revision=job.revision,
        calibrate=calibrate,
        threads=job.threads,
        report=job.report,
    )


def _check_fits(table: SensitivityTable, record: ModelRecord, scenes: Scenes) -> None:
    known = (table.model.config, table.model.sha256)
    if known != (record.config, record.sha256):
        raise UsageError(
            f"the sensitivity table is of {table.model.spec} ({table.model.config}), not of "
            f"{record.spec} ({record.config}), or of other weights under that name",
            "run `vggt-deploy sensitivity` on this model first",
        )
    without = [scene for scene in scenes.items if scene.truth is None]
    if table.reference == "truth" and without:
        raise SceneError(
            f"the truth of {without[0].name} is not known: {without[0].no_truth}",
            "give ETH3D scenes or what `vggt-deploy scene` writes",
        )
