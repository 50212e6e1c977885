"""`visualize`: what it writes of runs and comparisons, read back, and what it refuses."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import trimesh
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from vggt_deploy.cli import app
from vggt_deploy.engines.colour import linear_from_srgb
from vggt_deploy.errors import ArtifactError, UsageError
from vggt_deploy.visualize import pipeline, visualize
from vggt_deploy.visualize.cameras import FRUSTUM_EDGES
from vggt_deploy.visualize.sources import without_padding

if TYPE_CHECKING:
    from conftest import Truth
    from fake_comparison import Fake

Outputs = dict[str, NDArray[np.float32]]
MakeRun = Callable[..., Path]


@pytest.fixture
def without_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that look at something else: drawing maps takes most of the time."""
    monkeypatch.setattr(pipeline, "write_map", lambda path, *_: path.write_bytes(b"map"))
    monkeypatch.setattr(pipeline, "write_view", lambda path, *_, **__: path.write_bytes(b"view"))


def record(folder: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((folder / "visualized.json").read_text())
    return data


def test_everything_of_a_run(make_run: MakeRun, truth: Truth, tmp_path: Path) -> None:
    shown = visualize(make_run(), tmp_path / "out", min_confidence=0)
    maps = [
        f"{kind}/{i:03d}_view_{i:03d}.png" for kind in ("confidence", "depth") for i in range(3)
    ]
    others = ["cameras_side.png", "cameras_top.png", "points.ply", "scene.glb", "view.html"]
    assert shown.files == tuple(sorted([*maps, *others, "visualized.json"]))
    assert all((shown.folder / name).stat().st_size > 500 for name in shown.files)
    assert shown.page == tmp_path / "out" / "view.html"
    assert (shown.subject, shown.images, shown.cameras) == (
        "test int8_pc_sym, onnxruntime cpu",
        3,
        3,
    )
    assert shown.points is not None
    assert shown.points.written == truth.depth.size
    assert shown.points.source == "depth"
    assert shown.notes == ()
    for name in (*maps, *others[:2]):
        with Image.open(shown.folder / name) as picture:
            assert picture.width > 500
            assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 50
    assert list(tmp_path.glob(".out*")) == []


@pytest.mark.usefixtures("without_maps")
def test_the_ply_has_the_rooms_points_and_colours(
    make_run: MakeRun, truth: Truth, tmp_path: Path
) -> None:
    visualize(make_run("pose", "depth"), tmp_path / "out", min_confidence=0)
    cloud = trimesh.load(tmp_path / "out" / "points.ply")
    np.testing.assert_allclose(cloud.vertices, truth.points.reshape(-1, 3), atol=1e-4)
    np.testing.assert_array_equal(cloud.colors[:, :3], truth.images.reshape(-1, 3))
    assert not np.array_equal(cloud.colors[:, 2::-1], truth.images.reshape(-1, 3))  # twin: BGR


@pytest.mark.usefixtures("without_maps")
def test_the_glb_has_the_same_points_y_up(make_run: MakeRun, tmp_path: Path) -> None:
    visualize(make_run(), tmp_path / "out", max_points=500)
    ply = trimesh.load(tmp_path / "out" / "points.ply")
    scene = trimesh.load(tmp_path / "out" / "scene.glb")
    assert set(scene.geometry) == {"points", "frusta", "path"}
    points = scene.geometry["points"]
    assert len(points.vertices) == 500
    np.testing.assert_allclose(points.vertices, ply.vertices * [1, -1, -1], atol=1e-5)
    expected = linear_from_srgb(ply.colors[:, :3] / 255) * 255
    np.testing.assert_allclose(points.colors[:, :3], expected, atol=1)
    assert np.abs(points.colors[:, :3] - ply.colors[:, :3].astype(float)).max() > 20  # twin: sRGB


@pytest.mark.usefixtures("without_maps")
def test_the_glb_draws_each_camera_where_it_stands(
    make_run: MakeRun, truth: Truth, tmp_path: Path
) -> None:
    visualize(make_run(), tmp_path / "out")
    scene = trimesh.load(tmp_path / "out" / "scene.glb")
    rotation, shift = truth.extrinsic[..., :3], truth.extrinsic[..., 3]
    centres = np.stack([-r.T @ t for r, t in zip(rotation, shift, strict=True)])
    wrong = np.stack([-r @ t for r, t in zip(rotation, shift, strict=True)])
    flip = np.array([1, -1, -1])
    path = scene.geometry["path"].vertices * flip
    frusta = scene.geometry["frusta"].vertices * flip
    # Each line is two vertices: as the path goes from one camera to the next, and as edges.
    assert len(frusta) == 2 * len(FRUSTUM_EDGES) * len(centres)
    assert farthest(centres, path) < 1e-4
    assert farthest(path, centres) < 1e-4
    assert farthest(centres, frusta) < 1e-4
    assert farthest(wrong, path) > 0.01  # the twin: R not transposed


@pytest.mark.usefixtures("without_maps")
def test_the_glb_has_a_colour_for_each_vertex(make_run: MakeRun, tmp_path: Path) -> None:
    """Read as the format says, without the library that wrote it: header, JSON chunk, binary."""
    visualize(make_run(), tmp_path / "out", max_points=300)
    content = (tmp_path / "out" / "scene.glb").read_bytes()
    magic, version, length, chunk = struct.unpack_from("<4sIII", content)
    assert (magic, version, length) == (b"glTF", 2, len(content))
    document = json.loads(content[20 : 20 + chunk])
    binary = content[20 + chunk + 8 :]
    modes, colours = {}, {}
    for mesh in document["meshes"]:
        (primitive,) = mesh["primitives"]
        modes[mesh["name"]] = primitive["mode"]
        position, colour = (
            document["accessors"][primitive["attributes"][name]] for name in ("POSITION", "COLOR_0")
        )
        assert position["count"] == colour["count"]
        start = document["bufferViews"][colour["bufferView"]]["byteOffset"]
        values = np.frombuffer(binary, np.uint8, 4 * colour["count"], start)
        colours[mesh["name"]] = values.reshape(-1, 4)
    assert modes == {"points": 0, "frusta": 1, "path": 1}  # 0: points, 1: lines
    assert len(np.unique(colours["frusta"], axis=0)) == 3  # one for each camera
    assert all((values[:, 3] == 255).all() for values in colours.values())


def farthest(points: NDArray[Any], others: NDArray[Any]) -> float:
    """How far the loneliest of `points` is from the nearest of `others`."""
    return float(np.linalg.norm(points[:, None] - others[None], axis=-1).min(axis=1).max())


@pytest.mark.usefixtures("without_maps")
def test_points_are_counted_once_each(comparison: Path, truth: Truth, tmp_path: Path) -> None:
    outputs = truth.outputs()
    outputs["depth"][0, 0, :10, :20, 0] = np.nan
    outputs["depth"][0, 1, 0, 0, 0] = np.inf
    np.savez(comparison / "outputs" / "torch-fp32.npz", **outputs)
    shown = visualize(comparison, tmp_path / "out", min_confidence=50, max_points=4000)
    counts = shown.points
    assert counts is not None
    assert counts.not_finite == 201
    assert counts.written == 4000
    parts = counts.padding, counts.not_finite, counts.unsure, counts.thinned, counts.written
    assert sum(parts) == truth.depth.size
    assert counts.unsure == pytest.approx((truth.depth.size - 201) / 2, rel=0.02)
    assert counts.threshold == pytest.approx(3.0, abs=0.1)
    cloud = trimesh.load(tmp_path / "out" / "points.ply")
    assert np.isfinite(cloud.vertices).all()
    told = record(tmp_path / "out")
    assert told["points"]["not_finite"] == 201
    assert told["ranges"]["depth"]["not_finite"] == 201
    # The sure half is the right one (see Truth.outputs).
    seen = truth.points[:, :, WIDTH_HALF:].reshape(-1, 3)
    assert farthest(cloud.vertices[::50], seen) < 1e-3
    assert farthest(cloud.vertices[::50], truth.points[:, :, :10].reshape(-1, 3)) > 0.1  # twin


WIDTH_HALF = 40


@pytest.mark.usefixtures("without_maps")
def test_ranges_are_those_of_what_is_on_the_pictures(
    make_run: MakeRun, truth: Truth, tmp_path: Path
) -> None:
    visualize(make_run(), tmp_path / "out")
    told = record(tmp_path / "out")["ranges"]
    low, high = np.percentile(truth.depth, [2, 98])
    assert told["depth"]["low"] == pytest.approx(low, rel=1e-5)
    assert told["depth"]["high"] == pytest.approx(high, rel=1e-5)
    assert told["confidence"]["high"] == pytest.approx(
        np.percentile(np.linspace(1, 5, 84), 98), 0.01
    )


@pytest.mark.parametrize("size", [(40, 56), (84, 30)], ids=["sides", "top and bottom"])
@pytest.mark.usefixtures("without_maps")
def test_white_padding_gives_no_points(
    make_run: MakeRun, truth: Truth, tmp_path: Path, size: tuple[int, int]
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for name, image in zip(truth.names, truth.images, strict=True):
        Image.fromarray(image).resize(size).save(other / name)
    folder = make_run(images=other, mode="pad")
    inside = visualize(folder, tmp_path / "out", min_confidence=0)
    from_photographs = visualize(folder, tmp_path / "b", min_confidence=0, images_dir=other)
    assert inside.points is not None
    assert inside.points.padding > 0.3 * truth.depth.size
    assert inside.points.padding + inside.points.written == truth.depth.size
    assert from_photographs.points == inside.points


@pytest.mark.usefixtures("without_maps")
def test_padding_of_a_comparison_is_what_is_white_at_the_edges() -> None:
    pixels = np.full((3, 6, 8, 3), 255, dtype=np.uint8)
    pixels[0, 1:6, 2:7] = 9
    pixels[0, 3, 4] = 255  # white inside the picture is picture
    pixels[2, 0, 0] = pixels[2, 5, 7] = 9
    shown = without_padding(pixels)
    expected = np.zeros((6, 8), dtype=bool)
    expected[1:6, 2:7] = True
    np.testing.assert_array_equal(shown[0], expected)
    assert shown[1].all()  # a white picture is a picture
    assert shown[2].all()


@pytest.mark.usefixtures("without_maps")
def test_photographs_stand_in_for_pictures_that_a_run_lacks(
    make_run: MakeRun, photographs: Path, tmp_path: Path
) -> None:
    folder = make_run()
    kept = visualize(folder, tmp_path / "kept")
    told = json.loads((folder / "run.json").read_text())
    del told["pictures"]
    (folder / "run.json").write_text(json.dumps(told))
    with pytest.raises(ArtifactError, match=r"holds no pictures.*\n.*--images DIR"):
        visualize(folder, tmp_path / "out")
    shown = visualize(folder, tmp_path / "out", images_dir=photographs)
    assert shown.points == kept.points
    same = (tmp_path / "out" / "points.ply").read_bytes()
    assert same == (tmp_path / "kept" / "points.ply").read_bytes()


@pytest.mark.usefixtures("without_maps")
def test_other_photographs_are_refused(
    make_run: MakeRun, photographs: Path, tmp_path: Path
) -> None:
    folder = make_run()
    Image.new("RGB", (84, 56)).save(photographs / "view_001.png")
    with pytest.raises(UsageError, match=r"view_001\.png is not the picture"):
        visualize(folder, tmp_path / "out", images_dir=photographs)
    (photographs / "view_002.png").unlink()
    with pytest.raises(UsageError, match=r"has no view_002\.png"):
        visualize(folder, tmp_path / "out", images_dir=photographs)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("without_maps")
def test_a_comparison_shows_the_variant_asked_for(
    comparison: Path, truth: Truth, tmp_path: Path
) -> None:
    reference = visualize(comparison, tmp_path / "a", min_confidence=0)
    variant = visualize(
        comparison, tmp_path / "b", variant="onnxruntime/int4_g32", min_confidence=0
    )
    assert reference.subject == "torch/fp32 of vggt-nano"
    assert variant.subject == "onnxruntime/int4_g32 of vggt-nano"
    near, far = (trimesh.load(tmp_path / n / "points.ply").vertices for n in ("a", "b"))
    first = slice(0, truth.depth[0].size)  # the first camera is the origin
    np.testing.assert_allclose(near[first] * 1.1, far[first], rtol=1e-4, atol=1e-5)
    assert np.abs(near[first] - far[first]).max() > 0.1  # the twin: one and the same
    assert record(tmp_path / "b")["source"]["kind"] == "comparison"


@pytest.mark.usefixtures("without_maps")
def test_a_comparison_as_compare_writes_it(fake: Fake, tmp_path: Path) -> None:
    """With fake workers, whose poses are no cameras' but whose files are the real ones."""
    fake.run()
    shown = visualize(fake.folder, tmp_path / "view", variant="onnxruntime/int8_pc_sym")
    assert shown.images == 3
    assert "view.html" in shown.files
    assert record(tmp_path / "view")["pictures"] == ["img0.png", "img1.png", "img2.png"]


@pytest.mark.usefixtures("without_maps")
@pytest.mark.parametrize(
    "groups, missing, noted",
    [
        (("pose",), {"depth", "confidence", "points.ply"}, "no depth maps and no points"),
        (("depth",), {"points.ply", "scene.glb", "cameras_top.png"}, "no cameras"),
        (("points",), {"depth", "cameras_top.png"}, "no cameras"),
        (("pose", "points"), {"depth"}, None),
    ],
)
def test_what_was_not_asked_of_the_network_is_left_out(
    make_run: MakeRun, tmp_path: Path, groups: tuple[str, ...], missing: set[str], noted: str | None
) -> None:
    shown = visualize(make_run(*groups), tmp_path / "out")
    there = {name.split("/")[0] for name in shown.files}
    assert not there & missing
    assert {"view.html", "visualized.json"} <= there
    assert (noted is None) or any(noted in note for note in shown.notes)
    if groups == ("pose", "points"):
        assert shown.points is not None
        assert shown.points.source == "point head"
        assert {"confidence", "scene.glb", "cameras_side.png"} <= there


@pytest.mark.parametrize("angle", [(0, 0), (0, 1), (1, 3.3)], ids=["0", "0 down", "189 degrees"])
@pytest.mark.usefixtures("without_maps")
def test_a_camera_without_a_place_or_focal_length_is_said(
    make_run: MakeRun, tmp_path: Path, angle: tuple[float, float]
) -> None:
    def change(outputs: Outputs) -> None:
        outputs["pose_enc"][0, 1, 0] = np.nan
        outputs["pose_enc"][0, 2, 7:9] = angle

    shown = visualize(make_run(change=change), tmp_path / "out", min_confidence=0)
    assert shown.cameras == 2
    notes = "\n".join(shown.notes)
    assert "view_001.png: its pose is not finite" in notes
    assert "view_002.png: its field of view" in notes
    assert shown.points is not None
    assert shown.points.not_finite == 2 * 56 * 84
    scene = trimesh.load(tmp_path / "out" / "scene.glb")
    assert len(scene.geometry["frusta"].vertices) == 2 * len(FRUSTUM_EDGES)
    assert "NaN" not in (tmp_path / "out" / "visualized.json").read_text()


@pytest.mark.usefixtures("without_maps")
def test_nothing_finite_is_an_error(make_run: MakeRun, tmp_path: Path) -> None:
    def change(outputs: Outputs) -> None:
        for values in outputs.values():
            values[:] = np.nan

    with pytest.raises(ArtifactError, match="nothing to show"):
        visualize(make_run(change=change), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("without_maps")
def test_one_picture_is_enough(comparison: Path, truth: Truth, tmp_path: Path) -> None:
    question = json.loads((comparison / "question.json").read_text())
    question["scenes"][0]["files"] = question["scenes"][0]["files"][:1]
    (comparison / "question.json").write_text(json.dumps(question))
    pixels = np.load(comparison / "work" / "images.npy")
    np.save(comparison / "work" / "images.npy", pixels[:1])
    outputs = {name: values[:, :1] for name, values in truth.outputs().items()}
    np.savez(comparison / "outputs" / "torch-fp32.npz", **outputs)
    shown = visualize(comparison, tmp_path / "out")
    assert (shown.images, shown.cameras) == (1, 1)
    assert set(trimesh.load(tmp_path / "out" / "scene.glb").geometry) == {"points", "frusta"}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def other_shape(path: Path) -> None:
    np.savez(path, depth=np.zeros((1, 2, 4, 6, 1)), depth_conf=np.zeros((1, 2, 4, 6)))


def without_confidence(path: Path) -> None:
    np.savez(path, depth=np.zeros((1, 3, 56, 84, 1)))


def pickled(path: Path) -> None:
    np.savez(path, depth=np.array([{"a": 1}], dtype=object), allow_pickle=True)


@pytest.mark.usefixtures("without_maps")
@pytest.mark.parametrize(
    "file, damage, said",
    [
        ("predictions.npz", cut, "predictions.npz can't be used"),
        ("predictions.npz", Path.unlink, "predictions.npz can't be used"),
        ("predictions.npz", other_shape, r"depth is \(1, 2, 4, 6, 1\)"),
        ("predictions.npz", without_confidence, "depth and depth_conf belong together"),
        ("predictions.npz", pickled, "predictions.npz can't be used"),
        ("predictions.npz", lambda p: np.savez(p, other=np.zeros(3)), "holds none of pose_enc"),
        ("run.json", cut, "run.json can't be used"),
        ("run.json", lambda p: p.write_text("[]"), "no JSON object"),
        ("run.json", lambda p: p.write_text("{}"), "run.json can't be used"),
        ("pictures/001_view_001.png", cut, "its pictures"),
        ("pictures/001_view_001.png", Path.unlink, "its pictures"),
        ("pictures/001_view_001.png", lambda p: Image.new("RGB", (9, 9)).save(p), "its pictures"),
    ],
)
def test_a_damaged_run_is_named(
    make_run: MakeRun, tmp_path: Path, file: str, damage: Callable[[Path], Any], said: str
) -> None:
    folder = make_run()
    damage(folder / file)
    with pytest.raises(ArtifactError, match=said):
        visualize(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("without_maps")
@pytest.mark.parametrize(
    "file, damage, said",
    [
        ("outputs/torch-fp32.npz", cut, "torch-fp32.npz can't be used"),
        ("outputs/torch-fp32.npz", Path.unlink, "torch/fp32 has no outputs"),
        ("work/images.npy", cut, "images.npy can't be used"),
        ("work/images.npy", lambda p: np.save(p, np.zeros((2, 3, 4, 6))), "its shape is"),
        ("question.json", lambda p: p.write_text("{}"), "question.json can't be used"),
    ],
)
def test_a_damaged_comparison_is_named(
    comparison: Path, tmp_path: Path, file: str, damage: Callable[[Path], Any], said: str
) -> None:
    damage(comparison / file)
    with pytest.raises(ArtifactError, match=said):
        visualize(comparison, tmp_path / "out")


@pytest.mark.usefixtures("without_maps")
def test_wrong_requests(
    make_run: MakeRun, comparison: Path, photographs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(ArtifactError, match=r"neither run\.json nor question\.json"):
        visualize(photographs, out)
    with pytest.raises(UsageError, match="which has no variants"):
        visualize(make_run(), out, variant="torch/fp32")
    with pytest.raises(UsageError, match=r"is 'onnxruntime/int4_g32' meant.*\n.*give one of"):
        visualize(comparison, out, variant="onnxruntime/int4_g23")
    with pytest.raises(ArtifactError, match="onnxruntime/mixed has no outputs"):
        visualize(comparison, out, variant="onnxruntime/mixed")
    with pytest.raises(UsageError, match="which keeps its pictures"):
        visualize(comparison, out, images_dir=photographs)
    with pytest.raises(UsageError, match="max_points"):
        visualize(comparison, out, max_points=0)
    with pytest.raises(UsageError, match="conf_percentile"):
        visualize(comparison, out, min_confidence=100)


@pytest.mark.usefixtures("without_maps")
def test_written_whole_or_not_at_all(
    comparison: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "write_page", interrupt)
        with pytest.raises(KeyboardInterrupt):
            visualize(comparison, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["comparison"]
    visualize(comparison, tmp_path / "out")
    with pytest.raises(ArtifactError, match="not empty"):
        visualize(comparison, tmp_path / "out")
    visualize(comparison, tmp_path / "out", overwrite=True)
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letter.txt").write_text("mine")
    with pytest.raises(ArtifactError, match=r"no visualized\.json"):
        visualize(comparison, tmp_path / "out", overwrite=True)


@pytest.mark.usefixtures("without_maps")
def test_command_line(comparison: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["visualize", str(comparison), "-o", str(out), "--variant", "onnxruntime/int4_g32"]
    limits = ["--max-points", "100", "--min-confidence", "10"]
    done = CliRunner().invoke(app, [*words, *limits])
    assert done.exit_code == 0, done.output
    assert "onnxruntime/int4_g32 of vggt-nano: 3 pictures, 3 cameras, 100 points" in done.output
    assert str(out / "view.html") in done.output
    told = record(out)
    assert (told["min_confidence"], told["max_points"]) == (10, 100)
    other = ["visualize", str(comparison), "-o", str(tmp_path / "b"), "--variant", "x"]
    wrong = CliRunner().invoke(app, other)
    assert wrong.exit_code == 2
    assert "give one of: torch/fp32" in wrong.output


def test_needs_no_torch_and_no_onnx(comparison: Path, tmp_path: Path) -> None:
    """On a machine that has neither; and nothing heavy is imported before there is work."""
    code = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'onnx_ir', 'onnxscript', 'onnxruntime'):\n"
        "    sys.modules[name] = None\n"
        "from vggt_deploy.visualize import visualize\n"
        "assert not {'matplotlib', 'trimesh', 'jinja2', 'scipy'} & set(sys.modules)\n"
        f"visualize({str(comparison)!r}, {str(tmp_path / 'out')!r})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "view.html").is_file()
