"""What a graph holds that an engine has to show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from vggt_deploy.build.expect import expected_attentions, expected_linears  # noqa: E402
from vggt_deploy.build.onnx_graph import read_graph, static_shapes  # noqa: E402
from vggt_deploy.engines.onnx_weights import packed_bytes, stored_weights  # noqa: E402
from vggt_deploy.errors import BuildError  # noqa: E402


def test_rows_grow_with_the_frames(graph: Any, two_linears: Any) -> None:
    path = graph(two_linears())
    one, five = expected_linears(path, 1), expected_linears(path, 5)
    assert {name: linear.rows for name, linear in one.items()} == {"block.fc1": 42, "block.fc2": 42}
    assert all(five[name].rows == 5 * linear.rows for name, linear in one.items())


def test_sizes_that_the_exporter_left_open_are_inferred(graph: Any, two_linears: Any) -> None:
    """Without any shape inside, and with one that names a formula."""
    model = two_linears()
    del model.graph.value_info[:]
    assert expected_linears(graph(model), 3)["block.fc2"].rows == 3 * 42
    hidden = model.graph.value_info.add(name="block/Gelu:0")
    hidden.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    for size in (1, "1*frames", 3, 14, 64):
        dim = hidden.type.tensor_type.shape.dim.add()
        if isinstance(size, int):
            dim.dim_value = size
        else:
            dim.dim_param = size
    assert expected_linears(graph(model), 3)["block.fc2"].rows == 3 * 42


def test_one_layer_applied_twice_is_one_linear(graph: Any, network: Any) -> None:
    first = network.linear("images", "head", 14, 14, static=False)
    last = network.node("MatMul", [first, "head/DequantizeLinear:0"], "head/MatMul_1")
    found = expected_linears(graph(network.model(last)), 2)
    assert list(found) == ["head"]
    assert found["head"].products == ("head/MatMul", "head/MatMul_1")
    assert found["head"].rows == 2 * 2 * 42


def test_a_weight_that_does_not_fit_its_input(graph: Any, network: Any) -> None:
    model = network.model(network.linear("images", "fc", 14, 64, static=False))
    q = next(tensor for tensor in model.graph.initializer if tensor.name == "fc.q")
    q.dims[0], q.dims[1] = 28, 32
    with pytest.raises(BuildError, match=r"fc/MatMul|contradicts itself"):
        expected_linears(graph(model), 1)


def test_attention_is_found_through_casts_and_reshapes(graph: Any, network: Any) -> None:
    weight = network.constant("w", np.ones((14, 14), np.float32))
    scores = network.node("MatMul", ["images", weight], "a/MatMul")
    weights = network.node("Softmax", [network.node("Cast", [scores], "c", to=10)], "a/Softmax")
    back = network.node("Cast", [weights], "d", to=1)
    values = network.node("MatMul", [back, weight], "a/MatMul_1")
    alone = network.node("Softmax", [values], "b/Softmax")  # reads a product, feeds none
    (found,) = expected_attentions(graph(network.model(alone)))
    assert (found.scores, found.softmax, found.values) == ("a/MatMul", "a/Softmax", "a/MatMul_1")
    assert found.dtype == "half"


def test_no_attention_without_a_product_on_both_sides(graph: Any, network: Any) -> None:
    weight = network.constant("w", np.ones((14, 14), np.float32))
    weights = network.node("Softmax", [network.node("Relu", ["images"], "r")], "a/Softmax")
    out = network.node("MatMul", [weights, weight], "a/MatMul")
    assert expected_attentions(graph(network.model(out))) == ()


def test_static_shapes_keep_what_is_known(graph: Any, two_linears: Any) -> None:
    shapes = static_shapes(read_graph(graph(two_linears())), 4)
    assert shapes["images"] == (1, 4, 3, 14, 14)
    assert shapes["block.fc2/MatMul:0"] == (1, 4, 3, 14, 32)


def test_weights_are_read_from_beside_the_graph(
    save_artifact: Any, two_linears: Any, tmp_path: Path
) -> None:
    folder = save_artifact(tmp_path / "artifact", two_linears())
    path = folder / "model.tensorrt.onnx"
    twin = tmp_path / "twin"
    twin.hardlink_to(folder / "weights.bin")  # onnx's own reader refuses a second link
    read = read_graph(path)
    assert np.all(read.array("block.fc1.s") == np.float32(0.01))
    (folder / "weights.bin").write_bytes(b"short")
    with pytest.raises(BuildError, match="cut short"):
        read.array("block.fc1.q")


def test_a_weights_file_outside_the_folder_is_not_opened(
    save_artifact: Any, two_linears: Any, tmp_path: Path
) -> None:
    folder = save_artifact(tmp_path / "artifact", two_linears())
    path = folder / "model.tensorrt.onnx"
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../weights.bin"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(BuildError, match="not a file name inside"):
        read_graph(path).array("block.fc1.q")


def test_bytes_of_weights_without_onnx(
    save_artifact: Any, two_linears: Any, tmp_path: Path
) -> None:
    folder = save_artifact(tmp_path / "artifact", two_linears())
    path = folder / "model.tensorrt.onnx"
    model = onnx.load(path)
    wanted = {t.name: onnx.numpy_helper.to_array(t).nbytes for t in model.graph.initializer}
    assert {weight.name: weight.bytes for weight in stored_weights(path)} == wanted
    assert packed_bytes(path) == sum(wanted.values())
