"""The sensitivity stage: model + scenes -> what each unit costs when it alone is quantized.

    scenes ─► FP32 outputs ─┬► first pass: local error of every layer, one run a scene
                            └► second pass: the units that are worst by it, one at a time in
                               integers through the whole network ─► loss in geometry
                            ─► sensitivity.json, .csv, .png

Weights are rounded and turned back to float (`quantize.apply`), as the exported graph computes
them. Losses of units that are quantized together need not add up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import vggt_deploy
from vggt_deploy.artifact import locked
from vggt_deploy.compare.scenes import Scenes, check_asked, find_scenes, read_scenes
from vggt_deploy.data.images import Mode
from vggt_deploy.errors import QuantizeError, SceneError, UsageError
from vggt_deploy.model.config import VGGTConfig
from vggt_deploy.model.sources import WeightSource
from vggt_deploy.model.vggt import VGGT
from vggt_deploy.model.weights import open_weights
from vggt_deploy.outputs import OUTPUT_GROUPS
from vggt_deploy.progress import Progress, silent
from vggt_deploy.quantize.plan import LayerInfo, layers_in, plan
from vggt_deploy.quantize.schemes import Activations, Quantization, parse_format, parse_label
from vggt_deploy.quantize.statistics import model_record
from vggt_deploy.quantize.treatment import PLAIN
from vggt_deploy.records import ModelRecord
from vggt_deploy.sensitivity.local import local_errors
from vggt_deploy.sensitivity.measure import baseline, losses, measures, run_scenes
from vggt_deploy.sensitivity.picture import draw
from vggt_deploy.sensitivity.store import LocalErrors, Store
from vggt_deploy.sensitivity.switch import folded_model, switched
from vggt_deploy.sensitivity.table import (
    SCHEMA,
    UNITS,
    By,
    Entry,
    Reference,
    SensitivityTable,
    write_table,
)
from vggt_deploy.sensitivity.units import Candidate, candidates, chosen
from vggt_deploy.train.pool import worker_count
from vggt_deploy.train.scoring import single_threads

HEADS = frozenset(group.head for group in OUTPUT_GROUPS.values())
# Up to this many weights (vggt-nano: 5 million) every unit is measured; of a larger model so many.
MEASURE_ALL_WEIGHTS = 50_000_000
MEASURED_UNITS = 24


def sensitivity(
    model: str,
    *,
    output_dir: Path,
    scheme: str = "int8_pc_sym",
    images: Path | None = None,
    scenes: Sequence[Path] = (),
    by: By = "block",
    top: int | None = None,
    formats: Sequence[str] = (),
    calibrate: Path | None = None,
    height: int | None = None,
    width: int | None = None,
    mode: Mode = "crop",
    max_images: int | None = None,
    config: str | None = None,
    revision: str | None = None,
    threads: int | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> SensitivityTable:
    """Measure what quantizing one unit at a time costs, and keep the table in `output_dir`.

    scheme: a label such as int8_pc_sym or int4_g128+dynamic: which layers are tried, in which
        formats, with which activations. formats: labels of weight formats to try on each of those
        layers instead.
    scenes: ETH3D scenes with their truth, or folders of them. images: one scene; where its truth is
        not known, FP32's own outputs stand for it.
    top: how many units, the worst by local error, go through the second pass, with those of the
        camera head beside them (`units.chosen` says why); None: all of a small model,
        MEASURED_UNITS of a large one.
    calibrate: pictures, for static activations alone.
    threads: scenes that are run at a time, each on one core; the numbers do not depend on it.
    resume: go on with the folder's own question; `top` may be another one.

    Raises:
        UsageError: the request makes no sense.
        ModelError, ImageError, SceneError, CalibrationError: weights, pictures or their truth can't
            be had.
        QuantizeError: a weight or an output is not finite.
        CompareError, ArtifactError: the folder is another's, in use, or of another question.
    """
    asked = parse_label(scheme)
    _check(asked, by, top, calibrate)
    check_asked(images, scenes)
    wanted = tuple(parse_format(label) for label in formats)
    report = progress or silent
    store = Store(Path(output_dir).expanduser().absolute())
    with locked(store.root):
        store.check(resume=resume)
        found = find_scenes(images, scenes, max_images=max_images)
        sizes, source = open_weights(model, config=config, revision=revision)
        size = sizes.image_size(height, width)
        read = read_scenes(
            found,
            mode=mode,
            width=size[1],
            height=height,
            skip_bad=False,
            need_truth=bool(scenes),
        )
        reference = _reference(read, need_truth=bool(scenes))
        network = folded_model(sizes, source, HEADS & sizes.available_heads)
        layers = layers_in(network)
        planned = plan(asked.scheme, layers)
        tried = candidates(layers, planned, by, wanted)
        scales = _input_scales(asked, sizes, source, read, calibrate, tried, report)
        record = model_record(sizes, source)
        store.begin(_question(record, read, asked, by, tried, scales))
        job = _Job(network, read, reference, asked.activations, scales, tried, store, report)
        table = _table(job, record, by, _limit(top, layers), threads)
        write_table(store.root, table)
        draw(table, store.root)
    return table


@dataclass(frozen=True)
class _Job:
    """Everything that both passes need."""

    network: VGGT
    scenes: Scenes
    reference: Reference
    activations: Activations
    input_scales: Mapping[str, float] | None
    candidates: tuple[Candidate, ...]
    store: Store
    report: Progress


def _check(asked: Quantization, by: str, top: int | None, calibrate: Path | None) -> None:
    if by not in UNITS:
        raise UsageError(f"unknown kind of unit {by!r}", f"use one of: {', '.join(UNITS)}")
    if top is not None and top < 1:
        raise UsageError(f"top is {top}", "measure 1 unit or more, or leave it out")
    if asked.treatment != PLAIN:
        raise UsageError(
            f"{asked.label}: one unit is quantized at a time here, as its scheme says; a treatment "
            "changes several layers together, and `search` would not know of it",
            f"measure the plain scheme: {asked.scheme.name}",
        )
    if (asked.activations == "static") != (calibrate is not None):
        raise UsageError(
            "static activations need pictures to calibrate on, and only they take some",
            "give both, such as --scheme int8_pc_sym+static --calibrate DIR, or neither",
        )


def _reference(scenes: Scenes, *, need_truth: bool) -> Reference:
    """The truth if every scene has it."""
    without = [scene for scene in scenes.items if scene.truth is None]
    if not without:
        return "truth"
    if need_truth:
        raise SceneError(
            f"the truth of {without[0].name} is not known: {without[0].no_truth}",
            "give ETH3D scenes or what `vggt-deploy scene` writes; for pictures alone: --images",
        )
    return "outputs"


def _limit(top: int | None, layers: Sequence[LayerInfo]) -> int | None:
    """How many units are measured; None: all of them."""
    if top is None and sum(layer.weights for layer in layers) > MEASURE_ALL_WEIGHTS:
        return MEASURED_UNITS
    return top


def _input_scales(
    asked: Quantization,
    config: VGGTConfig,
    source: WeightSource,
    scenes: Scenes,
    calibrate: Path | None,
    tried: Sequence[Candidate],
    report: Progress,
) -> dict[str, float] | None:
    """Layer -> scale of its input where activations are static."""
    if calibrate is None:
        return None
    from vggt_deploy.quantize.calibration import Pictures, input_scales, observe

    mode = cast(Mode, scenes.mode)
    pictures = Pictures(Path(calibrate), scenes.height, scenes.width, mode)
    statistics = observe(config, source, pictures, report)
    names = dict.fromkeys(name for one in tried for name in one.layers)
    linears = [name for name in names if name in statistics.layers]
    treatment = asked.treatment
    return input_scales(statistics, linears, treatment.input_range, "fp32", apart=treatment.apart)


def _question(
    record: ModelRecord,
    scenes: Scenes,
    asked: Quantization,
    by: By,
    tried: Sequence[Candidate],
    scales: Mapping[str, float] | None,
) -> dict[str, Any]:
    """All that can change a number; how many units are measured can't."""
    return {
        "schema": SCHEMA,
        "model": asdict(record),
        **scenes.to_json(),
        "activations": asked.activations,
        "by": by,
        "units": [f"{one.unit} {one.format}" for one in tried],
        "input_scales": scales,
        "versions": {"vggt-deploy": vggt_deploy.__version__, "torch": version("torch")},
    }


def _table(
    job: _Job, record: ModelRecord, by: By, limit: int | None, threads: int | None
) -> SensitivityTable:
    local = _first_pass(job)
    units = chosen(local, limit)
    with single_threads(worker_count(threads)) as executor:
        entries, exact = _second_pass(job, local, units, executor)
    return SensitivityTable(
        schema=SCHEMA,
        model=record,
        scenes=tuple(scene.name for scene in job.scenes.items),
        reference=job.reference,
        by=by,
        height=job.scenes.height,
        width=job.scenes.width,
        activations=job.activations,
        baseline=exact,
        entries=entries,
    )


def _first_pass(job: _Job) -> LocalErrors:
    kept = job.store.local()
    if kept is not None:
        return kept
    errors = local_errors(
        job.network,
        [scene.pixels for scene in job.scenes.items],
        job.candidates,
        activations=job.activations,
        input_scales=job.input_scales,
        report=lambda done, total: job.report("local errors", done, total),
    )
    job.store.save_local(errors)
    return errors


def _second_pass(
    job: _Job, local: LocalErrors, units: Sequence[str], executor: Executor
) -> tuple[tuple[Entry, ...], dict[str, float]]:
    """Every candidate's entry, those of the chosen units with their losses; FP32's measures."""
    scenes = job.scenes.items
    outputs = run_scenes(job.network, scenes, executor)
    exact = [
        measures(one, one, scene, job.reference) for one, scene in zip(outputs, scenes, strict=True)
    ]
    finished = job.store.finished()
    rank = {unit: place for place, unit in enumerate(units)}
    todo = sorted((c for c in job.candidates if c.unit in rank), key=lambda c: rank[c.unit])
    for done, candidate in enumerate(todo):
        job.report("units", done, len(todo))
        key = (candidate.unit, candidate.format)
        if key in finished:
            continue
        with switched(
            job.network,
            candidate.layers,
            activations=job.activations,
            input_scales=job.input_scales,
        ):
            variant = run_scenes(job.network, scenes, executor)
        try:
            measured = [
                measures(one, right, scene, job.reference)
                for one, right, scene in zip(variant, outputs, scenes, strict=True)
            ]
        except QuantizeError as error:
            where = f"{candidate.unit} in {candidate.format}"
            raise QuantizeError(f"{where}: {error.message}", error.fix) from error
        loss, interval = losses(measured, exact)
        entry = Entry(
            candidate.unit,
            tuple(candidate.layers),
            candidate.format,
            local[key],
            loss,
            interval,
        )
        job.store.save(entry)
        finished[key] = entry
    job.report("units", len(todo), len(todo))
    entries = tuple(_entry(one, local, finished) for one in job.candidates)
    return entries, baseline(exact) if job.reference == "truth" else {}


def _entry(one: Candidate, local: LocalErrors, finished: Mapping[tuple[str, str], Entry]) -> Entry:
    """The finished entry of a candidate, or one that has its local error alone."""
    plain = Entry(one.unit, tuple(one.layers), one.format, local[one.unit, one.format])
    done = finished.get((one.unit, one.format))
    return plain if done is None else replace(plain, loss=done.loss, interval=done.interval)
