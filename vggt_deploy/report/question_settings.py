"""What was compared and how: the variants, and the settings as name and value."""

from __future__ import annotations

from vggt_deploy.compare.report import ComparisonReport
from vggt_deploy.quantize.schemes import SCHEMES
from vggt_deploy.report.languages import Speaker
from vggt_deploy.report.text import Grid


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


def variant_grid(report: ComparisonReport, say: Speaker) -> Grid:
    """What each label stands for, and what its runtime makes of it."""
    header = say.each("variant", "scheme", "activations", "treatment", "in this runtime")
    rows = tuple(
        (
            row.label,
            say.recorded(SCHEMES[row.scheme].summary),
            say.recorded(row.activations),
            row.treatment or "-",
            say.recorded(row.support),
        )
        for row in report.rows
    )
    return Grid(header, rows, left=len(header))
