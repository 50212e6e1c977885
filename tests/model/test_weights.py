"""Checkpoints as people have them: whole, cut short, of another model, hostile."""

from __future__ import annotations

import contextlib
import hashlib
import os
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from vggt_deploy.errors import ModelError, UsageError
from vggt_deploy.model.config import CONFIGS
from vggt_deploy.model.recipe import recipe_tensor
from vggt_deploy.model.sources import SafetensorsWeights
from vggt_deploy.model.weights import (
    WeightSource,
    check_keys,
    load_model,
    match_config,
    open_weights,
)

POSE_BIAS = "camera_head.pose_branch.fc2.bias"
FIRST = "aggregator.camera_token"


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    _, source = open_weights("random:vggt-tiny:3")
    return {key: source.load(key) for key in source.keys()}  # noqa: SIM118


def write(folder: Path, tensors: dict[str, Tensor], kind: str) -> Path:
    path = folder / f"model.{kind}"
    if kind == "safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return path


def same(source: WeightSource, tensors: dict[str, Tensor]) -> bool:
    return set(source.keys()) == set(tensors) and all(
        source.shape(key) == tuple(value.shape) and torch.equal(source.load(key), value)
        for key, value in tensors.items()
    )


# -- the recipe --------------------------------------------------------------------------------


def golden_recipe(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """The recipe as it is written down beside the reference outputs: one integer seeds it."""
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode())))
    n = generator.standard_normal(int(np.prod(shape)), dtype=np.float32).reshape(shape)
    leaf = key.split(".")[-1]
    if leaf == "gamma":
        return 0.4 + 0.05 * n
    if len(shape) == 1 and leaf == "weight":
        return 1 + 0.2 * n
    if leaf in ("bias", "in_proj_bias"):
        n = 0.05 * n
        if key == POSE_BIAS:
            n[[7, 8]] += 0.5
        return n
    if len(shape) == 4 and leaf == "weight":
        return n / np.sqrt(np.prod(shape[1:]))
    if len(shape) == 2:
        return n / np.sqrt(shape[-1])
    return 0.5 * n


def test_seed_zero_is_the_golden_recipe():
    _, source = open_weights("random:vggt-tiny")
    for key in source.keys():  # noqa: SIM118
        expected = golden_recipe(key, source.shape(key))
        np.testing.assert_allclose(source.load(key).numpy(), expected, rtol=1e-6, atol=0)


@given(st.text("abc.", max_size=12), st.integers(0, 2**32 - 1))
def test_recipe_is_deterministic(key: str, seed: int):
    value = recipe_tensor(key, (3, 2), seed)
    assert value.dtype == torch.float32
    assert torch.equal(value, recipe_tensor(key, (3, 2), seed))
    assert not torch.equal(value, recipe_tensor(key, (3, 2), seed + 1))
    assert not torch.equal(value, recipe_tensor(key + "x", (3, 2), seed))


def test_random_spec():
    config, source = open_weights("random:vggt-tiny:3")
    assert config is CONFIGS["vggt-tiny"]
    assert source.origin.kind == "random"
    assert source.origin.spec == "random:vggt-tiny:3"
    assert source.origin.sha256 is None
    with pytest.raises(UsageError, match="vggt-1b"):
        open_weights("random:vggt-huge")
    with pytest.raises(UsageError, match="no seed"):
        open_weights("random:vggt-tiny:one")
    with pytest.raises(UsageError, match="disagree"):
        open_weights("random:vggt-tiny", config="vggt-1b")
    with pytest.raises(UsageError, match="no revisions"):
        open_weights("random:vggt-tiny", revision="main")


# -- files -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["safetensors", "pt", "pth", "bin"])
def test_a_file_gives_its_tensors_and_config(tmp_path: Path, tensors: dict[str, Tensor], kind: str):
    path = write(tmp_path, tensors, kind)
    config, source = open_weights(path)
    assert config is CONFIGS["vggt-tiny"]
    assert same(source, tensors)
    assert source.origin.kind == "file"
    assert source.origin.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    changed = tensors | {FIRST: tensors[FIRST] + 1}
    assert not same(source, changed)


@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_a_folder_is_its_checkpoint(tmp_path: Path, tensors: dict[str, Tensor], kind: str):
    write(tmp_path, tensors, kind)
    assert same(open_weights(str(tmp_path))[1], tensors)


def test_a_folder_without_checkpoint(tmp_path: Path):
    with pytest.raises(ModelError, match=r"model\.safetensors, model\.pt"):
        open_weights(tmp_path)


def test_half_precision_is_read_as_float32(tmp_path: Path, tensors: dict[str, Tensor]):
    """Repacked checkpoints hold the aggregator in bfloat16."""
    half = {
        key: value.bfloat16() if key.startswith("aggregator") else value
        for key, value in tensors.items()
    }
    for kind in ("safetensors", "pt"):
        _, source = open_weights(write(tmp_path, half, kind))
        value = source.load(FIRST)
        assert value.dtype == torch.float32
        assert torch.equal(value, tensors[FIRST].bfloat16().float())


def test_integers_are_not_weights(tmp_path: Path, tensors: dict[str, Tensor]):
    integers = tensors | {FIRST: tensors[FIRST].to(torch.int8)}
    for kind in ("safetensors", "pt"):
        _, source = open_weights(write(tmp_path, integers, kind))
        with pytest.raises(ModelError, match=f"{FIRST} is"):
            source.load(FIRST)


def test_trainers_checkpoint_holds_the_state_dict_under_model(
    tmp_path: Path, tensors: dict[str, Tensor]
):
    torch.save({"model": tensors, "epoch": 3}, tmp_path / "checkpoint.pt")
    assert same(open_weights(tmp_path / "checkpoint.pt")[1], tensors)


@pytest.mark.parametrize("kind", ["safetensors", "pt"])
@pytest.mark.parametrize("keep", [0.0, 0.001, 0.5, 0.999])
def test_a_file_cut_short(tmp_path: Path, tensors: dict[str, Tensor], kind: str, keep: float):
    path = write(tmp_path, tensors, kind)
    os.truncate(path, int(path.stat().st_size * keep))
    with pytest.raises(ModelError, match=r"not readable|holds more than tensors"):
        open_weights(path)


def test_a_file_cut_after_it_was_opened(tmp_path: Path, tensors: dict[str, Tensor]):
    path = write(tmp_path, tensors, "safetensors")
    _, source = open_weights(path)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(ModelError, match="ended inside"):
        [source.load(key) for key in source.keys()]  # noqa: SIM118


class Hostile:
    """Unpickling this runs a command."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.marker),)


def test_a_hostile_pickle_is_not_executed(tmp_path: Path, tensors: dict[str, Tensor]):
    marker, path = tmp_path / "executed", tmp_path / "model.pt"
    torch.save(tensors | {"extra": Hostile(marker)}, path)
    with pytest.raises(ModelError, match="more than tensors"):
        open_weights(path)
    assert not marker.exists()
    torch.load(path, weights_only=False)  # the file is what it claims to be
    assert marker.exists()


@given(st.data())
def test_a_damaged_header_is_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
):
    """Any byte of the header changed: the file reads as before, or there is one clear error."""
    path = tmp_path_factory.mktemp("damaged") / "model.safetensors"
    save_file({"a.weight": torch.ones(2, 3), "b": torch.zeros(4, dtype=torch.float16)}, path)
    content = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    position = data.draw(st.integers(0, header - 1))
    content[position] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with contextlib.suppress(ModelError):  # any other exception fails the test
        source = SafetensorsWeights(path)
        for key in source.keys():  # noqa: SIM118
            assert source.load(key).dtype == torch.float32


def test_a_custom_config_is_checked_against_the_file(tmp_path: Path, tensors: dict[str, Tensor]):
    path = write(tmp_path, tensors, "safetensors")
    custom = replace(CONFIGS["vggt-tiny"], name="custom", camera_iterations=1)
    assert len(load_model(path, custom)(torch.rand(1, 3, 14, 14))["pose_enc_list"]) == 1
    with pytest.raises(ModelError, match="does not fit deeper"):
        load_model(path, replace(custom, name="deeper", encoder_depth=3))


def test_not_a_state_dict(tmp_path: Path):
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    with pytest.raises(ModelError, match="no state dict"):
        open_weights(tmp_path / "list.pt")


def test_unknown_kinds_and_missing_files(tmp_path: Path):
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(ModelError, match=r"\.safetensors"):
        open_weights(tmp_path / "model.onnx")
    for missing in (tmp_path / "nothing.pt", "models/nothing.safetensors", "one/two/three"):
        with pytest.raises(ModelError, match="no file or folder"):
            open_weights(missing)


# -- keys and shapes ---------------------------------------------------------------------------


def test_missing_keys_are_named(tmp_path: Path, tensors: dict[str, Tensor]):
    missing = {k: v for k, v in tensors.items() if not k.startswith("aggregator.frame_blocks.0")}
    with pytest.raises(ModelError) as raised:
        open_weights(write(tmp_path, missing, "safetensors"))
    text = str(raised.value)
    assert "nearest, vggt-tiny" in text
    assert "missing aggregator.frame_blocks.0.norm1.weight 32" in text
    assert "and 14 more" in text
    assert len(text.splitlines()) < 10


def test_another_models_keys(tmp_path: Path):
    with pytest.raises(ModelError, match=r"unexpected layer1\.weight 3x3|missing"):
        open_weights(write(tmp_path, {"layer1.weight": torch.zeros(3, 3)}, "safetensors"))


def test_extra_keys_and_wrong_shapes_are_named(tmp_path: Path, tensors: dict[str, Tensor]):
    extra = tensors | {"aggregator.extra": torch.zeros(2, 3)}
    with pytest.raises(ModelError, match=r"unexpected aggregator\.extra 2x3"):
        open_weights(write(tmp_path, extra, "safetensors"))
    wrong = tensors | {FIRST: torch.zeros(1, 2, 1, 31)}
    with pytest.raises(ModelError, match="is 1x2x1x31, not 1x2x1x32"):
        open_weights(write(tmp_path, wrong, "safetensors"), config="vggt-tiny")


def test_heads_not_asked_for_may_be_missing(tmp_path: Path, tensors: dict[str, Tensor]):
    dense = frozenset({"camera", "depth"})
    kept = {k: v for k, v in tensors.items() if not k.startswith(("track_head", "point_head"))}
    path = write(tmp_path, kept, "safetensors")
    model = load_model(path, heads=dense)
    assert set(model.state_dict()) == set(kept)
    with pytest.raises(ModelError, match=r"missing point_head"):
        load_model(path)
    # A head that is there and not asked for is not looked at, whatever it holds.
    odd = kept | {"track_head.unknown": torch.zeros(1)}
    check_keys(open_weights(write(tmp_path, odd, "pt"))[1], CONFIGS["vggt-tiny"], dense)


def test_config_is_found_by_shape(tmp_path: Path):
    for name in CONFIGS:
        _, source = open_weights(f"random:{name}")
        assert match_config(source) is CONFIGS[name]


def test_load_model_from_a_source(tensors: dict[str, Tensor]):
    config, source = open_weights("random:vggt-tiny:3")
    model = load_model(source, config)
    state = model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in tensors.items())
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(UsageError, match="config"):
        load_model(source)
