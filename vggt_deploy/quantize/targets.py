"""What a target makes of a scheme: the table behind `vggt-deploy schemes`.

Six levels, because "it runs" hides too much:

    real      the runtime keeps the integers (or the half floats) and has kernels that use them
    storage   integers in memory and on disk; each layer is turned to float before it computes
    builds    the builder accepts it and keeps the type; no engine of it was executed by the authors
    untried   its documentation says so; the authors never built or ran it there
    emulated  the weights are rounded as asked, but held and computed in FP32
    no        refused, with the reason

Measured on ONNX Runtime 1.31 (CPU) and TensorRT-RTX 1.7 (build only); the others by documentation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from vggt_deploy.quantize.plan import LayerInfo, plan, planned_bytes
from vggt_deploy.quantize.schemes import (
    FLOAT_BYTES,
    SCHEMES,
    Activations,
    PerGroup,
    Scheme,
    check_activations,
    takes_activations,
)

Target = Literal["torch", "onnxruntime-cpu", "onnxruntime-cuda", "tensorrt", "tensorrt-rtx"]
Level = Literal["real", "storage", "builds", "untried", "emulated", "no"]

TARGETS: tuple[Target, ...] = get_args(Target)


@dataclass(frozen=True, slots=True)
class Support:
    """How far a target runs a scheme, and why not further (or at what price)."""

    level: Level
    note: str = ""

    @property
    def runs(self) -> bool:
        """Whether the target gives the scheme's numbers at all."""
        return self.level != "no"


@dataclass(frozen=True, slots=True)
class SchemeRow:
    """One line of the table.

    Bytes per weight count scales and zero points, over the Linear layers of VGGT-1B that the scheme
    quantizes by default.
    """

    scheme: str
    activations: Activations
    bits: str
    granularity: str
    symmetric: bool | None
    bytes_per_weight: float
    targets: dict[Target, Support]
    summary: str


def scheme_rows() -> tuple[SchemeRow, ...]:
    """Every scheme with float activations, then with those 8-bit ones that mean something."""
    modes: tuple[Activations, ...] = get_args(Activations)
    return tuple(
        _row(scheme, activations)
        for activations in modes
        for scheme in SCHEMES.values()
        if takes_activations(scheme, activations)
    )


def support(scheme: Scheme, activations: Activations, target: Target) -> Support:
    """How the target runs this variant."""
    check_activations(scheme, activations)
    match target:
        case "torch":
            return _torch(scheme, activations)
        case "onnxruntime-cpu":
            return _onnxruntime_cpu(scheme, activations)
        case "onnxruntime-cuda":
            return _onnxruntime_cuda(scheme, activations)
        case "tensorrt":
            return _tensorrt(scheme, activations)
        case "tensorrt-rtx":
            return _tensorrt_rtx(scheme, activations)


def _torch(scheme: Scheme, activations: Activations) -> Support:
    if not scheme.integer:
        return Support("real")
    if activations != "float":
        return Support("storage", "activations rounded to 8 bit, the product in FP32")
    return Support("storage", "each weight is dequantized when its layer runs")


def _onnxruntime_cpu(scheme: Scheme, activations: Activations) -> Support:
    if scheme.precision == "bf16":
        return Support("no", "the CPU provider has no BF16 kernels for the operators used")
    if scheme.precision == "fp16":
        return Support("emulated", "the file is half as large; held and computed in FP32")
    if not scheme.integer:
        return Support("real")
    if activations == "static":
        return Support("real", "MatMulIntegerToFloat: about four times as fast as an FP32 MatMul")
    if activations == "dynamic":
        return Support("real", "8 bit: DynamicQuantizeMatMul; 4 bit: MatMulNBits, accuracy level 4")
    return Support("real", "MatMulNBits, accuracy level 1: small, not fast (many tokens a pass)")


def _onnxruntime_cuda(scheme: Scheme, activations: Activations) -> Support:
    if not scheme.integer:
        return Support("untried")
    if activations == "dynamic":
        return Support("no", "DynamicQuantizeLinear and accuracy level 4 are CPU kernels")
    if activations == "static":
        return Support("untried", "rounded as asked; by its kernel list the product is in float")
    return Support("untried", "fused where the provider has MatMulNBits")


def _tensorrt(scheme: Scheme, activations: Activations) -> Support:
    if activations == "dynamic":
        return Support("no", "DynamicQuantizeLinear and MatMulInteger are unsupported")
    if not scheme.integer:
        return Support("untried")
    if activations == "static":
        return Support("untried", _with_rank_1(scheme, "INT8 products, proven by every build"))
    if scheme.linear is not None and not scheme.linear.symmetric:
        return Support("untried", "through the exact rank-1 form: zero points are refused")
    if scheme.linear is not None and isinstance(scheme.linear.granularity, PerGroup):
        known = scheme.linear.granularity.size in (64, 128)
        return Support("untried", "" if known else "kernels are known for groups of 64 and 128")
    return Support("untried", "whether the engine keeps 8-bit weights or floats is unproven")


def _tensorrt_rtx(scheme: Scheme, activations: Activations) -> Support:
    if activations == "dynamic":
        return Support("no", "DynamicQuantizeLinear and MatMulInteger are unsupported")
    if activations == "static":
        return Support("builds", _with_rank_1(scheme, "INT8 products, proven by every build"))
    if scheme.linear is not None and not scheme.linear.symmetric:
        return Support("builds", "through the exact rank-1 form: zero points are refused")
    return Support("builds")


def _with_rank_1(scheme: Scheme, note: str) -> str:
    """The note, and what zero points of weights become for the TensorRT family."""
    if scheme.linear is None or scheme.linear.symmetric:
        return note
    return f"{note}; zero points through the exact rank-1 form"


def _row(scheme: Scheme, activations: Activations) -> SchemeRow:
    form = scheme.linear
    if form is None:
        bits: str = scheme.precision
        granularity, symmetric = "-", None
        per_weight = float(FLOAT_BYTES[scheme.precision])
    else:
        bits, granularity, symmetric = str(form.bits), form.granularity.label, form.symmetric
        if scheme.sensitive is not None:
            bits = f"{form.bits} / {scheme.sensitive.bits}"
            granularity += f" / {scheme.sensitive.granularity.label}"
        layers = reference_layers()
        formats = plan(scheme, layers)
        weights = sum(layer.weights for layer in layers if layer.name in formats)
        per_weight = planned_bytes(layers, formats) / weights
    return SchemeRow(
        scheme.name,
        activations,
        bits,
        granularity,
        symmetric,
        per_weight,
        {target: support(scheme, activations, target) for target in TARGETS},
        scheme.summary,
    )


def reference_layers() -> tuple[LayerInfo, ...]:
    """The Linear layers of VGGT-1B's aggregator and camera head.

    Written down so that the table needs no torch; a test compares them with the model.
    """
    layers: list[LayerInfo] = []

    def linear(name: str, n: int, k: int) -> None:
        layers.append(LayerInfo(name, "linear", (n, k)))

    def stack(prefix: str, depth: int, width: int) -> None:
        for i in range(depth):
            linear(f"{prefix}.{i}.attn.qkv", 3 * width, width)
            linear(f"{prefix}.{i}.attn.proj", width, width)
            linear(f"{prefix}.{i}.mlp.fc1", 4 * width, width)
            linear(f"{prefix}.{i}.mlp.fc2", width, 4 * width)

    for name in ("patch_embed.blocks", "frame_blocks", "global_blocks"):
        stack(f"aggregator.{name}", 24, 1024)
    stack("camera_head.trunk", 4, 2048)
    linear("camera_head.embed_pose", 2048, 9)
    linear("camera_head.poseLN_modulation.1", 6144, 2048)
    linear("camera_head.pose_branch.fc1", 1024, 2048)
    linear("camera_head.pose_branch.fc2", 9, 1024)
    return tuple(layers)
