"""The export stage: checkpoint + scheme -> artifact folder.

    open weights ─► plan layers (─► prepare, calibrate) ─► trace on meta ─► rewrite
    ─► stream weights
    ─┬► model.onnx
     └► model.tensorrt.onnx
    ─► verify the graphs against the PyTorch variant ─► manifest ─► rename into place

Nothing is visible under the target name until all of it is done.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import vggt_deploy
from vggt_deploy.artifact import writing
from vggt_deploy.errors import UsageError
from vggt_deploy.export.calibrate import calibrate_inputs
from vggt_deploy.export.camera import attach_loop, attach_unrolled
from vggt_deploy.export.finish import finish
from vggt_deploy.export.materialize import materialize
from vggt_deploy.export.precision import set_precision
from vggt_deploy.export.qdq import GraphTarget, StoredWeight, insert_integers
from vggt_deploy.export.request import ExportRequest, make_request
from vggt_deploy.export.rotary import use_rotary_operator
from vggt_deploy.export.simplify import simplify
from vggt_deploy.export.trace import TracedNetwork, named_fields
from vggt_deploy.export.trace_cache import cached_trace
from vggt_deploy.export.verify import verify_artifact
from vggt_deploy.export.weights_file import WeightsFile
from vggt_deploy.manifest import SCHEMA, hash_file, now, write_manifest
from vggt_deploy.model.config import VGGTConfig
from vggt_deploy.model.fields import grid_fields
from vggt_deploy.model.fold import FoldedWeights
from vggt_deploy.model.sources import WeightSource
from vggt_deploy.model.weights import check_keys, expected_shapes, open_weights
from vggt_deploy.progress import Progress, StageClock, silent
from vggt_deploy.quantize.pictures import Pictures
from vggt_deploy.quantize.plan import LayerInfo, keeps_layer_scale, layers_of, plan
from vggt_deploy.quantize.prepare import PrepareRequest, prepare
from vggt_deploy.quantize.prepared import Integers, Nearest, Prepared, open_prepared
from vggt_deploy.quantize.schemes import (
    FLOAT_BYTES,
    Activations,
    Precision,
    Quantization,
    WeightFormat,
    as_quantization,
)
from vggt_deploy.quantize.statistics import (
    ARRAYS_NAME,
    RECORD_NAME,
    Statistics,
    model_record,
    write_statistics,
)
from vggt_deploy.records import (
    CalibrationRecord,
    FileRecord,
    GraphRecord,
    LayerSummary,
    Manifest,
    ModelRecord,
    TreatmentRecord,
)

WEIGHTS_NAME = "weights.bin"
GRAPH_NAMES: dict[GraphTarget, str] = {
    "onnxruntime": "model.onnx",
    "tensorrt": "model.tensorrt.onnx",
}
SCRATCH_NAME = "prepared"  # a folder in the artifact's hidden one, gone before that is renamed
POS_EMBED_KEY = "aggregator.patch_embed.pos_embed"
VERSIONED = (
    "torch",
    "onnx",
    "onnx-ir",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "numpy",
)
# Two graph files of VGGT-1B, and room for scales and alignment; as much for statistics.
OVERHEAD_BYTES = 16 << 20

Stored = dict[str, StoredWeight]


@dataclass(frozen=True)
class ExportResult:
    """The artifact, and where the time went (`seconds` by stage)."""

    folder: Path
    manifest: Manifest
    bytes_total: int
    seconds: dict[str, float]


def export(
    model: str,
    scheme: str | Quantization | None = None,
    *,
    output_dir: Path,
    activations: Activations | None = None,
    precision: Precision | None = None,
    outputs: Sequence[str] = ("pose", "depth", "points"),
    height: int | None = None,
    width: int | None = None,
    frames: tuple[int, int, int] = (1, 5, 16),
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    sensitive: Sequence[str] = (),
    config: str | None = None,
    revision: str | None = None,
    verify: bool = True,
    overwrite: bool = False,
    calibrate: Path | Statistics | None = None,
    calibration_method: str | None = None,
    prepared: Path | None = None,
    trace_cache: Path | None = None,
    progress: Progress | None = None,
) -> ExportResult:
    """Quantize a VGGT and write it as an artifact that every runtime reads.

    model: vggt-nano, a checkpoint file or folder, a Hugging Face id, or random:<config>[:seed].
    `height` and `width` in pixels, multiples of 14, fixed in the artifact; None takes the size that
    the model works at (350 x 518 for VGGT-1B). `frames` is (min, typical, max).
    scheme: a label (`int8_pc_sym`, `int8_pc_sym+static+smooth`, `int4_g128+gptq`: see
    `quantize.treatment`), or with `prepared` None.
    calibrate: for static activations: a folder of images, statistics that `collect_statistics` gave
    or their folder, or an artifact that was calibrated; for smoothing and GPTQ a folder of images.
    calibration_method: absmax, mse, percentile or percentile:P.
    prepared: a folder of prepared weights (`vggt-deploy qat` writes one), with its own scheme.
    trace_cache: a folder to keep the traced graph in, for the next scheme of the same model.

    Raises:
        UsageError: the request makes no sense (unknown scheme, size, outputs, patterns).
        ModelError: the checkpoint can't be had or does not fit.
        CalibrationError, ImageError: the statistics are of another model or size; no usable images.
        QuantizeError, ExportError, VerifyError: the artifact could not be made or is wrong; nothing
            is left behind.
        ArtifactError: the folder is in use, not empty, or the disk is full.
    """
    given = None if prepared is None else open_prepared(prepared, scheme)
    if given is not None and (activations is not None or calibration_method is not None):
        raise UsageError(
            f"{prepared} has been prepared, and activations or a calibration method were given",
            "leave them out: the folder has its own",
        )
    asked = given.quantization if given is not None else _asked(scheme)
    sized = make_request(
        as_quantization(asked, activations, calibration_method),
        precision=precision,
        outputs=outputs,
        frames=frames,
        patterns=(tuple(include), tuple(exclude), tuple(sensitive)),
        calibrate=calibrate,
        prepared=given,
    )
    report = progress or silent
    clock = StageClock()
    report("checkpoint", 0, 0)
    sizes, source = open_weights(model, config=config, revision=revision)
    request = sized(*sizes.image_size(height, width))
    sizes.grid(request.height, request.width)  # a size that is no multiple of 14 ends here
    check_keys(source, sizes, request.heads)
    layers = {layer.name: layer for layer in layers_of(sizes, request.heads)}
    job = _Job(request, sizes, source, layers, _formats(request, list(layers.values())), given)
    if given is not None:
        given.require(job.model, request.precision, request.height, request.width, request.heads)
    clock.lap("checkpoint")
    with writing(output_dir, overwrite=overwrite, needed_bytes=_estimate(job)) as folder:
        if request.treatment.prepares and given is None:
            job = dataclasses.replace(job, prepared=_prepare(job, folder / SCRATCH_NAME, report))
            clock.lap("prepare")
        manifest = _write_artifact(job, folder, trace_cache, report, clock)
        if verify:
            report("verify", 0, 0)
            record = verify_artifact(folder, manifest, request, sizes, source, job.prepared)
            manifest = dataclasses.replace(manifest, verification=record)
            write_manifest(folder, manifest)
            clock.lap("verify")
        if (folder / SCRATCH_NAME).exists():
            shutil.rmtree(folder / SCRATCH_NAME)
    return ExportResult(Path(output_dir), manifest, manifest.bytes_total, clock.seconds)


def _asked(scheme: str | Quantization | None) -> str | Quantization:
    if scheme is None:
        raise UsageError("no scheme was given", "name one, or give a folder of prepared weights")
    return scheme


def _formats(request: ExportRequest, layers: Sequence[LayerInfo]) -> dict[str, WeightFormat]:
    if request.prepared is not None:
        return request.prepared.formats_of(layers)
    return plan(
        request.scheme,
        layers,
        include=request.include,
        exclude=request.exclude,
        sensitive=request.sensitive,
    )


def _prepare(job: _Job, folder: Path, progress: Progress) -> Prepared:
    """What the treatment makes of the weights, in a folder that is deleted before the end."""
    request = job.request
    pictures = None
    if request.calibration is not None:
        assert isinstance(request.calibration.source, Path)  # `make_request` has seen to it
        pictures = Pictures(
            request.calibration.source,
            request.height,
            request.width,
            frames_per_pass=request.frames.opt,
        )
    folder.mkdir()
    asked = PrepareRequest(
        request.quantization,
        request.precision,
        request.height,
        request.width,
        pictures,
        request.heads,
        request.include,
        request.exclude,
        request.sensitive,
    )
    return prepare(job.config, job.source, asked, folder, progress=progress)


@dataclass(frozen=True)
class _Job:
    """The request, resolved against the checkpoint."""

    request: ExportRequest
    config: VGGTConfig
    source: WeightSource
    layers: Mapping[str, LayerInfo]
    formats: Mapping[str, WeightFormat]
    prepared: Prepared | None = None

    @property
    def model(self) -> ModelRecord:
        """The weights, as manifest and statistics name them."""
        return model_record(self.config, self.source)

    @property
    def linears(self) -> tuple[str, ...]:
        """The quantized Linears: the layers whose inputs may become 8 bit."""
        return tuple(name for name in self.formats if self.layers[name].kind == "linear")


def _write_artifact(
    job: _Job, folder: Path, trace_cache: Path | None, progress: Progress, clock: StageClock
) -> Manifest:
    request = job.request
    calibrated = None
    if job.prepared is None:
        calibrated = calibrate_inputs(
            request, job.model, job.config, job.source, job.linears, progress
        )
    if calibrated is not None:
        write_statistics(folder, calibrated.statistics)
        clock.lap("calibrate")
    calibration = None if calibrated is None else calibrated.record
    keep = keeps_layer_scale(request.precision)
    folded: WeightSource = FoldedWeights(job.source, job.config, keep_layer_scale=keep)
    integers: Integers = Nearest(folded)
    if job.prepared is not None:
        integers, folded = job.prepared, job.prepared.source(folded)
        calibration = _prepared_calibration(job, job.prepared)
    fields = grid_fields(job.config, folded.load(POS_EMBED_KEY), request.height, request.width)
    progress("trace", 0, 0)
    network = cached_trace(
        trace_cache,
        job.config,
        request.groups,
        fields,
        request.height,
        request.width,
        keep_layer_scale=keep,
    )
    parts = [network.main, *([network.camera] if network.camera is not None else [])]
    for part in parts:
        simplify(part)
        set_precision(part, request.precision)
    clock.lap("trace")
    stored: list[Stored] = []
    with WeightsFile(folder / WEIGHTS_NAME) as weights, torch.no_grad():
        for part in parts:
            stored.append(
                materialize(
                    part.graph,
                    folded,
                    named_fields(fields),
                    job.layers,
                    job.formats,
                    weights,
                    rank_1="tensorrt" in request.targets,
                    progress=progress,
                    integers=integers,
                    input_scales=None if calibration is None else calibration.scales,
                )
            )
    clock.lap("weights")
    records = {
        target: _write_graph(job, network, stored, folder, target) for target in request.targets
    }
    files = {WEIGHTS_NAME: FileRecord(weights.bytes_written, weights.sha256)}
    kept = () if calibrated is None else (RECORD_NAME, ARRAYS_NAME)
    for name in (*(record.file for record in records.values()), *kept):
        files[name] = FileRecord((folder / name).stat().st_size, hash_file(folder / name))
    manifest = _manifest(job, records, files, calibration)
    write_manifest(folder, manifest)
    clock.lap("graphs")
    return manifest


def _write_graph(
    job: _Job, network: TracedNetwork, stored: Sequence[Stored], folder: Path, target: GraphTarget
) -> GraphRecord:
    """Put integers and camera head into a copy of the traced graphs, and write it."""
    request = job.request
    main = network.main.clone()
    parts = [main.graph]
    if network.camera is not None:
        parts.append(network.camera.graph.clone())
    for graph, weights in zip(parts, stored, strict=True):
        insert_integers(graph, weights, activations=request.activations, target=target)
    if target == "onnxruntime":
        use_rotary_operator(main.graph)
    if network.camera is not None:
        attach = attach_loop if target == "onnxruntime" else attach_unrolled
        attach(main.graph, parts[1], job.config.camera_iterations)
    used = {weight.format for weights in stored for weight in weights.values()}
    path = folder / GRAPH_NAMES[target]
    opset = finish(main, path, four_bit=any(form.bits == 4 for form in used))
    if target == "tensorrt":
        return GraphRecord(path.name, opset)
    return GraphRecord(path.name, opset, *session_settings(request.activations, bool(used)))


def session_settings(
    activations: Activations, quantized: bool
) -> tuple[dict[str, str], tuple[str, ...]]:
    """What ONNX Runtime has to be told to compute what the scheme says.

    Its MatMulNBits rounds the activations to 8 bit by default (accuracy level 4), also where the
    graph has float activations; level 1 is FP32. MatMulAddFusion would wrap each MatMulNBits in two
    Reshapes and keep its bias out of it.
    """
    if not quantized:
        return {}, ()
    level = "4" if activations == "dynamic" else "1"
    return {"session.qdq_matmulnbits_accuracy_level": level}, ("MatMulAddFusion",)


def _manifest(
    job: _Job,
    records: Mapping[GraphTarget, GraphRecord],
    files: dict[str, FileRecord],
    calibration: CalibrationRecord | None,
) -> Manifest:
    request = job.request
    return Manifest(
        schema=SCHEMA,
        tool_version=vggt_deploy.__version__,
        kind="onnx",
        created=now(),
        model=job.model,
        scheme=request.scheme.name,
        activations=request.activations,
        precision=request.precision,
        height=request.height,
        width=request.width,
        frames=request.frames,
        outputs=tuple(name for group in request.groups for name in group.tensors),
        graphs={str(target): record for target, record in records.items()},
        layers=LayerSummary(
            quantized={name: form.label for name, form in job.formats.items()},
            **_patterns(job),
        ),
        files=files,
        versions=installed_versions(),
        calibration=calibration,
        treatment=_treatment(job),
    )


def _prepared_calibration(job: _Job, prepared: Prepared) -> CalibrationRecord | None:
    """What the manifest says of static ranges that come with prepared weights."""
    request, record = job.request, prepared.record
    if request.activations != "static":
        return None
    learned = record.made_by == "qat"
    method = "learned in training" if learned else request.treatment.input_range.label
    # Heads that are not wanted have Linears, too.
    scales = {name: record.input_scales[name] for name in job.linears}
    return CalibrationRecord(method, None, record.images, scales)


def _patterns(job: _Job) -> dict[str, tuple[str, ...]]:
    """Those that chose the layers: of prepared weights, those they were prepared with."""
    made = job.request if job.prepared is None else job.prepared.record
    return {"include": made.include, "exclude": made.exclude, "sensitive": made.sensitive}


def _treatment(job: _Job) -> TreatmentRecord | None:
    label = job.request.treatment.label
    if job.prepared is not None:
        record = job.prepared.record
        return TreatmentRecord(label, record.made_by, record.choices, record.images)
    return TreatmentRecord(label, "calibrate") if label else None


def installed_versions() -> dict[str, str]:
    """Versions of what makes an artifact; ONNX Runtime has one of two names."""
    installed = {}
    for name in VERSIONED:
        with contextlib.suppress(PackageNotFoundError):
            installed[name] = version(name)
    return installed


def _estimate(job: _Job) -> int:
    """Bytes the artifact will take, a little too high: weights in their format, the rest float."""
    total = OVERHEAD_BYTES if job.request.calibration is None else 2 * OVERHEAD_BYTES
    float_bytes = FLOAT_BYTES[job.request.precision]
    for key, shape in expected_shapes(job.config, job.request.heads).items():
        layer, _, leaf = key.rpartition(".")
        count = math.prod(shape)
        if leaf == "weight" and layer in job.formats:
            info = job.layers[layer]
            total += job.formats[layer].stored_bytes(info.outputs, count // info.outputs)
        else:
            heads = not key.startswith("aggregator.")
            total += count * (4 if heads else float_bytes)
    return total
