"""The steps of a training: shards side by side, AdamW, the log, checkpoints.

One thread works on one shard, with one thread inside each operator: gradients are summed in the
order of the shards, so the weights depend on the recipe and the kind of processor, not on how many
threads there were. It also wastes less than splitting every small operator.
"""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor, nn

from vggt_deploy.compare.truth import mean_metrics
from vggt_deploy.errors import DeployError
from vggt_deploy.model.config import VGGTConfig
from vggt_deploy.model.vggt import VGGT
from vggt_deploy.progress import Progress
from vggt_deploy.train.batches import Batch, training_batch
from vggt_deploy.train.centre import centre_camera_tokens
from vggt_deploy.train.forward import MotionHeads, TrainingForward
from vggt_deploy.train.losses import TargetTensors, training_losses
from vggt_deploy.train.matches import tokens_seen_by
from vggt_deploy.train.pool import ScenePool
from vggt_deploy.train.recipe import OptimizerRecipe, TrainingRecipe
from vggt_deploy.train.scoring import SceneTruth, model_metrics, single_threads
from vggt_deploy.train.state import (
    LOG_FILE,
    Checkpoint,
    LogRow,
    Window,
    append_row,
    save_checkpoint,
    start_rows,
)

logger = logging.getLogger(__name__)

LOG_STEPS = 50
CHECKPOINT_STEPS = 250
SCORE_STEPS = 500
MOST_SKIPPED = 20


class TrainingError(DeployError):
    """The training went wrong in a way that more steps don't put right."""


@dataclass(frozen=True)
class ShardResult:
    """Losses (as in `Losses`, in that order) of one shard, and its gradients in the parameters'
    order.
    """

    losses: tuple[float, ...]
    gradients: tuple[Tensor, ...]


class Trainer:
    """A training between two steps."""

    def __init__(self, model: VGGT, recipe: TrainingRecipe, pool: ScenePool) -> None:
        self.model, self.recipe, self.pool = model, recipe, pool
        self.step = 0
        self.window = Window()
        self.motion_heads = MotionHeads(model.config, recipe.loss.motion_pairs)
        self.motion_heads.to(next(model.parameters()).device)
        # mask_token is in every checkpoint, and no forward uses it: it would have no gradient.
        named = [(n, p) for n, p in model.named_parameters() if not n.endswith("mask_token")]
        named += [(f"motion_heads.{n}", p) for n, p in self.motion_heads.named_parameters()]
        self.parameters = [parameter for _, parameter in named]
        self.optimizer = make_optimizer(named, recipe.optimizer)
        self._forward = TrainingForward(model, recipe.scenes.height, recipe.scenes.width)
        self._device = self.parameters[0].device
        low = recipe.precision == "bf16" or (
            recipe.precision == "auto" and self._device.type == "cuda"
        )
        self._dtype = torch.bfloat16 if low else torch.float32
        self._pose_step = round(recipe.loss.pose_from * recipe.steps)

    @property
    def _parts(self) -> nn.ModuleDict:
        return nn.ModuleDict({"model": self.model, "motion_heads": self.motion_heads})

    def restore(self, checkpoint: Checkpoint) -> None:
        self._parts.load_state_dict(checkpoint.model)
        self.optimizer.load_state_dict(dict(checkpoint.optimizer))
        self.step, self.window = checkpoint.step, checkpoint.window

    def checkpoint(self) -> Checkpoint:
        return Checkpoint(
            self.step, self._parts.state_dict(), self.optimizer.state_dict(), self.window
        )

    def train_step(self, executor: Executor) -> None:
        """One step; one that is not finite is left out.

        Raises:
            TrainingError: MOST_SKIPPED steps in a row were left out.
        """
        if self._pose_step and self.step == self._pose_step:
            centre_camera_tokens(self._forward, self.pool, self.recipe)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.recipe.optimizer, self.step, self.recipe.steps)
        shards = list(executor.map(self._shard, range(self.recipe.batch.shards)))
        losses = [
            sum(values) / len(shards) for values in zip(*(s.losses for s in shards), strict=True)
        ]
        norm = set_gradients(
            self.parameters, [s.gradients for s in shards], self.recipe.optimizer.clip_norm
        )
        if math.isfinite(norm) and all(math.isfinite(loss) for loss in losses):
            self.optimizer.step()
            self._count(losses, norm)
        else:
            self._skip(losses, norm)
        self.optimizer.zero_grad()
        self.step += 1

    def _shard(self, shard: int) -> ShardResult:
        batch = training_batch(self.pool, self.recipe, self.step, shard)
        return self.shard_result(batch)

    def shard_result(self, batch: Batch) -> ShardResult:
        """Losses and gradients of a batch, the gradients divided by the number of shards."""
        device = self._device
        predictions = self._forward(
            torch.from_numpy(batch.images).to(device),
            torch.from_numpy(batch.dense_frames).to(device),
            self._dtype,
            frozenset(self.recipe.loss.match_blocks if batch.matches else ()),
            self.motion_heads if batch.matches else None,
        )
        targets = target_tensors(batch, device, self.model.config)
        loss = self.recipe.loss
        if self.step < self._pose_step:
            loss = replace(loss, pose=0.0)
        losses = training_losses(predictions, targets, loss, self.step / self.recipe.steps)
        gradients = gradients_of(losses.total / self.recipe.batch.shards, self.parameters)
        parts = (
            losses.total, losses.pose, losses.depth, losses.points, losses.match, losses.motion,
        )  # fmt: skip
        return ShardResult(tuple(float(part.detach()) for part in parts), gradients)

    def _count(self, losses: Sequence[float], norm: float) -> None:
        window = self.window
        window.steps += 1
        window.total += losses[0]
        window.pose += losses[1]
        window.depth += losses[2]
        window.points += losses[3]
        window.match += losses[4]
        window.motion += losses[5]
        window.gradient_norm += norm
        window.skipped_in_row = 0

    def _skip(self, losses: Sequence[float], norm: float) -> None:
        window = self.window
        window.skipped += 1
        window.skipped_in_row += 1
        logger.warning("step %d left out: loss %s, gradient norm %s", self.step, losses[0], norm)
        if window.skipped_in_row >= MOST_SKIPPED:
            raise TrainingError(
                f"{MOST_SKIPPED} steps in a row had a loss or gradient that is not finite, the "
                f"last of them step {self.step}",
                "lower optimizer.peak in the recipe, or raise optimizer.warmup_steps",
            )


def gradients_of(loss: Tensor, parameters: Sequence[nn.Parameter]) -> tuple[Tensor, ...]:
    """Gradients in the parameters' own layout.

    A convolution's comes with its channels last, a slice's with the strides of the whole. The fused
    AdamW reads memory in order and does not look at strides: it would take one for another.
    """
    # The motion heads have no gradient in a batch without matches.
    gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
    return tuple(gradient.contiguous() for gradient in gradients)


def set_gradients(
    parameters: Sequence[nn.Parameter], shards: Sequence[Sequence[Tensor]], clip_norm: float
) -> float:
    """Give the parameters the sum of the shards' gradients, clipped -> its norm before that."""
    gradients = list(shards[0])
    for shard in shards[1:]:
        torch._foreach_add_(gradients, list(shard))
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    return float(nn.utils.clip_grad_norm_(parameters, clip_norm))


def target_tensors(batch: Batch, device: torch.device, config: VGGTConfig) -> TargetTensors:
    """Targets of all poses, of the depth and points of the dense frames, and of attention."""
    targets, seen = batch.targets, batch.dense_frames
    depth, points, valid = (
        torch.from_numpy(array.reshape(-1, *array.shape[2:])[seen]).to(device)
        for array in (targets.depth, targets.points, targets.valid)
    )
    pose = torch.from_numpy(targets.pose).to(device)
    matches = batch.matches
    if matches is None:
        return TargetTensors(pose, depth, points, valid)
    moved = matches.matched.copy()
    moved[:, 0] = False  # the first view is where the others' motion leads to
    return TargetTensors(
        pose,
        depth,
        points,
        valid,
        torch.from_numpy(tokens_seen_by(matches, config.special_tokens)).to(device),
        torch.from_numpy(matches.motion).to(device),
        torch.from_numpy(moved).to(device),
    )


def make_optimizer(
    named: Sequence[tuple[str, nn.Parameter]], recipe: OptimizerRecipe
) -> torch.optim.AdamW:
    """AdamW; only the weights of Linears and convolutions decay, not biases, norms or tokens."""
    decaying = [p for n, p in named if n.endswith(".weight") and p.dim() >= 2]
    others = [p for n, p in named if not (n.endswith(".weight") and p.dim() >= 2)]
    return torch.optim.AdamW(
        [
            {"params": decaying, "weight_decay": recipe.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=recipe.peak,
        betas=(recipe.beta1, recipe.beta2),
        fused=True,
    )


def learning_rate(recipe: OptimizerRecipe, step: int, steps: int) -> float:
    """Linear from peak / warmup to the peak, then half a cosine down to `final`."""
    warmup = recipe.warmup_steps
    if step < warmup:
        return recipe.peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return recipe.final + (recipe.peak - recipe.final) * 0.5 * (1 + math.cos(math.pi * done))


def run_steps(
    trainer: Trainer,
    run: Path,
    scored: Sequence[SceneTruth],
    *,
    threads: int,
    progress: Progress,
) -> None:
    """Train to the end, writing log and checkpoints into `run`.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM came; a checkpoint of the last whole step is written.
        TrainingError: see `Trainer.train_step`; the checkpoint is then the last regular one.
    """
    recipe = trainer.recipe
    start_rows(run / LOG_FILE, LogRow, trainer.step)
    since_s, since_step = time.perf_counter(), trainer.step
    with single_threads(threads) as executor, interrupts() as interrupted:
        while trainer.step < recipe.steps:
            trainer.train_step(executor)
            step, last = trainer.step, trainer.step == recipe.steps
            progress("train", step, recipe.steps)
            if step % LOG_STEPS == 0 or last:
                seconds = time.perf_counter() - since_s
                rate = (step - since_step) * recipe.batch.frames / seconds
                is_scored = step % SCORE_STEPS == 0 or last
                append_row(
                    run / LOG_FILE, _log_row(trainer, rate, scored if is_scored else (), executor)
                )
                trainer.window.restart()
                since_s, since_step = time.perf_counter(), step
            if step % CHECKPOINT_STEPS == 0 or last or interrupted.is_set():
                save_checkpoint(run, trainer.checkpoint(), recipe)
            if interrupted.is_set() and not last:
                raise KeyboardInterrupt


def _log_row(
    trainer: Trainer, rate: float, scored: Sequence[SceneTruth], executor: Executor
) -> LogRow:
    window, recipe = trainer.window, trainer.recipe
    count = max(1, window.steps)
    row = LogRow(
        step=trainer.step,
        learning_rate=learning_rate(recipe.optimizer, trainer.step - 1, recipe.steps),
        total=window.total / count,
        pose=window.pose / count,
        depth=window.depth / count,
        points=window.points / count,
        match=window.match / count,
        motion=window.motion / count,
        gradient_norm=window.gradient_norm / count,
        skipped=window.skipped,
        frames_per_second=rate,
    )
    if not scored:
        return row
    mean = mean_metrics(model_metrics(trainer.model, scored, executor))
    return replace(
        row,
        auc_30=mean.auc_30,
        auc_5=mean.auc_5,
        rotation_deg=mean.rotation_median_deg,
        abs_rel=mean.abs_rel,
        point_error=mean.point_error,
    )


@contextmanager
def interrupts() -> Iterator[threading.Event]:
    """Set by the first Ctrl-C or SIGTERM, so that the step is finished; the second ends at once.

    Signals reach the main thread only: elsewhere the caller's own handling stays.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def handle(number: int, frame: FrameType | None) -> None:
        del number, frame
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    before = {name: signal.signal(name, handle) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
