"""The walk computes what the whole network does, a stage at a time, and leaves nothing behind."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vggt_deploy.errors import ArtifactError, ModelError, QuantizeError, UsageError
from vggt_deploy.model.fold import FoldedWeights
from vggt_deploy.model.sources import ModelOrigin, WeightSource
from vggt_deploy.model.vggt import VGGT
from vggt_deploy.model.weights import open_weights
from vggt_deploy.quantize.plan import layers_in
from vggt_deploy.quantize.walk import Stage, walk

CONFIG, RAW = open_weights("random:vggt-tiny")
FOLDED = FoldedWeights(RAW, CONFIG)
SPECIAL, TOKENS = 5, 5 + 3 * 4
FC1 = "aggregator.frame_blocks.1.mlp.fc1"


class Edited:
    """A source in which some tensors are another's."""

    def __init__(self, source: WeightSource, edits: dict[str, Callable[[Tensor], Tensor]]) -> None:
        self._source, self._edits = source, edits

    @property
    def origin(self) -> ModelOrigin:
        return self._source.origin

    def keys(self) -> tuple[str, ...]:
        return self._source.keys()

    def shape(self, key: str) -> tuple[int, ...]:
        return self._source.shape(key)

    def load(self, key: str) -> Tensor:
        value = self._source.load(key)
        return self._edits[key](value) if key in self._edits else value


class Without:
    """A source that lacks the keys that begin so."""

    def __init__(self, source: WeightSource, prefix: str) -> None:
        self._source, self._prefix = source, prefix
        self.origin, self.shape, self.load = source.origin, source.shape, source.load

    def keys(self) -> tuple[str, ...]:
        return tuple(key for key in self._source.keys() if not key.startswith(self._prefix))  # noqa: SIM118


def pictures(*frames: int, height: int = 42, width: int = 56) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(count, 3, height, width, generator=generator) for count in frames]


def calls(images: list[Tensor]) -> list[Callable[[], Tensor]]:
    return [lambda picture=picture: picture for picture in images]


def whole(source: WeightSource = FOLDED, *, keep: bool = False) -> VGGT:
    with torch.device("meta"):
        model = VGGT(CONFIG, heads=frozenset({"camera"}), folded=True, keep_layer_scale=keep)
    values = {key: source.load(key) for key in model.state_dict()}
    model.load_state_dict(values, assign=True)
    return model.eval().requires_grad_(False)


def seen_by(model: VGGT, images: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The input rows of every Linear and the output of every block, of one run of the whole."""
    inputs: dict[str, list[Tensor]] = {}
    outputs: dict[str, Tensor] = {}
    for layer in layers_in(model):
        if layer.kind == "linear":
            model.get_submodule(layer.name).register_forward_pre_hook(
                lambda _, x, name=layer.name: inputs.setdefault(name, []).append(
                    x[0].reshape(-1, x[0].shape[-1])
                )
            )
    for name, module in model.named_modules():
        if name.startswith("aggregator.") and name.split(".")[-1].isdecimal():
            module.register_forward_hook(
                lambda _, x, out, name=name: outputs.__setitem__(name, out)
            )
    with torch.no_grad():
        poses = model(images)["pose_enc_list"]
    outputs["camera_head"] = torch.stack([pose[0] for pose in poses])
    return {name: torch.cat(rows) for name, rows in inputs.items()}, outputs


@pytest.mark.parametrize("keep", [False, True])
def test_every_input_and_output_is_the_whole_networks(keep: bool, tmp_path: Path) -> None:
    """Passes of different lengths, four refinements of the camera; to the last bit."""
    images = pictures(3, 1, 2)
    source = FoldedWeights(RAW, CONFIG, keep_layer_scale=keep)
    expected = [seen_by(whole(source, keep=keep), picture) for picture in images]
    names, linears = [], []
    for stage in walk(CONFIG, source, calls(images), scratch=tmp_path, keep_layer_scale=keep):
        names.append(stage.name)
        linears += stage.linears
        for (inputs, outputs), got, output in zip(
            expected, stage.inputs(), stage.outputs(), strict=True
        ):
            assert torch.equal(output, outputs[stage.name])
            for name in stage.linears:
                assert torch.equal(got[name], inputs[name]), name
    assert sorted(names) == sorted(expected[0][1])
    assert sorted(linears) == sorted(expected[0][0])
    assert names[:3] == [
        "aggregator.patch_embed.blocks.0",
        "aggregator.patch_embed.blocks.1",
        "aggregator.frame_blocks.0",
    ]
    # The twin: another network's numbers are told apart by the same comparison.
    other = whole(Edited(source, {f"{FC1}.bias": lambda t: t + 1e-3}), keep=keep)
    outputs = seen_by(other, images[0])[1]
    assert not torch.equal(outputs["camera_head"], expected[0][1]["camera_head"])


def test_linears_are_in_the_order_in_which_they_run(tmp_path: Path) -> None:
    order: list[str] = []
    model = whole()
    for layer in layers_in(model):
        if layer.kind == "linear":
            model.get_submodule(layer.name).register_forward_pre_hook(
                lambda _, x, name=layer.name: order.append(name)
            )
    images = pictures(2)
    with torch.no_grad():
        model(images[0])
    stages = walk(CONFIG, FOLDED, calls(images), scratch=tmp_path)
    assert [name for stage in stages for name in stage.linears] == list(dict.fromkeys(order))


def test_what_the_caller_puts_in_place_makes_the_next_inputs(tmp_path: Path) -> None:
    images = pictures(2, 3)
    edits = {f"{FC1}.weight": lambda t: t.round(decimals=1)}
    inputs = [seen_by(whole(Edited(FOLDED, edits)), picture)[0] for picture in images]
    plain = [seen_by(whole(), picture)[0] for picture in images]
    later = "aggregator.global_blocks.2.attn.qkv"
    assert not torch.equal(inputs[0][later], plain[0][later])
    for stage in walk(CONFIG, FOLDED, calls(images), scratch=tmp_path):
        if stage.name == "aggregator.frame_blocks.1":
            old = stage.module.get_submodule("mlp.fc1")
            new = nn.Linear(32, 128)
            new.load_state_dict(
                {"weight": edits[f"{FC1}.weight"](old.weight), "bias": old.bias.clone()}
            )
            stage.module.mlp.fc1 = new
        for expected, got in zip(inputs, stage.inputs(), strict=True):
            for name, rows in got.items():
                assert torch.equal(rows, expected[name]), name


@pytest.mark.parametrize(
    "token, stack",
    [
        ("aggregator.patch_embed.register_tokens", "aggregator.patch_embed.blocks"),
        ("aggregator.register_token", "aggregator.frame_blocks"),
        ("aggregator.camera_token", "aggregator.frame_blocks"),
    ],
)
def test_special_rows_are_where_special_tokens_go_in(
    token: str, stack: str, tmp_path: Path
) -> None:
    """Another token changes rows of the first block of its stack: special ones, in each frame."""

    def rows(source: WeightSource) -> tuple[Tensor, Stage]:
        with closing(walk(CONFIG, source, calls(pictures(3)), scratch=tmp_path)) as stages:
            for stage in stages:
                if stage.name == f"{stack}.0":
                    (got,) = stage.inputs([f"{stack}.0.attn.qkv"])
                    return got[f"{stack}.0.attn.qkv"], stage
        raise AssertionError("no such stage")

    plain, stage = rows(FOLDED)
    changed, _ = rows(Edited(FOLDED, {token: lambda t: t + torch.arange(32.0)}))
    moved = (plain != changed).any(dim=1)
    special = stage.special(len(plain))
    assert special.sum() == 3 * SPECIAL
    assert len(plain) == 3 * TOKENS
    assert not bool((moved & ~special).any())
    of_the_token = 1 if token.endswith("camera_token") else CONFIG.registers
    assert moved.sum() == 3 * of_the_token


def test_in_the_camera_head_every_row_is_special(tmp_path: Path) -> None:
    *_, stage = walk_to_the_end(calls(pictures(3)), tmp_path)
    assert stage == ("camera_head", [True] * 7)


def walk_to_the_end(
    passes: list[Callable[[], Tensor]], scratch: Path, source: WeightSource = FOLDED
) -> list[tuple[str, list[bool]]]:
    return [(s.name, s.special(7).tolist()) for s in walk(CONFIG, source, passes, scratch=scratch)]


def test_nothing_behind_the_last_wanted_linear_runs(tmp_path: Path) -> None:
    class Refuses(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("ran")

    with closing(walk(CONFIG, FOLDED, calls(pictures(2)), scratch=tmp_path)) as stages:
        stage = next(stages)
        stage.module.mlp.fc2 = Refuses()
        (got,) = stage.inputs([f"{stage.name}.mlp.fc2", f"{stage.name}.attn.qkv"])
        assert got[f"{stage.name}.mlp.fc2"].shape == (2 * TOKENS, 128)
        with pytest.raises(AssertionError, match="ran"):
            next(stage.outputs())


def test_questions_that_make_no_sense(tmp_path: Path) -> None:
    with closing(walk(CONFIG, FOLDED, calls(pictures(2)), scratch=tmp_path)) as stages:
        first = next(stages)
        with pytest.raises(UsageError, match=r"blocks\.0 has no Linear 'camera_head\.embed_pose'"):
            next(first.inputs(["camera_head.embed_pose"]))
        first.module.mlp = nn.Identity()  # a caller's slip: fc2 is not called any more
        with pytest.raises(AttributeError):
            next(first.inputs([f"{first.name}.mlp.fc2"]))
        second = next(stages)
        second.module.mlp.forward = lambda x: x  # type: ignore[method-assign]
        with pytest.raises(QuantizeError, match=r"blocks\.1\.mlp\.fc2 did not run"):
            next(second.inputs([f"{second.name}.mlp.fc2"]))
        next(stages)
        with pytest.raises(RuntimeError, match=r"blocks\.0 was left behind"):
            next(first.outputs())


@pytest.mark.parametrize("ending", ["end", "close", "interrupt", "error"])
def test_the_scratch_folder_is_empty_afterwards(ending: str, tmp_path: Path) -> None:
    stages = walk(CONFIG, FOLDED, calls(pictures(2, 1)), scratch=tmp_path)
    next(stages)
    (folder,) = tmp_path.iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["0.npy", "1.npy"]
    match ending:
        case "end":
            assert len(list(stages)) == 2 + 8
        case "close":
            stages.close()
        case "interrupt":
            with pytest.raises(KeyboardInterrupt):
                stages.throw(KeyboardInterrupt())
        case "error":
            with pytest.raises(QuantizeError):
                stages.throw(QuantizeError("a", "b"))
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, array: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(ArtifactError, match="No space left") as caught:
        walk_to_the_end(calls(pictures(2)), tmp_path)
    assert "fewer pictures" in caught.value.fix
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_without_camera_head_ends_before_it(tmp_path: Path) -> None:
    source = Without(FOLDED, "camera_head.")
    names = [name for name, _ in walk_to_the_end(calls(pictures(1)), tmp_path, source)]
    assert names[-1] == "aggregator.global_blocks.3"


def test_bad_input(tmp_path: Path) -> None:
    def start(
        passes: list[Callable[[], Tensor]], scratch: Path = tmp_path, source: WeightSource = FOLDED
    ) -> None:
        walk_to_the_end(passes, scratch, source)

    with pytest.raises(UsageError, match="no pictures"):
        start([])
    with pytest.raises(UsageError, match="is no folder"):
        start(calls(pictures(1)), tmp_path / "absent")
    with pytest.raises(UsageError, match=r"pass 1 has shape \[3, 42, 56\]"):
        start([*calls(pictures(1)), lambda: pictures(1)[0][0]])
    with pytest.raises(UsageError, match="pass 1 has pictures of 28 x 56, those before of 42 x 56"):
        start([*calls(pictures(1)), *calls(pictures(1, height=28))])
    with pytest.raises(UsageError, match="not a multiple of 14"):
        start(calls(pictures(1, height=40)))
    with pytest.raises(ModelError, match=r"lacks 2 tensors: aggregator\.frame_blocks\.1\.mlp"):
        start(calls(pictures(1)), source=Without(FOLDED, FC1))
    with pytest.raises(ModelError, match="has a LayerScale"):
        start(calls(pictures(1)), source=RAW)
    assert not list(tmp_path.iterdir())


GROWTH = """
import sys, tempfile, torch
from pathlib import Path
from vggt_deploy.memory import peak_rss_bytes
from vggt_deploy.model.fold import FoldedWeights
from vggt_deploy.model.weights import open_weights
from vggt_deploy.quantize.walk import walk

passes, hold = int(sys.argv[1]), sys.argv[2] == "hold"
config, source = open_weights("random:vggt-small")
picture = torch.rand(8, 3, 168, 224)
held = []
with tempfile.TemporaryDirectory() as scratch:
    stages = walk(config, FoldedWeights(source, config), [lambda: picture] * passes,
                  scratch=Path(scratch))
    for _ in range(2):
        stage = next(stages)
        for got in stage.inputs([stage.name + ".attn.qkv"]):
            if hold:
                held.append(got)
    stages.close()
print(peak_rss_bytes()[0])
"""


def test_memory_does_not_grow_with_the_passes(tmp_path: Path) -> None:
    """30 passes more are 24 MB of tokens in each stage, and who keeps them is noticed."""

    def peak_mb(passes: int, kind: str) -> float:
        done = subprocess.run(
            [sys.executable, "-c", GROWTH, str(passes), kind],
            check=True,
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
        return int(done.stdout) / 1e6

    stream_mb = 30 * 8 * (5 + 12 * 16) * 128 * 4 / 1e6
    few = peak_mb(2, "drop")
    assert peak_mb(32, "drop") - few < stream_mb / 2
    assert peak_mb(32, "hold") - few > stream_mb
