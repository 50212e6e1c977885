"""The steps of quantization-aware training: shards, AdamW, the log, checkpoints.

In one process, one thread works on one shard with one thread inside each operator, and gradients
are summed in the order of the shards: what comes out does not depend on the number of threads. With
several processes (torchrun) each works on its shards one after another, and DistributedDataParallel
averages the gradients: the same sums in another order.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vggt_deploy.model.vggt import VGGT
from vggt_deploy.progress import Progress
from vggt_deploy.qat.distill import LOSSES, DistillForward, distill_losses
from vggt_deploy.qat.fake import set_enabled, step_parameters
from vggt_deploy.qat.launch import Place, asked_anywhere, stop_requests
from vggt_deploy.qat.recipe import QatRecipe
from vggt_deploy.qat.scenes import QatBatch, QatScene, probe_batches, qat_batch
from vggt_deploy.qat.state import (
    LOG_FILE,
    Checkpoint,
    QatLogRow,
    Window,
    append_row,
    save_checkpoint,
    start_rows,
)
from vggt_deploy.train.loop import MOST_SKIPPED, TrainingError, learning_rate, set_gradients
from vggt_deploy.train.scoring import single_threads

logger = logging.getLogger(__name__)

LOG_STEPS = 25
CHECKPOINT_STEPS = 100
# A step's gradient is a sum over its weights divided by sqrt(n qmax): small, and AdamW's usual
# 1e-8 would hold it back.
STEP_EPS = 1e-12


class Distiller(nn.Module):
    """A batch -> losses [7] of the student against the teacher, which is not part of the module."""

    def __init__(
        self, student: VGGT, teacher: VGGT, recipe: QatRecipe, size: tuple[int, int]
    ) -> None:
        super().__init__()
        self.student = student
        self._recipe = recipe
        self._forward = DistillForward(student, *size)
        self._teacher = DistillForward(teacher, *size)  # no nn.Module: not registered
        self._device = next(student.parameters()).device
        low = recipe.precision == "bf16" or (
            recipe.precision == "auto" and self._device.type == "cuda"
        )
        self._dtype = torch.bfloat16 if low else torch.float32

    def forward(self, batch: QatBatch) -> Tensor:
        images = torch.from_numpy(batch.images).to(self._device)
        dense = torch.from_numpy(batch.dense_frames).to(self._device)
        with torch.no_grad():
            wanted = self._teacher(images, dense, self._dtype)
        found = self._forward(images, dense, self._dtype)
        special = self.student.config.special_tokens
        return distill_losses(found, wanted, batch, self._recipe.loss, special)


class QatTrainer:
    """A training between two steps. The student has fake quantization inserted."""

    def __init__(
        self,
        student: VGGT,
        teacher: VGGT,
        recipe: QatRecipe,
        scenes: Sequence[QatScene],
        place: Place,
    ) -> None:
        self.student, self.recipe, self.scenes, self.place = student, recipe, scenes, place
        self.steps = recipe.steps(sum(len(scene.images) for scene in scenes))
        self.step = 0
        self.window = Window()
        self.parameters = [p for _, p in trained_parameters(student)]
        self.optimizer = make_optimizer(student, recipe)
        first = scenes[0].images
        self._distiller = Distiller(student, teacher, recipe, (first.shape[1], first.shape[2]))
        self._parallel: DistributedDataParallel | None = None
        if place.world > 1:
            # With fake quantization off the steps have no gradient.
            self._parallel = DistributedDataParallel(self._distiller, find_unused_parameters=True)
        self.probe_loss = self.probe()

    def restore(self, checkpoint: Checkpoint) -> None:
        self.student.load_state_dict(checkpoint.model)
        self.optimizer.load_state_dict(dict(checkpoint.optimizer))
        self.step, self.window = checkpoint.step, checkpoint.window
        self.probe_loss = checkpoint.probe_loss

    def checkpoint(self) -> Checkpoint:
        return Checkpoint(
            self.step,
            self.student.state_dict(),
            self.optimizer.state_dict(),
            self.probe_loss,
            self.window,
        )

    @torch.no_grad()
    def probe(self) -> float:
        """Mean total loss of the recipe's fixed view sets, fake quantization on."""
        set_enabled(self.student, True)
        batches = probe_batches(self.scenes, self.recipe)
        return sum(float(self._distiller(batch)[0]) for batch in batches) / len(batches)

    def train_step(self, executor: Executor) -> None:
        """One step; one that is not finite is left out.

        Raises:
            TrainingError: MOST_SKIPPED steps in a row were left out.
        """
        set_enabled(self.student, self.step >= self.recipe.float_steps)
        rate = learning_rate(self.recipe.optimizer, self.step, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["times"]
        if self._parallel is None:
            losses, norm = self._alone(executor)
        else:
            losses, norm = self._together(self._parallel)
        if math.isfinite(norm) and all(math.isfinite(loss) for loss in losses):
            self.optimizer.step()
            self._count(losses, norm)
        else:
            self._skip(losses, norm)
        self.optimizer.zero_grad()
        self.step += 1

    def _alone(self, executor: Executor) -> tuple[list[float], float]:
        """Gradients of all shards, side by side -> losses and the gradient's norm."""
        shards = self.recipe.batch.shards

        def work(shard: int) -> tuple[Tensor, tuple[Tensor, ...]]:
            losses = self._distiller(qat_batch(self.scenes, self.recipe, self.step, shard))
            gradients = torch.autograd.grad(
                losses[0] / shards, self.parameters, materialize_grads=True
            )
            return losses.detach(), tuple(gradient.contiguous() for gradient in gradients)

        results = list(executor.map(work, range(shards)))
        norm = set_gradients(
            self.parameters,
            [gradients for _, gradients in results],
            self.recipe.optimizer.clip_norm,
        )
        losses: list[float] = torch.stack([loss for loss, _ in results]).mean(0).tolist()
        return losses, norm

    def _together(self, parallel: DistributedDataParallel) -> tuple[list[float], float]:
        """Gradients of this process' shards, averaged with the others'."""
        world, shards = self.place.world, self.recipe.batch.shards
        mine = range(self.place.rank, shards, world)
        total = torch.zeros(len(LOSSES), device=self.place.device)
        for shard in mine:
            batch = qat_batch(self.scenes, self.recipe, self.step, shard)
            with nullcontext() if shard == mine[-1] else parallel.no_sync():
                losses = parallel(batch)
                (losses[0] * world / shards).backward()
            total += losses.detach()
        # What has no gradient gets zero, as in one process: AdamW counts its steps alike.
        gradients = [
            torch.zeros_like(p) if p.grad is None else p.grad.contiguous() for p in self.parameters
        ]
        norm = set_gradients(self.parameters, [gradients], self.recipe.optimizer.clip_norm)
        means: list[float] = (self.place.sum(total) / shards).tolist()
        return means, norm

    def _count(self, losses: Sequence[float], norm: float) -> None:
        window = self.window
        window.steps += 1
        before = window.losses or [0.0] * len(losses)
        window.losses = [a + b for a, b in zip(before, losses, strict=True)]
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
                "lower the learning rate with --lr",
            )


def trained_parameters(student: VGGT) -> list[tuple[str, nn.Parameter]]:
    """All but the mask token, which is in every checkpoint and which no forward uses."""
    return [(n, p) for n, p in student.named_parameters() if not n.endswith("mask_token")]


def make_optimizer(student: VGGT, recipe: QatRecipe) -> torch.optim.AdamW:
    """AdamW; weights of Linears and convolutions decay; steps have a rate of their own, no decay.

    `times` of a group: its learning rate over that of the weights.
    """
    steps = step_parameters(student)
    named = [(n, p) for n, p in trained_parameters(student) if n not in steps]
    decaying = [p for n, p in named if n.endswith(".weight") and p.dim() >= 2]
    others = [p for n, p in named if not (n.endswith(".weight") and p.dim() >= 2)]
    optimizer = recipe.optimizer
    times = recipe.step_peak / optimizer.peak
    return torch.optim.AdamW(
        [
            {"params": decaying, "weight_decay": optimizer.weight_decay, "times": 1.0},
            {"params": others, "weight_decay": 0.0, "times": 1.0},
            {
                "params": list(steps.values()),
                "weight_decay": 0.0,
                "times": times,
                "eps": STEP_EPS,
            },
        ],
        lr=optimizer.peak,
        betas=(optimizer.beta1, optimizer.beta2),
    )


def run_steps(
    trainer: QatTrainer,
    run: Path,
    question: Mapping[str, str],
    *,
    threads: int,
    progress: Progress,
) -> None:
    """Train to the end, the first process writing log and checkpoints into `run`.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM came; a checkpoint of the last whole step is written.
        TrainingError: see `QatTrainer.train_step`.
    """
    place = trainer.place
    if place.first:
        start_rows(run / LOG_FILE, trainer.step)
    since_s, since_step = time.perf_counter(), trainer.step
    with single_threads(threads) as executor, stop_requests(place) as asked:
        while trainer.step < trainer.steps:
            trainer.train_step(executor)
            step, last = trainer.step, trainer.step == trainer.steps
            if place.first:
                progress("qat", step, trainer.steps)
                if step % LOG_STEPS == 0 or step == 1 or last:
                    seconds = time.perf_counter() - since_s
                    rate = (step - since_step) * trainer.recipe.batch.frames / seconds
                    append_row(run / LOG_FILE, _log_row(trainer, rate, last))
                    since_s, since_step = time.perf_counter(), step
                    trainer.window.restart()
            stopping = asked_anywhere(place, asked)
            if place.first and (step % CHECKPOINT_STEPS == 0 or last or stopping):
                save_checkpoint(run, trainer.checkpoint(), question)
            if stopping and not last:
                raise KeyboardInterrupt


def _log_row(trainer: QatTrainer, rate: float, last: bool) -> QatLogRow:
    window, recipe = trainer.window, trainer.recipe
    count = max(1, window.steps)
    losses = [loss / count for loss in window.losses or [math.nan] * len(LOSSES)]
    probe = None
    if trainer.step == 1:
        probe = trainer.probe_loss
    if last:
        probe = trainer.probe()
    return QatLogRow(
        step=trainer.step,
        learning_rate=learning_rate(recipe.optimizer, trainer.step - 1, trainer.steps),
        **dict(zip(LOSSES, losses, strict=True)),
        gradient_norm=window.gradient_norm / count,
        skipped=window.skipped,
        frames_per_second=rate,
        probe_loss=probe,
    )
