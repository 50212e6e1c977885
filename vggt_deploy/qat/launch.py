"""One process or several: what torchrun started, and asking all of them to stop.

    torchrun --nproc-per-node 4 -m vggt_deploy qat ...

torchrun tells each process its place by environment variables, which torch.distributed reads. The
first process alone writes; all of them stop together, after a step that all of them finished.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import torch
from torch import Tensor
from torch import distributed as dist

from vggt_deploy.errors import UsageError
from vggt_deploy.train.loop import interrupts


@dataclass(frozen=True)
class Place:
    """Which of how many processes this is, and where it computes."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def wait(self) -> None:
        """Until all processes have come this far."""
        if self.world > 1:
            dist.barrier()


@contextmanager
def joined(device: str, shards: int) -> Iterator[Place]:
    """This process' place, in a group with the others if torchrun started it.

    device: cpu, or cuda: the GPU of this process' number on its machine.

    Raises:
        UsageError: the shards can't be dealt out evenly.
    """
    if not dist.is_torchelastic_launched():
        yield Place(0, 1, torch.device(device))
        return
    world = int(os.environ["WORLD_SIZE"])
    if shards % world:
        raise UsageError(
            f"{shards} shards can't be dealt out to {world} processes",
            "let torchrun start a number of processes that divides the recipe's batch.shards",
        )
    place = torch.device(device)
    if device == "cuda":
        place = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(place)
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        yield Place(dist.get_rank(), world, place)
    finally:
        dist.destroy_process_group()


@contextmanager
def stop_requests(place: Place) -> Iterator[threading.Event]:
    """Set by Ctrl-C or SIGTERM, so that the step is finished first.

    Alone, a second signal ends the process at once. With others it does not: torchrun sends each
    process SIGTERM after the SIGINT that the terminal sent to all, and kills those that don't end.
    """
    if place.world == 1:
        with interrupts() as asked:
            yield asked
        return
    asked = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        del number, frame
        asked.set()

    before = {name: signal.signal(name, handle) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def asked_anywhere(place: Place, asked: threading.Event) -> bool:
    """Whether any process was asked to stop: the same answer in all of them."""
    flag = torch.tensor(float(asked.is_set()), device=place.device)
    return bool(place.sum(flag) > 0)
