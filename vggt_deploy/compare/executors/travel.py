"""How a job travels to another machine: the files it reads go along, those it writes come back.

A job names paths on the machine of the sweep. On a node they mean nothing, so each is replaced by a
name below a scratch folder, which the node puts in front:

    {"images": "/here/out/work/images.npy", "arrays": "/here/out/outputs/torch-fp32.npz", ...}
 -> {"images": "in/images/images.npy", "arrays": "out/arrays/torch-fp32.npz", ...}

Nothing here knows of Ray: `put` and `fetch` are what moves the bytes.
"""

from __future__ import annotations

import copy
import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggt_deploy.compare.jobs import Job, JobKind
from vggt_deploy.data.folders import find_all_images
from vggt_deploy.model.packaged import PACKAGED

Bytes = NDArray[np.uint8]
Put = Callable[[Bytes], Any]

CHUNK_BYTES = 64 * 2**20  # a checkpoint of gigabytes never lies in memory as a whole


@dataclass(frozen=True)
class Route:
    """Which fields of a job are paths, by what becomes of the file or folder there.

    pictures: folders of which the photographs alone travel, whatever else lies in them.
    scratch: written on the node and left there.
    """

    inputs: tuple[str, ...] = ()
    pictures: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    scratch: tuple[str, ...] = ()


_MEASURE = Route(
    inputs=("model.spec", "artifact", "images", "calibration.statistics", "prepared"),
    outputs=("arrays",),
    scratch=("size_probe", "answer"),
)
# Engines are built and measured by the local executor alone (`RayExecutor.check`).
ROUTES: dict[JobKind, Route] = {
    "calibrate": Route(
        inputs=("model.spec",), pictures=("images",), outputs=("folder",), scratch=("answer",)
    ),
    "prepare": Route(
        inputs=("model.spec",), pictures=("images",), outputs=("folder",), scratch=("answer",)
    ),
    # Every export traces for itself: a cache that several nodes write can't be shared.
    "export": Route(
        inputs=("model.spec", "calibration.statistics", "prepared"),
        outputs=("folder",),
        scratch=("trace_cache", "answer"),
    ),
    "measure": _MEASURE,
    "compute": _MEASURE,
}


@dataclass(frozen=True)
class Itinerary:
    """A job as it travels, and what its names below the scratch folder stand for here.

    moved: the fields of `job` that hold such names.
    """

    job: dict[str, Any]
    moved: tuple[str, ...]
    inputs: dict[str, Path]
    outputs: dict[str, Path]


def plan_journey(kind: JobKind, job: Job) -> Itinerary:
    """Replace the paths of a job; `inputs` lists single files, `outputs` files or folders."""
    data = asdict(job)
    assert not data.get("further"), "each scene travels as a job of its own"
    route = ROUTES[kind]
    moved: list[str] = []
    inputs: dict[str, Path] = {}
    outputs: dict[str, Path] = {}
    for field in (*route.inputs, *route.pictures):
        value = _get(data, field)
        if value is None or (field == "model.spec" and not is_local(value)):
            continue
        path = Path(value).expanduser().absolute()
        name = f"in/{field}/{path.name}"
        files = _pictures(path) if field in route.pictures else _files(path)
        inputs |= {f"{name}/{inner}" if inner else name: file for inner, file in files}
        _set(data, field, name)
        moved.append(field)
    for field in (*route.outputs, *route.scratch):
        value = _get(data, field)
        if value is None:
            continue
        name = f"out/{field}/{Path(value).name}"
        if field in route.outputs:
            outputs[name] = Path(value)
        _set(data, field, name)
        moved.append(field)
    return Itinerary(data, tuple(moved), inputs, outputs)


def arrive(job: dict[str, Any], moved: Sequence[str], scratch: Path) -> dict[str, Any]:
    """The job with paths on this machine: the names of `plan_journey`, below `scratch`. The folders
    that they are in are made.
    """
    data = copy.deepcopy(job)
    for field in moved:
        path = scratch / _get(data, field)
        path.parent.mkdir(parents=True, exist_ok=True)
        _set(data, field, str(path))
    return data


def is_local(spec: str) -> bool:
    """Whether a model spec is a file or folder of this machine, as `model.weights` takes it."""
    return spec not in PACKAGED and Path(spec).expanduser().exists()


class Post:
    """Puts files into a store that all machines reach, each content once; used from threads.

    The store holds a content while anybody has what `send` gave for it. Of what nobody else has any
    more, the last `keep_bytes` stay: jobs that follow each other read the same files.
    """

    def __init__(self, put: Put, keep_bytes: int) -> None:
        self._put = put
        self._keep_bytes = keep_bytes
        self._lock = Lock()
        self._known: dict[tuple[str, int, int], str] = {}
        self._kept: dict[str, tuple[int, tuple[Any, ...]]] = {}  # sent last comes last

    def send(self, path: Path) -> tuple[Any, ...]:
        """What the store gave for each chunk of the file, in order; none for an empty one."""
        status = path.stat()
        key = (str(path), status.st_size, status.st_mtime_ns)
        with self._lock:  # two senders of one file would put it twice
            sha256 = self._known.get(key) or _sha256(path)
            self._known[key] = sha256
            kept = self._kept.pop(sha256, None)
            chunks = kept[1] if kept else tuple(self._put(chunk) for chunk in _read(path))
            self._kept[sha256] = (status.st_size, chunks)
            self._forget()
            return chunks

    def _forget(self) -> None:
        """Let go of what was sent longest ago, until the rest is small enough."""
        total = sum(size for size, _ in self._kept.values())
        for sha256 in list(self._kept):
            if total <= self._keep_bytes:
                return
            total -= self._kept.pop(sha256)[0]


def unpack(files: dict[str, Bytes], outputs: dict[str, Path]) -> None:
    """Write what came back, `files` by their names below the scratch folder, to its places here.

    A file or folder is there whole or as it was before.
    """
    for name, target in outputs.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.arriving")
        _remove(partial)
        try:
            for file, content in files.items():
                if file == name:
                    _write(partial, content)
                elif file.startswith(f"{name}/"):
                    path = partial / file.removeprefix(f"{name}/")
                    path.parent.mkdir(parents=True, exist_ok=True)
                    _write(path, content)
            if partial.exists():
                _remove(target)
                partial.rename(target)
        finally:
            _remove(partial)


def collect(scratch: Path, names: tuple[str, ...]) -> dict[str, Bytes]:
    """The files at these names, or in the folders there; a name that is not there gives none."""
    found: dict[str, Bytes] = {}
    for name in names:
        for inner, file in _files(scratch / name) if (scratch / name).exists() else ():
            found[f"{name}/{inner}" if inner else name] = np.fromfile(file, dtype=np.uint8)
    return found


def _pictures(folder: Path) -> Iterator[tuple[str, Path]]:
    for scene in find_all_images(folder):
        for path in scene.values():
            yield path.relative_to(folder).as_posix(), path


def _files(path: Path) -> Iterator[tuple[str, Path]]:
    """(name below `path`, file) of a folder; of a file itself, with an empty name."""
    if not path.is_dir():
        yield "", path
        return
    for file in sorted(path.rglob("*")):
        if file.is_file():
            yield file.relative_to(path).as_posix(), file


def _read(path: Path) -> Iterator[Bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield np.frombuffer(chunk, dtype=np.uint8)


def _write(path: Path, content: Bytes) -> None:
    # Not `tofile`, whose error on a full disk has no errno.
    with path.open("wb") as file:
        file.write(content.data)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _get(data: Any, field: str) -> Any:
    for key in field.split("."):
        data = None if data is None else data[key]
    return data


def _set(data: dict[str, Any], field: str, value: str) -> None:
    *parents, last = field.split(".")
    for key in parents:
        data = data[key]
    data[last] = value
