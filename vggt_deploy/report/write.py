"""All files of a report, in one place: after a comparison, and for `vggt-deploy report`."""

from __future__ import annotations

from pathlib import Path

from vggt_deploy.compare.report import ComparisonReport
from vggt_deploy.compare.state import Folder
from vggt_deploy.report.pictures import draw_depth_pictures
from vggt_deploy.report.plots import draw_plots
from vggt_deploy.report.summary import write_summary


def write_texts(report: ComparisonReport) -> tuple[Path, ...]:
    """What is text: written at once, and before anything is drawn."""
    return (write_summary(report),)


def draw(report: ComparisonReport, folder: Folder) -> tuple[Path, ...]:
    """What takes seconds: plots and pictures."""
    return (draw_plots(report), *draw_depth_pictures(report, folder))
