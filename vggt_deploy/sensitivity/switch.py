"""A network in memory, some layers of which hold integers for a while."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from vggt_deploy.model.config import VGGTConfig
from vggt_deploy.model.fold import FoldedWeights
from vggt_deploy.model.sources import WeightSource
from vggt_deploy.model.vggt import VGGT
from vggt_deploy.model.weights import check_keys
from vggt_deploy.quantize.apply import replace_layers
from vggt_deploy.quantize.prepared import Integers
from vggt_deploy.quantize.schemes import Activations, WeightFormat


def folded_model(
    config: VGGTConfig,
    source: WeightSource,
    heads: frozenset[str],
    *,
    keep_layer_scale: bool = False,
) -> VGGT:
    """The FP32 network in the form that an artifact has: folded, LayerScale kept where asked.

    Raises:
        ModelError: the source lacks a key, or has one of a wrong shape.
    """
    check_keys(source, config, heads)
    folded = FoldedWeights(source, config, keep_layer_scale=keep_layer_scale)
    with torch.device("meta"):
        model = VGGT(config, heads=heads, folded=True, keep_layer_scale=keep_layer_scale)
    values = {key: folded.load(key) for key in model.state_dict()}
    model.load_state_dict(values, strict=True, assign=True)
    return model.eval().requires_grad_(False)


@contextmanager
def switched(
    model: nn.Module,
    formats: Mapping[str, WeightFormat],
    integers: Integers | None = None,
    *,
    activations: Activations = "float",
    input_scales: Mapping[str, float] | None = None,
) -> Iterator[None]:
    """Inside the block these layers hold integers; afterwards the very modules are back.

    Arguments as for `quantize.apply.replace_layers`.
    """
    with restored(model, tuple(formats)):
        replace_layers(model, formats, integers, activations=activations, input_scales=input_scales)
        yield


@contextmanager
def restored(model: nn.Module, names: tuple[str, ...]) -> Iterator[None]:
    """Afterwards the modules of these names are the ones that they are now."""
    before = {name: model.get_submodule(name) for name in names}
    try:
        yield
    finally:
        for name, module in before.items():
            put(model, name, module)


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Set the submodule of that dotted name."""
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)
