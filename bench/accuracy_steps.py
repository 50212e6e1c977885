"""The steps of `bench.accuracy`, each in a process of its own: FP32, ours, trained, ModelOpt.

Each answers what one network is worth on all scenes:

    {"stored_bytes", "seconds", "remarks": [...], "measures": {set: [{measure: value}, ...]}}

measures of a scene as `vggt_deploy.sensitivity.measure` has them, against the truth, and
`output_error`: the root of the mean over the outputs of ||y - y_fp32||^2 / ||y_fp32||^2. The FP32
step comes first and keeps its outputs, `reference_<set>.npz`, for all others.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bench.accuracy_scenes import CALIBRATION, read_set
from bench.modelopt_rows import BY_LABEL, quantize
from bench.worker import Answer, Step, serve
from vggt_deploy.errors import ModelError
from vggt_deploy.sensitivity.measure import measures, run_scenes
from vggt_deploy.train.evaluate import SETS

if TYPE_CHECKING:
    from torch import nn

    from vggt_deploy.model.config import VGGTConfig
    from vggt_deploy.model.sources import WeightSource
    from vggt_deploy.quantize.pictures import Pictures

HEADS = frozenset({"camera", "depth", "point"})
Reference = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Run:
    """What is the same for every step.

    sha256: of the weights, None for random ones; folder: of the run, with scenes/ and the
    reference; height, width: of the pictures; views: that calibration shows the network together
    """

    model: str
    sha256: str | None
    folder: Path
    height: int
    width: int
    views: int
    threads: int

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> Run:
        """From JSON."""
        return cls(**{**arguments, "folder": Path(arguments["folder"])})

    def opened(self) -> tuple[VGGTConfig, WeightSource]:
        """The model's sizes and weights; torch has as many threads as were asked for.

        Raises:
            ModelError: the weights are others than those that the run began with.
        """
        import torch

        from vggt_deploy.model.weights import open_weights

        torch.set_num_threads(self.threads)
        config, source = open_weights(self.model)
        if source.origin.sha256 != self.sha256:
            # Compared with the reference of other weights, every row would look damaged.
            raise ModelError(
                f"the weights of {self.model} have changed since the run began",
                "start the run anew",
            )
        return config, source

    def pictures(self) -> Pictures:
        """What the quantizers look at."""
        from vggt_deploy.quantize.pictures import Pictures

        folder = self.folder / "scenes" / CALIBRATION
        return Pictures(folder, self.height, self.width, frames_per_pass=self.views)


def fp32(run: Mapping[str, Any]) -> Answer:
    """The reference: folded weights, as every other row starts from."""
    from vggt_deploy.model.weights import load_model

    asked = Run.of(run)
    config, source = asked.opened()
    network = load_model(source, config, heads=HEADS, folded=True)
    return _measured(
        network, asked, stored_bytes(network), None, is_reference=True, config=config.name
    )


def ours(label: str, run: Mapping[str, Any]) -> Answer:
    """One label, as `vggt-deploy export --scheme LABEL --calibrate DIR` would make it."""
    asked = Run.of(run)
    start = time.perf_counter()
    network = _made(label, asked)
    return _measured(network, asked, stored_bytes(network), time.perf_counter() - start)


def prepared(folder: str, run: Mapping[str, Any]) -> Answer:
    """What lies in a folder of prepared weights, trained ones for example."""
    from vggt_deploy.model.fold import FoldedWeights
    from vggt_deploy.quantize.apply import build_quantized
    from vggt_deploy.quantize.plan import keeps_layer_scale
    from vggt_deploy.quantize.prepared import read_prepared
    from vggt_deploy.quantize.statistics import model_record

    asked = Run.of(run)
    config, source = asked.opened()
    held = read_prepared(Path(folder))
    held.require(model_record(config, source), held.precision, asked.height, asked.width, HEADS)
    network = build_quantized(
        config,
        FoldedWeights(source, config, keep_layer_scale=keeps_layer_scale(held.precision)),
        held.quantization.scheme,
        activations=held.quantization.activations,
        heads=HEADS,
        precision=held.precision,
        prepared=held,
    )
    return _measured(
        network, asked, stored_bytes(network), None, remarks=[f"from {Path(folder).name}"]
    )


def modelopt(label: str, run: Mapping[str, Any]) -> Answer:
    """One row of ModelOpt's, calibrated on the passes that ours are calibrated on."""
    import torch

    from vggt_deploy.model.weights import load_model
    from vggt_deploy.quantize.pictures import plan_passes
    from vggt_deploy.quantize.plan import layers_of, plan
    from vggt_deploy.quantize.prepare import loaders

    asked, row = Run.of(run), BY_LABEL[label]
    config, source = asked.opened()
    network = load_model(source, config, heads=HEADS, folded=True)
    layers = layers_of(config, HEADS)
    formats = plan(row.quantization.scheme, layers)
    pictures = asked.pictures()
    passes = loaders(plan_passes(config, source, pictures), pictures)

    @torch.no_grad()
    def show(model: Any) -> None:
        for images in passes:
            model(images())

    start = time.perf_counter()
    made = quantize(network, row, layers, formats, show)
    seconds = time.perf_counter() - start
    remarks = [made.configured]
    if made.multiplications:
        remarks.append(f"{made.multiplications} Linears keep a multiplication before them")
    return _measured(
        network, asked, made.stored_bytes, seconds, remarks=remarks, version=made.version
    )


def stored_bytes(network: nn.Module) -> int:
    """Of all weights: integers with scales and zero points as stored, floats in their type."""
    from vggt_deploy.quantize.apply import QuantizedModule

    total = sum(value.numel() * value.element_size() for value in network.parameters())
    for module in network.modules():
        if isinstance(module, QuantizedModule):
            bias = module.bias
            total += module.quantized.stored_bytes
            total += 0 if bias is None else bias.numel() * bias.element_size()
    return total


def _made(label: str, asked: Run) -> nn.Module:
    from vggt_deploy.model.fold import FoldedWeights
    from vggt_deploy.quantize.apply import build_quantized
    from vggt_deploy.quantize.plan import keeps_layer_scale
    from vggt_deploy.quantize.schemes import parse_label

    config, source = asked.opened()
    quantization = parse_label(label)
    scheme, activations = quantization.scheme, quantization.activations
    keep = keeps_layer_scale(scheme.precision)
    folded = FoldedWeights(source, config, keep_layer_scale=keep)
    if not (quantization.treatment.prepares or quantization.needs_pictures):
        return build_quantized(config, folded, scheme, activations=activations, heads=HEADS)
    from vggt_deploy.quantize.prepare import PrepareRequest, prepare

    request = PrepareRequest(
        quantization,
        scheme.precision,
        asked.height,
        asked.width,
        pictures=asked.pictures() if quantization.needs_pictures else None,
        heads=HEADS,
    )
    with TemporaryDirectory(prefix=".prepare-", dir=asked.folder) as scratch:
        prepared = prepare(config, source, request, Path(scratch))
        return build_quantized(
            config, folded, scheme, activations=activations, heads=HEADS, prepared=prepared
        )


def _measured(
    network: nn.Module,
    asked: Run,
    weights_bytes: int,
    seconds: float | None,
    *,
    is_reference: bool = False,
    remarks: Iterable[str] = (),
    **more: Any,
) -> Answer:
    """Run the network on every scene; outputs of the reference are kept. `seconds`: to make it."""
    found = {}
    for one in SETS:
        path = asked.folder / f"reference_{one.name}.npz"
        found[one.name] = _on_set(network, asked, one.name, path, is_reference=is_reference)
    return {
        "stored_bytes": weights_bytes,
        "seconds": seconds,
        "remarks": list(remarks),
        "measures": found,
        **more,
    }


def _on_set(
    network: nn.Module, asked: Run, name: str, path: Path, *, is_reference: bool
) -> list[dict[str, float]]:
    from vggt_deploy.train.scoring import single_threads

    scenes = list(read_set(asked.folder / "scenes", name))
    with single_threads(asked.threads) as executor:
        outputs = run_scenes(network, scenes, executor)
        if is_reference:
            stacked = {key: np.stack([one[key] for one in outputs]) for key in outputs[0]}
            np.savez(path, allow_pickle=False, **stacked)
        exact = list(_split(path))

        def judge(index: int) -> dict[str, float]:
            values = measures(outputs[index], exact[index], scenes[index], "truth")
            error = math.sqrt(values.pop("output_mse"))
            return {**values, "output_error": error}

        return list(executor.map(judge, range(len(scenes))))


def _split(path: Path) -> Iterable[Reference]:
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files}
    for index in range(len(next(iter(arrays.values())))):
        yield {key: array[index] for key, array in arrays.items()}


STEPS: dict[str, Step] = {"fp32": fp32, "ours": ours, "modelopt": modelopt, "prepared": prepared}

if __name__ == "__main__":
    sys.exit(serve(STEPS, sys.argv[1:]))
