"""Scales and rotations moved between layers: the same function, and a wrong move is noticed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vggt_deploy.errors import ModelError, QuantizeError, UsageError
from vggt_deploy.model.config import CONFIGS, VGGTConfig
from vggt_deploy.model.fold import FoldedWeights
from vggt_deploy.model.sources import RandomWeights, WeightSource
from vggt_deploy.model.vggt import VGGT
from vggt_deploy.model.weights import expected_shapes, open_weights
from vggt_deploy.quantize import equal
from vggt_deploy.quantize.equal import EqualWeights, places
from vggt_deploy.quantize.plan import layers_of

TINY = CONFIGS["vggt-tiny"]
HEADS = frozenset({"camera", "depth"})
FORMS = ("unfolded", "folded", "folded, LayerScale kept")


@pytest.fixture(scope="module")
def source() -> WeightSource:
    return open_weights("random:vggt-tiny")[1]


@pytest.fixture(scope="module")
def scales() -> dict[str, Tensor]:
    """Factors from 1/8 to 8 at every place."""
    generator = torch.Generator().manual_seed(0)
    return {
        place.name: 2 ** (torch.rand(place.width, generator=generator) * 6 - 3)
        for place in places(TINY)
    }


@torch.no_grad()
def run(source: WeightSource, form: str = "folded") -> dict[str, Tensor]:
    """The outputs of a model with these (raw) weights."""
    folded, kept = form != "unfolded", form == FORMS[2]
    if folded:
        source = FoldedWeights(source, TINY, keep_layer_scale=kept)
    with torch.device("meta"):
        model = VGGT(TINY, heads=HEADS, folded=folded, keep_layer_scale=kept)
    values = {key: source.load(key) for key in model.state_dict()}
    model.load_state_dict(values, assign=True)
    images = torch.rand(1, 2, 3, 28, 42, generator=torch.Generator().manual_seed(1))
    return model.eval().forward_fields(images, model.fields(28, 42))


def worst(outputs: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    return max(
        float((outputs[key] - expected[key]).norm() / expected[key].norm()) for key in expected
    )


@pytest.fixture(scope="module")
def expected(source: WeightSource) -> dict[str, Tensor]:
    return run(source)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rotated", [False, True])
def test_the_function_stays(
    source: WeightSource,
    scales: dict[str, Tensor],
    expected: dict[str, Tensor],
    form: str,
    rotated: bool,
):
    moved = EqualWeights(source, TINY, scales, rotated)
    assert worst(run(moved, form), expected) < 1e-5


def test_every_place_alone_keeps_the_function(
    source: WeightSource, scales: dict[str, Tensor], expected: dict[str, Tensor]
):
    names = ("norm1", "attn.values", "norm2")
    stacks = ("aggregator.patch_embed.blocks.1", "aggregator.global_blocks.2")
    chosen = [f"{stack}.{name}" for stack in stacks for name in names]
    for name in [*chosen, "camera_head.trunk_norm"]:
        outputs = run(EqualWeights(source, TINY, {name: scales[name]}))
        assert worst(outputs, expected) < 1e-5, name


def test_rotation_alone_changes_weights_and_nothing_else(
    source: WeightSource, expected: dict[str, Tensor]
):
    turned = EqualWeights(source, TINY, {}, rotated=True)
    assert worst(run(turned), expected) < 1e-5
    key = "aggregator.frame_blocks.0.attn.proj.weight"
    assert (turned.load(key) - source.load(key)).abs().max() > 0.1


class NotInverted(EqualWeights):
    """Multiplies on both sides."""

    def _divide(self, value: Tensor, place: equal.Place) -> Tensor:
        return self._multiply(value, place) if place.kind == "norm" else value


class WrongPlace(EqualWeights):
    """Reads the scales of norm1 for what norm2's Linear is multiplied by."""

    def _multiply(self, weight: Tensor, place: equal.Place) -> Tensor:
        if place.name.endswith("norm2"):
            return weight * self._scales[place.name.replace("norm2", "norm1")]
        return super()._multiply(weight, place)


class BiasForgotten(EqualWeights):
    def _divide(self, value: Tensor, place: equal.Place) -> Tensor:
        return (
            value if value.dim() == 1 and place.kind == "values" else super()._divide(value, place)
        )


class QueriesTouched(EqualWeights):
    """Divides the rows of the queries, where those of the values belong."""

    def _divide(self, value: Tensor, place: equal.Place) -> Tensor:
        if place.kind == "norm":
            return super()._divide(value, place)
        return super()._divide(value.flip(0), place).flip(0)


@pytest.mark.parametrize("wrong", [NotInverted, WrongPlace, BiasForgotten, QueriesTouched])
def test_a_wrong_move_is_noticed(
    source: WeightSource,
    scales: dict[str, Tensor],
    expected: dict[str, Tensor],
    wrong: type[EqualWeights],
):
    assert worst(run(wrong(source, TINY, scales)), expected) > 1e-3


def test_a_rotation_without_its_inverse_is_noticed(
    source: WeightSource, expected: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(equal, "rotate_columns", lambda weight, heads: weight)
    assert worst(run(EqualWeights(source, TINY, {}, rotated=True)), expected) > 1e-3


def test_rotating_first_and_scaling_around_it_is_both_at_once(
    source: WeightSource, scales: dict[str, Tensor]
):
    both = EqualWeights(source, TINY, scales, rotated=True)
    nested = EqualWeights(EqualWeights(source, TINY, {}, rotated=True), TINY, scales)
    other = EqualWeights(EqualWeights(source, TINY, scales), TINY, {}, rotated=True)
    key = "aggregator.frame_blocks.0.attn.proj.weight"
    torch.testing.assert_close(nested.load(key), both.load(key), rtol=1e-5, atol=1e-6)
    assert (other.load(key) - both.load(key)).abs().max() > 0.1


def test_no_key_shape_or_type_changes_and_the_rest_is_untouched(
    source: WeightSource, scales: dict[str, Tensor]
):
    moved = EqualWeights(source, TINY, scales, rotated=True)
    assert moved.keys() == source.keys()
    assert moved.origin == source.origin
    for key in moved.keys():  # noqa: SIM118  (a Protocol, not a dict)
        value = moved.load(key)
        assert moved.shape(key) == tuple(value.shape)
        assert value.dtype == torch.float32
        assert torch.equal(value, source.load(key)) == (key not in moved.changed), key


def test_nothing_asked_nothing_changed(source: WeightSource):
    same = EqualWeights(source, TINY, {})
    assert same.changed == frozenset()
    key = "aggregator.frame_blocks.0.attn.qkv.weight"
    assert torch.equal(same.load(key), source.load(key))


def test_reads_one_tensor_per_key(source: WeightSource, scales: dict[str, Tensor]):
    class Counted:
        origin = source.origin
        keys, shape = source.keys, source.shape

        def load(self, key: str) -> Tensor:
            read.append(key)
            return source.load(key)

    read: list[str] = []
    moved = EqualWeights(Counted(), TINY, scales, rotated=True)
    for key in moved.changed:
        read.clear()
        moved.load(key)
        assert read == [key]


@pytest.mark.parametrize("config", [TINY, CONFIGS["vggt-nano"], CONFIGS["vggt-1b"]])
def test_places_are_of_the_network_and_each_layer_has_one(config: VGGTConfig):
    found = places(config)
    shapes = expected_shapes(config, frozenset({"camera"}))
    linears = {layer.name: layer.shape for layer in layers_of(config, frozenset({"camera"}))}
    blocks = config.encoder_depth + 2 * config.depth + config.camera_depth
    assert len(found) == 3 * blocks + 1
    assert len({place.name for place in found}) == len({p.linear for p in found}) == len(found)
    for place in found:
        assert linears[place.linear][1] == place.width
        assert all(shapes[key][0] in (place.width, 3 * place.width) for key in place.divided)
    assert not any(place.linear.endswith(("mlp.fc2", "poseLN_modulation.1")) for place in found)


@pytest.mark.parametrize(
    "name,scale,says",
    [
        ("aggregator.frame_blocks.0.mlp.fc2", torch.ones(32), "no place"),
        ("aggregator.frame_blocks.0.norm1", torch.ones(16), "32 channels"),
        ("aggregator.frame_blocks.0.norm1", torch.zeros(32), "positive"),
        ("aggregator.frame_blocks.0.norm1", torch.full((32,), torch.nan), "positive"),
    ],
)
def test_scales_that_make_no_sense_are_refused(
    source: WeightSource, name: str, scale: Tensor, says: str
):
    with pytest.raises(QuantizeError, match=says):
        EqualWeights(source, TINY, {name: scale})


def without_camera() -> WeightSource:
    shapes = expected_shapes(TINY, TINY.available_heads)
    return RandomWeights(
        "vggt-tiny", {key: s for key, s in shapes.items() if not key.startswith("camera_head")}
    )


def test_a_checkpoint_without_camera_head_turns_what_it_has(scales: dict[str, Tensor]):
    turned = EqualWeights(without_camera(), TINY, {}, rotated=True)
    assert turned.changed
    assert turned.changed <= frozenset(turned.keys())
    with pytest.raises(ModelError, match="camera_head"):
        EqualWeights(without_camera(), TINY, scales)


def test_heads_that_no_hadamard_matrix_fits_are_refused(source: WeightSource):
    odd = VGGTConfig(
        name="odd",
        embed=36,
        heads=3,
        depth=1,
        encoder_depth=1,
        camera_depth=1,
        camera_heads=2,
        dpt_layers=(0, 0, 0, 0),
        dpt_features=8,
        dpt_channels=(8, 8, 8, 8),
    )
    weights = RandomWeights("odd", expected_shapes(odd, frozenset({"camera"})))
    EqualWeights(weights, odd, {})
    with pytest.raises(UsageError, match="12 channels"):
        EqualWeights(weights, odd, {}, rotated=True)
