"""Fake quantization: the bits of the finished integers, LSQ's gradients, and what it refuses."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from vggt_deploy.errors import CalibrationError, QuantizeError
from vggt_deploy.qat.fake import (
    FakeQuantLinear,
    Finished,
    fake_layers,
    finish,
    input_scales_of,
    insert_fake,
    set_enabled,
    step_parameters,
)
from vggt_deploy.qat.rounding import from_rows, settled, to_rows
from vggt_deploy.quantize.apply import quantized_module
from vggt_deploy.quantize.plan import LayerInfo
from vggt_deploy.quantize.qparams import QuantizedTensor, dequantize, quantize
from vggt_deploy.quantize.schemes import (
    Activations,
    PerGroup,
    Precision,
    WeightFormat,
    parse_format,
)

LINEAR: list[tuple[str, Activations]] = [
    ("int8_pt_sym", "float"),
    ("int8_pt_asym", "static"),
    ("int8_pc_sym", "float"),
    ("int8_pc_sym", "static"),
    ("int8_pc_sym", "dynamic"),
    ("int8_pc_asym", "dynamic"),
    ("int4_g32", "float"),
    ("int4_g32", "dynamic"),
]


class Small(nn.Module):
    """x [N, 3, 8, 8] -> [N, 4]: one layer of each kind, K = 40 with a short last group of 32."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(5, 10, 2, stride=2)
        self.first = nn.Linear(40, 6)
        self.last = nn.Linear(6, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(F.relu(self.conv(x)))
        x = F.adaptive_avg_pool2d(x, 2).flatten(1)
        out: Tensor = self.last(F.gelu(self.first(x)))
        return out


def small(seed: int = 0) -> tuple[Small, Tensor]:
    torch.manual_seed(seed)
    return Small(), torch.randn(7, 3, 8, 8)


def all_formats(linear: str) -> dict[str, WeightFormat]:
    conv = parse_format("int8_pc_sym")
    form = parse_format(linear)
    return {"conv": conv, "up": conv, "first": form, "last": form}


SCALES = {"first": 0.021, "last": 0.013}


def become_integers(model: nn.Module, activations: Activations) -> None:
    """Put the finished modules in place of the fake ones, without any code of `fake`'s forward."""
    integers, scales = finish(model), input_scales_of(model)
    for name, layer in list(fake_layers(model)):
        mode = activations if isinstance(layer, nn.Linear) else "float"
        bias = None if layer.bias is None else layer.bias.detach()
        setattr(model, name, quantized_module(layer, integers[name], bias, mode, scales.get(name)))


def shake_steps(model: nn.Module, size: float = 0.2) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for step in step_parameters(model).values():
            step.copy_(size * torch.randn(step.shape, generator=generator))


@pytest.mark.parametrize("linear, activations", LINEAR)
@pytest.mark.parametrize("shaken", [False, True])
def test_forward_has_the_bits_of_the_finished_integers(
    linear: str, activations: Activations, shaken: bool
) -> None:
    model, x = small()
    scales = SCALES if activations == "static" else None
    insert_fake(model, all_formats(linear), activations, None, scales)
    if shaken:
        shake_steps(model)
    fake = model(x)
    become_integers(model, activations)
    assert torch.equal(fake, model(x))


def test_another_step_or_integer_gives_other_bits() -> None:
    model, x = small()
    insert_fake(model, all_formats("int8_pc_sym"))
    fake = model(x)
    for name, index in (("last", 0), ("first", 3)):
        changed, _ = small()
        insert_fake(changed, all_formats("int8_pc_sym"))
        layer = changed.get_submodule(name)
        assert isinstance(layer, FakeQuantLinear)
        with torch.no_grad():
            layer.fake_weight.step.log_growth[index] += 1e-4
        assert not torch.equal(fake, changed(x))


def test_starts_with_the_integers_of_plain_rounding() -> None:
    model, _ = small()
    formats = all_formats("int4_g32")
    expected = {
        name: quantize(
            model.get_submodule(name).get_parameter("weight"), form, axis=int(name == "up")
        )
        for name, form in formats.items()
    }
    insert_fake(model, formats)
    for name, quantized in finish(model).items():
        assert torch.equal(quantized.q, expected[name].q)
        assert torch.equal(quantized.scale, expected[name].scale)
        assert torch.equal(quantized.zero_point, expected[name].zero_point)
        assert quantized.axis == expected[name].axis


def test_parameters_stay_the_same_objects() -> None:
    model, _ = small()
    before = dict(model.named_parameters())
    insert_fake(model, all_formats("int8_pc_sym"))
    after = dict(model.named_parameters())
    assert all(after[name] is parameter for name, parameter in before.items())
    assert set(after) - set(before) == set(step_parameters(model))


def test_disabled_it_is_the_float_network() -> None:
    model, x = small()
    plain = model(x)
    insert_fake(model, all_formats("int4_g32"), "dynamic")
    assert not torch.equal(model(x), plain)
    set_enabled(model, False)
    assert torch.equal(model(x), plain)
    set_enabled(model, True)
    assert not torch.equal(model(x), plain)


def lsq(
    w: float, step: float, zero: int, form: WeightFormat, gradient: float
) -> tuple[float, float]:
    """The paper's equations 3 and 5 for one number: dL/dw and dL/ds, in plain Python."""
    ratio, low, high = w / step, form.qmin - zero, form.qmax - zero
    if ratio <= low:
        return 0.0, gradient * low
    if ratio >= high:
        return 0.0, gradient * high
    return gradient, gradient * (round(ratio) - ratio)


@pytest.mark.parametrize("linear", ["int8_pt_sym", "int8_pc_asym", "int4_g32"])
@pytest.mark.parametrize("scaled", [True, False])
def test_gradients_are_lsqs(linear: str, scaled: bool) -> None:
    torch.manual_seed(1)
    layer = nn.Sequential(nn.Linear(40, 3, bias=False)).double().float()
    form = parse_format(linear)
    insert_fake(layer, {"0": form})
    fake = layer[0]
    assert isinstance(fake, FakeQuantLinear)
    with torch.no_grad():
        fake.fake_weight.step.log_growth -= 0.5  # so that some weights are clipped
    step = fake.fake_weight.step()
    gradient = torch.randn(3, 40)
    (fake.fake_weight(fake.weight) * gradient).sum().backward()

    size = {"int8_pt_sym": 120, "int8_pc_asym": 40, "int4_g32": 32}[linear]
    expected_weight = torch.zeros(3, 40)
    expected_step = torch.zeros(step.shape, dtype=torch.float64)
    clipped = 0
    for row in range(3):
        for column in range(40):
            index: tuple[int, ...] = ()
            if form.granularity.label != "pt":
                index = (row, column // 32) if isinstance(form.granularity, PerGroup) else (row,)
            by_weight, by_step = lsq(
                float(fake.weight.detach()[row, column]),
                float(step.detach()[index]),
                int(fake.fake_weight.zero_point[index]),
                form,
                float(gradient[row, column]),
            )
            expected_weight[row, column] = by_weight
            expected_step[index] += by_step
            clipped += by_weight == 0.0
    assert 0 < clipped < 60
    assert fake.weight.grad is not None
    assert torch.equal(fake.weight.grad, expected_weight)
    # ds/dt = s, and LSQ's scale of the gradient.
    expected_step *= step.detach().double()
    if scaled:
        expected_step /= math.sqrt(size * form.qmax)
    found = fake.fake_weight.step.log_growth.grad
    assert found is not None
    close = torch.allclose(found.double(), expected_step, rtol=1e-4, atol=1e-7)
    assert close == scaled


def test_gradients_of_static_inputs_are_lsqs() -> None:
    layer = nn.Sequential(nn.Linear(8, 3))
    insert_fake(layer, {"0": parse_format("int8_pc_sym")}, "static", None, {"0": 0.01})
    fake = layer[0]
    assert isinstance(fake, FakeQuantLinear)
    assert fake.fake_input.step is not None
    x = torch.tensor([[0.5, -0.237, 1.5, -9.0, 0.0, 0.0149, 1.26, 1.28]], requires_grad=True)
    gradient = torch.arange(1.0, 9.0)[None]
    (fake.fake_input(x) * gradient).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[1.0, 2.0, 0.0, 0.0, 5.0, 6.0, 7.0, 0.0]]
    ratios = x.detach() / 0.01
    inside = (ratios > -128) & (ratios < 127)
    slope = torch.where(inside, ratios.round() - ratios, ratios.clamp(-128, 127))
    expected = float((slope * gradient).sum()) * 0.01 / math.sqrt(8 * 127)
    found = fake.fake_input.step.log_growth.grad
    assert found is not None
    assert float(found) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("linear", ["int8_pc_sym", "int4_g32"])
def test_gradients_go_straight_through_dynamic_inputs(linear: str) -> None:
    layer = nn.Sequential(nn.Linear(40, 3))
    insert_fake(layer, {"0": parse_format(linear)}, "dynamic")
    fake = layer[0]
    assert isinstance(fake, FakeQuantLinear)
    x = torch.randn(5, 40, requires_grad=True)
    rounded = fake.fake_input(x)
    gradient = torch.randn(5, 40)
    rounded.backward(gradient)
    assert not torch.equal(rounded, x)
    assert x.grad is not None
    assert torch.equal(x.grad, gradient)


@settings(max_examples=60, deadline=None)
@given(
    label=st.sampled_from(["int8_pt_sym", "int8_pc_asym", "int8_pc_sym", "int4_g32", "int4_g128"]),
    n=st.integers(1, 5),
    k=st.integers(1, 70),
    growth=st.floats(-200, 200),
    dtype=st.sampled_from(["fp32", "bf16", "fp16"]),
    seed=st.integers(0, 1000),
)
def test_finished_integers_obey_the_conventions(
    label: str, n: int, k: int, growth: float, dtype: Precision, seed: int
) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(k, n))
    form = parse_format(label)
    insert_fake(model, {"0": form}, scale_dtype=dtype)
    with torch.no_grad():
        for step in step_parameters(model).values():
            step.fill_(growth)
    found = finish(model)["0"]
    plain = quantize(model[0].weight, form, scale_dtype=dtype)
    assert (found.q.dtype, found.q.shape) == (torch.int8, (n, k))
    assert found.scale.shape == plain.scale.shape
    assert torch.equal(found.zero_point, plain.zero_point)
    assert form.qmin <= int(found.q.min())
    assert int(found.q.max()) <= form.qmax
    stored = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    assert torch.equal(found.scale.to(stored).float(), found.scale)
    assert bool((found.scale >= torch.finfo(stored).tiny).all())
    assert bool(torch.isfinite(found.scale).all())


@settings(max_examples=40, deadline=None)
@given(label=st.sampled_from(["int8_pt_sym", "int8_pc_sym", "int4_g32"]), k=st.integers(1, 70))
def test_rows_and_back(label: str, k: int) -> None:
    weight = torch.arange(3.0 * k).view(3, k)
    form = parse_format(label)
    rows = to_rows(weight, form, 0)
    assert torch.equal(from_rows(rows, weight.shape, form, 0), weight)
    assert rows.shape[0] == form.scales(3, k)


def with_other_integers(quantized: QuantizedTensor) -> QuantizedTensor:
    """As GPTQ may choose: some integers one off the nearest."""
    q = quantized.q.clone()
    q[:, ::3] = (q[:, ::3] + 1).clamp(max=quantized.format.qmax)
    return replace(quantized, q=q)


def test_begins_with_the_integers_it_is_given() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 6))
    form = parse_format("int4_g32")
    weight = model[0].weight.detach().clone()
    given_integers = with_other_integers(quantize(weight, form))
    insert_fake(model, {"0": form}, initial=Finished({"0": given_integers}))
    assert torch.equal(finish(model)["0"].q, given_integers.q)
    assert not torch.equal(finish(model)["0"].q, quantize(weight, form).q)
    kept = given_integers.q == quantize(weight, form).q
    assert torch.equal(model[0].weight[kept], weight[kept])
    half = given_integers.scale.repeat_interleave(32, dim=1)[:, :40] / 2
    off = (model[0].weight - dequantize(given_integers)).abs()
    assert bool((off[~kept] < half[~kept]).all())


def test_settled_leaves_rounded_weights_alone() -> None:
    weight = torch.randn(4, 40)
    start = quantize(weight, parse_format("int8_pc_sym"))
    assert torch.equal(settled(weight, start), weight)


def test_training_makes_up_for_rounding() -> None:
    """Steps and weights learn: the output error falls well below plain rounding's."""
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(32, 16))
    mixing = torch.randn(8, 32) / 8**0.5  # inputs that depend on each other
    student = nn.Sequential(nn.Linear(32, 16))
    student.load_state_dict(teacher.state_dict())
    insert_fake(student, {"0": parse_format("int4_g32")})
    draw: Callable[[], Tensor] = lambda: torch.randn(64, 8) @ mixing  # noqa: E731
    probe = draw()
    with torch.no_grad():
        before = float((student(probe) - teacher(probe)).square().mean())
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-3)
    for step in range(120):
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - step / 120)
        x = draw()
        loss = (student(x) - teacher(x).detach()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        after = float((student(probe) - teacher(probe)).square().mean())
    assert after < 0.7 * before
    steps = step_parameters(student)["0.fake_weight.step.log_growth"]
    assert float(steps.detach().abs().max()) > 0.01


def test_refuses_what_no_runtime_has() -> None:
    model, _ = small()
    with pytest.raises(QuantizeError, match="no runtime has static activations beside int4_g32"):
        insert_fake(model, {"first": parse_format("int4_g32")}, "static", None, SCALES)
    with pytest.raises(QuantizeError, match="no layer 'third'"):
        insert_fake(model, {"third": parse_format("int8_pc_sym")})
    with pytest.raises(CalibrationError, match="input of last"):
        insert_fake(model, {"last": parse_format("int8_pc_sym")}, "static", None, {})


def test_refuses_weights_that_are_not_finite() -> None:
    model, _ = small()
    insert_fake(model, all_formats("int8_pc_sym"))
    with torch.no_grad():
        model.first.weight[0, 0] = math.inf
    with pytest.raises(QuantizeError, match="first has weights or steps that are not finite"):
        finish(model)


def test_finished_gives_only_what_was_trained() -> None:
    model, _ = small()
    form = parse_format("int8_pc_sym")
    insert_fake(model, {"first": form})
    held = Finished(finish(model))
    assert held.quantized(LayerInfo("first", "linear", (6, 40)), form, "fp32").format == form
    with pytest.raises(QuantizeError, match="first was trained as int8_pc_sym"):
        held.quantized(LayerInfo("first", "linear", (6, 40)), parse_format("int4_g32"), "fp32")
    with pytest.raises(QuantizeError, match="last was trained as float"):
        held.quantized(LayerInfo("last", "linear", (4, 6)), form, "fp32")
