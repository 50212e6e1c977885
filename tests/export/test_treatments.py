"""Treated variants: the same plain graph, other numbers, and a manifest that says which."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from vggt_deploy.errors import UsageError
from vggt_deploy.export.verify import probe_images
from vggt_deploy.manifest import read_manifest
from vggt_deploy.model.fold import FoldedWeights
from vggt_deploy.model.weights import open_weights
from vggt_deploy.quantize.apply import QuantizedModule, build_quantized
from vggt_deploy.quantize.calibration import Pictures
from vggt_deploy.quantize.layout import to_onnx_layout
from vggt_deploy.quantize.plan import keeps_layer_scale
from vggt_deploy.quantize.prepare import PrepareRequest, prepare
from vggt_deploy.quantize.prepared import Prepared
from vggt_deploy.quantize.schemes import parse_label

MODEL, HEIGHT, WIDTH = "random:vggt-tiny", 56, 84
HEADS = frozenset({"camera", "depth", "point"})
LABELS = (
    "int4_g32+w=mse",
    "int8_pc_asym+rotate",
    "int4_g32+smooth",
    "int4_g32+dynamic+gptq",
    "int8_pc_sym+static+smooth=0.5",
    "int8_pc_sym+static+w=p99.9+a=absmax+apart+smooth+rotate+gptq",
)


def prepared(exporter: Any, label: str, folder: Path, precision: Any = "fp32") -> Prepared:
    config, source = open_weights(MODEL)
    folder.mkdir()
    pictures = Pictures(exporter.pictures, HEIGHT, WIDTH, frames_per_pass=2)
    request = PrepareRequest(parse_label(label), precision, HEIGHT, WIDTH, pictures, HEADS)
    return prepare(config, source, request, folder)


def operators(folder: Path, target: str) -> Counter[str]:
    manifest = read_manifest(folder, check_hashes=False)
    graph = ir.load(folder / manifest.graphs[target].file).graph
    return Counter(node.op_type for node in graph.all_nodes())


@pytest.mark.parametrize("label", LABELS)
def test_it_is_verified_and_gains_no_operator(label: str, exporter: Any, tmp_path: Path) -> None:
    asked = parse_label(label)
    options = {"calibrate": exporter.pictures} if asked.needs_pictures else {}
    result = exporter.export(tmp_path / "a", label, **options)
    manifest = read_manifest(result.folder)
    assert manifest.variant == label
    assert manifest.verification is not None
    assert manifest.treatment is not None
    assert manifest.treatment.label == asked.treatment.label
    assert bool(manifest.treatment.images) == asked.needs_pictures
    assert ("smooth" in manifest.treatment.choices) == (asked.treatment.smooth is not None)
    mode = "" if asked.activations == "float" else f"+{asked.activations}"
    plain = exporter.artifact(f"{asked.scheme.name}{mode}")
    for target in manifest.graphs:
        assert operators(result.folder, target) == operators(plain, target)
    names = {path.name for path in result.folder.iterdir()}
    assert names == {*manifest.files, "manifest.json"}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_integers_of_the_file_are_the_prepared_ones(
    precision: Any, exporter: Any, tmp_path: Path
) -> None:
    label = "int8_pc_sym+static+smooth+rotate+gptq"
    held = prepared(exporter, label, tmp_path / "p", precision)
    config, source = open_weights(MODEL)
    keep = keeps_layer_scale(precision)
    model = build_quantized(
        config,
        FoldedWeights(source, config, keep_layer_scale=keep),
        parse_label(label).scheme,
        activations="static",
        heads=HEADS,
        precision=precision,
        prepared=held,
    )
    folder = exporter.export(
        tmp_path / "a", label, prepared=held.folder, calibrate=None, precision=precision
    ).folder
    graph = ir.load(folder / "model.onnx").graph
    found = {str(v.name): v.const_value.numpy() for v in graph.initializers.values()}
    count = 0
    for name, module in model.named_modules():
        if not isinstance(module, QuantizedModule) or not name.startswith("aggregator."):
            continue
        layout = to_onnx_layout(module.quantized)
        assert np.array_equal(found[f"{name}.q"], layout.data.numpy().reshape(layout.shape))
        assert np.array_equal(found[f"{name}.scale"].astype(np.float32), layout.scale.numpy())
        count += 1
    assert count > 20


def test_the_folder_alone_is_enough(exporter: Any, runtime: Any, tmp_path: Path) -> None:
    """A prepared folder, exported without a scheme, computes what PyTorch computes with it."""
    held = prepared(exporter, "int4_g32+w=mse+gptq", tmp_path / "p")
    folder = exporter.export(tmp_path / "a", None, prepared=held.folder, verify=False).folder
    assert read_manifest(folder).variant == "int4_g32+w=mse+gptq"
    config, source = open_weights(MODEL)
    folded = FoldedWeights(source, config)
    scheme = parse_label("int4_g32").scheme
    images = probe_images(2, HEIGHT, WIDTH)
    with torch.no_grad():
        mine = build_quantized(config, folded, scheme, heads=HEADS, prepared=held)
        plain = build_quantized(config, folded, scheme, heads=HEADS)
        want, other = (model(torch.from_numpy(images))["depth"].numpy() for model in (mine, plain))
    got = runtime.artifact(folder, images)["depth"]
    np.testing.assert_allclose(got, want, rtol=1e-4)
    assert not np.allclose(got, other, rtol=1e-4)


@pytest.mark.parametrize(
    "label, options, problem",
    [
        ("int4_g32+gptq", {}, "needs images to calibrate on"),
        ("int4_g32+w=mse", {"calibrate": Path()}, "looks at no pictures"),
        ("int4_g32", {"prepared": "p"}, "was asked for"),
        (None, {"prepared": "p", "include": ["*fc1"]}, "patterns were given"),
        (None, {"prepared": "p", "calibrate": Path()}, "has been prepared"),
        (None, {"prepared": "p", "precision": "fp16"}, "precision fp32, not fp16"),
        (None, {"prepared": "p", "model": "random:vggt-tiny:3"}, "other weights"),
        (None, {}, "no scheme was given"),
    ],
)
def test_requests_that_make_no_sense(
    label: str | None, options: dict[str, Any], problem: str, exporter: Any, tmp_path: Path
) -> None:
    if "prepared" in options:
        prepared(exporter, "int4_g32+w=mse", tmp_path / "p")
        options = {**options, "prepared": tmp_path / "p"}
    with pytest.raises(UsageError, match=problem):
        exporter.export(tmp_path / "a", label, **options)
    assert not (tmp_path / "a").exists()


def test_statistics_are_not_pictures(exporter: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="names statistics"):
        exporter.export(tmp_path / "a", "int8_pc_sym+static+smooth", calibrate=exporter.statistics)


def test_a_prepared_folder_keeps_its_ranges_and_patterns(exporter: Any, tmp_path: Path) -> None:
    config, source = open_weights(MODEL)
    (tmp_path / "p").mkdir()
    pictures = Pictures(exporter.pictures, HEIGHT, WIDTH, frames_per_pass=2)
    request = PrepareRequest(
        parse_label("int8_pc_sym+static+w=mse"),
        "fp32",
        HEIGHT,
        WIDTH,
        pictures,
        frozenset({"camera", "depth"}),
        exclude=("aggregator.frame_blocks.0.*",),
    )
    held = prepare(config, source, request, tmp_path / "p")
    # Fewer heads than it was prepared for; the camera's Linears have scales that nothing reads.
    folder = exporter.export(tmp_path / "a", None, prepared=held.folder, outputs=("depth",)).folder
    manifest = read_manifest(folder)
    assert manifest.layers.exclude == ("aggregator.frame_blocks.0.*",)
    assert manifest.calibration is not None
    assert not any(name.startswith("camera_head") for name in manifest.calibration.scales)
    for options, problem in (
        ({"outputs": ("pose", "points")}, "without the point head"),
        ({"calibration_method": "absmax"}, "has its own|were given"),
        ({"activations": "float"}, "were given"),
    ):
        with pytest.raises(UsageError, match=problem):
            exporter.export(tmp_path / "b", None, prepared=held.folder, **options)
