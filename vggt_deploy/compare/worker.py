"""One job in a process of its own: `python -m vggt_deploy.compare.worker JOB FILE`.

JOB is identify, calibrate, prepare, export, build, measure or compute; FILE a job written by
`jobs.write_job`. The answer goes to the file that the job names: {"ok": {...}}, or {"error": {...}}
and exit code 1 for an error that we understand. Anything else (a missing library, a crash) is left
to Python: its traceback is in the log, the exit code is not 0, there is no answer, and the parent
reports that.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np

from vggt_deploy.compare.contention import watch_others
from vggt_deploy.compare.environment import describe_environment
from vggt_deploy.compare.jobs import (
    BuildJob,
    CalibrateJob,
    ExportJob,
    IdentifyJob,
    Job,
    JobKind,
    MeasureJob,
    PrepareJob,
    read_build,
    read_calibrate,
    read_export,
    read_identify,
    read_measure,
    read_prepare,
    write_json,
)
from vggt_deploy.compare.latency import measure
from vggt_deploy.compare.processes import die_with_parent
from vggt_deploy.compare.subjects import Subject, make_subject
from vggt_deploy.errors import CompareError, DeployError, RuntimeUnavailableError
from vggt_deploy.memory import peak_rss_bytes, rss_bytes
from vggt_deploy.outputs import output_groups

Answer = dict[str, Any]


def identify(job: IdentifyJob) -> Answer:
    """Which weights and which architecture; downloads what has to be downloaded."""
    from vggt_deploy.model.weights import checkpoint_path, open_weights

    config, source = open_weights(
        job.model.spec, config=job.model.config, revision=job.model.revision
    )
    origin = source.origin
    # Of a Hub id the commit: already downloaded, this finds it in the cache.
    path = checkpoint_path(job.model.spec, origin.revision)
    return {
        "config": config.name,
        "kind": origin.kind,
        "revision": origin.revision,
        "sha256": origin.sha256,
        "licence": origin.licence,
        "checkpoint_bytes": None if path is None else path.stat().st_size,
        "gpu": _gpu() if job.gpu else None,
    }


def _gpu() -> str | None:
    """The first CUDA device and its driver, which times depend on; None where there is none."""
    from vggt_deploy.engines.device import cuda_device

    found = cuda_device()
    if isinstance(found, str):
        return None
    driver = found.driver_release or "unknown"
    return f"{found.name}, compute capability {found.compute_capability}, driver {driver}"


def run_calibrate(job: CalibrateJob) -> Answer:
    """Collect the statistics that all variants with static activations share."""
    import torch

    from vggt_deploy.quantize.calibration import collect_statistics

    torch.set_num_threads(job.threads)
    start = time.perf_counter()
    statistics = collect_statistics(
        job.model.spec,
        Path(job.images),
        output_dir=Path(job.folder),
        height=job.height,
        width=job.width,
        mode=job.mode,  # type: ignore[arg-type]  # checked when the pictures were read
        config=job.model.config,
        revision=job.model.revision,
        frames_per_pass=job.frames_per_pass,
        skip_bad_images=job.skip_bad,
        overwrite=True,
    )
    return {"seconds": time.perf_counter() - start, "images": len(statistics.images)}


def run_prepare(job: PrepareJob) -> Answer:
    """Prepare the weights of one label, for all its runtimes."""
    import torch

    from vggt_deploy.artifact import writing
    from vggt_deploy.model.weights import open_weights
    from vggt_deploy.quantize.calibration import Pictures
    from vggt_deploy.quantize.prepare import PrepareRequest, prepare
    from vggt_deploy.quantize.prepared import RECORD_NAME
    from vggt_deploy.quantize.schemes import parse_label

    torch.set_num_threads(job.threads)
    start = time.perf_counter()
    pictures = None
    if job.images is not None:
        pictures = Pictures(
            Path(job.images),
            job.height,
            job.width,
            mode=job.mode,  # type: ignore[arg-type]  # checked when the pictures were read
            frames_per_pass=job.frames_per_pass,
            skip_bad=job.skip_bad,
        )
    request = PrepareRequest(
        parse_label(job.label),
        job.precision,  # type: ignore[arg-type]  # checked by parse_precision
        job.height,
        job.width,
        pictures,
        frozenset(group.head for group in output_groups(job.outputs)),
        job.layers.include,
        job.layers.exclude,
        job.layers.sensitive,
    )
    config, source = open_weights(
        job.model.spec, config=job.model.config, revision=job.model.revision
    )
    with writing(Path(job.folder), overwrite=True, marker=RECORD_NAME) as folder:
        prepare(config, source, request, folder)
    return {"seconds": time.perf_counter() - start}


def run_export(job: ExportJob) -> Answer:
    """Write the artifact; whole-process peak memory and the exporter's own timings."""
    import torch

    from vggt_deploy.export import export

    torch.set_num_threads(job.threads)
    start = time.perf_counter()
    calibration: dict[str, Any] = {}
    if job.calibration is not None:
        calibration["calibrate"] = Path(job.calibration.statistics)
        calibration["calibration_method"] = job.calibration.method
    if job.prepared is not None:
        calibration["prepared"] = Path(job.prepared)
    else:
        calibration |= {
            "include": job.layers.include,
            "exclude": job.layers.exclude,
            "sensitive": job.layers.sensitive,
        }
    result = export(
        job.model.spec,
        job.label,
        precision=job.precision,  # type: ignore[arg-type]
        outputs=job.outputs,
        height=job.height,
        width=job.width,
        frames=job.frames,
        output_dir=Path(job.folder),
        verify=job.verify,
        overwrite=True,
        config=job.model.config,
        revision=job.model.revision,
        trace_cache=Path(job.trace_cache),
        **calibration,
    )
    return {
        "seconds": time.perf_counter() - start,
        "peak_rss_bytes": peak_rss_bytes()[0],
        "verified": job.verify,
        "steps": dict(result.seconds),
    }


def run_build(job: BuildJob) -> Answer:
    """Build the engine, even if it does not compute as the scheme promises: the row shows that."""
    from vggt_deploy.build import build
    from vggt_deploy.engines.kernels import flop_shares
    from vggt_deploy.manifest import read_manifest

    artifact = Path(job.artifact)
    start = time.perf_counter()
    result = build(
        artifact,
        runtime=job.runtime,
        device=job.device,
        output_dir=Path(job.folder),
        accept_float=True,
        overwrite=True,
    )
    seconds = time.perf_counter() - start
    manifest, record = result.manifest, result.manifest.engine
    assert record is not None  # `build` writes engines
    proof = record.proof
    inherited = read_manifest(artifact, check_hashes=False).notes
    return {
        "seconds": seconds,
        "builder_seconds": record.build_seconds,
        "peak_rss_bytes": peak_rss_bytes()[0],
        "runtime_version": record.runtime_version,
        "plan_bytes": manifest.files[record.file].bytes,
        "weights_bytes": record.weights_bytes,
        "packed_bytes": record.packed_bytes,
        "shares": flop_shares(proof),
        "attentions": proof.attentions,
        "attentions_fused": proof.attentions_fused,
        "attentions_half": proof.attentions_half,
        "half_unfused": len(proof.half_unfused),
        "notes": list(manifest.notes[len(inherited) :]),
    }


def run_measure(job: MeasureJob) -> Answer:
    """Load one variant, time it on the first scene, write what it computes of all scenes.

    Peak memory is read before the outputs are written and before the weights are weighed.
    """
    images = np.load(job.images)[None]
    subject = make_subject(job)
    libraries = rss_bytes()
    start = time.perf_counter()
    subject.load()
    load_ms = (time.perf_counter() - start) * 1e3
    with watch_others() as others:
        latency, outputs = measure(
            lambda: subject.run(images), warmup=job.warmup, repeats=job.repeats
        )
    peak, source = peak_rss_bytes()
    gpu = subject.gpu_times(images, repeats=job.repeats)
    _write_arrays(Path(job.arrays), subject.arrays(outputs))
    del outputs
    _compute(subject, job.further)
    saved, notes = _saved_bytes(subject.saved_bytes, job.size_probe)
    return {
        "latency": latency.to_json(),
        "load_ms": load_ms,
        "peak_rss_bytes": peak,
        "peak_rss_source": source,
        "libraries_rss_bytes": libraries,
        "held_bytes": subject.held_bytes(),
        "saved_bytes": saved,
        "others_cpus": others.cpus,
        "notes": notes,
        "gpu": gpu,
        "machine": describe_environment().machine,
    }


def run_compute(job: MeasureJob) -> Answer:
    """Load one variant and write what it computes of the job's scenes; nothing is timed."""
    subject = make_subject(job)
    subject.load()
    pairs = ((job.images, job.arrays), *job.further)
    _compute(subject, pairs)
    return {"scenes": len(pairs)}


def _compute(subject: Subject, pairs: Sequence[tuple[str, str]]) -> None:
    """Run each of the pictures once, and write the outputs beside their names."""
    for images, arrays in pairs:
        outputs = subject.run(np.load(images)[None])
        _write_arrays(Path(arrays), subject.arrays(outputs))


def _saved_bytes(weigh: Callable[[Path], int], probe: str | None) -> tuple[int | None, list[str]]:
    """The size of the weights as a file; a disk too small for them costs that number only."""
    if probe is None:
        return None, []
    try:
        return weigh(Path(probe)), []
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        return None, [f"the weights could not be saved to be weighed: {error}"]


def _write_arrays(path: Path, arrays: dict[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _prepare(kind: str, path: Path) -> tuple[Job, Callable[[], Answer]]:
    """The job in the file, and the work that it means."""
    match kind:
        case "identify":
            identify_job = read_identify(path)
            return identify_job, partial(identify, identify_job)
        case "calibrate":
            calibrate_job = read_calibrate(path)
            return calibrate_job, partial(run_calibrate, calibrate_job)
        case "prepare":
            prepare_job = read_prepare(path)
            return prepare_job, partial(run_prepare, prepare_job)
        case "export":
            export_job = read_export(path)
            return export_job, partial(run_export, export_job)
        case "build":
            build_job = read_build(path)
            return build_job, partial(run_build, build_job)
        case "measure":
            measure_job = read_measure(path)
            return measure_job, partial(run_measure, measure_job)
        case "compute":
            compute_job = read_measure(path)
            return compute_job, partial(run_compute, compute_job)
    raise CompareError(f"unknown job {kind!r}", f"use one of: {', '.join(get_args(JobKind))}")


def main(arguments: Sequence[str]) -> int:
    """Do the job; 0, or 1 with the error in the answer."""
    kind, path = arguments
    job, work = _prepare(kind, Path(path))
    die_with_parent(job.parent)
    try:
        answer: Answer = {"ok": work()}
    except DeployError as error:
        unavailable = isinstance(error, RuntimeUnavailableError)
        said = {"message": error.message, "fix": error.fix, "unavailable": unavailable}
        answer = {"error": said}
        if kind != "identify":  # that one's stderr is the user's, who gets the error from us
            print(error, file=sys.stderr)
    write_json(Path(job.answer), answer)
    return 0 if "ok" in answer else DeployError.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
