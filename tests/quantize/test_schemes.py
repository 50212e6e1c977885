from __future__ import annotations

import subprocess
import sys

import pytest

from vggt_deploy.errors import UsageError
from vggt_deploy.model.config import get_config
from vggt_deploy.quantize import (
    SCHEMES,
    LayerInfo,
    PerGroup,
    Quantization,
    WeightFormat,
    get_scheme,
    layers_of,
    parse_label,
    plan,
    scheme_rows,
    support,
)
from vggt_deploy.quantize.plan import (
    in_half_region,
    keeps_layer_scale,
    layer_precision,
    planned_bytes,
)
from vggt_deploy.quantize.schemes import INT8_PC_SYM, PerChannel, takes_activations
from vggt_deploy.quantize.targets import TARGETS, reference_layers

STATIC = ("int8_pt_sym", "int8_pt_asym", "int8_pc_sym", "int8_pc_asym")
INTEGER = [scheme for scheme in SCHEMES.values() if scheme.integer]


def test_importing_the_package_imports_no_torch() -> None:
    code = (
        "import sys, vggt_deploy.quantize as q; q.scheme_rows();"
        "print([m for m in ('torch', 'onnx', 'onnxruntime', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_twelve_schemes_are_named_after_what_they_do() -> None:
    named = set("fp32 fp16 bf16 int4_g32 int4_g64 int4_g128 int4_g256 mixed".split())  # noqa: SIM905
    named |= {f"int8_{scales}_{kind}" for scales in ("pt", "pc") for kind in ("sym", "asym")}
    assert set(SCHEMES) == named
    for name, scheme in SCHEMES.items():
        assert scheme.name == name
        if scheme.linear is not None and name != "mixed":
            assert scheme.linear.label == name
        if scheme.integer:
            assert scheme.conv == INT8_PC_SYM
    assert WeightFormat(4, PerGroup(32), symmetric=False).label == "int4_g32_asym"


def test_an_unknown_scheme_lists_the_known() -> None:
    with pytest.raises(UsageError, match="int4_g128, int4_g256, mixed"):
        get_scheme("int3")


def test_variants_are_parsed_and_written_back() -> None:
    for row in scheme_rows():
        asked = Quantization(get_scheme(row.scheme), row.activations)
        assert parse_label(asked.label) == asked
    for bad in ("fp32+dynamic", "int8_pc_sym+calibrated", "int8_pc_sym+", "nothing"):
        with pytest.raises(UsageError):
            parse_label(bad)


@pytest.mark.parametrize("name", list(SCHEMES))
def test_static_activations_are_for_8_bit_weights(name: str) -> None:
    scheme = SCHEMES[name]
    allowed = name in STATIC
    assert takes_activations(scheme, "static") == allowed
    if allowed:
        assert parse_label(f"{name}+static") == Quantization(scheme, "static")
        return
    reason = "4-bit weights" if scheme.integer else "no integer weights"
    with pytest.raises(UsageError, match=reason) as caught:
        parse_label(f"{name}+static")
    assert "int8_pc_asym" in caught.value.fix
    assert "mixed" not in caught.value.fix.replace("use mixed with float", "")


def test_qmin_and_qmax() -> None:
    assert (INT8_PC_SYM.qmin, INT8_PC_SYM.qmax) == (-127, 127)
    asymmetric = WeightFormat(4, PerChannel(), symmetric=False)
    assert (asymmetric.qmin, asymmetric.qmax) == (-8, 7)


@pytest.mark.parametrize(
    "k, size, fitted, groups, padded",
    [
        (1024, 128, 128, 8, 1024),
        (1000, 128, 128, 8, 1024),
        (96, 128, 96, 1, 96),
        (9, 4, 4, 3, 12),
    ],
)
def test_groups_of_a_row(k: int, size: int, fitted: int, groups: int, padded: int) -> None:
    group = PerGroup(size)
    assert (group.fitted(k), group.groups(k), group.padded_k(k)) == (fitted, groups, padded)
    with pytest.raises(ValueError, match="at least one"):
        PerGroup(0)


# -- the plan -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def layers() -> tuple[LayerInfo, ...]:
    return layers_of(get_config("vggt-1b"), frozenset({"camera", "depth", "point"}))


def test_default_plan_of_vggt_1b(layers: tuple[LayerInfo, ...]) -> None:
    formats = plan(get_scheme("int4_g128"), layers)
    by_name = {layer.name: layer for layer in layers}
    linear = [n for n in formats if by_name[n].kind == "linear"]
    assert len(linear) == 308 - 2
    assert len(formats) - len(linear) == 60 + 4  # every convolution but the patch embedding
    assert {formats[n].label for n in linear} == {"int4_g128"}
    assert {formats[n].label for n in formats if n not in linear} == {"int8_pc_sym"}
    left = {layer.name for layer in layers} - set(formats)
    assert left == {
        "aggregator.patch_embed.patch_embed.proj",
        "camera_head.embed_pose",
        "camera_head.pose_branch.fc2",
    }
    assert plan(get_scheme("fp16"), layers) == {}


def test_bytes_of_vggt_1b_are_those_of_its_integers(layers: tuple[LayerInfo, ...]) -> None:
    """Counted by hand from the table of parameters."""
    four = planned_bytes(layers, plan(get_scheme("int4_g128"), layers))
    eight = planned_bytes(layers, plan(get_scheme("int8_pc_sym"), layers))
    # 308 Linear layers of the parameter table, less embed_pose [2048, 9] and fc2 [9, 1024].
    linear = 1_150_797_952 - 28_793_984 - 2048 * 9 - 9 * 1024
    convolutions = [x for x in layers if x.kind != "linear" and "patch_embed" not in x.name]
    conv = sum(x.weights for x in convolutions)
    conv_scales = sum(x.outputs for x in convolutions)
    groups = linear // 128
    assert four == linear // 2 + groups * 4 + conv + conv_scales * (4 + 1)
    assert 1.12e9 + conv < eight < 1.13e9 + conv


def test_mixed_keeps_eight_bits_where_errors_are_not_repaired(
    layers: tuple[LayerInfo, ...],
) -> None:
    formats = plan(get_scheme("mixed"), layers)
    eight = {n for n, f in formats.items() if f.label == "int8_pc_sym" and "attn.qkv" in n}
    stacks = ("patch_embed.blocks", "frame_blocks", "global_blocks")
    assert eight == {
        *(f"aggregator.{stack}.{i}.attn.qkv" for stack in stacks for i in (0, 23)),
        *(f"camera_head.trunk.{i}.attn.qkv" for i in range(4)),
    }
    own = plan(get_scheme("mixed"), layers, sensitive=["aggregator.frame_blocks.{last}.*"])
    eight = {n for n, f in own.items() if f.label == "int8_pc_sym" and "attn.qkv" in n}
    assert eight == {"aggregator.frame_blocks.23.attn.qkv"}


def test_patterns_include_exclude_and_fail_loudly(layers: tuple[LayerInfo, ...]) -> None:
    scheme = get_scheme("int4_g128")
    formats = plan(
        scheme,
        layers,
        include=["*.embed_pose", "*.patch_embed.proj"],
        exclude=["point_head.*", "*.patch_embed.proj"],
    )
    assert formats["camera_head.embed_pose"] == scheme.linear
    assert "aggregator.patch_embed.patch_embed.proj" not in formats  # exclude wins
    assert not any(name.startswith("point_head.") for name in formats)
    for option in ("include", "exclude", "sensitive"):
        with pytest.raises(UsageError, match=f"--{option} 'nothing.*' matches none"):
            plan(get_scheme("mixed"), layers, **{option: ["nothing.*"]})
    with pytest.raises(UsageError, match="one format only"):
        plan(scheme, layers, sensitive=["camera_head.*"])
    with pytest.raises(UsageError, match="keeps every layer float"):
        plan(get_scheme("fp32"), layers, exclude=["camera_head.*"])


def test_pruned_heads_do_not_trouble_the_default_patterns() -> None:
    pruned = layers_of(get_config("vggt-tiny"), frozenset({"depth"}))
    formats = plan(get_scheme("mixed"), pruned)
    assert formats
    assert not any(name.startswith(("camera_head.", "point_head.")) for name in formats)


@pytest.mark.parametrize(
    "name",
    [
        "aggregator.frame_blocks.0.mlp",
        "aggregator.frame_blocks.0.mlp.fc1",
        "aggregator.frame_blocks.11.attn.q_norm.weight",
        "aggregator.global_blocks.3.attn.qkv",
        "aggregator.patch_embed.blocks.0.attn.proj.bias",
    ],
)
def test_half_inside_attention_and_mlp(name: str) -> None:
    assert in_half_region(name)
    assert layer_precision(name, "fp16") == "fp16"
    assert layer_precision(name, "fp32") == "fp32"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "aggregator",
        "aggregator.frame_blocks.0",
        "aggregator.frame_blocks.0.norm1.weight",
        "aggregator.global_blocks.0.norm2",
        "aggregator.frame_blocks.0.ls1.gamma",
        "aggregator.patch_embed",
        "aggregator.patch_embed.norm.weight",
        "aggregator.patch_embed.patch_embed.proj.weight",
        "aggregator.patch_embed.pos_embed",
        "aggregator.patch_embed.register_tokens",
        "aggregator.camera_token",
        "camera_head.trunk.0.mlp.fc1",
        "depth_head.projects.0",
        "track_head.tracker.updateformer.time_blocks.0.mlp.fc2",
        "aggregator.frame_blocks.0.mlp2",
        "vggt.aggregator.frame_blocks.0.mlp",
    ],
)
def test_fp32_everywhere_else(name: str) -> None:
    assert not in_half_region(name)
    assert layer_precision(name, "bf16") == "fp32"


def test_layer_scale_is_kept_for_fp16_alone() -> None:
    assert keeps_layer_scale("fp16")
    assert not keeps_layer_scale("bf16")
    assert not keeps_layer_scale("fp32")


# -- the table ----------------------------------------------------------------------------------


def test_reference_layers_are_the_models(layers: tuple[LayerInfo, ...]) -> None:
    real = {x.name: x.shape for x in layers if x.kind == "linear"}
    assert {x.name: x.shape for x in reference_layers()} == real


def test_rows_cover_every_scheme_and_target() -> None:
    rows = scheme_rows()
    assert [r.scheme for r in rows if r.activations == "float"] == list(SCHEMES)
    assert [r.scheme for r in rows if r.activations == "dynamic"] == [s.name for s in INTEGER]
    assert [r.scheme for r in rows if r.activations == "static"] == list(STATIC)
    for row in rows:
        assert tuple(row.targets) == TARGETS
        assert all(s.note for s in row.targets.values() if s.level == "no")
    size = {r.scheme: r.bytes_per_weight for r in rows}
    assert size["fp32"] == 4
    assert size["bf16"] == 2
    assert size["int8_pc_sym"] == pytest.approx(1.0033, abs=1e-4)
    assert size["int4_g128"] == pytest.approx(0.5 + 4 / 128)
    assert size["int4_g128"] < size["mixed"] < size["int8_pc_sym"]


def test_what_targets_refuse() -> None:
    assert not support(get_scheme("bf16"), "float", "onnxruntime-cpu").runs
    assert support(get_scheme("fp16"), "float", "onnxruntime-cpu").level == "emulated"
    for scheme in INTEGER:
        for target in ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda"):
            assert support(scheme, "dynamic", target).level == "no"
        assert support(scheme, "dynamic", "onnxruntime-cpu").level == "real"
    for activations in ("float", "static"):
        for target in ("tensorrt", "tensorrt-rtx"):
            asymmetric = support(get_scheme("int8_pc_asym"), activations, target)
            assert "rank-1" in asymmetric.note
            assert "rank-1" not in support(get_scheme("int8_pc_sym"), activations, target).note
    for name in STATIC:
        levels = {t: support(get_scheme(name), "static", t).level for t in TARGETS}
        assert levels == {
            "torch": "storage",
            "onnxruntime-cpu": "real",
            "onnxruntime-cuda": "untried",
            "tensorrt": "untried",
            "tensorrt-rtx": "builds",
        }
    with pytest.raises(UsageError):
        support(get_scheme("int4_g128"), "static", "torch")
    with pytest.raises(UsageError):
        support(get_scheme("fp32"), "dynamic", "torch")
