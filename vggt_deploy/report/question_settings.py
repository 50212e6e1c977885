"""The settings of a comparison, as name and value."""

from __future__ import annotations

from vggt_deploy.compare.report import ComparisonReport
from vggt_deploy.report.languages import Speaker


def setting_facts(report: ComparisonReport, say: Speaker) -> list[tuple[str, str]]:
    """How it was measured, and what of it is not the default."""
    question = report.question
    calls = say("{warmup} warm-up, {n} timed", warmup=question["warmup"], n=question["repeats"])
    facts = [
        (say("calls"), calls),
        (say("outputs"), say.joined([say.recorded(name) for name in question["outputs"]])),
    ]
    if question["precision"] is not None:
        facts.append((say("float type beside the integers"), question["precision"]))
    for name, key in (
        (say("also quantized"), "include"),
        (say("kept float"), "exclude"),
        (say("kept at 8 bit by mixed"), "sensitive"),
    ):
        if question["layers"][key]:
            facts.append((name, ", ".join(question["layers"][key])))
    calibration = question["calibration"]
    if calibration is not None:
        facts.append(
            (
                say("calibration"),
                say(
                    "{method}, {n} images",
                    method=calibration["method"],
                    n=len(calibration["images"]),
                ),
            )
        )
    return facts
