"""VGGT: images of one scene in, cameras, depth, points (and tracks) out.

State-dict compatible with facebook/VGGT-1B, and written so that it exports: `forward_fields` is a
pure function of images and `GridFields`. No caches, no chunks over frames, no Python that depends
on data, and no shape that depends on S except through a -1.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vggt_deploy.errors import UsageError
from vggt_deploy.model.aggregator import Aggregator
from vggt_deploy.model.camera_head import CameraHead
from vggt_deploy.model.config import VGGTConfig
from vggt_deploy.model.dpt_head import DPTHead, depth_and_confidence, points_and_confidence
from vggt_deploy.model.fields import GridFields, grid_fields
from vggt_deploy.model.layers import AttentionKind
from vggt_deploy.model.track_head import TrackHead


class VGGT(nn.Module):
    """The network.

    heads      which of camera, depth, point, track to build; None is all that the config has
    folded     the form that `fold.FoldedWeights` fills: no LayerScale, no mean and std, RoPE as one
               rotate-half. Same function, same other keys
    keep_layer_scale  with folded: the form with LayerScale, for weights folded with the same
               argument (`quantize.plan.keeps_layer_scale` says when)
    attention  "sdpa" for eager use, "explicit" (matmul, softmax, matmul) for export
    """

    def __init__(
        self,
        config: VGGTConfig,
        *,
        heads: frozenset[str] | None = None,
        folded: bool = False,
        keep_layer_scale: bool = False,
        attention: AttentionKind = "sdpa",
    ) -> None:
        super().__init__()
        heads = config.available_heads if heads is None else heads
        if not heads or not heads <= config.available_heads:
            raise UsageError(
                f"model {config.name} has no such heads: {sorted(heads)}",
                f"choose some of: {', '.join(sorted(config.available_heads))}",
            )
        self.config = config
        self.heads = heads
        self.folded = folded
        self.aggregator = Aggregator(
            config, folded=folded, attention=attention, keep_layer_scale=keep_layer_scale
        )
        if "camera" in heads:
            self.camera_head = CameraHead(
                config, folded=folded, attention=attention, keep_layer_scale=keep_layer_scale
            )
        if "depth" in heads:
            self.depth_head = DPTHead(config, out=2)
        if "point" in heads:
            self.point_head = DPTHead(config, out=4)
        if "track" in heads and config.track is not None:
            self.track_head = TrackHead(config, config.track)

    def forward(self, images: Tensor, query_points: Tensor | None = None) -> dict[str, Any]:
        """Images [S, 3, H, W] or [B, S, 3, H, W], RGB in 0..1 -> outputs under upstream's names:

        pose_enc [B, S, 9], pose_enc_list (one per iteration), depth [B, S, H, W, 1], depth_conf
        [B, S, H, W], world_points [B, S, H, W, 3], world_points_conf [B, S, H, W] and the images.
        With query points [N, 2] or [B, N, 2], pixels (x, y) of frame 0: track [B, S, N, 2], vis
        and conf [B, S, N].
        """
        if images.dim() == 4:
            images = images.unsqueeze(0)
        if query_points is not None and "track" not in self.heads:
            raise UsageError(
                "query points were given and this model has no track head",
                "build the model with the track head, or leave query_points out",
            )
        fields = self.fields(*images.shape[-2:])
        outputs: dict[str, Any] = {}
        dense, poses, tokens = self._run(images, fields)
        if poses:
            outputs["pose_enc"] = poses[-1]
            outputs["pose_enc_list"] = poses
        outputs.update(dense)
        if query_points is not None:
            queries = query_points if query_points.dim() == 3 else query_points.unsqueeze(0)
            grid = self.config.grid(images.shape[-2], images.shape[-1])
            tracks = self.track_head(tokens, grid, queries)
            outputs.update(track=tracks.track, vis=tracks.visibility, conf=tracks.confidence)
        outputs["images"] = images
        return outputs

    def fields(self, height: int, width: int) -> GridFields:
        """The fields for images of this size, from the model's own positional embedding."""
        return grid_fields(self.config, self.aggregator.patch_embed.pos_embed, height, width)

    def forward_fields(self, images: Tensor, fields: GridFields) -> dict[str, Tensor]:
        """The traced path: images [B, S, 3, H, W] and their fields -> outputs without track."""
        dense, poses, _ = self._run(images, fields)
        return ({"pose_enc": poses[-1]} if poses else {}) | dense

    def _run(
        self, images: Tensor, fields: GridFields
    ) -> tuple[dict[str, Tensor], list[Tensor], list[Tensor]]:
        """-> dense outputs, the pose of each iteration, the DPT heads' tokens 4 x [N, h*w, 2C]."""
        camera_tokens, dense, tokens = self.run_until_camera(images, fields)
        poses = [] if camera_tokens is None else self.camera_head(camera_tokens, images.shape[0])
        return dense, poses, tokens

    def run_until_camera(
        self, images: Tensor, fields: GridFields
    ) -> tuple[Tensor | None, dict[str, Tensor], list[Tensor]]:
        """Everything but the camera head and its loop.

        -> the camera tokens [B*S, 1, 2C] it starts from (None without it), the dense outputs, and
        the DPT heads' tokens 4 x [B*S, h*w, 2C].
        """
        scenes = images.shape[0]
        config, grid = self.config, self.config.grid(images.shape[-2], images.shape[-1])
        last = config.depth - 1
        dense_layers = config.dpt_layers if self.heads - {"camera"} else ()
        keep = frozenset(dense_layers) | ({last} if "camera" in self.heads else set())
        layers = self.aggregator(images, fields, keep)
        camera_tokens = layers[last][:, :1] if "camera" in self.heads else None
        tokens = [layers[i][:, config.special_tokens :] for i in dense_layers]
        dense: dict[str, Tensor] = {}
        if "depth" in self.heads:
            raw = self.depth_head(tokens, grid, fields.dpt)
            dense["depth"], dense["depth_conf"] = depth_and_confidence(raw, scenes)
        if "point" in self.heads:
            raw = self.point_head(tokens, grid, fields.dpt)
            dense["world_points"], dense["world_points_conf"] = points_and_confidence(raw, scenes)
        return camera_tokens, dense, tokens
