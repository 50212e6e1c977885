"""`report.html`: the whole comparison as one page that opens offline.

The text tables are those of the summary; what a page can do better is added: a table that sorts,
plots with hover, pictures with a divider between FP32 and a variant, points and cameras in 3D. The
page carries the JSON and the CSV of the report, to be saved from it.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vggt_deploy.artifact import write_text
from vggt_deploy.compare.report import CSV_NAME, PAGE_NAME, REPORT_NAME, ComparisonReport
from vggt_deploy.compare.state import Folder
from vggt_deploy.pages.blocks import Scene
from vggt_deploy.pages.colours import Kind, ramp
from vggt_deploy.pages.encode import PictureStore, png_uri
from vggt_deploy.pages.page import LIBRARIES, SCRIPTS, STYLES, render
from vggt_deploy.report import page_parts as parts
from vggt_deploy.report.csv_table import csv_text
from vggt_deploy.report.kept import kept_pixels, kept_truth
from vggt_deploy.report.page_maps import Shown, map_data
from vggt_deploy.report.page_plots import plot_data
from vggt_deploy.report.page_points import View, scene_view
from vggt_deploy.report.page_tables import reason_of, variant_table
from vggt_deploy.report.question_sections import notes as warnings
from vggt_deploy.sensitivity.table import SensitivityTable

_RAMPS: tuple[Kind, ...] = ("depth", "difference", "error")


@dataclass(frozen=True)
class Failed:
    """A row without numbers: why, what would help, the last lines of its log."""

    label: str
    status: str
    reason: str
    fix: str | None
    tail: tuple[str, ...]


def write_page(
    report: ComparisonReport, folder: Folder, *, sensitivity: SensitivityTable | None = None
) -> Path:
    """Write report.html into the report's folder, whole or not at all.

    sensitivity: of the same model, where it was measured; its heat map becomes a section
    """
    path = report.folder / PAGE_NAME
    write_text(path, page_text(report, folder, sensitivity=sensitivity))
    return path


def page_text(
    report: ComparisonReport, folder: Folder, *, sensitivity: SensitivityTable | None = None
) -> str:
    """The page.

    Raises:
        CompareError: a file of the comparison's folder that it is drawn from is missing or damaged.
        RuntimeUnavailableError: jinja2 is not installed.
    """
    images = kept_pixels(report, folder)
    truth = kept_truth(report, folder)
    store = PictureStore()
    maps = map_data(report, folder, images, truth, store)
    view = scene_view(report, folder, images, truth)
    found = report.baseline
    context = {
        **_words(report),
        "maps": maps,
        "ramps": {kind: png_uri(ramp(kind)) for kind in _RAMPS},
        "view": view,
        "scene": _scene(report, view),
        "heat": parts.heat(sensitivity) if sensitivity is not None else None,
        "changes": parts.change_part(found) if found is not None else None,
    }
    context["contents"] = _contents(context)
    return render(
        "report.html.j2",
        context,
        title=f"{report.question['model']['spec']}: {len(report.rows)} variants compared",
        data=_data(report, maps, view, store),
        libraries=LIBRARIES,
        scripts=(*SCRIPTS, "plots.js", "report.js"),
        styles=(*STYLES, "report.css"),
    )


def _words(report: ComparisonReport) -> dict[str, Any]:
    """All that is text."""
    images = report.question["images"]
    scenes = len(report.scenes)
    where = (
        f"{scenes} scenes, {images['frames']} pictures each"
        if scenes > 1
        else (f"{images['frames']} picture{'' if images['frames'] == 1 else 's'} of one scene")
    )
    environment = report.environment
    return {
        "subtitle": f"{where}, {images['height']} x {images['width']} pixels. "
        f"{environment.cpu}, {environment.usable_cpus} CPUs. Made {_moment(report.created)}.",
        "warnings": warnings(report),
        "advice": parts.advice(report),
        "variants": variant_table(report),
        "failures": _failures(report),
        "support": [(row.label, row.support) for row in report.rows if row.support != "real"],
        "calls": report.question["repeats"],
        "truth_parts": parts.truth_parts(report),
        "scene_parts": parts.scene_parts(report),
        "truth_remarks": parts.truth_remarks(report),
        "fp32_parts": parts.fp32_parts(report),
        "engines": parts.engine_part(report),
        "environment": parts.environment_facts(report),
        "how": parts.how_facts(report),
        "how_notes": parts.how_notes(report),
        "first_scene": report.scenes[0],
    }


def _moment(created: str) -> str:
    """2025-01-01T12:34:56Z -> 2025-01-01 12:34 UTC."""
    day, _, time = created.partition("T")
    return f"{day} {time[:5]} UTC" if time.endswith("Z") else created


def _failures(report: ComparisonReport) -> tuple[Failed, ...]:
    return tuple(
        Failed(row.label, row.status, reason_of(row), row.failure.fix, row.failure.tail)
        for row in report.rows
        if row.failure is not None
    )


def _scene(report: ComparisonReport, view: View) -> Scene | None:
    if view.packed is None:
        return None
    label = f"Points and cameras of {report.scenes[0]} in 3D"
    return Scene("points", label, view.packed, view.notes)


def _contents(context: dict[str, Any]) -> list[tuple[str, str]]:
    """(id, title) of the sections that this page has."""
    entries = [
        ("recommendation", "Recommendation", True),
        ("variants-section", "Variants", True),
        ("plots", "Plots", True),
        ("truth", "By the truth", bool(context["truth_parts"])),
        ("changes", "Changes", context["changes"] is not None),
        ("pictures", "Pictures", True),
        ("cloud", "3D", True),
        ("sensitivity", "Layers", context["heat"] is not None),
        ("fp32", "Against FP32", bool(context["fp32_parts"])),
        ("engines", "Engines", context["engines"] is not None),
        ("method", "Method", True),
    ]
    return [(id_, title) for id_, title, there in entries if there]


def _data(
    report: ComparisonReport, maps: Shown, view: View, store: PictureStore
) -> dict[str, object]:
    """What the page's scripts read, and the files that it carries."""
    data: dict[str, object] = {
        "plots": plot_data(report),
        "report-json": _file(REPORT_NAME, "application/json", _json_text(report)),
        "report-csv": _file(CSV_NAME, "text/csv", csv_text(report)),
    }
    if maps.data is not None:
        data["maps"] = maps.data
        data["pictures"] = store.uris
    if view.packed is not None:
        data["scene-points"] = view.packed
    return data


def _json_text(report: ComparisonReport) -> str:
    """As in comparison_report.json."""
    return json.dumps(report.to_json(), indent=2, allow_nan=False) + "\n"


def _file(name: str, kind: str, text: str) -> dict[str, str]:
    encoded = base64.b64encode(text.encode("utf-8")).decode("ascii")
    return {"name": name, "type": kind, "base64": encoded}
