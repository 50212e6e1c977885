"""Exact rewrites of the weights that make the network smaller without changing its function.

Each rule is a function on tensors whose docstring is its equation; `FoldedWeights` applies all of
them to a source, key by key, and gives what `VGGT(config, folded=True)` expects: the same keys and
shapes without the LayerScale gammas. "Exact" is up to the rounding of one FP32 multiplication.
In FP16 that rounding is not harmless, so LayerScale can be left out (`quantize.plan` says when).
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from vggt_deploy.model.config import VGGTConfig
from vggt_deploy.model.encoder import IMAGE_MEAN, IMAGE_STD
from vggt_deploy.model.sources import ModelOrigin, WeightSource

PATCH_WEIGHT = "aggregator.patch_embed.patch_embed.proj.weight"
PATCH_BIAS = "aggregator.patch_embed.patch_embed.proj.bias"
SCALED = re.compile(r"(?P<block>.+)\.(?P<linear>attn\.proj|mlp\.fc2)\.(weight|bias)")
ROTATED = re.compile(
    r"aggregator\.(frame|global)_blocks\.\d+\.attn\.(?P<part>qkv|q_norm|k_norm)\.(weight|bias)"
)
GAMMA_OF = {"attn.proj": "ls1.gamma", "mlp.fc2": "ls2.gamma"}


def fold_normalization(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """conv(W, b)((x - mean) / std) = conv(W / std, b - sum_{c,i,j} W mean / std)(x).

    weight [N, 3, kh, kw], bias [N]. Exact because the patch convolution has no padding.
    """
    mean = torch.tensor(IMAGE_MEAN, dtype=torch.float64).view(1, 3, 1, 1)
    std = torch.tensor(IMAGE_STD, dtype=torch.float64).view(1, 3, 1, 1)
    folded = weight.double() / std
    shifted = bias.double() - (folded * mean).sum(dim=(1, 2, 3))
    return folded.float(), shifted.float()


def fold_layer_scale(tensor: Tensor, gamma: Tensor) -> Tensor:
    """LayerScale(W x + b) = gamma * (W x + b) = (diag(gamma) W) x + gamma * b.

    `tensor` is W [N, K] or b [N]; gamma [N] scales rows, the output channels. A per-channel
    quantization scale absorbs it exactly; per-tensor and grouped scales see other weights.
    """
    return tensor * gamma.view(-1, *([1] * (tensor.dim() - 1)))


def rope_order(head_dim: int) -> Tensor:
    """Channels of a head as rotate-half wants them: (y1, y2, x1, x2) -> (y1, x1, y2, x2).

    q . k does not change when both have their channels permuted alike, and LayerNorm commutes with
    a permutation of its affine; then 2-D RoPE is one rotate-half over the head with the table
    [cos(y f), cos(x f)].
    """
    y1, y2, x1, x2 = torch.arange(head_dim).chunk(4)
    return torch.cat([y1, x1, y2, x2])


def permute_rope(tensor: Tensor, heads: int, head_dim: int) -> Tensor:
    """Rows of q and k in `rope_order` within each head, those of v kept.

    `tensor` is the qkv weight [3C, K] or bias [3C]. The affines of q_norm and k_norm [head_dim] are
    permuted by `rope_order` itself.
    """
    first_row = torch.arange(2 * heads)[:, None] * head_dim  # the heads of q, then those of k
    rotated = (first_row + rope_order(head_dim)).flatten()
    kept = torch.arange(2 * heads * head_dim, 3 * heads * head_dim)
    return tensor.index_select(0, torch.cat([rotated, kept]))


class FoldedWeights:
    """A source seen through all rules. Reads at most two tensors of the inner source per key.

    With `keep_layer_scale`, `fold_layer_scale` is left out: the gammas are keys like the others.
    """

    def __init__(
        self, source: WeightSource, config: VGGTConfig, *, keep_layer_scale: bool = False
    ) -> None:
        self._source = source
        self._config = config
        self._keys = tuple(
            key
            for key in source.keys()  # noqa: SIM118  (a Protocol, not a dict)
            if keep_layer_scale or not key.endswith(".gamma")
        )
        # Those to fold; none of them is a key.
        self._gammas = frozenset(source.keys()) - frozenset(self._keys)

    @property
    def origin(self) -> ModelOrigin:
        return self._source.origin

    def keys(self) -> tuple[str, ...]:
        return self._keys

    def shape(self, key: str) -> tuple[int, ...]:
        return self._source.shape(key)

    def load(self, key: str) -> Tensor:
        if key in (PATCH_WEIGHT, PATCH_BIAS):
            pair = self._source.load(PATCH_WEIGHT), self._source.load(PATCH_BIAS)
            return fold_normalization(*pair)[key == PATCH_BIAS]
        tensor = self._source.load(key)
        if match := ROTATED.fullmatch(key):
            head_dim = self._config.head_dim
            if match["part"] == "qkv":
                return permute_rope(tensor, self._config.heads, head_dim)
            return tensor.index_select(0, rope_order(head_dim))
        if match := SCALED.fullmatch(key):
            gamma = f"{match['block']}.{GAMMA_OF[match['linear']]}"
            # The tracker's blocks have the same names and no LayerScale.
            if gamma in self._gammas:
                return fold_layer_scale(tensor, self._source.load(gamma))
        return tensor
