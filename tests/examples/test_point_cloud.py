"""The quantizer on a network that is no VGGT: a point-cloud classifier, all the way.

float training -> PTQ and QAT -> QDQ ONNX -> ONNX Runtime. One small classifier is trained for the
module; chance is one in ten.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx_ir")
ort = pytest.importorskip("onnxruntime")

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # examples are no part of the package

from examples.point_cloud.network import PointClassifier  # noqa: E402
from examples.point_cloud.quantizing import (  # noqa: E402
    Ready,
    after_training,
    in_onnxruntime,
    with_training,
)
from examples.point_cloud.shapes import (  # noqa: E402
    NAMES,
    ORDERED,
    POINTS,
    Clouds,
    farthest_first,
    make_clouds,
)
from examples.point_cloud.train import Schedule, accuracy, in_torch, train  # noqa: E402
from vggt_deploy.errors import ArtifactError  # noqa: E402
from vggt_deploy.export.module import ModuleArtifact, open_module  # noqa: E402
from vggt_deploy.qat.fake import fake_layers, insert_fake  # noqa: E402
from vggt_deploy.quantize.apply import ModuleWeights  # noqa: E402
from vggt_deploy.quantize.methods import Method  # noqa: E402
from vggt_deploy.quantize.module import Searched  # noqa: E402
from vggt_deploy.quantize.plan import layers_in  # noqa: E402
from vggt_deploy.quantize.qparams import QuantizedTensor, quantize  # noqa: E402
from vggt_deploy.quantize.schemes import parse_format  # noqa: E402

Exported = Callable[[Ready, str], ModuleArtifact]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """The tensors are small, and equal bits want an equal order of sums."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def training() -> Clouds:
    return make_clouds(1600, seed=0)


@pytest.fixture(scope="module")
def unseen() -> Clouds:
    return make_clouds(600, seed=1)


@pytest.fixture(scope="module")
def model(training: Clouds) -> PointClassifier:
    torch.manual_seed(0)
    classifier = PointClassifier(len(NAMES))
    train(classifier, training, Schedule(epochs=8, rate=4e-3))
    return classifier


@pytest.fixture(scope="module")
def exported(unseen: Clouds, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Each variant's artifact, made once: a trace takes seconds."""
    made: dict[str, ModuleArtifact] = {}

    def export(ready: Ready, name: str) -> ModuleArtifact:
        if name not in made:
            made[name] = ready.export(unseen, tmp_path_factory.mktemp("point_cloud") / name)
        return made[name]

    return export


@pytest.fixture(scope="module")
def static(model: PointClassifier, training: Clouds) -> Ready:
    return after_training(model, "int8_pc_sym+static", training)


@pytest.fixture(scope="module")
def coarse(model: PointClassifier, training: Clouds) -> Ready:
    """4 bit with one scale for a whole weight: coarser than any scheme, so that it shows."""
    return after_training(model, "int4_g256", training, parse_format("int4_pt_sym"))


def test_the_classifier_learns(model: PointClassifier, unseen: Clouds) -> None:
    assert accuracy(in_torch(model), unseen) > 0.7
    torch.manual_seed(1)
    untrained = PointClassifier(len(NAMES)).eval()
    assert accuracy(in_torch(untrained), unseen) < 0.3


def test_static_int8_loses_little_and_onnx_runtime_computes_it(
    model: PointClassifier, static: Ready, unseen: Clouds, exported: Exported
) -> None:
    artifact = exported(static, "static")
    in_float = accuracy(in_torch(model), unseen)
    in_ort = accuracy(in_onnxruntime(artifact), unseen)
    assert in_ort > in_float - 0.03
    assert in_ort == pytest.approx(accuracy(in_torch(static.in_torch()), unseen), abs=0.02)
    _agree(static, artifact, unseen, 2e-2)
    assert set(artifact.record.graphs) == {"onnxruntime", "tensorrt"}


def test_four_bit_after_and_with_training(
    model: PointClassifier, coarse: Ready, training: Clouds, unseen: Clouds, exported: Exported
) -> None:
    trained = with_training(coarse, training, Schedule(epochs=2, rate=1e-3))
    artifact = exported(trained, "trained")
    in_float = accuracy(in_torch(model), unseen)
    before, after = (accuracy(in_torch(r.in_torch()), unseen) for r in (coarse, trained))
    assert 0.3 < before < in_float - 0.02
    assert after > (before + in_float) / 2  # at least half of what was lost
    assert accuracy(in_onnxruntime(artifact), unseen) == pytest.approx(after, abs=0.02)
    _agree(trained, artifact, unseen, 2e-2)


def test_fake_quantization_gives_the_bits_of_the_finished_integers(
    static: Ready, training: Clouds, unseen: Clouds
) -> None:
    few = dataclasses.replace(training, points=training.points[:96], labels=training.labels[:96])
    student = copy.deepcopy(static.model)
    insert_fake(student, static.formats, static.activations, static.integers, static.input_scales)
    train(student, few, Schedule(epochs=1, rate=1e-3))
    trained = with_training(static, few, Schedule(epochs=1, rate=1e-3))
    assert trained.input_scales != static.input_scales
    points = unseen.points[:8]
    fake, finished = in_torch(student)(points), in_torch(trained.in_torch())(points)
    np.testing.assert_array_equal(fake, finished)
    for _, layer in fake_layers(student):
        layer.enabled = False
    assert not np.array_equal(in_torch(student)(points), finished)


def _agree(ready: Ready, artifact: ModuleArtifact, clouds: Clouds, most: float) -> None:
    """Logits of PyTorch and of ONNX Runtime, relative to their size; a wrong scale is far off."""
    points = clouds.points[:64]
    want = in_torch(ready.in_torch())(points)
    got = in_onnxruntime(artifact)(points)
    assert np.linalg.norm(got - want) / np.linalg.norm(want) < most
    off = copy.deepcopy(ready.in_torch())
    off.get_submodule("second.group").scale.mul_(1.5)  # type: ignore[operator]
    assert np.linalg.norm(in_torch(off)(points) - got) / np.linalg.norm(want) > 2 * most


def test_the_graph_holds_the_integers_of_the_module(static: Ready, exported: Exported) -> None:
    import onnx

    artifact = exported(static, "static")
    graph = onnx.load(artifact.folder / "model.onnx").graph
    held = {tensor.name: tensor for tensor in graph.initializer}
    base = str(artifact.folder)
    for layer in layers_in(static.model):
        mine = static.integers.quantized(layer, static.formats[layer.name], "fp32")
        q = onnx.numpy_helper.to_array(held[f"{layer.name}.q"], base_dir=base)
        np.testing.assert_array_equal(q, mine.q.numpy().T)
        scale = onnx.numpy_helper.to_array(held[f"{layer.name}.input_scale"], base_dir=base)
        assert float(scale) == static.input_scales[layer.name]
    # Ten products in integers; distances between points are no layer's and stay float.
    rounded = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    assert 0 < len(rounded) <= len(layers_in(static.model))
    assert not [node for node in graph.node if node.op_type == "Gemm"]
    assert {node.name.partition("/")[0] for node in graph.node if node.op_type == "MatMul"} == {
        layer.name for layer in layers_in(static.model)
    }


def test_any_number_of_clouds(static: Ready, unseen: Clouds, exported: Exported) -> None:
    predict = in_onnxruntime(exported(static, "static"))
    assert predict(unseen.points[:1]).shape == (1, len(NAMES))
    assert predict(unseen.points[:7]).shape == (7, len(NAMES))
    np.testing.assert_allclose(
        predict(unseen.points[:7])[:1], predict(unseen.points[:1]), rtol=1e-3, atol=1e-3
    )


def test_a_changed_artifact_is_refused(static: Ready, exported: Exported, tmp_path: Path) -> None:
    artifact = exported(static, "static")
    assert open_module(artifact.folder).record == artifact.record
    for damage in ("weights", "record", "schema"):
        folder = tmp_path / damage
        folder.mkdir()
        for path in artifact.folder.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        if damage == "weights":
            content = bytearray((folder / "weights.bin").read_bytes())
            content[100] ^= 1
            (folder / "weights.bin").write_bytes(content)
        else:
            record = json.loads((folder / "module.json").read_text())
            if damage == "record":
                record["files"]["../elsewhere"] = record["files"].pop("weights.bin")
            else:
                record["schema"] = 99
            (folder / "module.json").write_text(json.dumps(record))
        with pytest.raises(ArtifactError):
            open_module(folder)
    with pytest.raises(ArtifactError, match=r"module\.json"):
        open_module(tmp_path)


def test_searched_ranges_are_no_worse_than_the_largest_weight(model: PointClassifier) -> None:
    source = ModuleWeights(model)
    form = parse_format("int4_g64")
    closer = 0
    for layer in layers_in(model):
        weight = source.load(f"{layer.name}.weight")
        plain = _error(weight, quantize(weight, form))
        found = _error(weight, Searched(source, Method("mse")).quantized(layer, form, "fp32"))
        assert found <= plain * (1 + 1e-6)
        closer += found < 0.98 * plain
    assert closer > 5


def _error(weight: torch.Tensor, quantized: QuantizedTensor) -> float:
    from vggt_deploy.quantize.qparams import dequantize

    return float((dequantize(quantized) - weight).square().sum())


def test_clouds_begin_with_a_spread_sample() -> None:
    clouds = make_clouds(40, seed=3)
    assert clouds.points.shape == (40, POINTS, 3)
    assert sorted(np.bincount(clouds.labels)) == [4] * len(NAMES)
    np.testing.assert_array_equal(clouds.points, make_clouds(40, seed=3).points)
    assert not np.array_equal(clouds.points, make_clouds(40, seed=4).points)
    # The nearest two of a spread sample are much further apart than those of a random one.
    spread, random = (_closest(clouds.points[:, part]) for part in (np.s_[:32], np.s_[32:64]))
    assert np.median(spread) > 2 * np.median(random)


def test_farthest_first_on_a_line() -> None:
    line = np.array([[[0, 0, 0], [1, 0, 0], [10, 0, 0], [4, 0, 0], [9, 0, 0]]], np.float32)
    ordered = farthest_first(line, 3)[0, :, 0]
    assert ordered[:3].tolist() == [0, 10, 4]
    assert sorted(ordered.tolist()) == [0, 1, 4, 9, 10]
    assert ORDERED <= POINTS


def _closest(points: np.ndarray) -> np.ndarray:
    away = np.linalg.norm(points[:, :, None] - points[:, None], axis=-1)
    away[:, np.arange(away.shape[1]), np.arange(away.shape[1])] = np.inf
    return away.min((1, 2))
