"""What `--outputs` names, the head that makes it, and the tensors it yields."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class OutputGroup:
    """One choice of the user: its name, the head of the network, the output tensors in order."""

    name: str
    head: str
    tensors: tuple[str, ...]


OUTPUT_GROUPS: dict[str, OutputGroup] = {
    group.name: group
    for group in (
        OutputGroup("pose", "camera", ("pose_enc",)),
        OutputGroup("depth", "depth", ("depth", "depth_conf")),
        OutputGroup("points", "point", ("world_points", "world_points_conf")),
    )
}
