"""Comparisons over several scenes: found, of one shape, judged by the truth, resumed."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_comparison import FAKE_WORKER
from PIL import Image
from rich.console import Console

from vggt_deploy.compare import compare, judging, pipeline, read_report
from vggt_deploy.compare.geometry import Angles, GeometryMetrics, PoseErrors, mean_geometry
from vggt_deploy.compare.report import SCHEMA
from vggt_deploy.compare.scenes import find_scenes, read_scenes
from vggt_deploy.compare.state import Folder
from vggt_deploy.compare.truth import truth_metrics
from vggt_deploy.compare.variants import REFERENCE
from vggt_deploy.data.eth3d import write_scene
from vggt_deploy.data.folders import scene_roots
from vggt_deploy.data.frame_lists import FrameList
from vggt_deploy.data.synthetic import render_views
from vggt_deploy.errors import CompareError, ImageError, SceneError, UsageError
from vggt_deploy.report.summary import summary_text

VIEWS, HEIGHT, WIDTH = 3, 42, 56
INCHES = {2: 8.2, 3: 11.8}  # of the plots, by rows of panels: those of the truth are the third


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scenes with truth, in a folder."""
    folder = tmp_path_factory.mktemp("rendered")
    for seed in (1_000_001, 1_000_002):
        views = render_views(seed, views=VIEWS, height=HEIGHT, width=WIDTH)
        write_scene(folder / f"scene_{seed}", views)
    return folder


@pytest.fixture
def scenes(rendered: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    return Path(shutil.copytree(rendered, tmp_path / "scenes"))


def without_truth(scene: Path) -> None:
    shutil.rmtree(scene / "dslr_calibration_undistorted")


@pytest.fixture
def fake_scenes(fake: Any) -> Callable[..., Any]:
    """Compare scenes with fake workers."""

    def call(*folders: Path, **changes: Any) -> Any:
        request = {"schemes": "int8_pc_sym", "runtimes": "torch"} | changes
        return replace(fake, images=None).run(scenes=folders, **request)

    return call


# --- finding and reading


def test_a_folder_of_scenes_a_scene_and_its_images_folder(rendered: Path) -> None:
    both = [rendered / "scene_1000001", rendered / "scene_1000002"]
    assert list(scene_roots(rendered)) == both
    assert scene_roots(both[0]) == (both[0],)
    found = find_scenes(None, [both[0] / "images", both[1]], max_images=2)
    assert [scene.name for scene in found] == ["scene_1000001", "scene_1000002"]
    assert [len(scene.images.paths) for scene in found] == [2, 2]


def test_scenes_two_folders_deep_and_in_natural_order(rendered: Path, tmp_path: Path) -> None:
    for name in ("scene_10", "scene_9"):
        target = tmp_path / f"{name}_dslr_undistorted" / name
        shutil.copytree(rendered / "scene_1000001", target)
    names = [scene.name for scene in find_scenes(None, [tmp_path], max_images=None)]
    assert names == ["scene_9", "scene_10"]


def test_depth_maps_are_no_scene(rendered: Path) -> None:
    roots = scene_roots(rendered)
    assert not any("ground_truth_depth" in root.parts for root in roots)


def test_scenes_of_one_name_are_told_apart(rendered: Path, tmp_path: Path) -> None:
    shutil.copytree(rendered / "scene_1000001", tmp_path / "scene_1000001")
    found = find_scenes(None, [rendered / "scene_1000001", tmp_path], max_images=None)
    assert len({scene.name for scene in found}) == 2
    with pytest.raises(UsageError, match="given twice"):
        find_scenes(None, [rendered, rendered / "scene_1000001"], max_images=None)


def frame_list(**scenes: tuple[str, ...]) -> FrameList:
    return FrameList("mine", "ab" * 32, scenes, "here", "by hand", {})


@pytest.fixture
def listed() -> FrameList:
    """The last and the first picture of both scenes, in this order."""
    names = ("DSC_0002.JPG", "DSC_0000.JPG")
    return frame_list(scene_1000001=names, scene_1000002=names, scene_1000003=names)


def read(found: Any, **changes: Any) -> Any:
    request = {"mode": "crop", "width": WIDTH, "height": HEIGHT, "skip_bad": False}
    return read_scenes(found, **(request | {"need_truth": True} | changes))


def test_exactly_the_listed_frames_in_their_order(rendered: Path, listed: FrameList) -> None:
    found = find_scenes(None, [rendered], max_images=None, frames=listed)
    for scene in found:
        assert tuple(path.name for path in scene.images.paths) == listed.scenes[scene.name]
        assert scene.images.note.endswith("2 by the frame list mine")
    chosen, every = read(found), read(find_scenes(None, [rendered], max_images=None))
    assert chosen.listed == listed
    assert chosen.to_json()["frame_list"] == {"name": "mine", "sha256": "ab" * 32}
    assert every.to_json()["frame_list"] is None
    # Pixels and truth follow the order of the list, not that of the names.
    for ours, all_ in zip(chosen.items, every.items, strict=True):
        assert np.array_equal(ours.pixels, all_.pixels[[2, 0]])
        assert np.array_equal(ours.truth.extrinsic, all_.truth.extrinsic[[2, 0]])
        assert np.array_equal(ours.truth.depth, all_.truth.depth[[2, 0]])
        assert not np.array_equal(ours.truth.extrinsic, all_.truth.extrinsic[[0, 2]])


def test_the_list_is_found_by_the_scene_of_a_single_folder(
    rendered: Path, listed: FrameList
) -> None:
    pictures = rendered / "scene_1000002" / "images" / "dslr_images_undistorted"
    (scene,) = find_scenes(pictures, (), max_images=None, frames=listed)
    assert [path.name for path in scene.images.paths] == ["DSC_0002.JPG", "DSC_0000.JPG"]


def test_frames_that_can_not_be_followed_are_refused(rendered: Path, listed: FrameList) -> None:
    with pytest.raises(UsageError, match="both given"):
        find_scenes(None, [rendered], max_images=2, frames=listed)
    with pytest.raises(UsageError, match="does not list the scene scene_1000002") as raised:
        only = frame_list(scene_1000001=listed.scenes["scene_1000001"])
        find_scenes(None, [rendered], max_images=None, frames=only)
    assert "listed are scene_1000001" in raised.value.fix
    gone = frame_list(scene_1000001=("DSC_0000.JPG", "DSC_0007.JPG"))
    with pytest.raises(ImageError, match=r"lacks DSC_0007\.JPG of the frame list mine"):
        find_scenes(None, [rendered / "scene_1000001"], max_images=None, frames=gone)
    with pytest.raises(UsageError, match="can't be left out"):
        read(find_scenes(None, [rendered], max_images=None, frames=listed), skip_bad=True)


def test_what_is_known_tells_one_question_from_another(rendered: Path) -> None:
    """Depth, poses and the rays of a lens: any of them changed is another truth."""
    scene = read(find_scenes(None, [rendered / "scene_1000001"], max_images=None)).first
    assert scene.truth is not None
    rays = np.zeros((VIEWS, HEIGHT, WIDTH, 2))
    others = [
        replace(scene.truth, depth=scene.truth.depth + np.float32(1e-3)),
        replace(scene.truth, extrinsic=scene.truth.extrinsic + 1e-9),
        replace(scene.truth, rays=rays),
        replace(scene.truth, rays=rays + 1e-9),
    ]
    said = [replace(scene, truth=truth).to_json()["truth"]["sha256"] for truth in others]
    said.append(scene.to_json()["truth"]["sha256"])
    assert len(set(said)) == len(said)


def test_no_pictures(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no JPG"):
        find_scenes(None, [tmp_path], max_images=None)
    with pytest.raises(ImageError, match="there is no folder"):
        find_scenes(None, [tmp_path / "nowhere"], max_images=None)


def test_pictures_or_scenes_not_both_not_neither(fake: Any, rendered: Path) -> None:
    with pytest.raises(UsageError, match="both one scene"):
        fake.run(scenes=[rendered])
    with pytest.raises(UsageError, match="no pictures are given"):
        replace(fake, images=None).run()
    assert fake.calls() == []


def test_other_numbers_of_views_are_refused(fake_scenes: Any, fake: Any, scenes: Path) -> None:
    folder = scenes / "scene_1000002" / "images" / "dslr_images_undistorted"
    sorted(folder.iterdir())[-1].unlink()
    with pytest.raises(UsageError, match="scene_1000001 3 x 42 x 56, scene_1000002 2 x") as caught:
        fake_scenes(scenes)
    assert "--max-images 2" in caught.value.fix
    assert fake.calls() == ["identify model"]
    assert fake_scenes(scenes, max_images=2).question["images"]["frames"] == 2


def test_other_sizes_are_refused(fake_scenes: Any, scenes: Path, tmp_path: Path) -> None:
    views = render_views(1_000_003, views=VIEWS, height=56, width=56)
    write_scene(tmp_path / "square", views)
    with pytest.raises(UsageError, match="square 3 x 56 x 56") as caught:
        fake_scenes(scenes, tmp_path / "square")
    assert "--height 42 --width 56" in caught.value.fix
    report = fake_scenes(scenes, tmp_path / "square", height=42)
    assert len(report.reference.scenes) == 3


def test_the_truth_is_that_of_the_pixels(rendered: Path) -> None:
    """A network that answers the true depth at its size is right there, and so are its rows."""
    found = find_scenes(rendered / "scene_1000001", [], max_images=None)
    read = read_scenes(found, mode="crop", width=28, height=14, skip_bad=False, need_truth=True)
    truth = read.first.truth
    assert truth is not None
    assert truth.depth is not None
    assert truth.depth.shape == (VIEWS, 14, 28)
    depth = np.where(np.isfinite(truth.depth), truth.depth, 1.0)[None, ..., None]
    right = truth_metrics({"depth": depth}, truth).depth
    flipped = truth_metrics({"depth": depth[:, :, ::-1]}, truth).depth
    assert right is not None
    assert flipped is not None
    assert right.abs_rel < 1e-6
    assert flipped.abs_rel > 0.02


# --- comparing, with fake workers


def test_several_scenes(fake_scenes: Any, fake: Any, rendered: Path) -> None:
    report = fake_scenes(rendered, draw=True)
    # One process a variant, whatever the number of scenes.
    assert fake.calls() == ["identify model", "measure torch/fp32", "measure torch/int8_pc_sym"]
    assert report.scenes == ["scene_1000001", "scene_1000002"]
    reference, row = report.rows
    assert [scene.name for scene in row.scenes] == report.scenes
    assert row.accuracy["depth"].values == 2 * VIEWS * HEIGHT * WIDTH  # pooled over both
    assert row.geometry.pose.pairs == 6
    means = [scene.geometry.depth.abs_rel for scene in row.scenes]
    assert row.geometry.depth.abs_rel == pytest.approx(np.mean(means))
    aucs = [scene.truth.pose.auc_30 for scene in row.scenes]
    assert row.truth.auc_30 == pytest.approx(np.mean(aucs))
    lost = np.mean([scene.truth.depth.abs_rel for scene in row.scenes]) - np.mean(
        [scene.truth.depth.abs_rel for scene in reference.scenes]
    )
    assert row.truth_loss.abs_rel.n == 2
    assert row.truth_loss.abs_rel.mean == pytest.approx(lost)
    assert reference.truth_loss.auc_30.mean == 0.0
    assert read_report(fake.folder).to_json() == report.to_json()
    assert read_report(fake.folder).rows == report.rows
    assert "true cameras of 2, true depth of 2" in report.notes[0]
    text = summary_text(report)
    assert "3 of each of 2 scenes" in text
    assert "Against the truth\n=" in text
    assert "Lost by the truth, against PyTorch FP32\n=" in text
    kept = {path.name for path in (fake.folder / "outputs").iterdir()}
    assert kept == {"torch-fp32.npz", "torch-fp32.001.npz", "torch-int8_pc_sym.npz"}
    plots = Image.open(fake.folder / "comparison_plots.png")
    assert plots.height == pytest.approx(INCHES[3] * 120, abs=2)
    assert len(list((fake.folder / "depth").glob("*.png"))) == VIEWS  # of the first scene


def test_one_scene_by_images_has_truth_too(fake: Any, rendered: Path) -> None:
    report = replace(fake, images=rendered / "scene_1000001").run(runtimes="torch")
    assert report.reference.truth.scenes == 1
    lost = report.rows[1].truth_loss
    assert (lost.abs_rel.n, lost.abs_rel.over) == (VIEWS, "frames")
    assert lost.auc_30.over == "frames"
    assert lost.point_error.low is None
    assert "; truth: " in report.notes[0]


def test_a_picture_without_a_pose(fake_scenes: Any, fake: Any, scenes: Path) -> None:
    """Scenes are asked for because of their truth; pictures are compared all the same."""
    scene = scenes / "scene_1000001"
    folder = scene / "images" / "dslr_images_undistorted"
    shutil.copy(sorted(folder.iterdir())[0], folder / "DSC_9999.JPG")
    with pytest.raises(SceneError, match="no pose"):
        fake_scenes(scene)
    report = replace(fake, images=scene).run(runtimes="torch")
    assert report.reference.truth is None
    assert "truth: none, " in report.notes[0]
    assert "DSC_9999.JPG has no pose" in report.notes[0]


def test_without_calibration_there_is_no_truth(fake_scenes: Any, fake: Any, scenes: Path) -> None:
    without_truth(scenes / "scene_1000002")
    report = fake_scenes(scenes)
    assert report.reference.truth.scenes == 1
    assert [scene.truth is None for scene in report.reference.scenes] == [False, True]
    assert report.rows[1].truth_loss.abs_rel.scenes == 1
    assert report.rows[1].geometry.pose.pairs == 6  # against FP32 both count
    assert "true cameras of 1" in report.notes[0]
    assert "scene_1000002: " in report.notes[0]
    without_truth(scenes / "scene_1000001")
    report = fake_scenes(scenes, overwrite=True, draw=True)
    assert (report.reference.truth, report.rows[1].truth_loss) == (None, None)
    text = summary_text(report)
    assert "Against the truth" not in text
    plots = Image.open(fake.folder / "comparison_plots.png")
    assert plots.height == pytest.approx(INCHES[2] * 120, abs=2)
    assert read_report(fake.folder).rows == report.rows


def test_what_is_not_finite_in_one_scene_counts(fake_scenes: Any, fake: Any, scenes: Path) -> None:
    well = fake_scenes(scenes).rows[1]
    fake.plan({"torch/int8_pc_sym": "nan pose"})
    report = fake_scenes(scenes, overwrite=True)
    row = report.rows[1]
    assert not row.finite
    assert row.accuracy["pose_enc"].mae is None
    assert row.geometry.pose is None  # not the mean of the scene that is whole
    assert "1 of 2 scenes" in row.geometry.notes["pose_enc"]
    assert row.truth.pose_scenes == 2
    assert row.truth.auc_30 <= well.truth.auc_30
    assert row.scenes[1].truth.pose.rotation_median_deg == 180.0
    assert "1 of 3 poses are not finite" in summary_text(report)
    assert all(item.label != row.label for item in report.recommendations)


@pytest.mark.parametrize("behaviour", ["wrong shape", "truncated outputs"])
def test_a_scene_that_breaks_fails_the_row(
    fake_scenes: Any, fake: Any, rendered: Path, behaviour: str
) -> None:
    fake.plan({"torch/int8_pc_sym": behaviour})
    row = fake_scenes(rendered).rows[1]
    assert row.status == "failed"
    assert row.failure.stage == "accuracy"
    assert not (fake.folder / "outputs" / "torch-int8_pc_sym.001.npz").exists()


def test_wrong_shapes_that_add_up_are_seen() -> None:
    """Two scenes of 2 and 2 views are not scenes of 1 and 3."""

    def arrays(*frames: int) -> list[dict[str, Any]]:
        return [{"depth": np.ones((1, n, 7, 7, 1), np.float32)} for n in frames]

    with pytest.raises(CompareError, match="has shape"):
        judging._pooled("depth", [a["depth"] for a in arrays(1, 3)], arrays(2, 2))
    assert judging._pooled("depth", [a["depth"] for a in arrays(2, 2)], arrays(2, 2)).mae == 0.0


# --- resuming


def comparable(report: Any) -> list[dict[str, Any]]:
    return [asdict(row) | {"command": None} for row in report.rows]


def test_killed_half_way_and_resumed_gives_the_same_report(
    fake_scenes: Any, fake: Any, rendered: Path, tmp_path: Path
) -> None:
    schemes = "int8_pc_sym,int4_g128"
    whole = fake_scenes(rendered, schemes=schemes, output_dir=tmp_path / "whole")
    fake.plan({"torch/int4_g128": "signal parent"})
    worker = FAKE_WORKER
    script = (
        "from rich.console import Console\n"
        "from vggt_deploy.compare import compare\n"
        f"compare('fake-model', scenes=[{str(rendered)!r}], output_dir={str(fake.folder)!r},\n"
        f"        schemes={schemes!r}, runtimes='torch', width=56, threads=1, timeout_s=30.0,\n"
        "        console=Console(quiet=True),\n"
        f"        worker_command=({sys.executable!r}, {str(worker)!r}, {str(fake.plan_path)!r}))\n"
    )
    killed = subprocess.run([sys.executable, "-c", script], timeout=60)
    assert killed.returncode == -signal.SIGKILL
    fake.plan({})
    fake.calls()
    resumed = fake_scenes(rendered, schemes=schemes, resume=True)
    assert fake.calls() == ["identify model", "measure torch/int4_g128"]
    assert comparable(resumed) == comparable(whole)
    assert [r.label for r in resumed.recommendations] == [r.label for r in whole.recommendations]
    # The reference's outputs of a further scene are needed: without them it is measured again.
    (fake.folder / "outputs" / "torch-fp32.001.npz").unlink()
    fake.calls()
    fake_scenes(rendered, schemes=schemes, resume=True)
    assert fake.calls() == ["identify model", "measure torch/fp32"]


def test_other_scenes_or_another_truth_are_another_question(fake_scenes: Any, scenes: Path) -> None:
    fake_scenes(scenes)
    with pytest.raises(CompareError, match="scenes: 2 entries -> 1"):
        fake_scenes(scenes / "scene_1000001", resume=True)
    images = scenes / "scene_1000001" / "dslr_calibration_undistorted" / "images.txt"
    lines = images.read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    words = lines[at].split()
    words[7] = str(float(words[7]) + 0.25)  # the z of one camera's translation
    images.write_text("\n".join([*lines[:at], " ".join(words), *lines[at + 1 :]]) + "\n")
    with pytest.raises(CompareError, match=r"scenes\[0\]\.truth\.sha256"):
        fake_scenes(scenes, resume=True)


# --- the mean of the geometry


def test_mean_geometry() -> None:
    angles = Angles(3, 1.0, 1.0, 2.0)
    pose = PoseErrors(3, angles, angles, 0, 1)
    other = replace(pose, rotation=Angles(3, 3.0, 2.0, 9.0), direction=None, pairs_lost=0)
    found = mean_geometry([GeometryMetrics(pose=pose), GeometryMetrics(pose=other)])
    assert found.pose is not None
    assert found.pose.rotation == Angles(6, 2.0, 1.5, 9.0)
    assert found.pose.direction == angles  # the other scene has no baseline
    assert (found.pose.pairs, found.pose.pairs_lost) == (6, 1)
    assert mean_geometry([GeometryMetrics(pose=pose), GeometryMetrics()]).pose is None


# --- with the real worker


def test_the_tiny_model_on_two_scenes(
    rendered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the worker writes for the second scene is what the model computes of it alone."""
    import torch

    from vggt_deploy.model.weights import load_model

    monkeypatch.setattr(pipeline, "draw", lambda *_: None)  # seconds each time
    report = compare(
        "random:vggt-tiny",
        scenes=[rendered],
        output_dir=tmp_path / "out",
        schemes="int8_pc_sym",
        runtimes="onnxruntime",
        width=56,
        repeats=1,
        warmup=0,
        threads=1,
        console=Console(quiet=True),
    )
    reference, row = report.rows
    assert (reference.failure, row.failure) == (None, None)
    with torch.inference_mode():
        model = load_model("random:vggt-tiny")
        for number in (0, 1):
            images = np.load(Folder(report.folder).images(number))
            expected = model(torch.from_numpy(images)[None])
            with np.load(Folder(report.folder).arrays(REFERENCE, number)) as found:
                for name in ("pose_enc", "depth", "world_points"):
                    np.testing.assert_allclose(
                        found[name], expected[name].numpy(), rtol=1e-4, atol=1e-5
                    )
    assert row.truth is not None
    assert row.truth_loss is not None
    assert row.truth_loss.point_error is not None
    assert row.truth.scenes == row.truth_loss.point_error.n == 2
    assert row.truth_loss.point_error.mean != 0.0  # it is quantized, and that shows
    assert abs(row.truth_loss.point_error.mean) < 0.1
    assert json.loads((report.folder / "comparison_report.json").read_text())["schema"] == SCHEMA
