"""What can be chosen: for each unit of a sensitivity table its formats, each with what it costs.

    bytes       as stored: integers, scales, zero points, or floats of the precision asked for
    time_ms     of the unit's Linears in one run, if they were timed (`costs`)
    output_mse, auc3, ...   the table's losses (`sensitivity.table.MEASURES`)

Losses are taken to add up over the units. Squared errors of the outputs nearly do while they are
small and unrelated; drops in accuracy do not, which is why an assignment counts only when it was
run. A loss of geometry whose 95 % interval reaches down to 0 counts as none, or the choice would go
by the noise of single scenes.

An entry that the table's second pass left out has a local error alone. Its losses are estimated as
k e^2, e its local error and k the ratio of sum(loss) to sum(e^2) over the measured entries;
`Choices.estimated` counts them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from vggt_deploy.errors import UsageError
from vggt_deploy.quantize.plan import LayerInfo, layer_precision, plan
from vggt_deploy.quantize.recipe import FLOAT, recipe_scheme
from vggt_deploy.quantize.schemes import (
    FLOAT_BYTES,
    Precision,
    Scheme,
    WeightFormat,
    get_scheme,
    parse_format,
)
from vggt_deploy.sensitivity.table import MEASURES, By, Entry, SensitivityTable
from vggt_deploy.sensitivity.units import pattern_of

if TYPE_CHECKING:
    from torch import nn

BYTES, TIME, MSE = "bytes", "time_ms", "output_mse"
Formats = dict[str, WeightFormat]
"""Layer -> format; layers that are not named stay float."""


@dataclass(frozen=True)
class Option:
    """One format of a unit: what its layers become, and quantity -> value of the whole unit."""

    format: str
    formats: Formats
    values: dict[str, float]


@dataclass(frozen=True)
class Unit:
    """A unit and its options; the first is float, of no loss."""

    name: str
    options: tuple[Option, ...]


@dataclass(frozen=True)
class Choices:
    """All units, and what does not depend on the choice.

    rest_bytes: of all tensors that are in no unit
    estimated: options whose losses were not measured but estimated from local errors
    """

    units: tuple[Unit, ...]
    rest_bytes: int
    estimated: int

    @property
    def values(self) -> tuple[tuple[Mapping[str, float], ...], ...]:
        """What the solver takes: for each unit the values of its options."""
        return tuple(tuple(option.values for option in unit.options) for unit in self.units)

    def formats(self, options: Sequence[int]) -> Formats:
        """The layers that a choice of one option per unit gives integers to."""
        found: Formats = {}
        for unit, option in zip(self.units, options, strict=True):
            found |= unit.options[option].formats
        return found

    def formats_of(self, labels: Mapping[str, str]) -> Formats:
        """The same, by unit -> label of its format."""
        found: Formats = {}
        for unit in self.units:
            for option in unit.options:
                if option.format == labels[unit.name]:
                    found |= option.formats
        return found

    def labels(self, options: Sequence[int]) -> dict[str, str]:
        """Unit -> label of the chosen format."""
        return {
            unit.name: unit.options[option].format
            for unit, option in zip(self.units, options, strict=True)
        }


def choices(
    table: SensitivityTable,
    network: nn.Module,
    layers: Sequence[LayerInfo],
    precision: Precision,
    times: Mapping[str, Mapping[str, float]] | None,
) -> Choices:
    """The options of each unit of the table.

    network: as an artifact of this precision holds it (folded), for the bytes of what stays float
    times: layer -> label -> ms, of the Linears that were timed; None: nothing was

    Raises:
        UsageError: the table is of other layers, or two of its units share one.
    """
    known = {layer.name: layer for layer in layers}
    units: dict[str, list[Entry]] = {}
    for entry in table.entries:
        units.setdefault(entry.unit, []).append(entry)
    _check_units(units, known)
    ratios = _ratios(table)
    found = []
    for name, entries in units.items():
        members = dict.fromkeys(layer for entry in entries for layer in entry.layers)
        infos = [known[layer] for layer in members]
        options = [_option(FLOAT, {}, infos, dict.fromkeys(ratios, 0.0), precision, times)]
        for entry in entries:
            form = parse_format(entry.format)
            formats = dict.fromkeys(entry.layers, form)
            losses = _losses(entry, ratios)
            options.append(_option(entry.format, formats, infos, losses, precision, times))
        found.append(Unit(name, tuple(options)))
    inside = {layer for entries in units.values() for e in entries for layer in e.layers}
    rest = sum(
        parameter.numel() * FLOAT_BYTES[layer_precision(name, precision)]
        for name, parameter in network.named_parameters()
        if not (name.endswith(".weight") and name.removesuffix(".weight") in inside)
    )
    return Choices(tuple(found), rest, sum(entry.loss is None for entry in table.entries))


def stored_bytes(
    network: nn.Module, layers: Sequence[LayerInfo], formats: Formats, precision: Precision
) -> int:
    """Bytes of all weights of the network with these layers in integers, as they are stored."""
    integers = {f"{name}.weight" for name in formats}
    floats = sum(
        parameter.numel() * FLOAT_BYTES[layer_precision(name, precision)]
        for name, parameter in network.named_parameters()
        if name not in integers
    )
    return floats + sum(
        layer_bytes(layer, formats[layer.name], precision)
        for layer in layers
        if layer.name in formats
    )


def layer_bytes(layer: LayerInfo, form: WeightFormat | None, precision: Precision) -> int:
    """Bytes of one weight: integers, scales and zero points, or floats."""
    scale_bytes = FLOAT_BYTES[layer_precision(layer.name, precision)]
    if form is None:
        return layer.weights * scale_bytes
    return form.stored_bytes(layer.outputs, layer.weights // layer.outputs, scale_bytes)


def time_of(formats: Formats, times: Mapping[str, Mapping[str, float]]) -> float:
    """Sum over the timed Linears of their time in these formats, ms."""
    return math.fsum(
        by_label[formats[name].label if name in formats else FLOAT]
        for name, by_label in times.items()
    )


def as_scheme(
    name: str,
    labels: Mapping[str, str],
    formats: Formats,
    by: By,
    layers: Sequence[LayerInfo],
    precision: Precision,
    summary: str,
) -> Scheme:
    """A recipe that gives exactly these formats: a line per unit where its pattern is exact.

    labels: unit -> label of its format
    """
    default = plan(get_scheme("int8_pc_sym"), layers)
    lines: dict[str, WeightFormat | None] = {}
    named: set[str] = set()
    for unit, label in labels.items():
        if label == FLOAT:
            continue
        form, pattern = parse_format(label), pattern_of(unit, by)
        fitting = {layer for layer in default if fnmatchcase(layer, pattern)}
        if fitting and all(formats.get(layer) == form for layer in fitting):
            lines[pattern] = form
            named |= fitting
    for layer, form in formats.items():
        if layer not in named:
            lines[layer] = form
    if not lines:
        lines["*"] = None  # a recipe names something, also where everything stays float
    scheme = recipe_scheme(name, lines, precision=precision, summary=summary)
    if plan(scheme, layers) != {x.name: formats[x.name] for x in layers if x.name in formats}:
        raise AssertionError(f"the recipe {name} does not say what was chosen")
    return scheme


def _option(
    label: str,
    formats: Formats,
    members: Sequence[LayerInfo],
    losses: Mapping[str, float],
    precision: Precision,
    times: Mapping[str, Mapping[str, float]] | None,
) -> Option:
    size = sum(layer_bytes(layer, formats.get(layer.name), precision) for layer in members)
    values = {BYTES: float(size), **losses}
    if times is not None:
        inside = {layer.name: times[layer.name] for layer in members if layer.name in times}
        values[TIME] = time_of(formats, inside)
    return Option(label, formats, values)


def _losses(entry: Entry, ratios: Mapping[str, float]) -> dict[str, float]:
    """Measure -> loss as it is counted, never below 0."""
    if entry.loss is None:
        squared = (entry.local_error or 0.0) ** 2
        return {name: ratio * squared for name, ratio in ratios.items()}
    counted = {}
    for name in ratios:
        mean = entry.loss.get(name, 0.0)
        low = entry.interval.get(name, (mean, mean))[0]
        sure = name == MSE or low > 0
        counted[name] = max(0.0, mean) if sure else 0.0
    return counted


def _ratios(table: SensitivityTable) -> dict[str, float]:
    """Measure -> sum of the losses over the sum of squared local errors, of measured entries."""
    measured = [entry for entry in table.entries if entry.loss is not None]
    if not measured:
        raise UsageError(
            "the sensitivity table holds local errors alone",
            "finish it: run `vggt-deploy sensitivity --resume` with its folder",
        )
    if any(e.loss is None and e.local_error is None for e in table.entries):
        raise UsageError(
            "the sensitivity table has a unit that was not measured at all",
            "finish it: run `vggt-deploy sensitivity --resume` with its folder",
        )
    squared = math.fsum((entry.local_error or 0.0) ** 2 for entry in measured)
    ratios = {}
    for name in MEASURES[table.reference]:
        total = math.fsum((entry.loss or {}).get(name, 0.0) for entry in measured)
        ratios[name] = max(0.0, total) / squared if squared > 0 else 0.0
    return ratios


def _check_units(units: Mapping[str, Sequence[Entry]], known: Mapping[str, LayerInfo]) -> None:
    owner: dict[str, str] = {}
    for unit, entries in units.items():
        for layer in {layer for entry in entries for layer in entry.layers}:
            if layer not in known:
                raise UsageError(
                    f"the sensitivity table names {layer}, which the model does not have",
                    "give the table of this model",
                )
            if owner.setdefault(layer, unit) != unit:
                raise UsageError(
                    f"{layer} is in two units of the sensitivity table, {owner[layer]} and {unit}",
                    "give one table, as `vggt-deploy sensitivity` wrote it",
                )
