"""The camera head: from each frame's camera token to its pose, in four refinements."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vggt_deploy.model.config import VGGTConfig
from vggt_deploy.model.layers import AttentionKind, Block, Mlp

POSE_SIZE = 9  # translation 3, quaternion XYZW 4, field of view (vertical, horizontal) 2
LINEAR_ENTRIES = 7
MODULATION_EPS = 1e-6


class CameraHead(nn.Module):
    """Camera tokens [B*S, 1, 2C] -> poses [B, S, 9], one tensor per iteration.

    Each iteration embeds the pose so far, modulates the normalised token with it (shift, scale,
    gate), runs the trunk over the S camera tokens of a scene and adds the trunk's correction. The
    weights are the same in every iteration.
    """

    def __init__(
        self,
        config: VGGTConfig,
        *,
        folded: bool,
        attention: AttentionKind,
        keep_layer_scale: bool = False,
    ) -> None:
        super().__init__()
        dim = 2 * config.embed
        self.iterations = config.camera_iterations
        self.empty_pose_tokens = nn.Parameter(torch.zeros(1, 1, POSE_SIZE))
        self.trunk = nn.ModuleList(
            Block(
                dim,
                config.camera_heads,
                folded=folded,
                keep_layer_scale=keep_layer_scale,
                attention=attention,
            )
            for _ in range(config.camera_depth)
        )
        self.token_norm = nn.LayerNorm(dim)
        self.trunk_norm = nn.LayerNorm(dim)
        self.embed_pose = nn.Linear(POSE_SIZE, dim)
        self.poseLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 3 * dim))
        self.pose_branch = Mlp(dim, dim // 2, POSE_SIZE)

    def forward(self, tokens: Tensor, scenes: int) -> list[Tensor]:
        tokens, normalised = self.prepare(tokens)
        pose: Tensor | None = None
        emitted = []
        for _ in range(self.iterations):
            # The empty pose [1, 1, 9] is the same for every frame: its modulation broadcasts.
            delta = self.refine(
                self.empty_pose_tokens if pose is None else pose, tokens, normalised, scenes
            )
            pose = delta if pose is None else pose + delta
            emitted.append(activate_pose(pose).reshape(scenes, -1, POSE_SIZE))
        return emitted

    def prepare(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """What all iterations share: the normalised tokens, and those again without an affine."""
        tokens = self.token_norm(tokens)
        return tokens, F.layer_norm(tokens, tokens.shape[-1:], eps=MODULATION_EPS)

    def refine(self, pose: Tensor, tokens: Tensor, normalised: Tensor, scenes: int) -> Tensor:
        """One iteration: raw pose so far [B*S or 1, 1, 9] -> its correction [B*S, 1, 9]."""
        shift, scale, gate = self.poseLN_modulation(self.embed_pose(pose)).chunk(3, dim=-1)
        x = gate * (normalised * (1 + scale) + shift) + tokens
        for block in self.trunk:
            x = block(x, scenes=scenes)
        delta: Tensor = self.pose_branch(self.trunk_norm(x))
        return delta


def activate_pose(pose: Tensor) -> Tensor:
    """Raw pose [..., 9] -> emitted pose: ReLU on the field of view, the rest as it is.

    The loop goes on from the raw pose; a negative raw field of view must not be cut inside it.
    """
    return torch.cat([pose[..., :LINEAR_ENTRIES], F.relu(pose[..., LINEAR_ENTRIES:])], dim=-1)
