"""Training of the classifier, in float and with fake quantization: the same loop.

What `insert_fake` put into a network are modules like others; their steps are parameters that want
a rate of their own and no decay. A float network has none of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from examples.point_cloud.shapes import Clouds
from vggt_deploy.qat.fake import step_parameters

Predict = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Points [B, P, 3] -> logits [B, classes]."""

SMOOTHING = 0.1  # of labels
EVALUATED_AT_ONCE = 100


@dataclass(frozen=True)
class Schedule:
    """epochs over all clouds, of `batch` clouds a step; `rate`: the highest, reached after 30 % of
    the steps; `step_rate` of the steps of fake quantization, a share of `rate`.
    """

    epochs: int
    rate: float
    batch: int = 32
    decay: float = 0.05
    step_rate: float = 0.1


FROM_NOTHING = Schedule(epochs=10, rate=4e-3)
# A trained network has to be moved, not found.
WITH_QUANTIZATION = Schedule(epochs=3, rate=1e-3)


def train(model: nn.Module, clouds: Clouds, schedule: Schedule, seed: int = 0) -> None:
    """Minimise the cross-entropy of the labels; leaves the model in eval mode."""
    points, labels = torch.from_numpy(clouds.points), torch.from_numpy(clouds.labels)
    shuffle = torch.Generator().manual_seed(seed)
    steps = step_parameters(model)
    weights = [value for name, value in model.named_parameters() if name not in steps]
    rates = [schedule.rate, schedule.rate * schedule.step_rate]
    optimizer = torch.optim.AdamW(
        [
            {"params": weights, "weight_decay": schedule.decay},
            {"params": list(steps.values()), "weight_decay": 0.0},
        ],
        lr=schedule.rate,
    )
    per_epoch = -(-len(points) // schedule.batch)
    course = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rates, total_steps=schedule.epochs * per_epoch
    )
    model.train()
    for _ in range(schedule.epochs):
        order = torch.randperm(len(points), generator=shuffle)
        for chosen in torch.split(order, schedule.batch):
            logits = model(points[chosen])
            loss = F.cross_entropy(logits, labels[chosen], label_smoothing=SMOOTHING)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            course.step()
    model.eval()


def accuracy(predict: Predict, clouds: Clouds) -> float:
    """The share of clouds whose largest logit is that of their shape."""
    right = 0
    for first in range(0, len(clouds.labels), EVALUATED_AT_ONCE):
        piece = slice(first, first + EVALUATED_AT_ONCE)
        found = predict(clouds.points[piece]).argmax(axis=1)
        right += int((found == clouds.labels[piece]).sum())
    return right / len(clouds.labels)


def in_torch(model: nn.Module) -> Predict:
    """A network as a function of arrays."""

    @torch.no_grad()
    def predict(points: NDArray[np.float32]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = model(torch.from_numpy(points)).numpy()
        return logits

    return predict
