from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from plane_scenes import render_plane
from typer.testing import CliRunner

from vggt_deploy.cli import app
from vggt_deploy.compare.truth import truth_metrics
from vggt_deploy.errors import ArtifactError, UsageError
from vggt_deploy.train import evaluate as evaluate_module
from vggt_deploy.train.baseline import constant_prediction, median_depth
from vggt_deploy.train.evaluate import Scores, evaluate
from vggt_deploy.train.recipe import SceneRecipe
from vggt_deploy.train.scoring import SceneTruth

SIZE = SceneRecipe(count=1, views=4, height=28, width=42)


@pytest.fixture
def scenes() -> list[SceneTruth]:
    return [SceneTruth.of(render_plane(seed, SIZE)) for seed in range(6)]


def test_the_constant_answer_is_the_path_that_suits_best(scenes: list[SceneTruth]) -> None:
    """Where one of the candidates is the truth, it is found, and its poses are perfect."""
    constant = constant_prediction(scenes, [scenes[3]])
    assert constant.scene == 3
    metrics = truth_metrics(constant.outputs, scenes[3])
    assert metrics.pose is not None
    assert metrics.pose.auc_3 == pytest.approx(100, abs=1e-3)
    other = truth_metrics(constant.outputs, scenes[4])
    assert other.pose is not None
    assert other.pose.auc_3 < 60
    without = constant_prediction([*scenes[:3], *scenes[4:]], [scenes[3]])
    assert truth_metrics(without.outputs, scenes[3]).pose != metrics.pose


def test_the_points_of_the_constant_fit_its_depth_and_path(scenes: list[SceneTruth]) -> None:
    """Scenes that are all alike: the constant is the truth, up to scale and half a pixel."""
    constant = constant_prediction([scenes[0]] * 3, [scenes[0]])
    metrics = truth_metrics(constant.outputs, scenes[0])
    assert metrics.depth is not None
    assert metrics.points is not None
    # The depth map is the median over the views, so it is not any one of them.
    assert metrics.depth.abs_rel < 0.1
    assert metrics.points.median_relative < 0.1
    stretched = {**constant.outputs, "world_points": constant.outputs["world_points"] * [1, 1, 2]}
    worse = truth_metrics(stretched, scenes[0]).points
    assert worse is not None
    assert worse.median_relative > 1.5 * metrics.points.median_relative


def test_the_median_leaves_out_what_is_not_known() -> None:
    scene = SceneTruth.of(render_plane(0, SIZE))
    depth = np.full((3, 2, 2), 4.0, np.float32)
    depth[:, 0, 0] = (2, 8, np.inf)
    depth[:, 1, 1] = np.inf
    found = median_depth([replace(scene, depth=depth)])
    np.testing.assert_allclose(found, [[(0.5 + 2) / 2, 1], [1, 1]])


@pytest.fixture
def quick_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate_module, "CANDIDATES", 3)


@pytest.mark.usefixtures("quick_scores")
def test_scores_do_not_depend_on_threads_and_come_back(tmp_path: Path) -> None:
    options = {"scenes": 2, "size": (28, 42)}
    first = evaluate("random:vggt-tiny", threads=1, output_dir=tmp_path, **options)  # type: ignore[arg-type]
    again = evaluate("random:vggt-tiny", threads=2, **options)  # type: ignore[arg-type]
    assert first == again
    other = evaluate("random:vggt-tiny:1", threads=1, **options)  # type: ignore[arg-type]
    assert other.sets[0].model != first.sets[0].model
    assert other.sets[0].constant == first.sets[0].constant
    assert [one.name for one in first.sets] == ["unseen", "held-out"]
    assert all(one.model.scenes == 2 for one in first.sets)
    text = (tmp_path / "scores.json").read_text()
    assert Scores.from_json(text) == first
    for broken, said in (
        (text[:-4], "scores"),
        (text.replace('"views"', '"view"'), "unknown field 'view'"),
        (text.replace('"schema": 2', '"schema": 9'), "schema 9"),
    ):
        with pytest.raises(ArtifactError, match=said):
            Scores.from_json(broken)


def test_no_scenes_no_scores() -> None:
    with pytest.raises(UsageError, match="0 scenes"):
        evaluate("random:vggt-tiny", scenes=0)


@pytest.mark.usefixtures("quick_scores")
def test_the_command_prints_and_writes_scores(tmp_path: Path) -> None:
    command = ["train", "--evaluate", "--model", "random:vggt-nano", "--scenes", "1"]
    result = CliRunner().invoke(app, [*command, "--threads", "1", "-o", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "held-out  constant  1" in result.output
    written = json.loads((tmp_path / "scores.json").read_text())
    assert written["config"] == "vggt-nano"
    assert (written["height"], written["width"]) == (84, 112)


@pytest.mark.parametrize(
    "arguments,said",
    [
        (["-o", "run"], "a training needs -o and --cache"),
        (["--cache", "cache"], "a training needs -o and --cache"),
        (["-o", "run", "--cache", "c", "--model", "x"], "--model has no meaning with training"),
        (["--evaluate", "--steps", "3"], "--steps has no meaning with --evaluate"),
        (["--evaluate", "--resume"], "--resume has no meaning with --evaluate"),
        (["-o", "run", "--cache", "c", "--config", "vggt-huge"], "no recipe for 'vggt-huge'"),
        (["-o", "run", "--cache", "c", "--precision", "int8"], "recipe.precision is 'int8'"),
        (["-o", "r", "--cache", "c", "--config", "a", "--recipe", "b"], "both name a recipe"),
    ],
)
def test_wrong_usage_is_said(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["train", *arguments])
    assert result.exit_code == 2
    assert said in result.output
