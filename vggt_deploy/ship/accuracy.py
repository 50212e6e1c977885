"""The accuracy card of a bundle: the rows of a comparison that are about its variant.

Read from the JSON of `comparison_report.json`; names of pictures and folders stay behind. Without a
report there is no card, and a reader is told "not measured".
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vggt_deploy import typed_json
from vggt_deploy.errors import BundleError
from vggt_deploy.records import Manifest

REPORT_SCHEMA = 5
REPORT_NAME = "comparison_report.json"
MAX_REPORT_BYTES = 64 * 2**20


@dataclass(frozen=True)
class AccuracyRow:
    """One runtime that ran the variant: metrics per output tensor, and of the geometry.

    The keys are those of the report; None is a number that has no value.
    """

    runtime: str
    tensors: dict[str, dict[str, Any]]
    geometry: dict[str, Any] | None


@dataclass(frozen=True)
class AccuracyCard:
    """What was measured, on how many pictures of which size.

    random_weights: the numbers say nothing about the model then
    """

    against: str
    pictures: int
    height: int
    width: int
    random_weights: bool
    report_sha256: str
    rows: tuple[AccuracyRow, ...]


def read_card(path: Path, manifest: Manifest) -> AccuracyCard:
    """The card of the variant of `manifest`, from a report or the folder that holds one.

    Raises:
        BundleError: no such report, another schema, another model, or no row of this variant.
    """
    path = path / REPORT_NAME if path.is_dir() else path
    data, report = _read(path)
    try:
        _check_same(path, report["question"], manifest)
        _check_calibration(path, report["question"], manifest)
        rows = tuple(
            AccuracyRow(row["runtime"], row["accuracy"], row["geometry"])
            for row in report["rows"]
            if row["status"] == "done" and _label(row) == manifest.variant and row["accuracy"]
        )
        images = report["question"]["images"]
        card = AccuracyCard(
            against="PyTorch FP32 on the same pixels",
            pictures=images["frames"],
            height=images["height"],
            width=images["width"],
            random_weights=report["question"]["model"]["kind"] == "random",
            report_sha256=hashlib.sha256(data).hexdigest(),
            rows=rows,
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise BundleError(
            f"{path} is no whole comparison report: {error!r}", "run compare again"
        ) from error
    if not rows:
        raise BundleError(
            f"{path} has no measured row of {manifest.variant}",
            f"run compare with --schemes {manifest.scheme}, or leave --accuracy out",
        )
    return card


def _read(path: Path) -> tuple[bytes, dict[str, Any]]:
    fix = "give the comparison_report.json that `vggt-deploy compare` wrote"
    try:
        size = path.stat().st_size
        data = path.read_bytes() if size <= MAX_REPORT_BYTES else b""
    except OSError as error:
        raise BundleError(f"{path} can't be read ({error.strerror})", fix) from error
    try:
        report = typed_json.parse(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not a comparison report ({error})", fix) from error
    schema = report.get("schema") if isinstance(report, dict) else None
    if not isinstance(report, dict) or schema != REPORT_SCHEMA:
        raise BundleError(
            f"{path} has report schema {schema!r}, this version reads {REPORT_SCHEMA}",
            "run compare again with this version",
        )
    return data, report


def _check_same(path: Path, question: dict[str, Any], manifest: Manifest) -> None:
    """The report must be about the weights and the layers of the bundle, or it proves nothing."""
    model, ours = question["model"], manifest.model
    same_weights = ours.sha256 is not None and model["sha256"] == ours.sha256
    asked = {
        # The bytes say more than a path, which is written differently on another day.
        "model": ("", "") if same_weights else (_seeded(model["spec"]), _seeded(ours.spec)),
        "architecture": (model["config"], ours.config),
        "revision": (model["revision"], ours.revision),
        "weights SHA-256": (model["sha256"], ours.sha256),
        "height": (question["images"]["height"], manifest.height),
        "width": (question["images"]["width"], manifest.width),
        "precision": (question["precision"] or manifest.precision, manifest.precision),
        "include": (tuple(question["layers"]["include"]), manifest.layers.include),
        "exclude": (tuple(question["layers"]["exclude"]), manifest.layers.exclude),
        "sensitive": (tuple(question["layers"]["sensitive"]), manifest.layers.sensitive),
    }
    for name, (theirs, own) in asked.items():
        if theirs != own:
            raise BundleError(
                f"{path} is about another {name}: {theirs!r}, the engines have {own!r}",
                "compare the model that is bundled, or leave --accuracy out",
            )


def _seeded(spec: str) -> str:
    """`random:CONFIG` as an artifact records it: with the seed, which is 0 where none is given."""
    return f"{spec}:0" if spec.startswith("random:") and spec.count(":") == 1 else spec


def _check_calibration(path: Path, question: dict[str, Any], manifest: Manifest) -> None:
    """Static scales come from pictures: other pictures, other numbers."""
    ours = manifest.calibration
    if ours is None:
        return
    theirs = question["calibration"] or {"method": "none", "images": {}}
    # "percentile:99.9"; ours "percentile 99.9". A method in the label goes before the option, and
    # the row was found by its label.
    method = str(theirs["method"]).partition(":")[0]
    in_label = manifest.treatment is not None and "a=" in manifest.treatment.label
    prepared = ours.statistics_sha256 is None
    if (
        method != ours.method.partition(" ")[0] and not (in_label or prepared)
    ) or not ours.images.items() <= dict(theirs["images"]).items():
        raise BundleError(
            f"{path} is about activations calibrated otherwise ({theirs['method']}, "
            f"{len(theirs['images'])} pictures; the engines: {ours.method}, {len(ours.images)})",
            "give compare the same --calibrate as export, or leave --accuracy out",
        )


def _label(row: dict[str, Any]) -> str:
    mode = () if row["activations"] == "float" else (row["activations"],)
    words = (row["treatment"],) if row["treatment"] else ()
    return "+".join((row["scheme"], *mode, *words))
