"""The build stage: artifact + device profile -> engine folder.

    manifest, hashes ─► device profile ─► TensorRT, GPU ─► check the graph ─► build, to disk
    ─► prove what it computes in ─► manifest ─► rename into place

Nothing is visible under the target name until all of it is done. An engine that does not compute in
the types its scheme promises is not written, unless that is accepted knowingly.
"""

from __future__ import annotations

import dataclasses
import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import vggt_deploy
from vggt_deploy.artifact import writing
from vggt_deploy.build import timing
from vggt_deploy.build.builder import BuiltPlan, build_plan
from vggt_deploy.build.check import check_graph, require_sound
from vggt_deploy.build.expect import expected_attentions, expected_linears
from vggt_deploy.build.profiles import DeviceProfile, load_profile
from vggt_deploy.build.settings import (
    BuildSettings,
    check_artifact,
    check_runtime,
    choose_frames,
    dotted,
    make_settings,
)
from vggt_deploy.engines.device import CudaDevice, cuda_device
from vggt_deploy.engines.kernels import (
    float_linears,
    parse_inspector,
    parse_layer_record,
    prove,
)
from vggt_deploy.engines.onnx_weights import packed_bytes
from vggt_deploy.engines.tensorrt.library import Library, load_library
from vggt_deploy.errors import ProofError, RuntimeUnavailableError, UsageError
from vggt_deploy.manifest import SCHEMA, hash_file, now, read_manifest, write_manifest
from vggt_deploy.progress import Progress, StageClock, silent
from vggt_deploy.records import EngineRecord, FileRecord, Manifest, ProofRecord

ENGINE_NAME = "model.engine"
WEIGHTS_NAME = "weights.bin"  # as `export` names it
# Kernels: TensorRT-RTX stores 55 MB of them for each profile of VGGT-1B.
_KERNEL_BYTES = 64 * 2**20
_NAMED = 5  # layers in a message


@dataclass(frozen=True)
class BuildResult:
    """The engine folder, and where the time went (`seconds` by stage)."""

    folder: Path
    manifest: Manifest
    seconds: dict[str, float]


def build(
    artifact: Path,
    *,
    runtime: str,
    device: str,
    output_dir: Path,
    strip: bool = False,
    accept_float: bool = False,
    frames: Sequence[tuple[int, int, int]] | None = None,
    timing_cache_dir: Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> BuildResult:
    """Build an engine from an artifact and write it as a folder that `run` opens.

    runtime: "tensorrt" (on the device itself) or "tensorrt-rtx" (on any machine). device: the name
    of a shipped device profile, or the path of one. frames: (min, opt, max) of each optimization
    profile, in place of the device profile's. strip: leave the weights out of the plan; the folder
    then also holds the graph and its weights, from which a session puts them back. accept_float:
    write an engine even if GEMMs that the scheme promises in integers are float, or attention is
    not fused; the manifest says so.

    Raises:
        UsageError: artifact, device profile and runtime do not fit each other.
        RuntimeUnavailableError: TensorRT is not installed, or has no GPU.
        BuildError: the graph, the profile or the machine does not allow it; ProofError: the engine
            does not compute as promised. Nothing is left behind.
        ArtifactError: the artifact was changed, or the folder is in use, not empty, or disk full.
    """
    report = progress or silent
    clock = StageClock()
    artifact = Path(artifact)
    report("hashes", 0, 0)
    manifest = read_manifest(artifact)
    _check_kind(artifact, manifest)
    clock.lap("hashes")
    profile = load_profile(device)
    check_artifact(profile, manifest)
    ranges, notes = choose_frames(profile, manifest.frames, frames)
    library = _library(runtime, profile)
    _check_timing_cache(library, profile, timing_cache_dir)
    gpu = cuda_device()
    settings = make_settings(
        profile,
        ranges,
        library,
        gpu,
        strip=strip,
        timing_cache=_timing_file(library, gpu, profile, timing_cache_dir),
    )
    job = _Job(artifact, manifest, profile, library, gpu, settings, accept_float, notes)
    report("check", 0, 0)
    require_sound(
        check_graph(
            job.graph,
            runtime=library.runtime,
            version=library.version,
            dynamic_profile=bool(ranges),
        )
    )
    clock.lap("check")
    with writing(output_dir, overwrite=overwrite, needed_bytes=_estimate(job)) as folder:
        made = _write_engine(job, folder, report, clock)
    return BuildResult(Path(output_dir), made, clock.seconds)


@dataclass(frozen=True)
class _Job:
    """What was asked, resolved."""

    artifact: Path
    manifest: Manifest
    profile: DeviceProfile
    library: Library
    gpu: CudaDevice | str
    settings: BuildSettings
    accept_float: bool
    notes: tuple[str, ...]

    @property
    def graph(self) -> Path:
        return self.artifact / self.manifest.graphs["tensorrt"].file


def _check_kind(artifact: Path, manifest: Manifest) -> None:
    if manifest.kind != "onnx":
        raise UsageError(
            f"{artifact} is an engine already",
            "give the folder that `vggt-deploy export` wrote",
        )
    if "tensorrt" not in manifest.graphs:
        raise UsageError(
            f"{artifact} ({manifest.variant}) has no graph for TensorRT: it has no kernels for "
            f"{manifest.activations} activations",
            "export with --activations static and --calibrate FOLDER, or with float activations",
        )


def _library(runtime: str, profile: DeviceProfile) -> Library:
    """The runtime's library. Where it is missing, a device profile that is not for it is told
    first: nobody should install TensorRT to learn that.
    """
    try:
        return load_library(runtime)
    except RuntimeUnavailableError:
        check_runtime(profile, runtime)
        raise


def _check_timing_cache(library: Library, profile: DeviceProfile, folder: Path | None) -> None:
    if folder is None:
        return
    if library.is_rtx:
        raise UsageError(
            "TensorRT-RTX has no timing cache: it times kernels on the card, when the engine runs",
            "leave --timing-cache out",
        )
    if not profile.timing_cache:
        raise UsageError(
            f"the device profile {profile.name} keeps no kernel timings",
            "write timing_cache = true into it, or leave --timing-cache out",
        )


def _timing_file(
    library: Library, gpu: CudaDevice | str, profile: DeviceProfile, folder: Path | None
) -> Path | None:
    if library.is_rtx or isinstance(gpu, str):
        return None
    level = profile.optimization_level
    return timing.cache_file(folder or timing.default_folder(), library, gpu, level)


def _estimate(job: _Job) -> int:
    """Bytes that the folder needs at most: every weight once, or, stripped, beside the plan."""
    weights = job.manifest.files[WEIGHTS_NAME].bytes
    kernels = _KERNEL_BYTES * max(len(job.settings.profiles), 1)
    return weights + kernels


def _write_engine(job: _Job, folder: Path, report: Progress, clock: StageClock) -> Manifest:
    plan = folder / ENGINE_NAME
    built = build_plan(job.library, job.graph, job.settings, plan, progress=report)
    files = {ENGINE_NAME: built.file}
    clock.lap("build")
    if job.settings.strip:
        report("weights", 0, 0)
        for name in (job.graph.name, WEIGHTS_NAME):
            shutil.copyfile(job.artifact / name, folder / name)
            files[name] = FileRecord((folder / name).stat().st_size, hash_file(folder / name))
        clock.lap("weights")
    report("proof", 0, 0)
    proof = _prove(job, built)
    broken = broken_promises(job.manifest, proof)
    if broken and not job.accept_float:
        raise ProofError(
            f"the engine was built but does not compute as {job.manifest.variant} promises:\n    "
            + "\n    ".join(broken),
            "report the layers; accept_float (--accept-float) writes the engine all the same, and "
            "its manifest says so",
        )
    notes = (*job.notes, *(f"accepted: {line}" for line in broken))
    manifest = _manifest(job, built, proof, files, notes)
    write_manifest(folder, manifest)
    clock.lap("proof")
    return manifest


def _prove(job: _Job, built: BuiltPlan) -> ProofRecord:
    read = parse_layer_record if built.layers_source == "builder layer record" else parse_inspector
    return prove(
        read(built.layers),
        expected_linears(job.graph, job.manifest.frames.opt),
        expected_attentions(job.graph),
        built.layers_source,
    )


def broken_promises(manifest: Manifest, proof: ProofRecord) -> tuple[str, ...]:
    """What a user of this scheme counts on and the engine does not do, in words.

    Static activations promise Int8 x Int8 in every quantized Linear; a Linear that was not found
    ("unseen") is not proven, and so counts as broken. Weights alone promise that the plan does not
    hold them as floats; what TensorRT 10's inspector tells of them is too little for more.

    Attention in FP16 or BF16 fuses (one kernel, nothing of the size tokens x tokens in memory); in
    FP32 TensorRT has no kernel for it, so a graph in FP32 promises nothing.
    """
    lines = []
    if manifest.activations == "static":
        others = float_linears(proof)
        lines += _listed(
            f"{len(others)} of {len(proof.linears)} Linears have no Int8 x Int8 product",
            [f"{name} ({computes})" for name, computes in others.items()],
        )
    else:
        gone = [n for n, one in proof.linears.items() if one.computes == "float"]
        lines += _listed(
            f"{len(gone)} of {len(proof.linears)} Linears have no integers in the engine", gone
        )
    lines += _listed(
        f"{len(proof.half_unfused)} of {proof.attentions_half} attentions in "
        f"{manifest.precision} are not fused",
        list(proof.half_unfused),
    )
    return tuple(lines)


def _listed(what: str, names: Sequence[str]) -> list[str]:
    if not names:
        return []
    more = f", and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return [f"{what}: {', '.join(names[:_NAMED])}{more}"]


def _manifest(
    job: _Job,
    built: BuiltPlan,
    proof: ProofRecord,
    files: dict[str, FileRecord],
    notes: tuple[str, ...],
) -> Manifest:
    source, settings, library = job.manifest, job.settings, job.library
    ranges = settings.profiles or (source.frames,)
    capabilities = tuple(dotted(target) for target in settings.targets)
    if not library.is_rtx and isinstance(job.gpu, CudaDevice):
        capabilities = (job.gpu.compute_capability,)
    engine = EngineRecord(
        file=ENGINE_NAME,
        runtime=library.runtime,
        runtime_version=library.version_text,
        onnx_sha256=source.files[job.graph.name].sha256,
        weights_sha256=source.files[WEIGHTS_NAME].sha256,
        device=job.profile.name,
        device_profile=job.profile.text,
        compute_capabilities=capabilities,
        profiles=ranges,
        flags=built.flags,
        tf32=settings.tf32,
        optimization_level=settings.optimization_level,
        hardware_compatibility=settings.hardware_compatibility,
        workspace_bytes=settings.workspace_bytes,
        stripped=settings.strip,
        timing_cache=None if settings.timing_cache is None else settings.timing_cache.name,
        build_seconds=built.seconds,
        peak_rss_bytes=built.peak_rss_bytes,
        weights_bytes=built.weights_bytes,
        activation_bytes=built.activation_bytes,
        built_on=_built_on(job.gpu),
        proof=proof,
        packed_bytes=packed_bytes(job.graph),
    )
    frames = dataclasses.replace(source.frames, min=ranges[0].min, max=ranges[-1].max)
    frames = dataclasses.replace(frames, opt=min(max(frames.opt, frames.min), frames.max))
    return dataclasses.replace(
        source,
        schema=SCHEMA,
        tool_version=vggt_deploy.__version__,
        kind="engine",
        created=now(),
        frames=frames,
        graphs={},
        files=files,
        notes=(*source.notes, *notes),
        engine=engine,
    )


def _built_on(gpu: CudaDevice | str) -> dict[str, str]:
    here = {"os": platform.system(), "machine": platform.machine()}
    if isinstance(gpu, str):
        return {"gpu": "none", **here}
    return {
        "gpu": gpu.name,
        "compute_capability": gpu.compute_capability,
        "driver": gpu.driver_release or "unknown",
        "cuda": ".".join(map(str, gpu.driver_cuda)),
        **here,
    }
