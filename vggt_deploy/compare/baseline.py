"""What changed since an earlier report: size, latency, accuracy, with what can be told from chance.

    size          bytes on disk, exact; within 0.1 % it is unchanged (names and dates in manifests)
    latency       median of the new calls / median of the old, beside the same ratio of PyTorch
                  FP32, whose own change is taken for the machine's and is no verdict; Mann-Whitney
                  test on the calls and Welch's on the ratio of ratios, both with as many calls as
                  these dependent ones are worth (`changed_latency.py`).
                  Only where machine, threads, pictures' size and number, and outputs are the same,
                  and where other processes are known to have kept no CPUs busy meanwhile.
                  Below 2 % it is unchanged whatever the test says
    by the truth  new minus old of each scene that both reports have (same pictures, pixels, truth
                  and alignment), mean and interval as in `paired.py`, sign-flip test over scenes.
                  Below 0.005 points of AUC and F-score, 0.00005 of AbsRel and points, it is
                  unchanged whatever the test says
    against FP32  relative error of each output, and depth, poses and points: the same numbers every
                  time with the same software, so they are compared as they are; within 5 %, or
                  where both are rounding errors (below 1e-5, 0.001 degrees), they are unchanged.
                  Only where the scenes are the same ones

All tests of one comparison of reports are one family: Holm's adjustment, level 0.05, so that the
chance of a false "better" or "worse" anywhere in it is 5 %. `significance.py` has the tests, and
which of them can't tell anything.

That chance rests on what two runs can't show: that a call depends on earlier ones only through the
one before it, and that what changes the machine between two reports changes the times of all
variants by one factor, which those of PyTorch FP32 tell.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from vggt_deploy.compare.changed import (
    Change,
    Found,
    Pair,
    Verdict,
    error_changes,
    size_change,
    truth_changes,
)
from vggt_deploy.compare.changed_latency import Clock, latency_change
from vggt_deploy.compare.significance import LEVEL, holm
from vggt_deploy.errors import CompareError
from vggt_deploy.typed_json import decode

if TYPE_CHECKING:  # report.py holds Changes
    from vggt_deploy.compare.report import ComparisonReport, Row

__all__ = ["Change", "Changes", "Side", "VariantChanges", "Verdict", "changes"]

REFERENCE_LABEL = "torch/fp32"


@dataclass(frozen=True)
class VariantChanges:
    """One variant; old_status or new_status is None where that report does not have it."""

    label: str
    old_status: str | None
    new_status: str | None
    status: Verdict
    changes: tuple[Change, ...] = ()

    @property
    def presence(self) -> Literal["both", "appeared", "disappeared"]:
        """Which of the reports has it."""
        if self.old_status is None:
            return "appeared"
        return "disappeared" if self.new_status is None else "both"


@dataclass(frozen=True)
class Side:
    """One of the two reports."""

    created: str
    folder: str
    model: str
    weights: str | None
    machine: str
    versions: dict[str, str]


@dataclass(frozen=True)
class Changes:
    """What changed between two reports; variants in the order of the new one, then the gone.

    scenes    names (in the new report) of those that both have, picture by picture
    left_out  scenes that are not compared, each with the reason
    notes     what differs between the two reports as a whole
    tests     how many tests Holm's adjustment is over
    """

    old: Side
    new: Side
    scenes: tuple[str, ...]
    left_out: tuple[str, ...]
    notes: tuple[str, ...]
    tests: int
    level: float
    variants: tuple[VariantChanges, ...]

    def to_json(self) -> dict[str, Any]:
        """A dict for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: object) -> Changes:
        """The inverse; CompareError where it is something else."""
        return cast("Changes", decode(cls, data, "baseline", _refuse))


def changes(old: ComparisonReport, new: ComparisonReport) -> Changes:
    """What changed from the old report to the new one."""
    scenes, left_out = _common_scenes(old, new)
    reasons = _Reasons.of(old, new, scenes)
    clock = Clock.of(old, new, _differ(old, new, _LATENCY_NEEDS))
    labels = [row.label for row in new.rows]
    labels += [row.label for row in old.rows if row.label not in labels]
    found = {
        label: _found(old.row(label), new.row(label), scenes, reasons, clock) for label in labels
    }
    judged, tests = _judged(found)
    return Changes(
        old=_side(old),
        new=_side(new),
        scenes=tuple(new.scenes[j] for _, j in scenes),
        left_out=left_out,
        notes=_notes(old, new, judged[REFERENCE_LABEL]),
        tests=tests,
        level=LEVEL,
        variants=tuple(
            _variant(label, old.row(label), new.row(label), judged[label]) for label in labels
        ),
    )


def _found(
    old: Row | None, new: Row | None, scenes: tuple[Pair, ...], reasons: _Reasons, clock: Clock
) -> tuple[Found, ...]:
    """All quantities of a variant, not judged yet; nothing where one report lacks it."""
    if old is None or new is None:
        return ()
    return (
        *size_change(old, new, reasons.size),
        *latency_change(old, new, clock),
        *truth_changes(old, new, scenes, reasons.truth),
        *error_changes(old, new, reasons.errors),
    )


def _judged(found: Mapping[str, tuple[Found, ...]]) -> tuple[dict[str, tuple[Change, ...]], int]:
    """With Holm's p values and the verdicts that hang on them; and how many tests there are."""
    family = [one for variant in found.values() for one in variant if one.in_family]
    adjusted = dict(zip(map(id, family), holm([one.p for one in family]), strict=True))
    judged = {
        label: tuple(one.judged(adjusted.get(id(one)), len(family)) for one in variant)
        for label, variant in found.items()
    }
    return judged, len(family)


def _variant(
    label: str, old: Row | None, new: Row | None, found: tuple[Change, ...]
) -> VariantChanges:
    return VariantChanges(
        label, old.status if old else None, new.status if new else None, _status(old, new), found
    )


@dataclass(frozen=True)
class _Reasons:
    """Why a kind of quantity can't be compared between two reports; "" where it can."""

    size: str
    truth: str
    errors: str

    @classmethod
    def of(cls, old: ComparisonReport, new: ComparisonReport, scenes: tuple[Pair, ...]) -> _Reasons:
        random = (
            "random weights: accuracy is no evidence"
            if old.random_weights or new.random_weights
            else ""
        )
        all_scenes = len(scenes) == len(old.scenes) == len(new.scenes)
        other = "taken over all scenes together, and these are not the same ones"
        return cls(
            size=_differ(old, new, _SIZE_NEEDS),
            truth=random
            or ("" if scenes else "no scene in common")
            or _differ(old, new, _TRUTH_NEEDS),
            errors=random or ("" if all_scenes else other),
        )


def _side(report: ComparisonReport) -> Side:
    model, environment = report.question["model"], report.environment
    return Side(
        report.created,
        str(report.folder),
        model["spec"],
        model["sha256"] or model["revision"],
        environment.machine,
        dict(environment.versions),
    )


def _common_scenes(
    old: ComparisonReport, new: ComparisonReport
) -> tuple[tuple[Pair, ...], tuple[str, ...]]:
    """Numbers (old, new) of the scenes with the same pictures, pixels and truth; the others."""
    before = {_pictures(scene): i for i, scene in enumerate(old.question["scenes"])}
    pairs, left_out = [], []
    for j, scene in enumerate(new.question["scenes"]):
        i = before.pop(_pictures(scene), None)
        if i is None:
            left_out.append(f"{scene['name']}: the old report has no scene of these pictures")
            continue
        other = old.question["scenes"][i]
        if scene["pixels_sha256"] != other["pixels_sha256"]:
            left_out.append(f"{scene['name']}: the same pictures, read to other pixels")
        elif (scene["truth"] or {}).get("sha256") != (other["truth"] or {}).get("sha256"):
            left_out.append(f"{scene['name']}: the same pictures, another truth")
        else:
            pairs.append((i, j))
    gone = (old.question["scenes"][i]["name"] for i in before.values())
    left_out += [f"{name}: the new report has no scene of these pictures" for name in gone]
    return tuple(pairs), tuple(left_out)


def _pictures(scene: Mapping[str, Any]) -> tuple[str, ...]:
    """By content, in order: names and folders may change."""
    return tuple(file["sha256"] for file in scene["files"])


def _differ(
    old: ComparisonReport, new: ComparisonReport, what: Mapping[str, Callable[[Any], object]]
) -> str:
    """The first of these that differs, as a reason; "" where none does."""
    for name, value in what.items():
        before, after = value(old), value(new)
        if before != after:
            return f"{name}: {before} before, {after} now"
    return ""


_SIZE_NEEDS: dict[str, Callable[[Any], object]] = {
    "another architecture": lambda r: r.question["model"]["config"],
    "other outputs": lambda r: ", ".join(r.question["outputs"]),
}
_LATENCY_NEEDS: dict[str, Callable[[Any], object]] = _SIZE_NEEDS | {
    "other CPU instructions": lambda r: " ".join(r.environment.cpu_flags),
    "another GPU": lambda r: (r.question["device"] or {}).get("gpu"),
    "other threads": lambda r: r.question["threads"],
    "another number of pictures": lambda r: r.question["images"]["frames"],
    "another size": lambda r: f"{r.question['images']['height']} x {r.question['images']['width']}",
}
_TRUTH_NEEDS: dict[str, Callable[[Any], object]] = {
    "other masks": lambda r: r.protocol.masks,
    "poses judged in another way": lambda r: r.protocol.poses,
    "depth aligned in another way": lambda r: r.protocol.depth,
    "points aligned in another way": lambda r: r.protocol.points,
}


def _status(old: Row | None, new: Row | None) -> Verdict:
    """A row that came to work is better; one that a machine can't run says nothing."""
    if old is None or new is None or "not run" in (old.status, new.status):
        return "not comparable"
    if (old.status == "done") == (new.status == "done"):
        return "unchanged"
    return "better" if new.status == "done" else "worse"


_NOTED: dict[str, Callable[[Any], object]] = {
    "other weights": lambda r: r.question["model"]["sha256"] or r.question["model"]["revision"],
    "another float type": lambda r: r.question["precision"],
    "other layers": lambda r: r.question["layers"],
    "another calibration": lambda r: r.question["calibration"],
    "other warm-up calls": lambda r: r.question["warmup"],
}


def _notes(
    old: ComparisonReport, new: ComparisonReport, reference: tuple[Change, ...]
) -> tuple[str, ...]:
    """What differs as a whole and does not forbid a comparison."""
    notes = []
    for name, value in _NOTED.items():
        if value(old) != value(new):
            short = name in ("other weights", "another float type", "other warm-up calls")
            notes.append(
                f"{name}: {_short(value(old))} before, {_short(value(new))} now" if short else name
            )
    before, after = old.environment.versions, new.environment.versions
    notes += [
        f"{name} {before.get(name, 'not there')} before, {after.get(name, 'not there')} now"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]
    for change in reference:
        if change.quantity == "latency_ms" and change.moved:
            assert change.change is not None
            notes.append(
                f"{REFERENCE_LABEL} itself takes {change.change:.3g} times as long as before: "
                "that is the machine's change, or a library's, and no variant's"
            )
    return tuple(notes)


def _short(value: object) -> str:
    """A hash by its beginning."""
    return str(value)[:16]


def _refuse(problem: str) -> CompareError:
    return CompareError(problem, "compare again with --baseline, with this version")
