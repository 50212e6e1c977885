"""Both passes on a tiny network: against the quantized network built another way, and resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vggt_deploy.compare.scenes import Scene, find_scenes, read_scenes
from vggt_deploy.compare.truth import truth_metrics
from vggt_deploy.errors import CompareError, SceneError, UsageError
from vggt_deploy.model.fold import FoldedWeights
from vggt_deploy.model.weights import open_weights
from vggt_deploy.quantize.apply import build_quantized
from vggt_deploy.quantize.schemes import get_scheme, parse_format
from vggt_deploy.sensitivity import pipeline
from vggt_deploy.sensitivity.measure import losses, measures, output_mse
from vggt_deploy.sensitivity.picture import PICTURE_NAME
from vggt_deploy.sensitivity.pipeline import sensitivity
from vggt_deploy.sensitivity.store import FINISHED_NAME, LOCAL_NAME
from vggt_deploy.sensitivity.table import (
    CSV_NAME,
    OUTPUT_MEASURES,
    TABLE_NAME,
    TRUTH_MEASURES,
    Entry,
    SensitivityTable,
    read_table,
)

MODEL = "random:vggt-tiny"
HEIGHT, WIDTH = 28, 42


def _measure(folder: Path, data: Path, **changes: Any) -> SensitivityTable:
    request: dict[str, Any] = {
        "scenes": [data],
        "by": "head",
        "formats": ("int8_pc_sym", "int4_g32"),
        "height": HEIGHT,
        "width": WIDTH,
        "threads": 1,
    }
    return sensitivity(MODEL, output_dir=folder, **(request | changes))


@pytest.fixture(scope="session")
def measured(tmp_path_factory: pytest.TempPathFactory, scenes_dir: Path) -> Path:
    """A finished measurement by head, in two formats. Not to be changed."""
    folder = tmp_path_factory.mktemp("sensitivity") / "by_head"
    _measure(folder, scenes_dir)
    return folder


def _entry(table: SensitivityTable, unit: str, form: str) -> Entry:
    (found,) = [e for e in table.entries if (e.unit, e.format) == (unit, form)]
    return found


def test_the_folder_holds_the_table_and_a_picture(measured: Path) -> None:
    table = read_table(measured)
    assert {TABLE_NAME, CSV_NAME, PICTURE_NAME} <= {path.name for path in measured.iterdir()}
    assert (measured / PICTURE_NAME).read_bytes()[:4] == b"\x89PNG"
    assert (table.reference, table.by, table.height, table.width) == ("truth", "head", 28, 42)
    assert len(table.scenes) == 2
    assert set(table.baseline) == set(TRUTH_MEASURES)
    assert len(table.measured) == len(table.entries) == 10  # 4 of Linears twice, 2 of convolutions
    for entry in table.entries:
        assert entry.loss is not None
        assert set(entry.loss) == set(entry.interval) == set(TRUTH_MEASURES)
        for name, (low, high) in entry.interval.items():
            assert low <= entry.loss[name] <= high


def test_losses_are_those_of_a_network_built_with_these_layers_alone(
    measured: Path, scenes_dir: Path
) -> None:
    entry = _entry(read_table(measured), "aggregator.frame_blocks", "int4_g32")
    config, source = open_weights(MODEL)
    folded = FoldedWeights(source, config)
    heads = frozenset({"camera", "depth", "point"})
    exact = build_quantized(config, folded, get_scheme("fp32"), heads=heads)
    formats = dict.fromkeys(entry.layers, parse_format(entry.format))
    scheme = get_scheme("int4_g32")
    variant = build_quantized(config, folded, scheme, heads=heads, formats=formats)
    found = find_scenes(None, [scenes_dir], max_images=None)
    read = read_scenes(
        found, mode="crop", width=WIDTH, height=HEIGHT, skip_bad=False, need_truth=True
    )
    errors, points = [], []
    for scene in read.items:
        assert scene.truth is not None
        with torch.no_grad():
            ours, theirs = (
                {
                    k: m(torch.from_numpy(scene.pixels))[k].numpy()
                    for k in ("depth", "pose_enc", "world_points")
                }
                for m in (variant, exact)
            )
        errors.append(output_mse(ours, theirs))
        a, b = (truth_metrics(one, scene.truth).points for one in (ours, theirs))
        assert a is not None
        assert b is not None
        points.append(a.median_relative - b.median_relative)
    assert entry.loss is not None
    assert entry.loss["output_mse"] == pytest.approx(np.mean(errors), rel=1e-3)
    assert entry.loss["point_error"] == pytest.approx(np.mean(points), rel=1e-3, abs=1e-6)
    other = _entry(read_table(measured), "aggregator.global_blocks", "int4_g32").loss
    assert other is not None
    assert other["output_mse"] != pytest.approx(np.mean(errors), rel=1e-2)


def test_fewer_bits_lose_more(measured: Path) -> None:
    table = read_table(measured)
    for unit in ("aggregator.patch_embed", "aggregator.frame_blocks", "aggregator.global_blocks"):
        eight, four = (_entry(table, unit, form) for form in ("int8_pc_sym", "int4_g32"))
        assert eight.local_error is not None
        assert four.local_error is not None
        assert eight.loss is not None
        assert four.loss is not None
        assert four.local_error > 5 * eight.local_error
        assert four.loss["output_mse"] > 5 * eight.loss["output_mse"]


def test_an_interrupted_run_goes_on_where_it_was(
    tmp_path: Path, scenes_dir: Path, measured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"

    def stop(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("units", 3):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _measure(folder, scenes_dir, progress=stop)
    assert not (folder / TABLE_NAME).exists()
    finished = folder / FINISHED_NAME
    lines = finished.read_text().splitlines(keepends=True)
    assert len(lines) == 3
    # As a kill in the middle of the third line leaves it.
    finished.write_text("".join(lines[:2]) + lines[2][:40])
    with pytest.raises(CompareError, match="not empty"):
        _measure(folder, scenes_dir)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("the first pass is done")

    monkeypatch.setattr(pipeline, "local_errors", never)
    runs: list[object] = []
    real = pipeline.run_scenes
    monkeypatch.setattr(pipeline, "run_scenes", lambda *a: runs.append(1) or real(*a))
    table = _measure(folder, scenes_dir, resume=True)
    assert len(runs) == 1 + 8  # FP32, and what was not finished
    assert table == read_table(measured)
    assert (folder / TABLE_NAME).read_bytes() == (measured / TABLE_NAME).read_bytes()


def test_another_question_is_refused_and_named(
    tmp_path: Path, scenes_dir: Path, measured: Path
) -> None:
    for change, words in (
        ({"formats": ("int8_pc_sym",)}, "units"),
        ({"max_images": 2}, "images.frames"),
        ({"by": "kind"}, "by: "),
    ):
        with pytest.raises(CompareError, match=words):
            _measure(measured, scenes_dir, resume=True, **change)
    (tmp_path / "mine.txt").write_text("")
    for resume in (False, True):
        with pytest.raises(CompareError, match="no measurement was begun"):
            _measure(tmp_path, scenes_dir, resume=resume)


def test_the_second_pass_is_for_the_worst_and_can_be_extended(
    tmp_path: Path, scenes_dir: Path
) -> None:
    folder = tmp_path / "out"
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for path in (scenes_dir / "scene_900000" / "images").rglob("*.*"):
        (pictures / path.name).write_bytes(path.read_bytes())
    request: dict[str, Any] = {"scenes": (), "images": pictures, "formats": ("int8_pc_sym",)}
    table = _measure(folder, scenes_dir, top=1, **request)
    worst = max(table.entries, key=lambda entry: entry.local_error or 0.0)
    assert {entry.unit for entry in table.measured} == {worst.unit, "camera_head"}
    assert (table.reference, table.baseline) == ("outputs", {})
    assert worst.loss is not None
    assert set(worst.loss) == set(OUTPUT_MEASURES)
    assert worst.loss["output_mse"] > 0
    assert worst.interval == {}  # of one scene there is none
    more = _measure(folder, scenes_dir, top=4, resume=True, **request)
    assert len(more.measured) >= 4
    assert worst in more.entries


def test_pictures_without_truth_are_refused_as_scenes(tmp_path: Path, write_pictures: Any) -> None:
    write_pictures(tmp_path / "pictures", 2, size=(WIDTH, HEIGHT))
    with pytest.raises(SceneError, match="truth") as caught:
        _measure(tmp_path / "out", tmp_path / "pictures")
    assert "--images" in caught.value.fix
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change, words",
    [
        ({"by": "stack"}, "unknown kind of unit"),
        ({"top": 0}, "top is 0"),
        ({"scheme": "fp32"}, "no layer would become integers"),
        ({"scheme": "int9"}, "unknown scheme"),
        ({"scheme": "int8_pc_sym+gptq"}, "treatment"),
        ({"scheme": "int8_pc_sym+static"}, "pictures to calibrate"),
        ({"calibrate": Path("x")}, "only they take some"),
        ({"formats": ("int5",)}, "unknown weight format"),
        ({"images": Path("x")}, "both"),
    ],
)
def test_requests_that_make_no_sense(
    tmp_path: Path, scenes_dir: Path, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        _measure(tmp_path / "out", scenes_dir, **change)
    assert not (tmp_path / "out" / TABLE_NAME).exists()


def test_activations_are_rounded_where_the_label_says_so(
    tmp_path: Path, scenes_dir: Path, measured: Path
) -> None:
    asked: dict[str, Any] = {"formats": ("int8_pc_sym",), "top": 1}
    float_inputs = read_table(measured)
    for label, extra in (("dynamic", {}), ("static", {"calibrate": scenes_dir})):
        scheme = f"int8_pc_sym+{label}"
        table = _measure(tmp_path / label, scenes_dir, scheme=scheme, **asked, **extra)
        assert table.activations == label
        ours = _entry(table, "aggregator.frame_blocks", "int8_pc_sym").local_error
        weights = _entry(float_inputs, "aggregator.frame_blocks", "int8_pc_sym").local_error
        assert ours is not None
        assert weights is not None
        assert ours > 1.05 * weights
        local = json.loads((tmp_path / label / LOCAL_NAME).read_text())["errors"]
        assert len(local) == len(table.entries)


def test_auc_that_fell_is_a_loss_and_errors_that_grew_are() -> None:
    exact = [{"auc3": 50.0, "abs_rel": 0.1}, {"auc3": 40.0, "abs_rel": 0.2}]
    variant = [{"auc3": 45.0, "abs_rel": 0.3}, {"auc3": 41.0, "abs_rel": 0.3}]
    mean, interval = losses(variant, exact)
    assert mean == pytest.approx({"auc3": 2.0, "abs_rel": 0.15})
    assert interval["auc3"] == pytest.approx((-1.0, 5.0))


def test_output_mse_is_the_mean_of_squared_relative_errors() -> None:
    exact = {"a": np.array([3.0, 4.0], np.float32), "b": np.array([1.0], np.float32)}
    variant = {"a": np.array([3.0, 5.0], np.float32), "b": np.array([1.5], np.float32)}
    assert output_mse(variant, exact) == pytest.approx((1 / 25 + 0.25) / 2)


def test_poses_that_moved_from_those_of_fp32_show_without_a_truth() -> None:
    poses = np.zeros((1, 2, 9), np.float32)
    poses[..., 6] = 1.0  # quaternions without rotation
    poses[..., 7:] = 0.8
    poses[0, 1, 0] = 1.0  # a baseline of one along x
    angle = np.deg2rad(1.5)
    turned = poses.copy()
    turned[0, 1, 3:7] = [0.0, np.sin(angle / 2), 0.0, np.cos(angle / 2)]
    scene = Scene("a", np.zeros((2, 3, 28, 42), np.float32), (), (), (), "", None, "none")
    exact, moved = {"pose_enc": poses}, {"pose_enc": turned}
    still = measures(exact, exact, scene, "outputs")
    assert (still["same3"], still["same5"], still["pose_deg"]) == (0.0, 0.0, 0.0)
    found = measures(moved, exact, scene, "outputs")
    assert found["pose_deg"] == pytest.approx(1.5, rel=1e-3)
    assert found["same3"] == pytest.approx(50.0, rel=1e-3)
    assert found["same5"] == pytest.approx(30.0, rel=1e-3)
