"""The exact rewrite inside the dense heads: the 1x1 convolution before the upsampling."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from vggt_deploy.model.dpt_head import Fusion, upsample

SIZE = (14, 22)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def original_order(fusion: Fusion, x: Tensor, skip: Tensor | None) -> Tensor:
    """out_conv(up(RCU2(x + RCU1(skip)))), as the checkpoints were trained."""
    if skip is not None:
        x = x + fusion.resConfUnit1(skip)
    out: Tensor = fusion.out_conv(upsample(fusion.resConfUnit2(x), SIZE))
    return out


@pytest.mark.parametrize("has_skip", [True, False])
def test_out_conv_commutes_with_upsampling(has_skip: bool) -> None:
    """up(W x + b) = W up(x) + b: the interpolation weights of a pixel sum to one."""
    torch.manual_seed(0)
    fusion = Fusion(8, has_skip=has_skip).eval()
    x, skip = torch.randn(2, 8, 7, 11), torch.randn(2, 8, 7, 11) if has_skip else None
    with torch.no_grad():
        assert relative(fusion(x, skip, SIZE), original_order(fusion, x, skip)) < 1e-6


def test_a_wider_convolution_does_not() -> None:
    """The twin: were out_conv 3x3, the order would matter, and the comparison would see it."""
    torch.manual_seed(0)
    fusion = Fusion(8, has_skip=False).eval()
    fusion.out_conv = nn.Conv2d(8, 8, 3, padding=1)
    x = torch.randn(2, 8, 7, 11)
    with torch.no_grad():
        assert relative(fusion(x, None, SIZE), original_order(fusion, x, None)) > 1e-2
