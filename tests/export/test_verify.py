"""The check at the end of an export sees what can go wrong, and what it sees leaves no artifact."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from vggt_deploy.errors import DeployError, VerifyError
from vggt_deploy.export import camera, pipeline
from vggt_deploy.export.verify import compare_outputs, require_scales, verify_artifact
from vggt_deploy.manifest import read_manifest
from vggt_deploy.model.weights import open_weights

LAYER = "aggregator.frame_blocks.1.mlp.fc1"
Edit = Callable[[np.ndarray], None]


def verify(folder: Path, exporter: Any, variant: str, **options: Any) -> dict[str, Any]:
    config, source = open_weights("random:vggt-tiny")
    manifest = read_manifest(folder, check_hashes=False)
    return verify_artifact(folder, manifest, exporter.request(variant, **options), config, source)


def edit_tensor(folder: Path, name: str, opened: Any, edit: Edit) -> None:
    """Change the bytes of one tensor of the weights file in place; `edit` gets them as an array."""
    tensor = opened(folder).tensors()[name]
    types = {
        ir.DataType.FLOAT: np.float32,
        ir.DataType.FLOAT16: np.float16,
        ir.DataType.BFLOAT16: ml_dtypes.bfloat16,
        ir.DataType.INT8: np.int8,
        ir.DataType.INT4: np.uint8,
    }
    file = np.memmap(folder / "weights.bin", mode="r+", dtype=np.uint8)
    piece = file[tensor.offset : tensor.offset + tensor.length]
    array = piece.view(types[tensor.dtype])
    before = array.tobytes()
    edit(array if tensor.dtype == ir.DataType.INT4 else array.reshape(tensor.shape.numpy()))
    assert array.tobytes() != before
    file.flush()


def scale_ten_percent_off(scale: np.ndarray) -> None:
    scale.reshape(-1)[3] *= scale.dtype.type(1.1)


def nibbles_swapped(packed: np.ndarray) -> None:
    packed[:] = (packed << 4) | (packed >> 4)


def zero_point_wrapped(zero_point: np.ndarray) -> None:
    """0..255 written as if it were -128..127."""
    zero_point.reshape(-1)[:] ^= -128


def rows_permuted(q: np.ndarray) -> None:
    q[:] = np.roll(q, 1, axis=0)


def two_columns_swapped(q: np.ndarray) -> None:
    q[:, [4, 5]] = q[:, [5, 4]]


@pytest.mark.parametrize(
    "variant, options, tensor, edit",
    [
        ("int8_pc_sym", {}, f"{LAYER}.scale", scale_ten_percent_off),
        ("int8_pc_sym", {}, "depth_head.scratch.layer2_rn.scale", scale_ten_percent_off),
        ("int8_pc_sym", {}, f"{LAYER}.q", rows_permuted),
        ("int8_pc_sym", {}, "camera_head.trunk.1.attn.proj.q", two_columns_swapped),
        ("int8_pc_asym", {}, f"{LAYER}.zero_point", zero_point_wrapped),
        ("int4_g32", {}, f"{LAYER}.q", nibbles_swapped),
        ("int8_pc_sym", {"precision": "fp16"}, f"{LAYER}.q", rows_permuted),
        ("int8_pc_sym", {"precision": "bf16"}, f"{LAYER}.q", rows_permuted),
        ("int8_pc_sym+dynamic", {}, f"{LAYER}.q", rows_permuted),
        ("int8_pc_sym+static", {}, f"{LAYER}.q", rows_permuted),
    ],
)
def test_a_wrong_weight_is_seen(
    variant: str,
    options: dict[str, Any],
    tensor: str,
    edit: Edit,
    exporter: Any,
    opened: Any,
    tmp_path: Path,
) -> None:
    folder = Path(shutil.copytree(exporter.artifact(variant, **options), tmp_path / "a"))
    edit_tensor(folder, tensor, opened, edit)
    with pytest.raises(VerifyError, match=r"model\.onnx \(onnxruntime\) does not compute"):
        verify(folder, exporter, variant, **options)
    assert not list(folder.glob("emulated.*"))


def one_unit_in_the_last_place(scale: np.ndarray) -> None:
    scale[...] = np.nextafter(scale, scale.dtype.type(1))


def one(zero_point: np.ndarray) -> None:
    zero_point[...] = 1


@pytest.mark.parametrize("layer", [LAYER, "camera_head.trunk.0.mlp.fc2"])
@pytest.mark.parametrize("variant", ["int8_pc_sym+static", "int8_pc_asym+static"])
def test_a_wrong_input_scale_is_seen(
    variant: str, layer: str, exporter: Any, opened: Any, tmp_path: Path
) -> None:
    """However little: it is held against the manifest, where the outputs would hide it."""
    folder = Path(shutil.copytree(exporter.artifact(variant), tmp_path / "a"))
    edit_tensor(folder, f"{layer}.input_scale", opened, one_unit_in_the_last_place)
    with pytest.raises(VerifyError, match=f"inputs of 1 layers otherwise than calibrated; {layer}"):
        verify(folder, exporter, variant)


def test_an_input_zero_point_is_seen(exporter: Any, opened: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exporter.artifact("int8_pc_sym+static"), tmp_path / "a"))
    edit_tensor(folder, "input_zero_point", opened, one)
    with pytest.raises(VerifyError, match="inputs of 50 layers otherwise than calibrated"):
        verify(folder, exporter, "int8_pc_sym+static")


@pytest.mark.parametrize("file", ["model.onnx", "model.tensorrt.onnx"])
def test_a_float_input_is_seen(file: str, exporter: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exporter.artifact("int8_pc_sym+static"), tmp_path / "a"))
    model = ir.load(folder / file)
    (product,) = (n for n in model.graph if n.name == f"{LAYER}/MatMul")
    quantize = product.inputs[0].producer().inputs[0].producer()
    product.replace_input_with(0, quantize.inputs[0])
    ir.save(model, folder / file)
    scales = read_manifest(exporter.artifact("int8_pc_sym+static")).calibration.scales
    with pytest.raises(VerifyError, match=f"{file} rounds .* {LAYER}: None"):
        require_scales(folder / file, scales)
    with pytest.raises(VerifyError, match="no product"):
        require_scales(exporter.artifact("int8_pc_sym+static") / file, scales | {"nobody": 1.0})


def test_a_wrong_rank_1_term_is_seen_in_the_graph_that_has_it(
    exporter: Any, opened: Any, tmp_path: Path
) -> None:
    variant = "int8_pc_asym"
    folder = Path(shutil.copytree(exporter.artifact(variant), tmp_path / "a"))
    edit_tensor(folder, f"{LAYER}.scale_times_zero", opened, scale_ten_percent_off)
    with pytest.raises(VerifyError, match=r"model\.tensorrt\.onnx \(tensorrt\)"):
        verify(folder, exporter, variant)


def test_one_head_that_is_wrong_is_named_alone(exporter: Any, opened: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exporter.artifact("int8_pc_sym"), tmp_path / "a"))
    name = "point_head.scratch.output_conv2.2.scale"
    edit_tensor(folder, name, opened, scale_ten_percent_off)
    with pytest.raises(VerifyError) as caught:
        verify(folder, exporter, "int8_pc_sym")
    assert "world_points" in caught.value.message
    assert "depth" not in caught.value.message
    assert "pose_enc" not in caught.value.message


def test_a_frozen_frame_count_is_seen(exporter: Any, tmp_path: Path) -> None:
    """Right for one frame, and for one frame only."""
    folder = Path(shutil.copytree(exporter.artifact("int8_pc_sym"), tmp_path / "a"))
    model = ir.load(folder / "model.onnx")
    frozen = 0
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if value.name in ("shape_1_n_9", "shape_1_n_56_84_3") and tensor is not None:
            array = np.where(tensor.numpy() == -1, 1, tensor.numpy())
            value.const_value = ir.tensor(array, name=value.name)
            frozen += 1
    assert frozen == 2
    ir.save(model, folder / "model.onnx")
    with pytest.raises(DeployError, match="failed on 2 images"):
        verify(folder, exporter, "int8_pc_sym")


def test_an_artifact_as_it_was_made_passes(exporter: Any) -> None:
    """The twin of the tests above: it is the edit that they see."""
    record = verify(exporter.artifact("int8_pc_asym"), exporter, "int8_pc_asym")
    assert set(record["relative_l2_error"]) == {"onnxruntime", "tensorrt"}


def test_the_error_of_an_output() -> None:
    want = {"depth": np.array([3.0, 4.0], np.float32)}
    assert compare_outputs({"depth": np.array([3.0, 4.5])}, want) == {"depth": pytest.approx(0.1)}
    for bad in (np.nan, np.inf):
        assert compare_outputs({"depth": np.array([3.0, bad])}, want) == {"depth": float("inf")}
    zero = {"depth": np.zeros(2, np.float32)}
    assert compare_outputs({"depth": np.array([0.0, 0.5])}, zero) == {"depth": 0.5}
    with pytest.raises(VerifyError, match=r"shape \(1,\), PyTorch gives \(2,\)"):
        compare_outputs({"depth": np.array([3.0])}, want)


def one_iteration_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A defect of the kind that only the check can see."""

    def attach(main: ir.Graph, step: ir.Graph, iterations: int) -> None:
        camera.attach_loop(main, step, iterations - 1)

    monkeypatch.setattr(pipeline, "attach_loop", attach)


def test_a_failed_check_leaves_nothing(
    exporter: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_iteration_short(monkeypatch)
    with pytest.raises(VerifyError, match="pose_enc"):
        exporter.export(tmp_path / "a", "int8_pc_sym", outputs=("pose",))
    assert list(tmp_path.iterdir()) == []
    unchecked = exporter.export(tmp_path / "b", "int8_pc_sym", outputs=("pose",), verify=False)
    assert unchecked.manifest.verification is None


def test_a_failed_check_keeps_the_artifact_that_was_there(
    exporter: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = exporter.export(tmp_path / "a", "int8_pt_sym", outputs=("pose",), verify=False)
    one_iteration_short(monkeypatch)
    with pytest.raises(VerifyError):
        exporter.export(tmp_path / "a", "int8_pc_sym", outputs=("pose",), overwrite=True)
    assert read_manifest(first.folder).scheme == "int8_pt_sym"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert json.loads((tmp_path / "a" / "manifest.json").read_text())["scheme"] == "int8_pt_sym"


@pytest.mark.slow
@pytest.mark.parametrize(
    "variant, target", [("int8_pc_asym", "tensorrt"), ("int4_g32", "onnxruntime")]
)
def test_every_tensor_of_the_file_matters(
    variant: str, target: str, exporter: Any, opened: Any, runtime: Any, tmp_path: Path
) -> None:
    """No tensor is in the file in vain, or too small in effect for the check to see it change."""
    folder = Path(shutil.copytree(exporter.artifact(variant), tmp_path / "a"))
    images = np.random.default_rng(0).random((1, 2, 3, 56, 84), np.float32)
    want = runtime.artifact(folder, images, target)
    model = opened(folder).graphs[target]
    used = {n for g in (model.graph, *model.graph.subgraphs()) for n in g.initializers}
    tensors = {name: t for name, t in opened(folder).tensors().items() if name in used}
    file = np.memmap(folder / "weights.bin", mode="r+", dtype=np.uint8)
    blind = []
    for name, tensor in tensors.items():
        if name.endswith((".zeros", ".zero_point")):
            continue  # zeros, most of them
        piece = file[tensor.offset : tensor.offset + tensor.length]
        before = piece.copy()
        size = tensor.dtype.bitwidth // 8 or 1
        # The sign bit of floats, all bits of integers.
        piece.reshape(-1, size)[:, -1] ^= 0x80 if size > 1 else 0xFF
        file.flush()
        got = runtime.artifact(folder, images, target)
        if not max(compare_outputs(got, want).values()) > 1e-4:
            blind.append(name)
        piece[:] = before
    assert blind == []
