"""The whole search, on vggt-nano: recipes beat the uniform schemes; what is refused, and why."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from pathlib import Path

import pytest
import torch
from PIL import Image

from vggt_deploy.data.scenes import write_scenes
from vggt_deploy.errors import ArtifactError, DeployError, SceneError, UsageError
from vggt_deploy.model.weights import open_weights
from vggt_deploy.quantize.plan import layers_of, plan
from vggt_deploy.quantize.recipe import load_recipe
from vggt_deploy.search.pipeline import search
from vggt_deploy.search.records import Budgets, SearchResult, read_search
from vggt_deploy.search.text import summary_lines
from vggt_deploy.sensitivity.pipeline import sensitivity
from vggt_deploy.sensitivity.table import read_table

FORMATS = ("int8_pc_sym", "int4_g128")


@pytest.fixture(scope="module")
def ground(tmp_path_factory) -> Path:
    """Two rendered scenes, and the table of vggt-nano by block on them."""
    root = tmp_path_factory.mktemp("search")
    write_scenes(root / "scenes", seed=910_000, count=2, views=3, width=112, height=84)
    torch.manual_seed(0)
    sensitivity(
        "vggt-nano",
        output_dir=root / "table",
        scenes=[root / "scenes"],
        by="block",
        formats=FORMATS,
        threads=1,
    )
    return root


@pytest.fixture(scope="module")
def found(ground) -> SearchResult:
    budgets = Budgets(max_bytes=4_600_000)
    return search(
        "vggt-nano",
        output_dir=ground / "found",
        sensitivity=ground / "table",
        scenes=[ground / "scenes"],
        budgets=budgets,
        name="nano-4.6mb",
        front_points=6,
        threads=1,
    )


def standard(result, name):
    return next(p for p in result.points if p.kind == "standard" and p.name == name)


def test_recipes_beat_the_uniform_schemes_of_their_size(found):
    """At no larger size than a uniform scheme, the best recipe loses less, and clearly."""
    recipes = [point for point in found.points if point.kind != "standard"]
    for name in ("int4_g32", "int4_g64", "mixed"):
        uniform = standard(found, name)
        rivals = [point for point in recipes if point.bytes <= uniform.bytes]
        best = min(point.loss["output_mse"] for point in rivals)
        assert best < 0.9 * uniform.loss["output_mse"], name
    # Twin: at the smallest size there is one choice left, so nothing can be better there.
    smallest = standard(found, "int4_g128")
    rivals = [point for point in recipes if point.bytes <= smallest.bytes]
    assert all(p.loss["output_mse"] > 0.9 * smallest.loss["output_mse"] for p in rivals)


def test_the_chosen_recipe_keeps_the_size(found):
    point = found.require()
    assert point.bytes <= 4_600_000
    assert point.proven
    assert not point.broken
    assert point.loss["output_mse"] > 0
    # Most of what was allowed is used.
    assert point.bytes > 0.9 * 4_600_000


def test_predictions_are_of_the_size_of_what_was_measured(found):
    ratios = [
        point.loss["output_mse"] / point.predicted["output_mse"]
        for point in found.points
        if point.predicted is not None and point.predicted["output_mse"] > 0
    ]
    assert len(ratios) > 3
    # The middle one: at 4 bit everywhere a scene's pose may tip over, which no sum foresees.
    assert 0.2 < sorted(ratios)[len(ratios) // 2] < 5


def test_standard_schemes_are_all_there(found):
    names = {point.name for point in found.points if point.kind == "standard"}
    assert {"fp32", "fp16", "bf16", "int8_pc_sym", "int4_g256", "mixed"} <= names
    exact = standard(found, "fp32")
    assert exact.loss["output_mse"] == 0.0
    assert exact.speedup == 1.0
    # Half floats lose something, and have no time of their own on this runtime.
    assert standard(found, "bf16").loss["output_mse"] > 0
    assert standard(found, "bf16").time_ms is None


def test_what_was_written(found, ground):
    folder = ground / "found"
    assert read_search(folder) == found
    assert {path.name for path in folder.iterdir()} == {
        "costs.json",
        "pareto.png",
        "recipe.toml",
        "search.json",
    }
    with Image.open(folder / "pareto.png") as picture:
        assert picture.width > 1000
    asked = load_recipe(folder / "recipe.toml")
    assert asked.label == "nano-4.6mb"
    assert asked.scheme.precision == "fp32"
    config, _ = open_weights("vggt-nano")
    formats = plan(asked.scheme, layers_of(config, frozenset({"camera", "depth", "point"})))
    table = read_table(ground / "table")
    units = found.require().units
    chosen = {
        layer: entry.format
        for entry in table.entries
        if units[entry.unit] == entry.format
        for layer in entry.layers
    }
    assert {name: form.label for name, form in formats.items()} == chosen


def test_summary_names_the_recipe_and_the_scenes_that_were_seen_before(found):
    text = "\n".join(summary_lines(found))
    assert "* nano-4.6mb-1" in text
    assert "asked for: at most 4600000 bytes" in text
    assert "2 of the scenes are the sensitivity table's own" in text


def test_a_drop_is_met_by_what_was_run(ground, found):
    """Half of what int4_g128 loses, at the least size: less than 8 bit, more than 4 bit."""
    most = 0.5 * standard(found, "int4_g128").loss["output_mse"]
    result = search(
        "vggt-nano",
        output_dir=ground / "drop",
        sensitivity=ground / "table",
        scenes=[ground / "scenes"],
        budgets=Budgets(max_drop={"output_mse": most}),
        costs=ground / "found",
        front_points=0,
        rounds=6,
        threads=1,
    )
    point = result.require()
    assert point.loss["output_mse"] <= most
    assert standard(found, "int4_g128").bytes < point.bytes < standard(found, "int8_pc_sym").bytes
    assert all(p.kind == "round" for p in result.points)
    assert (ground / "drop" / "costs.json").read_text() == (
        ground / "found" / "costs.json"
    ).read_text()


@pytest.mark.slow
def test_a_speed_is_kept_and_the_network_timed(ground):
    """With activations that are rounded at run time the kernels multiply integers."""
    sensitivity(
        "vggt-nano",
        output_dir=ground / "dynamic",
        scheme="int8_pc_sym+dynamic",
        scenes=[ground / "scenes"],
        by="head",
        threads=1,
    )
    result = search(
        "vggt-nano",
        output_dir=ground / "fast",
        sensitivity=ground / "dynamic",
        scenes=[ground / "scenes"],
        budgets=Budgets(min_speedup=1.01),
        front_points=0,
        threads=1,
    )
    point = result.require()
    assert point.speedup >= 1.01
    assert point.loss["output_mse"] > 0
    exact, ours = result.network
    assert (exact.label, ours.label) == ("fp32", "searched+dynamic")
    assert min(exact.median_ms, ours.median_ms) > 0
    names = {path.name for path in (ground / "fast").iterdir()}
    assert names == {"costs.json", "pareto.png", "recipe.toml", "search.json"}
    assert load_recipe(ground / "fast" / "recipe.toml").activations == "dynamic"


def test_what_can_not_be_met_is_said(ground):
    result = search(
        "vggt-nano",
        output_dir=ground / "impossible",
        sensitivity=ground / "table",
        scenes=[ground / "scenes"],
        budgets=Budgets(max_bytes=100_000),
        costs=ground / "found",
        front_points=0,
        threads=1,
    )
    assert (result.chosen, result.nearest) == (None, None)
    with pytest.raises(DeployError, match="no choice of formats meets the budgets"):
        result.require()
    assert not (ground / "impossible" / "recipe.toml").exists()


def asked(ground, **changes):
    request = {
        "model": "vggt-nano",
        "output_dir": ground / "refused",
        "sensitivity": ground / "table",
        "scenes": [ground / "scenes"],
        "budgets": Budgets(max_bytes=4_600_000),
        "costs": ground / "found",
        "front_points": 0,
        "threads": 1,
    }
    return request | changes


@pytest.mark.parametrize(
    "changes,kind,problem",
    [
        ({"budgets": Budgets()}, UsageError, "no budget is given"),
        ({"budgets": Budgets(max_drop={"auc7": 1.0})}, UsageError, "has no auc7"),
        ({"budgets": Budgets(min_speedup=0.0)}, UsageError, "a speedup of 0"),
        ({"minimise": "size"}, UsageError, "has no size"),
        ({"rounds": 0}, UsageError, "0 rounds"),
        ({"calibrate": Path()}, UsageError, "is of float activations"),
        ({"model": "random:vggt-nano"}, UsageError, "not of random:vggt-nano"),
        ({"scenes": []}, UsageError, "no pictures are given"),
        ({"costs": Path("absent.json")}, ArtifactError, "can't read the costs"),
        ({"sensitivity": Path("absent")}, ArtifactError, "there is no"),
    ],
)
def test_what_is_refused(ground, found, changes, kind, problem):
    with pytest.raises(kind, match=problem) as caught:
        search(**asked(ground, **changes))
    assert caught.value.fix
    assert not (ground / "refused").exists()
    assert not list(ground.glob(".refused*"))  # nothing half done is left


def test_pictures_without_truth_for_a_table_with_it(ground, found, write_pictures):
    write_pictures(ground / "pictures", 3, size=(112, 84))
    with pytest.raises(SceneError, match="is not known"):
        search(**asked(ground, scenes=[], images=ground / "pictures"))


def test_another_folder_is_not_replaced(ground, found):
    with pytest.raises(ArtifactError, match="not empty"):
        search(**asked(ground, output_dir=ground / "found"))
    with pytest.raises(ArtifactError, match="did not make it"):
        search(**asked(ground, output_dir=ground / "table", overwrite=True))


def test_an_interrupted_search_leaves_nothing(ground, found):
    def stop(stage, done, total):
        if stage == "rounds":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(**asked(ground, progress=stop))
    assert not (ground / "refused").exists()
    assert not list(ground.glob(".refused*"))


def test_results_that_are_none(found, tmp_path):
    text = found.to_json()
    assert SearchResult.from_json(text) == found
    value = json.loads(text)
    broken = [
        "[",
        json.dumps({**value, "schema": 2}),
        json.dumps({**value, "chosen": len(found.points)}),
        json.dumps({**value, "extra": 1}),
        json.dumps({**value, "budgets": {}, "points": [{}]}),
    ]
    for text in broken:
        (tmp_path / "search.json").write_text(text)
        with pytest.raises(ArtifactError):
            read_search(tmp_path)
    with pytest.raises(ArtifactError, match="can't read"):
        read_search(tmp_path / "absent")
    lost = dataclasses.replace(found, chosen=None, nearest=0)
    with pytest.raises(DeployError, match="the nearest"):
        lost.require()


def test_the_recipe_is_plain_toml(found, ground):
    table = tomllib.loads((ground / "found" / "recipe.toml").read_text())
    assert table["activations"] == "float"
    assert set(table["layers"].values()) <= {*FORMATS}
