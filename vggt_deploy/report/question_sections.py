"""The parts of the texts that say what was asked: model, pictures, machine, and what to mind."""

from __future__ import annotations

from typing import Any

from vggt_deploy.compare.contention import NOISY_SHARE
from vggt_deploy.compare.paired import losses
from vggt_deploy.compare.recommend import ENOUGH_SCENES
from vggt_deploy.compare.report import ComparisonReport
from vggt_deploy.compare.speed import FEWEST_CALLS, Times, times_of
from vggt_deploy.report.languages import ENGLISH, Speaker
from vggt_deploy.report.text import entry

_NAME = 9
_WIDTH = 110

Facts = list[tuple[str, str]]


def question_lines(report: ComparisonReport, say: Speaker) -> list[str]:
    """All facts and notes as plain text."""
    facts = [*subject_facts(report, say), *machine_facts(report, say)]
    # What was read, why a truth is not known, what was calibrated on.
    facts += [(say("read"), say.recorded(note)) for note in report.notes]
    lines = []
    for name, text in facts:
        lines += entry(name, text, name_width=_NAME, width=_WIDTH)
    for note in notes(report, say):
        lines += entry(say("NOTE"), note, name_width=_NAME, width=_WIDTH)
    return lines


def subject_facts(report: ComparisonReport, say: Speaker = ENGLISH) -> Facts:
    """What was compared."""
    question = report.question
    model, images, scenes = question["model"], question["images"], question["scenes"]
    size = say(
        "{height} x {width} pixels, mode {mode}",
        height=images["height"],
        width=images["width"],
        mode=images["mode"],
    )
    if len(scenes) == 1:
        pictures = say("{n} of {where}", n=images["frames"], where=scenes[0]["folder"])
    else:
        pictures = say("{n} of each of {all} scenes", n=images["frames"], all=len(scenes))
    facts = [
        (
            say("model"),
            say(
                "{spec} (architecture {config}, weights: {weights})",
                spec=model["spec"],
                config=model["config"],
                weights=_weights(model, say),
            ),
        ),
        (say("pictures"), f"{pictures}{say.comma}{size}"),
    ]
    if len(scenes) > 1:
        named = say("{names}; timed on the first", names=say.joined(report.scenes))
        facts.append((say("scenes"), named))
    facts += [
        (say("left out"), say.recorded(text)) for scene in scenes for text in scene["skipped"]
    ]
    if question["device"] is not None:
        gpu = question["device"]["gpu"] or say("none here")
        device = say(
            "{name} (GPU of this machine: {gpu})", name=question["device"]["name"], gpu=gpu
        )
        facts.append((say("device"), device))
    return facts


def _weights(model: dict[str, Any], say: Speaker) -> str:
    sha256 = str(model["sha256"])[:16]
    if model["kind"] == "random":
        return say("random numbers")
    if model["kind"] == "hub":
        return say("revision {revision}", revision=model["revision"])
    if model["kind"] == "package":
        return say("those of this package, sha256 {sha256}", sha256=sha256)
    return f"sha256 {sha256}"


def machine_facts(report: ComparisonReport, say: Speaker = ENGLISH) -> Facts:
    """What it ran on, and how it was asked for."""
    environment = report.environment
    memory = environment.memory_bytes
    machine = [
        environment.cpu,
        say("{n} of {all} CPUs", n=environment.usable_cpus, all=environment.logical_cpus),
        *([f"{memory / 2**30:.1f} GiB"] if memory else []),
        *([" ".join(environment.cpu_flags)] if environment.cpu_flags else []),
    ]
    versions = [f"{name} {version}" for name, version in environment.versions.items()]
    return [
        (say("machine"), say.comma.join(machine)),
        (say("threads"), say("{n} for every variant", n=report.question["threads"])),
        (say("system"), f"{environment.system}{say.comma}Python {environment.python}"),
        (say("versions"), ", ".join(versions)),
        (
            say("made"),
            say("{when} by: {command}", when=report.created, command=" ".join(report.command)),
        ),
    ]


def notes(report: ComparisonReport, say: Speaker = ENGLISH) -> list[str]:
    """All that speaks against trusting the numbers."""
    return [
        *weight_notes(report, say),
        *reference_notes(report, say),
        *calibration_notes(report, say),
        *timing_notes(report, say),
        *machine_notes(report, say),
        *scene_notes(report, say),
    ]


def weight_notes(report: ComparisonReport, say: Speaker = ENGLISH) -> list[str]:
    """Random weights: nothing follows for accuracy."""
    if not report.random_weights:
        return []
    return [
        say(
            "The weights are random: accuracy on random weights is not evidence; sizes and times "
            "are real."
        )
    ]


def reference_notes(report: ComparisonReport, say: Speaker = ENGLISH) -> list[str]:
    """PyTorch FP32 with outputs that nothing can be held against."""
    if report.reference.finite:
        return []
    return [
        say(
            "PyTorch FP32 itself has NaN or infinite outputs: what a variant differs from it by, "
            "or lost against it, says nothing. Look for such values in the weights."
        )
    ]


def calibration_notes(report: ComparisonReport, say: Speaker = ENGLISH) -> list[str]:
    """What speaks against trusting static activations: they were fitted to what is compared."""
    calibration = report.question["calibration"]
    if calibration is None:
        return []
    files = [file["sha256"] for scene in report.question["scenes"] for file in scene["files"]]
    seen = set(calibration["images"].values())
    both = sum(sha256 in seen for sha256 in files)
    if not both:
        return []
    return [
        say(
            "Static activations were calibrated on {n} of the {all} pictures compared: on other "
            "pictures they may be worse.",
            n=both,
            all=len(files),
        )
    ]


def timing_notes(report: ComparisonReport, say: Speaker = ENGLISH) -> list[str]:
    """What speaks against trusting the times: too few calls, or other work on the same CPUs."""
    times = report_times(report)
    found = []
    if times.few:
        found.append(
            say(
                "Fewer than {n} timed calls: the times have no spread worth the name.",
                n=FEWEST_CALLS,
            )
        )
    busy = [(row.label, row.measured.others_cpus or 0.0) for row in times.noisy if row.measured]
    if busy:
        worst, cpus = max(busy, key=lambda item: item[1])
        found.append(
            say(
                "NOISY TIMES: other processes kept CPUs busy while {n} of {all} variants were "
                "timed (most: {cpus} CPUs, {worst}). Repeat on a quiet machine.",
                n=len(busy),
                all=len(times.rows),
                cpus=f"{cpus:.1f}",
                worst=worst,
            )
        )
    if times.untold:
        found.append(
            say(
                "Whether other processes kept CPUs busy is not known here ({n} of {all} variants): "
                "these times count as quiet.",
                n=len(times.untold),
                all=len(times.rows),
            )
        )
    return found


def report_times(report: ComparisonReport) -> Times:
    """The rows that were timed, by what may be held against what."""
    measured = [row for row in report.rows if row.measured is not None]
    quiet = NOISY_SHARE * report.environment.usable_cpus
    return times_of(measured, report.reference, quiet)


def machine_notes(report: ComparisonReport, say: Speaker = ENGLISH) -> list[str]:
    """Rows that were timed elsewhere: no ratio holds them against PyTorch FP32."""
    return [
        say(
            "{label} was timed on another kind of machine than PyTorch FP32: {machine}.",
            label=row.label,
            machine=row.machine or "-",
        )
        for row in report_times(report).away
    ]


def scene_notes(report: ComparisonReport, say: Speaker = ENGLISH) -> list[str]:
    """What speaks against trusting the intervals by the truth: too few scenes, or frames."""
    truth = report.reference.truth
    if truth is None:
        return []
    found = []
    drawn = frames_drawn(report)
    if drawn:
        found.append(
            say(
                "Where the truth is known of one scene alone, the 95 % intervals of what was lost "
                "are over its {n} frames: they say what other frames of this scene might give, "
                "nothing of other scenes, and with few frames they are too narrow.",
                n=drawn,
            )
        )
    elif truth.scenes == 1:
        found.append(
            say(
                "The truth is known of one scene: what was lost there has no interval, and says "
                "nothing of other scenes."
            )
        )
    if 1 < truth.scenes < ENOUGH_SCENES:
        found.append(
            say(
                "The truth is known of {n} scenes: the 95 % intervals of what was lost are too "
                "narrow, and with fewer than {least} the truth alone judges nothing.",
                n=truth.scenes,
                least=ENOUGH_SCENES,
            )
        )
    return found


def frames_drawn(report: ComparisonReport) -> int:
    """How many frames of one scene the intervals of its losses are over, at least; 0: none is."""
    found = [
        lost.n
        for row in report.rows
        if row is not report.reference
        for lost in losses(row.truth_loss)
        if lost.over == "frames"
    ]
    return min(found, default=0)
