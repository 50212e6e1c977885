"""ETH3D's scenes from its archives into one folder, each archive fetched and unpacked once.

    <output>/ETH3D_LICENSE.txt              licence and citation
    <output>/archives/NAME.7z(.part)        while it is fetched; afterwards with keep_archives alone
    <output>/.NAME.unpacking/               while it is unpacked
    <output>/<scene>/...                    the data, in ETH3D's layout
    <output>/<scene>/.eth3d.json            what it was unpacked from (data.eth3d_record)

An archive that the record names is not fetched again as long as its files are there with their
sizes. One that lies in `archives` (put there by hand, or kept) is used instead of a download.
The record is written last, so whatever a killed run leaves is done again or gone on with: a part of
a download is continued, a finished archive unpacked from the beginning.

A file that lies where one is to go and is not the same (by its CRC-32) is never replaced, unless
the record says that it came from there.
"""

from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from vggt_deploy.artifact import locked, require_free_space
from vggt_deploy.data.archives import ArchiveError, Contents, load_py7zr, read_contents, unpack
from vggt_deploy.data.download import Patience, download, sha256_of, sync
from vggt_deploy.data.eth3d_archives import (
    BASE_URL,
    DISTORTED_KINDS,
    KNOWN,
    LICENCE,
    LICENCE_NAME,
    Kind,
    Known,
    archive_name,
    check_kinds,
    check_scenes,
    least_unpacked_bytes,
    place,
)
from vggt_deploy.data.eth3d_layout import (
    DEPTH,
    DISTORTED,
    DISTORTED_CALIBRATION,
    IMAGES,
    PICTURES,
)
from vggt_deploy.data.eth3d_record import (
    SCHEMA,
    ArchiveRecord,
    FileRecord,
    SceneRecord,
    damage,
    read_record,
    write_record,
)
from vggt_deploy.data.http import checked_url
from vggt_deploy.errors import ArtifactError
from vggt_deploy.progress import Progress, silent

ARCHIVES = "archives"
_CHUNK = 1 << 20
_LISTED = 4

Origin = Literal["downloaded", "archive was there", "there already"]


@dataclass(frozen=True)
class FetchedArchive:
    """One archive, and what was done for it by this call."""

    name: str
    scene: str
    kind: Kind
    origin: Origin
    bytes: int
    sha256: str
    sha256_known: bool
    files: int
    unpacked_bytes: int


@dataclass(frozen=True)
class EthFetched:
    """All archives that were asked for are unpacked. notes: what a user should know, in words."""

    output: Path
    licence: Path
    archives: tuple[FetchedArchive, ...]
    notes: tuple[str, ...]

    @property
    def scenes(self) -> tuple[Path, ...]:
        """Folders of the scenes, in the order asked for."""
        return tuple(dict.fromkeys(self.output / archive.scene for archive in self.archives))


@dataclass(frozen=True)
class _Run:
    output: Path
    base_url: str
    keep: bool
    progress: Progress
    patience: Patience
    notes: list[str]


@dataclass(frozen=True)
class _Obtained:
    """An archive that is whole as far as can be known before it is read."""

    path: Path
    sha256: str
    origin: Origin
    url: str | None


def fetch_eth3d(
    scenes: Sequence[str],
    output: Path,
    *,
    kinds: Sequence[str] = (),
    base_url: str = BASE_URL,
    keep_archives: bool = False,
    progress: Progress = silent,
    patience: Patience | None = None,
) -> EthFetched:
    """Fetch and unpack training scenes (`all` alone: the 13): undistorted pictures, and `kinds`.

    Depth and masks are of use with the calibration of the distorted pictures only: where none of
    the archives asked for brings it, `jpg` is fetched as well.

    Raises:
        UsageError: a scene or kind that ETH3D does not have; nothing was fetched.
        DownloadError, ArchiveError: an archive can't be fetched, is not the known one, is damaged
            or unsafe. What is whole stays.
        ArtifactError: another process writes `output`, too little space, a file in the way.
    """
    names, wanted = check_scenes(scenes), check_kinds(kinds)
    load_py7zr()  # missing, it is said now and not after a download
    output = output.expanduser().absolute()
    run = _Run(
        output=output,
        base_url=checked_url(base_url.rstrip("/")),
        keep=keep_archives,
        progress=progress,
        patience=patience or Patience(),
        notes=[],
    )
    with locked(output), _disk_errors(output):
        output.mkdir(parents=True, exist_ok=True)
        licence = output / LICENCE_NAME
        licence.write_text(LICENCE, "utf-8")
        _require_space(run, names, wanted)
        fetched = [archive for scene in names for archive in _scene(run, scene, wanted)]
        _remove_empty(output / ARCHIVES)
    return EthFetched(output, licence, tuple(fetched), tuple(run.notes))


def _scene(run: _Run, scene: str, wanted: Sequence[Kind]) -> list[FetchedArchive]:
    """All archives of one scene; the one with the distorted pictures last, if it is needed."""
    fetched = [_archive(run, scene, kind) for kind in wanted]
    folder = run.output / scene
    if (
        not set(wanted).isdisjoint(DISTORTED_KINDS)
        and not (folder / DISTORTED_CALIBRATION).is_dir()
    ):
        fetched.append(_archive(run, scene, "jpg"))
    pictures, depths = _names(folder / IMAGES / PICTURES), _names(folder / DEPTH / DISTORTED)
    if "depth" in wanted and (without := sorted(pictures - depths)):
        listed = ", ".join(without[:_LISTED]) + (", ..." if len(without) > _LISTED else "")
        run.notes.append(
            f"{scene}: no depth for {len(without)} of {len(pictures)} pictures ({listed})"
        )
    return fetched


def _archive(run: _Run, scene: str, kind: Kind) -> FetchedArchive:
    """Make sure that one archive is unpacked, doing as little as is needed."""
    name, folder = archive_name(scene, kind), run.output / scene
    record = read_record(folder, run.notes.append)
    before = None if record is None else record.archives.get(name)
    if before is not None and (why := damage(folder, before)) is None:
        return _fetched(name, scene, kind, before, "there already")
    if before is not None:
        run.notes.append(f"{name}: {why}; done again")
    obtained = _obtain(run, scene, kind)
    path = obtained.path
    try:
        contents = read_contents(path)
        placed = place(contents, scene, kind)
        _unpack(run, path, contents, placed, folder, before)
    except ArchiveError as error:
        if error.whole:
            raise
        path.unlink()
        raise ArchiveError(f"{error.message}; the archive was deleted", error.fix) from error
    known = KNOWN.get(name)
    after = ArchiveRecord(
        url=obtained.url,
        bytes=path.stat().st_size,
        sha256=obtained.sha256,
        sha256_known=known is not None and known.sha256 is not None,
        unpacked=datetime.now(UTC).isoformat(timespec="seconds"),
        files={placed[m.name]: FileRecord(m.bytes, f"{m.crc32:08x}") for m in contents.files},
    )
    archives = {} if record is None else record.archives
    write_record(folder, SceneRecord(SCHEMA, scene, "CC BY-NC-SA 4.0", {**archives, name: after}))
    if not run.keep:
        path.unlink()
    return _fetched(name, scene, kind, after, obtained.origin)


def _obtain(run: _Run, scene: str, kind: Kind) -> _Obtained:
    """The archive in `archives`, fetched if it is not there or not the known one."""
    name = archive_name(scene, kind)
    known = KNOWN.get(name, Known(0, None))
    path = run.output / ARCHIVES / f"{name}.7z"
    path.parent.mkdir(exist_ok=True)
    if path.is_file():
        size = path.stat().st_size
        sha256 = sha256_of(path, stage=f"{name} hash", progress=run.progress)
        if known.bytes in (0, size) and known.sha256 in (None, sha256):
            return _Obtained(path, sha256, "archive was there", None)
        run.notes.append(
            f"{name}: what lay in {ARCHIVES} ({size} bytes, SHA-256 {sha256}) is not the known "
            "archive; fetched again"
        )
    downloaded = download(
        f"{run.base_url}/{name}.7z",
        path,
        expected_bytes=known.bytes or None,
        expected_sha256=known.sha256,
        stage=name,
        progress=run.progress,
        patience=run.patience,
        beside_bytes=lambda total: least_unpacked_bytes(scene, kind, total),
    )
    return _Obtained(path, downloaded.sha256, "downloaded", downloaded.url)


def _unpack(
    run: _Run,
    path: Path,
    contents: Contents,
    placed: dict[str, str],
    folder: Path,
    before: ArchiveRecord | None,
) -> None:
    """Unpack beside `folder`, then rename every file to its place in it."""
    # Beside what `folder` really is: a scene may be a link to another disk.
    beside = folder.resolve()
    temporary = beside.parent / f".{path.stem}.unpacking"
    if temporary.exists():
        shutil.rmtree(temporary)  # of a killed run; the lock is ours
    require_free_space(beside, contents.bytes)
    _check_places(contents, placed, folder, before)
    try:
        temporary.mkdir(parents=True)
        unpack(path, contents, temporary, stage=f"{path.stem} unpack", progress=run.progress)
        for member in contents.files:
            target = folder / placed[member.name]
            target.parent.mkdir(parents=True, exist_ok=True)
            (temporary / member.name).replace(target)
        for touched in {(folder / placed[member.name]).parent for member in contents.files}:
            sync(touched)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_places(
    contents: Contents, placed: dict[str, str], folder: Path, before: ArchiveRecord | None
) -> None:
    """Refuse to write over what did not come from this archive and is not the same."""
    for member in contents.files:
        relative = placed[member.name]
        target = folder / relative
        if not os.path.lexists(target) or (before is not None and relative in before.files):
            continue
        same = (
            target.is_file()
            and target.stat().st_size == member.bytes
            and _crc32_of(target) == member.crc32
        )
        if not same:
            raise ArtifactError(
                f"{target} is in the way: it is not the file that the archive holds",
                "move it away if it may go, or give another folder with -o DIR",
            )


def _require_space(run: _Run, scenes: Sequence[str], kinds: Sequence[Kind]) -> None:
    """For what is surely needed, before anything is fetched: of archives of known length."""
    unpacked, missing = 0, [0]
    for scene in scenes:
        record = read_record(run.output / scene, lambda note: None)
        for kind in kinds:
            name = archive_name(scene, kind)
            if record is not None and name in record.archives:
                continue
            known = KNOWN.get(name, Known(0, None))
            unpacked += least_unpacked_bytes(scene, kind, known.bytes)
            path = run.output / ARCHIVES / f"{name}.7z"
            here = max(_size(path), _size(path.with_name(f"{path.name}.part")))
            missing.append(max(known.bytes - here, 0))
    require_free_space(run.output, unpacked + (sum(missing) if run.keep else max(missing)))


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _fetched(
    name: str, scene: str, kind: Kind, record: ArchiveRecord, origin: Origin
) -> FetchedArchive:
    return FetchedArchive(
        name=name,
        scene=scene,
        kind=kind,
        origin=origin,
        bytes=record.bytes,
        sha256=record.sha256,
        sha256_known=record.sha256_known,
        files=len(record.files),
        unpacked_bytes=sum(file.bytes for file in record.files.values()),
    )


@contextmanager
def _disk_errors(output: Path) -> Iterator[None]:
    """What the disk says no to, with what to do about it."""
    try:
        yield
    except OSError as error:
        raise ArtifactError(
            f"can't write {error.filename or output} ({error.strerror or error})",
            "see that there is space and that you may write there, or give another -o DIR; run it "
            "again: what is whole is kept",
        ) from error


def _remove_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def _crc32_of(path: Path) -> int:
    crc32 = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            crc32 = zlib.crc32(chunk, crc32)
    return crc32
