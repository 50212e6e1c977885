"""A comparison held against its gates: which limits hold, which do not, what could not be judged.

    result = check_gate(report, load_gates())
    print(*result.lines(), sep=chr(10))
    result.require()                         # GateError unless it passed

Passed means: every limit of every gated row holds, and at least one row was held against one.

    within        the limit holds
    beyond        it does not                                                     not passed
    failed        the row has no numbers, or an output holds NaN or infinity      not passed
    not measured  the truth lacks this quantity, or too few scenes have it        not passed
    not run       the runtime or its device is not here, or can't run the scheme

What has a gate and no row, and a row without a gate, is said and decides nothing: a part of the
variants may be compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from vggt_deploy.compare.gates import Gates, Limits, Protocol
from vggt_deploy.compare.paired import Difference
from vggt_deploy.compare.report import ComparisonReport, Row
from vggt_deploy.errors import GateError
from vggt_deploy.report.text import number, table, wrap

Verdict = Literal["within", "beyond", "failed", "not measured", "not run"]
BROKEN: tuple[Verdict, ...] = ("beyond", "failed", "not measured")

# Quantity in gates.toml -> field of TruthLoss and of TruthMean.
_FIELDS = {
    "auc30": "auc_30",
    "auc5": "auc_5",
    "abs_rel": "abs_rel",
    "point_error": "point_error",
}
_HIGHER_IS_BETTER = ("auc30", "auc5")
REFERENCE = "torch/fp32"
_LINE = 115
_NAMED = 6


@dataclass(frozen=True)
class GateLine:
    """One limit of one row, or a row that has no numbers (`quantity` is None then).

    found: what was lost, the mean over scenes; of the reference its own value.
    low, high: the 95 % interval of the mean, where there is one; over scenes, but where the gates
        ask for no more than one scene over its frames.
    """

    label: str
    verdict: Verdict
    quantity: str | None = None
    found: float | None = None
    low: float | None = None
    high: float | None = None
    limit: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class GateResult:
    """All lines, in the order of the report; the reference first.

    absent: labels with a gate and no row; ungated: rows without a gate.
    """

    checked: tuple[GateLine, ...]
    absent: tuple[str, ...]
    ungated: tuple[str, ...]

    @property
    def broken(self) -> tuple[GateLine, ...]:
        """What speaks against passing."""
        return tuple(line for line in self.checked if line.verdict in BROKEN)

    @property
    def passed(self) -> bool:
        """Whether all limits hold; never where no variant was held against one."""
        held = any(line.verdict == "within" and line.label != REFERENCE for line in self._limits)
        return held and not self.broken

    @property
    def _limits(self) -> tuple[GateLine, ...]:
        return tuple(line for line in self.checked if line.limit is not None)

    def lines(self) -> list[str]:
        """For a person: a table, what it could not judge, and the verdict."""
        header = ("variant", "quantity", "found", "95 % interval", "limit", "verdict")
        rows = [
            (
                line.label,
                line.quantity or "-",
                number(line.found),
                "-" if line.low is None else f"{number(line.low)} to {number(line.high)}",
                _limit_text(line),
                line.verdict,
            )
            for line in self.checked
        ]
        reasons = [f"{line.label}: {line.reason}" for line in self.checked if line.reason]
        found = [
            *table(header, rows),
            *(text for reason in dict.fromkeys(reasons) for text in wrap(reason, _LINE)),
        ]
        if self.absent:
            found += wrap(f"gated, not in this report: {', '.join(self.absent)}", _LINE)
        if self.ungated:
            found += wrap(f"without a gate: {', '.join(self.ungated)}", _LINE)
        return [*found, self.summary()]

    def summary(self) -> str:
        """One line."""
        variants = {line.label for line in self._limits}
        if self.passed:
            return f"gate passed: {len(self._limits)} limits of {len(variants)} rows hold"
        if not self.broken:
            return "gate not passed: no variant was held against a limit"
        return f"gate not passed: {len(self.broken)} of {len(self.checked)} lines are broken"

    def require(self) -> None:
        """Nothing, if it passed.

        Raises:
            GateError: naming what is broken.
        """
        if self.passed:
            return
        named = "".join(f"\n    {_described(line)}" for line in self.broken[:_NAMED])
        more = len(self.broken) - _NAMED
        raise GateError(
            self.summary() + named + (f"\n    and {more} more" if more > 0 else ""),
            "find what changed the numbers (weights, quantizer, runtime, scenes); where the loss "
            "is meant, measure it and change the gates",
        )


def check_gate(report: ComparisonReport, gates: Gates) -> GateResult:
    """Hold a report against gates. Looks at nothing but the two.

    Raises:
        GateError: the report was not made as the protocol of the gates asks.
    """
    _check_protocol(report, gates.protocol)
    least = gates.protocol.scenes
    lines = list(_reference_lines(report.reference, gates.reference or Limits(), least))
    ungated = []
    variants = [row for row in report.rows if row.label != REFERENCE]
    for row in variants:
        limits = gates.limits(row.label)
        if limits is None:
            ungated.append(row.label)
        else:
            lines += _row_lines(row, limits, least)
    there = {name for row in variants for name in (row.label, row.label.partition("/")[2])}
    absent = tuple(label for label in gates.most if label not in there)
    return GateResult(tuple(lines), absent, tuple(ungated))


def _check_protocol(report: ComparisonReport, protocol: Protocol) -> None:
    model, images = report.question["model"], report.question["images"]
    if protocol.sha256 is not None:
        if model["sha256"] != protocol.sha256:
            raise _other("the SHA-256 of the weights", model["sha256"], protocol.sha256)
    elif model["spec"] != protocol.model:
        raise _other("the model", model["spec"], protocol.model)
    for name, found, wanted in (
        ("the number of views", images["frames"], protocol.views),
        ("the height", images["height"], protocol.height),
        ("the width", images["width"], protocol.width),
    ):
        if found != wanted:
            raise _other(name, found, wanted)
    truth = report.reference.truth
    scenes = 0 if truth is None else truth.scenes
    if scenes < protocol.scenes:
        raise GateError(
            f"the report has {scenes} scenes with truth, the gates ask for {protocol.scenes} "
            "or more",
            "give compare more --scenes with calibration (`vggt-deploy scene` renders some)",
        )


def _other(what: str, found: object, wanted: object) -> GateError:
    return GateError(
        f"the report can't be held against these gates: {what} is {found}, not {wanted}",
        "compare what the gates were measured on, or give other gates with --gates FILE",
    )


def _reference_lines(row: Row, limits: Limits, least: int) -> Iterator[GateLine]:
    """PyTorch FP32 by itself: AUC not below its limit, errors not above theirs."""
    truth = row.truth
    assert truth is not None  # the protocol asks for one scene or more
    for quantity, limit in limits.given().items():
        found: float | None = getattr(truth, _FIELDS[quantity])
        n = {"abs_rel": truth.depth_scenes, "point_error": truth.point_scenes}.get(
            quantity, truth.pose_scenes
        )
        if found is None or n < least:
            yield _not_measured(row.label, quantity, limit, n, least)
            continue
        holds = found >= limit if quantity in _HIGHER_IS_BETTER else found <= limit
        verdict: Verdict = "within" if holds else "beyond"
        yield GateLine(row.label, verdict, quantity, found, limit=limit)


def _row_lines(row: Row, limits: Limits, least: int) -> Iterator[GateLine]:
    if row.status in ("refused", "not run"):
        yield GateLine(row.label, "not run", reason=_why(row))
        return
    if row.status != "done":
        yield GateLine(row.label, "failed", reason=_why(row))
        return
    if not row.finite:
        yield GateLine(row.label, "failed", reason="an output holds NaN or infinity")
        return
    for quantity, limit in limits.given().items():
        lost = _lost(row, quantity)
        scenes = lost.scenes if lost is not None else 0  # the frames of one scene are one scene
        if lost is None or scenes < least:
            yield _not_measured(row.label, quantity, limit, scenes, least)
            continue
        # Written so that a NaN is beyond.
        verdict: Verdict = "within" if lost.mean <= limit else "beyond"
        yield GateLine(row.label, verdict, quantity, lost.mean, lost.low, lost.high, limit)


def _lost(row: Row, quantity: str) -> Difference | None:
    if row.truth_loss is None:
        return None
    found: Difference | None = getattr(row.truth_loss, _FIELDS[quantity])
    return found


def _not_measured(label: str, quantity: str, limit: float, n: int, least: int) -> GateLine:
    reason = f"{quantity} is known of {n} scenes, the gates ask for {least}"
    return GateLine(label, "not measured", quantity, limit=limit, reason=reason)


def _why(row: Row) -> str:
    return row.failure.message if row.failure is not None else row.status


def _limit_text(line: GateLine) -> str:
    if line.limit is None:
        return "-"
    least = line.label == REFERENCE and line.quantity in _HIGHER_IS_BETTER
    return f"{'>=' if least else '<='} {number(line.limit)}"


def _described(line: GateLine) -> str:
    if line.verdict != "beyond":
        return f"{line.label}: {line.verdict}, {line.reason}"
    interval = "" if line.low is None else f" ({number(line.low)} to {number(line.high)})"
    what = "is" if line.label == REFERENCE else "lost"
    return (
        f"{line.label}: {line.quantity} {what} {number(line.found)}{interval}, "
        f"limit {_limit_text(line)}"
    )
