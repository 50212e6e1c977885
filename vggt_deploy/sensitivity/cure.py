"""The smallest exclusion that takes a bad block's error out of an artifact's outputs.

The network in PyTorch is given the artifact's own numbers (`stored`), so that it is off as the
artifact is. Then layers of the block are made float, fewest weights first, each layer alone, then
two at a time, until the error of the outputs falls by at least ENOUGH of what making the whole
block float takes away.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vggt_deploy.model.vggt import VGGT
from vggt_deploy.quantize.schemes import Activations, WeightFormat
from vggt_deploy.sensitivity.measure import output_mse
from vggt_deploy.sensitivity.stored import StoredIntegers
from vggt_deploy.sensitivity.switch import put, restored, switched

ENOUGH = 0.9
# A block has four layers; of a head's twenty or more no pairs are tried.
MOST_FOR_PAIRS = 6
# Making the whole block float must take away this part of the error to be called a cure.
LEAST_GAIN = 0.1
# The PyTorch network stands for the artifact if their difference is less of the artifact's error.
MOST_APART = 0.5

Arrays = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Cure:
    """exclude: what `--exclude` is given. Errors are relative L2 against FP32, root mean square
    over the outputs: of the artifact's numbers, without these layers, without the whole block.
    """

    exclude: tuple[str, ...]
    error_before: float
    error_after: float
    error_without_block: float


@dataclass(frozen=True)
class Numbers:
    """What the artifact computes with."""

    stored: StoredIntegers
    formats: Mapping[str, WeightFormat]
    activations: Activations
    input_scales: Mapping[str, float] | None


def relative_error(outputs: Arrays, exact: Arrays) -> float:
    """Root of the mean over the outputs of the squared relative L2 errors."""
    return math.sqrt(output_mse(outputs, exact))


@torch.no_grad()
def find_cure(
    network: VGGT,
    images: Tensor,
    numbers: Numbers,
    place: str,
    *,
    artifact: Arrays,
    exact: Arrays,
    whole_only: bool,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Cure | str:
    """The cure, or in words why there is none.

    network: FP32, as the checkpoint has it; the same again afterwards. artifact, exact: outputs of
    the artifact and of FP32. whole_only: the block's float weights are others than the
    checkpoint's, so that only all of them together can be put back.
    """
    layers = [name for name in numbers.formats if name.startswith(f"{place}.")]
    if not layers:
        return f"{place} holds no integers, so no exclusion changes it; export the artifact again"
    size = {name: network.get_submodule(name).get_parameter("weight").numel() for name in layers}
    layers.sort(key=lambda name: size[name])
    floats = {name: network.get_submodule(name) for name in layers}
    vectors = _fitting(network, numbers.stored.vectors())
    own = {name: network.get_parameter(name).data for name in vectors if name.startswith(place)}

    def error() -> float:
        outputs = network(images)
        return relative_error({name: outputs[name].numpy() for name in exact}, exact)

    def without(names: Sequence[str]) -> float:
        with restored(network, tuple(names)):
            for name in names:
                put(network, name, floats[name])
            return error()

    with (
        _parameters(network, vectors),
        switched(
            network,
            numbers.formats,
            numbers.stored,
            activations=numbers.activations,
            input_scales=numbers.input_scales,
        ),
    ):
        outputs = network(images)
        apart = relative_error({name: outputs[name].numpy() for name in exact}, artifact)
        before, shown = error(), relative_error(artifact, exact)
        if apart > MOST_APART * shown:
            return (
                "the artifact's numbers in PyTorch do not give the artifact's outputs (they are "
                f"{apart:.2g} apart, the artifact is {shown:.2g} off), so the fault is not in its "
                "integers; export it again"
            )
        with _parameters(network, own):
            whole = without(layers)
        if whole > (1 - LEAST_GAIN) * before:
            return f"the outputs stay {whole:.2g} off with all of {place} in float"
        goal = before - ENOUGH * (before - whole)
        sets = [] if whole_only else _sets(layers)
        for done, names in enumerate(sets):
            report(done, len(sets))
            after = without(names)
            if after <= goal:
                return Cure(tuple(names), before, after, whole)
    return Cure((f"{place}.*",), before, whole, whole)


def _sets(layers: Sequence[str]) -> list[tuple[str, ...]]:
    """Proper parts of a block, smallest first."""
    sets: list[tuple[str, ...]] = [(name,) for name in layers] if len(layers) > 1 else []
    if 2 < len(layers) <= MOST_FOR_PAIRS:
        sets += list(combinations(layers, 2))
    return sets


def _fitting(network: nn.Module, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those that are parameters of the network, of the same shape."""
    own = dict(network.named_parameters())
    return {
        name: value
        for name, value in vectors.items()
        if name in own and own[name].shape == value.shape
    }


@contextmanager
def _parameters(network: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside the block these parameters have these values."""
    own: dict[str, Any] = dict(network.named_parameters())
    held = {name: own[name] for name in values if name in own}
    before = {name: parameter.data for name, parameter in held.items()}
    try:
        for name, parameter in held.items():
            parameter.data = values[name]
        yield
    finally:
        for name, parameter in held.items():
            parameter.data = before[name]
