"""ETH3D's scenes from its archives into one folder, each archive fetched and unpacked once.

    <output>/ETH3D_LICENSE.txt              licence and citation
    <output>/archives/NAME.7z(.part)        while it is fetched; afterwards with keep_archives alone
    <output>/archives/NAME.7z.downloaded    says that this tool fetched it and may delete it
    <output>/.NAME.unpacking/               while it is unpacked
    <output>/<scene>/...                    the data, in ETH3D's layout
    <output>/<scene>/.eth3d.json            what it was unpacked from (data.eth3d_record)

An archive that the record names is not fetched again as long as its files are there with their
sizes. One that lies in `archives` (put there by hand, or kept) is used instead of a download, and
stays: what is deleted is what was downloaded and not kept.
The record is written last, so whatever a killed run leaves is done again or gone on with: a part of
a download is continued, a finished archive unpacked from the beginning.

A file that lies where one is to go and is not the same (by its CRC-32) is never replaced, unless
the record says that it came from there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from vggt_deploy.artifact import locked, require_free_space
from vggt_deploy.data.archives import SIGNATURE, ArchiveError, load_py7zr, read_contents
from vggt_deploy.data.disk import disk_fix
from vggt_deploy.data.download import Patience, download, sha256_of
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
from vggt_deploy.data.eth3d_place import unpack_into
from vggt_deploy.data.eth3d_record import (
    SCHEMA,
    ArchiveRecord,
    FileRecord,
    SceneRecord,
    damage,
    marker_of,
    read_marker,
    read_record,
    write_marker,
    write_record,
)
from vggt_deploy.data.http import checked_base
from vggt_deploy.errors import ArtifactError
from vggt_deploy.progress import Progress, silent

ARCHIVES = "archives"
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
    """An archive that is whole as far as can be known before it is read.

    url: where this tool downloaded it, now or before; None: it is someone else's.
    """

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
        base_url=checked_base(base_url),
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
        _clear_after_killed_run(run, _archive_path(run, name), before)
        return _fetched(name, scene, kind, before, "there already")
    if before is not None:
        run.notes.append(f"{name}: {why}; done again")
    obtained = _obtain(run, scene, kind)
    path = obtained.path
    try:
        contents = read_contents(path)
        placed = place(contents, scene, kind)
        mine = () if before is None else before.files
        unpack_into(folder, path, contents, placed, mine, run.progress)
    except ArchiveError as error:
        if error.whole:
            raise
        raise _unusable(obtained, error) from error
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
    if run.keep:
        marker_of(path).unlink(missing_ok=True)  # from now on no run deletes it
    elif obtained.url is not None:
        _delete(path)
    else:
        run.notes.append(f"{name}: {path} stays, this command did not download it")
    return _fetched(name, scene, kind, after, obtained.origin)


def _unusable(obtained: _Obtained, error: ArchiveError) -> ArchiveError:
    """For a damaged or unsafe archive, which goes if this tool downloaded it."""
    if obtained.url is not None:
        _delete(obtained.path)
        return ArchiveError(f"{error.message}; the archive was deleted", error.fix)
    return ArchiveError(
        f"{error.message}; {obtained.path} stays, this command did not download it",
        f"move it away to have it downloaded; {error.fix}",
    )


def _delete(path: Path) -> None:
    """A downloaded archive; its marker last, or a killed run would leave it without one."""
    path.unlink(missing_ok=True)
    marker_of(path).unlink(missing_ok=True)


def _clear_after_killed_run(run: _Run, path: Path, record: ArchiveRecord) -> None:
    """Delete a downloaded archive that was unpacked by a run that ended before it did so."""
    marker = read_marker(path)
    if run.keep or marker is None:
        return
    if not path.is_file():
        marker_of(path).unlink()
    elif (
        (marker.bytes, marker.sha256) == (record.bytes, record.sha256)
        and path.stat().st_size == record.bytes
        and sha256_of(path) == record.sha256
    ):
        _delete(path)


def _archive_path(run: _Run, name: str) -> Path:
    return run.output / ARCHIVES / f"{name}.7z"


def _obtain(run: _Run, scene: str, kind: Kind) -> _Obtained:
    """The archive in `archives`, fetched if it is not there or not the known one."""
    name = archive_name(scene, kind)
    known = KNOWN.get(name, Known(0, None))
    path = _archive_path(run, name)
    path.parent.mkdir(exist_ok=True)
    if path.is_file():
        size = path.stat().st_size
        sha256 = sha256_of(path, stage=f"{name} hash", progress=run.progress)
        marker = read_marker(path)
        url = marker.url if marker is not None and marker.sha256 == sha256 else None
        if known.bytes in (0, size) and known.sha256 in (None, sha256):
            return _Obtained(path, sha256, "archive was there", url)
        if url is None:
            raise ArtifactError(
                f"{path} ({size} bytes, SHA-256 {sha256}) is not the known archive, and this "
                "command did not download it",
                "move it away to have the known one downloaded",
            )
        run.notes.append(
            f"{name}: what lay in {ARCHIVES} ({size} bytes, SHA-256 {sha256}) is not the known "
            "archive; fetched again"
        )
    downloaded = download(
        f"{run.base_url}/{name}.7z",
        path,
        expected_bytes=known.bytes or None,
        expected_sha256=known.sha256,
        signature=SIGNATURE,
        stage=name,
        progress=run.progress,
        patience=run.patience,
        beside_bytes=lambda total: least_unpacked_bytes(scene, kind, total),
        whole=lambda downloaded: write_marker(path, downloaded),
    )
    return _Obtained(path, downloaded.sha256, "downloaded", downloaded.url)


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
            path = _archive_path(run, name)
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
            disk_fix(error),
        ) from error


def _remove_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()
