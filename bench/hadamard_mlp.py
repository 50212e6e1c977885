"""What a Hadamard matrix before a Linear buys: error of its output, and time of the extra product.

    python -m bench.hadamard_mlp                          vggt-nano, 4 rendered scenes to calibrate
    python -m bench.hadamard_mlp --model FILE --scenes 8  another checkpoint

    y = W x = (W R^T) (R x),   R = H / sqrt(b) on each run of b channels, b a power of two

For mlp.fc2 R x is an operator in the graph, since GELU stands before it; for attn.proj it goes into
the value projection (the switch `rotate`), so only the error is of interest there, and b is a head.
H alone has a row of ones, which collects the mean of all channels (GELU's is above zero) in a
single one; with random signs on its columns ("signed") it has not.

Printed: error with R over error without, geometric mean over the layers of a stack and the worst
of them. Static ranges are of the first half of the scenes, errors of the second.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vggt_deploy.data.synthetic import render_views
from vggt_deploy.model.config import VGGTConfig
from vggt_deploy.model.fold import FoldedWeights
from vggt_deploy.model.sources import WeightSource
from vggt_deploy.model.weights import load_model, open_weights
from vggt_deploy.quantize.activations import round_static
from vggt_deploy.quantize.calibration import Observer
from vggt_deploy.quantize.equal import places
from vggt_deploy.quantize.histogram import threshold
from vggt_deploy.quantize.methods import Method
from vggt_deploy.quantize.plan import layers_of
from vggt_deploy.quantize.qparams import dequantize, input_scale, quantize
from vggt_deploy.quantize.rotate import hadamard
from vggt_deploy.quantize.schemes import INT4_G128, INT8_PC_SYM, WeightFormat

FIRST_SEED = 900_000  # scenes of the training families that no training has drawn
VIEWS = 8
BLOCKS = (32, 128, 512)
TIMED = 30


@dataclass(frozen=True)
class Setting:
    """A weight format, and the range of static 8-bit inputs (None: float inputs)."""

    form: WeightFormat
    inputs: Method | None

    @property
    def label(self) -> str:
        inputs = "float" if self.inputs is None else f"static {self.inputs.label}"
        return f"{self.form.label}, {inputs}"


SETTINGS = (
    Setting(INT8_PC_SYM, Method("mse")),
    Setting(INT8_PC_SYM, Method("absmax")),
    Setting(INT8_PC_SYM, None),
    Setting(INT4_G128, None),
)


def turned(x: Tensor, block: int, signed: bool) -> Tensor:
    """R on each run of `block` of the last axis; runs that don't fill a block are refused."""
    matrix = hadamard(block).float()
    if signed:
        coin = torch.rand(block, generator=torch.Generator().manual_seed(0))
        matrix = matrix * torch.where(coin < 0.5, -1.0, 1.0)
    return (x.reshape(-1, block) @ matrix.T).reshape(x.shape)


def output_error(learned: Tensor, judged: Tensor, weight: Tensor, setting: Setting) -> float:
    """Relative L2 error of the Linear's output; inputs [T, K], weight [N, K]."""
    reference = judged @ weight.T
    if setting.inputs is not None:
        observer = Observer("input")
        observer(torch.nn.Identity(), (learned,))
        limit = threshold(observer.histogram(), setting.inputs)
        judged = round_static(judged, torch.tensor(input_scale(limit)))
    off = judged @ dequantize(quantize(weight, setting.form)).T - reference
    return float(off.norm() / reference.norm())


@torch.no_grad()
def inputs_of(
    config: VGGTConfig, source: WeightSource, layers: Sequence[str], scenes: int
) -> dict[str, tuple[Tensor, Tensor]]:
    """Layer -> inputs [T, K] on the first half of the scenes and on the second."""
    model = load_model(source, config, heads=frozenset({"camera"}), folded=True)
    halves: tuple[dict[str, list[Tensor]], ...] = ({}, {})
    half = halves[0]

    def keep(name: str, rows: Tensor) -> None:
        half.setdefault(name, []).append(rows.reshape(-1, rows.shape[-1]))

    for name in layers:
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, given, name=name: keep(name, given[0])
        )
    height, width = config.size
    for number in range(scenes):
        half = halves[number >= scenes // 2]
        views = render_views(FIRST_SEED + number, views=VIEWS, height=height, width=width)
        pictures = torch.from_numpy(views.images).permute(0, 3, 1, 2).float() / 255
        model(pictures[None])
    return {name: (torch.cat(halves[0][name]), torch.cat(halves[1][name])) for name in layers}


def ratios(
    inputs: Mapping[str, tuple[Tensor, Tensor]],
    source: WeightSource,
    setting: Setting,
    blocks: Mapping[str, int],
    signed: bool,
) -> dict[str, list[float]]:
    """Stack -> for each of its layers, error with R over error without."""
    found: dict[str, list[float]] = {}
    for name, block in blocks.items():
        learned, judged = inputs[name]
        weight = source.load(f"{name}.weight")
        if weight.shape[1] % block:
            continue
        plain = output_error(learned, judged, weight, setting)
        learned, judged, weight = (turned(t, block, signed) for t in (learned, judged, weight))
        parts = name.split(".")
        stack = parts[0] if parts[0] == "camera_head" else parts[1]
        found.setdefault(stack, []).append(output_error(learned, judged, weight, setting) / plain)
    return found


def _say(label: str, setting: Setting, found: Mapping[str, list[float]]) -> None:
    cells = [
        f"{stack} {np.exp(np.mean(np.log(values))):.3f} (worst {max(values):.3f})"
        for stack, values in found.items()
    ]
    print(f"{label:26s} {setting.label:28s} {' · '.join(cells)}", flush=True)


def product_times_ms(rows: int, weight: Tensor, block: int) -> tuple[float, float]:
    """Median ms of x W^T and of R x, FP32 in torch, x [rows, K]."""
    x, matrix = torch.randn(rows, weight.shape[1]), hadamard(block).float()
    products: list[float] = []
    turns: list[float] = []
    for _ in range(TIMED):  # in turn, so that a busy moment falls on both
        for taken, left, right in ((products, x, weight.T), (turns, x.view(-1, block), matrix)):
            since = time.perf_counter()
            torch.matmul(left, right)
            taken.append((time.perf_counter() - since) * 1e3)
    return float(np.median(products)), float(np.median(turns))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.hadamard_mlp", description=__doc__)
    parser.add_argument("--model", default="vggt-nano")
    parser.add_argument("--scenes", type=int, default=4)
    asked = parser.parse_args()
    if asked.scenes < 2:
        parser.error("--scenes: 2 or more, one to calibrate on and one to judge by")
    config, raw = open_weights(asked.model)
    source = FoldedWeights(raw, config)
    linears = layers_of(config, frozenset({"camera"}))
    fc2 = tuple(layer.name for layer in linears if layer.name.endswith("mlp.fc2"))
    heads = {
        place.linear: place.width // place.heads
        for place in places(config)
        if place.kind == "values"
    }
    inputs = inputs_of(config, raw, (*fc2, *heads), asked.scenes)
    for setting in SETTINGS:
        for signed in (False, True):
            word = " signed" if signed else ""
            found = ratios(inputs, source, setting, heads, signed)
            _say(f"attn.proj, head{word}", setting, found)
            for block in BLOCKS:
                found = ratios(inputs, source, setting, dict.fromkeys(fc2, block), signed)
                _say(f"mlp.fc2, {block}{word}", setting, found)
    name = next(name for name in fc2 if name.startswith("aggregator.frame"))
    rows, weight = len(inputs[name][0]) // max(1, asked.scenes // 2), source.load(f"{name}.weight")
    for block in BLOCKS:
        plain_ms, extra_ms = product_times_ms(rows, weight, block)
        print(
            f"{name}, {rows} rows: product {plain_ms:.3f} ms, R of {block} {extra_ms:.3f} ms "
            f"(median of {TIMED}, torch FP32, {torch.get_num_threads()} threads); "
            f"multiplications x {block / weight.shape[0]:.3g}"
        )


if __name__ == "__main__":
    main()
