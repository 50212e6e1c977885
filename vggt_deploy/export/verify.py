"""Does the artifact compute what the PyTorch variant of its scheme computes?

Both read the same checkpoint and share only the quantization maths; graph, weights file, rewrites
and runtime settings are on one side alone. Each graph is run in ONNX Runtime on two inputs with
different numbers of frames, so that a frame count frozen into the graph is seen.

    error = ||graph - torch|| / ||torch||     per output, over all its elements

What is left between them is rounding: 1e-6 to 1e-5 in FP32, a few units of the type in FP16 and
BF16. With 8-bit activations a rounding puts an activation on the other side of a tie, a whole
integer away, and the following layers amplify it; how far depends on the weights. So there the
measure is PyTorch itself: how far its own output moves when its input moves by PERTURBATION, within
a bound above which nothing would be noticed. A static scale that is wrong in one layer would hide
in there, so the scales of the graphs are also held against the manifest's, exactly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from PIL import Image

from vggt_deploy.engines.onnxruntime import OnnxRuntimeSession, open_onnxruntime
from vggt_deploy.errors import DeployError, VerifyError
from vggt_deploy.export.emulate import write_fp32_emulation
from vggt_deploy.export.request import ExportRequest
from vggt_deploy.model.config import VGGTConfig
from vggt_deploy.model.fold import FoldedWeights
from vggt_deploy.model.sources import WeightSource
from vggt_deploy.quantize.apply import build_quantized
from vggt_deploy.quantize.plan import keeps_layer_scale
from vggt_deploy.quantize.prepared import Prepared
from vggt_deploy.records import GraphRecord, Manifest

Arrays = dict[str, npt.NDArray[np.float32]]

# Relative L2 error that is still taken for rounding. The largest seen on random weights: FP32 3e-6
# (vggt-tiny, vggt-small and vggt-1b), FP16 1.2e-3 and BF16 1.5e-2 (the two small ones).
TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1}
# Ten times the rounding of an FP32 sum over a thousand inputs: enough to move ties, too little to
# move anything else.
PERTURBATION = 1e-5
TOLERANCE_ROUNDED_FACTOR = 4.0
TOLERANCE_ROUNDED_MOST = 0.25
COARSE_CELLS = 9


def verify_artifact(
    folder: Path,
    manifest: Manifest,
    request: ExportRequest,
    config: VGGTConfig,
    source: WeightSource,
    prepared: Prepared | None = None,
) -> dict[str, Any]:
    """Run every graph of the artifact against PyTorch; returns the record for the manifest.

    Raises:
        VerifyError: an output is further off than rounding explains, or not finite.
    """
    counts = sorted({request.frames.min, min(request.frames.min + 1, request.frames.max)})
    inputs = [probe_images(count, request.height, request.width) for count in counts]
    scales = None if manifest.calibration is None else manifest.calibration.scales
    expected, limit = _expected(request, config, source, inputs, scales, prepared)
    errors: dict[str, dict[str, float]] = {}
    for target, graph in manifest.graphs.items():
        if manifest.calibration is not None:
            require_scales(folder / graph.file, manifest.calibration.scales)
        results = _graph_outputs(folder, manifest, graph, inputs)
        worst: dict[str, float] = {}
        for got, want in zip(results, expected, strict=True):
            for name, error in compare_outputs(got, want).items():
                worst[name] = max(worst.get(name, 0.0), error)
        _require(target, graph, worst, limit)
        errors[target] = worst
    return {
        "frames": counts,
        "relative_l2_error": errors,
        "tolerance": limit,
        "against": "PyTorch variant of the same scheme",
        "how": _how(request),
    }


def compare_outputs(got: Mapping[str, npt.NDArray[Any]], want: Arrays) -> dict[str, float]:
    """Output name -> ||got - want|| / ||want|| in float64; infinite where a value is not finite."""
    errors = {}
    for name, reference in want.items():
        value = got[name]
        if value.shape != reference.shape:
            raise VerifyError(
                f"output {name} has shape {value.shape}, PyTorch gives {reference.shape}",
                "this is a defect of vggt-deploy: report it with the command you ran",
            )
        difference = float(np.linalg.norm((value.astype(np.float64) - reference).ravel()))
        scale = float(np.linalg.norm(reference.astype(np.float64).ravel()))
        error = difference / scale if scale > 0 else difference
        errors[name] = error if np.isfinite(error) else float("inf")
    return errors


def require_scales(path: Path, scales: Mapping[str, float]) -> None:
    """Every product of a calibrated layer reads 8-bit integers made with the layer's own scale.

    Raises:
        VerifyError: one reads floats or another scale, or a layer has no product.
    """
    found: dict[str, set[float | None]] = {}
    for node in ir.load(path).graph.all_nodes():
        layer = str(node.name).rpartition("/")[0]
        if node.op_type == "MatMul" and layer in scales:
            found.setdefault(layer, set()).add(_input_scale(node))
    wrong = [layer for layer, scale in scales.items() if found.get(layer) != {scale}]
    if wrong:
        seen = ", ".join(map(str, found.get(wrong[0], ["no product"])))
        raise VerifyError(
            f"{path.name} rounds the inputs of {len(wrong)} layers otherwise than calibrated; "
            f"{wrong[0]}: {seen}, calibrated was {scales[wrong[0]]}",
            "this is a defect of vggt-deploy: report it with the command you ran",
        )


def _input_scale(product: ir.Node) -> float | None:
    """The scale of the QuantizeLinear and DequantizeLinear before the left operand, if they agree
    and have zero point 0 in INT8.
    """
    value, parameters = product.inputs[0], []
    for op_type in ("DequantizeLinear", "QuantizeLinear"):
        node = None if value is None else value.producer()
        if node is None or node.op_type != op_type or len(node.inputs) != 3:
            return None
        scale, zero = (ir.convenience.get_const_tensor(v) for v in node.inputs[1:] if v)
        if scale is None or zero is None or zero.dtype != ir.DataType.INT8 or zero.numpy().any():
            return None
        parameters.append(float(scale.numpy()))
        value = node.inputs[0]
    return parameters[0] if parameters[0] == parameters[1] else None


def probe_images(frames: int, height: int, width: int) -> npt.NDArray[np.float32]:
    """[1, frames, 3, height, width] in 0..1: soft coloured patches, the same for the same sizes.

    Not white noise: an encoder answers that with nearly equal tokens, which hides errors.
    """
    generator = np.random.default_rng(frames)
    coarse = generator.integers(0, 256, (frames, COARSE_CELLS, COARSE_CELLS, 3), dtype=np.uint8)
    pictures = [
        np.asarray(Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC))
        for cells in coarse
    ]
    return (np.stack(pictures).transpose(0, 3, 1, 2)[None] / 255.0).astype(np.float32)


def _expected(
    request: ExportRequest,
    config: VGGTConfig,
    source: WeightSource,
    inputs: list[npt.NDArray[np.float32]],
    scales: Mapping[str, float] | None,
    prepared: Prepared | None,
) -> tuple[list[Arrays], float]:
    """What PyTorch gives for each input, and how far a right graph may be from it."""
    limit = TOLERANCE[request.precision]
    if request.activations == "float":
        return list(_torch_outputs(request, config, source, inputs, scales, prepared)), limit
    moved = [images * np.float32(1 + PERTURBATION) for images in inputs]
    outputs = list(_torch_outputs(request, config, source, [*inputs, *moved], scales, prepared))
    expected, shifted = outputs[: len(inputs)], outputs[len(inputs) :]
    for still, other in zip(expected, shifted, strict=True):
        own = max(compare_outputs(other, still).values())
        limit = max(limit, TOLERANCE_ROUNDED_FACTOR * own)
    return expected, min(limit, TOLERANCE_ROUNDED_MOST)


def _torch_outputs(
    request: ExportRequest,
    config: VGGTConfig,
    source: WeightSource,
    inputs: list[npt.NDArray[np.float32]],
    scales: Mapping[str, float] | None,
    prepared: Prepared | None,
) -> Iterator[Arrays]:
    keep = keeps_layer_scale(request.precision)
    model = build_quantized(
        config,
        FoldedWeights(source, config, keep_layer_scale=keep),
        request.scheme,
        activations=request.activations,
        input_scales=scales,
        heads=request.heads,
        include=request.include,
        exclude=request.exclude,
        sensitive=request.sensitive,
        precision=request.precision,
        prepared=prepared,
    )
    names = [name for group in request.groups for name in group.tensors]
    for images in inputs:
        with torch.no_grad():
            outputs = model(torch.from_numpy(images))
        yield {name: outputs[name].float().numpy() for name in names}


def _graph_outputs(
    folder: Path, manifest: Manifest, graph: GraphRecord, inputs: list[npt.NDArray[np.float32]]
) -> Iterator[Arrays]:
    """Any graph of the artifact in ONNX Runtime, TensorRT's too: it is plain ONNX."""
    settings = manifest.graphs["onnxruntime"]
    if manifest.precision == "bf16":
        graph = write_fp32_emulation(folder, graph)
    record = dataclasses.replace(settings, file=graph.file, opset=graph.opset)
    opened = dataclasses.replace(manifest, graphs={"onnxruntime": record})
    session = open_onnxruntime(folder, opened, provider="cpu", threads=None)
    try:
        for images in inputs:
            yield _run(session, images, graph)
    finally:
        session.close()
        if manifest.precision == "bf16":
            (folder / graph.file).unlink()


def _run(
    session: OnnxRuntimeSession, images: npt.NDArray[np.float32], graph: GraphRecord
) -> Arrays:
    try:
        return session.run(images)
    except DeployError as error:
        raise VerifyError(
            f"{graph.file} does not run on {images.shape[1]} frames: {error.message}",
            "this is a defect of vggt-deploy: report it with the command you ran",
        ) from error


def _require(target: str, graph: GraphRecord, errors: Mapping[str, float], limit: float) -> None:
    wrong = {name: error for name, error in errors.items() if not error <= limit}
    if wrong:
        listed = ", ".join(f"{name} {error:.2g}" for name, error in wrong.items())
        raise VerifyError(
            f"{graph.file} ({target}) does not compute what PyTorch computes: "
            f"relative error of {listed}; rounding explains {limit:g}",
            "nothing was written; report it with the command you ran, "
            "or look at the artifact with --no-verify",
        )


def _how(request: ExportRequest) -> str:
    if request.precision == "bf16":
        return (
            "ONNX Runtime CPU has no BF16 kernels: every BF16 operator was run in FP32 and its "
            "result rounded to BF16"
        )
    if request.precision == "fp16":
        return "ONNX Runtime CPU, which computes most FP16 operators in FP32 between casts"
    return "ONNX Runtime CPU"
