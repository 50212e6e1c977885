"""The network as training runs it: the parts of `model.VGGT`, with what only training needs.

Beside `VGGT.forward` the dense heads may see a part of the frames, the loop of the camera head is
cut between its iterations, as VGGT trains it, and the positional embedding gets a gradient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vggt_deploy.model.camera_head import POSE_SIZE
from vggt_deploy.model.config import VGGTConfig
from vggt_deploy.model.dpt_head import depth_and_confidence, points_and_confidence
from vggt_deploy.model.fields import GridFields, grid_fields, resize_pos_embed
from vggt_deploy.model.layers import Block
from vggt_deploy.model.vggt import VGGT


@dataclass(frozen=True)
class Predictions:
    """poses: per iteration [B, S, 9], the field of view before its ReLU, so that a negative one has
    a gradient; depth and its confidence [N, H, W], points [N, H, W, 3] and theirs, N dense frames;
    attention: of the watched global blocks, scores before the softmax [B, heads, S*P, S*P];
    motion: of the motion heads, [B, S, patches, 2] each.
    """

    poses: list[Tensor]
    depth: Tensor
    depth_confidence: Tensor
    points: Tensor
    point_confidence: Tensor
    attention: list[Tensor]
    motion: list[Tensor]


class MotionHeads(nn.Module):
    """One Linear for each of some pairs of the aggregator: from the patch tokens after its global
    block to the patch's motion, as in `matches.Matches`. Thrown away after the training.
    """

    def __init__(self, config: VGGTConfig, pairs: Sequence[int]) -> None:
        super().__init__()
        self.pairs = tuple(pairs)
        self.linears = nn.ModuleList(nn.Linear(config.embed, 2) for _ in pairs)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, layers: Mapping[int, Tensor], special: int, scenes: int) -> list[Tensor]:
        """Layers of the aggregator [B*S, P, 2C] -> motions [B, S, patches, 2], one a pair."""
        found = []
        for pair, linear in zip(self.pairs, self.linears, strict=True):
            patches = layers[pair][:, special:, linear.in_features :]
            motion = linear(patches)
            found.append(motion.reshape(scenes, -1, *motion.shape[1:]))
        return found


class TrainingForward:
    """Runs one model at one image size; holds what depends on the size alone."""

    def __init__(self, model: VGGT, height: int, width: int) -> None:
        config = model.config
        self.model = model
        self.grid = config.grid(height, width)
        embedding = model.aggregator.patch_embed.pos_embed.detach()
        self._fields = grid_fields(config, embedding, height, width)
        # Resizing is linear: what it does to the unit vectors is its matrix [P, 1 + n * n].
        entries = embedding.shape[1]
        identity = torch.eye(entries, device=embedding.device)[None]
        self._resize = resize_pos_embed(config, identity, *self.grid)[0]

    def fields(self) -> GridFields:
        """The fields of this size, with the present positional embedding and its gradient."""
        embedding = self.model.aggregator.patch_embed.pos_embed
        return self._fields._replace(pos_embed=(self._resize @ embedding[0])[None])

    def __call__(
        self,
        images: Tensor,
        dense_frames: Tensor,
        dtype: torch.dtype,
        watched: frozenset[int] = frozenset(),
        motion_heads: MotionHeads | None = None,
    ) -> Predictions:
        """Images [B, S, 3, H, W], indices into B * S -> predictions, float32.

        With `dtype` bfloat16 the products run in it, by autocast. `watched` names the global blocks
        whose attention is wanted.
        """
        model, config = self.model, self.model.config
        scenes, last = images.shape[0], config.depth - 1
        low = dtype != torch.float32
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=low):
            fields, attention = self.fields(), []

            def watch(pair: int, tokens: Tensor) -> None:
                if pair in watched:
                    attention.append(self._attention(pair, tokens, fields, scenes))

            moving = motion_heads.pairs if motion_heads is not None else ()
            keep = frozenset({*config.dpt_layers, last, *moving})
            layers = model.aggregator(images, fields, keep, watch)
            poses = self._poses(layers[last][:, :1], scenes)
            tokens = [
                layers[i].index_select(0, dense_frames)[:, config.special_tokens :]
                for i in config.dpt_layers
            ]
            motion = []
            if motion_heads is not None:
                motion = motion_heads(layers, config.special_tokens, scenes)
            raw_depth = model.depth_head(tokens, self.grid, self._fields.dpt)
            raw_points = model.point_head(tokens, self.grid, self._fields.dpt)
        # Exponentials in float32: bfloat16 has 3 digits. One "scene" of all dense frames.
        depth, depth_confidence = depth_and_confidence(raw_depth.float(), 1)
        points, point_confidence = points_and_confidence(raw_points.float(), 1)
        return Predictions(
            poses,
            depth[0, ..., 0],
            depth_confidence[0],
            points[0],
            point_confidence[0],
            attention,
            motion,
        )

    def _attention(self, pair: int, tokens: Tensor, fields: GridFields, scenes: int) -> Tensor:
        """Scores before the softmax of a global block that gets `tokens`, [B, heads, S*P, S*P]."""
        block = self.model.aggregator.global_blocks[pair]
        assert isinstance(block, Block)
        rope = (fields.rope_cos, fields.rope_sin)
        q, k, _ = block.attn.project(block.norm1(tokens), rope, scenes)
        q, k = q.transpose(1, 2), k.transpose(1, 2)
        scores: Tensor = (q @ k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5
        return scores

    def _poses(self, camera_tokens: Tensor, scenes: int) -> list[Tensor]:
        """`CameraHead.forward` with the gradient cut between iterations."""
        head = self.model.camera_head
        tokens, normalised = head.prepare(camera_tokens)
        pose: Tensor | None = None
        emitted = []
        for _ in range(head.iterations):
            known = None if pose is None else pose.detach()
            delta = head.refine(
                head.empty_pose_tokens if known is None else known, tokens, normalised, scenes
            ).float()
            pose = delta if known is None else known + delta
            emitted.append(pose.reshape(scenes, -1, POSE_SIZE))
        return emitted
