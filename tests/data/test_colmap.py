"""COLMAP's text files: read strictly, written without loss, in COLMAP's conventions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vggt_deploy.data import colmap
from vggt_deploy.data.colmap import ColmapCamera, ColmapImage, ColmapPoint, Observation
from vggt_deploy.errors import SceneError

HEADER = "# a comment\n#\n"
# Lines of ETH3D's own files, as quoted in public.
COURTYARD = (
    "0 PINHOLE 6198 4129 3411.42 3410.02 3116.72 2062.52\n"
    "1 PINHOLE 6205 4135 3409.58 3409.44 3115.16 2064.73\n"
)
DISTORTED = (
    "0 THIN_PRISM_FISHEYE 6048 4032 3411.42 3410.02 3041.29 2014.07 0.21047 0.21102 "
    "-5.36231e-06 0.00051541 -0.158023 0.406856 -8.46499e-05 0.000861313\n"
)
POSE = (
    "22 -0.292265 -0.174238 0.547904 -0.764214 1.80195 -0.821371 -7.08304 1 "
    "dslr_images/DSC_0307.JPG\n"
)


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8", newline="")
    return path


# --- what is read


def test_eth3ds_lines(tmp_path: Path) -> None:
    cameras = colmap.read_cameras(written(tmp_path / "c.txt", HEADER + COURTYARD))
    assert list(cameras) == [0, 1]
    assert cameras[1] == ColmapCamera(
        1, "PINHOLE", 6205, 4135, (3409.58, 3409.44, 3115.16, 2064.73)
    )
    matrix = [[3411.42, 0, 3116.72], [0, 3410.02, 2062.52], [0, 0, 1]]
    assert cameras[0].intrinsic().tolist() == matrix
    (image,) = colmap.read_images(written(tmp_path / "i.txt", HEADER + POSE + "1.5 2 7 3 4 -1\n"))
    assert (image.id, image.camera_id, image.name) == (22, 1, "dslr_images/DSC_0307.JPG")
    assert image.quaternion == (-0.292265, -0.174238, 0.547904, -0.764214)
    assert image.observations == (Observation(1.5, 2.0, 7), Observation(3.0, 4.0, -1))


def test_a_camera_with_distortion_is_read_and_has_no_matrix(tmp_path: Path) -> None:
    camera = colmap.read_cameras(written(tmp_path / "c.txt", DISTORTED))[0]
    assert len(camera.params) == 12
    assert not camera.is_pinhole
    linear = [[3411.42, 0, 3041.29], [0, 3410.02, 2014.07], [0, 0, 1]]
    assert camera.linear_part().tolist() == linear
    with pytest.raises(SceneError, match="THIN_PRISM_FISHEYE") as caught:
        camera.intrinsic()
    assert "undistorted" in caught.value.fix


def test_a_model_that_nobody_knows_is_read_and_has_no_focal_length(tmp_path: Path) -> None:
    camera = colmap.read_cameras(written(tmp_path / "c.txt", "4 PERISCOPE 10 8 7 5\n"))[4]
    assert camera.params == (7.0, 5.0)
    with pytest.raises(SceneError, match="camera 4 has the unknown model PERISCOPE"):
        camera.linear_part()


def test_simple_pinhole_has_one_focal_length() -> None:
    camera = ColmapCamera(1, "SIMPLE_PINHOLE", 10, 8, (7.0, 5.0, 4.0))
    assert camera.intrinsic().tolist() == [[7, 0, 5], [0, 7, 4], [0, 0, 1]]


def test_the_quaternion_is_scalar_first_and_turns_the_world_into_the_camera() -> None:
    """A quarter turn about z takes the world's x axis to the camera's y axis."""
    half = np.sqrt(0.5)
    image = ColmapImage(1, (half, 0.0, 0.0, half), (1.0, 2.0, 3.0), 0, "a.jpg")
    expected = [[0, -1, 0, 1], [1, 0, 0, 2], [0, 0, 1, 3]]
    np.testing.assert_allclose(image.extrinsic(), expected, atol=1e-15)
    # The twins: scalar last, and the other direction, are other matrices.
    last = replace(image, quaternion=(0.0, 0.0, half, half))
    conjugate = replace(image, quaternion=(half, 0.0, 0.0, -half))
    for other in (last, conjugate):
        assert np.abs(other.extrinsic() - expected).max() > 0.5


@settings(deadline=None)
@given(
    st.tuples(*[st.floats(-1, 1)] * 4).filter(lambda q: np.linalg.norm(q) > 0.1),
    st.tuples(*[st.floats(-1e3, 1e3)] * 3),
)
def test_a_pose_survives_its_quaternion(
    quaternion: tuple[float, ...], translation: tuple[float, ...]
) -> None:
    w, x, y, z = np.array(quaternion) / np.linalg.norm(quaternion)
    first = ColmapImage(1, (w, x, y, z), translation, 0, "a")  # type: ignore[arg-type]
    again = colmap.posed(1, first.extrinsic(), 0, "a")
    np.testing.assert_allclose(again.extrinsic(), first.extrinsic(), atol=1e-12)


def test_observations_may_be_empty_and_the_empty_line_counts(tmp_path: Path) -> None:
    second = POSE.replace("22 ", "23 ").replace("0307", "0308")
    text = f"{POSE}\n{second}1 2 -1\n"
    images = colmap.read_images(written(tmp_path / "i.txt", text))
    assert [len(image.observations) for image in images] == [0, 1]
    windows = colmap.read_images(written(tmp_path / "w.txt", text.replace("\n", "\r\n")))
    assert windows == images


CAMERA_LINES = [*COURTYARD.splitlines(), DISTORTED.replace("0 THIN", "7 THIN").rstrip()]
IMAGE_LINES = [
    (POSE.rstrip(), "1.5 2 7 3 4 -1"),
    (POSE.rstrip().replace("22 ", "5 ").replace("0307", "0308"), ""),
    (POSE.rstrip().replace("22 ", "901 ").replace("_0307", " with spaces"), "0 1e-3 -1"),
    (POSE.rstrip().replace("22 ", "0 ").replace("0307", "0300"), "\t 8 9 10 "),
]
NOISE = st.lists(
    st.sampled_from(["", "  ", "# a comment", "#", " # 1 PINHOLE 5 5 1 1 1 1"]), max_size=3
)
ENDS = st.sampled_from(["\n", "\r\n"])


@settings(deadline=None)
@given(st.permutations(CAMERA_LINES), st.lists(NOISE, min_size=4, max_size=4), ENDS, st.booleans())
def test_cameras_in_any_order(
    tmp_path_factory: pytest.TempPathFactory,
    lines: list[str],
    noise: list[list[str]],
    end: str,
    ended: bool,
) -> None:
    path = tmp_path_factory.getbasetemp() / "order.txt"
    wanted = colmap.read_cameras(written(path, "\n".join(CAMERA_LINES)))
    rows = [row for line, before in zip(lines, noise, strict=False) for row in (*before, line)]
    text = end.join([*rows, *noise[3]]) + (end if ended else "")
    assert colmap.read_cameras(written(path, text)) == wanted
    assert len(wanted) == 3


@settings(deadline=None)
@given(st.permutations(IMAGE_LINES), st.lists(NOISE, min_size=4, max_size=4), ENDS)
def test_images_in_any_order(
    tmp_path_factory: pytest.TempPathFactory,
    pairs: list[tuple[str, str]],
    noise: list[list[str]],
    end: str,
) -> None:
    """Comments and empty lines may stand between pairs, and never within one."""
    path = tmp_path_factory.getbasetemp() / "order.txt"
    wanted = colmap.read_images(written(path, "".join(f"{a}\n{b}\n" for a, b in IMAGE_LINES)))
    rows = [row for pair, before in zip(pairs, noise, strict=True) for row in (*before, *pair)]
    found = colmap.read_images(written(path, end.join(rows) + end))
    assert set(found) == set(wanted)
    assert [image.id for image in found] == [int(first.split()[0]) for first, _ in pairs]
    assert found[[image.id for image in found].index(901)].name == "dslr_images/DSC with spaces.JPG"


def test_every_truncation_is_refused_or_gives_whole_poses(tmp_path: Path) -> None:
    """No cut makes a pose of half a line, or leaves a picture with another's points."""
    text = HEADER + "".join(f"{a}\n{b}\n" for a, b in IMAGE_LINES)
    path = tmp_path / "images.txt"
    whole = colmap.read_images(written(path, text))
    read = refused = 0
    for cut in range(len(text)):
        try:
            images = colmap.read_images(written(path, text[:cut]))
        except SceneError:
            refused += 1
            continue
        read += 1
        poses = [(image.id, image.quaternion, image.translation, image.name) for image in images]
        assert poses == [(x.id, x.quaternion, x.translation, x.name) for x in whole[: len(images)]]
        for image, other in zip(images[:-1], whole, strict=False):
            assert image.observations == other.observations
    assert read > 10
    assert refused > 300


def test_a_byte_order_mark_is_no_content(tmp_path: Path) -> None:
    path = tmp_path / "cameras.txt"
    path.write_bytes(b"\xef\xbb\xbf" + (HEADER + COURTYARD).encode())
    assert list(colmap.read_cameras(path)) == [0, 1]
    path.write_bytes(b"\xef\xbb\xbf" + COURTYARD.encode())
    assert list(colmap.read_cameras(path)) == [0, 1]


# --- what is refused, with file and line

BAD_CAMERAS = {
    "0 PINHOLE 10 8": "line 3: not CAMERA_ID MODEL",
    "0 PINHOLE 10 8 1 2 3": "PINHOLE has 4 parameters, not 3",
    "0 SIMPLE_PINHOLE 10 8 1 2 3 4": "SIMPLE_PINHOLE has 3 parameters, not 4",
    "x PINHOLE 10 8 1 1 5 4": "'x' is no whole number",
    "1_0 PINHOLE 10 8 1 1 5 4": "'1_0' is no whole number",
    "0 PINHOLE 10.5 8 1 1 5 4": "'10.5' is no whole number",
    "0 PINHOLE 10 8 nan 1 5 4": "'nan' is no finite number",
    "0 PINHOLE 10 8 inf 1 5 4": "'inf' is no finite number",
    "0 PINHOLE 10 8 1_0 1 5 4": "'1_0' is no finite number",
    "0 PINHOLE 10 8 1 1 5 f": "'f' is no number",
    "0 PINHOLE 10 8 1e999 1 5 4": "'1e999' is no finite number",
    "0 THIN_PRISM_FISHEYE 10 8 1 1 5 4 0 0 0 0 0 0 0": "has 12 parameters, not 11",
    "0 THIN_PRISM_FISHEYE 10 8 1 -1 5 4 0 0 0 0 0 0 0 0": "must be positive",
    "0 OPENCV 10 8 1 1 5 4": "OPENCV has 8 parameters, not 4",
    "0 PINHOLE 0 8 1 1 5 4": "must be positive",
    "0 PINHOLE 10 8 -1 1 5 4": "must be positive",
    "0 PINHOLE 10 8 1 0 5 4": "must be positive",
    "0 PINHOLE 10 8 1 -1 5 4": "must be positive",
    f"{'9' * 5000} PINHOLE 10 8 1 1 5 4": "is no whole number",
    "0 PINHOLE 10 8 1 1 5 4\n0 PINHOLE 10 8 1 1 5 4": "line 4: camera 0 is there twice",
}
GOOD_IMAGE = "1 1 0 0 0 0 0 0 0 a.jpg"
BAD_IMAGES = {
    "1 1 0 0 0 0 0 0 0\n\n": "line 3: not IMAGE_ID",
    "1 1 0 0 0 0 0 0 0.5 a.jpg\n\n": "'0.5' is no whole number",
    "1 nan 0 0 0 0 0 0 0 a.jpg\n\n": "'nan' is no finite number",
    "1 1 0 0 0 inf 0 0 0 a.jpg\n\n": "'inf' is no finite number",
    "1 0 0 0 0 0 0 0 0 a.jpg\n\n": "the length 0 instead of 1",
    "1 1 1 0 0 0 0 0 0 a.jpg\n\n": "the length 1.414 instead of 1",
    f"{GOOD_IMAGE}\n": "line 3: the image's second line",
    f"{GOOD_IMAGE}\n2 1 0 0 0 0 0 0 0 b.jpg\n": "line 4: 10 values where X Y POINT3D_ID of image 1",
    f"{GOOD_IMAGE}\n1 2\n": "line 4: 2 values",
    f"{GOOD_IMAGE}\n1 2 0.5\n": "'0.5' is no whole number",
    f"{GOOD_IMAGE}\n1 nan 3\n": "'nan' is no finite number",
    f"{GOOD_IMAGE}\n\n1 1 0 0 0 0 0 0 0 b.jpg\n\n": "line 5: image 1 is there twice",
    f"{GOOD_IMAGE}\n\n2 1 0 0 0 0 0 0 0 a.jpg\n\n": "the picture a.jpg is there twice",
}
BAD_POINTS = {
    "1 0 0 0 1 2 3": "line 3: not POINT3D_ID",
    "1 0 0 0 1 2 3 0.5 1": "not POINT3D_ID",
    "1 0 0 0 1 2 256 0.5": "not within 0..255",
    "1 0 0 nan 1 2 3 0.5": "'nan' is no finite number",
    "1 0 0 0 1 2 3 0.5\n1 0 0 0 1 2 3 0.5": "line 4: point 1 is there twice",
}


@pytest.mark.parametrize(
    "read, text, message",
    [
        *((colmap.read_cameras, text, message) for text, message in BAD_CAMERAS.items()),
        *((colmap.read_images, text, message) for text, message in BAD_IMAGES.items()),
        *((colmap.read_points, text, message) for text, message in BAD_POINTS.items()),
    ],
)
def test_bad_lines_are_named(
    tmp_path: Path, read: Callable[[Path], Any], text: str, message: str
) -> None:
    path = written(tmp_path / "bad.txt", HEADER + text)
    with pytest.raises(SceneError) as caught:
        read(path)
    assert f"{path}, line " in caught.value.message
    assert message in caught.value.message


@pytest.mark.parametrize("read", [colmap.read_cameras, colmap.read_images, colmap.read_points])
def test_missing_and_binary_files(tmp_path: Path, read: Callable[[Path], Any]) -> None:
    with pytest.raises(SceneError, match=r"can't read .*absent"):
        read(tmp_path / "absent.txt")
    (tmp_path / "cameras.bin").write_bytes(b"\x04\0\0\0\0\0\0\0\xff\xfe\x80")
    with pytest.raises(SceneError, match="no UTF-8 text") as caught:
        read(tmp_path / "cameras.bin")
    assert "model_converter" in caught.value.fix


@settings(deadline=None)
@given(st.text(alphabet="01 .-ean#\n\rPINHOLE_", max_size=200))
def test_any_text_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = written(tmp_path_factory.getbasetemp() / "any.txt", text)
    for read in (colmap.read_cameras, colmap.read_images, colmap.read_points):
        try:
            read(path)
        except SceneError as error:
            assert str(path) in error.message  # noqa: PT017


# --- what is written

IDS = st.integers(0, 2**31 - 1)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
POSITIVE = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
UNIT = st.sampled_from([(1.0, 0.0, 0.0, 0.0), (-0.5, 0.5, -0.5, 0.5), (0.6, 5e-324, -0.8, -0.0)])
NAMES = st.text(
    st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1, max_size=20
).filter(lambda name: name == name.strip() and not name.startswith("#"))


@settings(deadline=None)
@given(
    st.dictionaries(
        IDS,
        st.tuples(st.integers(1, 9999), st.integers(1, 9999), POSITIVE, POSITIVE, NUMBERS, NUMBERS),
        max_size=4,
    )
)
def test_cameras_round_trip_to_the_last_bit(
    tmp_path_factory: pytest.TempPathFactory, rows: dict[int, tuple[Any, ...]]
) -> None:
    cameras = {
        key: ColmapCamera(key, "PINHOLE", row[0], row[1], row[2:]) for key, row in rows.items()
    }
    path = tmp_path_factory.getbasetemp() / "cameras.txt"
    colmap.write_cameras(path, cameras.values())
    assert colmap.read_cameras(path) == cameras


OBSERVATIONS = st.lists(st.builds(Observation, NUMBERS, NUMBERS, st.integers(-1, 99)), max_size=3)


@settings(deadline=None)
@given(
    st.dictionaries(
        IDS,
        st.tuples(UNIT, st.tuples(NUMBERS, NUMBERS, NUMBERS), IDS, NAMES, OBSERVATIONS.map(tuple)),
        max_size=4,
    )
)
def test_images_round_trip_to_the_last_bit(
    tmp_path_factory: pytest.TempPathFactory, rows: dict[int, tuple[Any, ...]]
) -> None:
    # The row's number makes names unique.
    images = tuple(
        ColmapImage(key, q, t, camera, f"{n}{name}", seen)
        for n, (key, (q, t, camera, name, seen)) in enumerate(rows.items())
    )
    path = tmp_path_factory.getbasetemp() / "images.txt"
    colmap.write_images(path, images)
    assert colmap.read_images(path) == images


@settings(deadline=None)
@given(
    st.dictionaries(
        IDS,
        st.tuples(
            st.tuples(NUMBERS, NUMBERS, NUMBERS),
            st.tuples(*[st.integers(0, 255)] * 3),
            NUMBERS,
            st.lists(st.tuples(IDS, IDS), max_size=3).map(tuple),
        ),
        max_size=4,
    )
)
def test_points_round_trip_to_the_last_bit(
    tmp_path_factory: pytest.TempPathFactory, rows: dict[int, tuple[Any, ...]]
) -> None:
    points = tuple(ColmapPoint(key, *row) for key, row in rows.items())
    path = tmp_path_factory.getbasetemp() / "points.txt"
    colmap.write_points(path, points)
    assert colmap.read_points(path) == points


@pytest.mark.parametrize("name", ["", " a.jpg", "a.jpg ", "a\nb.jpg", "a\rb.jpg", "a\u2028b.jpg"])
def test_a_name_that_would_break_the_file_is_not_written(tmp_path: Path, name: str) -> None:
    image = ColmapImage(1, (1.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0), 0, name)
    with pytest.raises(SceneError, match="can't stand in images"):
        colmap.write_images(tmp_path / "images.txt", [image])
    assert not (tmp_path / "images.txt").exists()


def test_a_matrix_with_skew_is_no_pinhole_camera() -> None:
    matrix = np.array([[7.0, 0.1, 5.0], [0.0, 7.0, 4.0], [0.0, 0.0, 1.0]])
    with pytest.raises(SceneError, match="skew"):
        colmap.pinhole(0, matrix, 10, 8)
    matrix[0, 1] = 0
    assert colmap.pinhole(0, matrix, 10, 8).intrinsic().tolist() == matrix.tolist()


# --- real files


def test_the_shared_calibrations_are_read(shared_data: Path) -> None:
    files = sorted((shared_data / "data").rglob("images.txt"))
    if not files:
        pytest.skip(f"no calibrations in {shared_data}")
    for path in files:
        cameras = colmap.read_cameras(path.parent / "cameras.txt")
        images = colmap.read_images(path)
        assert images
        for image in images:
            assert image.camera_id in cameras
            rotation = image.extrinsic()[:, :3]
            np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
            assert np.linalg.det(rotation) > 0


def test_strechas_poses_against_their_source(shared_data: Path) -> None:
    """`*.camera` holds camera-to-world rotation and centre in another form: the same cameras."""
    scene = shared_data / "data" / "strecha" / "fountain-P11"
    if not scene.is_dir():
        pytest.skip(f"no strecha in {shared_data}")
    images = {image.name: image for image in colmap.read_images(scene / "colmap" / "images.txt")}
    sources = sorted((scene / "gt_dense_cameras").glob("*.camera"))
    assert len(sources) == len(images) == 11
    for source in sources:
        rows = [[float(x) for x in line.split()] for line in source.read_text().splitlines()]
        turn, centre = np.array(rows[4:7]), np.array(rows[7])
        (image,) = (x for name, x in images.items() if name[:4] == source.name[:4])
        pose = image.extrinsic()
        np.testing.assert_allclose(pose[:, :3], turn.T, atol=1e-6)
        np.testing.assert_allclose(-pose[:, :3].T @ pose[:, 3], centre, atol=1e-5)
        assert np.abs(pose[:, :3] - turn).max() > 0.1  # the other direction is another rotation
