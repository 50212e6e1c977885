"""Recipe, pictures, scheme -> trained integers: the verb `qat`.

    RUN/prepared.json, prepared.safetensors   what `export --prepared RUN` takes
    RUN/qat.toml            the recipe
    RUN/qat_log.csv         losses on the way
    RUN/qat_checkpoint.pt   to go on from
    RUN/start/              the integers or ranges that it began with, where they were searched

The student is the folded network in FP32, so what is trained is what is exported: no LayerScale is
left to fold, and the scales are those of the file.

Memory, by counting and not by a run: four copies of the weights for the student, its gradients and
AdamW's two moments, one for the teacher, and one of the rounded weights, which the backward pass
needs: 24 bytes a weight, 23 GB for VGGT-1B, beside the activations of frames / shards views (all
shards at once in one process: one shard for each GPU is what torchrun is for).
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vggt_deploy.artifact import locked
from vggt_deploy.compare.scenes import FoundScene, check_asked, find_scenes
from vggt_deploy.errors import ArtifactError, UsageError
from vggt_deploy.model.config import VGGTConfig
from vggt_deploy.model.fold import FoldedWeights
from vggt_deploy.model.sources import WeightSource
from vggt_deploy.model.vggt import VGGT
from vggt_deploy.model.weights import check_keys, load_model, open_weights
from vggt_deploy.options import Mode
from vggt_deploy.progress import Progress, silent
from vggt_deploy.qat.fake import (
    fake_layers,
    finish,
    input_scales_of,
    insert_fake,
    step_parameters,
)
from vggt_deploy.qat.launch import Place, joined
from vggt_deploy.qat.loop import QatTrainer, run_steps
from vggt_deploy.qat.recipe import QatRecipe
from vggt_deploy.qat.scenes import read_scenes
from vggt_deploy.qat.state import CHECKPOINT_FILE, LOG_FILE, load_checkpoint
from vggt_deploy.quantize.calibration import Pictures
from vggt_deploy.quantize.plan import layers_in, plan
from vggt_deploy.quantize.prepared import (
    RECORD_NAME,
    SCHEMA,
    TENSORS_NAME,
    Prepared,
    PreparedRecord,
    read_prepared,
    write_prepared,
)
from vggt_deploy.quantize.qparams import dequantize
from vggt_deploy.quantize.schemes import Quantization, WeightFormat
from vggt_deploy.quantize.statistics import model_record
from vggt_deploy.quantize.treatment import PLAIN
from vggt_deploy.train.initial import TRAINED_HEADS
from vggt_deploy.train.pipeline import training_device
from vggt_deploy.train.pool import worker_count
from vggt_deploy.train.recipe import recipe_toml

RECIPE_FILE = "qat.toml"
START_FOLDER = "start"
_PARTIAL = ".prepared.partial"
_BEFORE_FIRST_STEP = frozenset({RECIPE_FILE, LOG_FILE, START_FOLDER, f".{START_FOLDER}.partial"})


@dataclass(frozen=True)
class QatRequest:
    """What to train, on which pictures.

    images or scenes: one folder, or several; scenes lie in them as `compare --scenes` finds them
    calibrate: pictures for static ranges and for treatments that look; None: those of `images`
    """

    model: str
    quantization: Quantization
    images: Path | None = None
    scenes: tuple[Path, ...] = ()
    calibrate: Path | None = None
    config: str | None = None
    revision: str | None = None
    height: int | None = None
    width: int | None = None
    mode: Mode = "crop"
    max_images: int | None = None
    skip_bad: bool = False
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    sensitive: tuple[str, ...] = ()


@dataclass(frozen=True)
class QatResult:
    """Where the integers are, and how long it took (this call alone, if it was resumed).

    probe_before, probe_after: the loss on the same few view sets before the first step (what
    rounding alone gives) and after the last
    """

    folder: Path
    label: str
    device: str
    steps: int
    seconds: float
    probe_before: float
    probe_after: float


def qat(
    request: QatRequest,
    recipe: QatRecipe,
    run: Path,
    *,
    resume: bool = False,
    threads: int | None = None,
    device: str | None = None,
    progress: Progress | None = None,
) -> QatResult:
    """Train the integers of a network against its own FP32 outputs, into `run`.

    `device` cpu or cuda, None: cuda where PyTorch sees one. Started by torchrun, the processes
    share the shards of a step; `run` must then lie where all of them see it.

    Raises:
        UsageError: a scheme without integers; pictures that are given twice, or missing.
        ArtifactError: `run` holds something, or with `resume` no checkpoint of just this.
        ImageError, SceneError: pictures or their truth can't be read.
        KeyboardInterrupt: Ctrl-C or SIGTERM; a checkpoint is written and `resume` goes on from it.
    """
    check_asked(request.images, request.scenes)
    if not request.quantization.scheme.integer:
        raise UsageError(
            f"scheme {request.quantization.scheme.name} has no integers to train",
            "use an integer scheme, such as int4_g128",
        )
    run, begun_s = run.expanduser().resolve(), time.perf_counter()
    found = find_scenes(None, _folders(request), max_images=request.max_images)
    with ExitStack() as stack:
        place = stack.enter_context(joined(training_device(device), recipe.batch.shards))
        if place.first:
            stack.enter_context(locked(run))
            _check_run(run, resume)
            run.mkdir(parents=True, exist_ok=True)
        report = (progress or silent) if place.first else silent
        job = _Job(request, recipe, run, place, report)
        trainer = job.train(found, resume, worker_count(threads))
        after = trainer.probe()
        if place.first:
            job.write(trainer, after)
        place.wait()
    seconds = time.perf_counter() - begun_s
    return QatResult(
        run,
        request.quantization.label,
        str(place.device),
        trainer.steps,
        seconds,
        trainer.probe_loss,
        after,
    )


def _folders(request: QatRequest) -> Sequence[Path]:
    return request.scenes if request.images is None else (request.images,)


def _check_run(run: Path, resume: bool) -> None:
    if resume or not run.exists() or not any(run.iterdir()):
        return
    resumable = (run / CHECKPOINT_FILE).is_file()
    if not resumable and {path.name for path in run.iterdir()} <= _BEFORE_FIRST_STEP:
        # Stopped before there was anything to go on from: it begins anew.
        shutil.rmtree(run)
        return
    raise ArtifactError(
        f"{run} exists and is not empty",
        ("add --resume to go on, or " if resumable else "") + "give another folder with -o",
    )


@dataclass
class _Job:
    request: QatRequest
    recipe: QatRecipe
    run: Path
    place: Place
    report: Progress

    def __post_init__(self) -> None:
        asked = self.request
        self.config, self.source = open_weights(
            asked.model, config=asked.config, revision=asked.revision
        )
        check_keys(self.source, self.config, TRAINED_HEADS)
        self.height, self.width = self.config.image_size(asked.height, asked.width)
        self.config.grid(self.height, self.width)

    def train(self, found: Sequence[FoundScene], resume: bool, threads: int) -> QatTrainer:
        """All steps -> the trainer after the last."""
        self.scenes = read_scenes(
            found,
            self.height,
            self.width,
            self.request.mode,
            with_truth=self.recipe.loss.task > 0,
            skip_bad=self.request.skip_bad,
            progress=self.report,
        )
        self._check_truth()
        teacher = load_model(self.source, self.config, heads=TRAINED_HEADS, folded=True)
        formats = self._formats(teacher)
        question = self._question(formats)
        # Before anything is searched anew: a checkpoint of something else ends it here.
        checkpoint = load_checkpoint(self.run, question) if resume else None
        student = self._student(formats)
        device = self.place.device
        recipe = self.recipe
        if self.request.quantization.treatment.prepares:
            # Its floats were moved towards the integers: without rounding it is no teacher's equal.
            recipe = dataclasses.replace(recipe, float_steps=0)
        trainer = QatTrainer(
            student.to(device), teacher.to(device), recipe, self.scenes, self.place
        )
        if trainer.steps <= recipe.float_steps:
            raise UsageError(
                f"{trainer.steps} steps, the first {recipe.float_steps} of them without integers: "
                "nothing would be learned of rounding",
                "give more --epochs or pictures, or fewer float_steps with --settings",
            )
        if checkpoint is not None:
            trainer.restore(checkpoint)
        if self.place.first:
            (self.run / RECIPE_FILE).write_text(recipe_toml(self.recipe), encoding="utf-8")
        run_steps(trainer, self.run, question, threads=threads, progress=self.report)
        return trainer

    def _check_truth(self) -> None:
        if self.recipe.loss.task > 0 and all(scene.truth is None for scene in self.scenes):
            raise UsageError(
                "a task loss is asked for, and no scene has true cameras and depth",
                "leave --task-loss out, or give scenes in ETH3D's layout",
            )

    def _formats(self, model: VGGT) -> dict[str, WeightFormat]:
        asked = self.request
        return plan(
            asked.quantization.scheme,
            layers_in(model),
            include=asked.include,
            exclude=asked.exclude,
            sensitive=asked.sensitive,
        )

    def _student(self, formats: Mapping[str, WeightFormat]) -> VGGT:
        """The network with fake quantization, as rounding alone (or the start's search) leaves it.

        In eval mode: the network has nothing that a training mode would change.
        """
        start = self._start()
        folded: WeightSource = FoldedWeights(self.source, self.config)
        student = folded_model(self.config, folded if start is None else start.source(folded))
        asked = self.request.quantization
        if start is not None and asked.treatment.moves:
            _take_integers(student, start, formats)
        scales = None if start is None else start.record.input_scales
        insert_fake(student, formats, asked.activations, start, scales)
        student.requires_grad_(True)
        return student

    def _start(self) -> Prepared | None:
        """Searched integers or ranges to begin with; None: each weight is rounded by itself."""
        asked = self.request
        if asked.quantization.treatment == PLAIN and asked.quantization.activations != "static":
            return None
        folder = self.run / START_FOLDER
        if self.place.first and not (folder / RECORD_NAME).is_file():
            self._prepare(folder)
        self.place.wait()
        return read_prepared(folder)

    def _prepare(self, folder: Path) -> None:
        from vggt_deploy.quantize.prepare import PrepareRequest, prepare

        asked = self.request
        pictures = None
        if asked.quantization.needs_pictures:
            looked_at = asked.calibrate or asked.images
            if looked_at is None:
                raise UsageError(
                    f"{asked.quantization.label} looks at pictures before the training, and "
                    "several scenes are given",
                    "say which with --calibrate DIR",
                )
            pictures = Pictures(
                looked_at, self.height, self.width, asked.mode, skip_bad=asked.skip_bad
            )
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
        partial.mkdir()
        wanted = PrepareRequest(
            asked.quantization,
            "fp32",
            self.height,
            self.width,
            pictures,
            TRAINED_HEADS,
            asked.include,
            asked.exclude,
            asked.sensitive,
        )
        prepare(self.config, self.source, wanted, partial, progress=self.report)
        partial.rename(folder)

    def _question(self, formats: Mapping[str, WeightFormat]) -> dict[str, str]:
        """What a run that is resumed has to be asked for again."""
        record = model_record(self.config, self.source)
        pictures = sorted(item for scene in self.scenes for item in scene.sha256.items())
        return {
            "recipe": recipe_toml(self.recipe),
            "scheme": self.request.quantization.label,
            "layers": "\n".join(f"{name} {form.label}" for name, form in formats.items()),
            "model": f"{record.config} {record.sha256 or record.spec}",
            "size": f"{self.height} x {self.width}, {self.request.mode}",
            "pictures": hashlib.sha256(repr(pictures).encode()).hexdigest(),
        }

    def write(self, trainer: QatTrainer, probe_after: float) -> None:
        """The folder's prepared weights: the tensors first, then the record that names them."""
        student = trainer.student
        integers = {
            name: dataclasses.replace(
                value,
                q=value.q.cpu(),
                scale=value.scale.cpu(),
                zero_point=value.zero_point.cpu(),
            )
            for name, value in finish(student).items()
        }
        record = PreparedRecord(
            schema=SCHEMA,
            tool_version="",
            made_by="qat",
            model=model_record(self.config, self.source),
            label=self.request.quantization.label,
            precision="fp32",
            height=self.height,
            width=self.width,
            formats={},
            tensors_sha256="",
            input_scales=input_scales_of(student),
            choices={
                "qat": {
                    "recipe": dataclasses.asdict(self.recipe),
                    "steps": trainer.steps,
                    "probe_before": trainer.probe_loss,
                    "probe_after": probe_after,
                }
            },
            images={name: sha for scene in self.scenes for name, sha in scene.sha256.items()},
            heads=tuple(sorted(student.heads)),
            include=self.request.include,
            exclude=self.request.exclude,
            sensitive=self.request.sensitive,
        )
        partial = self.run / _PARTIAL
        shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
        partial.mkdir()
        write_prepared(partial, record, integers, trained_floats(student))
        for name in (TENSORS_NAME, RECORD_NAME):
            (partial / name).rename(self.run / name)
        partial.rmdir()


def folded_model(config: VGGTConfig, folded: WeightSource) -> VGGT:
    """The folded network with the weights of a folded source, in eval mode."""
    with torch.device("meta"):
        model = VGGT(config, heads=TRAINED_HEADS, folded=True)
    # Copies: a source may give the same tensor twice, and the teacher must not be trained.
    values = {key: folded.load(key).float().clone() for key in model.state_dict()}
    model.load_state_dict(values, strict=True, assign=True)
    return model.eval()


def trained_floats(student: VGGT) -> dict[str, Tensor]:
    """Every float tensor of a trained student that is exported as such: no weight that became
    integers, and no step.
    """
    integers = {f"{name}.weight" for name, _ in fake_layers(student)}
    steps = step_parameters(student)
    return {
        name: parameter.detach().cpu()
        for name, parameter in student.named_parameters()
        if name not in integers and name not in steps
    }


@torch.no_grad()
def _take_integers(student: VGGT, start: Prepared, formats: Mapping[str, WeightFormat]) -> None:
    """A rewritten network's weights are kept as integers alone: begin with what they stand for."""
    for layer in layers_in(student):
        if layer.name in formats:
            quantized = start.quantized(layer, formats[layer.name], "fp32")
            student.get_submodule(layer.name).get_parameter("weight").copy_(dequantize(quantized))
