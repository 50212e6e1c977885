"""The comparison: every variant in a process of its own, on the same pictures.

    scenes ─► question ─► PyTorch FP32 ─► (export ─► build ─►) measure each variant ─► report
              (identify)   (reference)     metrics against the reference and the truth

This process imports no torch, onnx or onnxruntime: it starts workers, reads what they wrote, and
computes the metrics.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from vggt_deploy.artifact import locked
from vggt_deploy.compare.asking import identify_model
from vggt_deploy.compare.baseline import changes
from vggt_deploy.compare.calibration import ask_calibration
from vggt_deploy.compare.contention import NOISY_SHARE
from vggt_deploy.compare.devices import ask_device
from vggt_deploy.compare.environment import Environment, usable_cpus
from vggt_deploy.compare.executors import opened
from vggt_deploy.compare.jobs import LayerPatterns, ModelQuestion
from vggt_deploy.compare.protocol import protocol_of
from vggt_deploy.compare.question import Settings, build_question
from vggt_deploy.compare.recommend import recommend
from vggt_deploy.compare.report import (
    SCHEMA,
    ComparisonReport,
    Row,
    read_report,
    write_report,
)
from vggt_deploy.compare.rows import Sweep
from vggt_deploy.compare.scenes import Scenes, check_asked, find_scenes, read_scenes
from vggt_deploy.compare.state import (
    Folder,
    begin,
    check_folder,
    full_disk_explained,
    timed_cpu,
)
from vggt_deploy.compare.variants import parse_variants
from vggt_deploy.data.frame_lists import load_frame_list
from vggt_deploy.model.config import get_config
from vggt_deploy.outputs import OUTPUT_GROUPS, output_groups
from vggt_deploy.quantize.methods import DEFAULT_METHOD
from vggt_deploy.report.languages import speaker
from vggt_deploy.report.sensitivity import keep_sensitivity, read_sensitivity
from vggt_deploy.report.write import draw, write_texts

WORKER = (sys.executable, "-m", "vggt_deploy.compare.worker")


def compare(
    model_spec: str,
    images_dir: Path | str | None = None,
    *,
    output_dir: Path | str,
    scenes: Sequence[Path | str] = (),
    schemes: str | Sequence[str] = "all",
    runtimes: str | Sequence[str] = "torch,onnxruntime",
    device: str | None = None,
    max_images: int | None = None,
    height: int | None = None,
    width: int | None = None,
    mode: Literal["crop", "pad"] = "crop",
    skip_bad_images: bool = False,
    outputs: Sequence[str] = tuple(OUTPUT_GROUPS),
    precision: Literal["fp32", "fp16", "bf16"] | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    sensitive: Sequence[str] = (),
    calibrate: Path | str | None = None,
    calibration_method: str = DEFAULT_METHOD,
    config: str | None = None,
    revision: str | None = None,
    warmup: int = 2,
    repeats: int = 5,
    threads: int | None = None,
    timeout_s: float = 3600.0,
    verify: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    frames: str | Path | None = None,
    drop_sideways: bool = False,
    baseline: Path | str | None = None,
    sensitivity: Path | str | None = None,
    language: str = "en",
    executor: str = "local",
    ray_address: str | None = None,
    console: Console | None = None,
    worker_command: Sequence[str] = WORKER,
) -> ComparisonReport:
    """Compare schemes and runtimes with PyTorch FP32, and write report, summary and pictures.

    Args:
        model_spec: `vggt-nano`, checkpoint file or folder, Hugging Face id, or
            `random:<config>[:seed]`.
        images_dir: pictures of one scene, as `find_images` finds them; this or `scenes`. Where its
            calibration does not fit the pictures it is compared without truth.
        scenes: ETH3D scenes, or folders of them. Every variant is timed on the first scene and run
            once on each of the others; all have as many views and one size.
        output_dir: where everything goes; must be new or empty, unless `resume` or `overwrite`.
        schemes: "all" or labels such as `int8_pc_sym+dynamic`, comma-separated or a sequence.
        runtimes: `torch`, `onnxruntime`, `tensorrt`, `tensorrt-rtx`. PyTorch FP32 is always part of
            it.
        device: name or path of the device profile that engines are built for; needed with
            `tensorrt` and `tensorrt-rtx`, refused without them. Where there is no such device the
            engine is built and proven as far as that goes, and its row says "not run".
        max_images: use the first so many pictures of each scene; None uses all.
        height: None takes what the pictures give at `width`.
        width: in pixels, a multiple of 14; None takes the one that the model works at.
        mode: how pictures are brought to size, `crop` or `pad`.
        skip_bad_images: leave out pictures that can't be read, and name them in the report.
        outputs: groups to compute and compare: `pose`, `depth`, `points`.
        precision: float type of what is not integer in the integer schemes; None takes each
            scheme's own. The schemes fp32, fp16 and bf16 are what their names say.
        include: patterns of layers that become integers as well.
        exclude: patterns of layers that stay float.
        sensitive: patterns of the 8-bit layers of `mixed`.
        calibrate: for schemes with static activations: a folder of images, or of statistics that
            `vggt-deploy calibrate` wrote for this model and size. Collected once for all variants;
            the pictures that are compared should not be among them.
        calibration_method: absmax, mse, percentile or percentile:P.
        config: name of the architecture; None finds it by the checkpoint's keys.
        revision: of a Hugging Face model; None takes its newest and records the commit.
        warmup: calls before timing.
        repeats: timed calls.
        threads: of every variant; None takes the CPUs that this process may use.
        timeout_s: for each process: one export, one build, or one measurement.
        verify: let each export check its graph against PyTorch as well.
        resume: keep the finished rows in `output_dir`; refused if the question changed.
        overwrite: remove a former comparison in `output_dir` and begin again.
        frames: name or path of a frame list: which pictures of each scene, instead of all of them
            or the first `max_images`.
        drop_sideways: leave out the frames that stand on their side, by the poses of their scene,
            before `max_images` are taken; not beside `frames`.
        baseline: an earlier report, or its folder: what changed since is part of the new one.
        sensitivity: a table that `vggt-deploy sensitivity` wrote of these weights, for the page.
        language: of the summary and the experiment report: `en` or `zh`.
        executor: `local`, or `ray`: variants and scenes over the machines of a Ray cluster.
        ray_address: of the cluster; None finds it as Ray does.
        console: where progress goes; None is stderr. `Console(quiet=True)` says nothing.
        worker_command: what is started as `COMMAND JOB FILE` for each job.

    Returns:
        The report, as written to `comparison_report.json`.

    A variant that fails is a row with its error. Raises CompareError if the reference itself fails.
    """
    check_asked(images_dir, scenes)
    spoken = speaker(language).language
    variants = parse_variants(schemes, runtimes, calibrated=calibrate is not None)
    # Read before anything is measured: a mistake in a file should not cost an hour.
    listed = None if frames is None else load_frame_list(frames)
    old = None if baseline is None else read_report(Path(baseline).expanduser())
    table = None if sensitivity is None else read_sensitivity(Path(sensitivity).expanduser())
    settings = Settings(
        model=ModelQuestion(model_spec, config, revision),
        variants=variants,
        outputs=tuple(group.name for group in output_groups(outputs)),
        precision=precision,
        layers=LayerPatterns(tuple(include), tuple(exclude), tuple(sensitive)),
        calibration=ask_calibration(calibrate, calibration_method, variants),
        warmup=warmup,
        repeats=repeats,
        threads=usable_cpus() if threads is None else threads,
        verify=verify,
        timeout_s=timeout_s,
        device=ask_device(device, variants),
    )
    folder = Folder(Path(output_dir).expanduser().absolute())
    console = console or Console(stderr=True)
    cpu = timed_cpu(folder) if resume else None
    with (
        opened(executor, command=worker_command, address=ray_address, cpu=cpu) as runner,
        locked(folder.root),
    ):
        if threads is None:
            settings = replace(settings, threads=runner.threads)
        settings.check()
        runner.check(settings)
        check_folder(folder.root, resume=resume, overwrite=overwrite)
        # No pictures there: told before any download.
        found = find_scenes(
            images_dir, scenes, max_images=max_images, frames=listed, drop_sideways=drop_sideways
        )
        identity = identify_model(settings, worker_command, console)
        settings = settings.resolved(identity)
        read = read_scenes(
            found,
            mode=mode,
            width=get_config(identity.config).image_size(height, width)[1],
            height=height,
            skip_bad=skip_bad_images,
            need_truth=bool(scenes),
        )
        if settings.device is not None:
            settings.device.check_pictures(read.frames, read.accepted, read.height, read.width)
        console.print(read.note, highlight=False, markup=False, soft_wrap=True)
        question = build_question(settings, read, identity, runner.environment)
        # The finished variants are kept.
        with full_disk_explained(folder.root, "free some space, then add --resume"):
            begin(folder, question, resume=resume, overwrite=overwrite)
            for number, scene in enumerate(read.items):
                scene.save(folder.images(number))
                scene.save_truth(folder.truth(number))
            if table is not None:
                keep_sensitivity(folder, table, question["model"])
            rows = Sweep(settings, folder, read, identity, runner, console).run()
            report = _report(folder, settings, read, question, rows, runner.environment)
            write_report(report)
            if old is not None:
                report = replace(report, baseline=changes(old, report))
                write_report(report)
            write_texts(report, spoken)
            console.print("drawing the plots, the depth pictures and the page", highlight=False)
            draw(report, folder, spoken)
            return report


def _report(
    folder: Folder,
    settings: Settings,
    scenes: Scenes,
    question: dict[str, Any],
    rows: tuple[Row, ...],
    environment: Environment,
) -> ComparisonReport:
    asked = (settings.calibration, settings.device)
    random_weights = question["model"]["kind"] == "random"
    return ComparisonReport(
        schema=SCHEMA,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        folder=folder.root,
        question=question,
        environment=environment,
        command=tuple(sys.argv),
        rows=rows,
        recommendations=recommend(
            rows,
            random_weights=random_weights,
            quiet_cpus=NOISY_SHARE * environment.usable_cpus,
        ),
        notes=(scenes.note, *(item.note for item in asked if item is not None)),
        protocol=protocol_of(scenes),
    )
