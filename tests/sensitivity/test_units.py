"""Which layers make a unit, and which formats it is tried in."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest

from vggt_deploy.errors import UsageError
from vggt_deploy.model.config import get_config
from vggt_deploy.quantize.plan import LayerInfo, layers_of, plan
from vggt_deploy.quantize.schemes import INT4_G32, INT4_G128, INT8_PC_SYM, get_scheme
from vggt_deploy.sensitivity.table import UNITS, By
from vggt_deploy.sensitivity.units import candidates, chosen, pattern_of, ranked, unit_of

HEADS = frozenset({"camera", "depth", "point"})


@pytest.fixture(scope="module")
def layers() -> tuple[LayerInfo, ...]:
    return layers_of(get_config("vggt-tiny"), HEADS)


@pytest.mark.parametrize(
    "layer, block, kind, head",
    [
        (
            "aggregator.frame_blocks.3.attn.qkv",
            "aggregator.frame_blocks.3",
            "aggregator.frame_blocks.*.attn.qkv",
            "aggregator.frame_blocks",
        ),
        (
            "aggregator.patch_embed.blocks.11.mlp.fc1",
            "aggregator.patch_embed.blocks.11",
            "aggregator.patch_embed.blocks.*.mlp.fc1",
            "aggregator.patch_embed",
        ),
        (
            "camera_head.trunk.0.attn.proj",
            "camera_head.trunk.0",
            "camera_head.trunk.*.attn.proj",
            "camera_head",
        ),
        (
            "camera_head.pose_branch.fc1",
            "camera_head.pose_branch",
            "camera_head.pose_branch.fc1",
            "camera_head",
        ),
        ("depth_head.projects.2", "depth_head.projects", "depth_head.projects.*", "depth_head"),
    ],
)
def test_units_of_a_layer(layer: str, block: str, kind: str, head: str) -> None:
    found = {by: unit_of(layer, by) for by in UNITS}
    assert found == {"block": block, "layer": layer, "kind": kind, "head": head}


@pytest.mark.parametrize("by", UNITS)
def test_every_planned_layer_is_in_one_unit_whose_pattern_excludes_it(
    layers: tuple[LayerInfo, ...], by: By
) -> None:
    planned = plan(get_scheme("mixed"), layers)
    found = candidates(layers, planned, by)
    members = [(name, form) for one in found for name, form in one.layers.items()]
    assert sorted(members, key=lambda m: m[0]) == sorted(planned.items())
    for one in found:
        pattern = pattern_of(one.unit, by)
        assert all(fnmatchcase(name, pattern) for name in one.layers)
        others = {n for o in found if o.unit != one.unit for n in o.layers}
        assert not any(fnmatchcase(name, pattern) for name in others)


def test_given_formats_replace_the_scheme_s_and_groups_are_for_linears(
    layers: tuple[LayerInfo, ...],
) -> None:
    planned = plan(get_scheme("int8_pc_sym"), layers)
    found = candidates(layers, planned, "head", (INT8_PC_SYM, INT4_G32))
    tried = {(one.unit, one.format) for one in found}
    assert ("aggregator.frame_blocks", "int4_g32") in tried
    assert ("depth_head", "int8_pc_sym") in tried
    assert ("depth_head", "int4_g32") not in tried
    kinds = {layer.name: layer.kind for layer in layers}
    assert all(
        kinds[n] == "linear" for one in found if one.format == "int4_g32" for n in one.layers
    )
    assert set().union(*(one.layers for one in found)) == set(planned)


def test_nothing_to_try_is_refused(layers: tuple[LayerInfo, ...]) -> None:
    with pytest.raises(UsageError, match="no layer would become integers"):
        candidates(layers, {}, "block")
    convolutions = {layer.name: INT8_PC_SYM for layer in layers if layer.kind != "linear"}
    with pytest.raises(UsageError):
        candidates(layers, convolutions, "block", (INT4_G128,))


def test_units_are_ranked_by_their_worst_format() -> None:
    local = {("a", "int8"): 0.1, ("b", "int8"): 0.2, ("a", "int4"): 0.3, ("c", "int8"): 0.2}
    assert ranked(local) == ("a", "b", "c")


def test_the_camera_head_is_measured_whatever_its_rank() -> None:
    local = {("a", "int8"): 0.1, ("camera_head.trunk.0", "int8"): 0.01, ("b", "int8"): 0.2}
    assert chosen(local, 1) == ("b", "camera_head.trunk.0")
    assert chosen(local, None) == ranked(local) == ("b", "a", "camera_head.trunk.0")
