"""`index.json`, the first member of a bundle: what is in it, for whom, and how to feed it.

Everything else in the bundle is listed here with its size and SHA-256, in the order in which it
lies in the file. Reading is as strict as for a manifest; paths have one of two shapes only:

    engines/<name>/<file>        onnx/<file>
"""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vggt_deploy import typed_json
from vggt_deploy.errors import BundleError
from vggt_deploy.manifest import MANIFEST_NAME, is_plain_name
from vggt_deploy.records import FramesRange, Manifest, ModelRecord
from vggt_deploy.ship.accuracy import AccuracyCard
from vggt_deploy.ship.contract import Contract

SCHEMA = 1
ENGINES = "engines"
ONNX = "onnx"
MAX_INDEX_BYTES = 32 * 2**20
MAX_MEMBERS = 1000
MAX_PATH_LENGTH = 100  # what a tar header holds in one block
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class MemberRecord:
    """One file of the bundle: where, how long, and its SHA-256."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class EngineEntry:
    """One engine, as its manifest has it; see `records.EngineRecord` for the fields.

    name: folder in the bundle, engines/<name>
    device_profile, rebuild: the recipe: text of the device profile, and the command
    """

    name: str
    runtime: str
    runtime_version: str
    device: str
    device_profile: str
    compute_capabilities: tuple[str, ...]
    hardware_compatibility: str
    version_compatible: bool
    profiles: tuple[FramesRange, ...]
    stripped: bool
    engine_bytes: int
    weights_bytes: int | None
    activation_bytes: tuple[int, ...] | None
    built_on: dict[str, str]
    rebuild: str


@dataclass(frozen=True)
class Index:
    """All of index.json.

    variant: scheme and activations, "int8_pc_sym+static"
    onnx: whether onnx/ holds the artifact that the engines were built from
    accuracy: None = not measured
    signed_by: SHA-256 of the raw public key, or None for an unsigned bundle
    """

    schema: int
    tool_version: str
    model: ModelRecord
    variant: str
    precision: str
    height: int
    width: int
    contract: Contract
    engines: tuple[EngineEntry, ...]
    onnx: bool
    accuracy: AccuracyCard | None
    signed_by: str | None
    files: tuple[MemberRecord, ...]

    def engine(self, name: str) -> EngineEntry:
        """The engine of that name, or a BundleError that lists them."""
        for entry in self.engines:
            if entry.name == name:
                return entry
        names = ", ".join(entry.name for entry in self.engines) or "none"
        raise BundleError(f"the bundle has no engine {name!r}", f"it holds: {names}")


def engine_entry(name: str, manifest: Manifest) -> EngineEntry:
    """What the index says of an engine; a reader compares it with the manifest inside."""
    engine = manifest.engine
    if engine is None:
        raise BundleError(
            f"{name} is an artifact of kind {manifest.kind}, not an engine",
            "give the folder that `vggt-deploy build` wrote; the ONNX goes in with --with-onnx",
        )
    return EngineEntry(
        name=name,
        runtime=engine.runtime,
        runtime_version=engine.runtime_version,
        device=engine.device,
        device_profile=engine.device_profile,
        compute_capabilities=engine.compute_capabilities,
        hardware_compatibility=engine.hardware_compatibility,
        version_compatible="VERSION_COMPATIBLE" in engine.flags,
        profiles=engine.profiles,
        stripped=engine.stripped,
        engine_bytes=manifest.files[engine.file].bytes,
        weights_bytes=engine.weights_bytes,
        activation_bytes=engine.activation_bytes,
        built_on=engine.built_on,
        rebuild=f"vggt-deploy rebuild BUNDLE --device {name} -o ENGINE",
    )


def to_json(index: Index) -> bytes:
    """The bytes of index.json: what is hashed and signed."""
    text = json.dumps(dataclasses.asdict(index), indent=1, allow_nan=False, ensure_ascii=False)
    return (text + "\n").encode("utf-8")


def from_json(data: bytes, source: Path) -> Index:
    """Parse and check index.json; `source` is the bundle, for messages."""
    refuse = partial(_malformed, source)
    try:
        value = typed_json.parse(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise refuse(f"index.json is not JSON ({error})") from error
    if not isinstance(value, dict) or type(value.get("schema")) is not int:
        raise refuse("index.json has no schema number")
    _check_schema(value["schema"], source)
    index = typed_json.decode(Index, value, "index", refuse)
    assert isinstance(index, Index)
    _check(index, source)
    return index


def _check_schema(schema: int, source: Path) -> None:
    if schema < SCHEMA:
        raise BundleError(
            f"{source} has bundle schema {schema}, older than {SCHEMA}, which this version reads",
            "make the bundle again with this version of vggt-deploy",
        )
    if schema > SCHEMA:
        raise BundleError(
            f"{source} has bundle schema {schema}, newer than {SCHEMA}, which this version reads",
            "upgrade vggt-deploy on this device",
        )


def _check(index: Index, source: Path) -> None:
    if len(index.files) > MAX_MEMBERS:
        raise _malformed(source, f"it lists {len(index.files)} files, at most {MAX_MEMBERS} go in")
    seen: set[str] = set()
    for member in index.files:
        _check_path(member.path, source)
        # Two names that differ in case alone are one file on some systems.
        if member.path.casefold() in seen:
            raise BundleError(
                f"{source} lists {member.path!r} twice",
                "do not use this bundle: it was made to show one file and unpack another",
            )
        seen.add(member.path.casefold())
        if member.bytes < 0 or not _SHA256.fullmatch(member.sha256):
            raise _malformed(source, f"size or SHA-256 of {member.path} makes no sense")
    paths = {member.path for member in index.files}
    folders = {path.rpartition("/")[0] for path in paths}
    expected = {f"{ENGINES}/{entry.name}" for entry in index.engines} | (
        {ONNX} if index.onnx else set()
    )
    if len(index.engines) != len({entry.name for entry in index.engines}):
        raise _malformed(source, "two engines have the same name")
    if folders != expected or not expected:
        raise _malformed(source, f"its folders are {sorted(folders)}, its parts {sorted(expected)}")
    for folder in folders:
        if f"{folder}/{MANIFEST_NAME}" not in paths:
            raise _malformed(source, f"{folder} has no {MANIFEST_NAME}")


def _check_path(path: str, source: Path) -> None:
    parts = path.split("/")
    if path.startswith("/") or "\\" in path or ".." in parts or ":" in path:
        raise BundleError(
            f"{source} lists the file {path!r}, which reaches outside the bundle's folder",
            "do not use this bundle: it was made to overwrite files of yours",
        )
    inside = (len(parts) == 3 and parts[0] == ENGINES) or (len(parts) == 2 and parts[0] == ONNX)
    plain = all(is_plain_name(part) for part in parts[1:])
    if not (inside and plain and len(path) <= MAX_PATH_LENGTH):
        raise _malformed(source, f"{path!r} is no place for a file of a bundle")


def _malformed(source: Path, what: Any) -> BundleError:
    return BundleError(
        f"{source} is not a bundle of this version: {what}",
        "it was edited or damaged: copy it again, or make it again",
    )
