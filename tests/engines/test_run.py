"""`run`: the files it writes, read back by other readers, and what it says about them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from vggt_deploy.data.images import ImageBatch, load_images
from vggt_deploy.engines.colour import INFERNO, NO_VALUE, inferno, linear_from_srgb
from vggt_deploy.engines.outputs import to_original, write_depth
from vggt_deploy.engines.run import RunResult, run
from vggt_deploy.errors import ArtifactError, ImageError, RuntimeUnavailableError, UsageError

MakeArtifact = Callable[..., Path]
WritePictures = Callable[..., tuple[Path, ...]]
HEIGHT, WIDTH = 42, 56
FILES = ("cameras.json", "points.glb", "points.ply", "predictions.npz", "run.json")


@pytest.fixture
def views(tmp_path: Path, write_pictures: WritePictures) -> Path:
    write_pictures(tmp_path / "views", 3, size=(128, 96))
    return tmp_path / "views"


@pytest.fixture
def result(make_artifact: MakeArtifact, views: Path, tmp_path: Path) -> RunResult:
    return run(make_artifact(), views, tmp_path / "out", conf_percentile=20)


def record(folder: Path, name: str = "run.json") -> dict[str, object]:
    value = json.loads((folder / name).read_text(encoding="utf-8"))
    assert isinstance(value, dict)
    return value


def test_files_and_result(result: RunResult, tmp_path: Path) -> None:
    assert result.folder == tmp_path / "out"
    depth = [f"depth/{i:03d}_view_{i:03d}{end}" for i in range(3) for end in (".png", "_16bit.png")]
    pictures = [f"pictures/{i:03d}_view_{i:03d}.png" for i in range(3)]
    assert set(result.files) == {*FILES, *depth, *pictures}
    assert all((result.folder / name).stat().st_size > 0 for name in result.files)
    assert (result.images, result.skipped, result.notes) == (3, (), ())
    assert "3 pictures" in result.found
    assert result.forward_ms > 0
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".out")] == []


def test_arrays(result: RunResult, views: Path) -> None:
    pixels = load_images(sorted(views.iterdir()), width=WIDTH, height=HEIGHT).pixels
    with np.load(result.folder / "predictions.npz") as arrays:
        assert arrays["depth"].shape == (1, 3, HEIGHT, WIDTH, 1)
        np.testing.assert_allclose(arrays["depth"][0, ..., 0], 2 - pixels.mean(axis=1), rtol=1e-6)
        assert arrays["extrinsic"].shape == (3, 3, 4)
        assert arrays["intrinsic"].shape == (3, 3, 3)
        assert list(arrays["image_names"]) == [f"view_{i:03d}.png" for i in range(3)]


def test_sixteen_bit_depth_is_depth(result: RunResult) -> None:
    told = record(result.folder)["depth"]
    assert isinstance(told, dict)
    with np.load(result.folder / "predictions.npz") as arrays:
        depth = arrays["depth"][0, ..., 0]
    for frame, (_, name) in zip(depth, told["files"], strict=True):
        with Image.open(result.folder / name) as opened:
            assert opened.mode == "I;16"
            values = np.asarray(opened).astype(np.float64)
        np.testing.assert_allclose(
            values * told["depth_per_step"], frame, atol=told["depth_per_step"]
        )
        wrong = values * told["depth_per_step"] * 1.01
        assert np.abs(wrong - frame).max() > told["depth_per_step"]  # the twin
    assert told["saturated"] == told["without_value"] == 0


def test_pictures_are_what_the_network_saw(result: RunResult, views: Path) -> None:
    pixels = load_images(sorted(views.iterdir()), width=WIDTH, height=HEIGHT).pixels
    names = record(result.folder)["pictures"]
    assert isinstance(names, list)
    for seen, name in zip(pixels, names, strict=True):
        with Image.open(result.folder / name) as opened:
            kept = np.asarray(opened).transpose(2, 0, 1) / 255
        assert np.abs(kept - seen).max() <= 0.5 / 255 + 1e-6
        assert np.abs(kept[::-1] - seen).max() > 0.5 / 255 + 1e-6  # the twin: BGR


def test_depth_picture_is_brighter_where_it_is_near(result: RunResult) -> None:
    with np.load(result.folder / "predictions.npz") as arrays:
        depth = arrays["depth"][0, 0, ..., 0]
    with Image.open(result.folder / "depth/000_view_000.png") as opened:
        assert opened.mode == "RGB"
        brightness = np.asarray(opened.convert("L")).astype(float)
    assert np.corrcoef(depth.ravel(), brightness.ravel())[0, 1] < -0.9


def test_cameras(result: RunResult) -> None:
    told = record(result.folder, "cameras.json")
    conventions = told["conventions"]
    assert isinstance(conventions, dict)
    assert "camera from world" in conventions["extrinsic"]
    assert "OpenCV" in conventions["axes"]
    assert "not metres" in conventions["translation"]
    cameras = told["cameras"]
    assert isinstance(cameras, list)
    assert [c["image"] for c in cameras] == [f"view_{i:03d}.png" for i in range(3)]
    first = cameras[0]
    focal_y, focal_x = HEIGHT / 2 / np.tan(0.45), WIDTH / 2 / np.tan(0.55)
    np.testing.assert_allclose(
        first["intrinsic"], [[focal_x, 0, 28], [0, focal_y, 21], [0, 0, 1]], rtol=1e-5
    )
    # 128 x 96 -> 56 x 42: everything grows by 128 / 56.
    np.testing.assert_allclose(first["intrinsic_original"][0][0], focal_x * 128 / 56, rtol=1e-5)
    np.testing.assert_allclose(np.array(first["intrinsic_original"])[:2, 2], [64, 48], rtol=1e-5)
    assert np.array(first["extrinsic"]).shape == (3, 4)


def test_original_intrinsic_projects_to_the_same_place(
    tmp_path: Path, write_pictures: WritePictures
) -> None:
    """Through K of the network and the placement, or through K of the picture: one pixel."""
    write_pictures(tmp_path, 1, size=(60, 90))
    placement = load_images([tmp_path / "view_000.png"], width=56, height=42).placements[0]
    assert placement.top < 0  # cropped
    intrinsic = np.array([[50, 0, 28], [0, 55, 21], [0, 0, 1]], dtype=np.float64)
    point = np.array([0.3, -0.2, 2.0])
    u, v, w = to_original(intrinsic, placement) @ point
    network = intrinsic @ point
    assert placement.scale_x * u / w + placement.left == pytest.approx(network[0] / network[2])
    assert placement.scale_y * v / w + placement.top == pytest.approx(network[1] / network[2])


def test_point_cloud_reopens_with_colours(result: RunResult, views: Path) -> None:
    ply = trimesh.load(result.folder / "points.ply")
    points = record(result.folder)["points"]
    assert isinstance(points, dict)
    assert points["source"] == "depth"
    assert len(ply.vertices) == points["written"]
    assert 0.8 * 3 * HEIGHT * WIDTH <= points["written"] <= 3 * HEIGHT * WIDTH
    pixels = load_images(sorted(views.iterdir()), width=WIDTH, height=HEIGHT).pixels
    shown = set(map(tuple, np.rint(pixels.transpose(0, 2, 3, 1).reshape(-1, 3) * 255).tolist()))
    written = ply.colors[:, :3].astype(float)
    assert set(map(tuple, written.tolist())) <= shown
    assert not set(map(tuple, written[:, ::-1].tolist())) <= shown  # the twin: BGR
    # depth = 2 - mean colour, so a point's z (no turn, no shift in z) tells its own brightness.
    brightness = ply.colors[:, :3].mean(axis=1) / 255
    np.testing.assert_allclose(ply.vertices[:, 2], 2 - brightness, atol=0.01)
    assert np.abs(ply.vertices[:, 2] - (2 - brightness[::-1])).max() > 0.1  # the twin


def test_glb_is_the_same_cloud_y_up_in_linear_colours(result: RunResult) -> None:
    ply = trimesh.load(result.folder / "points.ply")
    scene = trimesh.load(result.folder / "points.glb")
    (cloud,) = scene.geometry.values()
    np.testing.assert_allclose(cloud.vertices, ply.vertices * [1, -1, -1], atol=1e-6)
    expected = linear_from_srgb(ply.colors[:, :3] / 255) * 255
    np.testing.assert_allclose(cloud.colors[:, :3], expected, atol=1)
    assert np.ptp(cloud.colors[:, :3], axis=0).min() > 50


def test_record(result: RunResult, views: Path) -> None:
    told = record(result.folder)
    assert told["schema"] == 1
    assert told["notes"] == []
    artifact, session, images = told["artifact"], told["session"], told["images"]
    assert isinstance(artifact, dict)
    assert isinstance(session, dict)
    assert isinstance(images, list)
    assert artifact["variant"] == "fp32"
    assert set(artifact["files"]) == {"model.onnx", "weights.bin"}
    assert (session["runtime"], session["provider"]) == ("onnxruntime", "cpu")
    assert [i["image"] for i in images] == sorted(p.name for p in views.iterdir())
    assert images[0]["mode"] == "crop"


@pytest.mark.parametrize(
    "outputs, missing, noted",
    [
        (("pose_enc",), ("points.ply", "depth"), "it needs the outputs depth and pose, or points"),
        (("depth", "depth_conf"), ("cameras.json", "points.ply"), "it needs the outputs"),
        (("world_points", "world_points_conf"), ("cameras.json", "depth"), None),
    ],
)
def test_artifacts_with_fewer_outputs(
    make_artifact: MakeArtifact,
    views: Path,
    tmp_path: Path,
    outputs: tuple[str, ...],
    missing: tuple[str, ...],
    noted: str | None,
) -> None:
    result = run(make_artifact(outputs=outputs), views, tmp_path / "out")
    assert not any((result.folder / name).exists() for name in missing)
    assert any(noted in n for n in result.notes) if noted else result.notes == ()
    with np.load(result.folder / "predictions.npz") as arrays:
        assert set(outputs) <= set(arrays)


@pytest.mark.parametrize("bias", [(0.0, 0.0), (0.9, 3.5)])
def test_no_field_of_view_is_said_and_gives_no_points(
    make_artifact: MakeArtifact, views: Path, tmp_path: Path, bias: tuple[float, float]
) -> None:
    """Bad weights give a field of view of 0, or of 200 degrees, which is behind the camera."""
    folder = make_artifact(pose_bias=(0.0,) * 6 + (1.0, *bias))
    result = run(folder, views, tmp_path / "out")
    assert sum("no focal length" in n for n in result.notes) == 3
    assert any("no pixel has a finite point" in n for n in result.notes)
    assert result.points == 0
    cameras = record(result.folder, "cameras.json")["cameras"]
    assert isinstance(cameras, list)
    if bias == (0.0, 0.0):  # infinite, which JSON has no number for; negative ones it has
        assert [c["intrinsic"] for c in cameras] == [None] * 3


def test_cropping_much_of_a_picture_is_said(
    make_artifact: MakeArtifact, tmp_path: Path, write_pictures: WritePictures
) -> None:
    write_pictures(tmp_path / "tall", 1, size=(60, 120))
    artifact = make_artifact()
    cropped = run(artifact, tmp_path / "tall", tmp_path / "crop")
    assert len(cropped.notes) == 1
    assert "only 38% of the picture fits 56 x 42" in cropped.notes[0]
    padded = run(artifact, tmp_path / "tall", tmp_path / "pad", mode="pad", conf_percentile=0)
    assert padded.notes == ()
    # White padding gives neither points nor depth.
    assert padded.points == 42 * 28
    depth = record(padded.folder)["depth"]
    assert isinstance(depth, dict)
    assert depth["without_value"] == 42 * 28


def test_bad_images(make_artifact: MakeArtifact, views: Path, tmp_path: Path) -> None:
    bad = views / "view_001.png"
    bad.write_bytes(bad.read_bytes()[:500])
    artifact = make_artifact()
    with pytest.raises(ImageError, match=r"view_001\.png"):
        run(artifact, views, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    result = run(artifact, views, tmp_path / "out", skip_bad_images=True)
    assert result.images == 2
    assert [s.path for s in result.skipped] == [bad]
    assert any("view_001.png" in n for n in result.notes)
    skipped = record(result.folder)["skipped"]
    assert isinstance(skipped, list)
    assert skipped[0]["image"] == "view_001.png"


def test_too_many_images_are_refused_before_anything_is_loaded(
    make_artifact: MakeArtifact, views: Path, tmp_path: Path
) -> None:
    artifact = make_artifact(frames=(1, 1, 2))
    with pytest.raises(UsageError, match="3 images, but this artifact takes 1 to 2") as caught:
        run(artifact, views, tmp_path / "out")
    assert "--max-images 2" in caught.value.fix
    assert run(artifact, views, tmp_path / "out", max_images=2).images == 2


def test_an_existing_output_is_not_lost(
    make_artifact: MakeArtifact, views: Path, tmp_path: Path
) -> None:
    artifact = make_artifact()
    run(artifact, views, tmp_path / "out")
    before = (tmp_path / "out" / "run.json").read_bytes()
    with pytest.raises(ArtifactError, match="not empty"):
        run(artifact, views, tmp_path / "out", max_images=1)
    assert (tmp_path / "out" / "run.json").read_bytes() == before
    # A run that fails half way with --overwrite keeps the earlier result, too.
    bad = views / "view_002.png"
    whole = bad.read_bytes()
    bad.write_bytes(whole[:300])
    with pytest.raises(ImageError):
        run(artifact, views, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "run.json").read_bytes() == before
    bad.write_bytes(whole)
    run(artifact, views, tmp_path / "out", overwrite=True, max_images=1)
    assert record(tmp_path / "out")["images_found"] != json.loads(before)["images_found"]


def test_the_users_pictures_are_never_overwritten(make_artifact: MakeArtifact, views: Path) -> None:
    with pytest.raises(ArtifactError, match="did not make it"):
        run(make_artifact(), views, views, overwrite=True)
    assert len(list(views.glob("*.png"))) == 3


def test_interrupted_run_leaves_nothing(
    make_artifact: MakeArtifact, views: Path, tmp_path: Path
) -> None:
    def stop(stage: str) -> None:
        if stage.startswith("writing"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(make_artifact(), views, tmp_path / "out", progress=stop)
    assert not [p for p in tmp_path.iterdir() if "out" in p.name]


def test_edited_artifact_is_refused(
    make_artifact: MakeArtifact, views: Path, tmp_path: Path
) -> None:
    artifact = make_artifact()
    weights = bytearray((artifact / "weights.bin").read_bytes())
    weights[66] ^= 8
    (artifact / "weights.bin").write_bytes(weights)
    with pytest.raises(ArtifactError, match="changed"):
        run(artifact, views, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_trimesh(
    make_artifact: MakeArtifact, views: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "trimesh", None)
    with pytest.raises(RuntimeUnavailableError, match="trimesh"):
        run(make_artifact(), views, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_wrong_limits_are_refused_first(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="conf_percentile"):
        run(tmp_path / "absent", tmp_path, tmp_path / "out", conf_percentile=100)
    with pytest.raises(ArtifactError):
        run(tmp_path / "absent", tmp_path, tmp_path / "out")


@pytest.fixture
def batch(tmp_path: Path, write_pictures: WritePictures) -> ImageBatch:
    """One picture of the network's size."""
    paths = write_pictures(tmp_path / "images", 1, size=(WIDTH, HEIGHT))
    return load_images(paths, width=WIDTH, height=HEIGHT)


def test_wild_depths_do_not_cost_the_others_their_steps(tmp_path: Path, batch: ImageBatch) -> None:
    depth = np.linspace(1, 2, HEIGHT * WIDTH, dtype=np.float32).reshape(1, HEIGHT, WIDTH)
    depth[0, 0, :2] = 1e7
    depth[0, 1, 0], depth[0, 1, 1], depth[0, 1, 2] = np.nan, -1, np.inf
    depth[0, 2, 0] = 1e-9  # smaller than a step, yet a value
    told = write_depth(tmp_path, depth, batch)
    assert told is not None
    with Image.open(tmp_path / told.files[0][1]) as opened:
        values = np.asarray(opened)
    assert list(values[0, :3]) == [65535, 65535, round(depth[0, 0, 2] / told.depth_per_step)]
    assert list(values[1, :3]) == [0, 0, 0]
    assert values[2, 0] == 1
    assert told.saturated == 2
    assert told.without_value == 3
    assert len(np.unique(values)) > 2000
    with Image.open(tmp_path / told.files[0][0]) as opened:
        assert tuple(np.asarray(opened)[1, 0]) == NO_VALUE


def test_depth_without_a_value_writes_no_picture(tmp_path: Path, batch: ImageBatch) -> None:
    assert write_depth(tmp_path, np.full((1, HEIGHT, WIDTH), np.nan, np.float32), batch) is None
    assert not (tmp_path / "depth").exists()


def test_constant_depth_is_one_colour(tmp_path: Path, batch: ImageBatch) -> None:
    told = write_depth(tmp_path, np.full((1, HEIGHT, WIDTH), 3, np.float32), batch)
    assert told is not None
    assert told.near == told.far == pytest.approx(3)
    with Image.open(tmp_path / told.files[0][0]) as opened:
        assert len(np.unique(np.asarray(opened).reshape(-1, 3), axis=0)) == 1


def test_colour_map() -> None:
    values = np.array([0, 1, -5, 9, 0.5, np.nan, np.inf])
    colours = inferno(values)
    assert tuple(colours[0]) == tuple(colours[2]) == tuple(INFERNO[0])
    assert tuple(colours[1]) == tuple(colours[3]) == tuple(INFERNO[-1])
    assert tuple(colours[4]) == tuple(INFERNO[8])
    assert tuple(colours[5]) == tuple(colours[6]) == NO_VALUE
    weights = np.array([0.2126, 0.7152, 0.0722])
    luminance = linear_from_srgb(inferno(np.linspace(0, 1, 200)) / 255) @ weights
    assert (np.diff(luminance) > -1e-3).all()
    assert luminance[-1] > 0.8


def test_linear_light() -> None:
    np.testing.assert_allclose(
        linear_from_srgb(np.array([0, 0.04045, 0.5, 1])), [0, 0.0031308, 0.2140411, 1], rtol=1e-4
    )
