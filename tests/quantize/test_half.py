"""Half precision: which parts have it, and what LayerScale in FP16 scales would lose."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vggt_deploy.errors import QuantizeError
from vggt_deploy.model import layers
from vggt_deploy.model.config import VGGTConfig
from vggt_deploy.model.fold import FoldedWeights
from vggt_deploy.model.layers import Attention, Block, LayerScale, Mlp
from vggt_deploy.model.sources import ModelOrigin, WeightSource
from vggt_deploy.model.vggt import VGGT
from vggt_deploy.model.weights import open_weights
from vggt_deploy.quantize import apply
from vggt_deploy.quantize.apply import QuantizedModule, build_quantized
from vggt_deploy.quantize.plan import keeps_layer_scale
from vggt_deploy.quantize.qparams import TORCH_DTYPE
from vggt_deploy.quantize.schemes import Precision, get_scheme

HEADS = frozenset({"camera", "depth", "point"})
DENSE = ("pose_enc", "depth", "depth_conf", "world_points", "world_points_conf")
HALVES: tuple[Precision, ...] = ("fp16", "bf16")
SCHEMES = ("float", "int8_pc_sym", "int4_g32")

Weights = tuple[VGGTConfig, WeightSource]


class Changed:
    """A source some of whose tensors are others."""

    def __init__(self, source: WeightSource, change: Callable[[str, Tensor], Tensor]) -> None:
        self._source, self._change = source, change

    @property
    def origin(self) -> ModelOrigin:
        return self._source.origin

    def keys(self) -> tuple[str, ...]:
        return self._source.keys()

    def shape(self, key: str) -> tuple[int, ...]:
        return self._source.shape(key)

    def load(self, key: str) -> Tensor:
        return self._change(key, self._source.load(key))


@pytest.fixture(scope="module")
def tiny() -> Weights:
    return open_weights("random:vggt-tiny")


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(1, 2, 3, 28, 42, generator=torch.Generator().manual_seed(0))


def build(weights: Weights, scheme: str, precision: Precision) -> VGGT:
    """`scheme` "float" is the float scheme of that precision."""
    config, source = weights
    folded = FoldedWeights(source, config, keep_layer_scale=keeps_layer_scale(precision))
    chosen = get_scheme(precision if scheme == "float" else scheme)
    return build_quantized(config, folded, chosen, heads=HEADS, precision=precision)


def outputs(model: VGGT, images: Tensor) -> dict[str, Tensor]:
    with torch.no_grad():
        result: dict[str, Any] = model(images)
    return {key: result[key] for key in DENSE}


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The worst output's largest error, relative to its largest value; infinite for NaN."""
    errors = [float((a[k] - b[k]).abs().max() / b[k].abs().max()) for k in b]
    return float("inf") if any(e != e for e in errors) else max(errors)


def region(model: VGGT) -> dict[str, nn.Module]:
    """The half region by the types of modules, where the package goes by their names."""
    return {
        name: module
        for name, module in model.aggregator.named_modules(prefix="aggregator")
        if isinstance(module, Attention | Mlp)
    }


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("precision", HALVES)
def test_tensors_are_half_in_the_region_and_fp32_elsewhere(
    scheme: str, precision: Precision, tiny: Weights
) -> None:
    model, half = build(tiny, scheme, precision), TORCH_DTYPE[precision]
    inside = tuple(f"{name}." for name in region(model))
    tensors: dict[str, Tensor] = dict(model.named_parameters())
    assert sum(name.startswith(inside) for name in tensors) > 50 or scheme != "float"
    for name, module in model.named_modules():
        if not isinstance(module, QuantizedModule):
            continue
        assert (module.scale_dtype == precision) == name.startswith(inside), name
        # Scales are held in FP32, at values of their own type.
        assert torch.equal(module.scale.to(half).float(), module.scale) == name.startswith(inside)
        assert module.weight.dtype == (half if name.startswith(inside) else torch.float32), name
        if module.bias is not None:
            tensors[f"{name}.bias"] = module.bias
    for name, tensor in tensors.items():
        assert tensor.dtype == (half if name.startswith(inside) else torch.float32), name


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("precision", HALVES)
def test_values_are_half_in_the_region_and_fp32_elsewhere(
    scheme: str,
    precision: Precision,
    tiny: Weights,
    images: Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, half = build(tiny, scheme, precision), TORCH_DTYPE[precision]
    inside = tuple(f"{name}." for name in region(model))
    seen: set[str] = set()

    def record(name: str) -> Callable[..., None]:
        wanted = half if name.startswith(inside) else torch.float32

        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            found = {value.dtype for value in (*args, output) if isinstance(value, Tensor)}
            assert found == {wanted}, (name, found)
            seen.add(name)

        return hook

    def rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        assert {x.dtype, rope[0].dtype, rope[1].dtype} == {half}
        seen.add("rope")
        return rotate_half(x, rope)

    def attend(q: Tensor, k: Tensor, v: Tensor, kind: Any) -> Tensor:
        seen.add(f"attention in {q.dtype}")
        assert q.dtype == k.dtype == v.dtype
        return plain_attend(q, k, v, kind)

    rotate_half, plain_attend = layers.rotate_half, layers.attend
    monkeypatch.setattr(layers, "rotate_half", rotate)
    monkeypatch.setattr(layers, "attend", attend)
    leaves = nn.Linear | nn.Conv2d | nn.LayerNorm | LayerScale | QuantizedModule
    for name, module in model.named_modules():
        if isinstance(module, leaves):
            module.register_forward_hook(record(name))
        elif isinstance(module, Block):
            module.register_forward_hook(record(name), prepend=True)
    found = outputs(model, images)
    assert all(value.dtype == torch.float32 for value in found.values())
    parts = ["patch_embed.patch_embed.proj", "patch_embed.norm", "frame_blocks.0.norm1"]
    parts += ["frame_blocks.0.attn.q_norm", "global_blocks.1.mlp.fc2", "patch_embed.blocks.0.norm2"]
    assert {f"aggregator.{part}" for part in parts} <= seen
    # Frame and global attention in half, the camera head's in FP32.
    assert {"rope", f"attention in {half}", "attention in torch.float32"} <= seen


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("precision, bound", [("fp16", 0.01), ("bf16", 0.08)])
def test_half_precision_is_near_fp32(
    scheme: str, precision: Precision, bound: float, tiny: Weights, images: Tensor
) -> None:
    if scheme == "int4_g32":  # rounding a scale moves some weights by a whole, 4-bit, step
        bound *= 4
    reference = outputs(build(tiny, scheme, "fp32"), images)
    assert 1e-5 < distance(outputs(build(tiny, scheme, precision), images), reference) < bound


def test_an_outlier_in_the_residual_stream_survives_fp16(tiny: Weights, images: Tensor) -> None:
    """FP16 ends at 65504. LayerNorm makes small numbers of the stream before any product."""

    def loud(key: str, value: Tensor) -> Tensor:
        if key == "aggregator.register_token":
            value = value.clone()
            value[..., -1] = 1e5
        return value

    config, source = tiny
    weights = config, Changed(source, loud)
    reference = outputs(build(weights, "float", "fp32"), images)
    model = build(weights, "float", "fp16")
    assert distance(outputs(model, images), reference) < 0.01
    for module in model.aggregator.modules():  # the twin: a stream in FP16
        if isinstance(module, Block):
            module.register_forward_hook(lambda module, args, out: out.half().float())
    assert distance(outputs(model, images), reference) == float("inf")


def test_float_weights_that_overflow_fp16_are_refused(tiny: Weights) -> None:
    config, source = tiny

    def loud(name: str) -> Weights:
        return config, Changed(source, lambda key, value: value + 7e4 * (key == name))

    inside = "aggregator.frame_blocks.0.mlp.fc1.bias"
    build(loud(inside), "float", "bf16")
    build(loud("aggregator.patch_embed.norm.bias"), "float", "fp16")  # stays FP32
    with pytest.raises(QuantizeError, match=f"{inside} .* 65504"):
        build(loud(inside), "float", "fp16")


def test_a_pickled_model_computes_the_same(tiny: Weights, images: Tensor) -> None:
    model = build(tiny, "int8_pc_sym", "fp16")
    again = pickle.loads(pickle.dumps(model))  # noqa: S301  (made on this line)
    assert distance(outputs(again, images), outputs(model, images)) == 0


def residual_branches(model: VGGT, images: Tensor) -> dict[str, Tensor]:
    """What the aggregator's blocks add to their stream, after LayerScale or where it was."""
    found: dict[str, Tensor] = {}
    for name, module in model.aggregator.named_modules():
        if name.endswith((".ls1", ".ls2")):
            module.register_forward_hook(
                lambda module, args, out, name=name: found.__setitem__(name, out)
            )
    outputs(model, images)
    return found


def channel_error(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The worst channel's error of all branches, relative to that channel (2-norm over tokens)."""
    assert found.keys() == expected.keys()
    assert len(expected) > 10

    errors = []
    for key, value in expected.items():
        error = (found[key] - value).flatten(0, -2).square().sum(dim=0)
        errors.append(float((error / value.flatten(0, -2).square().sum(dim=0)).sqrt().max()))
    return max(errors)


def test_small_layer_scales_keep_their_precision_in_fp16(
    tiny: Weights, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gammas of 0.01 to 0.001 as trained models have them: folded, scales sink under 6.1e-5."""

    def small(key: str, value: Tensor) -> Tensor:
        return torch.logspace(-2, -3, value.numel()) if key.endswith(".gamma") else value

    config, source = tiny
    weights = config, Changed(source, small)
    expected = residual_branches(build(weights, "int8_pc_sym", "fp32"), images)
    kept = build(weights, "int8_pc_sym", "fp16")
    assert channel_error(residual_branches(kept, images), expected) < 0.03

    monkeypatch.setattr(apply, "keeps_layer_scale", lambda precision: False)
    folded = build_quantized(
        config,
        FoldedWeights(weights[1], config),
        get_scheme("int8_pc_sym"),
        heads=HEADS,
        precision="fp16",
    )
    assert channel_error(residual_branches(folded, images), expected) > 0.2
