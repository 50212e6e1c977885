"""What one variant cost and why one has no numbers: the records that a row is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from vggt_deploy.compare.latency import Latency

Stage = Literal["scheme table", "calibrate", "prepare", "export", "build", "measure", "accuracy"]
DiskKind = Literal["artifact folder", "engine folder", "checkpoint file", "state dict saved"]


@dataclass(frozen=True)
class Failure:
    """Why a row has no numbers. `tail`: the last lines that the process wrote.

    unavailable: a runtime or device is not here; nothing went wrong with the variant itself.
    """

    stage: Stage
    message: str
    fix: str | None = None
    tail: tuple[str, ...] = ()
    unavailable: bool = False


@dataclass(frozen=True)
class ExportMeasure:
    """Making the artifact, in a process of its own: whole-process seconds and peak memory.

    `steps` are the exporter's own timings. `verified`: it compared the graph with PyTorch.
    """

    seconds: float
    peak_rss_bytes: int
    verified: bool
    bytes_total: int
    steps: dict[str, float]


@dataclass(frozen=True)
class BuildMeasure:
    """Building the engine, in a process of its own; what it holds and what it computes in.

    seconds         of the whole build: hashes, checks, TensorRT and the proof
    builder_seconds of which in TensorRT
    plan_bytes      the serialized engine; bytes_total: of its folder
    weights_bytes   of the weights in the plan, as the builder says; None where it does not
    packed_bytes    of the weights in the graph, each once
    shares          what the GEMMs of the quantized Linears compute in -> part of their operations
    attentions_half attention blocks in FP16 or BF16, half_unfused: of which have no fused kernel
    notes           what was accepted knowingly, what was cut off the device profile
    """

    seconds: float
    builder_seconds: float
    peak_rss_bytes: int
    runtime_version: str
    plan_bytes: int
    bytes_total: int
    weights_bytes: int | None
    packed_bytes: int | None
    shares: dict[str, float]
    attentions: int
    attentions_fused: int
    attentions_half: int
    half_unfused: int
    notes: tuple[str, ...] = ()

    @property
    def proof(self) -> str:
        """In words: "int8 100 % of operations, attention fused 72 of 72"."""
        shares = ", ".join(f"{kind} {100 * share:.4g} %" for kind, share in self.shares.items())
        products = f"{shares} of operations" if shares else "no integers"
        if not self.attentions_half:  # TensorRT fuses attention in FP16 and BF16 alone
            return (
                f"{products}, attention in FP32: fused {self.attentions_fused} of {self.attentions}"
            )
        fused = self.attentions_half - self.half_unfused
        return f"{products}, attention fused {fused} of {self.attentions_half}"

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> BuildMeasure:
        """The inverse of `dataclasses.asdict`."""
        return cls(**{**data, "notes": tuple(data["notes"])})


@dataclass(frozen=True)
class GpuMeasure:
    """What only a GPU tells, of an engine. Times between CUDA events, in calls of their own after
    the timed ones: median, milliseconds.

    network_ms      the network alone; network_min_ms its fastest call
    to_device_ms    copying the pictures to the device; to_host_ms the outputs back
    engine_bytes    device memory that loading took; buffer_bytes: activations, inputs and outputs
    """

    device: str
    n: int
    network_ms: float
    network_min_ms: float
    to_device_ms: float
    to_host_ms: float
    engine_bytes: int
    buffer_bytes: int


@dataclass(frozen=True)
class Measured:
    """What one variant cost.

    disk_bytes      what `disk_kind` says, weighed on disk; None for a PyTorch variant with
                    integers, which is never a file: that one has `held_bytes` alone
    held_bytes      PyTorch only: bytes of the parameters and buffers in memory
    load_ms         from nothing in memory to ready to run. PyTorch with a scheme: reading the FP32
                    weights (random ones: making them) and quantizing them; artifacts and engines:
                    checking hashes and opening the session
    peak_rss_bytes  the most memory the process ever had (VmHWM), libraries included
    libraries_rss_bytes  of which were there before loading, with the runtime imported
    others_cpus     CPUs that other processes kept busy during the calls; None: not known here
    gpu             engines only; `latency` is wall clock, end to end, for them too
    """

    latency: Latency
    load_ms: float
    peak_rss_bytes: int
    peak_rss_source: str
    libraries_rss_bytes: int | None
    disk_bytes: int | None
    disk_kind: DiskKind | None
    held_bytes: int | None
    others_cpus: float | None
    notes: tuple[str, ...] = ()
    gpu: GpuMeasure | None = None
