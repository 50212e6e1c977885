"""Smoothing: how far the scale of each channel moves from activations into weights.

At every place of `equal.places`, between a Linear's inputs x [T, K] and its weight W [N, K]:

    s_j = a_j**alpha / b_j**(1 - alpha),   b_j = mean_i |W_ij|,  a_j = mean_t |x_tj| or max_t |x_tj|

divided by its geometric mean, since a common factor changes nothing, and kept within 2**10 of one.
x / s has channels of more equal size, W s the rest of the differences. The maximum is SmoothQuant's
(arXiv:2211.10438), the mean AWQ's (arXiv:2306.00978). A given alpha goes with the mean.

"auto" tries both with alpha = 0, 0.2 ... 1, then 0.1 to both sides of the best, and no change (s =
1), and takes what gives the least error of the Linear's output: weights in their format, inputs
rounded if they will be, against float. a_j and the range of static inputs are learned from half of
the passes and the error is taken on the other half: maxima that were chosen and judged on the same
two scenes made the error of some of vggt-nano's output projections several times as large on other
scenes. The s that is kept has the a_j of all passes.

Not modelled: errors of the layers before (inputs are those of the float network), GPTQ's rounding,
and dynamic ranges of a whole pass (that of the sampled rows stands for it). Searched in FP32 with
LayerScale folded; the scales serve every precision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vggt_deploy.errors import CalibrationError, QuantizeError, UsageError
from vggt_deploy.model.config import VGGTConfig
from vggt_deploy.model.fold import FoldedWeights
from vggt_deploy.model.sources import WeightSource
from vggt_deploy.progress import Progress, silent
from vggt_deploy.quantize.apply import QuantLinear
from vggt_deploy.quantize.calibration import Observer
from vggt_deploy.quantize.equal import Place, places
from vggt_deploy.quantize.histogram import NOTHING, Histogram, TokenHistograms, threshold
from vggt_deploy.quantize.methods import Method
from vggt_deploy.quantize.qparams import input_scale
from vggt_deploy.quantize.ranges import quantize_searched
from vggt_deploy.quantize.schemes import Activations, PerTensor, WeightFormat
from vggt_deploy.quantize.treatment import ABSMAX, DEFAULT_INPUT_RANGE, Smooth
from vggt_deploy.quantize.walk import Stage, walk

ALPHAS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
REFINEMENT = 0.1
SAMPLED_ROWS = 512
"""Of each half of the passes, for each Linear."""
LIMIT = 2.0**10
# Channels that are (nearly) never used have no size of their own.
FLOOR = 1e-5

Statistic = Literal["mean", "max"]


@dataclass(frozen=True, slots=True)
class Choice:
    """What was decided at a place.

    statistic, alpha: None where nothing is moved
    before, after: relative L2 error of the Linear's output, as it was and as decided
    """

    place: str
    statistic: Statistic | None
    alpha: float | None
    before: float
    after: float


@dataclass(frozen=True)
class Smoothing:
    """scales: place -> s [K], as `EqualWeights` takes them; places without a change have none."""

    scales: dict[str, Tensor]
    decided: tuple[Choice, ...]

    @property
    def choices(self) -> dict[str, Any]:
        """Place -> what was decided, for a manifest."""
        return {
            choice.place: {key: value for key, value in asdict(choice).items() if key != "place"}
            for choice in self.decided
        }


def smoothing_scale(inputs: Tensor, weights: Tensor, alpha: float) -> Tensor:
    """The s [K] of the module's docstring, float32, of a [K] and b [K] (neither negative)."""
    size = _floored(inputs).log() * alpha - _floored(weights).log() * (1 - alpha)
    return (size - size.mean()).exp().clamp(1 / LIMIT, LIMIT).float()


def _floored(sizes: Tensor) -> Tensor:
    largest = float(sizes.max())
    return sizes.double().clamp(min=largest * FLOOR) if largest > 0 else torch.ones_like(sizes)


def search_smoothing(
    config: VGGTConfig,
    source: WeightSource,
    passes: Sequence[Callable[[], Tensor]],
    formats: Mapping[str, WeightFormat],
    *,
    activations: Activations = "float",
    method: Method | None = None,
    alpha: Smooth = "auto",
    apart: bool = False,
    weight_range: Method = ABSMAX,
    scratch: Path,
    progress: Progress | None = None,
) -> Smoothing:
    """The scales of every place whose Linear is in `formats`.

    source: raw (unfolded) weights, of a rotated network too. passes: `walk.WalkPass`.
    method: range of static inputs. apart: errors of special tokens and of patches weigh the same.
    weight_range: how ranges of weights will be chosen.

    A place inside attention is left alone where its qkv projection has one scale for the whole
    weight: dividing the value rows would change what that scale does to queries and keys.

    Raises:
        UsageError: no such layer among `formats`, an alpha outside of 0..1, no passes.
        CalibrationError: the network gives NaN or infinity on these pictures.
    """
    if alpha != "auto" and not 0 <= alpha <= 1:
        raise UsageError(f"smooth={alpha:g} is not in 0..1", "0.5 is a usual one")
    wanted = {place.linear: place for place in places(config) if _free(place, formats)}
    if not wanted:
        raise UsageError(
            "none of the quantized layers has a place where scales can move",
            "leave smooth out, or quantize layers behind a LayerNorm (attn.qkv, mlp.fc1)",
        )
    report = progress or silent
    settings = _Settings(activations, method or DEFAULT_INPUT_RANGE, apart, weight_range)
    scales: dict[str, Tensor] = {}
    decided: list[Choice] = []
    report("smooth", 0, len(wanted))
    with closing(walk(config, FoldedWeights(source, config), passes, scratch=scratch)) as stages:
        for problem in _problems(stages, wanted, len(passes), formats, settings):
            choice, scale = problem.decide(alpha)
            decided.append(choice)
            if scale is not None:
                scales[choice.place] = scale
            report("smooth", len(decided), len(wanted))
    return Smoothing(scales, tuple(decided))


def _free(place: Place, formats: Mapping[str, WeightFormat]) -> bool:
    if place.linear not in formats:
        return False
    if place.kind == "norm":
        return True
    projection = formats.get(place.divided[0].removesuffix(".weight"))
    return projection is None or not isinstance(projection.granularity, PerTensor)


@dataclass(frozen=True)
class _Settings:
    activations: Activations
    input_range: Method
    apart: bool
    weight_range: Method


def _problems(
    stages: Iterator[Stage],
    wanted: Mapping[str, Place],
    passes: int,
    formats: Mapping[str, WeightFormat],
    settings: _Settings,
) -> Iterator[_Problem]:
    """One place after the other, in the order of the network; nothing is walked behind the last."""
    left = len(wanted)
    for stage in stages:
        names = [name for name in stage.linears if name in wanted]
        seen = {name: _Seen(wanted[name].width, passes, settings.apart) for name in names}
        if names:
            for inputs in stage.inputs(names):
                for name, rows in inputs.items():
                    seen[name].add(name, rows, stage.special(len(rows)))
        for name in names:
            weight = stage.module.get_submodule(name.removeprefix(f"{stage.name}."))
            yield _Problem(
                wanted[name], weight.get_parameter("weight"), formats[name], seen[name], settings
            )
        left -= len(names)
        if not left:
            return


class _Half:
    """Of the inputs of half of the passes: sizes of the channels, and some of the rows."""

    def __init__(self, width: int) -> None:
        # By kind of token: patches, special ones.
        self.sums = torch.zeros(2, width, dtype=torch.float64)
        self.counts = torch.zeros(2, dtype=torch.float64)
        self.largest = torch.zeros(2, width)
        self._rows: list[Tensor] = []
        self._special: list[Tensor] = []

    @property
    def rows(self) -> Tensor:
        """[R, K]."""
        return torch.cat(self._rows)

    @property
    def special(self) -> Tensor:
        """Bool [R]: which rows are special tokens."""
        return torch.cat(self._special)

    def add(self, rows: Tensor, special: Tensor, count: int, apart: bool) -> None:
        """Take note of all, keep `count` of them: evenly spaced, of both kinds alike if apart."""
        magnitude = rows.abs()
        for kind in (0, 1):
            of_kind = magnitude[special == bool(kind)]
            if len(of_kind):
                self.largest[kind] = torch.maximum(self.largest[kind], of_kind.amax(0))
            self.sums[kind] += of_kind.sum(0, dtype=torch.float64)
            self.counts[kind] += len(of_kind)
        numbers = torch.arange(len(rows))
        kinds = [numbers[~special], numbers[special]] if apart else [numbers]
        share = -(-count // len(kinds))
        kept = torch.cat([_spaced(of_kind, share) for of_kind in kinds])
        self._rows.append(rows[kept])
        self._special.append(special[kept])


def _spaced(numbers: Tensor, count: int) -> Tensor:
    if len(numbers) <= count:
        return numbers
    return numbers[torch.arange(count) * len(numbers) // count]


class _Seen:
    """What a Linear gets: odd passes to judge by, the others to learn from."""

    def __init__(self, width: int, passes: int, apart: bool) -> None:
        self.learned, self.judged = _Half(width), _Half(width)
        self._apart = apart
        self._single = passes == 1
        self._number = 0
        self._count = -(-2 * SAMPLED_ROWS // passes)

    def add(self, name: str, rows: Tensor, special: Tensor) -> None:
        """The rows [T, K] of the next pass."""
        if not bool(torch.isfinite(rows).all()):
            raise CalibrationError(
                f"the input of {name} holds NaN or infinity on these pictures",
                "check the checkpoint: run it with scheme fp32 first",
            )
        if self._single:  # every second row of the one there is
            halves = ((self.learned, slice(0, None, 2)), (self.judged, slice(1, None, 2)))
            for half, every in halves:
                half.add(rows[every], special[every], SAMPLED_ROWS, self._apart)
            return
        half = self.judged if self._number % 2 else self.learned
        half.add(rows, special, self._count, self._apart)
        self._number += 1

    def sizes(self, statistic: Statistic, halves: Sequence[_Half]) -> Tensor:
        """The a [K] of the module's docstring, of some of the passes."""
        if statistic == "max":
            return torch.stack([half.largest for half in halves]).amax((0, 1))
        sums = torch.stack([half.sums for half in halves]).sum(0)
        counts = torch.stack([half.counts for half in halves]).sum(0)
        if not self._apart:
            return sums.sum(0) / counts.sum()
        present = counts > 0
        return (sums[present] / counts[present, None]).mean(0)


class _Problem:
    """Which s is best at one place."""

    def __init__(
        self, place: Place, weight: Tensor, form: WeightFormat, seen: _Seen, settings: _Settings
    ) -> None:
        self._place, self._seen, self._form, self._settings = place, seen, form, settings
        self._weight = weight.detach()
        self._sizes = self._weight.abs().mean(0)
        self._rows = seen.judged.rows
        self._reference = self._rows @ self._weight.T
        self._factors = _factors(self._reference, seen.judged.special, settings.apart)

    def decide(self, alpha: Smooth) -> tuple[Choice, Tensor | None]:
        """What to do, and s [K] (None: nothing)."""
        before = self.error(None)
        if alpha == "auto":
            statistic, exponent, after = self._search()
            if after >= before:
                return Choice(self._place.name, None, None, before, before), None
        else:
            statistic, exponent = "mean", alpha
            after = self.error(self._scale(statistic, exponent))
        every = (self._seen.learned, self._seen.judged)
        scale = smoothing_scale(self._seen.sizes(statistic, every), self._sizes, exponent)
        return Choice(self._place.name, statistic, exponent, before, after), scale

    def _search(self) -> tuple[Statistic, float, float]:
        statistics: tuple[Statistic, ...] = ("mean", "max")
        tried = [(s, a, self.error(self._scale(s, a))) for s in statistics for a in ALPHAS]
        statistic, best, _ = min(tried, key=lambda item: item[2])
        for alpha in (round(best - REFINEMENT, 6), round(best + REFINEMENT, 6)):
            if 0 <= alpha <= 1:
                tried.append((statistic, alpha, self.error(self._scale(statistic, alpha))))
        return min(tried, key=lambda item: item[2])

    def _scale(self, statistic: Statistic, alpha: float) -> Tensor:
        inputs = self._seen.sizes(statistic, (self._seen.learned,))
        return smoothing_scale(inputs, self._sizes, alpha)

    def error(self, scale: Tensor | None) -> float:
        """Relative L2 error of the output with this s (None: 1), as the layer will compute it."""
        s = torch.ones(self._place.width) if scale is None else scale
        settings = self._settings
        try:
            quantized = quantize_searched(
                self._weight * s, self._form, method=settings.weight_range
            )
        except QuantizeError as error:
            raise QuantizeError(f"{self._place.linear}: {error.message}", error.fix) from error
        static = self._input_scale(s) if settings.activations == "static" else None
        layer = QuantLinear(quantized, None, settings.activations, static)
        squares = (layer(self._rows / s) - self._reference).square().sum(1)
        return float((squares * self._factors).sum().sqrt())

    def _input_scale(self, s: Tensor) -> float:
        learned, special = self._seen.learned, self._seen.learned.special
        patches, others = (
            self._histogram(learned.rows[special == bool(kind)] / s, learned.largest[kind] / s)
            for kind in (0, 1)
        )
        settings = self._settings
        both = TokenHistograms(special=others, patches=patches)
        return input_scale(threshold(both, settings.input_range, apart=settings.apart))

    def _histogram(self, rows: Tensor, largest: Tensor) -> Histogram:
        if not len(rows):
            return NOTHING
        observer = Observer(self._place.linear)
        observer(torch.nn.Identity(), (rows,))
        # The largest of all rows is known, not only that of those kept.
        return replace(observer.histogram(), absmax=float(largest.max()))


def _factors(reference: Tensor, special: Tensor, apart: bool) -> Tensor:
    """[R]: with them, sums of squared errors of rows add up to a squared relative error.

    Apart: to the mean of that of special tokens and that of patches.
    """
    power = reference.square().sum(1)
    kinds = [~special, special] if apart else [torch.ones_like(special)]
    kinds = [kind for kind in kinds if float(power[kind].sum()) > 0]
    factors = torch.zeros(len(power))
    for kind in kinds:
        factors[kind] = 1 / power[kind].sum() / len(kinds)
    return factors
