"""The numbers of the training: read strictly, written as they were read."""

from __future__ import annotations

import re

import pytest

from vggt_deploy.errors import UsageError
from vggt_deploy.qat.recipe import (
    DEFAULT_RECIPE,
    QatRecipe,
    changed_recipe,
    load_recipe,
    parse_recipe,
)
from vggt_deploy.train.recipe import recipe_toml


def test_the_packaged_recipe_is_read_and_written_back() -> None:
    recipe = load_recipe(DEFAULT_RECIPE)
    assert parse_recipe(recipe_toml(recipe)) == recipe
    other = recipe_toml(recipe).replace("epochs = 3.0", "epochs = 4.0")
    assert parse_recipe(other) != recipe


@pytest.mark.parametrize(
    "old, new, problem",
    [
        ("epochs = 3.0", "epochs = 0.0", "epochs must be more than 0"),
        ("epochs = 3.0", "epochs = nan", "no number may be negative or NaN"),
        ("epochs = 3.0", "epoch = 3.0", "epoch"),
        ("shards = 2", "shards = 5", "batch.shards must divide frames"),
        ("view_counts = [2, 3, 4, 6]", "view_counts = [2, 3, 4, 7]", "must divide frames / shards"),
        ("view_counts = [2, 3, 4, 6]", "view_counts = [2, 3, 4]", "one per view count"),
        ("huber = 0.02", "huber = 0.0", "loss.huber must be more than 0"),
        ('precision = "auto"', 'precision = "fp8"', "fp8"),
        ("clip_norm = 1.0", "clip_norm = -1.0", "no number may be negative"),
        ("[loss]", "[loss", "not TOML"),
    ],
)
def test_what_makes_no_sense_is_refused(old: str, new: str, problem: str) -> None:
    text = DEFAULT_RECIPE.read_text(encoding="utf-8")
    assert old in text
    with pytest.raises(UsageError, match=re.escape(problem)):
        parse_recipe(text.replace(old, new))


def test_the_command_line_changes_it(qat_recipe: QatRecipe) -> None:
    changed = changed_recipe(qat_recipe, epochs=2.0, learning_rate=1e-5, task_loss=0.5, seed=3)
    assert (changed.epochs, changed.seed, changed.loss.task) == (2.0, 3, 0.5)
    assert changed.optimizer.peak == 1e-5
    before = qat_recipe.step_peak / qat_recipe.optimizer.peak
    assert changed.step_peak / changed.optimizer.peak == pytest.approx(before)
    assert changed_recipe(qat_recipe) == qat_recipe
    with pytest.raises(UsageError, match="epochs must be more than 0"):
        changed_recipe(qat_recipe, epochs=-0.0)
    with pytest.raises(UsageError, match="precision"):
        changed_recipe(qat_recipe, precision="fp16")


def test_epochs_count_pictures(qat_recipe: QatRecipe) -> None:
    assert qat_recipe.steps(12) == 6
    assert qat_recipe.steps(13) == 7
    assert changed_recipe(qat_recipe, epochs=0.001).steps(12) == 1
