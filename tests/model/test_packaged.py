"""Weights by name: where they are found, what goes first, and the size that a model works at."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from vggt_deploy.compare.jobs import IdentifyJob, ModelQuestion
from vggt_deploy.compare.worker import identify
from vggt_deploy.errors import ModelError, UsageError
from vggt_deploy.export import export
from vggt_deploy.manifest import read_manifest
from vggt_deploy.model import packaged
from vggt_deploy.model.config import CONFIGS
from vggt_deploy.model.weights import checkpoint_path, load_model, open_weights
from vggt_deploy.quantize.calibration import collect_statistics
from vggt_deploy.quantize.statistics import Statistics

NAME = "vggt-nano"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stand-in for the package's folder, with random weights in float16."""
    _, source = open_weights(f"random:{NAME}:5")
    tensors = {key: source.load(key).half() for key in source.keys()}  # noqa: SIM118
    folder = tmp_path_factory.mktemp("pretrained")
    (folder / NAME).mkdir()
    save_file(tensors, folder / NAME / packaged.CHECKPOINT_NAME, metadata={"step": "1"})
    return folder


@pytest.fixture
def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The checkpoint that the name means in this test."""
    monkeypatch.setattr(packaged, "PRETRAINED", folder)
    return folder / NAME / packaged.CHECKPOINT_NAME


def test_the_name_is_a_config_and_its_origin_can_be_found_again(stand_in: Path) -> None:
    config, source = open_weights(NAME)
    assert config is CONFIGS[NAME]
    assert source.origin.spec == NAME
    assert source.origin.kind == "package"
    assert source.origin.sha256 == hashlib.sha256(stand_in.read_bytes()).hexdigest()
    assert source.origin.licence == "Apache-2.0"
    assert checkpoint_path(NAME) == stand_in
    _, named_by_file = open_weights(stand_in)
    assert named_by_file.origin.kind == "file"
    assert named_by_file.origin.sha256 == source.origin.sha256


def test_every_name_has_a_config() -> None:
    assert set(packaged.PACKAGED) <= set(CONFIGS)


@pytest.mark.usefixtures("stand_in")
def test_half_precision_on_disk_float32_in_memory() -> None:
    model = load_model(NAME, heads=frozenset({"camera"}))
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}
    random = load_model(f"random:{NAME}:5", heads=frozenset({"camera"})).state_dict()
    name = "aggregator.frame_blocks.0.attn.qkv.weight"
    assert torch.equal(model.state_dict()[name], random[name].half().float())
    assert not torch.equal(model.state_dict()[name], random[name])


def test_a_missing_file_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaged, "PRETRAINED", tmp_path)
    for ask in (open_weights, checkpoint_path):
        with pytest.raises(ModelError, match="weights of vggt-nano are missing") as caught:
            ask(NAME)
        assert "install vggt-deploy again" in caught.value.fix
        # A training without these two options is refused.
        assert "train --config vggt-nano --cache DIR -o RUN" in caught.value.fix


def test_a_folder_of_that_name_changes_nothing(
    stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAME).mkdir()
    assert checkpoint_path(NAME) == stand_in
    with pytest.raises(ModelError, match=r"holds none of model\.safetensors"):
        open_weights(f"./{NAME}")


@pytest.mark.usefixtures("stand_in")
def test_another_config_or_a_revision_is_refused() -> None:
    with pytest.raises(ModelError, match="does not fit vggt-small"):
        open_weights(NAME, config="vggt-small")
    for ask in (open_weights, checkpoint_path):
        with pytest.raises(UsageError, match="has no revisions"):
            ask(NAME, revision="main")


def test_random_weights_have_no_file() -> None:
    assert checkpoint_path("random:vggt-tiny") is None


def test_what_a_comparison_is_told(stand_in: Path) -> None:
    answer = identify(IdentifyJob(0, "", ModelQuestion(NAME), gpu=False))
    assert json.loads(json.dumps(answer)) == {
        "config": NAME,
        "kind": "package",
        "revision": None,
        "sha256": hashlib.sha256(stand_in.read_bytes()).hexdigest(),
        "licence": "Apache-2.0",
        "checkpoint_bytes": stand_in.stat().st_size,
        "gpu": None,
    }


# -- the size a model works at -----------------------------------------------------------------


def test_the_size_where_none_is_asked_for() -> None:
    assert CONFIGS[NAME].image_size(None, None) == (84, 112)
    assert CONFIGS["vggt-1b"].image_size(None, None) == (350, 518)
    assert CONFIGS[NAME].image_size(None, 56) == (84, 56)
    assert CONFIGS[NAME].image_size(140, None) == (140, 112)


def test_an_artifact_and_statistics_take_the_models_own_size(
    stand_in: Path, tmp_path: Path
) -> None:
    """Of a file too, whose architecture is found by its keys."""
    pixels = np.random.default_rng(0).integers(0, 255, (42, 56, 3), dtype=np.uint8)
    (tmp_path / "pictures").mkdir()
    Image.fromarray(pixels).save(tmp_path / "pictures" / "one.png")
    made = export(
        NAME, "int8_pc_sym", output_dir=tmp_path / "a", outputs=("pose",), verify=False
    ).manifest
    assert (made.height, made.width) == (84, 112)
    assert read_manifest(tmp_path / "a").model.spec == NAME

    def collected(name: str, **size: int) -> Statistics:
        return collect_statistics(
            str(stand_in), tmp_path / "pictures", output_dir=tmp_path / name, **size
        )

    assert (collected("s").height, collected("t").width) == (84, 112)
    assert collected("u", height=42).height == 42
