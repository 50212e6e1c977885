"""What quantization-aware training minimises: how far the student's outputs are from the teacher's.

The teacher is the FP32 network, the student the same with fake quantization; both see the same
pictures, and no labels are needed.

    total = pose * P + depth * D + points * X + confidence * C + features * F + task * T

    P   Huber of translation, quaternion and field of view, each a mean over its entries, weighted,
        of every iteration of the camera head against the teacher's same iteration, with weights
        decay^(last - i). The loop is cut between iterations, as VGGT trains it
    D   Huber of |d - d'| / max(d', NEAREST), d' the teacher's depth
    X   Huber of |x - x'| / max(|x'|, NEAREST), points in the frame of the first camera: the error
        relative to how far away the teacher sees the point
    C   mean |log c - log c'| of both confidences
    F   mean over the kept blocks, and over special and patch tokens as two classes, of
        |f - f'|^2 / |f' - mean f'|^2: five special tokens of a frame, of which one makes the pose,
        count as much as all its patches
    T   VGGT's own loss against the truth (`train.losses`), on the scenes that have it; weighted
        inside as vggt-nano was trained, without the losses on attention and motion

Means over pixels in D and X are weighted by the teacher's confidence over its mean: where the
teacher does not know, the student need not follow it. Huber is e^2 / (2 h) up to h, |e| - h / 2
beyond.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from vggt_deploy.model.camera_head import POSE_SIZE
from vggt_deploy.model.dpt_head import depth_and_confidence, points_and_confidence
from vggt_deploy.model.vggt import VGGT
from vggt_deploy.qat.recipe import DistillRecipe
from vggt_deploy.qat.scenes import QatBatch
from vggt_deploy.train.forward import Predictions, TrainingForward
from vggt_deploy.train.losses import NEAREST, TargetTensors, huber, training_losses
from vggt_deploy.train.recipe import LossRecipe, load_recipe, named_recipe

_PARTS = ("translation", slice(0, 3)), ("rotation", slice(3, 7)), ("field_of_view", slice(7, 9))
LOSSES = ("total", "pose", "depth", "points", "confidence", "features", "task")


@dataclass(frozen=True)
class Outputs:
    """Predictions without attention and motion, and the kept pairs of blocks {pair: [N, P, 2C]}."""

    predictions: Predictions
    features: Mapping[int, Tensor]


class DistillForward:
    """Runs one model at one image size as far as the loss looks."""

    def __init__(self, model: VGGT, height: int, width: int) -> None:
        self.model = model
        self._sized = TrainingForward(model, height, width)

    def __call__(self, images: Tensor, dense_frames: Tensor, dtype: torch.dtype) -> Outputs:
        """Images [B, S, 3, H, W], indices into B * S -> outputs, float32; bfloat16 by autocast."""
        model, config = self.model, self.model.config
        scenes, last = images.shape[0], config.depth - 1
        low = dtype != torch.float32
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=low):
            fields = self._sized.fields()
            layers = model.aggregator(images, fields, frozenset({*config.dpt_layers, last}))
            poses = self._poses(layers[last][:, :1], scenes)
            tokens = [
                layers[i].index_select(0, dense_frames)[:, config.special_tokens :]
                for i in config.dpt_layers
            ]
            raw_depth = model.depth_head(tokens, self._sized.grid, fields.dpt)
            raw_points = model.point_head(tokens, self._sized.grid, fields.dpt)
        # Exponentials in float32: bfloat16 has 3 digits. One "scene" of all dense frames.
        depth, depth_confidence = depth_and_confidence(raw_depth.float(), 1)
        points, point_confidence = points_and_confidence(raw_points.float(), 1)
        predictions = Predictions(
            poses,
            depth[0, ..., 0],
            depth_confidence[0],
            points[0],
            point_confidence[0],
            attention=[],
            motion=[],
        )
        return Outputs(predictions, layers)

    def _poses(self, camera_tokens: Tensor, scenes: int) -> list[Tensor]:
        """Raw poses [B, S, 9] of the iterations, before the ReLU on the field of view."""
        head = self.model.camera_head
        tokens, normalised = head.prepare(camera_tokens)
        known: Tensor = head.empty_pose_tokens
        emitted: list[Tensor] = []
        for _ in range(head.iterations):
            delta = head.refine(known, tokens, normalised, scenes).float()
            pose = known.detach() + delta if emitted else delta
            emitted.append(pose.reshape(scenes, -1, POSE_SIZE))
            known = pose.detach()
        return emitted


def distill_losses(
    student: Outputs,
    teacher: Outputs,
    batch: QatBatch,
    recipe: DistillRecipe,
    special_tokens: int,
) -> Tensor:
    """The losses [7], in the order of LOSSES."""
    mine, other = student.predictions, teacher.predictions
    pose = pose_loss(mine.poses, other.poses, recipe)
    depth = relative_loss(
        mine.depth[..., None], other.depth[..., None], other.depth_confidence, recipe.huber
    )
    points = relative_loss(mine.points, other.points, other.point_confidence, recipe.huber)
    confidence = (
        (mine.depth_confidence.log() - other.depth_confidence.log()).abs().mean()
        + (mine.point_confidence.log() - other.point_confidence.log()).abs().mean()
    ) / 2
    features = feature_loss(student.features, teacher.features, special_tokens)
    task = pose.new_zeros(())
    if recipe.task > 0 and batch.targets is not None:
        task = task_loss(mine, batch)
    total = (
        recipe.pose * pose
        + recipe.depth * depth
        + recipe.points * points
        + recipe.confidence * confidence
        + recipe.features * features
        + recipe.task * task
    )
    return torch.stack([total, pose, depth, points, confidence, features, task])


def pose_loss(
    student: Sequence[Tensor], teacher: Sequence[Tensor], recipe: DistillRecipe
) -> Tensor:
    """Raw poses [B, S, 9] of each iteration against the teacher's."""
    weights = {
        "translation": recipe.translation,
        "rotation": recipe.rotation,
        "field_of_view": recipe.field_of_view,
    }
    last = len(teacher) - 1
    total, whole = teacher[0].new_zeros(()), 0.0
    for i, (mine, other) in enumerate(zip(student, teacher, strict=True)):
        error = huber(mine - other, recipe.huber)
        decay = recipe.iteration_decay ** (last - i)
        for name, part in _PARTS:
            total = total + decay * weights[name] * error[..., part].mean()
        whole += decay
    return total / whole


def relative_loss(student: Tensor, teacher: Tensor, confidence: Tensor, width: float) -> Tensor:
    """Values [N, H, W, C] against the teacher's, relative to their size, by its confidence."""
    size = torch.linalg.vector_norm(teacher, dim=-1).clamp(min=NEAREST)
    distance = torch.linalg.vector_norm(student - teacher, dim=-1) / size
    weighted: Tensor = (confidence * huber(distance, width)).mean() / confidence.mean()
    return weighted


def feature_loss(
    student: Mapping[int, Tensor], teacher: Mapping[int, Tensor], special_tokens: int
) -> Tensor:
    """Relative squared error of the kept pairs [N, P, 2C], special and patch tokens apart."""
    losses = []
    for pair, whole in teacher.items():
        for rows in (slice(0, special_tokens), slice(special_tokens, None)):
            other = whole[:, rows].float()
            error = (student[pair][:, rows].float() - other).square().mean()
            losses.append(error / other.var(unbiased=False))
    return torch.stack(losses).mean()


def task_loss(predictions: Predictions, batch: QatBatch) -> Tensor:
    """VGGT's loss on the scenes of the batch that have truth."""
    assert batch.targets is not None
    device, targets = predictions.depth.device, batch.targets
    known = torch.from_numpy(batch.known)
    views = targets.pose.shape[1]
    dense = torch.from_numpy(batch.dense_frames)
    scene = dense // views
    place = torch.full((int(batch.images.shape[0]),), -1, dtype=torch.int64)
    place[known] = torch.arange(len(known))
    (mine,) = (place[scene] >= 0).nonzero(as_tuple=True)  # dense frames of scenes with truth
    theirs = place[scene[mine]] * views + dense[mine] % views
    depth, points, valid = (
        torch.from_numpy(array.reshape(-1, *array.shape[2:])[theirs.numpy()]).to(device)
        for array in (targets.depth, targets.points, targets.valid)
    )
    mine, known = mine.to(device), known.to(device)
    seen = Predictions(
        [pose[known] for pose in predictions.poses],
        predictions.depth[mine],
        predictions.depth_confidence[mine],
        predictions.points[mine],
        predictions.point_confidence[mine],
        attention=[],
        motion=[],
    )
    pose = torch.from_numpy(targets.pose).to(device)
    return training_losses(seen, TargetTensors(pose, depth, points, valid), _vggt_loss()).total


@cache
def _vggt_loss() -> LossRecipe:
    """As vggt-nano was trained, without the losses that training alone needs."""
    return replace(load_recipe(named_recipe("vggt-nano")).loss, match=0.0, motion=0.0)
