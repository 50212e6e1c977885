"""Names in archives from elsewhere: which may become files, and which fall together on some disks.

Raises:
    ArchiveError: from every function, for a name that may not.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

from vggt_deploy.errors import DeployError

_MAX_PART = 255  # bytes of one component: what Linux's file systems take
# A quarter of Linux's longest path: the folder that it is unpacked into needs some of that too.
_MAX_NAME = 1024
_MAX_PARTS = 32
_WINDOWS_DRIVE = re.compile(r"[A-Za-z]:")


class ArchiveError(DeployError):
    """An archive is damaged, holds what must not be unpacked, or can't be read by py7zr.

    whole: the archive may be as its publisher made it, only that it can't be read here.
    """

    def __init__(self, message: str, fix: str, *, whole: bool = False) -> None:
        super().__init__(message, fix)
        self.whole = whole


def safe_name(name: str, archive: Path) -> str:
    """`name` without `.` and empty components, if it stays below the folder it is unpacked into."""
    why = None
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if not parts:
        why = "an empty name"
    elif len(parts) > _MAX_PARTS or len(name.encode("utf-8", "surrogatepass")) > _MAX_NAME:
        why = f"a name of more than {_MAX_NAME} bytes or {_MAX_PARTS} parts"
    elif name.startswith("/") or _WINDOWS_DRIVE.match(name):
        why = "an absolute name"
    elif ".." in parts:
        why = "a name that climbs out of its folder"
    elif "\\" in name or ":" in name:
        why = "a name with a Windows separator"
    elif any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        why = "a name with control characters"
    elif any(len(part.encode()) > _MAX_PART for part in parts):
        why = "a name too long for a file"
    if why is not None:
        raise refused(archive, f"{why}: {name[:200]!r}")
    return "/".join(parts)


def refuse_clashes(files: Iterable[str], folders: Iterable[str], archive: Path) -> None:
    """Every name once, whatever the disk thinks of case and Unicode; no file is a folder too."""
    spelled: dict[str, str] = {}
    kinds: dict[str, str] = {}

    def take(name: str, kind: str) -> None:
        key = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
        if spelled.setdefault(key, name) != name:
            raise refused(archive, f"{spelled[key]!r} and {name!r}, which some disks take for one")
        if kind == "file" and key in kinds:
            raise refused(archive, f"{name!r} twice")
        if kinds.setdefault(key, kind) != kind:
            raise refused(archive, f"{name!r} as a file and as a folder")

    for name in folders:
        take(name, "folder")
        _take_parents(name, take)
    for name in files:
        take(name, "file")
        _take_parents(name, take)


def _take_parents(name: str, take: Callable[[str, str], None]) -> None:
    for parent in PurePosixPath(name).parents:
        if parent.name:
            take(str(parent), "folder")


def refused(archive: Path, what: str) -> ArchiveError:
    """That an archive is not unpacked for what it holds."""
    return ArchiveError(
        f"{archive.name} is not unpacked: it holds {what}",
        "do not use this archive; fetch it from its publisher",
    )
