"""COLMAP's text form of cameras, poses and points, read strictly and written without loss.

    cameras.txt    CAMERA_ID MODEL WIDTH HEIGHT PARAMS...
    images.txt     IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME
                   X Y POINT3D_ID, as many as there are, on a line of their own that may be empty
    points3D.txt   POINT3D_ID X Y Z R G B ERROR, then IMAGE_ID POINT2D_IDX as many times

Lines that begin with # are comments. A pose is world to camera, x_cam = R(q) X + t, with a Hamilton
quaternion, scalar first; axes are OpenCV's (x right, y down, z forward). Coordinates of a picture
are continuous: the first pixel's centre is (0.5, 0.5). ETH3D uses the same form.

Format: https://colmap.github.io/format.html
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np

from vggt_deploy.errors import SceneError
from vggt_deploy.geometry import Doubles, quaternion_to_rotation, rotation_to_quaternion

CAMERAS, IMAGES, POINTS = "cameras.txt", "images.txt", "points3D.txt"
# Files give quaternions with 6 digits and more; a norm further from 1 is a column in the wrong
# place.
_UNIT_TOLERANCE = 1e-2
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")  # within 64 bits; int() raises from 4301 digits on
_PINHOLES = frozenset({"PINHOLE", "SIMPLE_PINHOLE"})
# Of each model: how many parameters it has, and how many of them, in front, are focal lengths; the
# principal point follows. Lines of other models are kept as they are, and nothing is known of them.
_PARAMS = {
    "PINHOLE": (4, 2),
    "SIMPLE_PINHOLE": (3, 1),
    "SIMPLE_RADIAL": (4, 1),
    "RADIAL": (5, 1),
    "SIMPLE_RADIAL_FISHEYE": (4, 1),
    "RADIAL_FISHEYE": (5, 1),
    "OPENCV": (8, 2),
    "OPENCV_FISHEYE": (8, 2),
    "FULL_OPENCV": (12, 2),
    "FOV": (5, 2),
    "THIN_PRISM_FISHEYE": (12, 2),
}
_UNDISTORT = "use the undistorted pictures and their calibration (COLMAP: image_undistorter)"


@dataclass(frozen=True)
class ColmapCamera:
    """One line of cameras.txt: size in pixels, and the model's parameters in COLMAP's order."""

    id: int
    model: str
    width: int
    height: int
    params: tuple[float, ...]

    @property
    def is_pinhole(self) -> bool:
        """Whether a matrix describes it."""
        return self.model in _PINHOLES

    def intrinsic(self) -> Doubles:
        """[3, 3] in pixels, of PINHOLE and SIMPLE_PINHOLE; a SceneError for other models.

        A model with distortion has a focal length too, but image points do not follow it.
        """
        if not self.is_pinhole:
            raise SceneError(
                f"camera {self.id} has the model {self.model}, which no intrinsic matrix describes",
                _UNDISTORT,
            )
        return self.linear_part()

    def linear_part(self) -> Doubles:
        """[3, 3] in pixels: focal lengths and principal point, of models with distortion as well.

        A SceneError for a model of which nothing is known.
        """
        if self.model not in _PARAMS:
            raise SceneError(f"camera {self.id} has the unknown model {self.model}", _UNDISTORT)
        focal = _PARAMS[self.model][1]
        fx, fy = self.params[0], self.params[focal - 1]
        cx, cy = self.params[focal : focal + 2]
        return np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])


class Observation(NamedTuple):
    """A point in a picture, in pixels; `point_id` is -1 where no 3D point belongs to it."""

    x: float
    y: float
    point_id: int


@dataclass(frozen=True)
class ColmapImage:
    """Two lines of images.txt. `quaternion` is w x y z, `name` relative to the images folder."""

    id: int
    quaternion: tuple[float, float, float, float]
    translation: tuple[float, float, float]
    camera_id: int
    name: str
    observations: tuple[Observation, ...] = ()

    def extrinsic(self) -> Doubles:
        """[R | t], [3, 4], world to camera."""
        w, x, y, z = self.quaternion
        rotation = quaternion_to_rotation(np.array([x, y, z, w]))
        return np.column_stack([rotation, np.array(self.translation)])


@dataclass(frozen=True)
class ColmapPoint:
    """One line of points3D.txt; `track` holds (image id, index among its observations)."""

    id: int
    position: tuple[float, float, float]
    colour: tuple[int, int, int]
    error_px: float
    track: tuple[tuple[int, int], ...] = ()


def pinhole(camera_id: int, intrinsic: Doubles, width: int, height: int) -> ColmapCamera:
    """The camera of a matrix [3, 3] without skew."""
    k = np.asarray(intrinsic, dtype=np.float64)
    if k[0, 1] != 0 or k[1, 0] != 0 or k[2].tolist() != [0, 0, 1]:
        raise SceneError(
            f"the intrinsic matrix {k.tolist()} has skew or no last row 0 0 1",
            "a PINHOLE camera has fx, fy, cx and cy alone",
        )
    params = tuple(float(x) for x in (k[0, 0], k[1, 1], k[0, 2], k[1, 2]))
    return ColmapCamera(camera_id, "PINHOLE", width, height, params)


def posed(
    image_id: int,
    extrinsic: Doubles,
    camera_id: int,
    name: str,
    observations: Sequence[Observation] = (),
) -> ColmapImage:
    """The image of a pose [3, 4], world to camera."""
    x, y, z, w = (float(v) for v in rotation_to_quaternion(extrinsic[:, :3]))
    tx, ty, tz = (float(v) for v in extrinsic[:, 3])
    return ColmapImage(image_id, (w, x, y, z), (tx, ty, tz), camera_id, name, tuple(observations))


def read_cameras(path: Path) -> dict[int, ColmapCamera]:
    """cameras.txt by id. Every defect is a SceneError that names file and line."""
    cameras: dict[int, ColmapCamera] = {}
    for line in _data_lines(_lines(path)):
        words = line.text.split()
        if len(words) < 5:
            line.refuse("not CAMERA_ID MODEL WIDTH HEIGHT PARAMS")
        camera = ColmapCamera(
            line.integer(words[0]),
            words[1],
            line.integer(words[2]),
            line.integer(words[3]),
            tuple(map(line.number, words[4:])),
        )
        # Of an unknown model, the first parameter at least is a focal length.
        wanted, focal = _PARAMS.get(camera.model, (len(camera.params), 1))
        if len(camera.params) != wanted:
            line.refuse(f"{camera.model} has {wanted} parameters, not {len(camera.params)}")
        if min(camera.width, camera.height, *camera.params[:focal]) <= 0:
            line.refuse("a size and a focal length must be positive")
        if camera.id in cameras:
            line.refuse(f"camera {camera.id} is there twice")
        cameras[camera.id] = camera
    return cameras


def read_images(path: Path) -> tuple[ColmapImage, ...]:
    """images.txt in the file's order, strictly in pairs of lines.

    An empty second line means an image without observations, so empty lines count. A missing one
    would make a pose of the next image's points; it is found and refused.
    """
    images: list[ColmapImage] = []
    ids: set[int] = set()
    names: set[str] = set()
    lines = iter(_lines(path))
    for line in _data_lines(lines):
        second = next(lines, None)
        if second is None:
            line.refuse("the image's second line (its observations, or nothing) is missing")
        image = _image(line, second)
        if image.id in ids:
            line.refuse(f"image {image.id} is there twice")
        if image.name in names:
            line.refuse(f"the picture {image.name} is there twice")
        ids.add(image.id)
        names.add(image.name)
        images.append(image)
    return tuple(images)


def read_points(path: Path) -> tuple[ColmapPoint, ...]:
    """points3D.txt in the file's order."""
    points: dict[int, ColmapPoint] = {}
    for line in _data_lines(_lines(path)):
        words = line.text.split()
        if len(words) < 8 or len(words) % 2:
            line.refuse("not POINT3D_ID X Y Z R G B ERROR and pairs of IMAGE_ID POINT2D_IDX")
        numbers = [line.number(w) for w in (*words[1:4], words[7])]
        red, green, blue = (line.integer(w) for w in words[4:7])
        if min(red, green, blue) < 0 or max(red, green, blue) > 255:
            line.refuse("a colour is not within 0..255")
        track = [line.integer(w) for w in words[8:]]
        point = ColmapPoint(
            line.integer(words[0]),
            (numbers[0], numbers[1], numbers[2]),
            (red, green, blue),
            numbers[3],
            tuple(zip(track[::2], track[1::2], strict=True)),
        )
        if point.id in points:
            line.refuse(f"point {point.id} is there twice")
        points[point.id] = point
    return tuple(points.values())


def write_cameras(path: Path, cameras: Iterable[ColmapCamera]) -> None:
    """Write cameras.txt; numbers are read back to the last bit."""
    rows = [
        f"{c.id} {c.model} {c.width} {c.height} {' '.join(map(_text, c.params))}" for c in cameras
    ]
    _write(
        path,
        "Camera list with one line of data per camera:",
        "  CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]",
        f"Number of cameras: {len(rows)}",
        rows=rows,
    )


def write_images(path: Path, images: Sequence[ColmapImage]) -> None:
    """Write images.txt; numbers are read back to the last bit."""
    rows = []
    for image in images:
        if not image.name or image.name != image.name.strip() or len(image.name.splitlines()) != 1:
            raise SceneError(
                f"the picture name {image.name!r} can't stand in images.txt",
                "use a name on one line, without spaces at its ends",
            )
        pose = " ".join(map(_text, (*image.quaternion, *image.translation)))
        rows.append(f"{image.id} {pose} {image.camera_id} {image.name}")
        rows.append(" ".join(f"{_text(o.x)} {_text(o.y)} {o.point_id}" for o in image.observations))
    mean = sum(len(image.observations) for image in images) / max(1, len(images))
    _write(
        path,
        "Image list with two lines of data per image:",
        "  IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME",
        "  POINTS2D[] as (X, Y, POINT3D_ID)",
        f"Number of images: {len(images)}, mean observations per image: {mean:g}",
        rows=rows,
    )


def write_points(path: Path, points: Sequence[ColmapPoint]) -> None:
    """Write points3D.txt; numbers are read back to the last bit."""
    rows = []
    for p in points:
        colour = " ".join(map(str, p.colour))
        track = "".join(f" {image} {index}" for image, index in p.track)
        position = " ".join(map(_text, p.position))
        rows.append(f"{p.id} {position} {colour} {_text(p.error_px)}{track}")
    mean = sum(len(p.track) for p in points) / max(1, len(points))
    _write(
        path,
        "3D point list with one line of data per point:",
        "  POINT3D_ID, X, Y, Z, R, G, B, ERROR, TRACK[] as (IMAGE_ID, POINT2D_IDX)",
        f"Number of points: {len(points)}, mean track length: {mean:g}",
        rows=rows,
    )


class _Line(NamedTuple):
    """A line, and where it stands, for messages."""

    path: Path
    number_from_1: int
    text: str

    def refuse(self, what: str) -> NoReturn:
        shown = self.text if len(self.text) <= 60 else self.text[:57] + "..."
        raise SceneError(
            f"{self.path}, line {self.number_from_1}: {what}: {shown!r}",
            "write the file anew with COLMAP, or take it from the data set again",
        )

    def integer(self, word: str) -> int:
        if _INTEGER.fullmatch(word) is None:
            self.refuse(f"{word!r} is no whole number")
        return int(word)

    def number(self, word: str) -> float:
        try:
            value = float(word)
        except ValueError:
            self.refuse(f"{word!r} is no number")
        # float() would take 1_000 and other alphabets' digits as well.
        if not math.isfinite(value) or "_" in word or not word.isascii():
            self.refuse(f"{word!r} is no finite number")
        return value


def _image(first: _Line, second: _Line) -> ColmapImage:
    words = first.text.split(maxsplit=9)
    if len(words) != 10:
        first.refuse("not IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME")
    qw, qx, qy, qz, tx, ty, tz = map(first.number, words[1:8])
    norm = math.sqrt(qw * qw + qx * qx + qy * qy + qz * qz)
    if abs(norm - 1) > _UNIT_TOLERANCE:
        first.refuse(f"the quaternion has the length {norm:.4g} instead of 1")
    observed = second.text.split()
    if len(observed) % 3:
        second.refuse(
            f"{len(observed)} values where X Y POINT3D_ID of image {words[0]} are expected (an "
            "image without observations has an empty second line)"
        )
    return ColmapImage(
        first.integer(words[0]),
        (qw, qx, qy, qz),
        (tx, ty, tz),
        first.integer(words[8]),
        words[9].rstrip(),
        tuple(
            Observation(second.number(x), second.number(y), second.integer(point))
            for x, y, point in zip(observed[::3], observed[1::3], observed[2::3], strict=True)
        ),
    )


def _lines(path: Path) -> list[_Line]:
    try:
        text = path.read_text(encoding="utf-8-sig")  # with a byte order mark or without
    except OSError as error:
        raise SceneError(
            f"can't read {path}: {error.strerror}", "check that the scene is complete"
        ) from error
    except UnicodeDecodeError as error:
        raise SceneError(
            f"{path} is no UTF-8 text ({error.reason} at byte {error.start})",
            "COLMAP's binary form is not read: convert it with `colmap model_converter`",
        ) from error
    lines = text.split("\n")
    if lines[-1] == "":  # what follows the last line's end is no line
        lines.pop()
    return [_Line(path, number, line.rstrip("\r")) for number, line in enumerate(lines, 1)]


def _data_lines(lines: Iterable[_Line]) -> Iterator[_Line]:
    """Lines that are neither empty nor a comment."""
    return (line for line in lines if line.text.strip() and not line.text.lstrip().startswith("#"))


def _text(value: float) -> str:
    """The shortest decimal that reads back as the same float64."""
    return repr(float(value))


def _write(path: Path, *comments: str, rows: Iterable[str]) -> None:
    text = "".join(f"{line}\n" for line in (*(f"# {c}" for c in comments), *rows))
    path.write_text(text, encoding="utf-8")
