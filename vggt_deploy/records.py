"""What an artifact's manifest holds, as frozen dataclasses; `manifest` reads and writes them.

The JSON is these classes, field by field. A field is added only together with a higher
`manifest.SCHEMA`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class ModelRecord:
    """Where the weights came from: the spec as given, and what it resolved to."""

    spec: str
    config: str
    revision: str | None = None
    sha256: str | None = None
    licence: str | None = None


@dataclass(frozen=True)
class FramesRange:
    """The frame counts that an artifact accepts: `min..max`, tuned for `opt`."""

    min: int
    opt: int
    max: int


@dataclass(frozen=True)
class GraphRecord:
    """One graph file and the session settings it needs to run as meant."""

    file: str
    opset: int
    session_options: dict[str, str] = dataclasses.field(default_factory=dict)
    disabled_optimizers: tuple[str, ...] = ()


@dataclass(frozen=True)
class LayerSummary:
    """The quantized layers (name -> format label), and the patterns that chose them."""

    quantized: dict[str, str]
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    sensitive: tuple[str, ...] = ()


@dataclass(frozen=True)
class CalibrationRecord:
    """Where the scales of static activations come from.

    method: absmax, percentile or mse, with its parameter in words ("percentile 99.99")
    statistics_sha256: of the statistics file they were computed from, which the artifact holds;
        None where the network was changed first, or trained: nothing else could use them
    images: file name -> SHA-256 of the pictures that were seen
    scales: layer -> scale of its input (per tensor, symmetric)
    """

    method: str
    statistics_sha256: str | None
    images: dict[str, str]
    scales: dict[str, float]


@dataclass(frozen=True)
class TreatmentRecord:
    """What was done so that the same bits lose less; see `quantize.treatment`.

    label: its words, as in the artifact's label ("w=mse+gptq"); made_by: "prepare", "qat", or
        "calibrate" where only the choice of static ranges differs
    choices: what a search decided (the exponents of smoothing, ...)
    images: file name -> SHA-256 of the pictures that were looked at
    """

    label: str
    made_by: str
    choices: dict[str, Any] = dataclasses.field(default_factory=dict)
    images: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class LinearRecord:
    """One quantized Linear in an engine.

    computes: what its GEMM multiplies: "int8" (Int8 x Int8), "int8-weight", "int4-weight" (integers
        turned to float inside the kernel), "int8-stored", "int4-stored" (turned to float by another
        kernel), "float", or "unseen" (not recognized); see `engines.kernels`
    applications: how many GEMMs of a run use the weight (camera head: four)
    rows: of the left operand, summed over the applications, at the typical frame count
    """

    computes: str
    outputs: int
    inputs: int
    applications: int
    rows: int
    weight_bytes: int

    @property
    def flops(self) -> int:
        """Floating-point or integer operations of a run: 2 N K rows."""
        return 2 * self.outputs * self.inputs * self.rows


@dataclass(frozen=True)
class ProofRecord:
    """What an engine computes in, read from its builder or its inspector.

    source: "builder layer record" or "engine inspector"
    linears: every Linear that the scheme quantizes
    attentions: attention blocks of the graph; attentions_fused: those with both products and the
        softmax in one kernel
    attentions_half: those in FP16 or BF16, for which TensorRT has fused kernels; half_unfused: the
        names of those that have none all the same
    """

    source: str
    linears: dict[str, LinearRecord]
    attentions: int
    attentions_fused: int
    attentions_half: int = 0
    half_unfused: tuple[str, ...] = ()


@dataclass(frozen=True)
class EngineRecord:
    """A serialized engine ("plan") and how it was built. Enum members are recorded by name.

    runtime_version: of the TensorRT that built it; four numbers
    onnx_sha256, weights_sha256: of the graph and the weights file it was built from
    device: name of the device profile; device_profile: its text
    compute_capabilities: "8.9"; the device's own for TensorRT, the targets for TensorRT-RTX
    profiles: the frame counts of each optimization profile
    workspace_bytes: None leaves it to TensorRT (all of the device's memory)
    weights_bytes: of the weights inside the plan, as the builder says, or None
    packed_bytes: of the weights in the graph that it was built from
    activation_bytes: device memory for activations per profile, or None where only a GPU tells
    built_on: gpu, driver, cuda, os, machine of the building machine, as far as it has them
    """

    file: str
    runtime: Literal["tensorrt", "tensorrt-rtx"]
    runtime_version: str
    onnx_sha256: str
    weights_sha256: str
    device: str
    device_profile: str
    compute_capabilities: tuple[str, ...]
    profiles: tuple[FramesRange, ...]
    flags: tuple[str, ...]
    tf32: bool
    optimization_level: int
    hardware_compatibility: str
    workspace_bytes: int | None
    stripped: bool
    timing_cache: str | None
    build_seconds: float
    peak_rss_bytes: int
    weights_bytes: int | None
    activation_bytes: tuple[int, ...] | None
    built_on: dict[str, str]
    proof: ProofRecord
    packed_bytes: int | None = None


@dataclass(frozen=True)
class FileRecord:
    """Size and SHA-256 of one file of the artifact."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The artifact, described. `graphs` is keyed by target ("onnxruntime", "tensorrt").

    `files` holds every file of the folder except the manifest itself. `outputs` are tensor names.
    kind "onnx": what `export` writes. kind "engine": what `build` writes; `graphs` is empty,
    `engine` says the rest, and the other fields are those of the artifact it was built from.
    """

    schema: int
    tool_version: str
    kind: Literal["onnx", "engine"]
    created: str
    model: ModelRecord
    scheme: str
    activations: str
    precision: str
    height: int
    width: int
    frames: FramesRange
    outputs: tuple[str, ...]
    graphs: dict[str, GraphRecord]
    layers: LayerSummary
    files: dict[str, FileRecord]
    versions: dict[str, str]
    verification: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()
    calibration: CalibrationRecord | None = None
    engine: EngineRecord | None = None
    treatment: TreatmentRecord | None = None

    @property
    def variant(self) -> str:
        """Scheme, activations, treatment: `int8_pc_sym`, `int8_pc_sym+dynamic+smooth`."""
        mode = "" if self.activations == "float" else f"+{self.activations}"
        words = "" if self.treatment is None or not self.treatment.label else self.treatment.label
        if self.treatment is not None and self.treatment.made_by == "qat":
            words = f"{words}+qat" if words else "qat"
        return f"{self.scheme}{mode}+{words}" if words else f"{self.scheme}{mode}"

    @property
    def bytes_total(self) -> int:
        """Bytes on disk of the artifact without its manifest."""
        return sum(record.bytes for record in self.files.values())
