"""The accuracy card: numbers of the right report, or none at all."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vggt_deploy.compare import report
from vggt_deploy.errors import BundleError
from vggt_deploy.manifest import read_manifest
from vggt_deploy.quantize.schemes import parse_label
from vggt_deploy.records import CalibrationRecord
from vggt_deploy.ship import accuracy
from vggt_deploy.ship.bundle import bundle
from vggt_deploy.ship.verify import verify

METRICS = {"depth": {"values": 10, "psnr_db": 41.5, "ssim": None, "notes": {}}}


def row(runtime: str, scheme: str, activations: str, **differences: Any) -> dict[str, Any]:
    base = {
        "runtime": runtime,
        "scheme": scheme,
        "activations": activations,
        "treatment": "",
        "status": "done",
        "accuracy": METRICS,
        "geometry": {"poses": {"pairs": 6}},
    }
    return {**base, **differences}


@pytest.fixture
def write_report(tmp_path: Path) -> Callable[..., Path]:
    def write(
        rows: list[dict[str, Any]] | None = None,
        model: dict[str, Any] | None = None,
        images: dict[str, Any] | None = None,
        calibration: dict[str, Any] | None = None,
        **differences: Any,
    ) -> Path:
        identity = {"spec": "random:test", "config": "vggt-test", "kind": "random"}
        question = {
            "model": {**identity, "revision": None, "sha256": None, **(model or {})},
            "images": {"frames": 4, "height": 42, "width": 56, **(images or {})},
            "precision": None,
            "layers": {"include": [], "exclude": [], "sensitive": []},
            "calibration": calibration,
        }
        default = [row("torch", "fp32", "float"), row("onnxruntime", "int8_pc_sym", "static")]
        data = {
            "schema": report.SCHEMA,
            "question": question,
            "rows": default if rows is None else rows,
        }
        path = tmp_path / accuracy.REPORT_NAME
        path.write_text(json.dumps({**data, **differences}))
        return path

    return write


def test_the_names_and_numbers_are_those_of_compare() -> None:
    """`ship` does not import `compare`: an edge device has no part of it to run."""
    assert accuracy.REPORT_SCHEMA == report.SCHEMA
    assert accuracy.REPORT_NAME == report.REPORT_NAME


def test_the_rows_of_the_variant(
    write_report: Callable[..., Path], h200: Path, tmp_path: Path
) -> None:
    path = write_report()
    bundle([h200], tmp_path / "b", accuracy=path)
    card = verify(tmp_path / "b", device=False).index.accuracy
    assert card is not None
    assert card.report_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (card.pictures, card.random_weights) == (4, True)
    (only,) = card.rows
    assert only.runtime == "onnxruntime"
    assert only.tensors == METRICS
    assert only.geometry == {"poses": {"pairs": 6}}


def test_a_folder_with_a_report(
    write_report: Callable[..., Path], h200: Path, tmp_path: Path
) -> None:
    info = bundle([h200], tmp_path / "b", accuracy=write_report().parent)
    assert info.index.accuracy is not None


def test_the_same_model_written_otherwise(
    write_report: Callable[..., Path], make_engine: Callable[..., Path], h200: Path, tmp_path: Path
) -> None:
    """What `compare` is given and what `export` resolves it to: no seed is seed 0; and the bytes
    of a checkpoint count, not the path that was typed.
    """
    seeded = dataclasses.replace(read_manifest(h200).model, spec="random:vggt-tiny:0")
    engine = make_engine("seeded", change={"model": seeded})
    bundle([engine], tmp_path / "a", accuracy=write_report(model={"spec": "random:vggt-tiny"}))
    with pytest.raises(BundleError, match="another model"):
        report = write_report(model={"spec": "random:vggt-tiny:1"})
        bundle([engine], tmp_path / "b", accuracy=report)

    file = dataclasses.replace(seeded, spec="/data/best.safetensors", sha256="ab" * 32)
    engine = make_engine("file", change={"model": file})
    typed = {"spec": "best.safetensors", "kind": "file", "sha256": "ab" * 32}
    bundle([engine], tmp_path / "c", accuracy=write_report(model=typed))
    with pytest.raises(BundleError, match="another model"):
        unknown = write_report(model={**typed, "sha256": None})
        bundle([engine], tmp_path / "d", accuracy=unknown)


@pytest.mark.parametrize(
    "differences, message",
    [
        ({"rows": [row("torch", "fp32", "float")]}, "no measured row of int8_pc_sym"),
        ({"rows": [row("onnxruntime", "int8_pc_sym", "float")]}, "no measured row"),
        ({"rows": [row("x", "int8_pc_sym", "static", status="failed")]}, "no measured row"),
        ({"model": {"spec": "other"}}, "another model"),
        ({"model": {"sha256": "ab"}}, "another weights SHA-256"),
        ({"images": {"width": 70}}, "another width"),
        ({"schema": 1}, "report schema 1"),
        ({"rows": None, "question": {}}, "no whole comparison report"),
        ({"rows": [{}]}, "no whole comparison report"),
    ],
)
def test_another_report(
    write_report: Callable[..., Path],
    h200: Path,
    tmp_path: Path,
    differences: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(BundleError, match=message):
        bundle([h200], tmp_path / "b", accuracy=write_report(**differences))
    assert not (tmp_path / "b").exists()


def asked(method: str, **images: str) -> dict[str, Any]:
    return {"method": method, "statistics": False, "images": images}


@pytest.mark.parametrize(
    "calibration, sound",
    [
        (asked("percentile:99.9", a="1" * 64, b="2" * 64), True),
        (asked("percentile", a="1" * 64), True),
        (asked("mse", a="1" * 64), False),
        (asked("percentile", a="3" * 64), False),
        (asked("percentile", b="1" * 64), False),
        (None, False),
    ],
)
def test_other_pictures_for_calibration_are_other_numbers(
    write_report: Callable[..., Path],
    make_engine: Callable[..., Path],
    tmp_path: Path,
    calibration: dict[str, Any] | None,
    sound: bool,
) -> None:
    record = CalibrationRecord("percentile 99.99", "0" * 64, {"a": "1" * 64}, {"layer": 0.1})
    engine = make_engine("calibrated", change={"calibration": record})
    path = write_report(calibration=calibration)
    if sound:
        assert bundle([engine], tmp_path / "b", accuracy=path).index.accuracy is not None
        return
    with pytest.raises(BundleError, match="calibrated otherwise"):
        bundle([engine], tmp_path / "b", accuracy=path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"schema": NaN}'])
def test_no_report(h200: Path, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"is not a comparison report|report schema None"):
        bundle([h200], tmp_path / "b", accuracy=path)
    with pytest.raises(BundleError, match="can't be read"):
        bundle([h200], tmp_path / "b", accuracy=tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    "label",
    ["int8_pc_sym", "int8_pc_sym+static", "int4_g128+gptq", "int8_pc_sym+static+apart+smooth"],
)
def test_a_row_is_found_by_its_whole_label(label: str) -> None:
    """A treated variant has other numbers than the plain one, and another row."""
    asked = parse_label(label)
    treated = row("x", asked.scheme.name, asked.activations, treatment=asked.treatment.label)
    assert accuracy._label(treated) == label
