"""7-Zip archives from elsewhere, unpacked so that nothing in them is trusted.

    contents = read_contents(path)       # every name and size checked, nothing written
    unpack(path, contents, folder)       # into a new folder, every file against its CRC-32

What is refused before a byte is written: absolute names, drive letters, `..`, backslashes and
control characters, names of more than 1024 bytes or 32 parts; links, devices and anything else that
is neither file nor folder; two names that are one after normalisation (Unicode form, upper and
lower case: a disk of Windows or macOS makes one file of them); a file where another name needs a
folder; files without a checksum; more files or bytes than the bounds; encrypted archives. py7zr
decompresses; where each byte goes is decided here: files are created new, without following links,
with ordinary permissions.

Raises:
    ArchiveError: from every function, for an archive that is damaged, unsafe or not understood.
"""

from __future__ import annotations

import lzma
import os
import stat
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from vggt_deploy.data.archive_names import ArchiveError, refuse_clashes, refused, safe_name
from vggt_deploy.data.disk import disk_fix
from vggt_deploy.errors import ArtifactError
from vggt_deploy.progress import Progress, silent

MAX_FILES = 100_000
MAX_BYTES = 200 * 10**9
SIGNATURE = b"7z\xbc\xaf\x27\x1c"
# Signature, version and a checksum; then where the header lies behind this one, and its length.
_START = struct.Struct("<6s2sIQQI")
__all__ = [
    "MAX_BYTES",
    "MAX_FILES",
    "SIGNATURE",
    "ArchiveError",
    "Contents",
    "Member",
    "load_py7zr",
    "read_contents",
    "safe_name",
    "unpack",
]

_AGAIN = "fetch it again; if it is the same again, the copy on the server is damaged"


@dataclass(frozen=True)
class Member:
    """A file of an archive: its name, relative and with `/`, its size, and its CRC-32."""

    name: str
    bytes: int
    crc32: int


@dataclass(frozen=True)
class Contents:
    """Files of an archive in its order, and the folders that it names."""

    files: tuple[Member, ...]
    folders: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """Of all files, unpacked."""
        return sum(member.bytes for member in self.files)


def read_contents(
    path: Path, *, max_files: int = MAX_FILES, max_bytes: int = MAX_BYTES
) -> Contents:
    """What an archive holds, if all of it may be unpacked."""
    with _opened(path) as archive:
        if archive.needs_password():
            raise _encrypted(path)
        entries = list(archive.files)
        if len(entries) > max_files:
            raise refused(path, f"{len(entries)} entries, more than {max_files}")
        files, folders = [], []
        for entry in entries:
            name = safe_name(entry.filename, path)
            if entry.is_symlink or entry.is_junction:
                raise refused(path, f"the link {name!r}")
            if entry.is_directory:
                folders.append(name)
            elif entry.st_fmt in (None, 0, stat.S_IFREG):  # no mode: made on Windows
                files.append(_member(entry, name, path))
            else:
                raise refused(path, f"{name!r}, which is neither file nor folder")
    contents = Contents(tuple(files), tuple(folders))
    refuse_clashes([member.name for member in files], folders, path)
    if contents.bytes > max_bytes:
        raise refused(path, f"{contents.bytes} bytes unpacked, more than {max_bytes}")
    if not files:
        raise ArchiveError(f"{path.name} holds no files", _AGAIN)
    return contents


def unpack(
    path: Path,
    contents: Contents,
    folder: Path,
    *,
    stage: str = "unpack",
    progress: Progress = silent,
) -> None:
    """Write the files of `contents`, as `read_contents` gave it, below `folder`, which is empty.

    Every file is compared with its CRC-32 and synced. What was written before an error stays: the
    folder is a temporary one of the caller's.

    Raises:
        ArtifactError: the disk is full.
    """
    for name in contents.folders:
        (folder / name).mkdir(parents=True, exist_ok=True)
    sinks = _Sinks(folder, contents, stage, progress)
    with _opened(path) as archive, closing(sinks):
        try:
            with _translated(path):
                # py7zr asks the factory for a file by its path below `path`, and writes into that.
                archive.extractall(path=folder.absolute(), factory=sinks)
            sinks.finish()
        except OSError as error:
            raise ArtifactError(
                f"{path.name} can't be unpacked into {folder} ({error.strerror or error})",
                disk_fix(error),
            ) from error
    sinks.check_all(path)


def _member(entry: Any, name: str, path: Path) -> Member:
    if entry.emptystream or entry.uncompressed == 0:
        return Member(name, 0, 0)
    if entry.crc32 is None:
        raise refused(path, f"{name!r}, which has no checksum")
    return Member(name, int(entry.uncompressed), int(entry.crc32))


class _Sink:
    """One file being written: what py7zr calls a Py7zIO. Counts bytes and their CRC-32."""

    def __init__(self, file: BinaryIO, told: Callable[[int], None]) -> None:
        self.file = file
        self.bytes = 0
        self.crc32 = 0
        self._told = told

    def write(self, data: bytes | bytearray) -> int:
        self.file.write(data)
        self.bytes += len(data)
        self.crc32 = zlib.crc32(data, self.crc32)
        self._told(len(data))
        return len(data)

    def read(self, size: int | None = None) -> bytes:
        del size
        return b""

    def seek(self, offset: int, whence: int = 0) -> int:
        del whence
        return offset

    def flush(self) -> None:
        self.file.flush()

    def size(self) -> int:
        return self.bytes

    def close(self) -> None:
        if not self.file.closed:
            self.file.flush()
            os.fsync(self.file.fileno())
            self.file.close()


class _Sinks:
    """The files of one archive, each created once, one open at a time."""

    def __init__(self, folder: Path, contents: Contents, stage: str, progress: Progress) -> None:
        self._folder = folder.absolute()
        self._members = {str(self._folder / member.name): member for member in contents.files}
        self._total = contents.bytes
        self._stage = stage
        self._progress = progress
        self._done = 0
        self._open: _Sink | None = None
        self._written: dict[str, _Sink] = {}

    def create(self, filename: str) -> _Sink:
        """For py7zr, which names a file by its path below the folder."""
        self.finish()  # older releases of py7zr do not close
        member = self._members.get(str(Path(filename)))
        if member is None or member.name in self._written:
            raise ArchiveError(f"{filename} was not in the archive's list of files", _AGAIN)
        target = self._folder / member.name
        target.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
        self._open = _Sink(os.fdopen(os.open(target, flags, 0o666), "wb"), self._count)
        self._written[member.name] = self._open
        return self._open

    def _count(self, size: int) -> None:
        self._done += size
        self._progress(self._stage, self._done, self._total)

    def finish(self) -> None:
        """Bring the file that is open, if one is, onto the disk."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def close(self) -> None:
        """Leave the file that is open as it is: an error is on its way."""
        if self._open is not None:
            with suppress(OSError):  # what could not be written before can't be now
                self._open.file.close()
            self._open = None

    def check_all(self, path: Path) -> None:
        """Every file is there, as long as it was said to be, and of its CRC-32."""
        for member in self._members.values():
            sink = self._written.get(member.name)
            if sink is None or (sink.bytes, sink.crc32) != (member.bytes, member.crc32):
                raise ArchiveError(f"{path.name} is damaged: {member.name} is not whole", _AGAIN)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The archive as py7zr sees it."""
    py7zr = load_py7zr()
    with path.open("rb") as file:
        start = file.read(_START.size)
        if not start.startswith(SIGNATURE):
            raise ArchiveError(f"{path.name} is no 7-Zip archive", _AGAIN)
        if len(start) < _START.size or _end_of(start) > os.fstat(file.fileno()).st_size:
            raise ArchiveError(f"{path.name} is damaged: its end is missing", _AGAIN)
        file.seek(0)
        with _translated(path):
            # From an open file py7zr starts no threads, so that Ctrl-C ends it at once.
            archive = py7zr.SevenZipFile(file, "r")
        with archive:
            yield archive


def _end_of(start: bytes) -> int:
    """Bytes of an archive, by its first ones."""
    *_, offset, size, _ = _START.unpack(start)
    return _START.size + int(offset) + int(size)


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """What py7zr and its decoders raise, as an ArchiveError.

    A header made to be wrong can break its parser anywhere, hence the long list.
    """
    from py7zr.exceptions import ArchiveError as Py7zrError
    from py7zr.exceptions import PasswordRequired, UnsupportedCompressionMethodError

    try:
        yield
    except UnsupportedCompressionMethodError as error:
        raise ArchiveError(
            f"{path.name} is packed in a way that py7zr does not know ({error.message})",
            "unpack it with 7-Zip itself",
            whole=True,
        ) from error
    except PasswordRequired as error:
        raise _encrypted(path) from error
    except MemoryError as error:
        # Dictionaries of archives are up to gigabytes; a header made to be wrong is rare.
        raise ArchiveError(
            f"{path.name} needs more memory to be unpacked than there is",
            "close other programs, or use a machine with more memory; run it again: the archive is "
            "kept",
            whole=True,
        ) from error
    except (
        Py7zrError,
        lzma.LZMAError,
        zlib.error,
        struct.error,
        EOFError,
        LookupError,
        ValueError,
        TypeError,
        AttributeError,
        AssertionError,
        ArithmeticError,
        NotImplementedError,
    ) as error:
        raise ArchiveError(
            f"{path.name} is damaged ({type(error).__name__}: {error})", _AGAIN
        ) from error


def load_py7zr() -> Any:
    """The module, or an ArchiveError that names the extra."""
    try:
        import py7zr
    except ModuleNotFoundError as error:
        raise ArchiveError(
            "unpacking needs the package py7zr, which is not installed",
            "pip install 'vggt-deploy[eth3d]'",
            whole=True,
        ) from error
    return py7zr


def _encrypted(path: Path) -> ArchiveError:
    return ArchiveError(f"{path.name} is encrypted", "take one that is not", whole=True)
