"""How losses by the truth are written."""

from __future__ import annotations

from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vggt_deploy.compare.decimals import LOST_DECIMALS, lost_text, lost_told, signed
from vggt_deploy.compare.paired import Difference, TruthLoss


def test_every_loss_has_its_decimals() -> None:
    assert set(LOST_DECIMALS) == {field.name for field in fields(TruthLoss)}
    with pytest.raises(KeyError):
        lost_text("auc", 1.0)


@pytest.mark.parametrize(
    "quantity, value, text",
    [
        ("auc_30", 0.00014, "0.00"),
        ("auc_30", -0.004, "0.00"),
        ("auc_30", 0.006, "+0.01"),
        ("auc_30", -9.0, "-9.00"),
        ("f_score", 99.5, "+99.50"),
        ("auc_3", 100.0, "+100.00"),
        ("abs_rel", 0.00014, "+0.00014"),
        ("abs_rel_affine", 4e-6, "0.00000"),
        ("point_error", -0.0123, "-0.01230"),
    ],
)
def test_a_loss_has_the_decimals_of_its_quantity(quantity: str, value: float, text: str) -> None:
    assert lost_text(quantity, value) == text


@given(st.floats(-1e6, 1e6), st.integers(0, 6))
def test_a_sign_stands_before_all_but_nothing(value: float, digits: int) -> None:
    text = signed(value, digits)
    assert "e" not in text
    assert abs(float(text) - value) <= 0.5000001 * 10.0**-digits
    assert (text[0] in "+-") == (float(text) != 0.0)


@pytest.mark.parametrize(
    "quantity, low, high, told",
    [
        ("auc_30", 0.2, 2.0, 1),
        ("auc_30", -2.0, -0.2, -1),
        ("auc_30", -0.2, 2.0, 0),
        ("auc_30", 8.2e-05, 2e-4, 0),  # rounding: AUC is in points of percent
        ("abs_rel", 8.2e-05, 2e-4, 1),
        ("auc_30", None, None, 0),
    ],
)
def test_what_an_interval_tells(
    quantity: str, low: float | None, high: float | None, told: int
) -> None:
    assert lost_told(quantity, Difference(5, 1.0, low, high)) == told
