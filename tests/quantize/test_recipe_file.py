"""Recipes: what is read is what was written, and what makes no sense is refused with a reason."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vggt_deploy.errors import UsageError
from vggt_deploy.model.config import get_config
from vggt_deploy.quantize.plan import layers_of, plan
from vggt_deploy.quantize.recipe import load_recipe, parse_recipe, recipe_scheme, recipe_toml
from vggt_deploy.quantize.schemes import (
    INT4_G32,
    INT4_G64,
    INT4_G128,
    INT8_PC_ASYM,
    INT8_PC_SYM,
    Quantization,
    get_scheme,
    takes_activations,
)
from vggt_deploy.quantize.treatment import parse_treatment

TEXT = """
name = "mine"
treatment = "w=mse+gptq"

[layers]
"camera_head.trunk.0.mlp.fc1" = "float"
"camera_head.*" = "int8_pc_sym"
"aggregator.*" = "int4_g64"
"""


@pytest.fixture(scope="module")
def layers():
    return layers_of(get_config("vggt-tiny"))


def test_first_line_that_fits_counts(layers):
    asked = parse_recipe(TEXT)
    formats = plan(asked.scheme, layers)
    assert asked.label == "mine+w=mse+gptq"
    assert "camera_head.trunk.0.mlp.fc1" not in formats
    assert formats["camera_head.trunk.0.attn.qkv"] == INT8_PC_SYM
    assert formats["aggregator.frame_blocks.0.attn.qkv"] == INT4_G64
    # No line fits the depth head; patterns do not reach what stays float by default.
    assert not any(name.startswith("depth_head") for name in formats)
    assert "camera_head.embed_pose" not in formats
    assert "aggregator.patch_embed.patch_embed.proj" not in formats


def test_the_order_of_the_lines_decides(layers):
    head = 'name = "mine"\n[layers]\n'
    special, general = '"camera_head.trunk.*" = "int8_pc_sym"\n', '"camera_head.*" = "int4_g32"\n'
    name = "camera_head.trunk.0.attn.qkv"
    assert plan(parse_recipe(head + special + general).scheme, layers)[name] == INT8_PC_SYM
    assert plan(parse_recipe(head + general + special).scheme, layers)[name] == INT4_G32


def test_a_whole_name_reaches_any_layer(layers):
    scheme = recipe_scheme("mine", {"camera_head.embed_pose": INT8_PC_SYM})
    assert plan(scheme, layers) == {"camera_head.embed_pose": INT8_PC_SYM}


def test_exclude_wins_and_include_widens(layers):
    scheme = recipe_scheme("mine", {"camera_head.*": INT8_PC_SYM})
    formats = plan(scheme, layers, include=["camera_head.embed_pose"], exclude=["*.mlp.*"])
    assert "camera_head.embed_pose" in formats
    assert "camera_head.trunk.0.attn.qkv" in formats
    assert "camera_head.trunk.0.mlp.fc1" not in formats


def test_standard_schemes_as_recipes_give_the_same_plan(layers):
    like_int4 = recipe_scheme(
        "mine",
        {
            "depth_head.*": INT8_PC_SYM,
            "point_head.*": INT8_PC_SYM,
            "*": INT4_G128,
        },
    )
    assert plan(like_int4, layers) == plan(get_scheme("int4_g128"), layers)
    assert plan(like_int4, layers) != plan(get_scheme("int4_g64"), layers)


def test_a_line_that_fits_nothing_is_refused(layers):
    scheme = recipe_scheme("mine", {"aggregator.frame_block.*": INT8_PC_SYM})
    with pytest.raises(UsageError, match=r"recipe mine: 'aggregator.frame_block\.\*' matches none"):
        plan(scheme, layers)


def test_lines_of_heads_that_are_left_out_are_no_mistake():
    layers = layers_of(get_config("vggt-tiny"), frozenset({"camera"}))
    scheme = recipe_scheme("mine", {"depth_head.*": INT8_PC_SYM, "camera_head.*": INT8_PC_SYM})
    assert set(plan(scheme, layers)) == {
        layer.name
        for layer in layers
        if layer.name.startswith("camera_head.")
        and layer.name not in ("camera_head.embed_pose", "camera_head.pose_branch.fc2")
    }


def test_groups_for_a_convolution_are_refused(layers):
    with pytest.raises(UsageError, match="a convolution"):
        plan(recipe_scheme("mine", {"*": INT4_G32}), layers)


def test_what_activations_a_recipe_takes():
    eight = recipe_scheme("a", {"aggregator.*": INT8_PC_SYM})
    four = recipe_scheme("b", {"camera_head.*": INT8_PC_SYM, "aggregator.*": INT4_G32})
    nothing = recipe_scheme("c", {"aggregator.*": None})
    assert takes_activations(eight, "static")
    assert not takes_activations(four, "static")
    assert takes_activations(four, "dynamic")
    assert not takes_activations(nothing, "dynamic")
    static = 'name = "b"\nactivations = "static"\n[layers]\n"aggregator.*" = "int4_g32"\n'
    with pytest.raises(UsageError, match="4-bit weights"):
        parse_recipe(static)


NAMES = st.from_regex(r"[A-Za-z_*][A-Za-z0-9_.*?]{0,30}", fullmatch=True)
FORMATS = st.sampled_from([None, INT8_PC_SYM, INT8_PC_ASYM, INT4_G32, INT4_G64, INT4_G128])


@given(
    layers=st.dictionaries(NAMES, FORMATS, min_size=1, max_size=12),
    summary=st.text(st.characters(codec="utf-8"), max_size=40),
    treated=st.booleans(),
    precision=st.sampled_from(["fp32", "fp16", "bf16"]),
)
def test_written_and_read_again(layers, summary, treated, precision):
    scheme = recipe_scheme("r.1-x_y", layers, precision=precision, summary=summary)
    words = ("w=mse", "gptq") if treated and scheme.integer else ()
    asked = Quantization(scheme, "float", parse_treatment(words))
    text = recipe_toml(asked, ["first line", "second\nthird"])
    assert text.startswith("# first line\n# second\n# third\n")
    again = parse_recipe(text)
    assert again == asked
    assert [name for name, _ in again.scheme.layers] == list(layers)


@given(st.text(max_size=80))
def test_no_text_is_read_by_accident(text):
    with pytest.raises(UsageError):
        parse_recipe(text)


@pytest.mark.parametrize(
    "text,problem",
    [
        ("name = 'a'", "lacks the field 'layers'"),
        ("[layers]\n'*' = 'float'", "lacks the field 'name'"),
        ("name = 'a'\n[layers]", "names no layer"),
        ("name = 'a'\nlayer = 1\n[layers]\n'*' = 'float'", "unknown field 'layer'"),
        ("name = 'a'\n[layers]\n'*' = 'int5_g32'", "unknown weight format 'int5_g32'"),
        ("name = 'a'\n[layers]\n'*' = 8", "layers\\[\\*\\] is int"),
        ("name = 'a'\n[layers]\na.b = 'float'", "layers\\[a\\] is dict"),
        ("name = 'a'\n[layers]\n'a b' = 'float'", "can't be the name of a layer"),
        ("name = 'a'\n[layers]\n'*' = 'float'\n'*' = 'int8_pc_sym'", "not TOML"),
        ("name = 'a+b'\n[layers]\n'*' = 'float'", "can't be the name of a recipe"),
        ("name = 'int8_pc_sym'\n[layers]\n'*' = 'float'", "one of the standard schemes"),
        ("name = 'a'\ntreatment = 'magic'\n[layers]\n'*' = 'int8_pc_sym'", "unknown word 'magic'"),
        ("name = 'a'\nactivations = 'int8'\n[layers]\n'*' = 'float'", "activations is 'int8'"),
        ("name = 'a'\nprecision = 'fp8'\n[layers]\n'*' = 'float'", "precision is 'fp8'"),
        ("name = 'a'\ntreatment = 'gptq'\n[layers]\n'*' = 'float'", "no integer weights"),
    ],
)
def test_what_is_refused(text, problem):
    with pytest.raises(UsageError, match=problem) as caught:
        parse_recipe(text, "mine.toml")
    assert "mine.toml" in caught.value.message
    assert caught.value.fix


def test_files(tmp_path: Path):
    path = tmp_path / "mine.toml"
    path.write_text(TEXT)
    assert load_recipe(path) == parse_recipe(TEXT)
    with pytest.raises(UsageError, match="can't read the recipe"):
        load_recipe(tmp_path / "absent.toml")
    path.write_bytes(b"name = '\xff'")
    with pytest.raises(UsageError, match="can't read the recipe"):
        load_recipe(path)
    path.write_text("# " + "x" * (4 << 20))
    with pytest.raises(UsageError, match="more than any recipe has"):
        load_recipe(path)
