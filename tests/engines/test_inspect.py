"""`inspect` on artifacts, and the reader of weights' sizes that needs no onnx.

Engines are inspected in `tests/build/test_proof.py`, where they are built.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from vggt_deploy.engines.inspect import OTHER, FormatBytes, inspect_engine
from vggt_deploy.engines.onnx_weights import StoredWeight, packed_bytes, stored_weights
from vggt_deploy.errors import ArtifactError
from vggt_deploy.manifest import from_json, record_files, write_manifest
from vggt_deploy.records import LayerSummary


def model(*tensors: Any, nodes: tuple[Any, ...] = ()) -> Any:
    graph = helper.make_graph(list(nodes), "tiny", [], [], list(tensors))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])


def saved(folder: Path, proto: Any) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def test_a_float_artifact(make_artifact: Any) -> None:
    folder = make_artifact()
    found = inspect_engine(folder)
    initializers = onnx.load(folder / "model.onnx").graph.initializer
    total = sum(numpy_helper.to_array(tensor).nbytes for tensor in initializers)
    assert found.formats == {OTHER: FormatBytes(0, total)}
    assert found.packed_bytes == total
    assert (found.header, found.proof, found.live, found.shares) == (None, None, None, {})
    assert found.weights_ratio is None
    assert found.bytes_total == sum(
        path.stat().st_size for path in folder.iterdir() if path.name != "manifest.json"
    )
    assert json.loads(json.dumps(found.to_json()))["manifest"]["scheme"] == "fp32"


def test_bytes_by_layer_and_format(make_artifact: Any) -> None:
    folder = make_artifact()
    rng = np.random.default_rng(0)
    tensors = [
        numpy_helper.from_array(rng.integers(-9, 9, (8, 4)).astype(np.int8), "a.fc1.q"),
        numpy_helper.from_array(np.ones(4, np.float32), "a.fc1.scale"),
        helper.make_tensor("a.fc10.q", TensorProto.INT4, [3, 5], [1] * 15),
        numpy_helper.from_array(np.ones((2, 2), np.float16), "a.fc10.scale"),
        numpy_helper.from_array(np.ones(7, np.float32), "vggt.a.fc1.bias"),
    ]
    saved(folder, model(*tensors))
    quantized = {"a.fc1": "int8_pc_sym", "a.fc10": "int4_g128"}
    changes: dict[str, Any] = {"layers": LayerSummary(quantized), "files": record_files(folder)}
    manifest = from_json((folder / "manifest.json").read_text(), source=folder)
    write_manifest(folder, dataclasses.replace(manifest, **changes))
    found = inspect_engine(folder)
    assert found.layers == {"a.fc1": 32 + 16, "a.fc10": 8 + 8}
    assert found.formats == {
        "int8_pc_sym": FormatBytes(1, 48),
        "int4_g128": FormatBytes(1, 16),
        OTHER: FormatBytes(0, 28),
    }


def test_a_changed_artifact_is_refused(make_artifact: Any) -> None:
    folder = make_artifact()
    data = bytearray((folder / "weights.bin").read_bytes())
    data[-1] ^= 1
    (folder / "weights.bin").write_bytes(data)
    with pytest.raises(ArtifactError, match="was changed"):
        inspect_engine(folder)


TYPES = [
    *(getattr(TensorProto, name) for name in ("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE")),
    *(getattr(TensorProto, name) for name in ("INT8", "UINT8", "INT32", "INT64", "BOOL")),
    *(getattr(TensorProto, name) for name in ("INT4", "UINT4", "FLOAT8E4M3FN")),
]


@given(
    st.lists(
        st.tuples(st.sampled_from(TYPES), st.lists(st.integers(0, 5), max_size=3)), max_size=4
    ),
    st.booleans(),
)
def test_sizes_are_those_of_onnx(
    tmp_path_factory: pytest.TempPathFactory, wanted: list[tuple[int, list[int]]], loop: bool
) -> None:
    tensors = [
        helper.make_tensor(f"w{i}", kind, dims, [0] * int(np.prod(dims)))
        for i, (kind, dims) in enumerate(wanted)
    ]
    proto = model(*tensors)
    if loop:  # the same weights inside a subgraph
        body = helper.make_graph([], "body", [], [], tensors)
        proto = model(nodes=(helper.make_node("Loop", [], [], body=body),))
    path = saved(tmp_path_factory.mktemp("onnx"), proto)
    sizes = {t.name: numpy_helper.to_array(t).nbytes for t in tensors}
    for tensor in tensors:
        if tensor.data_type in (TensorProto.INT4, TensorProto.UINT4):
            sizes[tensor.name] = (int(np.prod(tensor.dims)) + 1) // 2
    assert stored_weights(path) == tuple(StoredWeight(*item) for item in sizes.items())
    assert packed_bytes(path) == sum(sizes.values())


def test_packed_dimensions_and_unknown_types(tmp_path: Path) -> None:
    def field(number: int, value: bytes | int) -> bytes:
        if isinstance(value, int):
            return bytes([number << 3, value])
        return bytes([number << 3 | 2, len(value)]) + value

    def file(kind: int) -> Path:
        tensor = field(1, b"\x03\x05") + field(2, kind) + field(8, b"w")
        path = tmp_path / "model.onnx"
        path.write_bytes(field(1, 10) + field(7, field(5, tensor)))
        return path

    assert stored_weights(file(TensorProto.FLOAT)) == (StoredWeight("w", 60),)
    with pytest.raises(ArtifactError, match="w has the unknown type 99"):
        stored_weights(file(99))


@given(st.binary(max_size=80))
def test_any_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.mktemp("bytes") / "model.onnx"
    path.write_bytes(data)
    try:
        found = stored_weights(path)
    except ArtifactError:
        return
    assert all(weight.bytes >= 0 for weight in found)


def test_a_graph_that_was_cut_is_refused(tmp_path: Path) -> None:
    whole = model(numpy_helper.from_array(np.ones(40, np.float32), "w")).SerializeToString()
    path = tmp_path / "model.onnx"
    graph_ends = whole.rindex(b"tiny")
    path.write_bytes(whole[: graph_ends - 20])
    with pytest.raises(ArtifactError, match="cut short"):
        stored_weights(path)
    with pytest.raises(ArtifactError, match="can't be read"):
        stored_weights(tmp_path / "absent.onnx")
