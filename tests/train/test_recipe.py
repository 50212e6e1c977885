from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vggt_deploy.errors import UsageError
from vggt_deploy.train.recipe import (
    RECIPES,
    TrainingRecipe,
    changed_recipe,
    load_recipe,
    named_recipe,
    parse_recipe,
    recipe_toml,
)

TEXT = named_recipe("vggt-nano").read_text(encoding="utf-8")


def test_every_recipe_of_the_package_reads_and_comes_back() -> None:
    paths = sorted(RECIPES.glob("*.toml"))
    assert paths
    for path in paths:
        recipe = load_recipe(path)
        assert recipe.config == path.stem
        assert parse_recipe(recipe_toml(recipe)) == recipe


@given(
    peak=st.floats(min_value=0, max_value=1e300),
    seed=st.integers(0, 2**40),
    weights=st.lists(st.floats(min_value=1e-3, max_value=1e3), min_size=4, max_size=4),
)
def test_numbers_come_back_exactly(peak: float, seed: int, weights: list[float]) -> None:
    recipe = parse_recipe(TEXT)
    changed = replace(
        recipe,
        seed=seed,
        batch=replace(recipe.batch, view_weights=tuple(weights)),
        optimizer=replace(recipe.optimizer, peak=peak),
    )
    assert parse_recipe(recipe_toml(changed)) == changed


@pytest.mark.parametrize(
    "line,new,said",
    [
        ("seed", "seed = 0\nsede = 1", "unknown field 'sede'"),
        ("seed", "", "lacks the field 'seed'"),
        ("mirror", "mirrors = 0.5", "unknown field 'mirrors'"),
        ("steps", "steps = 1.5", "steps is float"),
        ("steps", "steps = 0", "steps must be 1"),
        ("precision", 'precision = "fp8"', "expected one of auto, fp32, bf16"),
        ("seed", "seed = 0\nseed = 1", "not TOML"),
        ("count", "count = 900001", "scenes.count"),
        ("height", "height = 80", "not a multiple of 14"),
        ("view_counts", "view_counts = [2, 3, 5, 6]", "divide frames / shards"),
        ("view_counts", "view_counts = [2, 3, 4]", "one per view count"),
        ("view_counts", "view_counts = [2, 3, 4, 12]", "exceed scenes.views"),
        ("view_weights", "view_weights = [0, 0, 0, 0]", "must not all be 0"),
        ("shards", "shards = 5", "shards must divide"),
        ("shards", "shards = 0", "shards must divide"),
        ("mirror", "mirror = 1.5", "must not exceed 1"),
        ("noise", "noise = -0.03", "negative or NaN"),
        ("noise", "noise = nan", "negative or NaN"),
        ("huber", "huber = 0.0", "loss.huber"),
        ("beta2", "beta2 = 1.0", "below 1"),
        ("clip_norm", "clip_norm = 0", "clip_norm"),
        ("dense_share", "dense_share = 0", "dense_share"),
        ("config", 'config = "vggt-nono"', "unknown model config"),
        ("pairs", "pairs = 25", "encoder.shards must divide"),
        ("farthest", "farthest = 8", "encoder.farthest"),
        ("cells", "cells = 0", "encoder.cells"),
        ("temperature", "temperature = 0", "encoder.temperature"),
    ],
)
def test_what_makes_no_sense_is_refused(line: str, new: str, said: str) -> None:
    """`line` is how a line of the recipe begins; `new` is put in its place."""
    changed, count = re.subn(rf"^{line} = .*$", new, TEXT, count=1, flags=re.MULTILINE)
    assert count == 1
    with pytest.raises(UsageError, match=said):
        parse_recipe(changed)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_bytes(b"\xff\xfe")
    for path in (tmp_path / "recipe.toml", tmp_path / "missing.toml", tmp_path):
        with pytest.raises(UsageError, match="can't read the recipe"):
            load_recipe(path)


def test_an_unknown_name_says_which_are_known() -> None:
    with pytest.raises(UsageError, match="no recipe for") as caught:
        named_recipe("vggt-1b")
    assert "vggt-nano" in caught.value.fix


def test_a_change_is_checked_like_a_file(tiny_recipe: TrainingRecipe) -> None:
    assert changed_recipe(tiny_recipe, {"steps": 9}) == replace(tiny_recipe, steps=9)
    assert changed_recipe(tiny_recipe, {}) == tiny_recipe
    with pytest.raises(UsageError, match="precision"):
        changed_recipe(tiny_recipe, {"precision": "int8"})
