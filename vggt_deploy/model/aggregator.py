"""Encoder, special tokens, and the alternating frame and global attention."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vggt_deploy.model.config import VGGTConfig
from vggt_deploy.model.encoder import Encoder
from vggt_deploy.model.fields import GridFields
from vggt_deploy.model.layers import AttentionKind, Block


class Aggregator(nn.Module):
    """Images -> the token maps that the heads read.

    Pair i is a frame block (attention inside each frame) and a global block (over all tokens of the
    scene). Its output is [stream after the frame block, stream after the global block] along the
    channels, un-normalised. Only the pairs a head asks for are kept: 4 of 24 in VGGT-1B.
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
        embed = config.embed
        # Variant 0 marks the first frame, whose camera is the world; variant 1 all others.
        self.camera_token = nn.Parameter(torch.zeros(1, 2, 1, embed))
        self.register_token = nn.Parameter(torch.zeros(1, 2, config.registers, embed))
        self.patch_embed = Encoder(
            config, folded=folded, attention=attention, keep_layer_scale=keep_layer_scale
        )

        def blocks() -> nn.ModuleList:
            return nn.ModuleList(
                Block(
                    embed,
                    config.heads,
                    qk_norm=True,
                    folded=folded,
                    keep_layer_scale=keep_layer_scale,
                    attention=attention,
                )
                for _ in range(config.depth)
            )

        self.frame_blocks = blocks()
        self.global_blocks = blocks()

    def forward(
        self,
        images: Tensor,
        fields: GridFields,
        keep: frozenset[int],
        watch: Callable[[int, Tensor], None] | None = None,
    ) -> dict[int, Tensor]:
        """Images [B, S, 3, H, W] -> {pair: [B*S, P, 2C]} for each pair in `keep`.

        `watch(pair, tokens)` is shown what each global block gets; training looks at its attention.
        """
        scenes, frames, _, height, width = images.shape
        patches = self.patch_embed(images.reshape(-1, 3, height, width), fields)
        x = torch.cat([self.special_tokens(scenes, frames, images.device), patches], dim=1)
        rope = (fields.rope_cos, fields.rope_sin)
        kept: dict[int, Tensor] = {}
        for i, (frame_block, global_block) in enumerate(
            zip(self.frame_blocks, self.global_blocks, strict=True)
        ):
            within = frame_block(x, rope)
            if watch is not None:
                watch(i, within)
            x = global_block(within, rope, scenes)
            if i in keep:
                kept[i] = torch.cat([within, x], dim=-1)
        return kept

    def special_tokens(self, scenes: int, frames: int, device: torch.device) -> Tensor:
        """[B*S, 1 + registers, C]: variant 0 for frame 0, variant 1 for the others.

        Chosen by frame index. A size S - 1 would make a trace special at S = 1 and S = 2.
        """
        variants = torch.cat([self.camera_token, self.register_token], dim=2)[0]
        variant = torch.arange(frames, device=device).clamp(max=1)
        tokens = variants.index_select(0, variant)
        return tokens if scenes == 1 else tokens.repeat(scenes, 1, 1)
