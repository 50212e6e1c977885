"""Agreement with the original implementation, on its own outputs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from vggt_deploy.model import encoder, fields, layers
from vggt_deploy.model.config import TrackConfig, VGGTConfig
from vggt_deploy.model.dpt_head import ResidualConvUnit
from vggt_deploy.model.fields import SeparableField
from vggt_deploy.model.recipe import recipe_tensor
from vggt_deploy.model.vggt import VGGT
from vggt_deploy.model.weights import load_model

TOLERANCE = 1e-5  # ten times closer than asked; the reference itself is good to 4e-6


@dataclass(frozen=True)
class Golden:
    model: VGGT
    images: Tensor
    query_points: Tensor | None
    outputs: dict[str, Tensor]

    def run(self) -> dict[str, Tensor]:
        return flat(self.model(self.images, self.query_points))


def flat(outputs: dict[str, Any]) -> dict[str, Tensor]:
    """Lists as `name.0`, `name.1`, ..., as the reference outputs are stored; no images."""
    listed = {
        f"{key}.{i}": value
        for key, values in outputs.items()
        if isinstance(values, list)
        for i, value in enumerate(values)
    }
    dense = {k: v for k, v in outputs.items() if isinstance(v, Tensor) and k != "images"}
    return dense | listed


def relative_errors(outputs: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    assert outputs.keys() == expected.keys()
    for key, value in expected.items():
        assert outputs[key].shape == value.shape, key
        assert outputs[key].dtype == torch.float32, key
    return {
        key: ((outputs[key] - value).abs().max() / value.abs().max()).item()
        for key, value in expected.items()
    }


def golden_config(sizes: dict[str, Any]) -> VGGTConfig:
    track = None
    if sizes["track"]:
        track = TrackConfig(
            features=sizes["track_features"],
            hidden=sizes["track_hidden"],
            corr_levels=sizes["corr_levels"],
            iterations=sizes["track_iters"],
        )
    return VGGTConfig(
        name="golden",
        img_size=sizes["img_size"],
        embed=sizes["embed"],
        heads=sizes["heads"],
        depth=sizes["depth"],
        encoder_depth=sizes["dino_depth"],
        camera_depth=sizes["cam_depth"],
        camera_heads=sizes["cam_heads"],
        dpt_layers=tuple(sizes["layers"]),
        dpt_features=sizes["dpt_features"],
        dpt_channels=tuple(sizes["dpt_channels"]),
        track=track,
    )


def load_golden(folder: Path) -> Golden:
    sizes = json.loads((folder / "config.json").read_text())
    model = VGGT(golden_config(sizes))
    # Strict, from the original's own list of keys: nothing missing, nothing more.
    weights = {key: recipe_tensor(key, tuple(shape)) for key, shape in sizes["state_dict"].items()}
    model.load_state_dict(weights, strict=True)
    inputs = load_file(folder / "inputs.safetensors")
    return Golden(
        model.eval().requires_grad_(False),
        inputs["images"],
        inputs.get("query_points"),
        load_file(folder / "outputs.safetensors"),
    )


@pytest.fixture(scope="module", params=["small_a", "small_b"])
def golden(request: pytest.FixtureRequest, shared_data: Path) -> Golden:
    return load_golden(shared_data / "golden" / request.param)


@pytest.fixture
def small_b(shared_data: Path) -> Golden:
    return load_golden(shared_data / "golden" / "small_b")


def test_agrees_with_the_original(golden: Golden):
    errors = relative_errors(golden.run(), golden.outputs)
    assert max(errors.values()) < TOLERANCE, errors


def test_explicit_attention_agrees_too(small_b: Golden):
    for module in small_b.model.modules():
        if isinstance(module, layers.Attention):
            module.kind = "explicit"
    errors = relative_errors(small_b.run(), small_b.outputs)
    assert max(errors.values()) < TOLERANCE, errors


# What follows proves that the comparison above would notice: each is a plausible mistake.


def worst(golden: Golden) -> float:
    return max(relative_errors(golden.run(), golden.outputs).values())


def test_skip_without_relu_is_noticed(small_b: Golden, monkeypatch: pytest.MonkeyPatch):
    def forward(self: ResidualConvUnit, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x.relu()).relu()) + x

    monkeypatch.setattr(ResidualConvUnit, "forward", forward)
    assert worst(small_b) > 0.01


def test_ordinary_bicubic_is_noticed(small_b: Golden, monkeypatch: pytest.MonkeyPatch):
    interpolate = fields.F.interpolate

    def ordinary(x: Tensor, size: tuple[int, int], **options: Any) -> Tensor:
        options.pop("antialias")
        return interpolate(x, size, **options)

    monkeypatch.setattr(fields.F, "interpolate", ordinary)
    model, images = small_b.model, small_b.images
    grid = model.fields(*images.shape[-2:])
    monkeypatch.undo()
    outputs = model.forward_fields(images, grid)
    right = {key: small_b.outputs[key] for key in outputs}
    assert max(relative_errors(outputs, right).values()) > 0.01


def test_one_token_for_all_frames_is_noticed(small_b: Golden):
    for parameter in (
        small_b.model.aggregator.camera_token,
        small_b.model.aggregator.register_token,
    ):
        parameter[:, 1] = parameter[:, 0]
    assert worst(small_b) > 0.01


def test_special_tokens_among_the_patches_are_noticed(small_b: Golden):
    grid = small_b.model.fields(*small_b.images.shape[-2:])
    shifted = grid._replace(rope_cos=grid.rope_cos.roll(1, 0), rope_sin=grid.rope_sin.roll(1, 0))
    outputs = small_b.model.forward_fields(small_b.images, shifted)
    right = {key: small_b.outputs[key] for key in outputs}
    assert max(relative_errors(outputs, right).values()) > 1e-3


def test_swapped_axes_of_a_dpt_field_are_noticed(small_b: Golden):
    grid = small_b.model.fields(*small_b.images.shape[-2:])
    swapped = tuple(
        SeparableField(field.row.roll(field.row.shape[1] // 2, 1), field.column)
        for field in grid.dpt
    )
    outputs = small_b.model.forward_fields(small_b.images, grid._replace(dpt=swapped))
    right = {key: small_b.outputs[key] for key in outputs}
    assert max(relative_errors(outputs, right).values()) > 1e-3


def test_wrong_mean_is_noticed(small_b: Golden, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(encoder, "IMAGE_MEAN", (0.5, 0.5, 0.5))
    assert worst(small_b) > 1e-3


@pytest.mark.slow
def test_vggt_1b_agrees_with_the_original(shared_data: Path):
    """Needs about 6 GiB."""
    folder = shared_data / "golden" / "full_1b"
    model = load_model("random:vggt-1b", heads=frozenset({"camera", "depth", "point"}))
    images = load_file(folder / "inputs.safetensors")["images"]
    errors = relative_errors(flat(model(images)), load_file(folder / "outputs.safetensors"))
    print(errors)
    assert max(errors.values()) < 1e-4, errors
