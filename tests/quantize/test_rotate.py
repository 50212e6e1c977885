"""The Hadamard matrix of a head, on the rows of values and the columns behind them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vggt_deploy.errors import UsageError
from vggt_deploy.quantize.qparams import dequantize, quantize
from vggt_deploy.quantize.rotate import hadamard, rotate_columns, rotate_rows
from vggt_deploy.quantize.schemes import INT4_G64


@given(st.integers(0, 8))
@settings(deadline=None)
def test_orthogonal_symmetric_and_of_two_values(exponent: int):
    size = 2**exponent
    matrix = hadamard(size)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size, dtype=torch.float64))
    assert torch.equal(matrix, matrix.T)
    torch.testing.assert_close(matrix.abs(), torch.full_like(matrix, size**-0.5))


@given(st.integers(-4, 300).filter(lambda n: n < 1 or n & (n - 1)))
@settings(deadline=None)
def test_only_powers_of_two_have_one(size: int):
    with pytest.raises(UsageError, match="powers of two"):
        hadamard(size)


def test_sylvesters_matrix_of_four():
    signs = hadamard(4) * 2
    expected = [[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]
    assert signs.tolist() == expected


def test_values_and_projection_turn_against_each_other():
    torch.manual_seed(0)
    heads, tokens, width = 3, 7, 24
    x, p = torch.randn(tokens, 5).double(), torch.rand(tokens, tokens).double()
    values, bias, proj = torch.randn(width, 5), torch.randn(width), torch.randn(9, width)

    def out(values, bias, proj):
        return p @ (x @ values.double().T + bias.double()) @ proj.double().T

    expected = out(values, bias, proj)
    rows, turned_bias = rotate_rows(values, heads), rotate_rows(bias, heads)
    turned = out(rows, turned_bias, rotate_columns(proj, heads))
    torch.testing.assert_close(turned, expected)
    # Of other heads, with the bias left behind, or on one side alone it is another function.
    columns = rotate_columns(proj, heads)
    others = out(rows, turned_bias, columns.roll(width // heads, 1))
    for wrong in (others, out(rows, bias, columns), out(rows, turned_bias, proj)):
        assert (wrong - expected).abs().max() > 0.1


def test_a_channel_that_stands_out_is_spread_over_its_head():
    torch.manual_seed(0)
    x, weight = torch.randn(200, 64), torch.randn(32, 64)
    weight[:, 5] *= 30
    x[:, 5] /= 30

    def error(x, weight):
        off = x @ dequantize(quantize(weight, INT4_G64)).T - x @ weight.T
        return float(off.norm())

    turned = rotate_rows(x.T, 1).T.float(), rotate_columns(weight, 1).float()
    torch.testing.assert_close(turned[0] @ turned[1].T, x @ weight.T, rtol=1e-4, atol=1e-4)
    assert float(turned[1].abs().max()) < 0.4 * float(weight.abs().max())
    assert error(*turned) < 0.75 * error(x, weight)
