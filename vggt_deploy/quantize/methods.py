"""How a range is chosen, by name: absmax, percentile, mse. What they mean stands in `histogram`
(inputs) and `ranges` (weights).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from vggt_deploy.errors import UsageError

DEFAULT_PERCENTILE = 99.99
# Relative L2 error of the outputs of int8_pc_sym against FP32, geometric mean over five outputs,
# four scenes of photographs (the first five to calibrate on, the next up to five to test) and three
# vggt-small with random weights: mse 1.86 %, percentile 99.99 1.86 %, absmax 1.87 %, 99.999 1.90 %,
# 99.9 2.21 %; dynamic 1.73 %, float activations 1.59 %. No difference between the first three. mse
# is the default since it neither follows a single outlier, as absmax does, nor clips a fixed share
# of every layer. Not measured on trained weights.
DEFAULT_METHOD = "mse"

MethodName = Literal["absmax", "percentile", "mse"]


@dataclass(frozen=True, slots=True)
class Method:
    """How a threshold is chosen; `percentile` counts for the method of that name alone."""

    name: MethodName
    percentile: float = DEFAULT_PERCENTILE

    @property
    def label(self) -> str:
        """`absmax`, `percentile 99.99`, `mse`."""
        return f"{self.name} {self.percentile:g}" if self.name == "percentile" else self.name

    @property
    def spelled(self) -> str:
        """As `parse_method` reads it: `percentile:99.99`."""
        return f"{self.name}:{self.percentile:.10g}" if self.name == "percentile" else self.name


def parse_method(text: str) -> Method:
    """`absmax`, `mse`, `percentile` or `percentile:99.9`.

    Raises:
        UsageError: an unknown method, or a percentile that is not in 50..100.
    """
    name, colon, number = text.partition(":")
    known: tuple[MethodName, ...] = get_args(MethodName)
    for method in known:
        if name != method:
            continue
        if not colon:
            return Method(method)
        if method == "percentile" and re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,9})?", number):
            percentile = float(number)
            if 50 <= percentile <= 100:
                return Method(method, percentile)
        break
    raise UsageError(
        f"unknown calibration method {text!r}",
        "use absmax, mse, percentile, or percentile:P with P from 50 to 100, such as "
        f"percentile:{DEFAULT_PERCENTILE:g}",
    )
