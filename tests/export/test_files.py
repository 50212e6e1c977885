"""What lies in the folder: versions, names, sizes, and the same bytes every time."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from vggt_deploy.export import pipeline
from vggt_deploy.export.trace_cache import cached_trace
from vggt_deploy.manifest import hash_file, read_manifest
from vggt_deploy.model.config import get_config
from vggt_deploy.model.weights import open_weights
from vggt_deploy.quantize.plan import layers_of, plan, planned_bytes
from vggt_deploy.quantize.schemes import get_scheme

VARIANTS = ["fp32", "bf16", "int8_pc_asym", "int4_g32", "int8_pc_sym+dynamic"]
ALIGNMENT = 64
HEADS = frozenset({"camera", "depth", "point"})


@pytest.mark.parametrize("variant", VARIANTS)
def test_manifest_and_files(variant: str, exporter: Any) -> None:
    folder = exporter.artifact(variant)
    manifest = read_manifest(folder)
    names = {"weights.bin", *(graph.file for graph in manifest.graphs.values())}
    assert set(manifest.files) == names
    assert {path.name for path in folder.iterdir()} == names | {"manifest.json"}
    for name, record in manifest.files.items():
        assert record.bytes == (folder / name).stat().st_size
        assert record.sha256 == hash_file(folder / name)
    assert manifest.bytes_total == sum((folder / name).stat().st_size for name in names)
    assert manifest.model.spec == "random:vggt-tiny:0"
    assert (manifest.height, manifest.width) == (56, 84)
    assert {"torch", "onnx", "onnxruntime"} <= set(manifest.versions)


@pytest.mark.parametrize("variant", VARIANTS)
def test_graph_versions_and_checker(variant: str, exporter: Any) -> None:
    folder = exporter.artifact(variant)
    opset, ir_version = (21, 10) if "int4" in variant else (20, 9)
    for target, record in read_manifest(folder, check_hashes=False).graphs.items():
        path = folder / record.file
        onnx.checker.check_model(path, full_check=True)
        model = onnx.load(path, load_external_data=False)
        imports = {entry.domain: entry.version for entry in model.opset_import}
        assert imports.pop("") == opset == record.opset
        assert imports == ({"com.microsoft": 1} if target == "onnxruntime" else {})
        assert model.ir_version == ir_version
        assert model.producer_name == "vggt-deploy"
        (image,) = model.graph.input
        dims = [d.dim_value or d.dim_param for d in image.type.tensor_type.shape.dim]
        assert image.name == "images"
        assert dims == [1, "frames", 3, 56, 84]


@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_of_this_machine_is_in_a_graph(variant: str, exporter: Any) -> None:
    folder = exporter.artifact(variant)
    home = re.compile(rb"/home/|/root|/tmp|/work|/usr/|site-packages|\.py\b")
    for graph in read_manifest(folder, check_hashes=False).graphs.values():
        data = (folder / graph.file).read_bytes()
        assert not home.search(data)
        assert str(Path.cwd()).encode() not in data
        model = onnx.load(folder / graph.file, load_external_data=False)
        assert not model.metadata_props
        assert not model.doc_string
        for node in model.graph.node:
            assert not node.metadata_props, node.name
            assert not node.doc_string, node.name
        for tensor in model.graph.initializer:
            places = {e.key: e.value for e in tensor.external_data}
            assert places.get("location", "weights.bin") == "weights.bin"


@pytest.mark.parametrize("variant", VARIANTS)
def test_graph_files_hold_no_weights(variant: str, exporter: Any, opened: Any) -> None:
    for model in opened(exporter.artifact(variant)).graphs.values():
        inside = 0
        for graph in (model.graph, *model.graph.subgraphs()):
            for value in graph.initializers.values():
                if not isinstance(value.const_value, ir.ExternalTensor):
                    assert value.const_value.nbytes <= 1024, value.name
                    inside += value.const_value.nbytes
        assert inside < 1 << 14


def test_positional_fields_are_not_expanded(exporter: Any, opened: Any) -> None:
    """Rows and columns of the DPT fields apart, tables without a frame or head dimension."""
    artifact = opened(exporter.artifact("fp32"))
    tensors = artifact.tensors()
    fields = {name: t for name, t in tensors.items() if name.startswith("fields.")}
    assert fields
    for name, tensor in fields.items():
        shape = tuple(tensor.shape)
        if "_row" in name or "_column" in name:
            assert 1 in shape[2:], name
            assert shape[0] == 1
        if "rope" in name:
            assert shape[0] == 4 * 6 + 5
            assert math.prod(shape[1:]) <= 16
    largest = max(math.prod(t.shape) for n, t in tensors.items() if "patch_embed.proj" not in n)
    assert largest < 56 * 84 * 4


@pytest.mark.parametrize("variant", ["int8_pc_sym", "int4_g32", "fp16"])
def test_nodes_are_named_after_their_module(variant: str, exporter: Any, opened: Any) -> None:
    modules = {layer.name for layer in layers_of(get_config("vggt-tiny"), HEADS)}
    for model in opened(exporter.artifact(variant)).graphs.values():
        nodes = list(model.graph.all_nodes())
        names = [str(node.name) for node in nodes]
        assert len(names) == len(set(names))
        assert not [name for name in names if name.startswith("_")]
        readers = {
            name.rpartition("/")[0]
            for name, node in zip(names, nodes, strict=True)
            if node.op_type in ("Conv", "MatMul", "MatMulInteger")
        }
        assert modules - {n for n in modules if n.startswith("camera_head.trunk")} <= readers | {
            # Unused in the last refinement unit: a skip that nothing enters.
            n
            for n in modules
            if "refinenet4.resConfUnit1" in n
        }
        # What costs time says where it is; the activations of the heads' outputs have no module.
        for name, node in zip(names, nodes, strict=True):
            if node.op_type in ("DequantizeLinear", "Softmax", "Gelu", "Resize", "RotaryEmbedding"):
                assert name.startswith(("aggregator.", "camera_", "depth_", "point_")), name


def float_bytes(tensors: dict[str, Any], planned: set[str]) -> int:
    return sum(
        tensor.length for name, tensor in tensors.items() if name.rpartition(".")[0] not in planned
    )


@pytest.mark.parametrize(
    "scheme", ["int8_pt_sym", "int8_pc_asym", "int4_g32", "int4_g128", "mixed"]
)
def test_sizes_are_those_of_the_plan(scheme: str, exporter: Any, opened: Any) -> None:
    """Four bits are four bits: the file is what plan and float tensors add up to."""
    artifact = opened(exporter.artifact(scheme))
    tensors = artifact.tensors()
    layers = layers_of(get_config("vggt-tiny"), HEADS)
    formats = plan(get_scheme(scheme), layers)
    parts = {n: t for n, t in tensors.items() if n.rpartition(".")[0] in formats}
    for layer in layers:
        if layer.name in formats:
            bits = formats[layer.name].bits
            assert tensors[f"{layer.name}.q"].length == layer.weights * bits // 8
    rank_1 = sum(t.length for n, t in parts.items() if n.endswith((".zeros", ".scale_times_zero")))
    assert (rank_1 > 0) == ("asym" in scheme)
    held = sum(t.length for t in parts.values()) - rank_1
    # Scales of a convolution that was unfolded are repeated per pixel of its window.
    assert held == pytest.approx(planned_bytes(layers, formats), rel=0.02)
    total = held + rank_1 + float_bytes(tensors, set(formats))
    size = (artifact.folder / "weights.bin").stat().st_size
    assert total <= size < total + ALIGNMENT * len(tensors)


def test_the_estimate_of_the_disk_space_is_enough(
    exporter: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(
        pipeline,
        "writing",
        lambda target, *, overwrite, needed_bytes: (asked.append(needed_bytes), writing(target))[1],
    )
    from vggt_deploy.artifact import writing

    result = exporter.export(tmp_path / "a", "int8_pc_asym", verify=False)
    assert result.bytes_total < asked[0] < result.bytes_total + 2 * pipeline.OVERHEAD_BYTES


def test_the_same_request_gives_the_same_bytes(exporter: Any, tmp_path: Path) -> None:
    """Traced anew, and from a trace that was kept."""
    request = {"outputs": ("pose",), "verify": False}
    folders = [
        exporter.export(tmp_path / "a", "int4_g32", trace_cache=None, **request).folder,
        exporter.artifact("int4_g32", outputs=("pose",)),  # keeps its trace if it is the first
        exporter.export(tmp_path / "b", "int4_g32", **request).folder,
    ]
    records = [read_manifest(folder).files for folder in folders]
    assert records[0] == records[1] == records[2]
    another = exporter.export(tmp_path / "c", "int4_g32", model="random:vggt-tiny:1", **request)
    assert another.manifest.files["weights.bin"] != records[0]["weights.bin"]
    assert another.manifest.files["model.onnx"] == records[0]["model.onnx"]


def test_a_kept_trace_is_found_by_all_that_it_depends_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_model: Any
) -> None:
    from vggt_deploy.export import trace_cache
    from vggt_deploy.export.trace import TracedNetwork
    from vggt_deploy.outputs import OUTPUT_GROUPS

    calls = []

    def fake(*arguments: Any, keep_layer_scale: bool) -> TracedNetwork:
        calls.append(arguments)
        graph = small_model("g (float[2] images) => (float[2] depth) { depth = Relu (images) }")
        return TracedNetwork(graph, None)

    monkeypatch.setattr(trace_cache, "trace", fake)
    tiny, small = get_config("vggt-tiny"), get_config("vggt-small")
    depth, points = (OUTPUT_GROUPS["depth"],), (OUTPUT_GROUPS["points"],)
    fields: Any = None
    base = (tiny, depth, fields, 56, 84, False)
    questions = [
        base,
        (small, depth, fields, 56, 84, False),
        (tiny, points, fields, 56, 84, False),
        (tiny, depth, fields, 84, 56, False),
        (tiny, depth, fields, 56, 84, True),
    ]
    for count, question in enumerate([*questions, *questions, base], 1):
        network = cached_trace(tmp_path / "cache", *question[:-1], keep_layer_scale=question[-1])
        assert [node.op_type for node in network.main.graph] == ["Relu"]
        assert network.camera is None
        assert len(calls) == min(count, len(questions))
    cached_trace(None, *base[:-1], keep_layer_scale=False)
    assert len(calls) == len(questions) + 1
    assert not list((tmp_path / "cache").glob("*.partial"))


def test_weights_in_the_file_are_the_checkpoints(exporter: Any, opened: Any) -> None:
    """A float tensor that no rule touches is there as it was."""
    tensors = opened(exporter.artifact("fp32")).tensors()
    _, source = open_weights("random:vggt-tiny")
    for key in ("aggregator.frame_blocks.3.norm1.weight", "point_head.norm.bias"):
        np.testing.assert_array_equal(tensors[f"vggt.{key}"].numpy(), source.load(key).numpy())
