"""Each block by itself: what it makes of the artifact's own input, beside what FP32 makes of it.

    x        what the artifact gives this block: the tap of the one before it
    y        the tap after it;  F(x) the FP32 block on the artifact's input
    own      ||y - F(x)|| / ||F(x) - x||: what this block adds wrong, of what it should add. Errors
             of earlier blocks are in x on both sides, so they do not count here
    expected the same with y replaced by the block in PyTorch, its weights plainly rounded to the
             artifact's formats: what the scheme costs by itself
    drift    ||y - y_ref|| / ||y_ref|| against the FP32 network on the pictures: with all that came
             before

For a head, ||F(x)|| stands below: it adds to nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vggt_deploy.model.fields import GridFields
from vggt_deploy.model.vggt import VGGT
from vggt_deploy.outputs import OUTPUT_GROUPS
from vggt_deploy.sensitivity.taps import Tapped

ENCODER = "aggregator.patch_embed.blocks"
FRAME, GLOBAL = "aggregator.frame_blocks", "aggregator.global_blocks"


@dataclass(frozen=True)
class Place:
    """One block or head. `run` applies it, as the network then is, to the artifact's input.

    base: what it adds to [S, P, C], None for a head; found: what the artifact has here
    """

    name: str
    base: Tensor | None
    run: Callable[[], Tensor]
    found: Tensor


@dataclass(frozen=True)
class PlaceErrors:
    """See the top of the file; all are ratios. expected is 0 where the place holds no integers."""

    place: str
    own: float
    expected: float
    drift: float


def block_names(model: VGGT) -> tuple[str, ...]:
    """Blocks whose output is a value of the graph, in the order in which they run."""
    encoder = [f"{ENCODER}.{i}" for i in range(len(model.aggregator.patch_embed.blocks))]
    pairs = [f"{stack}.{i}" for i in range(model.config.depth) for stack in (FRAME, GLOBAL)]
    return (*encoder, *pairs)


def places(model: VGGT, images: Tensor, tapped: Tapped) -> Iterator[Place]:
    """All places in the order in which they run; images [1, S, 3, H, W]."""
    height, width = images.shape[-2:]
    fields = model.fields(height, width)
    stream = {name: torch.from_numpy(value) for name, value in tapped.blocks.items()}
    yield from _blocks(model, images, fields, stream)
    yield from _heads(model, images, fields, stream, tapped.outputs)


def place_errors(
    model: VGGT,
    images: Tensor,
    tapped: Tapped,
    drifts: Mapping[str, float],
    rounded: Callable[[str], AbstractContextManager[None]],
) -> list[PlaceErrors]:
    """The errors of every place.

    model: FP32, with its weights. rounded: place -> a context in which its layers are rounded as
    the artifact's formats say.
    """
    errors = []
    with torch.no_grad():
        for place in places(model, images, tapped):
            exact = place.run()
            with rounded(place.name):
                expected = place.run()
            below = exact if place.base is None else exact - place.base
            errors.append(
                PlaceErrors(
                    place.name,
                    ratio(place.found - exact, below),
                    ratio(expected - exact, below),
                    drifts[place.name],
                )
            )
    return errors


def drifts(
    model: VGGT, images: Tensor, tapped: Tapped
) -> tuple[dict[str, float], dict[str, NDArray[np.float32]]]:
    """Place -> drift, and the FP32 outputs; one run, whose streams are not kept."""
    found: dict[str, float] = {}
    hooks = []
    for name, value in tapped.blocks.items():

        def compare(
            module: torch.nn.Module,
            inputs: object,
            output: Tensor,
            name: str = name,
            value: NDArray[np.float32] = value,
        ) -> None:
            del module, inputs
            found[name] = ratio(torch.from_numpy(value) - output, output)

        hooks.append(model.get_submodule(name).register_forward_hook(compare))
    try:
        with torch.no_grad():
            outputs = model(images)
    finally:
        for hook in hooks:
            hook.remove()
    exact = {name: outputs[name].numpy() for name in tapped.outputs}
    for group in OUTPUT_GROUPS.values():
        name = group.tensors[0]
        if name in exact:
            right = torch.from_numpy(exact[name])
            found[f"{group.head}_head"] = ratio(
                torch.from_numpy(tapped.outputs[name]) - right, right
            )
    return found, exact


def ratio(difference: Tensor, below: Tensor) -> float:
    """||difference|| / ||below|| in float64; infinite where a value is not finite."""
    above = float(torch.linalg.vector_norm(difference, dtype=torch.float64))
    size = float(torch.linalg.vector_norm(below, dtype=torch.float64))
    value = above / size if size > 0 else above
    return value if np.isfinite(value) else float("inf")


def _blocks(
    model: VGGT, images: Tensor, fields: GridFields, stream: Mapping[str, Tensor]
) -> Iterator[Place]:
    aggregator, encoder = model.aggregator, model.aggregator.patch_embed
    scenes, frames = images.shape[:2]
    with torch.no_grad():
        x = encoder.embed(images.flatten(0, 1), fields)
    for i in range(len(encoder.blocks)):
        name = f"{ENCODER}.{i}"
        yield Place(name, x, _apply(model, name, x), stream[name])
        x = stream[name]
    rope = (fields.rope_cos, fields.rope_sin)
    with torch.no_grad():
        patches = encoder.norm(x[:, encoder.special_tokens :])
        special = aggregator.special_tokens(scenes, frames, images.device)
        x = torch.cat([special, patches], dim=1)
    for i in range(model.config.depth):
        for stack, arguments in ((FRAME, (rope,)), (GLOBAL, (rope, scenes))):
            name = f"{stack}.{i}"
            yield Place(name, x, _apply(model, name, x, *arguments), stream[name])
            x = stream[name]


def _heads(
    model: VGGT,
    images: Tensor,
    fields: GridFields,
    stream: Mapping[str, Tensor],
    outputs: Mapping[str, NDArray[np.float32]],
) -> Iterator[Place]:
    from vggt_deploy.model.dpt_head import depth_and_confidence, points_and_confidence

    config, scenes = model.config, images.shape[0]
    grid = config.grid(images.shape[-2], images.shape[-1])

    def pair(i: int) -> Tensor:
        return torch.cat([stream[f"{FRAME}.{i}"], stream[f"{GLOBAL}.{i}"]], dim=-1)

    if "camera" in model.heads:
        tokens = pair(config.depth - 1)[:, :1]
        found = torch.from_numpy(outputs["pose_enc"])
        yield Place("camera_head", None, lambda: model.camera_head(tokens, scenes)[-1], found)
    maps = [pair(i)[:, config.special_tokens :] for i in config.dpt_layers]
    if "depth" in model.heads:

        def depth() -> Tensor:
            return depth_and_confidence(model.depth_head(maps, grid, fields.dpt), scenes)[0]

        yield Place("depth_head", None, depth, torch.from_numpy(outputs["depth"]))
    if "point" in model.heads:

        def points() -> Tensor:
            return points_and_confidence(model.point_head(maps, grid, fields.dpt), scenes)[0]

        yield Place("point_head", None, points, torch.from_numpy(outputs["world_points"]))


def _apply(model: VGGT, name: str, *arguments: object) -> Callable[[], Tensor]:
    def run() -> Tensor:
        out: Tensor = model.get_submodule(name)(*arguments)
        return out

    return run
