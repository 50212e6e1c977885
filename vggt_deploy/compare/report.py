"""The result of a comparison, as data, and its JSON.

`comparison_report.json` is the dataclasses below, field by field, under a schema number; a field is
added only together with a higher number. None means: not measured, and a note or the row's error
says why.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from vggt_deploy.compare.environment import Environment
from vggt_deploy.compare.geometry import GeometryMetrics
from vggt_deploy.compare.jobs import write_json
from vggt_deploy.compare.latency import Latency
from vggt_deploy.compare.metrics import TensorMetrics
from vggt_deploy.errors import CompareError

SCHEMA = 2
REPORT_NAME = "comparison_report.json"
SUMMARY_NAME = "comparison_summary.txt"
PLOTS_NAME = "comparison_plots.png"

# "not run": the runtime or the device that the variant needs is not here.
Status = Literal["done", "failed", "refused", "not run"]
DiskKind = Literal["artifact folder", "engine folder", "checkpoint file", "state dict saved"]


@dataclass(frozen=True)
class Failure:
    """Why a row has no numbers. `tail`: the last lines that the process wrote.

    unavailable: a runtime or device is not here; nothing went wrong with the variant itself.
    """

    stage: Literal["scheme table", "calibrate", "export", "build", "measure", "accuracy"]
    message: str
    fix: str | None = None
    tail: tuple[str, ...] = ()
    unavailable: bool = False

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Failure:
        """The inverse of `dataclasses.asdict`."""
        return cls(**{**data, "tail": tuple(data["tail"])})


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

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Measured:
        """The inverse of `dataclasses.asdict`."""
        parts = {
            "latency": Latency.from_json(data["latency"]),
            "notes": tuple(data["notes"]),
            "gpu": GpuMeasure(**data["gpu"]) if data["gpu"] else None,
        }
        return cls(**{**data, **parts})


@dataclass(frozen=True)
class Row:
    """One variant. `failure` is set unless `status` is "done"; `build` is that of an engine.

    `support` is what the runtime makes of the scheme, by the scheme table: "real", "storage: ...".
    """

    runtime: str
    scheme: str
    activations: str
    status: Status
    support: str
    failure: Failure | None = None
    export: ExportMeasure | None = None
    measured: Measured | None = None
    accuracy: dict[str, TensorMetrics] = field(default_factory=dict)
    geometry: GeometryMetrics | None = None
    command: tuple[str, ...] = ()
    build: BuildMeasure | None = None

    @property
    def disk_bytes(self) -> int | None:
        """What it takes on disk; of an engine known before it has run."""
        if self.measured is not None:
            return self.measured.disk_bytes
        return self.build.bytes_total if self.build is not None else None

    @property
    def label(self) -> str:
        """As `Variant.label`."""
        plus = "" if self.activations == "float" else f"+{self.activations}"
        return f"{self.runtime}/{self.scheme}{plus}"

    @property
    def finite(self) -> bool:
        """No output holds NaN or an infinite value."""
        return all(metrics.finite for metrics in self.accuracy.values())

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Row:
        """The inverse of `dataclasses.asdict`."""
        accuracy = {k: TensorMetrics.from_json(v) for k, v in data["accuracy"].items()}
        return cls(
            **{
                **data,
                "failure": Failure.from_json(data["failure"]) if data["failure"] else None,
                "export": ExportMeasure(**data["export"]) if data["export"] else None,
                "measured": Measured.from_json(data["measured"]) if data["measured"] else None,
                "accuracy": accuracy,
                "geometry": GeometryMetrics.from_json(data["geometry"])
                if data["geometry"]
                else None,
                "command": tuple(data["command"]),
                "build": BuildMeasure.from_json(data["build"]) if data["build"] else None,
            }
        )


@dataclass(frozen=True)
class Ratios:
    """A row against the references of the same run; None where one side was not measured.

    compression   bytes of the same weights in FP32 / bytes of the artifact. The FP32 side is what
                  PyTorch FP32 holds in memory for the heads compared, so that a checkpoint with a
                  head nobody asked for flatters no scheme
    speedup_*     median latency of the FP32 variant / median latency of this one: above 1 is faster
    """

    compression: float | None
    speedup_torch_fp32: float | None
    speedup_onnxruntime_fp32: float | None


@dataclass(frozen=True)
class Recommendation:
    """One piece of advice: `label` is None where nothing can honestly be recommended."""

    purpose: Literal["production", "edge", "best accuracy", "fastest here"]
    label: str | None
    reason: str


@dataclass(frozen=True)
class ComparisonReport:
    """Everything one comparison found out. `question` is what was asked, as in question.json."""

    schema: int
    created: str
    folder: Path
    question: dict[str, Any]
    environment: Environment
    command: tuple[str, ...]
    rows: tuple[Row, ...]
    recommendations: tuple[Recommendation, ...]
    notes: tuple[str, ...]

    @property
    def reference(self) -> Row:
        """PyTorch FP32; always measured, or there is no report."""
        return self.rows[0]

    @property
    def random_weights(self) -> bool:
        """Whether the weights are random numbers, so that accuracy means nothing."""
        return bool(self.question["model"]["kind"] == "random")

    @property
    def pictures(self) -> list[str]:
        """Names of the pictures, in order."""
        return [image["name"] for image in self.question["images"]["files"]]

    def row(self, label: str) -> Row | None:
        """The row of that label, if it was asked for."""
        return next((row for row in self.rows if row.label == label), None)

    def ratios(self, row: Row) -> Ratios:
        """Size and speed of a row against FP32 in the same run."""
        return ratios(row, self.rows)

    def to_json(self) -> dict[str, Any]:
        """The content of comparison_report.json; the ratios are written out for each row."""
        data = asdict(self)
        data["folder"] = str(self.folder)
        for row, entry in zip(self.rows, data["rows"], strict=True):
            entry["label"] = row.label
            entry["ratios"] = asdict(self.ratios(row))
        return data


def ratios(row: Row, rows: tuple[Row, ...]) -> Ratios:
    """Size and speed of a row against the FP32 rows among `rows`; the first is PyTorch FP32."""
    measured, reference = row.measured, rows[0].measured
    onnx = next((r.measured for r in rows if r.label == "onnxruntime/fp32"), None)
    compression = None
    if row.runtime != "torch" and row.disk_bytes and reference and reference.held_bytes:
        compression = reference.held_bytes / row.disk_bytes
    if measured is None or reference is None:
        return Ratios(compression, None, None)
    median = measured.latency.median_ms
    return Ratios(
        compression=compression,
        speedup_torch_fp32=reference.latency.median_ms / median,
        speedup_onnxruntime_fp32=onnx.latency.median_ms / median if onnx is not None else None,
    )


def write_report(report: ComparisonReport) -> Path:
    """Write comparison_report.json into the report's folder."""
    path = report.folder / REPORT_NAME
    write_json(path, report.to_json())
    return path


def read_report(path: Path) -> ComparisonReport:
    """Read a comparison_report.json, or the folder that holds one."""
    path = path / REPORT_NAME if path.is_dir() else path
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CompareError(f"can't read {path} ({error.strerror})", "give a report") from error
    except ValueError as error:
        raise CompareError(f"{path} is not JSON: {error}", "run compare again") from error
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        found = data.get("schema") if isinstance(data, dict) else None
        raise CompareError(
            f"{path} has schema {found!r}, this version reads {SCHEMA}",
            "read it with the version that wrote it, or run compare again",
        )
    try:
        return _decode(data, path.parent)
    except (KeyError, TypeError) as error:
        raise CompareError(f"{path} is no whole report: {error}", "run compare again") from error


def _decode(data: dict[str, Any], folder: Path) -> ComparisonReport:
    rows = []
    for entry in data["rows"]:
        rows.append(Row.from_json({k: v for k, v in entry.items() if k not in ("label", "ratios")}))
    flags = tuple(data["environment"]["cpu_flags"])
    return ComparisonReport(
        schema=data["schema"],
        created=data["created"],
        folder=folder,
        question=data["question"],
        environment=Environment(**{**data["environment"], "cpu_flags": flags}),
        command=tuple(data["command"]),
        rows=tuple(rows),
        recommendations=tuple(Recommendation(**r) for r in data["recommendations"]),
        notes=tuple(data["notes"]),
    )
