"""How far the integers of a weight reach: to its largest value, or not quite.

A scale that need not reach the largest weight of its row is finer for all the others; what lies
beyond saturates. For every scale by itself, "row" being what shares one (`qparams.scale_rows`):

    absmax      [-amax, amax], or [min, max] where asymmetric: `qparams.quantize`, bit for bit
    percentile  symmetric: T = percentile P of |w|; asymmetric: from the percentile (100 - P) / 2
                of w to that of 100 - (100 - P) / 2, so that the same share lies outside
    mse         argmin over a grid of  sum_k m_k (w_k - q(w_k))**2,  m_k = 1 or the importance of
                input k; with m_k = E[x_k**2] that is the error of the row's output, were inputs
                uncorrelated

Grid of mse: amax * 2**(-i / 16), i = 0 .. 64. Asymmetric: both ends by the same factor, then the
upper end alone, then the lower end alone. The first candidate is the whole range and a later one
has to be better, so the result is never worse than absmax in this measure.

Candidates are tried from the widest on, and a row is done when what saturates alone costs more than
its best so far: narrower ones only saturate more. The scale of a candidate is rounded to the type
that stores it before its error is taken. Memory: the weight in FP32 and 20 MiB.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import ceil

import torch
from torch import Tensor
from torch.nn import functional as F

from vggt_deploy.errors import QuantizeError
from vggt_deploy.quantize.methods import Method
from vggt_deploy.quantize.qparams import QuantizedTensor, quantize, scale_and_zero
from vggt_deploy.quantize.schemes import PerGroup, PerTensor, Precision, WeightFormat

STEPS_PER_OCTAVE = 16
OCTAVES = 4
_CHUNK = 1 << 18  # weights at a time: a few scratch tensors of 1 MiB, inside the cache

# (row numbers [R], scale [R, 1], stored zero point [R, 1]) -> sums of all errors and of those of
# saturated weights, float64 [R, 1] each.
Errors = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def quantize_searched(
    weight: Tensor,
    form: WeightFormat,
    *,
    axis: int = 0,
    scale_dtype: Precision = "fp32",
    method: Method,
    importance: Tensor | None = None,
) -> QuantizedTensor:
    """Quantize one weight, its ranges chosen by `method`; otherwise as `qparams.quantize`.

    importance: [K], weight of the error of each input, not negative; for a Linear [N, K] and mse.

    Raises:
        QuantizeError: the weight or the importance makes no sense.
    """
    if importance is not None:
        _check_importance(weight, importance, method)
    search: Callable[..., tuple[Tensor, Tensor]]
    match method.name:
        case "absmax":
            return quantize(weight, form, axis=axis, scale_dtype=scale_dtype)
        case "percentile":
            inputs = weight.shape[1] if weight.dim() == 2 else None
            search = partial(_percentile, form=form, share=method.percentile / 100, inputs=inputs)
        case "mse":
            search = partial(
                _least_error, form=form, scale_dtype=scale_dtype, importance=importance
            )
    return quantize(weight, form, axis=axis, scale_dtype=scale_dtype, range_of=search)


def _check_importance(weight: Tensor, importance: Tensor, method: Method) -> None:
    if method.name != "mse":
        raise QuantizeError(
            f"importance weighs squared errors, and the method is {method.label}",
            "use mse, or leave the importance out",
        )
    if weight.dim() != 2 or tuple(importance.shape) != (weight.shape[1],):
        raise QuantizeError(
            f"importance {list(importance.shape)} does not fit a weight {list(weight.shape)}",
            "give one number for each input of a Linear weight [N, K]",
        )
    if not bool((torch.isfinite(importance) & (importance >= 0)).all()):
        raise QuantizeError(
            "the importance of an input is negative, NaN or infinite",
            "give the mean of x**2 of each input",
        )


# -- percentile ----------------------------------------------------------------------------------


def _percentile(
    rows: Tensor,
    low: Tensor,
    high: Tensor,
    *,
    form: WeightFormat,
    share: float,
    inputs: int | None,
) -> tuple[Tensor, Tensor]:
    counts = _counts(rows, form, inputs)
    if form.symmetric:
        limit = _from_above(rows.abs(), counts, 1 - share)
        kept_low, kept_high = -limit, limit
    else:
        outside = (1 - share) / 2
        kept_high = _from_above(rows, counts, outside).clamp_(min=0)
        kept_low = _from_above(-rows, counts, outside).clamp_(min=0).neg_()
    # So many weights are zero that nothing is left to divide by: the whole range then.
    empty = (kept_low == 0) & (kept_high == 0)
    return torch.where(empty, low, kept_low), torch.where(empty, high, kept_high)


def _counts(rows: Tensor, form: WeightFormat, inputs: int | None) -> Tensor:
    """How many weights each row has, the zeros that fill up a last short group not counted: [R]."""
    counts = torch.full((rows.shape[0],), rows.shape[1])
    if isinstance(form.granularity, PerGroup) and inputs is not None:
        groups = form.granularity.groups(inputs)
        counts[groups - 1 :: groups] = inputs - (groups - 1) * rows.shape[1]
    return counts


def _from_above(rows: Tensor, counts: Tensor, share: float) -> Tensor:
    """The value that `share` of a row's weights lie above, between its neighbours: [R, 1].

    Counted from the largest, where the zeros of a filled-up group do not reach.
    """
    place = (counts - 1).double() * share
    before = place.floor().long()
    step = max(1, _CHUNK // rows.shape[1])
    found = []
    for start in range(0, rows.shape[0], step):
        piece = slice(start, start + step)
        wanted = min(int(before[piece].max()) + 2, rows.shape[1])
        largest = rows[piece].topk(wanted, dim=1).values.double()
        upper = largest.gather(1, before[piece, None])
        lower = largest.gather(1, (before[piece, None] + 1).clamp_(max=wanted - 1))
        found.append(upper + (lower - upper) * (place - before)[piece, None])
    return torch.cat(found).float()


# -- least squared error -------------------------------------------------------------------------


def _least_error(
    rows: Tensor,
    low: Tensor,
    high: Tensor,
    *,
    form: WeightFormat,
    scale_dtype: Precision,
    importance: Tensor | None,
) -> tuple[Tensor, Tensor]:
    mass = None if importance is None else _mass(rows, importance.detach().float(), form)
    if isinstance(form.granularity, PerTensor):
        errors = partial(_errors_of_one, rows, mass, form)
        return _narrow(errors, low, high, form, scale_dtype)
    period = 1 if mass is None else mass.shape[0]
    step = max(1, _CHUNK // rows.shape[1])
    kept = []
    for start in range(0, rows.shape[0], step):
        piece = slice(start, start + step)
        first = start % period
        errors = partial(_errors, rows[piece], mass, first, form)
        kept.append(_narrow(errors, low[piece], high[piece], form, scale_dtype))
    lows, highs = zip(*kept, strict=True)
    return torch.cat(lows), torch.cat(highs)


def _mass(rows: Tensor, importance: Tensor, form: WeightFormat) -> Tensor:
    """Importance as the rows lie: [1, L], for groups [G, L] (row r has that of r % G)."""
    match form.granularity:
        case PerGroup() as group:
            k = importance.numel()
            return F.pad(importance, (0, group.padded_k(k) - k)).view(-1, rows.shape[1])
        case PerTensor():
            return importance.repeat(rows.shape[1] // importance.numel())[None]
        case _:
            return importance[None]


def _errors(
    rows: Tensor,
    mass: Tensor | None,
    first: int,
    form: WeightFormat,
    which: Tensor,
    scale: Tensor,
    zero_point: Tensor,
) -> tuple[Tensor, Tensor]:
    """Errors of some of these rows, whose first is row `first` of a period of `mass`."""
    x = (rows if which.numel() == rows.shape[0] else rows[which]) / scale
    # In units of the scale: the squares of very small weights would vanish.
    inside = torch.clamp(x, form.qmin - zero_point, form.qmax - zero_point)
    beyond = (x - inside).square_()
    off = inside.round_().sub_(x).square_()
    if mass is not None:
        m = mass[(which + first) % mass.shape[0]]
        beyond, off = beyond.mul_(m), off.mul_(m)
    unit = scale.double().square()
    return off.sum(1, keepdim=True) * unit, beyond.sum(1, keepdim=True) * unit


def _errors_of_one(
    rows: Tensor,
    mass: Tensor | None,
    form: WeightFormat,
    which: Tensor,
    scale: Tensor,
    zero_point: Tensor,
) -> tuple[Tensor, Tensor]:
    """The same of the one row of a whole tensor, a chunk of its columns at a time."""
    off = torch.zeros(1, 1, dtype=torch.float64)
    beyond = torch.zeros(1, 1, dtype=torch.float64)
    for i in range(ceil(rows.shape[1] / _CHUNK)):
        piece = slice(i * _CHUNK, (i + 1) * _CHUNK)
        m = None if mass is None else mass[:, piece]
        more_off, more_beyond = _errors(rows[:, piece], m, 0, form, which, scale, zero_point)
        off += more_off
        beyond += more_beyond
    return off, beyond


def _narrow(
    errors: Errors, low: Tensor, high: Tensor, form: WeightFormat, scale_dtype: Precision
) -> tuple[Tensor, Tensor]:
    """The range of least error for each row, from the whole one inwards."""
    low, high = _search(errors, low, high, (True, True), form, scale_dtype)
    if not form.symmetric:
        low, high = _search(errors, low, high, (False, True), form, scale_dtype)
        low, high = _search(errors, low, high, (True, False), form, scale_dtype)
    return low, high


def _search(
    errors: Errors,
    low: Tensor,
    high: Tensor,
    moves: tuple[bool, bool],
    form: WeightFormat,
    scale_dtype: Precision,
) -> tuple[Tensor, Tensor]:
    """Move the lower end, the upper or both inwards; rows that can't gain any more drop out."""
    best_low, best_high = low.clone(), high.clone()
    best = torch.full(low.shape, torch.inf, dtype=torch.float64)
    active = torch.arange(low.shape[0])
    for i in range(STEPS_PER_OCTAVE * OCTAVES + 1):
        factor = 2.0 ** (-i / STEPS_PER_OCTAVE)
        tried_low = low[active] * factor if moves[0] else low[active]
        tried_high = high[active] * factor if moves[1] else high[active]
        scale, zero_point = scale_and_zero(tried_low, tried_high, form, scale_dtype)
        error, beyond = errors(active, scale, zero_point)
        if i:  # subnormal ends vanish when they shrink, and a range of nothing is none
            error = error.masked_fill((tried_low == 0) & (tried_high == 0), torch.inf)
        better = error < best[active]
        rows = active[better[:, 0]]
        best[rows] = error[better][:, None]
        best_low[rows] = tried_low[better][:, None]
        best_high[rows] = tried_high[better][:, None]
        active = active[(beyond < best[active])[:, 0]]
        if active.numel() == 0:
            break
    return best_low, best_high
