"""What `--outputs` names, the head that makes it, and the tensors it yields."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vggt_deploy.errors import UsageError


@dataclass(frozen=True)
class OutputGroup:
    """One choice of the user: its name, the head of the network, the output tensors in order."""

    name: str
    head: str
    tensors: tuple[str, ...]


# In the order in which the outputs of the network and of every graph stand.
OUTPUT_GROUPS: dict[str, OutputGroup] = {
    group.name: group
    for group in (
        OutputGroup("pose", "camera", ("pose_enc",)),
        OutputGroup("depth", "depth", ("depth", "depth_conf")),
        OutputGroup("points", "point", ("world_points", "world_points_conf")),
    )
}


def output_groups(names: Sequence[str]) -> tuple[OutputGroup, ...]:
    """The groups of these names in their fixed order, each once; UsageError for an unknown one."""
    unknown = [name for name in names if name not in OUTPUT_GROUPS]
    if unknown or not names:
        problem = f"unknown output {unknown[0]!r}" if unknown else "no outputs are asked for"
        raise UsageError(problem, f"use some of: {', '.join(OUTPUT_GROUPS)}")
    return tuple(group for name, group in OUTPUT_GROUPS.items() if name in names)
