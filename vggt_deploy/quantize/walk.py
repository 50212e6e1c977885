"""A VGGT run block by block: one block's weights in memory, the tokens of all pictures on disk.

    pictures ─► encoder blocks ─► frame 0 ─► global 0 ─► frame 1 ... ─► camera head
                     │               │           │                          │
                     └───────────────┴──── a Stage for each ────────────────┘

A stage holds the module with its float weights. The caller looks at what its Linears get, and may
change or replace them; when it asks for the next stage, the module as it then is makes that one's
inputs. So errors of blocks that were quantized reach those behind them, as they will in use.

A pass is a scene: S pictures that are run together, and its tokens are a float32 file [S, P, C] in
a temporary folder, P tokens a frame, the special ones first. Each pass is run by itself, exactly as
the whole network would, so the numbers are the whole network's.

Memory: the weights of one stage (VGGT-1B: a block 50 MB, the camera head 0.9 GB) and what one pass
has inside it (fc2's input is the largest: 120 MB for 8 pictures of 350 x 518), whatever the number
of passes. Disk: 4 S P C bytes for each pass (30 MB there). The dense heads are not walked: they are
convolutions.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vggt_deploy.errors import ArtifactError, ModelError, QuantizeError, UsageError
from vggt_deploy.model.config import VGGTConfig
from vggt_deploy.model.fields import GridFields, grid_fields
from vggt_deploy.model.sources import WeightSource
from vggt_deploy.model.vggt import VGGT
from vggt_deploy.quantize.plan import layers_in

WalkPass = Callable[[], Tensor]
"""Gives the pictures of one scene, [S, 3, H, W] in 0..1, whenever it is called."""

ENCODER = "aggregator.patch_embed"
CAMERA = "camera_head"
# The modules of the camera head as they run, which is not as they stand in the checkpoint.
CAMERA_ORDER = ("embed_pose", "poseLN_modulation", "trunk", "pose_branch")


class Stage:
    """One module of the network and all that goes into it. Usable until the next one is asked for.

    name     as in the whole model: `aggregator.frame_blocks.3`, `camera_head`
    linears  the full names of its Linears, in the order in which they run
    module   where the Linear of full name `f"{name}.{x}"` is `module.get_submodule(x)`
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        run: Callable[[nn.Module, int], Tensor],
        passes: int,
        period: tuple[int, int],
        calls: int = 1,
    ) -> None:
        self.name = name
        linears = [layer.name for layer in layers_in(module) if layer.kind == "linear"]
        if name == CAMERA:
            linears.sort(key=lambda linear: CAMERA_ORDER.index(linear.partition(".")[0]))
        self.linears = tuple(f"{name}.{linear}" for linear in linears)
        self._module: nn.Module | None = module
        self._run = run
        self._passes = passes
        self._special, self._tokens = period
        self._calls = calls

    @property
    def module(self) -> nn.Module:
        if self._module is None:
            raise RuntimeError(f"{self.name} was left behind: the walk is at a later stage")
        return self._module

    def special(self, rows: int) -> Tensor:
        """Bool [rows]: which rows of a Linear's input are special tokens.

        cls and registers in the encoder, camera and registers in the aggregator, all in the camera
        head. Rows are frame by frame, and a frame's special tokens come first.
        """
        return torch.arange(rows) % self._tokens < self._special

    def inputs(self, names: Sequence[str] | None = None) -> Iterator[dict[str, Tensor]]:
        """Pass by pass, what these Linears (None: all) get from the module as it now is.

        {full name: float32 [T, K]}, T = S * P; in the camera head the rows of all iterations, one
        after the other (`embed_pose` and `poseLN_modulation.1` see the empty pose once, not S
        times). Nothing behind the last of them is computed.
        """
        wanted = self.linears if names is None else tuple(names)
        if unknown := [name for name in wanted if name not in self.linears]:
            raise UsageError(
                f"{self.name} has no Linear {unknown[0]!r}", f"it has {', '.join(self.linears)}"
            )
        for index in range(self._passes):
            yield self._capture(wanted, index)

    def outputs(self) -> Iterator[Tensor]:
        """Pass by pass, what the module as it now is gives: a block's tokens [S, P, C], or the
        camera head's poses [iterations, S, 9].
        """
        for index in range(self._passes):
            with torch.no_grad():
                output = self._run(self.module, index)
            yield output

    def leave(self) -> None:
        """Drop the module."""
        self._module = None

    def _capture(self, names: tuple[str, ...], index: int) -> dict[str, Tensor]:
        module = self.module
        seen: dict[str, list[Tensor]] = {name: [] for name in names}

        def see(name: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            rows = inputs[0].detach()
            seen[name].append(rows.reshape(-1, rows.shape[-1]))
            if all(len(calls) == self._calls for calls in seen.values()):
                raise _SeenAll

        hooks = [
            module.get_submodule(name.removeprefix(f"{self.name}.")).register_forward_pre_hook(
                partial(see, name)
            )
            for name in names
        ]
        try:
            with torch.no_grad():
                self._run(module, index)
        except _SeenAll:
            pass
        finally:
            for hook in hooks:
                hook.remove()
        if missed := [name for name, calls in seen.items() if len(calls) != self._calls]:
            raise QuantizeError(
                f"{missed[0]} did not run, though its stage did",
                "put a module in its place that the stage calls",
            )
        return {
            name: calls[0] if len(calls) == 1 else torch.cat(calls) for name, calls in seen.items()
        }


class _SeenAll(Exception):
    """What was wanted of a run is there: the rest of it is not needed."""


@torch.no_grad()
def walk(
    config: VGGTConfig,
    source: WeightSource,
    passes: Sequence[WalkPass],
    *,
    scratch: Path,
    keep_layer_scale: bool = False,
) -> Generator[Stage, None, None]:
    """The stages of a network in the order in which they run.

    source: folded weights (`fold.FoldedWeights`, with the same `keep_layer_scale`), also seen
    through another source. Without a camera head the walk ends with the last global block.
    scratch: an existing folder; what is put there is gone when the walk ends, is closed, or breaks
    off. Close it (`contextlib.closing`) where it may not be walked to its end.

    Raises:
        UsageError: no passes, no such folder, pictures that are not [S, 3, H, W] of one size.
        ModelError: the source lacks a weight.
        ArtifactError: the disk is full.
    """
    if not passes:
        raise UsageError("no pictures to run through the network", "give at least one pass")
    if not scratch.is_dir():
        raise UsageError(f"{scratch} is no folder", "give an existing folder for the tokens")
    with torch.device("meta"):
        skeleton = VGGT(
            config, heads=frozenset({"camera"}), folded=True, keep_layer_scale=keep_layer_scale
        )
    has_camera = any(key.startswith(f"{CAMERA}.") for key in source.keys())  # noqa: SIM118
    _check(skeleton, source, has_camera)
    with tempfile.TemporaryDirectory(prefix="walk-", dir=scratch) as folder:
        yield from _stages(_Walk(config, source, skeleton, Path(folder), passes, has_camera))


@dataclass(frozen=True)
class _Walk:
    """What all stages share. Files: `<pass>.npy` the tokens, `<pass>.camera.npy` for the last."""

    config: VGGTConfig
    source: WeightSource
    skeleton: VGGT
    folder: Path
    passes: Sequence[WalkPass]
    has_camera: bool

    def load(self, index: int, kind: str = "") -> Tensor:
        # A read and not a map: pages of a map count as memory until the kernel wants them back.
        return torch.from_numpy(np.load(self.folder / f"{index}{kind}.npy"))

    def save(self, index: int, tokens: Tensor, kind: str = "") -> None:
        path = self.folder / f"{index}{kind}.npy"
        try:
            np.save(path, tokens.numpy())
        except OSError as error:
            raise ArtifactError(
                f"the tokens of a pass ({tokens.numel() * 4 / 1e6:.0f} MB) could not be written to "
                f"{path.parent}: {error}",
                f"have {tokens.numel() * 4 * len(self.passes) / 1e6:.0f} MB free there, or use "
                f"fewer pictures",
            ) from error

    def filled(self, name: str, parts: Sequence[str] | None = None) -> nn.Module:
        """The module of the skeleton with its weights, its own until `emptied`.

        parts: only the parameters that begin so, for modules whose blocks come one by one.
        """
        module = self.skeleton.get_submodule(name)
        keys = [
            key
            for key in module.state_dict()
            if parts is None or any(key.startswith(part) for part in parts)
        ]
        values = {key: self.source.load(f"{name}.{key}") for key in keys}
        module.load_state_dict(values, strict=parts is None, assign=True)
        return module.eval().requires_grad_(False)

    def emptied(self, name: str) -> None:
        """Let go of a module of the skeleton, whatever the caller made of it."""
        parent, _, leaf = name.rpartition(".")
        setattr(self.skeleton.get_submodule(parent), leaf, nn.Identity())


def _stages(walk: _Walk) -> Generator[Stage, None, None]:
    config = walk.config
    fields = _embed(walk)
    rope = (fields.rope_cos, fields.rope_sin)
    tokens = fields.pos_embed.shape[1]

    def block(name: str, *arguments: object) -> Generator[Stage, None, None]:
        def run(module: nn.Module, index: int) -> Tensor:
            out: Tensor = module(walk.load(index), *arguments)
            return out

        stage = Stage(
            name, walk.filled(name), run, len(walk.passes), (config.special_tokens, tokens)
        )
        yield stage
        for index, output in enumerate(stage.outputs()):
            walk.save(index, output)
        stage.leave()
        walk.emptied(name)

    for i in range(config.encoder_depth):
        yield from block(f"{ENCODER}.blocks.{i}")
    _enter_aggregator(walk)
    last = config.depth - 1
    for i in range(config.depth):
        yield from block(f"aggregator.frame_blocks.{i}", rope)
        if i == last:
            _keep_camera_tokens(walk)
        yield from block(f"aggregator.global_blocks.{i}", rope, 1)
    if walk.has_camera:
        yield from _camera(walk)


def _embed(walk: _Walk) -> GridFields:
    """Write what the first block gets from each pass; the fields of the one size they all have."""
    name, config = ENCODER, walk.config
    encoder = walk.filled(name, ("cls_token", "register_tokens", "pos_embed", "patch_embed."))
    fields: GridFields | None = None
    size: tuple[int, ...] = ()
    for index, pictures in enumerate(walk.passes):
        images = pictures()
        if images.dim() != 4 or images.shape[1] != 3 or not len(images):
            raise UsageError(
                f"pass {index} has shape {list(images.shape)}", "give pictures [S, 3, H, W]"
            )
        if fields is None:
            size = tuple(images.shape[-2:])
            fields = grid_fields(config, encoder.get_parameter("pos_embed"), *size)
        elif tuple(images.shape[-2:]) != size:
            raise UsageError(
                f"pass {index} has pictures of {images.shape[-2]} x {images.shape[-1]}, those "
                f"before of {size[0]} x {size[1]} (height x width)",
                "bring all pictures to one size",
            )
        walk.save(index, walk.skeleton.aggregator.patch_embed.embed(images.float(), fields))
    assert fields is not None
    return fields


def _enter_aggregator(walk: _Walk) -> None:
    """The encoder's last step, and camera and register tokens in place of cls and registers."""
    aggregator, special = walk.skeleton.aggregator, walk.config.special_tokens
    walk.filled("aggregator", ("camera_token", "register_token", "patch_embed.norm."))
    for index in range(len(walk.passes)):
        patches = aggregator.patch_embed.norm(walk.load(index)[:, special:])
        tokens = aggregator.special_tokens(1, len(patches), patches.device)
        walk.save(index, torch.cat([tokens, patches], dim=1))


def _keep_camera_tokens(walk: _Walk) -> None:
    """The camera head reads the token after the last frame block too, which the next overwrites."""
    for index in range(len(walk.passes)):
        walk.save(index, walk.load(index)[:, :1].contiguous(), ".camera")


def _camera(walk: _Walk) -> Generator[Stage, None, None]:
    def run(module: nn.Module, index: int) -> Tensor:
        tokens = torch.cat([walk.load(index, ".camera"), walk.load(index)[:, :1]], dim=-1)
        return torch.stack([pose[0] for pose in module(tokens, 1)])

    head = walk.filled(CAMERA)
    stage = Stage(CAMERA, head, run, len(walk.passes), (1, 1), walk.config.camera_iterations)
    yield stage
    stage.leave()
    walk.emptied(CAMERA)


def _check(skeleton: VGGT, source: WeightSource, has_camera: bool) -> None:
    held = frozenset(source.keys())
    missing = [
        name
        for name in skeleton.state_dict()
        if name not in held and (has_camera or not name.startswith(f"{CAMERA}."))
    ]
    scaled = any(key.endswith(".gamma") for key in held)
    if scaled and not any(name.endswith(".gamma") for name in skeleton.state_dict()):
        raise ModelError(
            "the weight source has a LayerScale, and the walk was asked for without",
            "give folded weights (fold.FoldedWeights), or keep_layer_scale=True to both",
        )
    if missing:
        raise ModelError(
            f"the weight source lacks {len(missing)} tensors: {', '.join(missing[:4])}",
            "pass a folded source (fold.FoldedWeights) with the same keep_layer_scale",
        )
