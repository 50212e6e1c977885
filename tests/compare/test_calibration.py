"""Static activations in a comparison: asked once, calibrated once, refused without images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vggt_deploy.compare.calibration import ask_calibration
from vggt_deploy.compare.variants import parse_variants
from vggt_deploy.errors import CalibrationError, CompareError, ImageError, UsageError
from vggt_deploy.quantize.histogram import NOTHING, Histogram, TokenHistograms
from vggt_deploy.quantize.statistics import Statistics, write_statistics
from vggt_deploy.records import ModelRecord

SCHEMES = "int8_pc_sym,int8_pc_sym+static,int8_pt_asym+static"


@pytest.fixture
def others(tmp_path: Path) -> Path:
    """Two pictures to calibrate on."""
    folder = tmp_path / "others"
    folder.mkdir()
    for i in range(2):
        pixels = np.full((42, 56, 3), 40 * i, np.uint8)
        Image.fromarray(pixels).save(folder / f"other{i}.png")
    return folder


@pytest.fixture
def statistics(tmp_path: Path) -> Path:
    histogram = Histogram(1.0, np.array([16256], np.uint16), np.array([4], np.int64))
    folder = tmp_path / "statistics"
    folder.mkdir()
    write_statistics(
        folder,
        Statistics(
            ModelRecord("fake-model", "vggt-tiny"), 42, 56, "crop", 3, {"a.png": "0" * 64}, (),
            {"layer": TokenHistograms(NOTHING, histogram)},
        ),
    )  # fmt: skip
    return folder


def test_calibrated_once_for_all(fake: Any, others: Path) -> None:
    report = fake.run(schemes=SCHEMES, calibrate=others)
    assert [row.status for row in report.rows] == ["done"] * 7
    calls = fake.calls()
    assert calls.count("calibrate images") == 1
    assert calls.index("calibrate images") == 1  # after the model was identified
    assert [c for c in calls if "+static" in c] == [
        "measure torch/int8_pc_sym+static",
        "measure torch/int8_pt_asym+static",
        "export export/int8_pc_sym+static",
        "measure onnxruntime/int8_pc_sym+static",
        "export export/int8_pt_asym+static",
        "measure onnxruntime/int8_pt_asym+static",
    ]
    assert set(report.question["calibration"]["images"]) == {"other0.png", "other1.png"}
    assert f"static activations: mse, 2 images in {others}" in report.notes


def test_statistics_are_taken_as_they_are(fake: Any, statistics: Path) -> None:
    report = fake.run(schemes="int8_pc_sym+static", calibrate=statistics)
    assert [row.status for row in report.rows] == ["done"] * 3
    assert "calibrate images" not in fake.calls()
    assert report.question["calibration"] == {
        "method": "mse", "statistics": True, "images": {"a.png": "0" * 64},
    }  # fmt: skip


def test_a_comparison_without_static_variants_does_not_calibrate(fake: Any) -> None:
    assert fake.run().question["calibration"] is None
    assert "calibrate images" not in fake.calls()


@pytest.mark.parametrize("behaviour, words", [("deploy error", "no such thing"), ("killed", "mem")])
def test_a_failed_calibration_costs_the_static_rows_only(
    behaviour: str, words: str, fake: Any, others: Path
) -> None:
    fake.plan({"images": behaviour})
    report = fake.run(schemes=SCHEMES, calibrate=others)
    for row in report.rows:
        assert row.status == ("failed" if row.activations == "static" else "done")
        if row.failure is not None:
            assert row.failure.stage == "calibrate"
            assert words in row.failure.message
    assert fake.calls().count("calibrate images") == 1
    fake.plan({})
    again = fake.run(schemes=SCHEMES, calibrate=others, resume=True)
    assert [row.status for row in again.rows] == ["done"] * 7
    assert fake.calls().count("calibrate images") == 1


def test_resumed_keeps_the_statistics(fake: Any, others: Path) -> None:
    fake.plan({"onnxruntime/int8_pc_sym+static": "killed"})
    first = fake.run(schemes=SCHEMES, calibrate=others)
    assert [row.status for row in first.rows].count("failed") == 1
    fake.calls()
    fake.plan({})
    fake.run(schemes=SCHEMES, calibrate=others, resume=True)
    assert "calibrate images" not in (calls := fake.calls())
    assert "measure onnxruntime/int8_pc_sym+static" in calls
    fake.run(schemes=SCHEMES, calibrate=others, resume=True)
    assert fake.calls() == ["identify model"]


def test_other_images_or_another_method_are_another_question(fake: Any, others: Path) -> None:
    fake.run(schemes=SCHEMES, calibrate=others, runtimes="torch")
    with pytest.raises(CompareError, match=r"calibration\.method"):
        fake.run(
            schemes=SCHEMES,
            calibrate=others,
            calibration_method="absmax",
            runtimes="torch",
            resume=True,
        )
    Image.fromarray(np.zeros((42, 56, 3), np.uint8)).save(others / "other1.png")
    with pytest.raises(CompareError, match=r"calibration\.images\.other1\.png"):
        fake.run(schemes=SCHEMES, calibrate=others, runtimes="torch", resume=True)


def test_static_without_images_is_refused_before_anything_starts(fake: Any) -> None:
    with pytest.raises(UsageError, match=r"torch/int8_pc_sym\+static looks at pictures") as caught:
        fake.run(schemes=SCHEMES)
    assert "--calibrate DIR" in caught.value.fix
    assert fake.calls() == []
    assert not fake.folder.exists()


def test_requests_that_make_no_sense(tmp_path: Path, others: Path, statistics: Path) -> None:
    static, plain = parse_variants("int8_pc_sym+static", "torch"), parse_variants("fp16", "torch")
    with pytest.raises(UsageError, match="no variant has static activations"):
        ask_calibration(others, "mse", plain)
    with pytest.raises(UsageError, match="nothing is calibrated"):
        ask_calibration(None, "absmax", plain)
    with pytest.raises(UsageError, match="unknown calibration method"):
        ask_calibration(others, "max", static)
    with pytest.raises(ImageError, match="no folder"):
        ask_calibration(tmp_path / "absent", "mse", static)
    asked = ask_calibration(statistics, "mse", static)
    assert asked is not None
    assert asked.statistics
    (statistics / "statistics.npz").write_bytes(b"")
    with pytest.raises(CalibrationError, match="cut short"):
        ask_calibration(statistics, "mse", static)
