"""Transformer parts that encoder, aggregator and camera head share.

The token stream is [B*S, P, C] everywhere: P tokens in each of B*S frames. A block attends within a
frame, or, given `scenes` = B, over all S*P tokens of a scene. Merging happens after RoPE, on q, k
and v only, so the RoPE table [P, 1, D/2] serves every frame and is never repeated.

Shapes are written with one -1 and otherwise static numbers: with a symbolic S each Reshape of the
exported graph then has a constant shape, and no Shape/Gather/Concat chain before it.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vggt_deploy.model.config import MLP_RATIO

AttentionKind = Literal["sdpa", "explicit"]
Rope = tuple[Tensor, Tensor]


def rotate_axial(x: Tensor, rope: Rope) -> Tensor:
    """2-D RoPE in the checkpoint's channel order: x [N, P, heads, D], rope 2 x [P, 1, D/2].

    Quarters (y1, y2, x1, x2) of a head; (a, b) -> (a cos - b sin, b cos + a sin) on (y1, y2) by the
    row's angle and on (x1, x2) by the column's.
    """
    y1, y2, x1, x2 = x.chunk(4, dim=-1)
    cos_y, cos_x = rope[0].chunk(2, dim=-1)
    sin_y, sin_x = rope[1].chunk(2, dim=-1)
    return torch.cat(
        [
            y1 * cos_y - y2 * sin_y,
            y2 * cos_y + y1 * sin_y,
            x1 * cos_x - x2 * sin_x,
            x2 * cos_x + x1 * sin_x,
        ],
        dim=-1,
    )


def rotate_half(x: Tensor, rope: Rope) -> Tensor:
    """2-D RoPE after `fold.permute_rope`: one rotate-half over the head."""
    cos, sin = rope
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin], dim=-1)


def attend(q: Tensor, k: Tensor, v: Tensor, kind: AttentionKind) -> Tensor:
    """softmax(q k^T / sqrt(D)) v over q, k, v [N, T, heads, D] -> [N, T, heads, D].

    "explicit" is written out for export. The scale goes to q, before the product: scores of FP16
    inputs could overflow 65504 otherwise.
    """
    if kind == "sdpa":
        q, k, v = (t.permute(0, 2, 1, 3) for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).permute(0, 2, 1, 3)
    q = (q * q.shape[-1] ** -0.5).permute(0, 2, 1, 3)
    scores = torch.matmul(q, k.permute(0, 2, 3, 1))
    return torch.matmul(scores.softmax(dim=-1), v.permute(0, 2, 1, 3)).permute(0, 2, 1, 3)


class Attention(nn.Module):
    """Multi-head self-attention with one qkv Linear; optionally qk-norm and RoPE.

    Rows of `qkv` are q, then k, then v, head-major inside each.
    """

    def __init__(
        self, dim: int, heads: int, *, qk_norm: bool, folded: bool, kind: AttentionKind
    ) -> None:
        super().__init__()
        self.heads = heads
        self.head_dim = dim // heads
        self.folded = folded
        self.kind = kind
        self.qkv = nn.Linear(dim, 3 * dim)
        # qk-norm has torch's default eps whatever the block's norms have.
        self.q_norm = nn.LayerNorm(self.head_dim) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(self.head_dim) if qk_norm else nn.Identity()
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, rope: Rope | None = None, scenes: int | None = None) -> Tensor:
        tokens, dim = x.shape[1:]
        q, k, v = self.project(x, rope, scenes)
        out: Tensor = self.proj(attend(q, k, v, self.kind).reshape(-1, tokens, dim))
        return out

    def project(
        self, x: Tensor, rope: Rope | None, scenes: int | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """X [B*S, P, C] -> q, k, v as they enter the product: [B*S, P, heads, D], or, given scenes,
        [B, S*P, heads, D].
        """
        tokens = x.shape[1]
        merged = scenes is not None and rope is None
        lead = (scenes, -1) if merged else (-1, tokens)
        qkv = self.qkv(x).reshape(*lead, 3 * self.heads, self.head_dim)
        q, k, v = qkv.split(self.heads, dim=2)
        q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            rotate = rotate_half if self.folded else rotate_axial
            q, k = rotate(q, rope), rotate(k, rope)
        if scenes is not None and not merged:
            shape = (scenes, -1, self.heads, self.head_dim)
            q, k, v = q.reshape(shape), k.reshape(shape), v.reshape(shape)
        return q, k, v


class Mlp(nn.Module):
    """fc2(GELU(fc1(x))), GELU exact (erf)."""

    def __init__(self, dim: int, hidden: int, out: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class LayerScale(nn.Module):
    """x * gamma, per channel. Absent from a folded model, unless that keeps it."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """x + g1 * Attention(LN(x)), then x + g2 * MLP(LN(x)). x [B*S, P, C]."""

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        qk_norm: bool = False,
        eps: float = 1e-5,
        folded: bool = False,
        keep_layer_scale: bool = False,
        attention: AttentionKind = "sdpa",
    ) -> None:
        super().__init__()
        scaled = keep_layer_scale or not folded
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = Attention(dim, heads, qk_norm=qk_norm, folded=folded, kind=attention)
        self.ls1 = LayerScale(dim) if scaled else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, MLP_RATIO * dim, dim)
        self.ls2 = LayerScale(dim) if scaled else nn.Identity()

    def forward(self, x: Tensor, rope: Rope | None = None, scenes: int | None = None) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x), rope, scenes))
        out: Tensor = x + self.ls2(self.mlp(self.norm2(x)))
        return out
