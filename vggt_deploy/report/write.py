"""All files of a report, in one place: after a comparison, and for `vggt-deploy report`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vggt_deploy.artifact import locked
from vggt_deploy.compare.baseline import changes
from vggt_deploy.compare.report import ComparisonReport, read_report, write_report
from vggt_deploy.compare.state import Folder, full_disk_explained
from vggt_deploy.errors import CompareError
from vggt_deploy.report.csv_table import write_csv
from vggt_deploy.report.experiment import write_experiment
from vggt_deploy.report.languages import Language, speaker
from vggt_deploy.report.markdown import write_markdown
from vggt_deploy.report.page import write_page
from vggt_deploy.report.pictures import draw_depth_pictures
from vggt_deploy.report.plots import draw_plots
from vggt_deploy.report.sensitivity import keep_sensitivity, kept_sensitivity, read_sensitivity
from vggt_deploy.report.summary import write_summary


def write_texts(report: ComparisonReport, language: Language = "en") -> tuple[Path, ...]:
    """What needs the report alone: written at once, and before anything is drawn."""
    return (write_summary(report, language), *write_csv(report), write_markdown(report))


def draw(report: ComparisonReport, folder: Folder, language: Language = "en") -> tuple[Path, ...]:
    """What takes seconds: plots and pictures, the page, and the text that shows the pictures."""
    return (
        draw_plots(report),
        *draw_depth_pictures(report, folder),
        write_page(report, folder, sensitivity=kept_sensitivity(folder)),
        write_experiment(report, folder, language),
    )


def rewrite(
    folder: Path | str,
    *,
    language: str = "en",
    baseline: Path | str | None = None,
    sensitivity: Path | str | None = None,
) -> ComparisonReport:
    """Write texts, pictures and page of a finished comparison again; nothing is measured.

    Args:
        folder: that `compare` has finished.
        language: of the summary and the experiment report: `en` or `zh`.
        baseline: an earlier report to hold this one against; None keeps what it was held against.
        sensitivity: a table that `vggt-deploy sensitivity` wrote of these weights; None keeps the
            one that is there.

    Raises:
        CompareError: no finished comparison there, or one that something is writing.
    """
    root = Path(folder).expanduser().absolute()
    if not root.is_dir():
        raise CompareError(f"{root} is no folder", "give the folder that compare wrote")
    spoken = speaker(language).language
    places = Folder(root)
    with locked(root), full_disk_explained(root, "free some space, then write it again"):
        report = read_report(root)
        if sensitivity is not None:
            table = read_sensitivity(Path(sensitivity).expanduser())
            keep_sensitivity(places, table, report.question["model"])
        if baseline is not None:
            old = read_report(Path(baseline).expanduser())
            report = replace(report, baseline=changes(old, report))
            write_report(report)
        write_texts(report, spoken)
        draw(report, places, spoken)
    return report
