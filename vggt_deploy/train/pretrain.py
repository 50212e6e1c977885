"""The encoder by itself, before the whole network: where VGGT starts from a trained DINOv2.

The whole network from nothing learns a constant answer first and stays with it: to see a camera's
motion, attention must compare patches, and patches that say nothing give it nothing to compare.
So the encoder first learns, at a quarter of the cost of a full step and from two linear heads that
are then thrown away,

    match   which patch of another view shows the same place: cross entropy over the patches of that
            view, logits = cosine of projected tokens / temperature. (Over the patches of other
            scenes too, it would learn to tell scenes apart, which is easier and of no use.)
    depth   mean |log depth - prediction| in the cells of each patch, relative to the view's median

and the steps after this train all of it together.
"""

from __future__ import annotations

import math
import time
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vggt_deploy.model.vggt import VGGT
from vggt_deploy.progress import Progress
from vggt_deploy.train.forward import TrainingForward
from vggt_deploy.train.loop import (
    CHECKPOINT_STEPS,
    LOG_STEPS,
    TrainingError,
    gradients_of,
    interrupts,
    learning_rate,
    make_optimizer,
    set_gradients,
)
from vggt_deploy.train.pairs import PairBatch, pair_batch
from vggt_deploy.train.pool import ScenePool
from vggt_deploy.train.recipe import EncoderRecipe, TrainingRecipe
from vggt_deploy.train.scoring import single_threads
from vggt_deploy.train.state import (
    ENCODER_CHECKPOINT_FILE,
    ENCODER_LOG_FILE,
    Checkpoint,
    EncoderLogRow,
    append_row,
    save_checkpoint,
    start_rows,
)


class EncoderHeads(nn.Module):
    """What the encoder's tokens [N, P, C] are asked for: log depth [N, P, cells^2] and a direction
    [N, P, width] by which patches are matched.
    """

    def __init__(self, embed: int, recipe: EncoderRecipe, seed: int) -> None:
        super().__init__()
        self.depth = nn.Linear(embed, recipe.cells**2)
        self.match = nn.Linear(embed, recipe.match_width)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for layer in (self.depth, self.match):
                layer.weight.normal_(0, 1 / math.sqrt(embed), generator=generator)
                layer.bias.zero_()

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        return self.depth(tokens), F.normalize(self.match(tokens), dim=-1)


@dataclass(frozen=True)
class EncoderLosses:
    """Scalars; `found` is the share of patches whose partner came first."""

    total: Tensor
    depth: Tensor
    match: Tensor
    found: Tensor


def encoder_losses(
    depth: Tensor, direction: Tensor, batch: PairBatch, recipe: EncoderRecipe
) -> EncoderLosses:
    """Predictions [2B, P, cells^2] and directions [2B, P, width] against a batch of B pairs."""
    device = depth.device
    target = torch.from_numpy(batch.log_depth).reshape(depth.shape).to(device)
    known = torch.isfinite(target)
    depth_loss = (depth - target.nan_to_num())[known].abs().mean()
    matched = torch.from_numpy(batch.matched).to(device)
    pairs, patches = matched.shape
    direction = direction.reshape(pairs, 2, patches, -1)
    partner = torch.from_numpy(batch.partner).to(device)[matched]
    logits = (direction[:, 0] @ direction[:, 1].transpose(1, 2))[matched] / recipe.temperature
    match_loss = F.cross_entropy(logits, partner)
    found = (logits.detach().argmax(dim=-1) == partner).float().mean()
    total = recipe.depth * depth_loss + recipe.match * match_loss
    return EncoderLosses(total, depth_loss, match_loss, found)


class EncoderTrainer:
    """The encoder's training between two steps."""

    def __init__(self, model: VGGT, recipe: TrainingRecipe, pool: ScenePool) -> None:
        self.recipe, self.pool, self.step = recipe, pool, 0
        self.encoder = model.aggregator.patch_embed
        heads = EncoderHeads(model.config.embed, recipe.encoder, recipe.seed)
        self.heads = heads.to(self.encoder.pos_embed.device)
        self._patch = model.config.patch
        self._forward = TrainingForward(model, recipe.scenes.height, recipe.scenes.width)
        named = [*self._parts.named_parameters()]
        named = [(name, p) for name, p in named if not name.endswith("mask_token")]
        self.parameters = [parameter for _, parameter in named]
        self.optimizer = make_optimizer(named, recipe.encoder.optimizer(recipe.optimizer))

    @property
    def _parts(self) -> nn.ModuleDict:
        return nn.ModuleDict({"encoder": self.encoder, "heads": self.heads})

    def restore(self, checkpoint: Checkpoint) -> None:
        self._parts.load_state_dict(checkpoint.model)
        self.optimizer.load_state_dict(dict(checkpoint.optimizer))
        self.step = checkpoint.step

    def checkpoint(self) -> Checkpoint:
        return Checkpoint(self.step, self._parts.state_dict(), self.optimizer.state_dict())

    def train_step(self, executor: Executor) -> tuple[float, float, float]:
        """One step -> depth loss, match loss, share of patches found; means over the shards."""
        encoder = self.recipe.encoder
        optimizer = encoder.optimizer(self.recipe.optimizer)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(optimizer, self.step, encoder.steps)
        results = list(executor.map(self._shard, range(encoder.shards)))
        norm = set_gradients(
            self.parameters, [r[1] for r in results], self.recipe.optimizer.clip_norm
        )
        if not math.isfinite(norm):
            raise TrainingError(
                f"step {self.step} of the encoder's training has a gradient that is not finite",
                "lower encoder.peak in the recipe, or raise encoder.warmup_steps",
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        depth, match, found = (
            sum(parts) / len(results) for parts in zip(*(r[0] for r in results), strict=True)
        )
        return depth, match, found

    def _shard(self, shard: int) -> tuple[tuple[float, float, float], tuple[Tensor, ...]]:
        batch = pair_batch(self.pool, self.recipe, self._patch, self.step, shard)
        images = torch.from_numpy(batch.images).flatten(0, 1).to(self.parameters[0].device)
        depth, direction = self.heads(self.encoder(images, self._forward.fields()))
        losses = encoder_losses(depth, direction, batch, self.recipe.encoder)
        share = losses.total / self.recipe.encoder.shards
        gradients = gradients_of(share, self.parameters)
        parts = (losses.depth, losses.match, losses.found)
        depth_loss, match_loss, found = (float(part.detach()) for part in parts)
        return (depth_loss, match_loss, found), gradients


def pretrain_encoder(
    model: VGGT,
    recipe: TrainingRecipe,
    pool: ScenePool,
    run: Path,
    *,
    checkpoint: Checkpoint | None,
    threads: int,
    progress: Progress,
) -> None:
    """Train the model's encoder in place, from a checkpoint of it if there is one.

    Log and checkpoints go into `run`.

    Raises:
        KeyboardInterrupt: as in `loop.run_steps`.
        TrainingError: a gradient is not finite.
    """
    steps = recipe.encoder.steps
    if not steps:
        return
    trainer = EncoderTrainer(model, recipe, pool)
    if checkpoint is not None:
        trainer.restore(checkpoint)
    start_rows(run / ENCODER_LOG_FILE, EncoderLogRow, trainer.step)
    with single_threads(threads) as executor, interrupts() as interrupted:
        window: list[tuple[float, float, float]] = []
        since_s = time.perf_counter()
        while trainer.step < steps:
            window.append(trainer.train_step(executor))
            step, last = trainer.step, trainer.step == steps
            progress("encoder", step, steps)
            if step % LOG_STEPS == 0 or last:
                seconds = time.perf_counter() - since_s
                append_row(run / ENCODER_LOG_FILE, _log_row(trainer, window, seconds))
                window, since_s = [], time.perf_counter()
            if step % CHECKPOINT_STEPS == 0 or last or interrupted.is_set():
                save_checkpoint(run, trainer.checkpoint(), recipe, ENCODER_CHECKPOINT_FILE)
            if interrupted.is_set():
                raise KeyboardInterrupt


def _log_row(
    trainer: EncoderTrainer, window: list[tuple[float, float, float]], seconds: float
) -> EncoderLogRow:
    encoder = trainer.recipe.encoder
    depth, match, found = (sum(parts) / len(window) for parts in zip(*window, strict=True))
    return EncoderLogRow(
        step=trainer.step,
        learning_rate=trainer.optimizer.param_groups[0]["lr"],
        depth=depth,
        match=match,
        found=found,
        frames_per_second=2 * encoder.pairs * len(window) / seconds,
    )
