"""Stands in for `vggt_deploy.compare.worker` in tests of the orchestration.

`fake_worker.py PLAN JOB FILE`: PLAN is JSON, {label: behaviour}; a label that is not in it works
well. Called as the real one is, it answers through the same files; no model is involved. What a
variant "computes" is the same smooth scene each time, plus noise that depends on its scheme.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import signal
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from vggt_deploy.compare.processes import die_with_parent

NOISE = {"fp32": 0.0, "fp16": 1e-4, "int8_pc_sym": 1e-3, "int4_g128": 1e-2}


def scene(frames: int, height: int, width: int) -> dict[str, np.ndarray]:
    """Outputs as the model names and shapes them."""
    y, x = np.mgrid[0:height, 0:width] / width
    depth = np.stack([2.0 + x + 0.5 * np.sin(4 * y + i) for i in range(frames)])[..., None]
    pose = np.zeros((frames, 9))
    pose[:, 0] = np.arange(frames) * 0.3
    pose[:, 6] = 1.0
    pose[:, 7:] = 1.0
    rays = np.stack([x - 0.5, y - 0.5, np.ones_like(x)], -1)
    outputs = {
        "pose_enc": pose,
        "depth": depth,
        "depth_conf": 1.0 + depth[..., 0],
        "world_points": depth * rays,
        "world_points_conf": 1.0 + depth[..., 0],
    }
    return {name: value[None].astype(np.float32) for name, value in outputs.items()}


def answer(path: str, result: dict[str, Any]) -> None:
    Path(path).write_text(json.dumps({"ok": result}))


def identify(job: dict[str, Any]) -> None:
    result = {
        "config": "vggt-tiny",
        "kind": "file",
        "revision": None,
        "sha256": "0" * 64,
        "licence": None,
        "checkpoint_bytes": 4_000_000,
        "gpu": os.environ.get("FAKE_GPU") if job["gpu"] else None,
    }
    answer(job["answer"], result)


def calibrate(job: dict[str, Any]) -> None:
    folder = Path(job["folder"])
    folder.mkdir(parents=True)
    (folder / "calibration.json").write_text(json.dumps({"images": job["images"]}))
    answer(job["answer"], {"seconds": 0.1, "images": 3})


def export(job: dict[str, Any]) -> None:
    folder = Path(job["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    size = {"fp32": 4_000_000, "int8_pc_sym": 1_000_000}.get(job["scheme"], 600_000)
    (folder / "weights.bin").write_bytes(bytes(size))
    result = {"seconds": 0.5, "peak_rss_bytes": 10**8, "verified": job["verify"], "steps": {}}
    answer(job["answer"], result)


def build(job: dict[str, Any]) -> None:
    assert (Path(job["artifact"]) / "weights.bin").is_file()
    folder = Path(job["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.engine").write_bytes(bytes(500_000))
    result = {
        "seconds": 4.5,
        "builder_seconds": 4.0,
        "peak_rss_bytes": 10**9,
        "runtime_version": "1.7.1.116",
        "plan_bytes": 500_000,
        "weights_bytes": 400_000,
        "packed_bytes": 390_000,
        "shares": {"int8": 0.75, "float": 0.25},
        "attentions": 88,
        "attentions_fused": 72,
        "attentions_half": 72,
        "half_unfused": 0,
        "notes": [f"built for {job['device']}"],
    }
    answer(job["answer"], result)


GPU = {
    "device": "A Card, compute capability 8.9",
    "n": 5,
    "network_ms": 7.25,
    "network_min_ms": 7.0,
    "to_device_ms": 0.5,
    "to_host_ms": 0.25,
    "engine_bytes": 900_000,
    "buffer_bytes": 100_000,
}


def compute(job: dict[str, Any], images: str) -> dict[str, np.ndarray]:
    """What the variant makes of one scene, whichever job runs it."""
    pixels = np.load(images)
    frames, _, height, width = pixels.shape
    arrays = scene(frames, height, width)
    seed = [zlib.crc32(job["scheme"].encode()), zlib.crc32(pixels.tobytes())]
    rng = np.random.default_rng(seed)
    for array in arrays.values():
        noise = NOISE.get(job["scheme"], 5e-3)
        array += (noise * rng.standard_normal(array.shape)).astype(np.float32)
    return arrays


def write_outputs(job: dict[str, Any], behaviour: str) -> None:
    """Of all scenes of the job; of several only the last one goes wrong."""
    asked = [(job["images"], job["arrays"]), *job["further"]]
    for number, (images, path) in enumerate(asked):
        arrays = compute(job, images)
        if number == len(asked) - 1:
            if behaviour == "nan":
                arrays["depth"][0, 0, 3, 5, 0] = np.nan
            if behaviour == "nan pose":
                arrays["pose_enc"][0, 1] = np.nan
            if behaviour == "wrong shape":
                arrays["depth"] = arrays["depth"][:, :, 1:]
        if number == len(asked) - 1 and behaviour == "truncated outputs":
            Path(path).write_bytes(b"PK\x03\x04 not a whole archive")
        else:
            np.savez(path, **arrays)


def measure(job: dict[str, Any], behaviour: str) -> None:
    assert job["size_probe"] is None or Path(job["size_probe"]).parent.is_dir()
    write_outputs(job, behaviour)
    ms = {"fp32": 100.0, "int8_pc_sym": 40.0}.get(job["scheme"], 150.0)
    samples = [ms + i for i in range(job["repeats"])]
    latency = {
        "samples_ms": samples,
        "warmup_ms": [2 * ms] * job["warmup"],
        "n": len(samples),
        "median_ms": float(np.median(samples)),
        "p90_ms": float(np.percentile(samples, 90)),
        "min_ms": ms,
        "mean_ms": float(np.mean(samples)),
        "std_ms": None,
        "iqr_ms": 1.0,
    }
    answer(
        job["answer"],
        {
            "latency": latency,
            "load_ms": 12.0,
            "peak_rss_bytes": 5 * 10**7,
            "peak_rss_source": "VmHWM",
            "libraries_rss_bytes": 3 * 10**7,
            "held_bytes": 4_000_000 if job["runtime"] == "torch" else None,
            "saved_bytes": None,
            "others_cpus": 0.0,
            "notes": [],
            "gpu": GPU if job["runtime"].startswith("tensorrt") else None,
            "machine": os.environ.get("FAKE_MACHINE", "A CPU, 4 CPUs"),
        },
    )


def eat_memory() -> None:
    """More than the process may have, as a variant that is too large for its machine."""
    resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
    hoard = []
    while True:
        hoard.append(np.ones(2**24))


def leave_half(job: dict[str, Any]) -> None:
    """What a process has written when it is killed: one scene of several, part of an artifact."""
    if "arrays" in job:
        np.savez(job["arrays"], **compute(job, job["images"]))
        arrays = Path(job["further"][-1][1] if job["further"] else job["arrays"])
        arrays.with_name(f".{arrays.name}.tmp").write_bytes(b"PK half of an archive")
    else:
        folder = Path(job["folder"])
        partial = folder.with_name(f".{folder.name}.0123abcd.partial")
        partial.mkdir(parents=True, exist_ok=True)
        (partial / "weights.bin").write_bytes(bytes(1000))


def hang_once(plan_path: str, job: dict[str, Any]) -> None:
    """The first time for ever; says in PLAN.hung which process it belongs to."""
    mark = Path(plan_path).with_suffix(".hung")
    if not mark.exists():
        mark.write_text(str(job["parent"]))
        time.sleep(600)


def misbehave(behaviour: str, job: dict[str, Any]) -> None:
    """The ways to end that a process has. Returns for those that only spoil the result."""
    print(f"about to: {behaviour}", file=sys.stderr, flush=True)
    match behaviour:
        case "crash":
            ctypes.string_at(0)
        case "vanish":  # no exception, no clean-up, and a code that says all went well
            leave_half(job)
            os._exit(0)
        case "eat memory":
            eat_memory()
        case "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            time.sleep(600)
        case "exit 3":
            sys.exit(3)
        case "no space":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        case "silent":
            sys.exit(0)
        case "garbage":
            Path(job["answer"]).write_text("{ not json")
            sys.exit(0)
        case "wrong answer":
            answer(job["answer"], {"latency": "fast"})
            sys.exit(0)
        case "deploy error":
            error = {"message": "no such thing", "fix": "make one"}
            Path(job["answer"]).write_text(json.dumps({"error": error}))
            sys.exit(1)
        case "no device":
            error = {"message": "no CUDA device: none", "fix": "buy one", "unavailable": True}
            Path(job["answer"]).write_text(json.dumps({"error": error}))
            sys.exit(1)
        case "missing library":
            import a_library_that_nobody_has  # noqa: F401


def job_label(kind: str, job: dict[str, Any]) -> str:
    """`model`, `images`, `torch/fp32`, `export/int8_pc_sym+static`, `build/tensorrt/fp16`."""
    if kind == "build":
        scheme = Path(job["folder"]).name.removeprefix(f"{job['runtime']}-")
        return f"build/{job['runtime']}/{scheme}"
    if kind in ("identify", "calibrate"):
        return {"identify": "model", "calibrate": "images"}[kind]
    static = "static" in (job["label"] if kind == "export" else job["activations"]).split("+")
    # Every variant with static activations, and no other, is told where the statistics are.
    assert static == (job["calibration"] is not None)
    assert not static or Path(job["calibration"]["statistics"]).is_dir()
    return f"{job.get('runtime', 'export')}/{job['scheme']}{'+static' if static else ''}"


def main() -> None:
    plan_path, kind, job_path = sys.argv[1:]
    plan = json.loads(Path(plan_path).read_text())
    job = json.loads(Path(job_path).read_text())
    die_with_parent(job["parent"])
    with Path(plan_path).with_suffix(".calls").open("a") as calls:
        label = job_label(kind, job)
        calls.write(f"{kind} {label}\n")
    behaviour = plan.get(label, "")
    if behaviour == "signal parent":  # the whole comparison dies while this variant runs
        leave_half(job)
        os.kill(job["parent"], signal.SIGKILL)
        time.sleep(600)
    if behaviour == "hang once":
        hang_once(plan_path, job)
    misbehave(behaviour, job)
    if kind == "identify":
        identify(job)
    elif kind == "calibrate":
        calibrate(job)
    elif kind == "export":
        export(job)
    elif kind == "build":
        build(job)
    elif kind == "compute":
        write_outputs(job, behaviour)
        answer(job["answer"], {"scenes": 1})
    else:
        measure(job, behaviour)


if __name__ == "__main__":
    main()
