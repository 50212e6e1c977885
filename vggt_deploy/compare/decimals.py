"""How a loss by the truth is written: so many decimals for each quantity, in every text the same.

Percents (AUC, F-score) have 2, shares and metres 5. A fixed number of them keeps a column
comparable, never becomes an exponent, and shows what is nothing beside the quantity as 0: another
runtime's rounding moves each of them a little in every scene, in the same direction.
"""

from __future__ import annotations

from vggt_deploy.compare.paired import Difference

_PERCENT, _SHARE = 2, 5
# By the fields of `paired.TruthLoss`.
LOST_DECIMALS = {
    "auc_30": _PERCENT,
    "auc_5": _PERCENT,
    "auc_3": _PERCENT,
    "abs_rel": _SHARE,
    "abs_rel_affine": _SHARE,
    "point_error": _SHARE,
    "overall_m": _SHARE,
    "f_score": _PERCENT,
}


def signed(value: float, digits: int) -> str:
    """With a sign and so many decimals, but for what is 0 in these: that has no sign."""
    return f"{value:+.{digits}f}" if round(value, digits) else f"{0.0:.{digits}f}"


def lost_text(quantity: str, value: float) -> str:
    """A loss, or an end of its interval.

    Raises:
        KeyError: `quantity` is no field of `TruthLoss`.
    """
    return signed(value, LOST_DECIMALS[quantity])


def lost_told(quantity: str, lost: Difference) -> int:
    """What the interval tells, in the decimals that are written: 1 worse than PyTorch FP32, -1
    better, 0 neither (it holds 0, or there is none).
    """
    if lost.low is None or lost.high is None:
        return 0
    digits = LOST_DECIMALS[quantity]
    return int(round(lost.low, digits) > 0.0) - int(round(lost.high, digits) < 0.0)
