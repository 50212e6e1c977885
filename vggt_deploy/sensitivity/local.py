"""The first, cheap pass: how far each layer's own product is off when it is given float inputs.

    error(layer)^2 = sum ||Q(W) q(x) - W x||^2 / sum ||W x||^2       over all inputs of the scenes
    error(unit)^2  = sum of error(layer)^2 over the layers of the unit

Q(W) are the rounded weights, q(x) the inputs, rounded where the activations are. Biases are left
out of both sides: a large one would hide the error. The network runs once per scene in FP32;
every layer is compared where it stands, so nothing is kept of the inputs. What a layer's error does
to the output is not known after this: it ranks, and no more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vggt_deploy.errors import QuantizeError
from vggt_deploy.quantize.apply import ModuleWeights, quantized_module
from vggt_deploy.quantize.plan import LayerInfo, layers_in
from vggt_deploy.quantize.prepared import Integers, Nearest
from vggt_deploy.quantize.schemes import Activations, WeightFormat
from vggt_deploy.sensitivity.units import Candidate

# More inputs change a ranking little, and each costs as many products as there are formats.
MOST_SCENES = 8


class _Errors:
    """Sums over all calls of one layer, for each of its formats; a forward hook."""

    def __init__(
        self,
        layer: LayerInfo,
        formats: Sequence[WeightFormat],
        integers: Integers,
        activations: Activations,
        input_scale: float | None,
    ) -> None:
        self.layer, self.formats, self.integers = layer, formats, integers
        self.activations, self.input_scale = activations, input_scale
        self.wrong = dict.fromkeys((form.label for form in formats), 0.0)
        self.right = 0.0

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        bias = getattr(module, "bias", None)
        exact = output if bias is None else output - _along(bias, output, self.layer)
        self.right += _squared(exact)
        for form in self.formats:
            quantized = self.integers.quantized(self.layer, form, "fp32")
            stand_in = quantized_module(module, quantized, None, self.activations, self.input_scale)
            self.wrong[form.label] += _squared(stand_in(inputs[0]) - exact)

    def relative(self) -> dict[str, float]:
        """Format -> relative L2 error."""
        errors = {}
        for label, wrong in self.wrong.items():
            if not math.isfinite(wrong + self.right):
                raise QuantizeError(
                    f"{self.layer.name} gives NaN or infinity on these pictures",
                    "check the checkpoint: run it with scheme fp32 first",
                )
            errors[label] = math.sqrt(wrong / self.right) if self.right > 0 else math.sqrt(wrong)
        return errors


@torch.no_grad()
def local_errors(
    model: nn.Module,
    pictures: Sequence[NDArray[np.float32]],
    candidates: Sequence[Candidate],
    *,
    activations: Activations = "float",
    input_scales: Mapping[str, float] | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> dict[tuple[str, str], float]:
    """(unit, format) -> local error, for every candidate.

    model: in FP32, with its weights. pictures: [S, 3, H, W] of each scene; the first MOST_SCENES
    are run. input_scales: layer -> scale, for static activations.

    Raises:
        QuantizeError: a weight or a product that is not finite, or activations that no runtime has
            beside a format.
    """
    asked: dict[str, dict[WeightFormat, None]] = {}
    for candidate in candidates:
        for name, form in candidate.layers.items():
            asked.setdefault(name, {})[form] = None
    integers = Nearest(ModuleWeights(model))
    hooks: list[Any] = []
    counters: dict[str, _Errors] = {}
    for layer in layers_in(model):
        if layer.name not in asked:
            continue
        linear = layer.kind == "linear"
        scale = (input_scales or {}).get(layer.name) if activations == "static" else None
        counters[layer.name] = _Errors(
            layer,
            tuple(asked[layer.name]),
            integers,
            activations if linear else "float",
            scale if linear else None,
        )
        module = model.get_submodule(layer.name)
        hooks.append(module.register_forward_hook(counters[layer.name]))
    shown = list(pictures)[:MOST_SCENES]
    try:
        for done, pixels in enumerate(shown):
            report(done, len(shown))
            model(torch.from_numpy(pixels)[None])
        report(len(shown), len(shown))
    finally:
        for hook in hooks:
            hook.remove()
    found = {name: counter.relative() for name, counter in counters.items()}
    return {
        (one.unit, one.format): math.sqrt(sum(found[n][one.format] ** 2 for n in one.layers))
        for one in candidates
    }


def _along(bias: Tensor, output: Tensor, layer: LayerInfo) -> Tensor:
    """The bias [N] in a shape that adds to the output: [..., N], of convolutions [B, N, h, w]."""
    return bias if layer.kind == "linear" else bias.view(-1, 1, 1)


def _squared(value: Tensor) -> float:
    return float(torch.linalg.vector_norm(value, dtype=torch.float64)) ** 2
