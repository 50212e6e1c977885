"""7-Zip archives for tests, honest ones and such as py7zr itself would refuse to write."""

from __future__ import annotations

import io
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path

import py7zr

# The upper half of a member's attributes is the Unix mode if this bit is set.
UNIX = 0x8000
DIRECTORY = 0x10


def write_archive(
    path: Path,
    files: Mapping[str, bytes],
    *,
    modes: Mapping[str, int] | None = None,
    folders: tuple[str, ...] = (),
    password: str | None = None,
) -> Path:
    """Write `files` by name, whatever the names are; `modes` gives some of them a Unix mode.

    A file with the mode of a link holds the link's target.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Copying is quick, and its bytes can be damaged where a test wants them to be.
    filters = [{"id": py7zr.FILTER_COPY}] if password is None else None
    with py7zr.SevenZipFile(path, "w", filters=filters, password=password) as archive:
        for index, (name, body) in enumerate(files.items()):
            archive.writef(io.BytesIO(body), f"placeholder{index}")
            _set(archive, name, (modes or {}).get(name))
        for index, name in enumerate(folders):
            with tempfile.TemporaryDirectory() as empty:
                archive.write(Path(empty), f"folder{index}")
            _set(archive, name, None)
    return path


def _set(archive: py7zr.SevenZipFile, name: str, mode: int | None) -> None:
    """Rename the last member, and give it a mode, in the header that is not written yet."""
    entry = archive.header.files_info.files[-1]
    entry["filename"] = name
    if mode is not None:
        kind = DIRECTORY if stat.S_ISDIR(mode) else 0
        entry["attributes"] = UNIX | kind | (mode << 16)
