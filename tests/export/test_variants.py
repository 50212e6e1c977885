"""Every variant: exported, verified, and one artifact for all frame counts and both targets."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from vggt_deploy.export.verify import compare_outputs, probe_images
from vggt_deploy.manifest import read_manifest
from vggt_deploy.model.fold import FoldedWeights
from vggt_deploy.model.weights import open_weights
from vggt_deploy.quantize.apply import build_quantized
from vggt_deploy.quantize.schemes import (
    SCHEMES,
    Activations,
    Quantization,
    parse_label,
    takes_activations,
)

VARIANTS = [
    Quantization(scheme, activations).label
    for activations in get_args(Activations)
    for scheme in SCHEMES.values()
    if takes_activations(scheme, activations)
]
TENSORS = ("pose_enc", "depth", "depth_conf", "world_points", "world_points_conf")

images_of = probe_images  # a name that pytest does not collect
del probe_images


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_computes_what_pytorch_computes(variant: str, exporter: Any, tmp_path: Path) -> None:
    result = exporter.export(tmp_path / "a", variant)
    manifest = read_manifest(result.folder)
    record = manifest.verification
    assert record is not None
    assert manifest.variant == variant
    assert manifest.outputs == TENSORS
    assert record["frames"] == [1, 2]
    dynamic = variant.endswith("+dynamic")
    assert set(manifest.graphs) == {"onnxruntime"} | (set() if dynamic else {"tensorrt"})
    assert set(record["relative_l2_error"]) == set(manifest.graphs)
    for errors in record["relative_l2_error"].values():
        assert set(errors) == set(TENSORS)
        assert max(errors.values()) < record["tolerance"]


@pytest.mark.parametrize(
    "variant", ["fp32", "int8_pc_asym", "int4_g32+dynamic", "int8_pc_asym+static"]
)
def test_one_artifact_takes_all_frame_counts(variant: str, exporter: Any, runtime: Any) -> None:
    folder = exporter.artifact(variant)
    config, source = open_weights("random:vggt-tiny")
    asked = parse_label(variant)
    calibration = read_manifest(folder).calibration
    model = build_quantized(
        config,
        FoldedWeights(source, config),
        asked.scheme,
        activations=asked.activations,
        input_scales=calibration and calibration.scales,
        heads=frozenset({"camera", "depth", "point"}),
    )
    for frames in (1, 2, 5):
        images = images_of(frames, 56, 84)
        with torch.no_grad():
            outputs = model(torch.from_numpy(images))
        want = {name: outputs[name].numpy() for name in TENSORS}
        got = runtime.artifact(folder, images)
        assert got["pose_enc"].shape == (1, frames, 9)
        assert got["depth"].shape == (1, frames, 56, 84, 1)
        assert got["world_points_conf"].shape == (1, frames, 56, 84)
        limit = 1e-4 if asked.activations == "float" else 5e-2
        assert max(compare_outputs(got, want).values()) < limit


@pytest.mark.parametrize("variant", ["fp32", "fp16", "int8_pc_sym", "int8_pc_asym", "mixed"])
def test_the_graphs_of_an_artifact_agree(variant: str, exporter: Any, runtime: Any) -> None:
    folder = exporter.artifact(variant)
    images = images_of(5, 56, 84)
    plain, tensorrt = (runtime.artifact(folder, images, t) for t in ("onnxruntime", "tensorrt"))
    errors = compare_outputs(plain, tensorrt)
    assert max(errors.values()) < (1e-2 if variant == "fp16" else 2e-5)
    other = runtime.artifact(folder, images[:, ::-1].copy())
    assert max(compare_outputs(other, tensorrt).values()) > 1e-2  # other images, other outputs


@pytest.mark.parametrize(
    "outputs, tensors, absent",
    [
        (("pose",), TENSORS[:1], ("depth_head", "point_head")),
        (("points", "depth"), TENSORS[1:], ("camera_head",)),
    ],
)
def test_heads_that_are_not_wanted_are_not_there(
    outputs: tuple[str, ...],
    tensors: tuple[str, ...],
    absent: tuple[str, ...],
    exporter: Any,
    opened: Any,
    runtime: Any,
) -> None:
    full = exporter.artifact("int4_g32")
    pruned = opened(exporter.artifact("int4_g32", outputs=outputs))
    assert pruned.manifest.outputs == tensors
    for model in pruned.graphs.values():
        assert [value.name for value in model.graph.outputs] == list(tensors)
        names = [
            str(thing.name)
            for graph in (model.graph, *model.graph.subgraphs())
            for thing in (*graph, *graph.initializers.values())
        ]
        assert not [name for name in names if any(head in name for head in absent)]
    assert not [n for n in pruned.manifest.layers.quantized if n.split(".")[0] in absent]
    gone = {n: t for n, t in opened(full).tensors().items() if any(h in n for h in absent)}
    assert gone
    saved = (full / "weights.bin").stat().st_size - (pruned.folder / "weights.bin").stat().st_size
    assert saved >= sum(t.length for t in gone.values())

    images = images_of(2, 56, 84)
    got, want = runtime.artifact(pruned.folder, images), runtime.artifact(full, images)
    for name in tensors:
        np.testing.assert_allclose(got[name], want[name], rtol=1e-5, atol=1e-6)
