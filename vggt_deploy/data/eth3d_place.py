"""The files of an archive to their places in a scene's folder, none of them half written.

They are unpacked beside the folder and renamed into it; where a part of it is a link to another
disk they are copied to that disk first and renamed there.
"""

from __future__ import annotations

import errno
import os
import shutil
import zlib
from collections.abc import Container, Mapping
from pathlib import Path

from vggt_deploy.artifact import require_free_space
from vggt_deploy.data.archives import Contents, unpack
from vggt_deploy.data.download import sync
from vggt_deploy.errors import ArtifactError
from vggt_deploy.progress import Progress

_CHUNK = 1 << 20
_MOVING = ".eth3d.moving"


def unpack_into(
    folder: Path,
    path: Path,
    contents: Contents,
    placed: Mapping[str, str],
    mine: Container[str],
    progress: Progress,
) -> None:
    """Unpack the archive `path`; `placed` gives a file's place in `folder` by its name in there.

    mine: places in `folder` whose files may be replaced; any other file there stays as it is.

    Raises:
        ArchiveError: the archive is damaged.
        ArtifactError: a file of something else is in the way, or too little space.
    """
    # Beside what `folder` really is: a scene may be a link to another disk.
    beside = folder.resolve()
    temporary = beside.parent / f".{path.stem}.unpacking"
    if temporary.exists():
        shutil.rmtree(temporary)  # of a killed run; the lock is the caller's
    _require_space(contents, placed, folder, temporary)
    _check_places(contents, placed, folder, mine)
    try:
        temporary.mkdir(parents=True)
        unpack(path, contents, temporary, stage=f"{path.stem} unpack", progress=progress)
        for member in contents.files:
            target = folder / placed[member.name]
            target.parent.mkdir(parents=True, exist_ok=True)
            _move(temporary / member.name, target)
        for touched in {(folder / placed[member.name]).parent for member in contents.files}:
            sync(touched)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _move(source: Path, target: Path) -> None:
    """Rename, over disks too; `target` is there whole or not at all."""
    try:
        source.replace(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        moving = target.with_name(_MOVING)
        moving.unlink(missing_ok=True)  # of a killed run
        try:
            shutil.copyfile(source, moving)
            sync(moving)
            moving.replace(target)
        finally:
            moving.unlink(missing_ok=True)


def _require_space(
    contents: Contents, placed: Mapping[str, str], folder: Path, temporary: Path
) -> None:
    """For all files on the disk of `temporary`, and on any other for those that go there."""
    here = _disk_of(temporary)
    needed = {here: contents.bytes}
    place_on = {here: temporary}
    for member in contents.files:
        target = folder / placed[member.name]
        disk = _disk_of(target.parent)
        if disk != here:
            needed[disk] = needed.get(disk, 0) + member.bytes
            place_on.setdefault(disk, target.parent)
    for disk, bytes_ in needed.items():
        require_free_space(place_on[disk], bytes_)


def _disk_of(path: Path) -> int:
    """Of a folder that need not exist yet."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path.stat().st_dev


def _check_places(
    contents: Contents, placed: Mapping[str, str], folder: Path, mine: Container[str]
) -> None:
    """Refuse to write over what did not come from this archive and is not the same."""
    for member in contents.files:
        relative = placed[member.name]
        target = folder / relative
        if not os.path.lexists(target) or relative in mine:
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


def _crc32_of(path: Path) -> int:
    crc32 = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            crc32 = zlib.crc32(chunk, crc32)
    return crc32
