"""Static activations in a whole artifact: the graphs, their names, what ONNX Runtime makes of them,
and whose statistics are taken.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from vggt_deploy.errors import CalibrationError, DeployError, ImageError
from vggt_deploy.export.request import make_request
from vggt_deploy.manifest import read_manifest
from vggt_deploy.quantize.calibration import collect_statistics, input_scales, load_statistics
from vggt_deploy.quantize.methods import parse_method
from vggt_deploy.quantize.plan import layer_precision
from vggt_deploy.quantize.schemes import parse_label
from vggt_deploy.quantize.statistics import ARRAYS_NAME, RECORD_NAME, to_files

VARIANT = "int8_pc_sym+static"
DTYPE = {"fp32": ir.DataType.FLOAT, "fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
CAMERA_ITERATIONS = 4


def linears(manifest: Any) -> list[str]:
    heads = ("depth_head.", "point_head.")
    return [name for name in manifest.layers.quantized if not name.startswith(heads)]


def products(model: ir.Model) -> dict[str, list[ir.Node]]:
    """Layer -> its MatMuls, by their names alone."""
    found: dict[str, list[ir.Node]] = {}
    for node in model.graph.all_nodes():
        if node.op_type == "MatMul":
            found.setdefault(str(node.name).rpartition("/")[0], []).append(node)
    return found


@pytest.mark.parametrize(
    "variant, precision",
    [
        ("int8_pc_sym+static", "fp32"),
        ("int8_pc_asym+static", "fp32"),
        ("int8_pt_asym+static", "fp16"),
        ("int8_pc_sym+static", "bf16"),
    ],
)
def test_every_quantized_linear_multiplies_integers(
    variant: str, precision: Any, exporter: Any, opened: Any
) -> None:
    """And nothing else does: attention products and the two float layers keep float inputs."""
    artifact = opened(exporter.artifact(variant, precision=precision))
    record = artifact.manifest.calibration
    planned = linears(artifact.manifest)
    assert list(record.scales) == planned
    for target, model in artifact.graphs.items():
        by_layer = products(model)
        for layer in planned:
            repeated = target == "tensorrt" and layer.startswith("camera_head.")
            assert len(by_layer[layer]) == (CAMERA_ITERATIONS if repeated else 1)
            for product in by_layer[layer]:
                back = product.inputs[0].producer()
                quantize = back.inputs[0].producer()
                assert (back.op_type, quantize.op_type) == ("DequantizeLinear", "QuantizeLinear")
                assert quantize.outputs[0].dtype == ir.DataType.INT8
                for node in (back, quantize):
                    assert not node.attributes
                    scale, zero = (ir.convenience.get_const_tensor(v) for v in node.inputs[1:])
                    assert scale.dtype == DTYPE[layer_precision(layer, precision)]
                    assert scale.dtype == quantize.inputs[0].dtype == back.outputs[0].dtype
                    assert float(scale.numpy()) == record.scales[layer]
                    assert (scale.shape.rank(), zero.shape.rank()) == (0, 0)
                    assert (zero.dtype, int(zero.numpy())) == (ir.DataType.INT8, 0)
        for layer in set(by_layer) - set(planned):
            for product in by_layer[layer]:
                sources = [value.producer() for value in product.inputs]
                kinds = {node.op_type for node in sources if node is not None}
                assert not kinds & {"DequantizeLinear", "QuantizeLinear"}, product.name
        assert sum(map(len, by_layer.values())) > len(planned)


def test_names_are_unique_and_tell_the_layer(exporter: Any, opened: Any) -> None:
    """TensorRT refuses a name twice; a proof and a profile find layers by them."""
    artifact = opened(exporter.artifact("int8_pc_asym+static"))
    planned = linears(artifact.manifest)
    for model in artifact.graphs.values():
        names = Counter(str(node.name) for node in model.graph.all_nodes())
        assert max(names.values()) == 1
        for node in model.graph.all_nodes():
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                layer, _, operator = str(node.name).partition("/")
                assert layer in artifact.manifest.layers.quantized
                assert operator.split("_")[0] == node.op_type
        assert {f"{layer}/QuantizeLinear" for layer in planned} <= set(names)
    (loop,) = (n for n in artifact.graphs["onnxruntime"].graph if n.op_type == "Loop")
    body = loop.attributes["body"].as_graph()
    assert all(str(node.name).startswith("camera_head") for node in body)


@pytest.mark.parametrize("variant", ["int8_pt_sym", "int8_pt_asym", "int8_pc_sym", "int8_pc_asym"])
def test_onnx_runtime_multiplies_integers(variant: str, exporter: Any, tmp_path: Path) -> None:
    """MatMulIntegerToFloat for every quantized Linear, the camera's in the loop body too."""
    folder = exporter.artifact(f"{variant}+static")
    operators = optimized_operators(folder, tmp_path / "static.onnx")
    count = len(read_manifest(folder).calibration.scales)
    assert operators["MatMulIntegerToFloat"] == operators["QuantizeLinear"] == count == 50
    assert operators["DequantizeLinear"] == operators["MatMulNBits"] == operators["Cast"] == 0
    # The twin: without rounded activations there is no such product.
    floats = optimized_operators(exporter.artifact(variant), tmp_path / "float.onnx")
    assert floats["MatMulIntegerToFloat"] == 0
    assert floats["MatMulNBits"] == count


def optimized_operators(folder: Path, path: Path) -> Counter[str]:
    """Operators of the graph as ONNX Runtime executes it, bodies of loops included."""
    import onnxruntime as ort

    graph = read_manifest(folder).graphs["onnxruntime"]
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(path)
    for key, value in graph.session_options.items():
        options.add_session_config_entry(key, value)
    ort.InferenceSession(
        str(folder / graph.file),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=list(graph.disabled_optimizers),
    )
    return Counter(node.op_type for node in ir.load(path).graph.all_nodes())


def test_precisions_differ_in_the_scales_type_alone(exporter: Any) -> None:
    records = {
        p: read_manifest(exporter.artifact(VARIANT, precision=p)).calibration
        for p in ("fp32", "fp16", "bf16")
    }
    for precision, steps in (("fp16", 2**-11), ("bf16", 2**-8)):
        for layer, scale in records["fp32"].scales.items():
            other = records[precision].scales[layer]
            assert other == pytest.approx(scale, rel=steps)
            if layer.startswith("camera_head."):
                assert other == scale
    assert records["fp16"].scales != records["fp32"].scales


# -- whose statistics ----------------------------------------------------------------------------


def test_the_artifact_keeps_its_statistics(exporter: Any) -> None:
    folder = exporter.artifact(VARIANT)
    manifest = read_manifest(folder)
    record = manifest.calibration
    assert {RECORD_NAME, ARRAYS_NAME} <= set(manifest.files)
    kept = load_statistics(folder)
    assert to_files(kept) == to_files(exporter.statistics)
    assert record.statistics_sha256 == kept.sha256
    assert record.images == kept.images
    assert sorted(record.images) == sorted(path.name for path in exporter.pictures.iterdir())
    assert record.method == "mse"
    assert record.scales == input_scales(kept, record.scales, parse_method("mse"), "fp32")
    assert read_manifest(exporter.artifact("int8_pc_sym")).calibration is None


def test_images_statistics_and_artifacts_give_the_same(exporter: Any, tmp_path: Path) -> None:
    """The typical frame count is what images are shown in passes of."""
    stages: list[str] = []
    collect_statistics(
        "random:vggt-tiny",
        exporter.pictures,
        output_dir=tmp_path / "statistics",
        height=56,
        width=84,
        frames_per_pass=2,
    )
    sources = {
        "images": exporter.pictures,
        "folder": tmp_path / "statistics",
        "object": load_statistics(tmp_path / "statistics"),
        "artifact": tmp_path / "images",
    }
    records = {}
    for name, source in sources.items():
        stages.clear()
        result = exporter.export(
            tmp_path / name,
            "int8_pt_sym+static",
            calibrate=source,
            verify=False,
            progress=lambda stage, *_: stages.append(stage),
        )
        records[name] = result.manifest.calibration
        assert ("calibrate" in stages) == (name == "images")
    assert all(record == records["images"] for record in records.values())
    # The twin: other images, other scales.
    (tmp_path / "one").mkdir()
    shutil.copy(next(exporter.pictures.iterdir()), tmp_path / "one")
    other = exporter.export(
        tmp_path / "other", "int8_pt_sym+static", calibrate=tmp_path / "one", verify=False
    )
    assert other.manifest.calibration.scales != records["images"].scales
    assert other.manifest.calibration.statistics_sha256 != records["images"].statistics_sha256


@pytest.mark.parametrize(
    "method, label", [("absmax", "absmax"), ("percentile:99.9", "percentile 99.9")]
)
def test_methods(method: str, label: str, exporter: Any) -> None:
    by_mse = read_manifest(exporter.artifact(VARIANT)).calibration
    record = read_manifest(exporter.artifact(VARIANT, calibration_method=method)).calibration
    assert record.method == label
    assert record.statistics_sha256 == by_mse.statistics_sha256
    assert record.scales != by_mse.scales
    for layer, scale in record.scales.items():
        largest = np.float32(exporter.statistics.layers[layer].absmax / 127)
        assert by_mse.scales[layer] <= largest
        assert scale == largest if method == "absmax" else scale <= largest


def other_model(exporter: Any) -> Any:
    model = dataclasses.replace(exporter.statistics.model, spec="random:vggt-tiny:7")
    return dataclasses.replace(exporter.statistics, model=model)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda e: other_model(e), "random:vggt-tiny:7, not random:vggt-tiny:0"),
        (lambda e: dataclasses.replace(e.statistics, width=98), "size 56 x 98 .* not 56 x 84"),
        (
            lambda e: dataclasses.replace(
                e.statistics, layers=dict(list(e.statistics.layers.items())[3:])
            ),
            r"know nothing of aggregator\.patch_embed\.blocks\.0",
        ),
    ],
)
def test_statistics_of_something_else_are_refused(
    change: Any, words: str, exporter: Any, tmp_path: Path
) -> None:
    with pytest.raises(CalibrationError, match=words) as caught:
        exporter.export(tmp_path / "a", VARIANT, calibrate=change(exporter))
    assert caught.value.fix
    assert list(tmp_path.iterdir()) == []


def test_an_artifact_with_foreign_statistics_is_refused(exporter: Any, tmp_path: Path) -> None:
    """Both files replaced by sound ones of other images: only the manifest tells."""
    folder = Path(shutil.copytree(exporter.artifact(VARIANT), tmp_path / "a"))
    foreign = dataclasses.replace(exporter.statistics, images={"x.png": "0" * 64})
    for name, content in to_files(foreign).items():
        (folder / name).write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in (RECORD_NAME, ARRAYS_NAME):
        manifest["files"][name]["bytes"] = (folder / name).stat().st_size
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CalibrationError, match="not those that its manifest names"):
        exporter.export(tmp_path / "b", VARIANT, calibrate=folder)
    (folder / ARRAYS_NAME).write_bytes(b"")
    with pytest.raises(CalibrationError, match="cut short"):
        exporter.export(tmp_path / "b", VARIANT, calibrate=folder)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("what", ["absent", "empty", "bad"])
def test_no_usable_images_leave_nothing(what: str, exporter: Any, tmp_path: Path) -> None:
    folder = tmp_path / "p"
    if what != "absent":
        folder.mkdir()
    if what == "bad":
        (folder / "a.png").write_bytes(b"no picture")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ImageError):
        exporter.export(tmp_path / "a", VARIANT, calibrate=folder)
    assert sorted(tmp_path.iterdir()) == before


def test_interrupted_calibration_keeps_the_artifact_that_was_there(
    exporter: Any, tmp_path: Path
) -> None:
    first = exporter.export(tmp_path / "a", "int8_pt_sym", verify=False)

    def interrupt(stage: str, done: int, total: int) -> None:
        if stage == "calibrate" and done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        exporter.export(
            tmp_path / "a", VARIANT, calibrate=exporter.pictures, overwrite=True, progress=interrupt
        )
    assert read_manifest(first.folder).scheme == "int8_pt_sym"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_included_layers_are_calibrated_too(exporter: Any, opened: Any) -> None:
    layer = "camera_head.embed_pose"
    artifact = opened(exporter.artifact(VARIANT, include=(layer,), outputs=("pose",)))
    assert layer in artifact.manifest.calibration.scales
    for model in artifact.graphs.values():
        for product in products(model)[layer]:
            assert product.inputs[0].producer().op_type == "DequantizeLinear"


def test_outputs_without_a_camera_need_no_scales_of_its_head(exporter: Any, runtime: Any) -> None:
    folder = exporter.artifact(VARIANT, outputs=("points", "depth"))
    scales = read_manifest(folder).calibration.scales
    assert scales
    assert not [name for name in scales if name.startswith("camera_head.")]
    whole = exporter.artifact(VARIANT)
    images = np.random.default_rng(0).random((1, 2, 3, 56, 84), np.float32)
    np.testing.assert_allclose(
        runtime.artifact(folder, images)["depth"],
        runtime.artifact(whole, images)["depth"],
        rtol=1e-5,
    )


def test_a_folder_that_is_not_there_is_told_before_the_checkpoint_is_opened(
    tmp_path: Path,
) -> None:
    with pytest.raises(ImageError, match="there is no folder") as caught:
        make_request(
            parse_label("int8_pc_sym+static"),
            precision=None,
            outputs=("pose",),
            frames=(1, 2, 5),
            patterns=((), (), ()),
            calibrate=tmp_path / "absent",
        )
    assert "--calibrate" in caught.value.fix


def test_a_deploy_error_of_the_statistics_has_a_fix(exporter: Any, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / RECORD_NAME).write_text("{}")
    with pytest.raises(DeployError, match="schema None") as caught:
        exporter.export(tmp_path / "a", VARIANT, calibrate=tmp_path / "s")
    assert "vggt-deploy calibrate" in caught.value.fix
