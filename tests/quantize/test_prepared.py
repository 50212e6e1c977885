"""Prepared weights: written and read back to the bit, and refused when they are something else."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from vggt_deploy.errors import ArtifactError, CalibrationError, UsageError
from vggt_deploy.model.fold import FoldedWeights
from vggt_deploy.model.weights import open_weights
from vggt_deploy.quantize.apply import build_quantized, replace_layers
from vggt_deploy.quantize.plan import layers_of, plan
from vggt_deploy.quantize.prepared import (
    RECORD_NAME,
    TENSORS_NAME,
    Nearest,
    Prepared,
    PreparedRecord,
    open_prepared,
    read_prepared,
    write_prepared,
)
from vggt_deploy.quantize.schemes import get_scheme, parse_format
from vggt_deploy.quantize.statistics import model_record
from vggt_deploy.records import ModelRecord

MODEL = "random:vggt-tiny"
HEADS = frozenset({"camera", "depth"})
NORM = "aggregator.frame_blocks.0.norm1.weight"


def made(folder: Path, label: str = "int4_g32", **floats: torch.Tensor) -> Prepared:
    """Plain rounding of the tiny model, as a folder."""
    config, source = open_weights(MODEL)
    folded = FoldedWeights(source, config)
    layers = {layer.name: layer for layer in layers_of(config)}
    formats = plan(get_scheme(label), list(layers.values()))
    nearest = Nearest(folded)
    integers = {
        name: nearest.quantized(layers[name], form, "fp32") for name, form in formats.items()
    }
    record = PreparedRecord(
        1,
        "",
        "prepare",
        model_record(config, source),
        label,
        "fp32",
        56,
        84,
        {},
        "",
        heads=tuple(sorted(config.available_heads)),
    )
    folder.mkdir()
    write_prepared(folder, record, integers, floats)
    return read_prepared(folder)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return made(tmp_path_factory.mktemp("prepared") / "p")


@pytest.mark.parametrize("label", ["int4_g32", "int8_pc_asym", "mixed"])
def test_it_computes_what_plain_rounding_computes(label: str, tmp_path: Path) -> None:
    config, source = open_weights(MODEL)
    folded = FoldedWeights(source, config)
    images = torch.rand(2, 3, 56, 84, generator=torch.Generator().manual_seed(0))
    scheme = get_scheme(label)
    with torch.no_grad():
        plain = build_quantized(config, folded, scheme)(images)
        ours = build_quantized(config, folded, scheme, prepared=made(tmp_path / "p", label))(images)
    for name in ("pose_enc", "depth", "world_points"):
        assert torch.equal(plain[name], ours[name])


def test_a_float_tensor_of_the_folder_is_used(tmp_path: Path) -> None:
    config, source = open_weights(MODEL)
    folded = FoldedWeights(source, config)
    changed = folded.load(NORM) * 2
    held = made(tmp_path / "p", **{NORM: changed})
    assert torch.equal(held.source(folded).load(NORM), changed)
    other = NORM.replace("norm1", "norm2")
    assert torch.equal(held.source(folded).load(other), folded.load(other))
    assert held.source(folded).keys() == folded.keys()


@pytest.mark.parametrize("name", [RECORD_NAME, TENSORS_NAME])
def test_a_changed_file_is_refused(name: str, tmp_path: Path) -> None:
    folder = made(tmp_path / "p").folder
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 0xFF
    (folder / name).write_bytes(bytes(content))
    with pytest.raises(ArtifactError):
        read_prepared(folder)


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"schema": 2}, "schema 2"),
        ({"precision": "fp8"}, "precision"),
        ({"label": "int4_g32+gptp"}, "unknown word"),
        ({"formats": {"a": 1}}, "formats"),
        ({"extra": 1}, "extra"),
    ],
)
def test_a_record_of_something_else_is_refused(
    change: dict[str, Any], problem: str, prepared: Prepared, tmp_path: Path
) -> None:
    folder = tmp_path / "p"
    folder.mkdir()
    for name in (RECORD_NAME, TENSORS_NAME):
        (folder / name).write_bytes((prepared.folder / name).read_bytes())
    record = json.loads((folder / RECORD_NAME).read_text())
    (folder / RECORD_NAME).write_text(json.dumps(record | change))
    with pytest.raises((ArtifactError, UsageError), match=problem):
        read_prepared(folder)


def test_no_folder_no_record(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ArtifactError, match=r"holds no prepared\.json"):
            read_prepared(path)


def test_a_recipe_is_read_back_by_its_layers(prepared: Prepared, tmp_path: Path) -> None:
    """Its name stands in no table of schemes."""
    folder = tmp_path / "p"
    folder.mkdir()
    for name in (RECORD_NAME, TENSORS_NAME):
        (folder / name).write_bytes((prepared.folder / name).read_bytes())
    record = json.loads((folder / RECORD_NAME).read_text())
    (folder / RECORD_NAME).write_text(json.dumps(record | {"label": "found+dynamic+gptq"}))
    asked = read_prepared(folder).quantization
    assert (asked.label, asked.activations) == ("found+dynamic+gptq", "dynamic")
    layers = layers_of(open_weights(MODEL)[0])
    assert plan(asked.scheme, layers) == prepared.formats_of(layers)


def test_what_it_was_not_made_for(prepared: Prepared) -> None:
    model = prepared.record.model
    prepared.require(model, "fp32", 28, 42, HEADS)  # float activations: the size does not matter
    with pytest.raises(UsageError, match="precision fp32, not fp16"):
        prepared.require(model, "fp16", 56, 84, HEADS)
    with pytest.raises(UsageError, match="other weights"):
        prepared.require(ModelRecord("random:vggt-tiny:1", model.config), "fp32", 56, 84, HEADS)
    part = dataclasses.replace(prepared.record, heads=("camera",))
    with pytest.raises(UsageError, match="without the depth head"):
        Prepared(prepared.folder, part).require(model, "fp32", 56, 84, HEADS)
    with pytest.raises(UsageError, match="was asked for"):
        open_prepared(prepared.folder, "int4_g64")
    assert open_prepared(prepared.folder, None).quantization.label == "int4_g32"
    layer = next(layer for layer in layers_of(open_weights(MODEL)[0]) if layer.kind == "linear")
    with pytest.raises(ArtifactError, match="holds"):
        prepared.quantized(layer, get_scheme("int4_g64").linear, "fp32")  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", [0.0, -0.125, float("nan"), float("inf"), 1e-39])
def test_input_scales_that_no_runtime_takes(scale: float) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    formats = {"0": parse_format("int8_pc_sym")}
    with pytest.raises(CalibrationError, match="positive normal FP32"):
        replace_layers(model, formats, activations="static", input_scales={"0": scale})
    replace_layers(model, formats, activations="static", input_scales={"0": 0.125})
