"""Artifacts with one wrong number: the block is named, and the exclusion that cures it."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from vggt_deploy.errors import ArtifactError, UsageError
from vggt_deploy.manifest import hash_file, read_manifest, write_manifest
from vggt_deploy.model.fold import FoldedWeights
from vggt_deploy.model.weights import open_weights
from vggt_deploy.quantize.plan import layers_of
from vggt_deploy.quantize.qparams import quantize
from vggt_deploy.quantize.schemes import parse_format
from vggt_deploy.records import FileRecord, Manifest, TreatmentRecord
from vggt_deploy.sensitivity import taps
from vggt_deploy.sensitivity.bisect import bisect, judge
from vggt_deploy.sensitivity.places import PlaceErrors
from vggt_deploy.sensitivity.stored import StoredIntegers
from vggt_deploy.sensitivity.taps import graph_of

MODEL = "random:vggt-tiny"
WEIGHTS = "weights.bin"


@pytest.fixture(scope="session")
def pictures(scenes_dir: Path) -> Path:
    return scenes_dir / "scene_900000"


def _damaged(artifact: Path, target: Path, name: str, factor: float) -> Path:
    """A copy in which one float tensor is multiplied, and whose manifest says that it is so."""
    shutil.copytree(artifact, target)
    manifest = read_manifest(target)
    model = ir.load(target / manifest.graphs["onnxruntime"].file)
    (tensor,) = {
        value.const_value
        for graph in (model.graph, *model.graph.subgraphs())
        for key, value in graph.initializers.items()
        if key == name
    }
    assert isinstance(tensor, ir.ExternalTensor)
    assert tensor.offset is not None
    assert tensor.dtype == ir.DataType.FLOAT
    data = bytearray((target / WEIGHTS).read_bytes())
    values = np.frombuffer(data, np.float32, count=tensor.size, offset=tensor.offset)
    values *= np.float32(factor)
    del model, tensor
    (target / WEIGHTS).write_bytes(data)
    record = FileRecord(len(data), hash_file(target / WEIGHTS))
    write_manifest(target, dataclasses.replace(manifest, files={**manifest.files, WEIGHTS: record}))
    return target


def test_a_sound_artifact_is_called_sound(artifact_dir: Path, pictures: Path) -> None:
    before = sorted(path.name for path in artifact_dir.parent.rglob("*"))
    found = bisect(artifact_dir, pictures, threads=1)
    assert (found.verdict, found.place, found.cure, found.no_cure) == ("sound", None, None, None)
    assert (found.pictures, found.exclude_option) == (3, "")
    assert 1e-3 < found.output_error < 0.5
    assert len(found.places) == 2 + 4 + 4 + 3
    assert found.places[0].place == "aggregator.patch_embed.blocks.0"
    assert [p.place for p in found.places[-3:]] == ["camera_head", "depth_head", "point_head"]
    for place in found.places:
        # The artifact's block and plain rounding in PyTorch, on the same input, agree.
        assert place.own == pytest.approx(place.expected, rel=0.02)
        assert place.own > 1e-4
    assert found.places[-4].drift > found.places[0].drift  # errors pile up in the stream
    assert sorted(path.name for path in artifact_dir.parent.rglob("*")) == before


@pytest.mark.parametrize(
    "layer, factor",
    [
        ("aggregator.frame_blocks.2.attn.proj", 3.0),
        ("aggregator.patch_embed.blocks.1.mlp.fc1", 0.0625),
    ],
)
def test_a_wrong_scale_is_found_and_cured(
    tmp_path: Path, artifact_dir: Path, pictures: Path, layer: str, factor: float
) -> None:
    wrong = _damaged(artifact_dir, tmp_path / "wrong", f"{layer}.scale", factor)
    found = bisect(wrong, pictures, threads=1)
    block = layer.rsplit(".", 2)[0]
    assert (found.verdict, found.place) == ("damaged", block)
    assert found.cure is not None
    assert found.cure.exclude == (layer,)
    assert found.exclude_option == f"--exclude '{layer}'"
    assert found.cure.error_after < 0.7 * found.cure.error_before
    assert found.cure.error_before == pytest.approx(found.output_error, rel=0.05)
    # Blocks behind it get a wrong input and do with it what they should.
    others = [p for p in found.places if p.place != block]
    assert all(p.own < 1.5 * p.expected for p in others)
    behind = found.places[[p.place for p in found.places].index(block) + 1]
    assert behind.drift > 2 * behind.own


def test_a_wrong_scale_in_the_camera_loop_is_found(
    tmp_path: Path, artifact_dir: Path, pictures: Path
) -> None:
    layer = "camera_head.trunk.1.mlp.fc2"
    found = bisect(
        _damaged(artifact_dir, tmp_path / "wrong", f"{layer}.scale", 4.0), pictures, threads=1
    )
    assert (found.verdict, found.place) == ("damaged", "camera_head")
    assert found.cure is not None
    assert found.cure.exclude == (layer,)


def test_a_wrong_float_is_found_and_no_layer_is_blamed(
    tmp_path: Path, artifact_dir: Path, pictures: Path
) -> None:
    name = "vggt.aggregator.global_blocks.1.norm2.weight"
    found = bisect(_damaged(artifact_dir, tmp_path / "wrong", name, 0.2), pictures, threads=1)
    assert (found.verdict, found.place) == ("damaged", "aggregator.global_blocks.1")
    # No single layer brings it back; a new export without the block would.
    assert found.cure is None or found.cure.exclude == ("aggregator.global_blocks.1.*",)


def test_rewritten_weights_are_sound_and_cured_by_the_block(
    tmp_path: Path, rotated_dir: Path, pictures: Path
) -> None:
    found = bisect(rotated_dir, pictures, threads=1)
    assert found.verdict == "sound"
    # Values turned by a matrix: not the integers that plain rounding gives.
    assert any(place.own != pytest.approx(place.expected, rel=1e-3) for place in found.places)
    name = "aggregator.global_blocks.2.attn.proj.scale"
    wrong = bisect(_damaged(rotated_dir, tmp_path / "wrong", name, 3.0), pictures, threads=1)
    assert (wrong.verdict, wrong.place) == ("damaged", "aggregator.global_blocks.2")
    assert wrong.cure is not None
    # One layer alone in the checkpoint's floats would meet values that were turned.
    assert wrong.cure.exclude == ("aggregator.global_blocks.2.*",)
    assert wrong.cure.error_after < 0.7 * wrong.cure.error_before


def test_the_artifact_s_numbers_are_read_back(artifact_dir: Path) -> None:
    manifest = read_manifest(artifact_dir)
    stored = StoredIntegers.open(artifact_dir, graph_of(artifact_dir, manifest))
    config, source = open_weights(MODEL)
    folded = FoldedWeights(source, config)
    layers = {layer.name: layer for layer in layers_of(config)}
    kinds = set()
    for name, label in manifest.layers.quantized.items():
        layer, form = layers[name], parse_format(label)
        kinds.add((layer.kind, label))
        found = stored.quantized(layer, form, "fp32")
        right = quantize(folded.load(f"{name}.weight"), form, axis=layer.axis)
        assert torch.equal(found.q, right.q), name
        assert torch.equal(found.scale, right.scale), name
        assert torch.equal(found.zero_point, right.zero_point), name
    assert len(kinds) == 4  # 4 and 8 bit Linears, both kinds of convolution
    biases = stored.vectors()
    key = "camera_head.trunk.0.attn.qkv.bias"
    assert torch.equal(biases[key], folded.load(key))


def _manifest(artifact: Path, **changes: Any) -> Manifest:
    return dataclasses.replace(read_manifest(artifact), **changes)


def _places(own: dict[str, float]) -> list[PlaceErrors]:
    return [PlaceErrors(name, value, value, value) for name, value in own.items()]


def test_a_block_that_the_scheme_does_not_suit_is_named(artifact_dir: Path) -> None:
    formats = {f"aggregator.frame_blocks.{i}.mlp.fc1": "int8_pc_sym" for i in range(5)}
    layers = dataclasses.replace(read_manifest(artifact_dir).layers, quantized=formats)
    manifest = _manifest(artifact_dir, layers=layers)
    own = {f"aggregator.frame_blocks.{i}": 0.01 for i in range(5)}
    assert judge(_places(own), manifest, 2.0) == ("sound", None)
    own["aggregator.frame_blocks.3"] = 0.05
    assert judge(_places(own), manifest, 2.0) == ("scheme", "aggregator.frame_blocks.3")
    formats["camera_head.trunk.0.mlp.fc1"] = "int8_pc_sym"
    head = {**own, "aggregator.frame_blocks.3": 0.01, "camera_head": 0.3}
    assert judge(_places(head), manifest, 2.0) == ("scheme", "camera_head")
    # One 4-bit block among 8-bit ones loses more, and has no peers to be held against.
    formats["aggregator.frame_blocks.3.mlp.fc1"] = "int4_g128"
    assert judge(_places(own), manifest, 2.0) == ("sound", None)


def test_the_first_damaged_place_is_named_and_not_the_worst(artifact_dir: Path) -> None:
    manifest = read_manifest(artifact_dir)
    places = [
        PlaceErrors("aggregator.frame_blocks.0", 0.011, 0.01, 0.1),
        PlaceErrors("aggregator.global_blocks.0", 0.03, 0.01, 0.1),
        PlaceErrors("aggregator.frame_blocks.1", 9.0, 0.01, 0.1),
    ]
    assert judge(places, manifest, 2.0) == ("damaged", "aggregator.global_blocks.0")
    assert judge(places, manifest, 5.0) == ("damaged", "aggregator.frame_blocks.1")
    nan = [PlaceErrors("aggregator.frame_blocks.0", float("inf"), 0.01, float("inf"))]
    assert judge(nan, manifest, 5.0)[0] == "damaged"
    trained = dataclasses.replace(manifest, treatment=TreatmentRecord("", "qat"))
    assert judge(places, trained, 2.0)[0] != "damaged"


def test_rounding_alone_is_no_damage_where_nothing_is_integer(artifact_dir: Path) -> None:
    places = [PlaceErrors("aggregator.frame_blocks.0", 2e-5, 0.0, 1e-5)]
    assert judge(places, read_manifest(artifact_dir), 2.0) == ("sound", None)


def test_requests_that_make_no_sense(tmp_path: Path, artifact_dir: Path, pictures: Path) -> None:
    with pytest.raises(UsageError, match="tolerance is"):
        bisect(artifact_dir, pictures, tolerance=0.5)
    with pytest.raises(UsageError, match="other weights"):
        bisect(artifact_dir, pictures, model="random:vggt-tiny:1")
    with pytest.raises(ArtifactError):
        bisect(tmp_path, pictures)
    changed = tmp_path / "changed"
    shutil.copytree(artifact_dir, changed)
    data = bytearray((changed / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (changed / WEIGHTS).write_bytes(data)
    with pytest.raises(ArtifactError, match=WEIGHTS):
        bisect(changed, pictures)


def test_a_graph_without_names_is_refused(tmp_path: Path, artifact_dir: Path) -> None:
    target = tmp_path / "nameless"
    shutil.copytree(artifact_dir, target)
    manifest = read_manifest(target)
    path = target / manifest.graphs["onnxruntime"].file
    model = ir.load(path)
    for node in model.graph:
        node.name = None
    ir.save(model, path)
    images = np.zeros((1, 2, 3, manifest.height, manifest.width), np.float32)
    with pytest.raises(ArtifactError, match="no node called"):
        taps.run_tapped(target, manifest, ["aggregator.frame_blocks.0"], images)
    assert [path.name for path in tmp_path.iterdir()] == ["nameless"]
