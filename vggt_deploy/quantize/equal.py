"""The same network with other weights: scales and rotations moved between neighbouring layers.

A factor s_j > 0 for each channel j between two layers can be divided out of the first and
multiplied into the second (SmoothQuant, arXiv:2211.10438; AWQ, arXiv:2306.00978):

    Linear(LayerNorm(x)):     (gamma / s), (beta / s)          and   W diag(s)
    proj(sum_t p_t v_t):      rows of v / s, their bias / s    and   W_proj diag(s)

The first line is before attn.qkv and mlp.fc1 of every block and before the camera head's
pose_branch.fc1, the second inside every attention, where `rotate` has its place too (it acts first,
s on what it gives). Not one operator is added, and every float result is the same up to rounding.

Not possible: mlp.fc2 (GELU before it is not linear), poseLN_modulation (SiLU before it).

LayerScale multiplies rows of proj and fc2, the order of RoPE permutes rows of q and k: neither is
touched here, so `EqualWeights` goes around the raw source and `FoldedWeights` around that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vggt_deploy.errors import ModelError, QuantizeError
from vggt_deploy.model.config import VGGTConfig
from vggt_deploy.model.sources import ModelOrigin, WeightSource
from vggt_deploy.quantize.rotate import hadamard, rotate_columns, rotate_rows


@dataclass(frozen=True, slots=True)
class Place:
    """Channels between two layers, whose scale is free.

    name: the LayerNorm (`aggregator.frame_blocks.0.norm1`), or `.attn.values` of a block
    kind: what is divided: a LayerNorm's affine, or the value rows of a qkv projection
    linear: the Linear whose columns are multiplied, the only reader of these channels
    width: number of channels
    heads: of the attention around the place
    """

    name: str
    kind: Literal["norm", "values"]
    linear: str
    width: int
    heads: int

    @property
    def divided(self) -> tuple[str, str]:
        """The weight and bias that are divided (of a qkv projection: their last `width` rows)."""
        first = self.name
        if self.kind == "values":
            first = f"{self.name.removesuffix('.values')}.qkv"
        return f"{first}.weight", f"{first}.bias"


def places(config: VGGTConfig) -> tuple[Place, ...]:
    """Every place of a VGGT, in the order in which the network runs."""
    found: list[Place] = []
    for prefix, width, heads in _blocks(config):
        found += (
            Place(f"{prefix}.norm1", "norm", f"{prefix}.attn.qkv", width, heads),
            Place(f"{prefix}.attn.values", "values", f"{prefix}.attn.proj", width, heads),
            Place(f"{prefix}.norm2", "norm", f"{prefix}.mlp.fc1", width, heads),
        )
    last = ("camera_head.trunk_norm", "camera_head.pose_branch.fc1")
    found.append(Place(last[0], "norm", last[1], 2 * config.embed, config.camera_heads))
    return tuple(found)


def _blocks(config: VGGTConfig) -> list[tuple[str, int, int]]:
    """(name, width, heads) of every block."""
    blocks = [
        (f"aggregator.patch_embed.blocks.{i}", config.embed, config.heads)
        for i in range(config.encoder_depth)
    ]
    for i in range(config.depth):
        for kind in ("frame", "global"):
            blocks.append((f"aggregator.{kind}_blocks.{i}", config.embed, config.heads))
    for i in range(config.camera_depth):
        blocks.append((f"camera_head.trunk.{i}", 2 * config.embed, config.camera_heads))
    return blocks


class EqualWeights:
    """A raw (unfolded) source of the same function. Reads one tensor of the inner source per key.

    scales: name of a place -> s, float [width], positive; places that are not named keep theirs.
    rotated: whether the values of every attention are turned.
    """

    def __init__(
        self,
        source: WeightSource,
        config: VGGTConfig,
        scales: Mapping[str, Tensor],
        rotated: bool = False,
    ) -> None:
        self._source = source
        known = {place.name: place for place in places(config)}
        _check(scales, known)
        self._scales = {name: scale.double() for name, scale in scales.items()}
        self._divided: dict[str, list[Place]] = {}
        self._multiplied: dict[str, Place] = {}
        keys = frozenset(source.keys())
        for place in known.values():
            turned = rotated and place.kind == "values" and f"{place.linear}.weight" in keys
            if place.name not in scales and not turned:
                continue
            if f"{place.linear}.weight" not in keys:
                raise ModelError(
                    f"there are scales for {place.name}, and the weight source has no "
                    f"{place.linear}",
                    "give scales of places whose layers the checkpoint holds",
                )
            if turned:
                hadamard(place.width // place.heads)  # a size that has none ends here
            for key in place.divided:
                self._divided.setdefault(key, []).append(place)
            self._multiplied[f"{place.linear}.weight"] = place
        self._rotated = rotated

    @property
    def origin(self) -> ModelOrigin:
        """Of the checkpoint: the function is still its own."""
        return self._source.origin

    @property
    def changed(self) -> frozenset[str]:
        """The keys whose tensors differ from the inner source's."""
        return frozenset(self._divided) | frozenset(self._multiplied)

    def keys(self) -> tuple[str, ...]:
        return self._source.keys()

    def shape(self, key: str) -> tuple[int, ...]:
        return self._source.shape(key)

    def load(self, key: str) -> Tensor:
        tensor = self._source.load(key)
        if key not in self._divided and key not in self._multiplied:
            return tensor
        # Float64 until the end: one rounding per value, whatever is done to it.
        value = tensor.double()
        for place in self._divided.get(key, ()):
            value = self._divide(value, place)
        # A qkv weight is both: its value rows are divided, its columns multiplied by norm1's s.
        if key in self._multiplied:
            value = self._multiply(value, self._multiplied[key])
        return value.float()

    def _divide(self, value: Tensor, place: Place) -> Tensor:
        """Weight [C] or bias [C] of a norm, or weight [3C, K] or bias [3C] of a qkv projection."""
        scale = self._scales.get(place.name)
        if place.kind == "norm":
            return value if scale is None else value / scale
        others, rows = value[: -place.width], value[-place.width :]
        if self._rotated:
            rows = rotate_rows(rows, place.heads)
        if scale is not None:
            rows = rows / scale.view(-1, *([1] * (rows.dim() - 1)))
        return torch.cat([others, rows])

    def _multiply(self, weight: Tensor, place: Place) -> Tensor:
        """Weight [N, C] of the Linear that reads these channels."""
        if self._rotated and place.kind == "values":
            weight = rotate_columns(weight, place.heads)
        scale = self._scales.get(place.name)
        return weight if scale is None else weight * scale


def _check(scales: Mapping[str, Tensor], known: Mapping[str, Place]) -> None:
    for name, scale in scales.items():
        if name not in known:
            raise QuantizeError(
                f"{name!r} is no place where a scale can move",
                f"use names that equal.places gives, such as {next(iter(known))}",
            )
        width = known[name].width
        if tuple(scale.shape) != (width,):
            raise QuantizeError(
                f"{name} has {width} channels, and its scales have shape {list(scale.shape)}",
                f"give one scale for each channel, [{width}]",
            )
        if not bool((torch.isfinite(scale) & (scale > 0)).all()):
            raise QuantizeError(
                f"the scales of {name} are not all positive and finite",
                "search them again on other pictures, or leave smoothing out",
            )
