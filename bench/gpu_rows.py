"""The rows of the GPU table: what computes, in which precision, from which artifact.

`tf32` is what the GPU may do to FP32 products; where it is None there are none of weight. Artifacts
are named by their export: variant, "@" and the precision of the float parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vggt_deploy.errors import UsageError

Kind = Literal["torch", "onnxruntime", "tensorrt", "tensorrt-rtx"]
REFERENCE = "torch_fp32"
# What ratios are made with: the fastest thing that needs no export.
BASELINE = "torch_bf16"


@dataclass(frozen=True)
class Row:
    """One line of each table.

    artifact: what it runs or is built from; None for PyTorch
    half: PyTorch's aggregator in BF16
    compiled: through torch.compile
    cuda_graph: an engine replayed as one graph
    """

    label: str
    title: str
    kind: Kind
    tf32: bool
    artifact: str | None = None
    half: bool = False
    compiled: bool = False
    cuda_graph: bool = False


def _engines(prefix: str, name: str, kind: Kind) -> tuple[Row, ...]:
    static = "int8_pc_sym+static@fp16"
    return (
        Row(f"{prefix}_fp32", f"{name} FP32", kind, False, "fp32@fp32"),
        Row(f"{prefix}_tf32", f"{name} FP32 with TF32", kind, True, "fp32@fp32"),
        Row(f"{prefix}_fp16", f"{name} FP16", kind, True, "fp16@fp16"),
        Row(f"{prefix}_bf16", f"{name} BF16", kind, True, "bf16@bf16"),
        Row(f"{prefix}_int8w", f"{name} INT8 weights, FP16", kind, True, "int8_pc_sym@fp16"),
        Row(f"{prefix}_int8", f"{name} INT8 x INT8, FP16", kind, True, static),
        Row(
            f"{prefix}_int8_graph",
            f"{name} INT8 x INT8, FP16, CUDA graph",
            kind,
            True,
            static,
            cuda_graph=True,
        ),
    )


ROWS: tuple[Row, ...] = (
    Row(REFERENCE, "PyTorch FP32", "torch", False),
    Row("torch_tf32", "PyTorch FP32 with TF32", "torch", True),
    Row(BASELINE, "PyTorch BF16, SDPA", "torch", True, half=True),
    Row("torch_bf16_compiled", "PyTorch BF16, compiled", "torch", True, half=True, compiled=True),
    Row("ort_fp32", "ONNX Runtime CUDA FP32", "onnxruntime", False, "fp32@fp32"),
    Row("ort_tf32", "ONNX Runtime CUDA FP32 with TF32", "onnxruntime", True, "fp32@fp32"),
    Row("ort_fp16", "ONNX Runtime CUDA FP16", "onnxruntime", True, "fp16@fp16"),
    *_engines("trt", "TensorRT", "tensorrt"),
    *_engines("rtx", "TensorRT-RTX", "tensorrt-rtx"),
)
BY_LABEL = {row.label: row for row in ROWS}


def choose(only: str | None) -> tuple[Row, ...]:
    """The rows of a comma-separated list of labels, in the table's order; all without a list."""
    if only is None:
        return ROWS
    wanted = [label.strip() for label in only.split(",") if label.strip()]
    unknown = [label for label in wanted if label not in BY_LABEL]
    if unknown or not wanted:
        raise UsageError(
            f"no such row: {', '.join(unknown) or 'none is named'}", f"use {', '.join(BY_LABEL)}"
        )
    return tuple(row for row in ROWS if row.label in wanted)
