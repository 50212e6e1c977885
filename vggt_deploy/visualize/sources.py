"""What there is to look at: a folder that `run` or `compare` wrote, read and checked.

    run          predictions.npz and run.json; the pictures from its own pictures/, or from the
                 folder of photographs that it was run on, recognised by their SHA-256
    comparison   of one variant, the outputs of the first scene; the pictures are in its work/

White padding shows no picture. A run records where each picture lies in the network's frame; a
comparison does not, so rows and columns at the edges of a frame that are white throughout count as
padding there.
"""

from __future__ import annotations

import difflib
import json
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vggt_deploy.data.folders import find_images
from vggt_deploy.data.images import DECODE_ERRORS, load_images
from vggt_deploy.engines.outputs import UNITS
from vggt_deploy.engines.predict import Array, Predictions, derive
from vggt_deploy.engines.run import RUN_RECORD
from vggt_deploy.errors import ArtifactError, UsageError

PREDICTIONS_NAME = "predictions.npz"
QUESTION_NAME = "question.json"
_AGAIN = {
    "run": "run it again: vggt-deploy run ARTIFACT --images DIR -o RUN",
    "comparison": "compare again with --overwrite, or give another folder",
}
# The axes behind [1, S] of each output; H and W are those of the network's input.
_SHAPES = {
    "pose_enc": (9,),
    "depth": ("H", "W", 1),
    "depth_conf": ("H", "W"),
    "world_points": ("H", "W", 3),
    "world_points_conf": ("H", "W"),
}
# What numpy and zipfile raise on damaged files; numpy reads an array's header as Python's source.
_DAMAGED = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    MemoryError,
    SyntaxError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
    NotImplementedError,  # a compression that zipfile does not know
    RuntimeError,  # an encrypted member
    struct.error,
)

Kind = Literal["run", "comparison"]


@dataclass(frozen=True)
class Source:
    """S pictures of one scene, and what one network said about them.

    name     of the folder, or of the comparison's first scene
    subject  what computed it: `vggt-1b int8_pc_sym, onnxruntime cpu`, `torch/fp32 of vggt-nano`
    pictures file names, [S]
    pixels   uint8 [S, H, W, 3], the network's input as RGB
    shown    bool [S, H, W], false on white padding
    unit     of depth, points and cameras, in words
    notes    what a reader should know of how it was read
    """

    kind: Kind
    name: str
    subject: str
    pictures: tuple[str, ...]
    pixels: NDArray[np.uint8]
    shown: NDArray[np.bool_]
    predictions: Predictions
    unit: str
    notes: tuple[str, ...]

    @property
    def height(self) -> int:
        """Rows of the network's input."""
        return int(self.pixels.shape[1])

    @property
    def width(self) -> int:
        """Columns of the network's input."""
        return int(self.pixels.shape[2])


def read_source(folder: Path, *, variant: str | None, images_dir: Path | None) -> Source:
    """What lies in `folder`, by the file that only a run, or only a comparison, has.

    Raises:
        ArtifactError: neither of them, incomplete or damaged
        UsageError: an option that the kind of folder has no use for, or an unknown variant
    """
    if (folder / RUN_RECORD).is_file():
        if variant is not None:
            raise UsageError(
                f"{folder} is a run, which has no variants", "leave --variant out for this folder"
            )
        return _read_run(folder, images_dir)
    if (folder / QUESTION_NAME).is_file():
        if images_dir is not None:
            raise UsageError(
                f"{folder} is a comparison, which keeps its pictures",
                "leave --images out for this folder",
            )
        return _read_comparison(folder, variant)
    raise ArtifactError(
        f"{folder} holds neither {RUN_RECORD} nor {QUESTION_NAME}: it is no run and no comparison",
        "give the folder that `vggt-deploy run` or `vggt-deploy compare` wrote",
    )


def _read_run(folder: Path, images_dir: Path | None) -> Source:
    record = _read_record(folder / RUN_RECORD, "run")
    outputs = _read_outputs(folder / PREDICTIONS_NAME, "run")
    try:
        names = tuple(str(image["image"]) for image in record["images"])
        hashes = tuple(str(image["sha256"]) for image in record["images"])
        modes = {image["mode"] for image in record["images"]}
        session, artifact = record["session"], record["artifact"]
        subject = (
            f"{artifact['model']['config']} {artifact['variant']}, "
            f"{session['runtime']} {session['provider']}"
        )
        forward_ms = float(record["forward_ms"])
        mode = modes.pop()
        notes = tuple(str(note) for note in record["notes"])
        unit = str(record["unit"])
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise _damaged(folder / RUN_RECORD, f"{type(error).__name__}: {error}", "run") from error
    height, width = _frame_size(folder, outputs)
    _check_outputs(outputs, len(names), height, width, folder / PREDICTIONS_NAME, "run")
    if images_dir is not None:
        pixels, shown = _from_photographs(images_dir, names, hashes, mode, height, width)
    else:
        pixels, shown = _from_run(folder, record, len(names), height, width)
    return Source(
        kind="run",
        name=folder.resolve().name,
        subject=subject,
        pictures=names,
        pixels=pixels,
        shown=shown,
        predictions=_derive(outputs, height, width, forward_ms),
        unit=unit,
        notes=notes,
    )


def _from_photographs(
    folder: Path,
    names: tuple[str, ...],
    hashes: tuple[str, ...],
    mode: Any,
    height: int,
    width: int,
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Pixels and picture mask, from the photographs that the run was made on."""
    found = {path.name: path for path in find_images(folder).paths}
    missing = [name for name in names if name not in found]
    if missing:
        raise UsageError(
            f"{folder} has no {missing[0]}, which the run was made on"
            + (f" ({len(missing)} are missing)" if len(missing) > 1 else ""),
            "give the folder of photographs that the run was made on",
        )
    batch = load_images([found[name] for name in names], mode=mode, width=width, height=height)
    for name, digest, expected in zip(names, batch.sha256, hashes, strict=True):
        if digest != expected:
            raise UsageError(
                f"{folder / name} is not the picture that the run was made on: its SHA-256 differs",
                "give the folder of photographs that the run was made on",
            )
    return to_bytes(batch.pixels), batch.picture_mask()


def _from_run(
    folder: Path, record: Mapping[str, Any], frames: int, height: int, width: int
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Pixels and picture mask, from pictures/ of the run itself."""
    files = record.get("pictures")
    if files is None:
        raise ArtifactError(
            f"{folder} holds no pictures, which give the points their colours",
            "give the folder of photographs that the run was made on, with --images DIR",
        )
    shown = np.zeros((frames, height, width), dtype=bool)
    pixels = np.zeros((frames, height, width, 3), dtype=np.uint8)
    try:
        for index, name in enumerate(files):
            with Image.open(folder / name) as picture:
                pixels[index] = np.asarray(picture.convert("RGB"))
        for frame, image in zip(shown, record["images"], strict=True):
            _mark_picture(frame, image)
    except (*DECODE_ERRORS, KeyError, TypeError, IndexError, OverflowError) as error:
        raise _damaged(folder, f"its pictures: {error}", "run") from error
    if len(files) != frames:
        raise _damaged(folder, f"{len(files)} pictures for {frames} frames", "run")
    return pixels, shown


def _mark_picture(frame: NDArray[np.bool_], image: Mapping[str, Any]) -> None:
    """True where the picture lies: x_network = scale * x_picture + offset."""
    (scale_x, scale_y), (left, top) = image["placement"]["scale"], image["placement"]["offset"]
    right = round(left + scale_x * image["width"])
    bottom = round(top + scale_y * image["height"])
    frame[max(0, int(top)) : bottom, max(0, int(left)) : right] = True


def _read_comparison(folder: Path, label: str | None) -> Source:
    from vggt_deploy.compare.state import Folder
    from vggt_deploy.compare.variants import REFERENCE

    question = _read_record(folder / QUESTION_NAME, "comparison")
    try:
        scene = question["scenes"][0]
        names = tuple(str(file["name"]) for file in scene["files"])
        labels = [str(known) for known in question["variants"]]
        spec, random = str(question["model"]["spec"]), question["model"]["kind"] == "random"
        scenes = len(question["scenes"])
        name = str(scene["name"])
    except (KeyError, TypeError, IndexError) as error:
        raise _damaged(folder / QUESTION_NAME, f"{error!r} is missing", "comparison") from error
    label = REFERENCE.label if label is None else label
    if label not in labels:
        near = difflib.get_close_matches(label, labels, n=1)
        raise UsageError(
            f"{folder} has no variant {label!r}" + (f"; is {near[0]!r} meant?" if near else ""),
            f"give one of: {', '.join(labels)}",
        )
    paths = Folder(folder)
    arrays = paths.root / "outputs" / f"{label.replace('/', '-')}.npz"
    if not arrays.is_file():
        raise ArtifactError(
            f"{label} has no outputs in {folder}: it failed, was refused, or has not run yet",
            "choose a variant that is done (see comparison_summary.txt), or resume the comparison",
        )
    outputs = _read_outputs(arrays, "comparison")
    pixels = _read_pixels(paths.images(), len(names))
    height, width = pixels.shape[1:3]
    _check_outputs(outputs, len(names), height, width, arrays, "comparison")
    shown = without_padding(pixels)
    return Source(
        kind="comparison",
        name=name,
        subject=f"{label} of {spec.rpartition('/')[2]}",
        pictures=names,
        pixels=pixels,
        shown=shown,
        predictions=_derive(outputs, height, width, float("nan")),
        unit=UNITS,
        notes=_comparison_notes(scenes, random, int((~shown).sum())),
    )


def _comparison_notes(scenes: int, random: bool, padded: int) -> tuple[str, ...]:
    notes = []
    if scenes > 1:
        notes.append(f"the first of {scenes} scenes: of the others no outputs are kept")
    if random:
        notes.append("the weights are random numbers: what is shown means nothing")
    if padded:
        notes.append(f"{padded} pixels at white edges of the frames count as padding")
    return tuple(notes)


def without_padding(pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """[S, H, W, 3] -> bool [S, H, W]: false in rows and columns at the edges that are all white."""
    white = (pixels == 255).all(axis=-1)
    shown = np.ones(white.shape, dtype=bool)
    for frame, mask in zip(white, shown, strict=True):
        for axis in (0, 1):
            lines = frame.all(axis=1 - axis)
            inside = np.flatnonzero(~lines)
            # A picture that is white throughout is a picture.
            first, last = (inside[0], inside[-1]) if inside.size else (0, len(lines) - 1)
            outside = (np.arange(len(lines)) < first) | (np.arange(len(lines)) > last)
            mask[outside if axis == 0 else (slice(None), outside)] = False
    return shown


def to_bytes(pixels: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Network input [S, 3, H, W] in 0..1 -> [S, H, W, 3] in 0..255."""
    scaled: NDArray[np.uint8] = np.rint(pixels.transpose(0, 2, 3, 1) * 255).astype(np.uint8)
    return scaled


def _read_record(path: Path, kind: Kind) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error), kind) from error
    if not isinstance(data, dict):
        raise _damaged(path, "it is no JSON object", kind)
    return data


def _read_outputs(path: Path, kind: Kind) -> dict[str, Array]:
    """The network's outputs in the file, as float32."""
    try:
        with np.load(path, allow_pickle=False) as file:
            outputs = {
                name: file[name].astype(np.float32) for name in file.files if name in _SHAPES
            }
    except _DAMAGED as error:
        raise _damaged(path, str(error), kind) from error
    if not outputs:
        raise _damaged(path, f"it holds none of {', '.join(_SHAPES)}", kind)
    for name, confidence in (("depth", "depth_conf"), ("world_points", "world_points_conf")):
        if (name in outputs) != (confidence in outputs):
            raise _damaged(path, f"{name} and {confidence} belong together", kind)
    return outputs


def _read_pixels(path: Path, frames: int) -> NDArray[np.uint8]:
    try:
        pixels = np.load(path, allow_pickle=False)
    except _DAMAGED as error:
        raise _damaged(path, str(error), "comparison") from error
    if pixels.ndim != 4 or pixels.shape[:2] != (frames, 3):
        raise _damaged(path, f"its shape is {pixels.shape}, not ({frames}, 3, H, W)", "comparison")
    if pixels.dtype != np.float32 or not ((pixels >= 0) & (pixels <= 1)).all():
        raise _damaged(path, "it holds other values than colours from 0 to 1", "comparison")
    return to_bytes(pixels)


def _derive(
    outputs: Mapping[str, Array], height: int, width: int, forward_ms: float
) -> Predictions:
    """As `derive`; depth that is infinite gives points that are not finite, which are counted."""
    with np.errstate(invalid="ignore", over="ignore"):
        return derive(outputs, height, width, forward_ms)


def _frame_size(folder: Path, outputs: Mapping[str, Array]) -> tuple[int, int]:
    """Height and width of the network's input, from a map or, of a run without one, its cameras."""
    for name in ("depth", "world_points"):
        if name in outputs and outputs[name].ndim == 5:
            height, width = outputs[name].shape[2:4]
            return int(height), int(width)
    cameras = _read_record(folder / "cameras.json", "run")
    try:
        return int(cameras["network_height"]), int(cameras["network_width"])
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(folder / "cameras.json", f"{error!r}", "run") from error


def _check_outputs(
    outputs: Mapping[str, Array], frames: int, height: int, width: int, path: Path, kind: Kind
) -> None:
    sizes = {"H": height, "W": width}
    for name, values in outputs.items():
        tail = tuple(sizes[axis] if isinstance(axis, str) else axis for axis in _SHAPES[name])
        if values.shape != (1, frames, *tail):
            raise _damaged(path, f"{name} is {values.shape}, not {(1, frames, *tail)}", kind)


def _damaged(path: Path, why: str, kind: Kind) -> ArtifactError:
    return ArtifactError(f"{path} can't be used: {why}", _AGAIN[kind])
