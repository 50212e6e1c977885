"""`qat` from pictures to a prepared folder: the same bits everywhere, interruptions, refusals."""

from __future__ import annotations

import csv
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vggt_deploy.cli import app
from vggt_deploy.engines.onnxruntime import open_onnxruntime
from vggt_deploy.errors import ArtifactError, UsageError
from vggt_deploy.export import export
from vggt_deploy.manifest import read_manifest
from vggt_deploy.model.fold import FoldedWeights
from vggt_deploy.model.weights import open_weights
from vggt_deploy.qat import loop, pipeline
from vggt_deploy.qat.fake import insert_fake
from vggt_deploy.qat.pipeline import QatRequest, QatResult, folded_model, qat
from vggt_deploy.qat.recipe import QatRecipe, changed_recipe
from vggt_deploy.qat.state import CHECKPOINT_FILE, LOG_FILE
from vggt_deploy.quantize.apply import build_quantized
from vggt_deploy.quantize.plan import layers_in
from vggt_deploy.quantize.prepared import RECORD_NAME, read_prepared
from vggt_deploy.quantize.schemes import parse_label
from vggt_deploy.train.initial import TRAINED_HEADS
from vggt_deploy.train.loop import MOST_SKIPPED, TrainingError
from vggt_deploy.train.recipe import recipe_toml

MODEL = "random:vggt-tiny"
HEIGHT, WIDTH = 42, 56
Run = Callable[..., QatResult]


def quick(
    scenes: Path, recipe: QatRecipe, run: Path, label: str = "int4_g32", **options: Any
) -> QatResult:
    fields = {
        key: options.pop(key)
        for key in ("model", "images", "calibrate", "mode", "include", "exclude")
        if key in options
    }
    request = QatRequest(
        fields.pop("model", MODEL),
        parse_label(label),
        scenes=() if "images" in fields else (scenes,),
        height=HEIGHT,
        width=WIDTH,
        **fields,
    )
    return qat(request, recipe, run, threads=1, device="cpu", **options)


def student_of(run: Path, label: str) -> torch.nn.Module:
    """The network with fake quantization as the last checkpoint has it."""
    config, source = open_weights(MODEL)
    model = folded_model(config, FoldedWeights(source, config))
    asked, prepared = parse_label(label), read_prepared(run)
    formats = prepared.formats_of(layers_in(model))
    insert_fake(model, formats, asked.activations, None, prepared.record.input_scales)
    content = torch.load(run / CHECKPOINT_FILE, weights_only=True)
    model.load_state_dict(content["model"])
    return model.eval()


def outputs(model: torch.nn.Module, images: Tensor) -> dict[str, Tensor]:
    with torch.no_grad():
        found = model(images)
    return {key: found[key] for key in ("pose_enc", "depth", "world_points", "depth_conf")}


def pictures(seed: int = 5) -> Tensor:
    return torch.rand(1, 3, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, scene_folder: Path, qat_recipe: QatRecipe
) -> Path:
    run = tmp_path_factory.mktemp("trained") / "run"
    quick(scene_folder, changed_recipe(qat_recipe, learning_rate=1e-3), run)
    return run


def test_what_was_trained_lands_bit_exactly(trained: Path) -> None:
    """Fake quantization in torch, the PyTorch variant of the folder: equal to the last bit."""
    config, source = open_weights(MODEL)
    folded, prepared = FoldedWeights(source, config), read_prepared(trained)
    images = pictures()
    built = build_quantized(
        config, folded, parse_label("int4_g32").scheme, heads=TRAINED_HEADS, prepared=prepared
    )
    fake, real = outputs(student_of(trained, "int4_g32"), images), outputs(built, images)
    assert all(torch.equal(fake[key], real[key]) for key in fake)
    rounded = build_quantized(config, folded, parse_label("int4_g32").scheme, heads=TRAINED_HEADS)
    plain = outputs(rounded, images)
    assert not any(torch.equal(fake[key], plain[key]) for key in fake)


def test_onnx_runtime_computes_what_was_trained(trained: Path, tmp_path: Path) -> None:
    folder = export(
        MODEL, prepared=trained, output_dir=tmp_path / "a", height=HEIGHT, width=WIDTH
    ).folder
    images = pictures()
    session = open_onnxruntime(folder, read_manifest(folder), provider="cpu", threads=1)
    found = session.run(images.numpy())
    wanted = outputs(student_of(trained, "int4_g32"), images)
    config, source = open_weights(MODEL)
    plain = outputs(folded_model(config, FoldedWeights(source, config)), images)

    def off(key: str, other: dict[str, Tensor]) -> float:
        mine = np.asarray(found[key]).reshape(-1)
        theirs = other[key].numpy().reshape(-1)
        return float(np.linalg.norm(mine - theirs) / np.linalg.norm(theirs))

    for key in ("pose_enc", "depth", "world_points"):
        error = off(key, wanted)
        assert error < 1e-4
        assert off(key, plain) > 10 * error  # FP32 is something else


@pytest.mark.parametrize("label", ["int4_g32+dynamic", "int8_pc_sym+static"])
def test_activations_land_bit_exactly(
    label: str, scene_folder: Path, qat_recipe: QatRecipe, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    calibrate = scene_folder / "scene_40"
    quick(scene_folder, replace(qat_recipe, epochs=2.0), run, label, calibrate=calibrate)
    config, source = open_weights(MODEL)
    prepared, asked = read_prepared(run), parse_label(label)
    assert bool(prepared.record.input_scales) == (asked.activations == "static")
    built = build_quantized(
        config,
        FoldedWeights(source, config),
        asked.scheme,
        activations=asked.activations,
        heads=TRAINED_HEADS,
        prepared=prepared,
    )
    images = pictures()
    fake, real = outputs(student_of(run, label), images), outputs(built, images)
    assert all(torch.equal(fake[key], real[key]) for key in fake)


def test_the_record_and_the_log(trained: Path, qat_recipe: QatRecipe) -> None:
    record = read_prepared(trained).record
    assert (record.made_by, record.label, record.precision) == ("qat", "int4_g32", "fp32")
    assert record.choices["qat"]["steps"] == 6
    assert len(record.images) == 12
    with (trained / LOG_FILE).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["1", "6"]
    before, after = (float(row["probe_loss"]) for row in rows)
    assert before == pytest.approx(record.choices["qat"]["probe_before"], rel=1e-5)
    assert after == pytest.approx(record.choices["qat"]["probe_after"], rel=1e-5)
    # The one float step: the student is the teacher.
    assert float(rows[0]["total"]) == 0.0
    assert float(rows[1]["total"]) > 0.0
    changed = changed_recipe(qat_recipe, learning_rate=1e-3)
    assert (trained / "qat.toml").read_text() == recipe_toml(changed)


def test_it_learns(scene_folder: Path, qat_recipe: QatRecipe, tmp_path: Path) -> None:
    longer = changed_recipe(qat_recipe, epochs=20.0, learning_rate=1e-3)
    result = quick(scene_folder, longer, tmp_path / "run")
    assert result.probe_after < 0.8 * result.probe_before


def stop_at(step: int) -> Callable[[str, int, int], None]:
    def progress(stage: str, done: int, total: int) -> None:
        del total
        if stage == "qat" and done == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return progress


def tensors(run: Path) -> dict[str, Tensor]:
    content: dict[str, Tensor] = torch.load(run / CHECKPOINT_FILE, weights_only=True)["model"]
    return content


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_stopped_run_goes_on_to_the_same_bits(
    trained: Path, scene_folder: Path, qat_recipe: QatRecipe, tmp_path: Path
) -> None:
    recipe, run = changed_recipe(qat_recipe, learning_rate=1e-3), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        quick(scene_folder, recipe, run, progress=stop_at(3))
    assert torch.load(run / CHECKPOINT_FILE, weights_only=True)["step"] == 3
    assert not (run / RECORD_NAME).exists()
    assert not same(tensors(run), tensors(trained))
    with pytest.raises(ArtifactError, match="add --resume"):
        quick(scene_folder, recipe, run)
    quick(scene_folder, recipe, run, resume=True)
    assert same(tensors(run), tensors(trained))
    mine, other = read_prepared(run).record, read_prepared(trained).record
    assert mine.tensors_sha256 == other.tensors_sha256
    # The same lines, but for how long they took.
    kept = [
        [row | {"frames_per_second": ""} for row in csv.DictReader((one / LOG_FILE).open())]
        for one in (run, trained)
    ]
    assert [row["step"] for row in kept[0]] == [row["step"] for row in kept[1]]
    assert kept[0][-1]["probe_loss"] == kept[1][-1]["probe_loss"]


def test_threads_change_nothing(
    trained: Path, scene_folder: Path, qat_recipe: QatRecipe, tmp_path: Path
) -> None:
    request = QatRequest(
        MODEL, parse_label("int4_g32"), scenes=(scene_folder,), height=HEIGHT, width=WIDTH
    )
    recipe = changed_recipe(qat_recipe, learning_rate=1e-3)
    qat(request, recipe, tmp_path / "run", threads=2, device="cpu")
    assert same(tensors(tmp_path / "run"), tensors(trained))


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"label": "int8_pc_sym"}, "its scheme has 'int4_g32', not 'int8_pc_sym'"),
        ({"model": "random:vggt-tiny:3"}, "its model has"),
        ({"exclude": ("camera_head.*",)}, "its layers has"),
        ({"recipe": {"epochs": 9.0}}, "its recipe has 'epochs = 4.0', not 'epochs = 9.0'"),
        ({"images": "scene_40"}, "its pictures has"),
    ],
)
def test_only_the_same_run_is_resumed(
    change: dict[str, Any],
    problem: str,
    trained: Path,
    scene_folder: Path,
    qat_recipe: QatRecipe,
) -> None:
    recipe = changed_recipe(qat_recipe, **{"learning_rate": 1e-3, **change.pop("recipe", {})})
    if "images" in change:
        change = {"images": scene_folder / change["images"]}
    with pytest.raises(ArtifactError, match=problem):
        quick(scene_folder, recipe, trained, resume=True, **change)


def test_a_damaged_checkpoint(
    trained: Path, scene_folder: Path, qat_recipe: QatRecipe, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    recipe = changed_recipe(qat_recipe, learning_rate=1e-3)
    with pytest.raises(ArtifactError, match=r"holds no qat_checkpoint\.pt"):
        quick(scene_folder, recipe, run, resume=True)
    whole = (trained / CHECKPOINT_FILE).read_bytes()
    (run / CHECKPOINT_FILE).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtifactError, match="is damaged"):
        quick(scene_folder, recipe, run, resume=True)


def test_requests_that_make_no_sense(
    scene_folder: Path, qat_recipe: QatRecipe, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="has no integers to train"):
        quick(scene_folder, qat_recipe, tmp_path / "a", "fp16")
    with pytest.raises(UsageError, match="looks at pictures before the training"):
        quick(scene_folder, qat_recipe, tmp_path / "b", "int8_pc_sym+static")
    with pytest.raises(UsageError, match="both one scene"):
        qat(
            QatRequest(MODEL, parse_label("int4_g32"), images=scene_folder, scenes=(scene_folder,)),
            qat_recipe,
            tmp_path / "c",
        )
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in sorted((scene_folder / "scene_40").rglob("*.JPG")):
        (bare / path.name).write_bytes(path.read_bytes())
    with pytest.raises(UsageError, match="no scene has true cameras"):
        quick(
            scene_folder,
            changed_recipe(qat_recipe, task_loss=1.0),
            tmp_path / "d",
            images=bare,
        )


def test_the_task_loss_counts(
    trained: Path, scene_folder: Path, qat_recipe: QatRecipe, tmp_path: Path
) -> None:
    recipe = changed_recipe(qat_recipe, learning_rate=1e-3, task_loss=0.5)
    quick(scene_folder, recipe, tmp_path / "run")
    assert not same(tensors(tmp_path / "run"), tensors(trained))
    with (tmp_path / "run" / LOG_FILE).open(newline="") as file:
        assert all(float(row["task"]) != 0.0 for row in csv.DictReader(file))


def test_losses_that_are_not_finite_end_it(
    scene_folder: Path, qat_recipe: QatRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loop.distill_losses
    monkeypatch.setattr(loop, "distill_losses", lambda *given: real(*given) * float("nan"))
    with pytest.raises(TrainingError, match=f"{MOST_SKIPPED} steps in a row"):
        quick(scene_folder, replace(qat_recipe, epochs=40.0), tmp_path / "run")


def test_the_command(scene_folder: Path, qat_recipe: QatRecipe, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    settings = tmp_path / "settings.toml"
    settings.write_text(recipe_toml(qat_recipe))
    words = [
        "qat", "--scheme", "int4_g32+dynamic", "--model", MODEL, "--images", str(scene_folder),
        "-o", str(tmp_path / "run"), "--epochs", "1", "--settings", str(settings), "--height",
        str(HEIGHT), "--width", str(WIDTH), "--device", "cpu", "--threads", "1",
    ]  # fmt: skip
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "int4_g32+dynamic, 2 steps on cpu" in result.output
    assert f"--prepared {tmp_path / 'run'}" in result.output
    assert read_prepared(tmp_path / "run").record.label == "int4_g32+dynamic"
    assert CliRunner().invoke(app, words).exit_code == 1  # the folder is not empty
    assert CliRunner().invoke(app, ["qat", "-o", "x"]).exit_code == 2
    assert pipeline.RECIPE_FILE == "qat.toml"
