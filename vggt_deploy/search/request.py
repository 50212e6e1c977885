"""What is asked of a search: words in, values or a UsageError out. No torch."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

from vggt_deploy.errors import UsageError
from vggt_deploy.search.records import Budgets
from vggt_deploy.sensitivity.table import MEASURES, SensitivityTable

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def parse_bytes(text: str) -> int:
    """`900MB` -> 900000000, `4.5MiB` -> 4718592, `123456` -> 123456.

    Raises:
        UsageError: it is no size.
    """
    found = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,6})?) ?([kKmMgG]?i?)[bB]?", text.strip())
    unit = None if found is None else _UNITS.get(found[2].lower())
    if found is None or unit is None or not (size := int(Decimal(found[1]) * unit)) >= 1:
        raise UsageError(f"{text!r} is no size", "write one as 900MB, 4.5MiB or in bytes")
    return size


def parse_drops(texts: Sequence[str]) -> dict[str, float]:
    """`auc30=0.5` each -> measure -> most that may be lost.

    Raises:
        UsageError: an unknown measure, one given twice, or no number of 0 or more.
    """
    known = MEASURES["truth"]
    drops: dict[str, float] = {}
    for text in texts:
        name, _, number = text.partition("=")
        if name not in known:
            raise UsageError(f"unknown measure in {text!r}", f"use one of: {', '.join(known)}")
        if name in drops:
            raise UsageError(f"{name} is given twice", "give each measure once")
        try:
            drops[name] = float(number)
        except ValueError as error:
            raise UsageError(
                f"{text!r} has no number", f"write what may be lost, such as {name}=0.5"
            ) from error
        if not (math.isfinite(drops[name]) and drops[name] >= 0):
            raise UsageError(f"{text!r} can't be kept", "give a number of 0 or more")
    return drops


def check_request(
    table: SensitivityTable,
    budgets: Budgets,
    minimise: str,
    front_points: int,
    rounds: int,
    calibrate: Path | None,
) -> None:
    """Refuse what makes no sense with this table; arguments as of `pipeline.search`.

    Raises:
        UsageError: it makes none.
    """
    if budgets == Budgets():
        raise UsageError(
            "no budget is given, and without one the best recipe is FP32",
            "give --max-size, --max-drop or --min-speedup",
        )
    for name in (minimise, *budgets.max_drop):
        if name not in MEASURES[table.reference]:
            raise UsageError(
                f"the sensitivity table has no {name}",
                f"use one of: {', '.join(MEASURES[table.reference])}"
                + ("" if table.reference == "truth" else "; AUC needs a table made with --scenes"),
            )
    if budgets.min_speedup is not None and not 0 < budgets.min_speedup < math.inf:
        raise UsageError(f"a speedup of {budgets.min_speedup}", "give a number above 0, such as 2")
    if front_points < 0 or rounds < 1:
        raise UsageError(
            f"{front_points} points along the front, {rounds} rounds",
            "ask for 0 points or more, and 1 round or more",
        )
    if (table.activations == "static") != (calibrate is not None):
        raise UsageError(
            f"the sensitivity table is of {table.activations} activations: pictures to calibrate "
            "on are needed for static ones, and have no meaning for others",
            "give --calibrate DIR with a table of static activations, and only then",
        )
