"""What the numbers of a report do not show: limits of what follows, and what was not measured."""

from __future__ import annotations

from vggt_deploy.compare.recommend import LEAST_AUC_30
from vggt_deploy.compare.report import ComparisonReport
from vggt_deploy.report.languages import Speaker
from vggt_deploy.report.question_sections import notes, report_times

TARGET = "vggt-1b"


def limit_findings(report: ComparisonReport, say: Speaker) -> list[str]:
    """What speaks against carrying a conclusion elsewhere; each only where it holds."""
    truth = report.reference.truth
    config = str(report.question["model"]["config"])
    found = notes(report, say)
    if all(row.measured is None or row.measured.gpu is None for row in report.rows):
        found.append(
            say("All times are of CPUs: on other ones, or on a GPU, the order may be another.")
            if report_times(report).away
            else say(
                "All times are of the CPU of one machine: on another one, or on a GPU, the order "
                "of the variants may be another."
            )
        )
    if config != TARGET:
        found.append(
            say(
                "The architecture is {config}: how much VGGT-1B loses by the same schemes does not "
                "follow from it.",
                config=config,
            )
        )
    if truth is None:
        found.append(
            say(
                "No truth is known here: accuracy is the distance to PyTorch FP32, and who is far "
                "from it need not be worse."
            )
        )
    elif _judged(report) and truth.auc_30 is not None and truth.auc_30 < LEAST_AUC_30:
        found.append(
            say(
                "PyTorch FP32 itself has an AUC@30 of {auc}: it has too little to lose, so poses "
                "were held against FP32 and not against the truth alone.",
                auc=f"{truth.auc_30:.1f}",
            )
        )
    return found


def _judged(report: ComparisonReport) -> bool:
    """Accuracy was held against gates."""
    return not report.random_weights and report.reference.finite


def unmeasured_findings(report: ComparisonReport, say: Speaker) -> list[str]:
    """What a reader may look for and not find, and why it is not there."""
    found = []
    if len(report.scenes) > 1:
        found.append(
            say(
                "Latency of the scenes after the first: every variant is timed on {scene} and run "
                "once on each of the others.",
                scene=report.scenes[0],
            )
        )
    missing = [
        name for name in ("pose", "depth", "points") if name not in report.question["outputs"]
    ]
    if missing:
        groups = say.joined([say.recorded(name) for name in missing])
        found.append(say("Outputs that were not asked for: {groups}.", groups=groups))
    if any(row.runtime == "torch" and row.scheme != "fp32" for row in report.rows):
        found.append(
            say(
                "Size on disk of quantized PyTorch variants: they are never a file; what they hold "
                "in memory is in the table."
            )
        )
    if not report.question["verify"]:
        found.append(say("The exporter's own check of its graphs against PyTorch: it was off."))
    return found
