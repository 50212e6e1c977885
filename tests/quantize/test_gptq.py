"""GPTQ: the error of the outputs is what falls, within a bound, in the format's own integers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vggt_deploy.data.synthetic import render_views
from vggt_deploy.errors import CalibrationError, QuantizeError, UsageError
from vggt_deploy.model.fold import FoldedWeights
from vggt_deploy.model.weights import open_weights
from vggt_deploy.quantize.activations import round_static
from vggt_deploy.quantize.apply import replace_layers
from vggt_deploy.quantize.gptq import accumulate, from_range, gptq_network, gptq_round
from vggt_deploy.quantize.methods import Method
from vggt_deploy.quantize.plan import LayerInfo, layers_of, plan
from vggt_deploy.quantize.qparams import TORCH_DTYPE, QuantizedTensor, dequantize, quantize
from vggt_deploy.quantize.schemes import (
    INT8_PC_SYM,
    PerGroup,
    Precision,
    WeightFormat,
    get_scheme,
    parse_format,
)
from vggt_deploy.quantize.walk import walk

ABSMAX = Method("absmax")
FORMATS = [
    "int4_g32",
    "int4_g128",
    "int8_pc_sym",
    "int8_pc_asym",
    "int8_pt_sym",
    "int8_pt_asym",
]


def correlated(rows: int, k: int, seed: int = 0) -> Tensor:
    """Inputs [rows, k] of which a few directions say most, as of a trained network."""
    generator = torch.Generator().manual_seed(seed)
    few = torch.randn(rows, max(1, k // 8), generator=generator)
    mix = torch.randn(few.shape[1], k, generator=generator)
    return few @ mix + 0.1 * torch.randn(rows, k, generator=generator)


def weights(n: int, k: int, seed: int = 1) -> Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed))


def hessian(rows: Tensor) -> Tensor:
    return rows.double().T @ rows.double()


def output_error(weight: Tensor, rounded: QuantizedTensor, rows: Tensor) -> float:
    """|X (W - Q)^T| / |X W^T|."""
    difference = rows @ (weight - dequantize(rounded)).T
    return float(difference.norm() / (rows @ weight.T).norm())


@pytest.mark.parametrize("label", FORMATS)
@pytest.mark.parametrize("order", ["natural", "activity"])
def test_the_output_error_falls_on_inputs_that_were_not_seen(label: str, order: Any) -> None:
    form, weight = parse_format(label), weights(24, 200)
    rows = correlated(1600, 200)
    seen, others = rows[:800], rows[800:]
    plain = output_error(weight, quantize(weight, form), others)
    found = gptq_round(weight, hessian(seen), form, order=order)
    assert output_error(weight, found, others) < 0.7 * plain
    # The twin: what is learned of other inputs does not help with these.
    wrong = gptq_round(weight, hessian(seen).flip(0, 1), form, order=order)
    assert output_error(weight, wrong, others) > 0.9 * plain


@pytest.mark.parametrize("label", [*FORMATS, "int4_g256"])
@pytest.mark.parametrize("order", ["natural", "activity"])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_without_correlations_it_is_plain_rounding(
    label: str, order: Any, dtype: Precision
) -> None:
    """Bit for bit, whatever the inputs' sizes, and also where some were always zero."""
    form, weight = parse_format(label), weights(9, 300)
    sizes = torch.linspace(0.5, 3, 300).double()
    sizes[[3, 130, 299]] = 0
    found = gptq_round(weight, sizes.diag(), form, order=order, scale_dtype=dtype)
    plain = quantize(weight, form, scale_dtype=dtype)
    assert torch.equal(found.q, plain.q)
    assert torch.equal(found.scale, plain.scale)
    assert torch.equal(found.zero_point, plain.zero_point)
    assert (found.format, found.axis, found.scale_dtype) == (form, 0, dtype)
    rows = correlated(600, 300)
    assert not torch.equal(gptq_round(weight, hessian(rows), form, order=order).q, plain.q)


def roomy(weight: Tensor, form: WeightFormat, dtype: Precision, cost: Tensor) -> QuantizedTensor:
    """Scales so wide that no weight saturates, whatever errors it makes up for."""
    return quantize(3 * weight, form, scale_dtype=dtype)


@pytest.mark.parametrize("seed", range(6))
def test_the_error_is_within_the_bound_of_rounding_in_turn(seed: int) -> None:
    """Sum_j e_j^2 with |e_j| <= s / (2 U_jj): plain rounding does not stay within that."""
    form = WeightFormat(8, INT8_PC_SYM.granularity)
    rows, weight = correlated(400, 48, seed), weights(5, 48, seed)
    h = hessian(rows)
    found = gptq_round(weight, h, form, damping=0.0, order="natural", scale_from=roomy)
    inverse = torch.linalg.inv(h)
    upper = torch.linalg.cholesky(inverse, upper=True)
    bound = (found.scale.double() ** 2 / 4) * (1 / upper.diagonal() ** 2).sum()

    def squared(rounded: QuantizedTensor) -> Tensor:
        difference = (weight - dequantize(rounded)).double()
        return ((difference @ h) * difference).sum(1)

    assert bool((squared(found) <= bound * (1 + 1e-6)).all())
    assert bool((squared(roomy(weight, form, "fp32", weight)) > bound).any())


def test_beside_the_best_of_all_integers() -> None:
    """4 inputs, 4 bit: all 15^4 choices tried. GPTQ is near the best, plain rounding is not."""
    form = WeightFormat(4, PerGroup(8))
    every = torch.tensor(list(product(range(-7, 8), repeat=4)), dtype=torch.float32)
    found_ratio, plain_ratio = [], []
    for seed in range(8):
        rows, weight = correlated(60, 4, seed), weights(1, 4, seed)
        # A scale of its own: with the largest weight at 7 there is no room to make up for errors.
        plain = roomy(weight, form, "fp32", weight)
        h = hessian(rows)
        difference = (weight - every * plain.scale).double()
        best = float(((difference @ h) * difference).sum(1).min().sqrt())
        norm = (rows @ weight.T).norm()
        found = gptq_round(weight, h, form, damping=1e-6, scale_from=roomy)
        found_ratio.append(output_error(weight, found, rows) * float(norm) / best)
        plain_ratio.append(output_error(weight, plain, rows) * float(norm) / best)
    assert min(found_ratio) >= 1 - 1e-3
    assert sum(found_ratio) / 8 < 2
    assert sum(plain_ratio) / 8 > 2.5


@given(
    n=st.integers(1, 5),
    k=st.integers(1, 40),
    form=st.builds(
        WeightFormat,
        st.just(4),
        st.builds(PerGroup, st.integers(1, 33)),
        st.booleans(),
    )
    | st.sampled_from([parse_format(label) for label in FORMATS[2:]]),
    dtype=st.sampled_from(["fp32", "fp16", "bf16"]),
    seed=st.integers(0, 99),
    size=st.sampled_from([1e-38, 1e-3, 1.0, 1e3]),
    order=st.sampled_from(["natural", "activity"]),
)
@settings(max_examples=60, deadline=None)
def test_numbers_keep_the_conventions(
    n: int, k: int, form: WeightFormat, dtype: Precision, seed: int, size: float, order: Any
) -> None:
    weight = weights(n, k, seed) * size
    h = hessian(correlated(3, k, seed))  # fewer rows than inputs
    found = gptq_round(weight, h, form, scale_dtype=dtype, order=order)
    plain = quantize(weight, form, scale_dtype=dtype)
    assert found.q.shape == plain.q.shape
    assert found.scale.shape == plain.scale.shape
    assert found.zero_point.shape == plain.zero_point.shape
    assert (found.q.dtype, found.scale.dtype, found.zero_point.dtype) == (
        torch.int8,
        torch.float32,
        torch.int8,
    )
    assert form.qmin <= int(found.q.min()) <= int(found.q.max()) <= form.qmax
    assert torch.equal(found.scale.to(TORCH_DTYPE[dtype]).float(), found.scale)
    assert float(found.scale.min()) >= torch.finfo(TORCH_DTYPE[dtype]).tiny
    if form.symmetric:
        assert not bool(found.zero_point.any())
    assert bool(torch.isfinite(dequantize(found)).all())


def test_a_searched_range_weighs_errors_by_what_they_cost() -> None:
    form, weight = parse_format("int4_g32"), weights(16, 96)
    weight[:, ::32] *= 4  # an outlier a group
    rows = correlated(500, 96)
    h = hessian(rows)
    plain = gptq_round(weight, h, form)
    searched = gptq_round(weight, h, form, scale_from=from_range(Method("mse")))
    assert output_error(weight, searched, rows) < output_error(weight, plain, rows)
    absmax = gptq_round(weight, h, form, scale_from=from_range(ABSMAX))
    assert torch.equal(absmax.q, plain.q)
    seen: list[Tensor] = []

    def spy(w: Tensor, form: WeightFormat, dtype: Precision, cost: Tensor) -> QuantizedTensor:
        seen.append(cost)
        return quantize(w, form, scale_dtype=dtype)

    gptq_round(weight, h, form, damping=0.0, order="natural", scale_from=spy)
    inverse = torch.linalg.inv(h)
    exact = 1 / torch.linalg.cholesky(inverse, upper=True).diagonal() ** 2
    torch.testing.assert_close(torch.cat(seen).double(), exact, rtol=1e-4, atol=0)


def test_bad_input_is_named() -> None:
    form, weight = parse_format("int4_g32"), weights(4, 16)
    good = hessian(correlated(50, 16))
    with pytest.raises(QuantizeError, match=r"a Hessian \[15, 15\] for a weight \[4, 16\]"):
        gptq_round(weight, good[:15, :15], form)
    with pytest.raises(QuantizeError, match="NaN or infinity"):
        gptq_round(weight, good * torch.nan, form)
    with pytest.raises(QuantizeError, match="NaN or infinity"):
        gptq_round(weight / 0, good, form)
    with pytest.raises(QuantizeError, match="has no inverse") as caught:
        gptq_round(weight, -good + good.diagonal().diag() * 1.5, form, damping=0.0)
    assert "larger damping" in caught.value.fix
    with pytest.raises(QuantizeError, match="does not fit in"):
        gptq_round(weight * 1e7, good, form, scale_dtype="fp16")


def test_the_hessian_is_a_sum_over_rows() -> None:
    rows = correlated(9000, 12)
    whole = torch.zeros(12, 12, dtype=torch.float64)
    for part in rows.split([1, 5000, 3999]):
        accumulate(whole, part)
    torch.testing.assert_close(whole, hessian(rows), rtol=1e-5, atol=1e-3)


def test_special_rows_count_as_much_as_all_others() -> None:
    rows, special = torch.zeros(100, 2), torch.zeros(100, dtype=torch.bool)
    special[:5] = True
    rows[:5, 0], rows[5:, 1] = 1.0, 1.0
    apart, plain = torch.zeros(2, 2).double(), torch.zeros(2, 2).double()
    accumulate(apart, rows, special)
    accumulate(plain, rows)
    torch.testing.assert_close(
        apart.diagonal(), torch.tensor([50.0, 50.0]).double(), rtol=1e-5, atol=0
    )
    torch.testing.assert_close(
        plain.diagonal(), torch.tensor([5.0, 95.0]).double(), rtol=1e-5, atol=0
    )
    for all_alike in (torch.ones_like(special), torch.zeros_like(special)):
        same = torch.zeros(2, 2).double()
        accumulate(same, rows, all_alike)
        assert torch.equal(same, plain)


# -- a network -----------------------------------------------------------------------------------

NANO, NANO_RAW = open_weights("vggt-nano")
NANO_FOLDED = FoldedWeights(NANO_RAW, NANO)
TINY, TINY_RAW = open_weights("random:vggt-tiny")
TINY_FOLDED = FoldedWeights(TINY_RAW, TINY)


def linears(config: Any, scheme: str) -> dict[str, WeightFormat]:
    layers = layers_of(config, frozenset({"camera"}))
    formats = plan(get_scheme(scheme), layers)
    return {layer.name: formats[layer.name] for layer in layers if layer.name in formats}


def rendered(seed: int) -> Callable[[], Tensor]:
    drawn = render_views(seed, views=4, height=84, width=112)
    pixels = torch.from_numpy(drawn.images).permute(0, 3, 1, 2).float() / 255
    return lambda: pixels


def run(config: Any, source: Any, passes: Any, formats: Any, scratch: Path, **changes: Any) -> Any:
    request = {
        "scale_dtype_of": lambda name: "fp32",
        "scratch": scratch,
        "weight_range": ABSMAX,
    } | changes
    return gptq_network(config, source, passes, formats, **request)


def tiny_pass() -> Tensor:
    return torch.rand(2, 3, 28, 42, generator=torch.Generator().manual_seed(0))


def test_on_a_trained_network_nearly_every_layer_gains(tmp_path: Path) -> None:
    """vggt-nano: the layers' output errors on scenes that GPTQ did not see, and the poses'."""
    formats = linears(NANO, "int4_g128")
    seen = [rendered(seed) for seed in range(4)]
    found = run(NANO, NANO_FOLDED, seen, formats, tmp_path)
    assert found.keys() == formats.keys()
    assert not list(tmp_path.iterdir())
    others = [rendered(seed) for seed in range(100, 102)]
    better = total = 0
    for stage in walk(NANO, NANO_FOLDED, others, scratch=tmp_path):
        sums = {name: torch.zeros(2) for name in stage.linears if name in formats}
        for got in stage.inputs(tuple(sums)):
            for name, rows in got.items():
                weight = stage.module.get_submodule(name.removeprefix(f"{stage.name}.")).weight
                plain = quantize(weight, formats[name])
                sums[name] += torch.tensor(
                    [output_error(weight, q, rows) ** 2 for q in (found[name], plain)]
                )
        better += sum(bool(mine < plain) for mine, plain in sums.values())
        total += len(sums)
    assert total == len(formats)
    assert better > 0.85 * total


class Chosen:
    """Integers from a dictionary."""

    def __init__(self, found: dict[str, QuantizedTensor]) -> None:
        self._found = found

    def quantized(
        self, layer: LayerInfo, form: WeightFormat, scale_dtype: Precision
    ) -> QuantizedTensor:
        return self._found[layer.name]


@pytest.mark.parametrize(
    "scheme, activations",
    [("int4_g32", "float"), ("int4_g32", "dynamic"), ("int8_pc_sym", "static")],
)
def test_each_layer_is_rounded_for_what_the_quantized_network_gives(
    scheme: str, activations: Any, tmp_path: Path
) -> None:
    """The Hessians, seen from outside: the inputs of the finished quantized network."""
    formats = linears(TINY, scheme)
    scales = dict.fromkeys(formats, 0.03) if activations == "static" else None
    found = run(
        TINY,
        TINY_FOLDED,
        [tiny_pass],
        formats,
        tmp_path,
        activations=activations,
        input_scales=scales,
    )
    model = _whole(TINY, TINY_FOLDED)
    replace_layers(model, formats, Chosen(found), activations=activations, input_scales=scales)
    plain = _whole(TINY, TINY_FOLDED)
    name = "aggregator.global_blocks.1.mlp.fc2"
    quantized_rows, float_rows = _rows(model, name), _rows(plain, name)
    assert not torch.allclose(quantized_rows, float_rows)
    if activations == "static":
        quantized_rows = round_static(quantized_rows, torch.tensor(0.03))
    elif activations == "dynamic":
        from vggt_deploy.quantize.activations import round_per_group

        quantized_rows = round_per_group(quantized_rows, 32)
    weight = TINY_FOLDED.load(f"{name}.weight")

    def again(rows: Tensor) -> Tensor:
        h = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
        accumulate(h, rows)
        return gptq_round(weight, h, formats[name]).q

    assert torch.equal(again(quantized_rows), found[name].q)
    assert not torch.equal(again(float_rows), found[name].q)


def _whole(config: Any, source: Any) -> Any:
    from vggt_deploy.model.vggt import VGGT

    with torch.device("meta"):
        model = VGGT(config, heads=frozenset({"camera"}), folded=True)
    model.load_state_dict({key: source.load(key) for key in model.state_dict()}, assign=True)
    return model.eval().requires_grad_(False)


def _rows(model: Any, name: str) -> Tensor:
    seen: list[Tensor] = []
    hook = model.get_submodule(name).register_forward_pre_hook(
        lambda _, x: seen.append(x[0].reshape(-1, x[0].shape[-1]))
    )
    with torch.no_grad():
        model(tiny_pass())
    hook.remove()
    return torch.cat(seen)


def test_apart_and_range_and_scale_types_arrive(tmp_path: Path) -> None:
    name = "aggregator.frame_blocks.0.attn.qkv"
    formats = {name: parse_format("int4_g32")}
    plain = run(TINY, TINY_FOLDED, [tiny_pass], formats, tmp_path)[name]
    apart = run(TINY, TINY_FOLDED, [tiny_pass], formats, tmp_path, apart=True)[name]
    ranged = run(TINY, TINY_FOLDED, [tiny_pass], formats, tmp_path, weight_range=Method("mse"))[
        name
    ]
    assert not torch.equal(plain.q, apart.q)
    assert not torch.equal(plain.scale, ranged.scale)
    kept = FoldedWeights(TINY_RAW, TINY, keep_layer_scale=True)
    half = run(TINY, kept, [tiny_pass], formats, tmp_path, scale_dtype_of=lambda name: "fp16")[name]
    assert half.scale_dtype == "fp16"
    assert torch.equal(half.scale.half().float(), half.scale)
    assert not torch.equal(plain.scale.half().float(), plain.scale)


def test_progress_is_told_and_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    formats = linears(TINY, "int4_g32")
    told: list[tuple[str, int, int]] = []

    def progress(stage: str, done: int, total: int) -> None:
        told.append((stage, done, total))
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(TINY, TINY_FOLDED, [tiny_pass], formats, tmp_path, progress=progress)
    assert told == [("gptq", done, len(formats)) for done in range(8)]
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_done_is_said(tmp_path: Path) -> None:
    form = parse_format("int4_g32")
    with pytest.raises(UsageError, match=r"and track_head\.x is no Linear of those") as caught:
        run(TINY, TINY_FOLDED, [tiny_pass], {"track_head.x": form}, tmp_path)
    assert "--exclude track_head.x" in caught.value.fix
    name = "aggregator.frame_blocks.0.attn.qkv"
    with pytest.raises(CalibrationError, match=rf"no calibrated scale for the input of {name}"):
        run(TINY, TINY_FOLDED, [tiny_pass], {name: INT8_PC_SYM}, tmp_path, activations="static")
    broken = [lambda: tiny_pass() * torch.nan]
    with pytest.raises(QuantizeError, match=rf"{name}: the weight or its inputs hold NaN"):
        run(TINY, TINY_FOLDED, broken, {name: form}, tmp_path)
    assert not list(tmp_path.iterdir())


WIDE = """
import dataclasses, sys, tempfile, torch
from pathlib import Path
from vggt_deploy.memory import peak_rss_bytes
from vggt_deploy.model.config import get_config
from vggt_deploy.model.fold import FoldedWeights
from vggt_deploy.model.sources import RandomWeights
from vggt_deploy.model.weights import expected_shapes
from vggt_deploy.quantize.gptq import gptq_network
from vggt_deploy.quantize.methods import Method
from vggt_deploy.quantize.plan import layers_of, plan
from vggt_deploy.quantize.schemes import get_scheme

camera = frozenset({"camera"})
config = dataclasses.replace(
    get_config("vggt-1b"), name="wide", depth=1, encoder_depth=1, dpt_layers=(0, 0, 0, 0)
)
source = FoldedWeights(RandomWeights("wide", expected_shapes(config, camera)), config)
layers = layers_of(config, camera)
picture = torch.rand(8, 3, 350, 518)
with tempfile.TemporaryDirectory() as scratch:
    found = gptq_network(
        config, source, [lambda: picture] * 2, plan(get_scheme("int4_g128"), layers),
        scale_dtype_of=lambda name: "fp32", scratch=Path(scratch), apart=True,
        weight_range=Method("mse"), activations="dynamic",
    )
print(len(found), peak_rss_bytes()[0])
"""


@pytest.mark.slow
def test_memory_at_the_width_of_vggt_1b(tmp_path: Path) -> None:
    """One block of each kind and the whole camera head, 16 pictures of 350 x 518. The other 69
    blocks need no more: one is in memory at a time, and their integers are 0.9 GB.
    """
    done = subprocess.run(
        [sys.executable, "-c", WIDE], check=True, capture_output=True, text=True, cwd=tmp_path
    )
    layers, peak = (int(word) for word in done.stdout.split())
    assert layers == 3 * 4 + 4 * 4 + 2
    assert peak / 2**30 < 8
