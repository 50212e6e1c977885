"""What made an artifact: `manifest.json`, the contract between the stages.

A manifest names every file of the artifact with its size and SHA-256, the model, scheme, shapes and
outputs, and the versions that made it. A stage that loads an artifact calls `read_manifest` first;
it either returns a manifest whose files are there and unchanged, or raises an ArtifactError that
says which of the many ways to be wrong this one is.

The JSON is the dataclasses of `records`, field by field. Reading is strict: an unknown or missing
field, a wrong type, or a file name that is not a plain name inside the folder is refused. A field
is added only together with a higher `SCHEMA`; a reader refuses any other schema than its own by
that number.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from vggt_deploy import typed_json
from vggt_deploy.errors import ArtifactError
from vggt_deploy.records import FileRecord, Manifest

SCHEMA = 3
MANIFEST_NAME = "manifest.json"

# A manifest of VGGT-1B is about 100 kB. Whatever is larger than this is not one, and is not parsed.
MAX_MANIFEST_BYTES = 32 * 2**20
_HASH_CHUNK_BYTES = 4 * 2**20
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,199}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def now() -> str:
    """UTC time in the form that `created` has."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def hash_file(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """SHA-256 of a file as hex; `progress` is called with the bytes read since the last call."""
    digest = hashlib.sha256()
    buffer = bytearray(_HASH_CHUNK_BYTES)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(view[:count])
            if progress is not None:
                progress(count)
    return digest.hexdigest()


def record_files(
    folder: Path, progress: Callable[[int], None] | None = None
) -> dict[str, FileRecord]:
    """The `files` entry for everything in `folder` except the manifest."""
    return {
        path.name: FileRecord(path.stat().st_size, hash_file(path, progress))
        for path in sorted(folder.iterdir())
        if path.name != MANIFEST_NAME
    }


def write_manifest(folder: Path, manifest: Manifest) -> Path:
    """Write `manifest.json`, whole or not at all. The manifest is checked as a reader would check
    it.
    """
    _check(manifest, folder / MANIFEST_NAME)
    text = to_json(manifest)
    path = folder / MANIFEST_NAME
    unfinished = folder / f".{MANIFEST_NAME}.partial"
    with unfinished.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
    return path


def read_manifest(
    folder: Path,
    *,
    check_hashes: bool = True,
    progress: Callable[[int], None] | None = None,
) -> Manifest:
    """The manifest of the artifact in `folder`, after checking that its files are what it says.

    Existence and size of every file are always checked. Hashes may be skipped only by a caller that
    has just written or checked them.
    """
    path = folder / MANIFEST_NAME
    try:
        manifest = from_json(_read_text(folder, path), source=path)
        for name, record in manifest.files.items():
            _check_file(folder, name, record, check_hashes=check_hashes, progress=progress)
    except OSError as error:
        raise ArtifactError(
            f"{error.filename or folder} can't be read ({error.strerror})",
            "check the permissions and the disk, or copy the artifact to another place",
        ) from error
    return manifest


def to_json(manifest: Manifest) -> str:
    """The manifest as JSON text, keys in the order of the dataclass, so that two can be diffed."""
    try:
        return json.dumps(dataclasses.asdict(manifest), indent=1, allow_nan=False) + "\n"
    except ValueError as error:
        raise ArtifactError(
            f"the manifest holds a number that is not finite ({error})",
            "this is an error of the stage that wrote it: verification values must be finite",
        ) from error


def from_json(text: str, *, source: Path) -> Manifest:
    """Parse and check manifest text; `source` is named in errors."""
    try:
        value = typed_json.parse(text)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(
            f"{source} is not valid JSON ({error})",
            "the file was cut short or edited: export the artifact again",
        ) from error
    if not isinstance(value, dict):
        raise _malformed(source, "the top level is not an object")
    schema = value.get("schema")
    if type(schema) is not int or schema < 1:
        raise _malformed(source, f"schema is {schema!r}, expected a number from 1 to {SCHEMA}")
    if schema < SCHEMA:
        raise ArtifactError(
            f"{source} has schema {schema}, this version of vggt-deploy reads {SCHEMA}",
            "an older vggt-deploy wrote it: export (or build) it again with this version",
        )
    if schema > SCHEMA:
        raise ArtifactError(
            f"{source} has schema {schema}, this version of vggt-deploy reads {SCHEMA}",
            "a newer vggt-deploy wrote it: upgrade, or export it again with this version",
        )
    manifest = typed_json.decode(Manifest, value, "manifest", partial(_malformed, source))
    assert isinstance(manifest, Manifest)
    _check(manifest, source)
    return manifest


def _read_text(folder: Path, path: Path) -> str:
    if not folder.is_dir():
        state = "is not a folder" if folder.exists() else "does not exist"
        raise ArtifactError(
            f"{folder} {state}",
            "give the folder that `vggt-deploy export` or `build` wrote; from a bundle, "
            "`vggt-deploy unpack` makes one",
        )
    if not path.is_file():
        raise ArtifactError(
            f"{folder} holds no {MANIFEST_NAME}, so it is not a finished artifact",
            "give the folder that `vggt-deploy export` or `build` wrote, or make it again",
        )
    size = path.stat().st_size
    if size > MAX_MANIFEST_BYTES:
        raise _malformed(path, f"{size} bytes is more than any manifest has")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise _malformed(path, f"not UTF-8 text: {error.reason}") from error


def _check_file(
    folder: Path,
    name: str,
    record: FileRecord,
    *,
    check_hashes: bool,
    progress: Callable[[int], None] | None,
) -> None:
    path = folder / name
    fix = "copy the whole folder again, or make it again"
    if not path.is_file():
        state = "is not a regular file" if path.exists() else "is missing"
        raise ArtifactError(f"{path} {state}, the manifest lists it", fix)
    size = path.stat().st_size
    if size < record.bytes:
        raise ArtifactError(f"{path} is cut short: {size} bytes, {record.bytes} were written", fix)
    if size > record.bytes:
        raise ArtifactError(f"{path} has grown: {size} bytes, {record.bytes} were written", fix)
    if check_hashes and (digest := hash_file(path, progress)) != record.sha256:
        raise ArtifactError(
            f"{path} was changed after it was written: SHA-256 {digest[:16]}…, "
            f"the manifest says {record.sha256[:16]}…",
            fix,
        )


def _check(manifest: Manifest, source: Path) -> None:
    """What the types can't say."""
    if manifest.height < 1 or manifest.width < 1:
        raise _malformed(source, f"size {manifest.height} x {manifest.width} is not positive")
    frames = manifest.frames
    if not 1 <= frames.min <= frames.opt <= frames.max:
        raise _malformed(source, f"frames {frames.min}:{frames.opt}:{frames.max} are not in order")
    for name, record in manifest.files.items():
        if not is_plain_name(name) or name == MANIFEST_NAME:
            raise ArtifactError(
                f"{source} lists the file {name!r}, which is not a plain name inside the folder",
                "do not use this artifact: it was edited or made to reach outside its folder",
            )
        if record.bytes < 0 or not _SHA256.fullmatch(record.sha256):
            raise _malformed(source, f"size or SHA-256 of {name} makes no sense")
    for target, graph in manifest.graphs.items():
        if graph.file not in manifest.files:
            raise _malformed(source, f"graph {target} names {graph.file!r}, not among the files")
        if graph.opset < 1:
            raise _malformed(source, f"graph {target} has opset {graph.opset}")
    engine = manifest.engine
    if (manifest.kind == "engine") != (engine is not None):
        raise _malformed(source, f"kind is {manifest.kind}, and engine is {type(engine).__name__}")
    if engine is not None and (engine.file not in manifest.files or not engine.profiles):
        raise _malformed(source, f"the engine {engine.file!r} is not among the files")
    if engine is not None and engine.activation_bytes is not None:
        told, profiles = len(engine.activation_bytes), len(engine.profiles)
        if told != profiles:
            raise _malformed(source, f"the engine tells memory for {told} of {profiles} profiles")


def is_plain_name(name: str) -> bool:
    """Whether `name` is a file name that stays inside its folder on every system."""
    return _PLAIN_NAME.fullmatch(name) is not None


def _malformed(source: Path, what: str) -> ArtifactError:
    return ArtifactError(
        f"{source} is not a manifest of this version: {what}",
        "the file was edited or damaged: export the artifact again",
    )
