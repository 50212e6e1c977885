"""The PyTorch variant: the same numbers as a float model with the dequantized weights."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vggt_deploy.errors import CalibrationError, ModelError, QuantizeError, UsageError
from vggt_deploy.model.config import VGGTConfig, get_config
from vggt_deploy.model.fold import FoldedWeights
from vggt_deploy.model.vggt import VGGT
from vggt_deploy.model.weights import open_weights
from vggt_deploy.quantize.apply import (
    QuantConv2d,
    QuantConvTranspose2d,
    QuantizedModule,
    QuantLinear,
    build_quantized,
    quantized_module,
)
from vggt_deploy.quantize.plan import layers_of, plan
from vggt_deploy.quantize.qparams import dequantize, quantize
from vggt_deploy.quantize.schemes import INT8_PC_ASYM, INT8_PC_SYM, SCHEMES, Precision, get_scheme

HEADS = frozenset({"camera", "depth", "point"})
DENSE = ("pose_enc", "depth", "depth_conf", "world_points", "world_points_conf")
INTEGER = [name for name, scheme in SCHEMES.items() if scheme.integer]


@pytest.fixture(scope="module")
def tiny() -> tuple[VGGTConfig, FoldedWeights]:
    config, source = open_weights("random:vggt-tiny")
    return config, FoldedWeights(source, config)


@pytest.fixture(scope="module")
def kept() -> tuple[VGGTConfig, FoldedWeights]:
    """As FP16 needs the weights."""
    config, source = open_weights("random:vggt-tiny")
    return config, FoldedWeights(source, config, keep_layer_scale=True)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(1, 2, 3, 28, 42, generator=torch.Generator().manual_seed(0))


def float_model(config: VGGTConfig, weights: dict[str, Tensor]) -> VGGT:
    with torch.device("meta"):
        model = VGGT(config, heads=HEADS, folded=True)
    keys = model.state_dict().keys()
    model.load_state_dict({key: weights[key] for key in keys}, assign=True)
    return model.eval().requires_grad_(False)


def folded_tensors(source: FoldedWeights) -> dict[str, Tensor]:
    return {key: source.load(key) for key in source.keys()}  # noqa: SIM118


def outputs(model: VGGT, images: Tensor) -> dict[str, Tensor]:
    with torch.no_grad():
        result: dict[str, Any] = model(images)
    return {key: result[key] for key in DENSE}


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The worst output's largest error, relative to its largest value."""
    return max(float((a[k] - b[k]).abs().max() / b[k].abs().max()) for k in b)


@pytest.mark.parametrize("name", INTEGER)
def test_model_computes_with_the_dequantized_weights(
    name: str, tiny: tuple[VGGTConfig, FoldedWeights], images: Tensor
) -> None:
    config, source = tiny
    scheme = get_scheme(name)
    model = build_quantized(config, source, scheme, heads=HEADS)
    weights = folded_tensors(source)
    plain = outputs(float_model(config, weights), images)
    layers = {layer.name: layer for layer in layers_of(config, HEADS)}
    formats = plan(scheme, tuple(layers.values()))
    for layer, form in formats.items():
        key = f"{layer}.weight"
        weights[key] = dequantize(quantize(weights[key], form, axis=layers[layer].axis))
    expected = outputs(float_model(config, weights), images)
    ours = outputs(model, images)
    assert all(torch.equal(ours[key], expected[key]) for key in DENSE)
    assert distance(ours, plain) > 1e-5  # rounding the weights must be visible


@pytest.mark.parametrize("name", INTEGER)
def test_integers_are_held_as_bytes_that_are_counted(
    name: str, tiny: tuple[VGGTConfig, FoldedWeights]
) -> None:
    config, source = tiny
    model = build_quantized(config, source, get_scheme(name), heads=HEADS)
    modules = {n: m for n, m in model.named_modules() if isinstance(m, QuantizedModule)}
    assert set(modules) == set(plan(get_scheme(name), layers_of(config, HEADS)))
    for module in modules.values():
        count = module.shape.numel()
        if module.format.bits == 4:
            assert module.q.dtype == torch.uint8
            assert module.q.nbytes == (count + 1) // 2
        else:
            assert module.q.dtype == torch.int8
            assert module.q.nbytes == count
        assert not any(p.shape == module.shape for p in module.parameters())
    assert not any(t.is_meta for t in model.state_dict().values())


@pytest.mark.parametrize("name", INTEGER)
def test_dynamic_activations_differ_from_float_ones_but_not_much(
    name: str, tiny: tuple[VGGTConfig, FoldedWeights], images: Tensor
) -> None:
    config, source = tiny
    scheme = get_scheme(name)
    floating = outputs(build_quantized(config, source, scheme, heads=HEADS), images)
    model = build_quantized(config, source, scheme, activations="dynamic", heads=HEADS)
    dynamic = outputs(model, images)
    assert 1e-5 < distance(dynamic, floating) < 0.5
    kinds = {type(m) for m in model.modules() if isinstance(m, QuantizedModule)}
    assert kinds == {QuantLinear, QuantConv2d, QuantConvTranspose2d}


def test_float_scheme_is_the_float_model(
    tiny: tuple[VGGTConfig, FoldedWeights], images: Tensor
) -> None:
    config, source = tiny
    model = build_quantized(config, source, get_scheme("fp32"), heads=HEADS)
    expected = outputs(float_model(config, folded_tensors(source)), images)
    ours = outputs(model, images)
    assert all(torch.equal(ours[key], expected[key]) for key in DENSE)
    with pytest.raises(UsageError, match="no integer weights"):
        build_quantized(config, source, get_scheme("fp32"), activations="dynamic")


class WatchedSource:
    """Passes tensors on and counts how many of its matrices are still alive at each load."""

    def __init__(
        self, source: FoldedWeights, broken: str | None = None, value: float = np.nan
    ) -> None:
        self.source, self.broken, self.value = source, broken, value
        self.origin = source.origin
        self.alive: list[weakref.ref[np.ndarray]] = []
        self.most = 0

    def keys(self) -> tuple[str, ...]:
        return self.source.keys()

    def shape(self, key: str) -> tuple[int, ...]:
        return self.source.shape(key)

    def load(self, key: str) -> Tensor:
        # Memory that NumPy owns and torch borrows: the array lives as long as any view of it.
        array = self.source.load(key).numpy().copy()
        if key == self.broken:
            array.flat[-1] = self.value
        if key.endswith(".weight") and array.ndim > 1:
            self.most = max(self.most, sum(ref() is not None for ref in self.alive))
            self.alive.append(weakref.ref(array))
        return torch.from_numpy(array)


def test_one_float_weight_is_in_memory_at_a_time(tiny: tuple[VGGTConfig, FoldedWeights]) -> None:
    config, source = tiny
    watched = WatchedSource(source)
    build_quantized(config, watched, get_scheme("int4_g128"), heads=frozenset({"depth"}))
    assert len(watched.alive) > 50
    assert watched.most <= 1
    kept = WatchedSource(source)  # the twin: a float model keeps every one
    build_quantized(config, kept, get_scheme("fp32"), heads=frozenset({"depth"}))
    assert kept.most > 50


def test_a_bad_weight_is_named(tiny: tuple[VGGTConfig, FoldedWeights]) -> None:
    config, source = tiny
    name = "aggregator.frame_blocks.1.mlp.fc1"
    broken = WatchedSource(source, broken=f"{name}.weight")
    with pytest.raises(QuantizeError, match=f"{name}: the weight holds NaN"):
        build_quantized(config, broken, get_scheme("int8_pc_sym"), heads=HEADS)


def test_an_unfolded_or_incomplete_source_is_refused(
    tiny: tuple[VGGTConfig, FoldedWeights], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, source = tiny
    keys = source.keys()
    watched = WatchedSource(source)
    monkeypatch.setattr(watched, "keys", lambda: keys[3:])
    with pytest.raises(ModelError, match="lacks 3 tensors"):
        build_quantized(config, watched, get_scheme("int8_pc_sym"), heads=HEADS)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_source_folded_for_another_precision_is_refused(
    precision: Precision,
    tiny: tuple[VGGTConfig, FoldedWeights],
    kept: tuple[VGGTConfig, FoldedWeights],
) -> None:
    (config, folded), (_, unscaled), scheme = tiny, kept, get_scheme("int8_pc_sym")
    with pytest.raises(ModelError, match=f"keeps LayerScale, and precision {precision} folds it"):
        build_quantized(config, unscaled, scheme, heads=HEADS, precision=precision)
    with pytest.raises(ModelError, match="has folded LayerScale, and precision fp16 keeps it"):
        build_quantized(config, folded, scheme, heads=HEADS, precision="fp16")


def test_patterns_reach_the_model(tiny: tuple[VGGTConfig, FoldedWeights]) -> None:
    config, source = tiny
    model = build_quantized(
        config,
        source,
        get_scheme("int4_g32"),
        heads=frozenset({"camera"}),
        include=["camera_head.embed_pose", "aggregator.patch_embed.patch_embed.proj"],
        exclude=["aggregator.global_blocks.*"],
    )
    assert isinstance(model.get_submodule("camera_head.embed_pose"), QuantLinear)
    assert isinstance(model.get_submodule("aggregator.patch_embed.patch_embed.proj"), QuantConv2d)
    assert isinstance(model.get_submodule("aggregator.global_blocks.0.mlp.fc1"), nn.Linear)
    with torch.no_grad():
        pose = model(torch.rand(2, 3, 28, 28))["pose_enc"]
    assert bool(torch.isfinite(pose).all())


def test_static_activations_need_a_scale_for_every_linear(
    tiny: tuple[VGGTConfig, FoldedWeights],
) -> None:
    config, source = tiny
    scheme, heads = get_scheme("int8_pc_sym"), frozenset({"camera"})
    names = [x.name for x in layers_of(config, heads) if x.kind == "linear"]
    scales = dict.fromkeys(names, 0.02) | {names[3]: 0.5}
    model = build_quantized(
        config, source, scheme, activations="static", input_scales=scales, heads=heads
    )
    for name, module in model.named_modules():
        if isinstance(module, QuantLinear):
            assert module.input_scale is not None
            assert float(module.input_scale) == pytest.approx(scales[name], rel=1e-7)
    for missing in (None, {k: v for k, v in scales.items() if k != names[3]}):
        with pytest.raises(CalibrationError, match="no calibrated scale for the input of"):
            build_quantized(
                config, source, scheme, activations="static", input_scales=missing, heads=heads
            )
    with pytest.raises(UsageError, match="4-bit weights"):
        build_quantized(
            config, source, get_scheme("mixed"), activations="static", input_scales=scales
        )


@pytest.mark.parametrize("form", [INT8_PC_SYM, INT8_PC_ASYM], ids=lambda f: f.label)
@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(6, 8, 3, padding=1),
        nn.Conv2d(6, 8, 3, stride=2, padding=1, bias=False),
        nn.Conv2d(6, 8, 1),
        nn.ConvTranspose2d(6, 8, 4, stride=4),
        nn.ConvTranspose2d(6, 8, 3, stride=2, padding=1, output_padding=1),
    ],
    ids=str,
)
@torch.no_grad()
def test_convolutions(layer: nn.Conv2d | nn.ConvTranspose2d, form: Any) -> None:
    axis = int(isinstance(layer, nn.ConvTranspose2d))
    qt = quantize(layer.weight, form, axis=axis)
    x = torch.randn(2, 6, 9, 11)
    ours = quantized_module(layer, qt, layer.bias)(x)
    plain = layer(x)
    assert not torch.equal(ours, plain)
    assert float((ours - plain).abs().max()) < 0.02 * float(plain.abs().max())
    layer.weight.copy_(dequantize(qt))
    assert torch.equal(ours, layer(x))


def test_padding_modes_and_unknown_layers_are_refused() -> None:
    layer = nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")
    with pytest.raises(QuantizeError, match="padding mode"):
        quantized_module(layer, quantize(layer.weight, INT8_PC_SYM), None)
    with pytest.raises(TypeError, match="Conv1d"):
        quantized_module(nn.Conv1d(3, 4, 3), quantize(layer.weight, INT8_PC_SYM), None)


def test_state_dict_goes_through_a_file(
    tiny: tuple[VGGTConfig, FoldedWeights], tmp_path: Any
) -> None:
    """Buffers only: a quantized model can be saved and restored as tensors."""
    config, source = tiny
    model = build_quantized(config, source, get_scheme("int4_g32"), heads=frozenset({"camera"}))
    torch.save(model.state_dict(), tmp_path / "state.pt")
    restored = torch.load(tmp_path / "state.pt", weights_only=True)
    fresh = build_quantized(
        get_config("vggt-tiny"), source, get_scheme("int4_g32"), heads=frozenset({"camera"})
    )
    fresh.load_state_dict(restored)
