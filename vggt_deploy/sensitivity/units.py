"""Layers put together into units, and the formats that each unit is tried in. No torch.

    block   aggregator.frame_blocks.3, camera_head.trunk.0; what lies in no block by the first two
            parts of its name: camera_head.pose_branch, depth_head.scratch
    layer   aggregator.frame_blocks.3.attn.qkv
    kind    aggregator.frame_blocks.*.attn.qkv: the same layer of all blocks of a stack
    head    aggregator.frame_blocks, camera_head: a whole stack or head

A unit's name with `.*` behind it (for `layer` and `kind` as it is) is a pattern that `--exclude`
takes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vggt_deploy.errors import UsageError
from vggt_deploy.quantize.plan import LayerInfo
from vggt_deploy.quantize.schemes import PerGroup, WeightFormat
from vggt_deploy.sensitivity.table import By

_BLOCK = re.compile(r"(?P<block>.+?\.(?:blocks|frame_blocks|global_blocks|trunk)\.\d+)\.")
CAMERA = "camera_head"
_NUMBER = re.compile(r"\.\d+(?=\.|$)")


@dataclass(frozen=True)
class Candidate:
    """One unit in one format: exactly these layers hold integers, all else is FP32."""

    unit: str
    format: str
    layers: Mapping[str, WeightFormat]


def unit_of(layer: str, by: By) -> str:
    """The unit that a layer belongs to, by its name."""
    match by:
        case "layer":
            return layer
        case "kind":
            return _NUMBER.sub(".*", layer)
        case "block":
            found = _BLOCK.match(layer)
            return found["block"] if found else ".".join(layer.split(".")[:2])
        case "head":
            parts = layer.split(".")
            return ".".join(parts[:2]) if parts[0] == "aggregator" else parts[0]


def pattern_of(unit: str, by: By) -> str:
    """What `--exclude` is given to keep the unit float."""
    return unit if by in ("layer", "kind") else f"{unit}.*"


def candidates(
    layers: Sequence[LayerInfo],
    planned: Mapping[str, WeightFormat],
    by: By,
    formats: Sequence[WeightFormat] = (),
) -> tuple[Candidate, ...]:
    """What is to be tried, in the order of the network, and within a unit in that of `formats`.

    planned: layer -> format of the scheme; no other layer is tried.
    formats: those to give to every unit in place of the scheme's own. A format in groups is for
        Linears: convolutions of the unit stay float in it, and a unit of convolutions has none.

    Raises:
        UsageError: nothing is left to try.
    """
    units: dict[str, list[LayerInfo]] = {}
    for layer in layers:
        if layer.name in planned:
            units.setdefault(unit_of(layer.name, by), []).append(layer)
    found: list[Candidate] = []
    for unit, members in units.items():
        tried = formats or tuple(dict.fromkeys(planned[layer.name] for layer in members))
        for form in tried:
            fitting = {
                layer.name: form
                for layer in members
                if (_fits(layer, form) if formats else planned[layer.name] == form)
            }
            if fitting:
                found.append(Candidate(unit, form.label, fitting))
    if not found:
        raise UsageError(
            "no layer would become integers, so there is nothing to measure",
            "use an integer scheme, such as int8_pc_sym, and formats that fit Linears",
        )
    return tuple(found)


def _fits(layer: LayerInfo, form: WeightFormat) -> bool:
    return layer.kind == "linear" or not isinstance(form.granularity, PerGroup)


def ranked(local: Mapping[tuple[str, str], float]) -> tuple[str, ...]:
    """Units by the largest local error of their formats, the worst first.

    local: (unit, format) -> local error. Equal errors keep the order they are given in.
    """
    worst: dict[str, float] = {}
    for (unit, _), error in local.items():
        worst[unit] = max(worst.get(unit, 0.0), error)
    return tuple(sorted(worst, key=lambda unit: -worst[unit]))


def chosen(local: Mapping[tuple[str, str], float], top: int | None) -> tuple[str, ...]:
    """The units of the second pass, the worst first: the `top` worst (None: all), and those of the
    camera head, whatever their rank.

    Local error says little of the camera head: four refinements feed its errors back, and of what
    it gives, a small difference of large numbers is the pose. In vggt-nano at 4 bit its last layers
    had nearly the smallest local error of all units, and cost the most by far.
    """
    order = ranked(local)
    kept = frozenset(order[:top])
    return tuple(unit for unit in order if unit in kept or unit.startswith(CAMERA))
