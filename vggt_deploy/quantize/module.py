"""The quantizer on any network: ranges of what goes into its layers, integers of its weights.

    formats = plan(get_scheme("int8_pc_sym"), layers_in(model), include=("*",))
    seen = observe_module(model, batches)
    scales = module_input_scales(seen, formats, Method("mse"))
    integers = Searched(ModuleWeights(model), Method("mse"))       # or None: each weight's largest
    replace_layers(model, formats, integers, activations="static", input_scales=scales)

Formats, integer maths and modules are those that VGGT is quantized with (`plan`, `qparams`,
`apply`); training with fake quantization is `qat.fake`, a QDQ graph `export.module`. Nothing here
knows an architecture; a scheme's default patterns name VGGT's layers, so `plan` is told which of
the network's own to take.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vggt_deploy.errors import CalibrationError, QuantizeError, UsageError
from vggt_deploy.model.sources import WeightSource
from vggt_deploy.quantize.calibration import Observer
from vggt_deploy.quantize.histogram import Histogram, threshold
from vggt_deploy.quantize.methods import Method
from vggt_deploy.quantize.plan import LayerInfo, layers_in
from vggt_deploy.quantize.qparams import QuantizedTensor, input_scale
from vggt_deploy.quantize.ranges import quantize_searched
from vggt_deploy.quantize.schemes import Precision, WeightFormat

Batch = Tensor | tuple[Tensor, ...]
"""What the network is called with: its one input, or all of them in order."""


@dataclass(frozen=True)
class Searched:
    """Each weight of a source rounded by itself, its range chosen by `method` (`ranges`)."""

    source: WeightSource
    method: Method

    def quantized(
        self, layer: LayerInfo, form: WeightFormat, scale_dtype: Precision
    ) -> QuantizedTensor:
        """The layer's weight in this format; QuantizeError where it is not finite."""
        try:
            return quantize_searched(
                self.source.load(f"{layer.name}.weight"),
                form,
                axis=layer.axis,
                scale_dtype=scale_dtype,
                method=self.method,
            )
        except QuantizeError as error:
            raise QuantizeError(f"{layer.name}: {error.message}", error.fix) from error


@torch.no_grad()
def observe_module(model: nn.Module, batches: Iterable[Batch]) -> dict[str, Histogram]:
    """Run the batches through the network; Linear -> histogram of |x| of all its inputs.

    The network is left as it was. A Linear that no batch came to has an empty histogram.

    Raises:
        UsageError: the network is in training mode, or there are no batches.
        CalibrationError: an input is NaN or infinite.
    """
    if model.training:
        raise UsageError(
            "the network is in training mode, where dropout and batch norm change what layers see",
            "call model.eval() first",
        )
    observers: dict[str, Observer] = {}
    hooks = []
    count = 0
    try:
        for layer in layers_in(model):
            if layer.kind == "linear":
                observers[layer.name] = Observer(layer.name)
                module = model.get_submodule(layer.name)
                hooks.append(module.register_forward_pre_hook(observers[layer.name]))
        for batch in batches:
            model(*(batch if isinstance(batch, tuple) else (batch,)))
            count += 1
    finally:
        for hook in hooks:
            hook.remove()
    if count == 0:
        raise UsageError("no batches to observe", "give at least one, of data like those to come")
    return {name: observer.histogram() for name, observer in observers.items()}


def module_input_scales(
    seen: Mapping[str, Histogram], layers: Iterable[str], method: Method
) -> dict[str, float]:
    """Layer -> FP32 scale of its input for static activations; layers not in `seen` are left out.

    `layers` may be the keys of a plan: convolutions, whose inputs stay float, are not observed.

    Raises:
        CalibrationError: a Linear that the network never called, so that nothing is known of it.
    """
    scales = {}
    for name in layers:
        if name not in seen:
            continue
        if seen[name].total == 0:
            raise CalibrationError(
                f"{name} was not called on any batch",
                "exclude it, or give batches on which the network uses it",
            )
        scales[name] = input_scale(threshold(seen[name], method))
    return scales
