"""`.eth3d.json`: what a scene's folder was unpacked from, so that nothing is fetched twice.

Every file stands there with its size and CRC-32. Looking at a folder compares sizes, which finds
what is missing or cut; the CRC-32 is for those who want to read gigabytes to be sure.

`NAME.7z.downloaded` beside an archive says that it was downloaded here and may be deleted.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vggt_deploy.data.download import Downloaded, sync
from vggt_deploy.typed_json import decode, parse

RECORD = ".eth3d.json"
SCHEMA = 1


@dataclass(frozen=True)
class FileRecord:
    """A file that came out of an archive; crc32 in 8 hexadecimal digits."""

    bytes: int
    crc32: str


@dataclass(frozen=True)
class ArchiveRecord:
    """An archive that was unpacked. url: where it was fetched; None: it lay in `archives`.

    sha256_known: the SHA-256 was compared with a stated one; otherwise it is only what was found.
    files: path below the scene's folder -> what lies there.
    """

    url: str | None
    bytes: int
    sha256: str
    sha256_known: bool
    unpacked: str  # when, UTC
    files: dict[str, FileRecord]


@dataclass(frozen=True)
class SceneRecord:
    """`.eth3d.json`: the archives that a scene's folder was made from, by name."""

    schema: int
    scene: str
    licence: str
    archives: dict[str, ArchiveRecord]


def read_record(folder: Path, note: Callable[[str], None]) -> SceneRecord | None:
    """What is in `folder` as far as its record says; None without one, or with a damaged one."""
    path = folder / RECORD
    try:
        value = parse(path.read_text("utf-8"))
        record = decode(SceneRecord, value, "record", ValueError)
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        note(f"{path} is damaged ({error}): its archives are done again")
        return None
    if not isinstance(record, SceneRecord) or record.schema != SCHEMA:
        note(f"{path} is of another version: its archives are done again")
        return None
    return record


def write_record(folder: Path, record: SceneRecord) -> None:
    """Whole or not at all, and on the disk when this returns."""
    temporary = folder / f"{RECORD}.tmp"
    temporary.write_text(json.dumps(dataclasses.asdict(record), indent=1) + "\n", "utf-8")
    sync(temporary)
    temporary.replace(folder / RECORD)
    sync(folder)


def damage(folder: Path, record: ArchiveRecord) -> str | None:
    """The first file that is missing or has another size; None if all are there."""
    for relative, expected in record.files.items():
        path = folder / relative
        if not path.is_file():
            return f"{relative} is missing"
        if path.stat().st_size != expected.bytes:
            return f"{relative} has {path.stat().st_size} bytes, not {expected.bytes}"
    return None


@dataclass(frozen=True)
class Marker:
    """An archive that was downloaded, as it was then; another file of its name is not it."""

    url: str
    bytes: int
    sha256: str


def marker_of(archive: Path) -> Path:
    """Where the marker of an archive lies."""
    return archive.with_name(f"{archive.name}.downloaded")


def write_marker(archive: Path, downloaded: Downloaded) -> None:
    """On the disk when this returns."""
    marker = Marker(downloaded.url, downloaded.bytes, downloaded.sha256)
    path = marker_of(archive)
    path.write_text(json.dumps(dataclasses.asdict(marker), indent=1) + "\n", "utf-8")
    sync(path)


def read_marker(archive: Path) -> Marker | None:
    """None without one or with a damaged one: the archive is then taken for someone's own."""
    try:
        value = parse(marker_of(archive).read_text("utf-8"))
        marker = decode(Marker, value, "marker", ValueError)
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return marker if isinstance(marker, Marker) else None
