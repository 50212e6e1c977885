"""What is in an artifact or an engine: formats and bytes, what every GEMM computes in, memory.

    inspection = inspect_engine(Path("vggt-1b-h200"))
    inspection.shares["flops"]        # {"int8": 1.0}

Of an engine, what its builder said stands in the manifest; where its TensorRT and a GPU are at
hand, the live engine is asked as well, and must say the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vggt_deploy.engines.kernels import (
    byte_shares,
    expectations,
    flop_shares,
    fused_attentions,
    layer_shares,
    parse_inspector,
    prove,
)
from vggt_deploy.engines.onnx_weights import stored_weights
from vggt_deploy.engines.plan_header import PlanHeader, read_plan_header
from vggt_deploy.errors import DeployError
from vggt_deploy.manifest import read_manifest
from vggt_deploy.records import EngineRecord, FramesRange, Manifest, ProofRecord

OTHER = "other"


@dataclass(frozen=True)
class FormatBytes:
    """The layers of one format, "int8_pc_sym"; "other" is the rest: float weights, biases, tables,
    and of an engine also the convolutions, which its proof does not list.

    layers: how many; 0 for "other", which is not counted. bytes: packed, with scales.
    """

    layers: int
    bytes: int


@dataclass(frozen=True)
class ProfileMemory:
    """Device memory for activations of one optimization profile, None where no GPU told it."""

    frames: FramesRange
    activation_bytes: int | None


@dataclass(frozen=True)
class LiveVerdict:
    """What the inspector of the live engine says.

    differs: Linears for which it says something else than the manifest: name -> (manifest, live)
    """

    shares: dict[str, dict[str, float]]
    attentions_fused: int
    differs: dict[str, tuple[str, str]]


@dataclass(frozen=True)
class Inspection:
    """What `vggt-deploy inspect` shows.

    formats: format -> layers and bytes. layers: quantized layer -> bytes
    shares: "layers", "flops", "bytes" -> verdict of `engines.kernels` -> share in 0..1
    packed_bytes: of the weights as the graph packs them; plan_weights_bytes: as the plan holds them
    live_reason: why the live engine was not asked, None if it was
    """

    folder: str
    manifest: Manifest
    bytes_total: int
    formats: dict[str, FormatBytes]
    layers: dict[str, int]
    header: PlanHeader | None = None
    proof: ProofRecord | None = None
    shares: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    packed_bytes: int | None = None
    plan_weights_bytes: int | None = None
    memory: tuple[ProfileMemory, ...] = ()
    live: LiveVerdict | None = None
    live_reason: str | None = None

    @property
    def weights_ratio(self) -> float | None:
        """Weights in the plan over weights in the graph; 1.0 is each of them once, as packed."""
        if not self.packed_bytes or self.plan_weights_bytes is None:
            return None
        return self.plan_weights_bytes / self.packed_bytes

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values, with the ratio."""
        return {**dataclasses.asdict(self), "weights_ratio": self.weights_ratio}


def inspect_engine(folder: Path, *, progress: Callable[[int], None] | None = None) -> Inspection:
    """Read an artifact of either kind, after checking its hashes; `progress` gets bytes read.

    Raises:
        ArtifactError: it is missing, changed, or damaged.
    """
    folder = Path(folder)
    manifest = read_manifest(folder, progress=progress)
    if manifest.engine is None:
        return _inspect_artifact(folder, manifest)
    return _inspect_plan(folder, manifest, manifest.engine)


def _inspect_artifact(folder: Path, manifest: Manifest) -> Inspection:
    """The graph for TensorRT if there is one: it has every weight once, without zero points."""
    target = "tensorrt" if "tensorrt" in manifest.graphs else next(iter(manifest.graphs))
    sizes = {w.name: w.bytes for w in stored_weights(folder / manifest.graphs[target].file)}
    layers = dict.fromkeys(manifest.layers.quantized, 0)
    rest = 0
    for name, size in sizes.items():
        layer = _layer_of(name, layers)
        if layer is None:
            rest += size
        else:
            layers[layer] += size
    return Inspection(
        folder=str(folder),
        manifest=manifest,
        bytes_total=manifest.bytes_total,
        formats=_by_format(manifest, layers, rest),
        layers=layers,
        packed_bytes=sum(sizes.values()),
    )


def _layer_of(weight: str, layers: dict[str, int]) -> str | None:
    """The quantized layer whose integers, scales or zero points `weight` names."""
    layer = weight.rpartition(".")[0]
    return layer if layer in layers else None


def _by_format(manifest: Manifest, layers: dict[str, int], rest: int) -> dict[str, FormatBytes]:
    formats: dict[str, FormatBytes] = {}
    for layer, size in layers.items():
        label = manifest.layers.quantized[layer]
        known = formats.get(label, FormatBytes(0, 0))
        formats[label] = FormatBytes(known.layers + 1, known.bytes + size)
    return {**formats, OTHER: FormatBytes(0, rest)}


def _inspect_plan(folder: Path, manifest: Manifest, record: EngineRecord) -> Inspection:
    proof = record.proof
    layers = {name: linear.weight_bytes for name, linear in proof.linears.items()}
    activations = record.activation_bytes or (None,) * len(record.profiles)
    live, reason = _ask_live_engine(folder, record)
    known = {name: size for name, size in layers.items() if name in manifest.layers.quantized}
    rest = (record.packed_bytes or 0) - sum(known.values())
    formats = _by_format(manifest, known, max(rest, 0))
    if record.packed_bytes is None:
        del formats[OTHER]
    return Inspection(
        folder=str(folder),
        manifest=manifest,
        bytes_total=manifest.bytes_total,
        formats=formats,
        layers=layers,
        header=read_plan_header(folder / record.file),
        proof=proof,
        shares=shares_of(proof),
        packed_bytes=record.packed_bytes,
        plan_weights_bytes=record.weights_bytes,
        memory=tuple(
            ProfileMemory(frames, size)
            for frames, size in zip(record.profiles, activations, strict=True)
        ),
        live=live,
        live_reason=reason,
    )


def shares_of(proof: ProofRecord) -> dict[str, dict[str, float]]:
    """The three shares of a proof: by layers, operations and packed bytes."""
    return {
        "layers": layer_shares(proof),
        "flops": flop_shares(proof),
        "bytes": byte_shares(proof),
    }


def _ask_live_engine(folder: Path, record: EngineRecord) -> tuple[LiveVerdict | None, str | None]:
    """The inspector's verdict, or why there is none. It adds to the manifest's, so it may fail."""
    from vggt_deploy.engines.tensorrt.inspector import inspector_json

    try:
        layers = parse_inspector(inspector_json(folder, record))
    except DeployError as error:
        return None, error.message
    proof = prove(layers, expectations(record.proof), (), "engine inspector")
    said = {name: linear.computes for name, linear in record.proof.linears.items()}
    found = {name: linear.computes for name, linear in proof.linears.items()}
    differs = {name: (said[name], found[name]) for name in said if said[name] != found[name]}
    return LiveVerdict(shares_of(proof), fused_attentions(layers), differs), None
