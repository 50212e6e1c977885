"""Triton's model repository, read back with Triton's own protobuf."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format

from vggt_deploy.errors import ArtifactError, UsageError
from vggt_deploy.export.trace import INPUT_NAME as EXPORTED_INPUT
from vggt_deploy.manifest import read_manifest
from vggt_deploy.records import FramesRange, GraphRecord, LayerSummary
from vggt_deploy.ship.contract import INPUT_NAME
from vggt_deploy.ship.triton import write_triton_repository
from vggt_deploy.ship.triton_config import model_config, render

Make = Callable[..., Path]
PLAIN = {"onnxruntime": GraphRecord("model.onnx", 21)}


def read_config(path: Path) -> Any:
    """Parsed by the schema of Triton itself: an unknown field or enum is an error."""
    from tritonclient.grpc import model_config_pb2

    config = model_config_pb2.ModelConfig()
    text_format.Parse(path.read_text(), config)
    return config


def test_the_parser_refuses_what_triton_would(tmp_path: Path) -> None:
    path = tmp_path / "config.pbtxt"
    path.write_text('name: "a"\nmax_batchsize: 0\n')
    with pytest.raises(text_format.ParseError, match="max_batchsize"):
        read_config(path)


def test_an_onnx_artifact(make_onnx: Make, tmp_path: Path) -> None:
    onnx = make_onnx("vggt", activations="float", graphs={**PLAIN, "tensorrt": graph_record()})
    assert write_triton_repository([onnx], tmp_path / "models") == ("vggt",)
    model = tmp_path / "models" / "vggt"
    config = read_config(model / "config.pbtxt")
    assert (config.name, config.platform) == ("vggt", "onnxruntime_onnx")
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    assert config.default_model_filename == "model.onnx"
    assert config.version_policy.latest.num_versions == 1
    assert [(i.name, list(i.dims)) for i in config.input] == [("images", [1, -1, 3, 42, 56])]
    shapes = {
        "pose_enc": [1, -1, 9],
        "depth": [1, -1, 42, 56, 1],
        "depth_conf": [1, -1, 42, 56],
        "world_points": [1, -1, 42, 56, 3],
        "world_points_conf": [1, -1, 42, 56],
    }
    assert {o.name: list(o.dims) for o in config.output} == shapes
    types = {t.data_type for t in (*config.input, *config.output)}
    assert types == {
        config.input[0]
        .DESCRIPTOR.fields_by_name["data_type"]
        .enum_type.values_by_name["TYPE_FP32"]
        .number
    }
    (group,) = config.instance_group
    assert (group.count, group.Kind.Name(group.kind)) == (1, "KIND_GPU")
    assert not config.HasField("optimization")
    # The graph for TensorRT stays behind; the weights lie beside the graph that names them.
    assert {p.name for p in (model / "1").iterdir()} == {"model.onnx", "weights.bin"}
    assert (model / "1" / "weights.bin").read_bytes() == (onnx / "weights.bin").read_bytes()
    assert (model / "manifest.json").is_file()


def graph_record() -> GraphRecord:
    return GraphRecord("model.tensorrt.onnx", 21)


def test_an_engine_with_several_profiles(h200: Path, tmp_path: Path) -> None:
    (name,) = write_triton_repository([h200], tmp_path / "models", instances_per_gpu=2)
    config = read_config(tmp_path / "models" / name / "config.pbtxt")
    assert config.platform == "tensorrt_plan"
    assert config.default_model_filename == "model.plan"
    (group,) = config.instance_group
    assert (group.count, list(group.profile)) == (2, ["0", "1"])
    strategy = config.parameters["execution_context_allocation_strategy"]
    assert strategy.string_value == "ON_PROFILE_CHANGE"
    plan = tmp_path / "models" / name / "1" / "model.plan"
    assert plan.read_bytes() == (h200 / "model.engine").read_bytes()
    assert "10.16.1.11" in (tmp_path / "models" / "README.md").read_text()


def test_an_engine_with_one_profile_names_none(make_engine: Make, tmp_path: Path) -> None:
    engine = make_engine(profiles=(FramesRange(1, 4, 8),), activation_bytes=None)
    (name,) = write_triton_repository([engine], tmp_path / "models", name="scene")
    config = read_config(tmp_path / "models" / "scene" / "config.pbtxt")
    assert (name, config.name) == ("scene", "scene")
    assert list(config.instance_group[0].profile) == []
    assert dict(config.parameters) == {}


def test_several_models_and_instances_share_the_session(
    make_onnx: Make, h200: Path, tmp_path: Path
) -> None:
    onnx = make_onnx("graph", activations="float", graphs=PLAIN)
    names = write_triton_repository(
        [onnx, h200], tmp_path / "models", instances_per_gpu=3, device="gpu"
    )
    assert names == ("graph", "vggt-h200")
    config = read_config(tmp_path / "models" / "graph" / "config.pbtxt")
    assert config.parameters["share_session_between_instances"].string_value == "true"
    record = json.loads((tmp_path / "models" / "vggt-deploy.json").read_text())
    assert set(record["models"]) == set(names)


def test_the_cpu(make_onnx: Make, h200: Path, tmp_path: Path) -> None:
    onnx = make_onnx("graph", activations="float", graphs=PLAIN)
    write_triton_repository([onnx], tmp_path / "models", device="cpu")
    config = read_config(tmp_path / "models" / "graph" / "config.pbtxt")
    (group,) = config.instance_group
    assert group.Kind.Name(group.kind) == "KIND_CPU"
    with pytest.raises(UsageError, match="needs a GPU"):
        write_triton_repository([h200], tmp_path / "other", device="cpu")


@pytest.mark.parametrize(
    "differences, reason",
    [
        ({"runtime": "tensorrt-rtx", "runtime_version": "1.7.1.116"}, "no back end"),
        ({"stripped": True}, "does not refit"),
    ],
)
def test_engines_that_triton_can_not_serve(
    make_engine: Make, tmp_path: Path, differences: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UsageError, match=reason):
        write_triton_repository([make_engine(**differences)], tmp_path / "models")
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    "options, disabled, labels, activations, level",
    [
        ({}, (), {"a": "int8"}, "float", None),
        ({"session.qdq_matmulnbits_accuracy_level": "1"}, (), {"a": "int8"}, "float", 2),
        ({"session.qdq_matmulnbits_accuracy_level": "4"}, (), {"a": "int8"}, "dynamic", 2),
        ({"session.qdq_matmulnbits_accuracy_level": "1"}, (), {"a": "int4_g64"}, "float", 2),
        ({}, ("MatMulAddFusion",), {"a": "int8"}, "static", 2),
        ({"session.use_device_allocator_for_initializers": "1"}, (), {}, "float", None),
    ],
)
def test_settings_are_carried_or_optimizations_are_off(
    make_onnx: Make,
    tmp_path: Path,
    options: dict[str, str],
    disabled: tuple[str, ...],
    labels: dict[str, str],
    activations: str,
    level: int | None,
) -> None:
    onnx = make_onnx(
        "graph",
        activations=activations,
        graphs={"onnxruntime": GraphRecord("model.onnx", 21, options, disabled)},
        layers=LayerSummary(labels),
    )
    write_triton_repository([onnx], tmp_path / "models")
    config = read_config(tmp_path / "models" / "graph" / "config.pbtxt")
    assert (config.optimization.graph.level if config.HasField("optimization") else None) == level
    readme = (tmp_path / "models" / "README.md").read_text()
    assert ("optimizations are off" in readme) == (level == 2)
    passed = {k: v.string_value for k, v in config.parameters.items()}
    assert passed == {k: v for k, v in options.items() if "allocator" in k}


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"session.qdq_matmulnbits_accuracy_level": "4"}, "4-bit weights and dynamic"),
        ({"session.something": "1"}, r"can't pass on: session\.something"),
    ],
)
def test_settings_that_can_not_be_carried_are_refused(
    make_onnx: Make, tmp_path: Path, options: dict[str, str], reason: str
) -> None:
    onnx = make_onnx(
        "graph",
        activations="dynamic",
        graphs={"onnxruntime": GraphRecord("model.onnx", 21, options)},
        layers=LayerSummary({"a": "int4_g64"}),
    )
    with pytest.raises(UsageError, match=reason):
        write_triton_repository([onnx], tmp_path / "models")


def test_wrong_requests(onnx: Path, h200: Path, tmp_path: Path) -> None:
    out = tmp_path / "models"
    with pytest.raises(UsageError, match="no artifact"):
        write_triton_repository([], out)
    with pytest.raises(UsageError, match="one name for several"):
        write_triton_repository([onnx, h200], out, name="x")
    with pytest.raises(UsageError, match="0 instances"):
        write_triton_repository([h200], out, instances_per_gpu=0)
    with pytest.raises(UsageError, match="can't be a model's name"):
        write_triton_repository([h200], out, name="a/b")
    with pytest.raises(UsageError, match="two folders are called"):
        write_triton_repository([h200, h200], out)
    with pytest.raises(UsageError, match="unknown device"):
        write_triton_repository([h200], out, device="tpu")  # type: ignore[arg-type]
    (h200 / "model.engine").write_bytes(b"spoiled")
    with pytest.raises(ArtifactError, match="cut short"):
        write_triton_repository([h200], out)
    assert not out.exists()


def test_only_a_repository_of_ours_is_replaced(h200: Path, tmp_path: Path) -> None:
    out = tmp_path / "models"
    write_triton_repository([h200], out)
    with pytest.raises(ArtifactError, match="not empty"):
        write_triton_repository([h200], out)
    assert write_triton_repository([h200], out, name="b", overwrite=True) == ("b",)
    assert not (out / "vggt-h200").exists()
    (out / "vggt-deploy.json").unlink()
    with pytest.raises(ArtifactError, match="did not make it"):
        write_triton_repository([h200], out, overwrite=True)


def test_names_with_every_sign_survive_the_text_form(h200: Path, tmp_path: Path) -> None:
    config = model_config('a"b\\c', read_manifest(h200), instances=1, device="gpu")
    path = tmp_path / "config.pbtxt"
    path.write_text(render(config))
    assert read_config(path).name == 'a"b\\c'


def test_the_input_is_called_as_export_calls_it() -> None:
    assert INPUT_NAME == EXPORTED_INPUT
