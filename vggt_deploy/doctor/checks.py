"""The rows of a diagnosis, and what follows from them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from vggt_deploy.errors import RuntimeUnavailableError, UsageError

State = Literal["ok", "missing", "unknown"]


@dataclass(frozen=True)
class Check:
    """One row: what was looked at, what was found, and what would change it ("" unless missing)."""

    name: str
    state: State
    found: str
    fix: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """All rows, in the order in which they are printed. Names are unique."""

    version: str
    checks: tuple[Check, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`."""
        return asdict(self)

    def require(self, names: Iterable[str]) -> None:
        """Return if every named row is "ok"; case does not matter. For scripts and HEALTHCHECK.

        Raises:
            UsageError: no row has that name.
            RuntimeUnavailableError: rows that are "missing" or "unknown", all of them in one.
        """
        rows = {check.name.lower(): check for check in self.checks}
        wanted = list(names)
        if strangers := [name for name in wanted if name.lower() not in rows]:
            raise UsageError(
                f"the doctor looks at nothing called {', '.join(map(repr, strangers))}",
                f"use names of its rows: {', '.join(check.name for check in self.checks)}",
            )
        bad = [row for row in (rows[name.lower()] for name in wanted) if row.state != "ok"]
        if bad:
            fixes = [row.fix or f"find out about {row.name} by hand" for row in bad]
            # An ability repeats the advice of the rows that it needs.
            told = [
                fix for fix in fixes if not any(fix != other and fix in other for other in fixes)
            ]
            raise RuntimeUnavailableError(
                "required, and not here: " + "; ".join(f"{row.name} ({row.found})" for row in bad),
                "; ".join(dict.fromkeys(told)),
            )
