"""The network's own promises: names and shapes, heads, meta construction, the traced path."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from vggt_deploy.errors import UsageError
from vggt_deploy.model.camera_head import activate_pose
from vggt_deploy.model.config import CONFIGS, VGGTConfig, get_config
from vggt_deploy.model.fields import GridFields
from vggt_deploy.model.vggt import VGGT
from vggt_deploy.model.weights import load_model

TINY = CONFIGS["vggt-tiny"]
DENSE = frozenset({"camera", "depth", "point"})


@pytest.fixture(scope="module")
def model() -> VGGT:
    return load_model("random:vggt-tiny")


def images(frames: int, height: int = 28, width: int = 42, scenes: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(frames)
    return torch.rand(scenes, frames, 3, height, width, generator=generator)


def meta_model(config: VGGTConfig, **options: object) -> VGGT:
    with torch.device("meta"):
        return VGGT(config, **options)  # type: ignore[arg-type]


def test_every_key_and_shape_of_vggt_1b(shared_data: Path):
    table = shared_data / "reference" / "vggt_1b_state_dict.tsv"
    rows = [line.split("\t") for line in table.read_text().splitlines()]
    expected = {row[1]: row[2] for row in rows if row[0] == "param"}
    assert len(expected) == 1797
    state = meta_model(CONFIGS["vggt-1b"]).state_dict()
    assert {key: "x".join(map(str, value.shape)) for key, value in state.items()} == expected


@pytest.mark.parametrize(
    "name,heads,count",
    [
        ("vggt-1b", None, 1_256_537_516),
        ("vggt-1b", DENSE, 1_190_596_120),
        ("vggt-tiny", None, 493_068),
    ],
)
def test_number_of_parameters(name: str, heads: frozenset[str] | None, count: int):
    model = meta_model(CONFIGS[name], heads=heads)
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    assert not list(model.buffers())  # a buffer would have no value after loading a meta model


def test_outputs_and_their_shapes(model: VGGT):
    outputs = model(images(2, scenes=2), torch.rand(2, 3, 2) * 20)
    shapes = {key: tuple(v.shape) for key, v in outputs.items() if isinstance(v, Tensor)}
    assert shapes == {
        "pose_enc": (2, 2, 9),
        "depth": (2, 2, 28, 42, 1),
        "depth_conf": (2, 2, 28, 42),
        "world_points": (2, 2, 28, 42, 3),
        "world_points_conf": (2, 2, 28, 42),
        "track": (2, 2, 3, 2),
        "vis": (2, 2, 3),
        "conf": (2, 2, 3),
        "images": (2, 2, 3, 28, 42),
    }
    assert len(outputs["pose_enc_list"]) == 4
    assert outputs["pose_enc_list"][-1] is outputs["pose_enc"]
    assert outputs["depth"].min() > 0
    assert outputs["depth_conf"].min() > 1
    assert outputs["pose_enc"][..., 7:].min() >= 0


def test_four_dimensions_are_one_scene(model: VGGT):
    batch = images(3)
    together, alone = model(batch), model(batch[0])
    torch.testing.assert_close(together["depth"], alone["depth"], rtol=0, atol=0)
    points = torch.tensor([[3.0, 4.0], [20.0, 9.0]])
    tracked = model(batch[0], points)["track"]
    assert tracked.shape == (1, 3, 2, 2)
    torch.testing.assert_close(tracked[0, 0], points)  # frame 0 stays at the query


def test_scenes_of_a_batch_do_not_see_each_other(model: VGGT):
    batch = images(2, scenes=2)
    changed = batch.clone()
    changed[1] = 0.5
    before, after = model(batch), model(changed)
    for key in ("pose_enc", "depth", "world_points"):
        torch.testing.assert_close(before[key][0], after[key][0], rtol=1e-5, atol=1e-6)
        assert (before[key][1] - after[key][1]).abs().max() > 1e-3


def test_frames_see_each_other(model: VGGT):
    batch = images(2)
    changed = batch.clone()
    changed[0, 1] = 0.5
    difference = model(batch)["depth"][0, 0] - model(changed)["depth"][0, 0]
    assert difference.abs().max() > 1e-4


@pytest.mark.parametrize(
    "heads,keys",
    [
        ({"camera"}, {"pose_enc"}),
        ({"depth"}, {"depth", "depth_conf"}),
        ({"point", "camera"}, {"pose_enc", "world_points", "world_points_conf"}),
    ],
)
def test_heads_not_wanted_are_not_there(model: VGGT, heads: set[str], keys: set[str]):
    pruned = load_model("random:vggt-tiny", heads=frozenset(heads))
    prefixes = {key.split(".")[0] for key in pruned.state_dict()}
    assert prefixes == {"aggregator"} | {f"{head}_head" for head in heads}
    batch = images(2)
    outputs, whole = pruned.forward_fields(batch, pruned.fields(28, 42)), model(batch)
    assert outputs.keys() == keys
    for key in keys:
        torch.testing.assert_close(outputs[key], whole[key], rtol=0, atol=0)


def test_emitted_pose_is_cut_but_the_loop_goes_on_from_the_raw_one():
    raw = torch.tensor([-1.0] * 9)
    assert activate_pose(raw).tolist() == [-1.0] * 7 + [0.0, 0.0]
    # With a strongly negative correction in each iteration the raw value falls: were it cut inside
    # the loop, the second pose would embed zero and not -5.
    model = load_model("random:vggt-tiny", heads=frozenset({"camera"}))
    seen: list[Tensor] = []
    model.camera_head.embed_pose.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model.camera_head.pose_branch.fc2.bias[7:] = -5.0
    model(images(1))
    assert seen[1][..., 7:].max() < 0


def test_wrong_requests_are_usage_errors(model: VGGT):
    with pytest.raises(UsageError, match="multiple of 14"):
        model(images(1, height=30))
    with pytest.raises(UsageError, match="no such heads"):
        VGGT(CONFIGS["vggt-small"], heads=frozenset({"track"}))
    with pytest.raises(UsageError, match="no track head"):
        load_model("random:vggt-small")(images(1), torch.zeros(1, 2))
    with pytest.raises(UsageError, match="vggt-tiny"):
        get_config("vggt-2b")
    small_images = images(1, height=14, width=14)
    deep = replace(TINY, track=replace(TINY.track, corr_levels=7))  # type: ignore[type-var]
    with pytest.raises(UsageError, match="too small to track"):
        VGGT(deep)(small_images, torch.zeros(1, 2))


def test_a_config_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="do not divide"):
        replace(TINY, heads=3)
    with pytest.raises(ValueError, match="exceed depth"):
        replace(TINY, dpt_layers=(0, 1, 2, 9))


class Traced(nn.Module):
    """The traced path with plain tensors in and out."""

    def __init__(self, model: VGGT) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Tensor, fields: dict[str, Tensor]) -> tuple[Tensor, ...]:
        return tuple(self.model.forward_fields(batch, GridFields.from_named(fields)).values())


@pytest.mark.parametrize("folded", [False, True])
def test_one_trace_serves_every_number_of_frames(folded: bool):
    model = load_model("random:vggt-tiny", heads=DENSE, folded=folded)
    for module in model.modules():
        if hasattr(module, "kind"):
            module.kind = "explicit"
    traced, fields = Traced(model).eval(), model.fields(28, 42).named()
    frames = torch.export.Dim("frames", min=1, max=16)
    shapes = {"batch": {1: frames}, "fields": dict.fromkeys(fields)}
    program = torch.export.export(traced, (images(3), fields), dynamic_shapes=shapes)
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    forbidden = ("aten.cos", "aten.sin", "aten.upsample_bicubic", "aten.unbind")
    assert not [target for target in targets if target.startswith(forbidden)]
    for count in (1, 2, 7):
        batch = images(count)
        for got, expected in zip(
            program.module()(batch, fields), traced(batch, fields), strict=True
        ):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_a_meta_model_runs_for_shapes_alone():
    model = meta_model(CONFIGS["vggt-1b"], heads=DENSE, folded=True, attention="explicit")
    outputs = model(torch.empty(1, 2, 3, 70, 98, device="meta"))
    assert outputs["world_points"].shape == (1, 2, 70, 98, 3)
    assert outputs["world_points"].device.type == "meta"
