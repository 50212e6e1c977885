"""What `bench.accuracy` found as Markdown, CSV and JSON.

value       mean over the scenes
lost        mean over the scenes of what the row lost against FP32 on the same scene, above 0 is
            worse, and its 95 % bootstrap interval over scenes (`vggt_deploy.compare.paired`)
both        the scenes of the two sets together
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from bench.accuracy_rows import FP32, Row
from bench.process import StepResult
from vggt_deploy.sensitivity.measure import baseline, losses
from vggt_deploy.train.evaluate import SETS

MB = 1_000_000
BOTH = "both"
SET_NAMES = (BOTH, *(one.name for one in SETS))
_ERROR_LENGTH = 160
# Measure, title, digits after the point.
COLUMNS = (
    ("output_error", "output error", 4),
    ("auc3", "AUC@3 lost", 2),
    ("auc5", "AUC@5 lost", 2),
    ("auc30", "AUC@30 lost", 2),
    ("pose_median_deg", "pose error, degrees more", 3),
    ("abs_rel", "AbsRel more", 4),
    ("point_error", "point error more", 4),
)
CSV_HEADER = (
    *("row", "tool", "bits", "set", "scenes", "stored_bytes", "prepare_s"),
    *("measure", "value", "lost", "low", "high"),
)

Interval = tuple[float, float] | None
Scenes = Sequence[dict[str, float]]


@dataclass(frozen=True)
class Finding:
    """One row and how its step went; None: not run, and `why` says so."""

    row: Row
    result: StepResult | None
    why: str = ""

    @property
    def error(self) -> str | None:
        """None where there are numbers."""
        if self.result is None:
            return self.why
        return None if self.result.error is None else f"FAILED: {self.result.error}"

    @property
    def failed(self) -> bool:
        """Whether it was run and ended badly."""
        return self.result is not None and self.result.error is not None

    def scenes(self, name: str) -> Scenes:
        """The measures of each scene of a set; empty where nothing was measured."""
        if self.result is None or self.error is not None:
            return ()
        found: dict[str, Scenes] = self.result.answer["measures"]
        return [scene for one in found.values() for scene in one] if name == BOTH else found[name]

    @property
    def stored_bytes(self) -> int | None:
        return None if self.error is not None or self.result is None else self._get("stored_bytes")

    @property
    def prepare_s(self) -> float | None:
        return None if self.error is not None or self.result is None else self._get("seconds")

    @property
    def remarks(self) -> list[str]:
        """What the step says of itself; the error of one that failed."""
        if self.error is not None or self.result is None:
            text = " ".join((self.error or "").split()).replace("|", "/")
            return [text if len(text) <= _ERROR_LENGTH else f"{text[:_ERROR_LENGTH]}…"]
        return [str(remark) for remark in self.result.answer["remarks"]]

    def _get(self, key: str) -> Any:
        assert self.result is not None
        return self.result.answer[key]


@dataclass(frozen=True)
class Number:
    """The mean of one measure over the scenes of a set, and what was lost of it against FP32."""

    value: float
    lost: float
    interval: Interval


@dataclass(frozen=True)
class Report:
    """All rows, FP32 first."""

    findings: tuple[Finding, ...]

    @cached_property
    def numbers(self) -> dict[tuple[str, str], dict[str, Number]]:
        """(label, set) -> measure -> number; found once, as a bootstrap takes its time."""
        found = {}
        for finding in self.findings:
            for name in SET_NAMES:
                own = finding.scenes(name)
                lost = compared(own, self.find(FP32).scenes(name)) if own else {}
                found[finding.row.label, name] = {
                    measure: Number(value, *lost[measure])
                    for measure, value in baseline(own).items()
                }
        return found

    def find(self, label: str) -> Finding:
        """The row of this label."""
        return next(finding for finding in self.findings if finding.row.label == label)


def compared(variant: Scenes, exact: Scenes) -> dict[str, tuple[float, Interval]]:
    """Measure -> mean of what the variant lost on the same scenes, and its interval."""
    mean, interval = losses(variant, exact)
    return {name: (value, interval.get(name)) for name, value in mean.items()}


def document(report: Report, header: Sequence[str], pairs: Sequence[tuple[str, str]]) -> str:
    """The whole Markdown file."""
    parts = ["\n".join(f"- {line}" for line in header)]
    for name in SET_NAMES:
        count = max((len(finding.scenes(name)) for finding in report.findings), default=0)
        title = "Both sets together" if name == BOTH else f"Set {name}"
        parts.append(f"## {title}, {count} scenes\n\n{table(report, name)}")
        if name == BOTH and (beside := beside_modelopt(report, pairs)):
            parts.append(beside)
    return "\n\n".join([*parts, NOTES]) + "\n"


def table(report: Report, name: str) -> str:
    """One set: FP32 with its own values, every other row with what it lost.

    What is the same for every set stands in the table of both alone.
    """
    whole = name == BOTH
    titles = tuple(title for _, title, _ in COLUMNS)
    lines: list[tuple[str, ...]] = [
        ("", "MB", "prepare, s", *titles, "remark") if whole else ("", *titles)
    ]
    for finding in report.findings:
        label = finding.row.label
        numbers = _cells(report.numbers[label, name], is_reference=label == FP32)
        if not whole:
            lines.append((label, *numbers))
            continue
        stored, prepare = finding.stored_bytes, finding.prepare_s
        lines.append(
            (
                label,
                "-" if stored is None else f"{stored / MB:.2f}",
                "-" if prepare is None else f"{prepare:.0f}",
                *numbers,
                "; ".join(finding.remarks),
            )
        )
    return _padded(lines)


def beside_modelopt(report: Report, pairs: Sequence[tuple[str, str]]) -> str:
    """What ModelOpt's row lost more than ours on the same scenes; "" where there is no pair."""
    lines = []
    for theirs, ours in pairs:
        a, b = report.find(theirs).scenes(BOTH), report.find(ours).scenes(BOTH)
        if a and b:
            more = compared(a, b)
            cells = [_signed(*more[key], d) if key in more else "-" for key, _, d in COLUMNS]
            lines.append((theirs, ours, *cells))
    if not lines:
        return ""
    titles = [title.removesuffix(" lost").removesuffix(" more") for _, title, _ in COLUMNS]
    text = _padded([("ModelOpt", "ours", *titles), *lines])
    return f"## ModelOpt minus ours, both sets\n\nAbove 0: ModelOpt lost more.\n\n{text}"


def to_csv(report: Report) -> str:
    """One line for each row, set and measure."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    for finding in report.findings:
        row, prepare = finding.row, finding.prepare_s
        for name in SET_NAMES:
            for measure, number in report.numbers[row.label, name].items():
                low, high = number.interval or ("", "")
                writer.writerow(
                    (
                        *(row.label, row.step, row.bits, name, len(finding.scenes(name))),
                        *(finding.stored_bytes, "" if prepare is None else f"{prepare:.3f}"),
                        *(measure, number.value, number.lost, low, high),
                    )
                )
    return out.getvalue()


def to_json(report: Report) -> list[dict[str, Any]]:
    """The rows with the numbers of every set, and of every scene."""
    return [
        {
            "label": finding.row.label,
            "tool": finding.row.step,
            "bits": finding.row.bits,
            "error": finding.error,
            "stored_bytes": finding.stored_bytes,
            "prepare_s": finding.prepare_s,
            "remarks": finding.remarks,
            "peak_rss_bytes": None if finding.result is None else finding.result.peak_rss_bytes,
            "sets": {
                name: {
                    measure: asdict(number)
                    for measure, number in report.numbers[finding.row.label, name].items()
                }
                for name in SET_NAMES
            },
            "scenes": {one.name: list(finding.scenes(one.name)) for one in SETS},
        }
        for finding in report.findings
    ]


def _cells(numbers: Mapping[str, Number], *, is_reference: bool) -> list[str]:
    cells = []
    for key, _, digits in COLUMNS:
        number = numbers.get(key)
        if number is None:
            cells.append("-")
        elif is_reference:
            cells.append(f"{number.value:.{digits}f}")
        else:
            cells.append(_signed(number.lost, number.interval, digits))
    return cells


def _signed(mean: float, interval: Interval, digits: int) -> str:
    ends = "" if interval is None else f" ({interval[0]:+.{digits}f}, {interval[1]:+.{digits}f})"
    return f"{mean:+.{digits}f}{ends}"


def _padded(lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table that can be read as it is; remarks, which may be long, are not padded."""
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(lines[0]))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    if lines[0][-1] == "remark":
        widths[-1], rule[-1] = len("remark"), "------"

    def text(cells: Sequence[str]) -> str:
        numbers = (cell.rjust(w) for cell, w in zip(cells[1:], widths[1:], strict=True))
        return f"| {' | '.join([cells[0].ljust(widths[0]), *numbers])} |"

    return "\n".join([text(lines[0]), text(rule), *map(text, lines[1:])])


NOTES = """\
- FP32's line has its own values; all others what was lost against it, scene by scene on the same
  pictures: mean (95 % bootstrap interval over scenes), above 0 is worse. AUC in points of percent.
- output error: root of the mean over pose_enc, depth and world_points of
  ||y - y_FP32||^2 / ||y_FP32||^2, mean over scenes. It is the measure that moves first.
- MB: all weights as stored, integers with scales and zero points, the rest FP32.
- prepare: from the checkpoint to the quantized network, calibration included; on a busy machine it
  says little.
- modelopt: rows have the layers of ours: the same Linears, convolutions 8 bit for each channel."""
