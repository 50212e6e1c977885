"""What can be chosen, and what it costs: against bytes counted another way and hand-made tables."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from vggt_deploy.errors import UsageError
from vggt_deploy.model.config import get_config
from vggt_deploy.model.vggt import VGGT
from vggt_deploy.quantize.plan import keeps_layer_scale, layers_in, plan
from vggt_deploy.quantize.schemes import INT4_G32, INT8_PC_SYM, get_scheme
from vggt_deploy.records import ModelRecord
from vggt_deploy.search.choices import as_scheme, choices, stored_bytes, time_of
from vggt_deploy.search.knapsack import solve, totals_of
from vggt_deploy.sensitivity.table import MEASURES, Entry, SensitivityTable
from vggt_deploy.sensitivity.units import candidates


def folded(precision):
    with torch.device("meta"):
        keep = keeps_layer_scale(precision)
        heads = frozenset({"camera", "depth", "point"})
        return VGGT(get_config("vggt-tiny"), heads=heads, folded=True, keep_layer_scale=keep)


@pytest.fixture(scope="module")
def network():
    return folded("fp32")


@pytest.fixture(scope="module")
def layers(network):
    return layers_in(network)


def table_of(layers, by="block", formats=(INT8_PC_SYM, INT4_G32), reference="truth"):
    """A table in which every unit loses its share of the weights, four times it at 4 bit."""
    tried = candidates(layers, plan(get_scheme("int8_pc_sym"), layers), by, formats)
    sizes = {layer.name: layer.weights for layer in layers}
    entries = []
    for one in tried:
        weights = sum(sizes[name] for name in one.layers)
        error = 1e-9 * weights * (4 if one.format == "int4_g32" else 1)
        loss = dict.fromkeys(MEASURES[reference], 1e3 * error) | {"output_mse": error}
        interval = {name: (0.5 * value, 2 * value) for name, value in loss.items()}
        entries.append(Entry(one.unit, tuple(one.layers), one.format, error**0.5, loss, interval))
    model = ModelRecord("random:vggt-tiny", "vggt-tiny")
    return SensitivityTable(
        1, model, ("a", "b"), reference, by, 28, 28, "float", {}, tuple(entries)
    )


@pytest.mark.parametrize("by", ["block", "layer", "kind", "head"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_bytes_of_a_choice_are_those_of_the_network(layers, by, precision):
    stored = folded(precision)
    table = table_of(layers, by)
    found = choices(table, stored, layers, precision, None)
    for wanted in ("float", "int8_pc_sym", "int4_g32"):
        options = [
            next((i for i, o in enumerate(unit.options) if o.format == wanted), 1)
            for unit in found.units
        ]
        formats = found.formats(options)
        total = totals_of(found.values, options)["bytes"] + found.rest_bytes
        assert total == stored_bytes(stored, layers, formats, precision)
        assert formats == found.formats_of(found.labels(options))
        if wanted == "float":
            assert not formats
        else:
            uniform = plan(get_scheme(wanted), layers)
            assert formats == uniform  # convolutions have 8 bit in both


def test_float_bytes_are_those_of_the_parameters(network, layers):
    floats = sum(4 * parameter.numel() for parameter in network.parameters())
    assert stored_bytes(network, layers, {}, "fp32") == floats
    formats = plan(get_scheme("int8_pc_sym"), layers)
    # Hand-counted: a byte per weight, and per output channel a scale and a zero point.
    less = sum(3 * x.weights - 5 * x.outputs for x in layers if x.name in formats)
    assert stored_bytes(network, layers, formats, "fp32") == floats - less


def test_half_floats_are_half_as_large_inside_the_region_alone(layers):
    stored = folded("fp16")
    whole = {name: p.numel() for name, p in stored.named_parameters()}
    half = sum(n for name, n in whole.items() if ".attn." in name or ".mlp." in name)
    camera = sum(
        n
        for name, n in whole.items()
        if name.startswith("camera_head") and (".attn." in name or ".mlp." in name)
    )
    expected = 4 * sum(whole.values()) - 2 * (half - camera)
    assert stored_bytes(stored, layers, {}, "fp16") == expected


def test_losses_below_the_noise_count_as_none(network, layers):
    table = table_of(layers, "head")
    first, *others = table.entries
    noisy = dataclasses.replace(
        first,
        loss={**first.loss, "auc3": 0.8, "auc5": 0.8, "abs_rel": -0.1, "output_mse": 0.25},
        interval={"auc3": (-0.1, 1.7), "auc5": (0.1, 1.5), "abs_rel": (-0.2, -0.05),
                  "output_mse": (-1.0, 2.0)},
    )  # fmt: skip
    changed = dataclasses.replace(table, entries=(noisy, *others))
    values = choices(changed, network, layers, "fp32", None).units[0].options[1].values
    assert values["auc3"] == 0.0
    assert values["auc5"] == 0.8
    assert values["abs_rel"] == 0.0
    assert values["output_mse"] == 0.25  # a squared error is never noise around nothing


def test_what_was_not_measured_is_estimated_and_counted(network, layers):
    table = table_of(layers, "block")
    exact = choices(table, network, layers, "fp32", None)
    last = table.entries[-1]
    left = dataclasses.replace(last, loss=None, interval={})
    partly = dataclasses.replace(table, entries=(*table.entries[:-1], left))
    found = choices(partly, network, layers, "fp32", None)
    assert (exact.estimated, found.estimated) == (0, 1)
    # In this table the output_mse is the square of the local error, so the estimate is exact.
    options = next(u.options for u in found.units if u.name == last.unit)
    estimated = next(o for o in options if o.format == last.format)
    assert estimated.values["output_mse"] == pytest.approx(last.loss["output_mse"], rel=1e-9)
    nothing = tuple(dataclasses.replace(e, loss=None, interval={}) for e in table.entries)
    with pytest.raises(UsageError, match="local errors alone"):
        choices(dataclasses.replace(table, entries=nothing), network, layers, "fp32", None)


def test_tables_of_something_else_are_refused(network, layers):
    table = table_of(layers, "block")
    first = table.entries[0]
    foreign = dataclasses.replace(first, layers=("aggregator.frame_blocks.99.attn.qkv",))
    with pytest.raises(UsageError, match="which the model does not have"):
        choices(dataclasses.replace(table, entries=(foreign,)), network, layers, "fp32", None)
    twice = dataclasses.replace(first, unit="again")
    with pytest.raises(UsageError, match="in two units"):
        choices(dataclasses.replace(table, entries=(first, twice)), network, layers, "fp32", None)


def test_times_of_a_choice(network, layers):
    linears = [layer.name for layer in layers if layer.kind == "linear"][:5]
    times = {name: {"float": 4.0, "int8_pc_sym": 1.0, "int4_g32": 3.0} for name in linears}
    assert time_of({}, times) == 20.0
    formats = {linears[0]: INT8_PC_SYM, linears[1]: INT4_G32, "depth_head.conv": INT8_PC_SYM}
    assert time_of(formats, times) == 16.0
    found = choices(table_of(layers), network, layers, "fp32", times)
    floats = [0] * len(found.units)
    named = {name for unit in found.units for o in unit.options for name in o.formats}
    assert totals_of(found.values, floats)["time_ms"] == 4.0 * len(named & set(linears))


@pytest.mark.parametrize("by", ["block", "layer", "kind", "head"])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.8])
def test_the_recipe_says_what_was_chosen(network, layers, by, share):
    found = choices(table_of(layers, by), network, layers, "fp32", None)
    ends = [
        sum(limit(values["bytes"] for values in unit) for unit in found.values)
        for limit in (min, max)
    ]
    choice = solve(found.values, "output_mse", {"bytes": ends[0] + share * (ends[1] - ends[0])})
    formats, labels = found.formats(choice.options), found.labels(choice.options)
    scheme = as_scheme("mine", labels, formats, by, layers, "fp32", "as chosen")
    assert plan(scheme, layers) == formats
    # A unit is one line, where a pattern says exactly what is meant.
    integer = [unit for unit, label in labels.items() if label != "float"]
    assert len(scheme.layers) <= max(1, len(formats))
    if by == "head":
        assert {name for name, _ in scheme.layers} >= {
            f"{unit}.*" for unit in integer if unit.startswith("aggregator.frame")
        }


def test_a_recipe_of_floats_alone(layers):
    scheme = as_scheme("mine", {"camera_head": "float"}, {}, "head", layers, "fp32", "none")
    assert plan(scheme, layers) == {}
