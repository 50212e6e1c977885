from __future__ import annotations

import csv
import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from plane_scenes import render_plane
from safetensors import safe_open
from safetensors.torch import load_file

from vggt_deploy.errors import ArtifactError, RuntimeUnavailableError, UsageError
from vggt_deploy.model.config import get_config
from vggt_deploy.model.weights import load_model
from vggt_deploy.train import evaluate as evaluate_module
from vggt_deploy.train import loop, pipeline, pretrain
from vggt_deploy.train.batches import Batch, Scenes, plain_batch
from vggt_deploy.train.centre import centre_camera_tokens
from vggt_deploy.train.evaluate import Scores
from vggt_deploy.train.initial import TRAINED_HEADS, initial_model
from vggt_deploy.train.loop import (
    MOST_SKIPPED,
    Trainer,
    TrainingError,
    learning_rate,
    make_optimizer,
)
from vggt_deploy.train.pipeline import TrainResult, train, training_device
from vggt_deploy.train.pool import ScenePool
from vggt_deploy.train.recipe import TrainingRecipe, load_recipe, recipe_toml
from vggt_deploy.train.scoring import single_threads
from vggt_deploy.train.state import CHECKPOINT_FILE, LOG_FILE, load_checkpoint

Train = Callable[..., TrainResult]


@pytest.fixture
def quick(
    tiny_recipe: TrainingRecipe, tiny_pool: ScenePool, monkeypatch: pytest.MonkeyPatch
) -> Train:
    """`quick(run, resume=..., steps=..., progress=...)`: a training of seconds."""
    monkeypatch.setattr(pipeline, "ensure_pool", lambda *_, **__: tiny_pool)
    monkeypatch.setattr(pipeline, "VALIDATION_SCENES", 2)
    monkeypatch.setattr(evaluate_module, "CANDIDATES", 2)
    for stage in (loop, pretrain):
        monkeypatch.setattr(stage, "LOG_STEPS", 2)
        monkeypatch.setattr(stage, "CHECKPOINT_STEPS", 3)
    monkeypatch.setattr(loop, "SCORE_STEPS", 4)

    def run_training(run: Path, **options: object) -> TrainResult:
        recipe = options.pop("recipe", tiny_recipe)
        assert isinstance(recipe, TrainingRecipe)
        settings = {"threads": 1, "render": render_plane, "scored_scenes": 1, **options}
        return train(recipe, run.parent / "cache", run, **settings)  # type: ignore[arg-type]

    return run_training


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Of the last checkpoint, which are not rounded."""
    content = torch.load(run / CHECKPOINT_FILE, weights_only=True)
    return {
        key.removeprefix("model."): value
        for key, value in content["model"].items()
        if key.startswith("model.")
    }


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def stop_at(step: int, wanted: str = "train") -> Callable[[str, int, int], None]:
    def progress(stage: str, done: int, total: int) -> None:
        del total
        if stage == wanted and done == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return progress


def test_a_stopped_training_goes_on_to_the_same_bits(tmp_path: Path, quick: Train) -> None:
    """SIGTERM after 4 of 6 steps leaves a checkpoint of step 4; two threads take it to the end."""
    quick(tmp_path / "whole")
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        quick(tmp_path / "stopped", progress=stop_at(4))
    assert signal.getsignal(signal.SIGTERM) is before
    assert torch.load(tmp_path / "stopped" / CHECKPOINT_FILE, weights_only=True)["step"] == 4
    assert not (tmp_path / "stopped" / "model.safetensors").exists()
    assert not same(weights(tmp_path / "whole"), weights(tmp_path / "stopped"))
    quick(tmp_path / "stopped", resume=True, threads=2)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "stopped"))
    for name in ("model.safetensors", "scores.json", "training.toml"):
        whole, resumed = (tmp_path / run / name for run in ("whole", "stopped"))
        assert whole.read_bytes() == resumed.read_bytes(), name
    assert logged(tmp_path / "whole") == logged(tmp_path / "stopped")


def test_a_training_stopped_in_the_encoder_goes_on_to_the_same_bits(
    tmp_path: Path, quick: Train
) -> None:
    quick(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        quick(tmp_path / "stopped", progress=stop_at(2, "encoder"))
    assert not (tmp_path / "stopped" / CHECKPOINT_FILE).exists()
    with pytest.raises(ArtifactError, match="add --resume to go on"):
        quick(tmp_path / "stopped")
    quick(tmp_path / "stopped", resume=True)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "stopped"))
    encoder = "encoder_log.csv"
    assert logged(tmp_path / "whole", encoder) == logged(tmp_path / "stopped", encoder)


def logged(run: Path, name: str = LOG_FILE) -> list[dict[str, str]]:
    """The log without the speed, which is the machine's."""
    with (run / name).open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        assert float(row.pop("frames_per_second")) > 0
    return rows


def test_what_a_run_leaves_behind(
    tmp_path: Path, quick: Train, tiny_recipe: TrainingRecipe
) -> None:
    run = tmp_path / "run"
    result = quick(run)
    assert {path.name for path in run.iterdir()} == {
        "checkpoint.pt",
        "encoder_checkpoint.pt",
        "encoder_log.csv",
        "model.safetensors",
        "scores.json",
        "training.toml",
        "training_log.csv",
    }
    assert load_recipe(run / "training.toml") == tiny_recipe
    assert Scores.from_json((run / "scores.json").read_text()) == result.scores
    rows = logged(run)
    assert [row["step"] for row in rows] == ["2", "4", "6"]
    assert [bool(row["auc_30"]) for row in rows] == [False, True, True]
    with safe_open(run / "model.safetensors", framework="pt") as file:
        training = json.loads(file.metadata()["training"])
        assert (training["steps"], training["recipe"]) == (6, recipe_toml(tiny_recipe))
    trained = weights(run)
    for key, value in load_file(run / "model.safetensors").items():
        assert value.dtype == torch.float16
        torch.testing.assert_close(value.float(), trained[key], rtol=1e-3, atol=1e-6)
    model = load_model(run, "vggt-tiny", heads=TRAINED_HEADS)
    assert torch.isfinite(model(torch.rand(2, 3, 42, 56))["pose_enc"]).all()


def test_a_folder_with_a_run_is_not_written_over(tmp_path: Path, quick: Train) -> None:
    run = tmp_path / "run"
    with pytest.raises(ArtifactError, match="holds no checkpoint"):
        quick(run, resume=True)
    with pytest.raises(KeyboardInterrupt):
        quick(run, progress=stop_at(1))
    held = (run / CHECKPOINT_FILE).read_bytes()
    with pytest.raises(ArtifactError, match="add --resume to go on"):
        quick(run)
    assert (run / CHECKPOINT_FILE).read_bytes() == held


def test_a_checkpoint_is_for_its_own_recipe(
    tmp_path: Path, quick: Train, tiny_recipe: TrainingRecipe
) -> None:
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        quick(run, progress=stop_at(1))
    assert load_checkpoint(run, tiny_recipe).step == 1
    with pytest.raises(ArtifactError, match="it has 'steps = 6', not 'steps = 7'"):
        quick(run, resume=True, recipe=replace(tiny_recipe, steps=7))
    content = (run / CHECKPOINT_FILE).read_bytes()
    (run / CHECKPOINT_FILE).write_bytes(content[: len(content) // 2])
    with pytest.raises(ArtifactError, match="is damaged"):
        quick(run, resume=True)


def test_lines_after_the_checkpoint_are_written_again(tmp_path: Path, quick: Train) -> None:
    """A run that was killed had logged more than its checkpoint knows."""
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        quick(run, progress=stop_at(3))
    with (run / LOG_FILE).open("a") as file:
        file.write("4,9,9,9,9,9,9,0,9,,,,,\n")
    quick(run, resume=True)
    rows = logged(run)
    assert [row["step"] for row in rows] == ["2", "4", "6"]
    assert rows[1]["total"] != "9"


@pytest.fixture
def trainer(tiny_recipe: TrainingRecipe, tiny_pool: ScenePool) -> Trainer:
    model = initial_model(get_config("vggt-tiny"), tiny_recipe.initial, 0)
    return Trainer(model, tiny_recipe, tiny_pool)


def test_one_batch_is_learnt(trainer: Trainer, tiny_pool: ScenePool) -> None:
    """The same two scenes again and again: poses, depth and points all get better."""
    batch = plain_batch(
        Scenes(
            tiny_pool.images[:2, :3],
            tiny_pool.depth[:2, :3].astype(np.float32),
            tiny_pool.extrinsic[:2, :3],
            tiny_pool.intrinsic[:2, :3],
        )
    )
    before = np.array(trainer.shard_result(batch).losses)[:4]  # nothing to match in a plain batch
    for group in trainer.optimizer.param_groups:
        group["lr"] = 2e-3
    for _ in range(60):
        learn(trainer, batch, 1)
    after = np.array(trainer.shard_result(batch).losses)[:4]
    assert (after < 0.6 * before).all(), (before, after)


def test_the_sign_of_the_loss(trainer: Trainer, tiny_pool: ScenePool) -> None:
    """The twin: against the gradient everything gets worse."""
    batch = plain_batch(
        Scenes(
            tiny_pool.images[:2, :3],
            tiny_pool.depth[:2, :3].astype(np.float32),
            tiny_pool.extrinsic[:2, :3],
            tiny_pool.intrinsic[:2, :3],
        )
    )
    before = trainer.shard_result(batch).losses[0]
    for group in trainer.optimizer.param_groups:
        group["lr"] = 1e-4
    for _ in range(3):
        learn(trainer, batch, -1)
    assert trainer.shard_result(batch).losses[0] > before


def learn(trainer: Trainer, batch: Batch, sign: int) -> None:
    gradients = trainer.shard_result(batch).gradients
    for parameter, gradient in zip(trainer.parameters, gradients, strict=True):
        parameter.grad = sign * gradient
    trainer.optimizer.step()


def test_the_gradient_of_a_step_is_the_mean_of_its_shards(trainer: Trainer) -> None:
    """Seen in the first moment of AdamW, which is (1 - beta1) times the clipped gradient."""
    shards = [trainer._shard(k) for k in range(2)]
    gradients = [a + b for a, b in zip(*(s.gradients for s in shards), strict=True)]
    norm = torch.sqrt(sum((g**2).sum() for g in gradients))  # type: ignore[arg-type]
    scale = min(1.0, float(trainer.recipe.optimizer.clip_norm / norm))
    with single_threads(2) as executor:
        trainer.train_step(executor)
    # Also those of convolutions and tokens, which autograd lays out differently in memory.
    for parameter, gradient in zip(trainer.parameters, gradients, strict=True):
        moment = trainer.optimizer.state[parameter]["exp_avg"]
        expected = (1 - trainer.recipe.optimizer.beta1) * scale * gradient
        torch.testing.assert_close(moment, expected, rtol=1e-3, atol=1e-9)
    assert trainer.window.gradient_norm == pytest.approx(float(norm), rel=1e-4)
    assert trainer.window.total == pytest.approx(
        (shards[0].losses[0] + shards[1].losses[0]) / 2, rel=1e-5
    )


def test_a_step_that_is_not_finite_is_left_out(
    trainer: Trainer, caplog: pytest.LogCaptureFixture
) -> None:
    poisoned = trainer.parameters[0]
    with torch.no_grad():
        kept = poisoned.clone()
        poisoned[:] = float("nan")
    others = [parameter.detach().clone() for parameter in trainer.parameters[1:]]
    with single_threads(2) as executor:
        trainer.train_step(executor)
        assert trainer.window.skipped == 1
        assert trainer.window.steps == 0
        assert "step 0 left out" in caplog.text
        assert all(torch.equal(a, b) for a, b in zip(others, trainer.parameters[1:], strict=True))
        with torch.no_grad():
            poisoned[:] = kept
        trainer.train_step(executor)
        assert trainer.window.skipped_in_row == 0
        assert trainer.window.steps == 1
        assert trainer.step == 2
        with torch.no_grad():
            poisoned[:] = float("nan")
        trainer.window.skipped_in_row = MOST_SKIPPED - 2
        trainer.train_step(executor)
        with pytest.raises(TrainingError, match="20 steps in a row"):
            trainer.train_step(executor)


def test_the_learning_rate_warms_up_and_falls(tiny_recipe: TrainingRecipe) -> None:
    recipe = replace(tiny_recipe.optimizer, peak=1.0, final=0.1, warmup_steps=10)
    rates = [learning_rate(recipe, step, 110) for step in range(111)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == pytest.approx(1.0)
    assert rates[60] == pytest.approx(0.55)
    assert rates[110] == pytest.approx(0.1)
    assert all(a > b for a, b in pairwise(rates[10:]))


def test_only_weights_of_products_decay(tiny_recipe: TrainingRecipe) -> None:
    model = initial_model(get_config("vggt-tiny"), tiny_recipe.initial, 0)
    named = list(model.named_parameters())
    recipe = replace(tiny_recipe.optimizer, weight_decay=0.07)
    group_of = {
        id(parameter): group
        for group in make_optimizer(named, recipe).param_groups
        for parameter in group["params"]
    }
    assert len(group_of) == len(named)
    decaying = set()
    for name, parameter in named:
        group = group_of[id(parameter)]
        assert group["weight_decay"] in (0.0, 0.07)
        if group["weight_decay"]:
            decaying.add(name)
            assert parameter.dim() >= 2
            assert "token" not in name
            assert not name.endswith(("pos_embed", "gamma", "bias"))
    assert "aggregator.frame_blocks.0.attn.qkv.weight" in decaying
    assert "camera_head.embed_pose.weight" in decaying
    assert "depth_head.scratch.output_conv1.weight" in decaying
    assert "aggregator.frame_blocks.0.norm1.weight" not in decaying


def test_a_step_takes_its_rate(trainer: Trainer) -> None:
    with single_threads(1) as executor:
        trainer.train_step(executor)
    rate = learning_rate(trainer.recipe.optimizer, 0, trainer.recipe.steps)
    assert {group["lr"] for group in trainer.optimizer.param_groups} == {rate}


def camera_tokens(trainer: Trainer, step: int) -> torch.Tensor:
    """What the camera head's first norm makes of the tokens of a step's scenes."""
    batch = loop.training_batch(trainer.pool, trainer.recipe, step, 0)
    model, last = trainer.model, trainer.model.config.depth - 1
    with torch.no_grad():
        images = torch.from_numpy(batch.images)
        layers = model.aggregator(images, trainer._forward.fields(), frozenset({last}))
        normed: torch.Tensor = model.camera_head.token_norm(layers[last][:, 0])
    return normed


def test_the_camera_head_begins_with_tokens_that_differ(
    tiny_recipe: TrainingRecipe, tiny_pool: ScenePool
) -> None:
    """Until pose_from the head does not move; then its norm is set, and it learns."""
    recipe = replace(
        tiny_recipe,
        loss=replace(tiny_recipe.loss, pose_from=0.5),
        optimizer=replace(tiny_recipe.optimizer, weight_decay=0.0),
    )
    model = initial_model(get_config("vggt-tiny"), recipe.initial, 0)
    trainer = Trainer(model, recipe, tiny_pool)
    head = {name: value.clone() for name, value in model.camera_head.state_dict().items()}
    with single_threads(1) as executor:
        for _ in range(3):
            trainer.train_step(executor)
        for name, value in model.camera_head.state_dict().items():
            assert torch.equal(value, head[name]), name
        trainer.train_step(executor)
    after = model.camera_head.state_dict()
    assert not torch.equal(after["pose_branch.fc2.weight"], head["pose_branch.fc2.weight"])
    moved = (after["token_norm.weight"] - head["token_norm.weight"]).abs().mean()
    assert moved > 10 * recipe.optimizer.peak  # no step of the optimizer goes so far


def test_centred_camera_tokens_have_mean_zero_and_deviation_one(
    trainer: Trainer, tiny_recipe: TrainingRecipe, tiny_pool: ScenePool
) -> None:
    steps = [max(0, step) for step in range(tiny_recipe.steps - 12, tiny_recipe.steps)]

    def tokens() -> torch.Tensor:
        return torch.cat([camera_tokens(trainer, step) for step in steps])

    assert tokens().mean(dim=0).abs().mean() > 0.1
    centre_camera_tokens(trainer._forward, tiny_pool, tiny_recipe)
    assert tokens().mean(dim=0).abs().max() < 1e-4
    deviation = tokens().std(dim=0)
    assert deviation.max() < 1 + 1e-4
    assert (deviation > 1 - 1e-4).float().mean() > 0.8  # the others hardly change at all


def test_a_device_that_is_not_there_is_refused() -> None:
    assert training_device("cpu") == "cpu"
    assert training_device(None) == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(UsageError, match="unknown device"):
        training_device("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeUnavailableError, match="no CUDA device"):
            training_device("cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_step_on_a_gpu_is_the_step_on_the_cpu(
    tiny_pool: ScenePool, tiny_recipe: TrainingRecipe
) -> None:
    recipe = replace(tiny_recipe, precision="fp32")
    weights = {}
    for device in ("cpu", "cuda"):
        model = initial_model(get_config(recipe.config), recipe.initial, recipe.seed).to(device)
        trainer = Trainer(model, recipe, tiny_pool)
        with single_threads(1) as executor:
            losses = trainer.shard_result(loop.training_batch(tiny_pool, recipe, 0, 0)).losses
            trainer.train_step(executor)
        weights[device] = losses, model.aggregator.camera_token.detach().cpu()
    assert np.allclose(weights["cpu"][0], weights["cuda"][0], rtol=1e-3)
    assert torch.allclose(weights["cpu"][1], weights["cuda"][1], atol=1e-5)
