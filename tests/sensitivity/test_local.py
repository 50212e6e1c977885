"""The first pass against sums written out by hand, and the switching of layers."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from vggt_deploy.errors import QuantizeError
from vggt_deploy.quantize.activations import round_per_tensor
from vggt_deploy.quantize.apply import QuantLinear
from vggt_deploy.quantize.qparams import dequantize, quantize
from vggt_deploy.quantize.schemes import INT4_G32, INT8_PC_SYM
from vggt_deploy.sensitivity.local import MOST_SCENES, local_errors
from vggt_deploy.sensitivity.switch import switched
from vggt_deploy.sensitivity.units import Candidate


class _Net(nn.Module):
    """A Linear that is called twice, and a convolution; biases far larger than the products."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(40, 24)
        self.conv = nn.Conv2d(1, 6, 3)
        with torch.no_grad():
            self.first.bias.fill_(100.0)
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        x = images.reshape(-1, 40)
        self.conv(images.reshape(-1, 1, 8, 40))
        return self.first(x) + self.first(2 * x.flip(0))


@pytest.fixture
def net() -> _Net:
    return _Net()


@pytest.fixture
def pictures() -> list[NDArray[np.float32]]:
    generator = np.random.default_rng(0)
    return [generator.random((2, 3, 8, 40), dtype=np.float32) for _ in range(2)]


def _by_hand(
    net: _Net,
    pictures: list[NDArray[np.float32]],
    weight: Tensor,
    rounded: Callable[[Tensor], Tensor] = lambda x: x,
) -> float:
    """Of `first`, with that weight in its place."""
    wrong = right = 0.0
    for pixels in pictures:
        x = torch.from_numpy(pixels).reshape(-1, 40)
        for given in (x, 2 * x.flip(0)):
            exact = F.linear(given, net.first.weight)
            wrong += float((F.linear(rounded(given), weight) - exact).double().square().sum())
            right += float(exact.double().square().sum())
    return math.sqrt(wrong / right)


FIRST = Candidate("first", "int4_g32", {"first": INT4_G32})


def test_the_error_of_a_linear(net: _Net, pictures: list[NDArray[np.float32]]) -> None:
    found = local_errors(net, pictures, [FIRST])
    weight = dequantize(quantize(net.first.weight, INT4_G32))
    assert found == {
        ("first", "int4_g32"): pytest.approx(_by_hand(net, pictures, weight), rel=1e-3)
    }
    # Twins: other weights, or the same in another order, give another number.
    better = dequantize(quantize(net.first.weight, INT8_PC_SYM))
    assert _by_hand(net, pictures, better) < 0.3 * found["first", "int4_g32"]
    assert _by_hand(net, pictures, weight.roll(1, 0)) > 2 * found["first", "int4_g32"]


def test_rounded_inputs_count(net: _Net, pictures: list[NDArray[np.float32]]) -> None:
    eight = Candidate("first", "int8_pc_sym", {"first": INT8_PC_SYM})
    weight = dequantize(quantize(net.first.weight, INT8_PC_SYM))
    found = local_errors(net, pictures, [eight], activations="dynamic")["first", "int8_pc_sym"]
    assert found == pytest.approx(_by_hand(net, pictures, weight, round_per_tensor), rel=1e-3)
    assert abs(found / _by_hand(net, pictures, weight) - 1) > 0.01


def test_a_unit_s_error_is_the_root_of_the_summed_squares(
    net: _Net, pictures: list[NDArray[np.float32]]
) -> None:
    first = Candidate("first", "int8_pc_sym", {"first": INT8_PC_SYM})
    conv = Candidate("conv", "int8_pc_sym", {"conv": INT8_PC_SYM})
    both = Candidate("both", "int8_pc_sym", {**first.layers, **conv.layers})
    a, b, c = local_errors(net, pictures, [first, conv, both]).values()
    assert 0 < b < 0.02
    assert c == pytest.approx(math.hypot(a, b), rel=1e-9)


def test_only_some_scenes_are_run_and_the_hooks_go(net: _Net) -> None:
    seen: list[int] = []
    net.register_forward_pre_hook(lambda *_: seen.append(1))
    picture = np.ones((1, 3, 8, 40), np.float32)
    local_errors(net, [picture] * (MOST_SCENES + 2), [FIRST])
    assert len(seen) == MOST_SCENES
    assert not net.first._forward_hooks


def test_an_input_that_is_not_finite_is_named(net: _Net) -> None:
    with pytest.raises(QuantizeError, match="first gives NaN or infinity"):
        local_errors(net, [np.full((1, 3, 8, 40), np.inf, np.float32)], [FIRST])
    assert not net.first._forward_hooks


def test_layers_are_switched_for_a_while(net: _Net) -> None:
    before = net.first
    x = torch.ones(2, 3, 8, 40)
    exact = net(x)
    with pytest.raises(RuntimeError, match="stop"), switched(net, {"first": INT4_G32}):
        assert isinstance(net.first, QuantLinear)
        assert not torch.equal(net(x), exact)
        raise RuntimeError("stop")
    assert net.first is before
    assert torch.equal(net(x), exact)
