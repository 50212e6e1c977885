"""What calibration saw, as an artifact: two histograms of |x| for each Linear.

    <folder>/calibration.json   which model, image size, images (SHA-256), how they were chosen, its
                                own hash, that of:
    <folder>/statistics.npz     layers [L] names · absmax [2 L] float64 · offsets [2 L + 1] int64
                                bins [n] uint16 · counts [n] int64; histogram j has offsets[j:j + 2]
                                2 i: special tokens of layer i, 2 i + 1: its patches

The histograms know no method, precision or scheme: scales of all of them come from the same file.
An artifact with static activations carries both files, so it can be given as statistics itself.
The same images and model give the same bytes; arrays are stored uncompressed for that.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from vggt_deploy import typed_json
from vggt_deploy.errors import CalibrationError
from vggt_deploy.quantize.histogram import FINITE_BINS, Histogram, TokenHistograms
from vggt_deploy.quantize.selection import Selection
from vggt_deploy.records import ModelRecord

if TYPE_CHECKING:
    from vggt_deploy.model.config import VGGTConfig
    from vggt_deploy.model.sources import WeightSource

SCHEMA = 2
RECORD_NAME = "calibration.json"
ARRAYS_NAME = "statistics.npz"
MAX_RECORD_BYTES = 32 << 20
MAX_ARRAYS_BYTES = 1 << 30
_FIX = "calibrate again: vggt-deploy calibrate --images DIR -o FOLDER"
# Name -> kind of NumPy type.
_ARRAYS = {
    "layers": "U",
    "absmax": "f8",
    "offsets": "i8",
    "bins": "u2",
    "counts": "i8",
}


@dataclass(frozen=True)
class Statistics:
    """Histograms by layer, and what they were collected from.

    model: with its FP32 weights; height, width in pixels; mode: how images were brought to size
    frames_per_pass: views that the network saw together, at most
    images: file name -> SHA-256; skipped: files that could not be read, with the reason
    rewritten: "" for the model's own weights; else the words of a label that say into which equal
        network they were rewritten before it was observed
    selection: how the images were chosen, None where all of them were taken
    """

    model: ModelRecord
    height: int
    width: int
    mode: str
    frames_per_pass: int
    images: dict[str, str]
    skipped: tuple[str, ...]
    layers: dict[str, TokenHistograms]
    rewritten: str = ""
    selection: Selection | None = None

    @property
    def sha256(self) -> str:
        """Of the record, which holds the hash of the arrays: it stands for all of it."""
        return _record_sha256(json.loads(to_files(self)[RECORD_NAME]))


@dataclass(frozen=True)
class _Record:
    """calibration.json."""

    schema: int
    model: ModelRecord
    height: int
    width: int
    mode: str
    frames_per_pass: int
    images: dict[str, str]
    skipped: tuple[str, ...]
    rewritten: str
    selection: Selection | None
    arrays_sha256: str
    sha256: str


def model_record(config: VGGTConfig, source: WeightSource) -> ModelRecord:
    """The weights, as statistics and manifest name them."""
    origin = source.origin
    return ModelRecord(origin.spec, config.name, origin.revision, origin.sha256, origin.licence)


def to_files(statistics: Statistics) -> dict[str, bytes]:
    """File name -> content."""
    histograms = [h for seen in statistics.layers.values() for h in (seen.special, seen.patches)]
    offsets = np.cumsum([0, *(len(h.bins) for h in histograms)], dtype=np.int64)
    buffer = io.BytesIO()
    np.savez(
        buffer,
        layers=np.array(list(statistics.layers), dtype=np.str_),
        absmax=np.array([h.absmax for h in histograms], np.float64),
        offsets=offsets,
        bins=np.concatenate([np.zeros(0, np.uint16), *(h.bins for h in histograms)]),
        counts=np.concatenate([np.zeros(0, np.int64), *(h.counts for h in histograms)]),
    )
    arrays = buffer.getvalue()
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "model": asdict(statistics.model),
        "height": statistics.height,
        "width": statistics.width,
        "mode": statistics.mode,
        "frames_per_pass": statistics.frames_per_pass,
        "images": statistics.images,
        "skipped": statistics.skipped,
        "rewritten": statistics.rewritten,
        "selection": None if statistics.selection is None else asdict(statistics.selection),
        "arrays_sha256": hashlib.sha256(arrays).hexdigest(),
    }
    record["sha256"] = _record_sha256(record)
    return {RECORD_NAME: (json.dumps(record, indent=1) + "\n").encode(), ARRAYS_NAME: arrays}


def write_statistics(folder: Path, statistics: Statistics) -> None:
    """Write both files into an existing folder, which the caller renames into place."""
    for name, content in to_files(statistics).items():
        (folder / name).write_bytes(content)


def holds_statistics(folder: Path) -> bool:
    """Whether this folder is one of statistics (or an artifact that carries some)."""
    return (folder / RECORD_NAME).is_file()


def load_statistics(path: Path) -> Statistics:
    """Read a folder that `write_statistics` filled.

    Raises:
        CalibrationError: it is none, of another version, cut short or changed.
    """
    if not holds_statistics(path):
        state = "holds no" if path.is_dir() else "is not a folder with a"
        raise CalibrationError(f"{path} {state} {RECORD_NAME}", _FIX)
    try:
        record = _parse_record(_read(path / RECORD_NAME, MAX_RECORD_BYTES), path / RECORD_NAME)
        arrays = _read(path / ARRAYS_NAME, MAX_ARRAYS_BYTES)
    except OSError as error:
        raise CalibrationError(
            f"{error.filename or path} can't be read ({error.strerror})", _FIX
        ) from error
    if hashlib.sha256(arrays).hexdigest() != record.arrays_sha256:
        raise CalibrationError(
            f"{path / ARRAYS_NAME} was changed or cut short after it was written",
            f"copy the folder again, or {_FIX}",
        )
    return Statistics(
        model=record.model,
        height=record.height,
        width=record.width,
        mode=record.mode,
        frames_per_pass=record.frames_per_pass,
        images=record.images,
        skipped=record.skipped,
        layers=_parse_arrays(arrays, path / ARRAYS_NAME),
        rewritten=record.rewritten,
        selection=record.selection,
    )


def require_same(
    statistics: Statistics, model: ModelRecord, height: int, width: int, rewritten: str = ""
) -> None:
    """Refuse statistics of another model or image size, or of another rewriting of its weights.

    Raises:
        CalibrationError: naming what differs.
    """
    theirs = statistics.model
    differing = []
    if theirs.config != model.config:
        differing.append(f"architecture {theirs.config}, not {model.config}")
    if theirs.sha256 is not None and model.sha256 is not None:
        if theirs.sha256 != model.sha256:  # the same file may be known by several names
            differing.append(f"weights {theirs.sha256[:12]}…, not {model.sha256[:12]}…")
    elif (theirs.spec, theirs.revision) != (model.spec, model.revision):
        differing.append(f"model {_named(theirs)}, not {_named(model)}")
    if (statistics.height, statistics.width) != (height, width):
        differing.append(
            f"size {statistics.height} x {statistics.width} (height x width), "
            f"not {height} x {width}"
        )
    if statistics.rewritten != rewritten:
        differing.append(
            f"weights {_changed(statistics.rewritten)}, not those {_changed(rewritten)}"
        )
    if differing:
        raise CalibrationError(
            f"the statistics are of {'; of '.join(differing)}",
            "give a folder of images (--calibrate IMAGES), or statistics of this model and size",
        )


def _changed(rewritten: str) -> str:
    return f"rewritten by {rewritten}" if rewritten else "as the checkpoint has them"


def _named(model: ModelRecord) -> str:
    return model.spec if model.revision is None else f"{model.spec} at revision {model.revision}"


def _read(path: Path, limit: int) -> bytes:
    if path.stat().st_size > limit:
        raise CalibrationError(f"{path} is larger than any statistics are", _FIX)
    return path.read_bytes()


def _record_sha256(record: Mapping[str, Any]) -> str:
    rest = {name: value for name, value in record.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _parse_record(text: bytes, path: Path) -> _Record:
    try:
        record = typed_json.parse(text.decode())
    except (ValueError, RecursionError) as error:
        raise CalibrationError(f"{path} is not valid JSON ({error})", _FIX) from error
    schema = record.get("schema") if isinstance(record, dict) else None
    if schema != SCHEMA or type(schema) is not int or not isinstance(record, dict):
        raise CalibrationError(
            f"{path} has schema {schema!r}, this version of vggt-deploy reads {SCHEMA}", _FIX
        )

    def refuse(wrong: str) -> CalibrationError:
        return CalibrationError(f"{path} is not what calibration writes: {wrong}", _FIX)

    value = cast(_Record, typed_json.decode(_Record, record, "record", refuse))
    if value.sha256 != _record_sha256(record):
        raise CalibrationError(
            f"{path} was changed after it was written", f"copy the folder again, or {_FIX}"
        )
    return value


def _parse_arrays(content: bytes, path: Path) -> dict[str, TokenHistograms]:
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays: dict[str, NDArray[Any]] = {name: file[name] for name in _ARRAYS}
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise CalibrationError(f"{path} can't be read: {error}", _FIX) from error
    if not _sound(arrays):
        raise CalibrationError(f"{path} is not what calibration writes", _FIX)
    layers, absmax, offsets, bins, counts = arrays.values()
    histograms = [
        Histogram(float(largest), bins[first:last], counts[first:last])
        for largest, (first, last) in zip(absmax, pairwise(offsets), strict=True)
    ]
    pairs = zip(histograms[::2], histograms[1::2], strict=True)
    return {str(name): TokenHistograms(*pair) for name, pair in zip(layers, pairs, strict=True)}


def _sound(arrays: Mapping[str, NDArray[Any]]) -> bool:
    """Types, shapes and values are what `to_files` writes."""
    for name, kind in _ARRAYS.items():
        if arrays[name].ndim != 1 or not arrays[name].dtype.str.lstrip("<|=").startswith(kind):
            return False
    layers, absmax, offsets, bins, counts = arrays.values()
    return (
        2 * len(layers) == len(absmax) == len(offsets) - 1
        and len(bins) == len(counts)
        and len(set(layers.tolist())) == len(layers)
        and offsets[0] == 0
        and offsets[-1] == len(bins)
        and bool((np.diff(offsets) >= 0).all())
        and bool((np.diff(offsets[::2]) >= 1).all())  # no layer without any
        and bool((counts > 0).all())
        and bool((bins < FINITE_BINS).all())
        and bool((np.isfinite(absmax) & (absmax >= 0)).all())
    )
