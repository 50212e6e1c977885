"""Assignments as points of size, time and loss: standard schemes, and the front beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vggt_deploy.errors import QuantizeError
from vggt_deploy.progress import Progress
from vggt_deploy.quantize.plan import LayerInfo, plan
from vggt_deploy.quantize.schemes import SCHEMES, Precision, Scheme, takes_activations
from vggt_deploy.search.choices import BYTES, TIME, Choices, stored_bytes, time_of
from vggt_deploy.search.knapsack import Choice, solve
from vggt_deploy.search.records import Budgets, Point, PointKind
from vggt_deploy.search.rounds import broken

if TYPE_CHECKING:
    from torch import nn

    from vggt_deploy.search.trial import Trial

_TOO_NEAR = 1.01  # sizes whose assignments would hardly differ


@dataclass(frozen=True)
class Ground:
    """What every assignment of a search is held against.

    stored: precision -> the network as an artifact holds it, for the bytes (meta tensors do)
    times: layer -> label -> ms, of the Linears that were timed
    """

    trial: Trial
    stored: Mapping[Precision, nn.Module]
    layers: tuple[LayerInfo, ...]
    choices: Choices
    times: Mapping[str, Mapping[str, float]]
    budgets: Budgets
    precision: Precision

    @property
    def float_ms(self) -> float:
        """Of all timed Linears in FP32."""
        return time_of({}, self.times)

    def speedup(self, time_ms: float) -> float:
        """Over FP32, of the timed Linears together."""
        return self.float_ms / time_ms if time_ms > 0 else math.inf


def tried(ground: Ground, choice: Choice, name: str, kind: PointKind) -> Point:
    """Run the assignment of a choice on the scenes."""
    formats = ground.choices.formats(choice.options)
    measured = ground.trial.run(formats, ground.precision)
    time_ms = time_of(formats, ground.times)
    point = Point(
        name=name,
        kind=kind,
        bytes=int(choice.totals[BYTES]) + ground.choices.rest_bytes,
        time_ms=time_ms,
        speedup=ground.speedup(time_ms),
        predicted={k: v for k, v in choice.totals.items() if k not in (BYTES, TIME)},
        loss=measured.loss,
        interval=measured.interval,
        proven=choice.proven,
        units=ground.choices.labels(choice.options),
    )
    return replace(point, broken=broken(ground.budgets, point))


def standards(ground: Ground, report: Progress) -> tuple[Point, ...]:
    """Every standard scheme with the activations of the search, and the float ones."""
    mode = ground.trial.activations
    asked = [s for s in SCHEMES.values() if not s.integer or takes_activations(s, mode)]
    points = []
    for done, scheme in enumerate(asked):
        report("standard schemes", done, len(asked))
        points.append(_standard(ground, scheme))
    report("standard schemes", len(asked), len(asked))
    return tuple(points)


def _standard(ground: Ground, scheme: Scheme) -> Point:
    formats = plan(scheme, ground.layers)
    mode = ground.trial.activations if scheme.integer else "float"
    precision = ground.precision if scheme.integer else scheme.precision
    # Half floats are held and computed in FP32 by ONNX Runtime's CPU provider: no time of theirs.
    time_ms = time_of(formats, ground.times) if scheme.integer or precision == "fp32" else None
    point = Point(
        name=scheme.name if mode == "float" else f"{scheme.name}+{mode}",
        kind="standard",
        bytes=stored_bytes(ground.stored[precision], ground.layers, formats, precision),
        time_ms=time_ms,
        speedup=None if time_ms is None else ground.speedup(time_ms),
        predicted=None,
        loss=None,
    )
    try:
        measured = ground.trial.run(formats, precision, mode)
    except QuantizeError as error:
        return replace(point, note=error.message)
    return replace(point, loss=measured.loss, interval=measured.interval)


def front(
    ground: Ground, standard: Sequence[Point], minimise: str, count: int, report: Progress
) -> tuple[Point, ...]:
    """The assignments of least predicted loss at the sizes of the standard schemes and between."""
    integer = [point.bytes for point in standard if point.name.startswith("int")]
    whole = stored_bytes(ground.stored[ground.precision], ground.layers, {}, ground.precision)
    points: dict[int, Point] = {}
    sizes = front_sizes(integer, whole, count)
    for done, size in enumerate(sizes):
        report("front", done, len(sizes))
        limits = {BYTES: float(size - ground.choices.rest_bytes)}
        choice = solve(ground.choices.values, minimise, limits)
        if choice is not None:
            point = tried(ground, choice, f"at-{size / 1e6:.4g}MB", "front")
            # Against the budgets of the recipe it was not chosen.
            points.setdefault(point.bytes, replace(point, broken=()))
    report("front", len(sizes), len(sizes))
    return tuple(points.values())


def front_sizes(integer: Sequence[int], whole: int, count: int) -> list[int]:
    """Up to `count` sizes in bytes, ascending: those of the integer schemes, and between them.

    More schemes than that: every so many of them, the smallest and the largest among them. Fewer:
    the widest gaps in ratio, up to the size `whole` of the float network, are halved.
    """
    sizes: list[int] = []
    for size in sorted(integer):
        if not sizes or size > sizes[-1] * _TOO_NEAR:
            sizes.append(size)
    if count < len(sizes):
        step = (len(sizes) - 1) / max(1, count - 1)
        return [sizes[round(index * step)] for index in range(count)]
    ends = [*sizes, whole] if sizes else []
    while ends and len(ends) - 1 < count:
        widest = max(range(len(ends) - 1), key=lambda i: ends[i + 1] / ends[i])
        if ends[widest + 1] <= ends[widest] * _TOO_NEAR:
            break
        ends.insert(widest + 1, round(math.sqrt(ends[widest] * ends[widest + 1])))
    return ends[:-1]
