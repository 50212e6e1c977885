"""Which variants are faster than FP32, and how sure that is.

    faster         the median is below that of every FP32 variant
    surely faster  the median is below the fastest single call of every FP32 variant. A median can
                   be lifted by whatever else ran on the machine; a single call can't be faster than
                   the work takes

Nothing is sure of fewer than FEWEST_CALLS timed calls, nor where other processes kept CPUs busy
beside them: those may have slowed every call of one variant and none of another. Where the system
does not tell what others did (no /proc/stat), a row counts as quiet, or no such system could ever
tell a variant faster: `Times.untold` names these rows, and every text that gives their times says
so. Times of different kinds of machines are never held against each other.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vggt_deploy.compare.report import Row

FEWEST_CALLS = 3


@dataclass(frozen=True)
class Times:
    """Rows whose times may be held against each other.

    rows        timed on the kind of machine that PyTorch FP32 was timed on, whatever their outputs
                hold: FP32 takes the time that it takes, with NaN as without
    away        timed on another kind
    quiet_cpus  the most CPUs that other processes may keep busy beside timed calls; None: not known
    """

    rows: tuple[Row, ...]
    away: tuple[Row, ...]
    quiet_cpus: float | None

    @property
    def few(self) -> tuple[Row, ...]:
        """Rows of too few calls."""
        return tuple(row for row in self.rows if _calls(row) < FEWEST_CALLS)

    @property
    def noisy(self) -> tuple[Row, ...]:
        """Rows that other processes disturbed."""
        return tuple(row for row in self.rows if _disturbed(row, self.quiet_cpus))

    @property
    def untold(self) -> tuple[Row, ...]:
        """Rows of which nobody knows whether other processes disturbed them."""
        return tuple(row for row in self.rows if _others(row) is None)


def times_of(rows: Iterable[Row], reference: Row, quiet_cpus: float | None = None) -> Times:
    """Of rows that were measured."""
    rows = tuple(rows)
    here = tuple(row for row in rows if row.machine == reference.machine)
    return Times(here, tuple(row for row in rows if row not in here), quiet_cpus)


def median(row: Row) -> float:
    """Milliseconds, of a row that was measured."""
    assert row.measured is not None
    return row.measured.latency.median_ms


def fp32(rows: Iterable[Row]) -> list[Row]:
    """The FP32 variants."""
    return [row for row in rows if row.scheme == "fp32"]


def slower_than(row: Row, rows: Iterable[Row]) -> tuple[str, ...]:
    """Labels of the FP32 variants that this one is not faster than, by medians."""
    together = (r for r in fp32(rows) if r is not row and r.machine == row.machine)
    return tuple(other.label for other in together if median(other) <= median(row))


def surely_faster(row: Row, times: Times) -> bool:
    """Than every FP32 variant; all of them must be sure."""
    others = [other for other in fp32(times.rows) if other is not row]
    for one in (row, *others):
        if _calls(one) < FEWEST_CALLS or _disturbed(one, times.quiet_cpus):
            return False
    return all(median(row) < _fastest_call(other) for other in others)


def _calls(row: Row) -> int:
    assert row.measured is not None
    return row.measured.latency.n


def _fastest_call(row: Row) -> float:
    assert row.measured is not None
    return row.measured.latency.min_ms


def _disturbed(row: Row, quiet_cpus: float | None) -> bool:
    others = _others(row)
    return quiet_cpus is not None and others is not None and others > quiet_cpus


def _others(row: Row) -> float | None:
    assert row.measured is not None
    return row.measured.others_cpus
