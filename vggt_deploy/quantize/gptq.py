"""GPTQ (Frantar et al., arXiv:2210.17323): each weight makes up for the errors of those before it.

Rounding a Linear W [N, K] to the nearest integers minimises the error of the weights; what counts
is the error of the outputs on inputs X [T, K] as they are. For each row of W

    |X (w - q)|^2 = (w - q) H (w - q)^T,   H = X^T X

Inputs are rounded one after the other. With H^-1 = U^T U, U upper triangular, after input j

    e = (w_j - q_j) / U_jj,   w_k -= e U_jk for all k > j

is the choice of the remaining weights that makes the error least, and the whole error is the sum of
all e^2. So 1 / U_jj^2 is what an error of weight j costs, given that later ones make up for it, and
a searched range (`ranges`) weighs errors with that. H without correlations gives plain rounding.

U needs no inverse of H: of the mirrored H (both axes reversed) = L L^T, the mirrored L is upper
triangular, and U is its inverse. H gets `damping` of its mean diagonal on the diagonal first: with
fewer rows than inputs it has no inverse, and calibration inputs are a sample.

Scales and zero points are `qparams`' own. Those of a group are found when the group is reached,
from the weights as they then are; those of a row or tensor before the first. In order of
`activity`, the inputs with the largest squares first, groups too are fixed before. That is the
default: on vggt-nano, int4_g128, scenes that were not seen, the output errors were 0.26 of plain
rounding's, in the natural order 0.34 (geometric mean over 42 Linears); with ranges by mse 0.25 and
0.30. Damping by 0.001 or 0.05 in place of 0.01 moves that to 0.25 and 0.28.

Memory beside one stage of `walk`: five to six K x K float64, K the inputs of the largest Linear
(VGGT-1B: fc2 of a block 4096, of the camera head 8192: 2.7 GiB), and the integers found so far.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from vggt_deploy.errors import CalibrationError, QuantizeError, UsageError
from vggt_deploy.model.config import VGGTConfig
from vggt_deploy.model.sources import WeightSource
from vggt_deploy.progress import Progress, silent
from vggt_deploy.quantize.activations import round_per_group, round_per_tensor, round_static
from vggt_deploy.quantize.apply import quantized_module
from vggt_deploy.quantize.methods import Method
from vggt_deploy.quantize.plan import layers_of
from vggt_deploy.quantize.qparams import QuantizedTensor, quantize
from vggt_deploy.quantize.ranges import quantize_searched
from vggt_deploy.quantize.schemes import Activations, PerChannel, PerGroup, Precision, WeightFormat
from vggt_deploy.quantize.walk import Stage, WalkPass, walk

DAMPING = 0.01
Order = Literal["natural", "activity"]

ScaleFrom = Callable[[Tensor, WeightFormat, Precision, Tensor], QuantizedTensor]
"""(weight [N, k], format, scale type, cost [k] of a squared error of each input) -> its scales."""

_SEGMENT = 128  # inputs whose errors reach the rest of the row in one product
_ROWS = 1 << 12  # of X at a time


def from_largest(
    weight: Tensor, form: WeightFormat, scale_dtype: Precision, cost: Tensor
) -> QuantizedTensor:
    """Scales that reach the largest weight: `qparams.quantize`."""
    del cost
    return quantize(weight, form, scale_dtype=scale_dtype)


def from_range(method: Method) -> ScaleFrom:
    """Scales by a range search (`ranges.quantize_searched`); mse weighs errors by their cost."""

    def scales(
        weight: Tensor, form: WeightFormat, scale_dtype: Precision, cost: Tensor
    ) -> QuantizedTensor:
        importance = cost if method.name == "mse" else None
        return quantize_searched(
            weight, form, scale_dtype=scale_dtype, method=method, importance=importance
        )

    return scales


def accumulate(hessian: Tensor, rows: Tensor, special: Tensor | None = None) -> None:
    """Add X^T X of these rows [T, K] to the Hessian, float64 [K, K], in place.

    special: bool [T]; where given, special rows together count as much as all others together.
    Products are FP32 over 4096 rows each, sums of them float64.
    """
    if special is not None:
        count = int(special.sum())
        if 0 < count < len(rows):
            share = torch.where(
                special, len(rows) / (2 * count), len(rows) / 2 / (len(rows) - count)
            )
            rows = rows * share.sqrt()[:, None]
    for part in torch.split(rows, _ROWS):
        hessian += part.T @ part


@torch.no_grad()
def gptq_round(
    weight: Tensor,
    hessian: Tensor,
    form: WeightFormat,
    *,
    scale_dtype: Precision = "fp32",
    damping: float = DAMPING,
    order: Order = "activity",
    scale_from: ScaleFrom = from_largest,
) -> QuantizedTensor:
    """Round a Linear's weight [N, K] for inputs of this Hessian [K, K] (any factor, symmetric).

    Inputs that were always zero are rounded to the nearest.

    Raises:
        QuantizeError: shapes that do not fit, NaN or infinity, no damping where it is needed.
    """
    n, k = weight.shape
    if tuple(hessian.shape) != (k, k):
        raise QuantizeError(
            f"a Hessian {list(hessian.shape)} for a weight [{n}, {k}]", "give one that is [K, K]"
        )
    if not bool(torch.isfinite(hessian).all()) or not bool(torch.isfinite(weight).all()):
        raise QuantizeError(
            "the weight or its inputs hold NaN or infinity",
            "repair the checkpoint, or exclude the layer",
        )
    activity = hessian.diagonal()
    columns = torch.arange(k)
    if order == "activity":
        columns = torch.argsort(activity, descending=True, stable=True)
        hessian = hessian[columns][:, columns]
    factor = _inverse_factor(hessian, damping)
    cost = torch.empty(k)
    cost[columns] = factor.diagonal().float() ** -2
    grid = _Grid.empty(n, k, form, scale_dtype)
    if order == "activity" or not isinstance(form.granularity, PerGroup):
        grid.fix(0, k, scale_from(weight.float(), form, scale_dtype, cost))
        found = None
    else:
        found = scale_from
    q = _sweep(
        weight.float()[:, columns].T.contiguous(), factor.float(), columns, cost, grid, found
    )
    integers = torch.empty(n, k, dtype=torch.int8)
    integers[:, columns] = q.T
    return grid.quantized(integers)


def _inverse_factor(hessian: Tensor, damping: float) -> Tensor:
    """U of H^-1 = U^T U, upper triangular float64, of H with damping."""
    mirrored = hessian.double().flip(0, 1)
    diagonal = mirrored.diagonal()
    mean = float(diagonal.mean())
    never_seen = diagonal <= 0
    diagonal += damping * mean
    # Such an input has no correlations either: with any positive number it is rounded by itself.
    diagonal[never_seen] = mean if mean > 0 else 1.0
    mirrored, failed = torch.linalg.cholesky_ex(mirrored)
    if int(failed):
        raise QuantizeError(
            "the Hessian of the inputs has no inverse", f"use a larger damping than {damping:g}"
        )
    upper = mirrored.flip(0, 1)
    del mirrored, diagonal
    unit = torch.eye(len(upper), dtype=torch.float64)
    factor: Tensor = torch.linalg.solve_triangular(upper, unit, upper=True)
    return factor


@dataclass(frozen=True)
class _Grid:
    """Scale and zero point of each input, filled as they are found: float32 [G, N], zero_point too.

    size: how many inputs share one; the whole row unless grouped.
    """

    scale: Tensor
    zero_point: Tensor
    size: int
    format: WeightFormat
    scale_dtype: Precision

    @classmethod
    def empty(cls, n: int, k: int, form: WeightFormat, scale_dtype: Precision) -> _Grid:
        size = form.granularity.fitted(k) if isinstance(form.granularity, PerGroup) else k
        shape = (-(-k // size), n)
        return cls(torch.zeros(shape), torch.zeros(shape), size, form, scale_dtype)

    def fix(self, first: int, last: int, found: QuantizedTensor) -> None:
        """Take over the scales of inputs [first, last), whole groups."""
        groups = slice(first // self.size, -(-last // self.size))
        self.scale[groups] = found.scale.T if found.scale.dim() == 2 else found.scale
        zero_point = found.zero_point.float()
        self.zero_point[groups] = zero_point.T if zero_point.dim() == 2 else zero_point

    def quantized(self, q: Tensor) -> QuantizedTensor:
        """The integers [N, K] with the scales in the format's own shape."""
        scale, zero_point = self.scale.T.contiguous(), self.zero_point.T.contiguous()
        match self.format.granularity:
            case PerGroup():
                pass
            case PerChannel():
                scale, zero_point = scale[:, 0].clone(), zero_point[:, 0].clone()
            case _:
                scale, zero_point = scale[0, 0].clone(), zero_point[0, 0].clone()
        return QuantizedTensor(
            q, scale, zero_point.to(torch.int8), self.format, scale_dtype=self.scale_dtype
        )


def _sweep(
    weight: Tensor,
    factor: Tensor,
    columns: Tensor,
    cost: Tensor,
    grid: _Grid,
    scale_from: ScaleFrom | None,
) -> Tensor:
    """Round all inputs in turn: weight [K, N] in that order (overwritten) -> integers [K, N].

    scale_from: None where the grid is filled already; otherwise the order is the natural one.
    """
    form = grid.format
    q = torch.empty(weight.shape, dtype=torch.int8)
    groups = (columns // grid.size).tolist()
    for first, last in _segments(len(weight), grid.size):
        if scale_from is not None and first % grid.size == 0:
            end = min(first + grid.size, len(weight))
            reached = weight[first:end].T.contiguous()
            grid.fix(first, end, scale_from(reached, form, grid.scale_dtype, cost[first:end]))
        errors = torch.empty(last - first, weight.shape[1])
        for j in range(first, last):
            scale, zero_point = grid.scale[groups[j]], grid.zero_point[groups[j]]
            whole = (weight[j] / scale).round_().add_(zero_point).clamp_(form.qmin, form.qmax)
            q[j] = whole.to(torch.int8)
            error = (weight[j] - whole.sub_(zero_point).mul_(scale)) / factor[j, j]
            weight[j + 1 : last].addr_(factor[j, j + 1 : last], error, alpha=-1)
            errors[j - first] = error
        weight[last:].addmm_(factor[first:last, last:].T, errors, alpha=-1)
    return q


def _segments(k: int, size: int) -> Iterator[tuple[int, int]]:
    """Cut 0 .. k into runs that cross no border of a group."""
    for group in range(0, k, size):
        for first in range(group, min(group + size, k), _SEGMENT):
            yield first, min(first + _SEGMENT, group + size, k)


@torch.no_grad()
def gptq_network(
    config: VGGTConfig,
    source: WeightSource,
    passes: Sequence[WalkPass],
    formats: Mapping[str, WeightFormat],
    *,
    scale_dtype_of: Callable[[str], Precision],
    scratch: Path,
    apart: bool = False,
    weight_range: Method,
    activations: Activations = "float",
    input_scales: Mapping[str, float] | None = None,
    order: Order = "activity",
    damping: float = DAMPING,
    progress: Progress | None = None,
) -> dict[str, QuantizedTensor]:
    """Round these Linears of a network, each for what the quantized ones before it give.

    source: folded weights, with or without LayerScale. formats: Linear -> format; convolutions are
    rounded elsewhere. With 8-bit activations every quantized Linear is given rounded inputs, as it
    will be; static ones need `input_scales` of all of them.
    apart: a frame's special tokens count as much as its patches. All else is FP32 throughout.
    scratch: an existing folder; nothing stays in it, however this ends.

    Raises:
        UsageError: a layer that the walk does not come to, no pictures.
        QuantizeError, CalibrationError: values that are not finite, a scale that is missing.
        ArtifactError: the disk is full.
    """
    report, found = progress or silent, dict[str, QuantizedTensor]()
    keep = any(key.endswith(".gamma") for key in source.keys())  # noqa: SIM118  (no dict)
    rounder = _Rounder(formats, scale_dtype_of, apart, weight_range, activations, order, damping)
    _check(config, source, formats)
    rounder.check(input_scales)
    report("gptq", 0, len(formats))
    with closing(walk(config, source, passes, scratch=scratch, keep_layer_scale=keep)) as stages:
        for stage in stages:
            for name in stage.linears:
                if name in formats:
                    scale = None if input_scales is None else input_scales.get(name)
                    found[name] = rounder.replace(stage, name, scale)
                    report("gptq", len(found), len(formats))
    return found


def _check(config: VGGTConfig, source: WeightSource, formats: Mapping[str, WeightFormat]) -> None:
    held = frozenset(source.keys())
    walked = {
        layer.name
        for layer in layers_of(config, frozenset({"camera"}))
        if layer.kind == "linear" and f"{layer.name}.weight" in held
    }
    if missed := [name for name in formats if name not in walked]:
        raise UsageError(
            f"GPTQ walks the encoder, the aggregator and the camera head of this checkpoint, and "
            f"{missed[0]} is no Linear of those",
            f"leave gptq out, or --exclude {missed[0]}",
        )


@dataclass(frozen=True)
class _Rounder:
    """What `gptq_network` was asked for, for one Linear at a time."""

    formats: Mapping[str, WeightFormat]
    scale_dtype_of: Callable[[str], Precision]
    apart: bool
    weight_range: Method
    activations: Activations
    order: Order
    damping: float

    def check(self, input_scales: Mapping[str, float] | None) -> None:
        lacking = [name for name in self.formats if name not in (input_scales or {})]
        if self.activations == "static" and lacking:
            raise CalibrationError(
                f"no calibrated scale for the input of {lacking[0]}",
                "pass input_scales=calibration.input_scales(...) of all quantized Linears",
            )

    def replace(self, stage: Stage, name: str, input_scale: float | None) -> QuantizedTensor:
        """Round one Linear of the stage and put the quantized module in its place."""
        local = name.removeprefix(f"{stage.name}.")
        layer = stage.module.get_submodule(local)
        assert isinstance(layer, nn.Linear)
        scale = input_scale if self.activations == "static" else None
        hessian = torch.zeros(layer.in_features, layer.in_features, dtype=torch.float64)
        for got in stage.inputs([name]):
            rows = got[name]
            special = stage.special(len(rows)) if self.apart else None
            accumulate(hessian, self._given(rows, self.formats[name], scale), special)
        try:
            rounded = gptq_round(
                layer.weight,
                hessian,
                self.formats[name],
                scale_dtype=self.scale_dtype_of(name),
                damping=self.damping,
                order=self.order,
                scale_from=from_range(self.weight_range),
            )
        except QuantizeError as error:
            raise QuantizeError(f"{name}: {error.message}", error.fix) from error
        # The walk is FP32; the scale's numbers are the same, so the module takes them as FP32.
        module = quantized_module(
            layer,
            dataclasses.replace(rounded, scale_dtype="fp32"),
            layer.bias,
            self.activations,
            scale,
        )
        parent, _, leaf = local.rpartition(".")
        setattr(stage.module.get_submodule(parent), leaf, module)
        return rounded

    def _given(self, rows: Tensor, form: WeightFormat, input_scale: float | None) -> Tensor:
        """What the product sees of these inputs, as `apply.QuantLinear` rounds them.

        A dynamic range per tensor is here one of all iterations of the camera head.
        """
        if self.activations == "float":
            return rows
        if input_scale is not None:
            return round_static(rows, torch.tensor(input_scale))
        match form.granularity:
            case PerGroup(size):
                return round_per_group(rows, size)
            case _:
                return round_per_tensor(rows)
