"""Fields against their formulas, written a second way."""

from __future__ import annotations

import math

import pytest
import torch

from vggt_deploy.errors import UsageError
from vggt_deploy.model.config import CONFIGS
from vggt_deploy.model.fields import (
    GridFields,
    dpt_field,
    grid_fields,
    resize_pos_embed,
    rope_tables,
)

TINY = CONFIGS["vggt-tiny"]
CPU = torch.device("cpu")


def keys_cubic(t: float, a: float) -> float:
    t = abs(t)
    if t < 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    if t < 2:
        return a * (t**3 - 5 * t**2 + 8 * t - 4)
    return 0.0


def resize_matrix(n_in: int, n_out: int, a: float = -0.5) -> torch.Tensor:
    """Antialiased bicubic along one axis as a matrix [n_out, n_in]."""
    scale = n_in / n_out
    f = max(scale, 1.0)
    matrix = torch.zeros(n_out, n_in, dtype=torch.float64)
    for o in range(n_out):
        centre = (o + 0.5) * scale
        low = max(int(centre - 2 * f + 0.5), 0)
        high = min(int(centre + 2 * f + 0.5), n_in)
        for i in range(low, high):
            matrix[o, i] = keys_cubic((i - centre + 0.5) / f, a)
    return matrix / matrix.sum(1, keepdim=True)


@pytest.mark.parametrize("grid", [(3, 5), (8, 12), (11, 8)])
def test_pos_embed_is_antialiased_bicubic(grid: tuple[int, int]):
    h, w = grid
    n = TINY.native_grid
    pos = torch.randn(1, 1 + n * n, 4, generator=torch.Generator().manual_seed(0))
    resized = resize_pos_embed(TINY, pos, h, w)
    assert resized.shape == (1, 5 + h * w, 4)
    torch.testing.assert_close(resized[:, :1], pos[:, :1])
    assert resized[:, 1:5].abs().max() == 0  # registers have no position
    source = pos[0, 1:].double().reshape(n, n, 4)

    def expected(a: float) -> torch.Tensor:
        rows, columns = resize_matrix(n, h, a), resize_matrix(n, w, a)
        return torch.einsum("hi,wj,ijc->hwc", rows, columns, source).reshape(h * w, 4).float()

    torch.testing.assert_close(resized[0, 5:], expected(-0.5), rtol=1e-5, atol=1e-5)
    assert (resized[0, 5:] - expected(-0.75)).abs().max() > 1e-2


def test_native_grid_is_used_as_it_is():
    n = TINY.native_grid
    pos = torch.randn(1, 1 + n * n, 4)
    assert torch.equal(resize_pos_embed(TINY, pos, n, n)[:, 5:], pos[:, 1:])


def test_rope_tables_by_hand():
    cos, sin = rope_tables(TINY, 2, 3, CPU)
    quarter = TINY.head_dim // 4
    assert cos.shape == (5 + 6, 1, 2 * quarter)
    assert cos.dtype == torch.float32
    assert (cos[:5] == 1).all()
    assert (sin[:5] == 0).all()
    # Patch in row 1, column 2 turns by 2 f (y) and 3 f (x); token 5 + 1 * 3 + 2.
    for j in range(quarter):
        f = 100 ** (-j / quarter)
        assert cos[10, 0, j].item() == pytest.approx(math.cos(2 * f), abs=1e-6)
        assert sin[10, 0, quarter + j].item() == pytest.approx(math.sin(3 * f), abs=1e-6)
        assert abs(sin[10, 0, quarter + j].item() - math.sin(2 * f)) > 1e-3


def test_dpt_field_is_the_separable_sine_field():
    channels, rows, columns, height, width = 8, 3, 5, 42, 70
    field = dpt_field(channels, rows, columns, height, width, CPU)
    assert field.row.shape == (1, channels, 1, columns)
    assert field.column.shape == (1, channels, rows, 1)
    whole = field.row + field.column
    diagonal = math.hypot(height, width)
    for i in range(rows):
        for j in range(columns):
            u = (2 * j + 1 - columns) / columns * width / diagonal
            v = (2 * i + 1 - rows) / rows * height / diagonal
            omega = [1.0, 100 ** (-1 / 2)]
            values = [fn(p * om) for p in (u, v) for fn in (math.sin, math.cos) for om in omega]
            expected = torch.tensor([0.1 * value for value in values])
            torch.testing.assert_close(whole[0, :, i, j], expected)
    # Top middle: y's channels before x's would be another field.
    top = whole[0, :, 0, columns // 2]
    assert (top - top.roll(channels // 2)).abs().max() > 1e-2
    # Zero in the other half: adding both adds each channel's own part and nothing else.
    assert (field.row[:, channels // 2 :] == 0).all()
    assert (field.column[:, : channels // 2] == 0).all()


def test_fields_survive_their_names():
    fields = grid_fields(TINY, torch.randn(1, 65, TINY.embed), 28, 42)
    named = fields.named()
    assert len(named) == 3 + 2 * 5
    back = GridFields.from_named(named).named()
    assert list(back) == list(named)
    assert all(torch.equal(back[name], value) for name, value in named.items())
    assert named["dpt.4.row"].shape == (1, TINY.dpt_features // 2, 1, 42)
    # The expanded last field of VGGT-1B would be 137 MB.
    large = grid_fields(CONFIGS["vggt-1b"], torch.empty(1, 1370, 1024, device="meta"), 518, 518)
    dense = [value for name, value in large.named().items() if name.startswith("dpt")]
    assert sum(tensor.numel() * 4 for tensor in dense) < 2e6
    assert all(tensor.device.type == "meta" for tensor in dense)


@pytest.mark.parametrize("size", [(30, 28), (28, 0), (-14, 28)])
def test_size_must_be_a_multiple_of_the_patch(size: tuple[int, int]):
    with pytest.raises(UsageError, match="multiple of 14") as raised:
        grid_fields(TINY, torch.zeros(1, 65, TINY.embed), *size)
    assert "28 x " in raised.value.fix or "14 x " in raised.value.fix
