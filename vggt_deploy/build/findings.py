"""One thing that is wrong with a graph for TensorRT."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """layer: module of the network (or name of the node); problem: what; cure: what to do."""

    layer: str
    problem: str
    cure: str

    def __str__(self) -> str:
        return f"{self.layer}: {self.problem} -> {self.cure}"
