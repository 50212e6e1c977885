"""The bytes of a bundle: an uncompressed tar archive of which not one byte is free.

    index.json     sizes and hashes of everything after it
    index.sha256   its own hash, as `sha256sum -c` reads it
    index.sig      signed bundles: 64 bytes of Ed25519 over index.json
    index.pub      signed bundles: the public key, PEM
    ...            the files of the index, in its order

Why tar and not zip: there is one place that says what a file is called and how long it is, and it
lies before the file, so that a bundle is checked in one pass from front to back; a zip says it
twice, and two readers may believe different ones. Nothing is compressed, so that a bundle can't be
larger inside than outside, and any `tar xf` reads it.

A reader does not interpret the headers. It makes the header that the index calls for and compares
all 512 bytes: a link, a device, another name or size, bytes between or after the files, all differ.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from vggt_deploy.errors import BundleError
from vggt_deploy.progress import Progress
from vggt_deploy.ship import signing
from vggt_deploy.ship.index import MAX_INDEX_BYTES, Index, MemberRecord, from_json

INDEX, INDEX_SHA256, SIGNATURE, PUBLIC_KEY = "index.json", "index.sha256", "index.sig", "index.pub"
BLOCK = 512
END = b"\0" * (2 * BLOCK)
_CHUNK = 4 * 2**20
_MAX_PUBLIC_KEY_BYTES = 1000
Sink = Callable[[MemberRecord], BinaryIO | None]


@dataclass(frozen=True)
class OpenBundle:
    """A bundle whose index was read and checked, and nothing else yet.

    offsets: path -> where the file's bytes begin
    """

    path: Path
    file: BinaryIO
    index: Index
    signature: signing.Signature
    offsets: dict[str, int]


def header(name: str, size: int) -> bytes:
    """The one header that a file of this name and size has here."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "strict")


def padding(size: int) -> int:
    """Zero bytes after a file of `size` bytes."""
    return -size % BLOCK


def write_container(
    file: BinaryIO,
    index: bytes,
    signature: tuple[bytes, bytes] | None,
    members: Sequence[tuple[MemberRecord, Path]],
    progress: Progress | None,
) -> None:
    """Write a whole bundle. `signature`: of the index, and the public key as PEM.

    Raises:
        BundleError: a file is not what the index says any more.
    """
    digest = hashlib.sha256(index).hexdigest()
    head = [(INDEX, index), (INDEX_SHA256, f"{digest}  {INDEX}\n".encode())]
    if signature is not None:
        head += [(SIGNATURE, signature[0]), (PUBLIC_KEY, signature[1])]
    for name, data in head:
        file.write(header(name, len(data)) + data + b"\0" * padding(len(data)))
    total = sum(member.bytes for member, _ in members)
    done = 0
    for member, path in members:
        file.write(header(member.path, member.bytes))
        with path.open("rb", buffering=0) as source:
            hashed = hashlib.sha256()
            while chunk := source.read(_CHUNK):
                hashed.update(chunk)
                file.write(chunk)
                done += len(chunk)
                if progress is not None:
                    progress("writing", done, total)
        if hashed.hexdigest() != member.sha256:
            raise BundleError(
                f"{path} was changed while it was bundled", "nothing is kept: bundle it again"
            )
        file.write(b"\0" * padding(member.bytes))
    file.write(END)


@contextmanager
def open_bundle(path: Path, public_key: Path | None = None) -> Iterator[OpenBundle]:
    """Read and check the index, signature first. The files behind it are not touched.

    Raises:
        BundleError: see the module's text; each cause has its own message.
    """
    if not path.is_file():
        state = "is not a file" if path.exists() else "does not exist"
        raise BundleError(f"{path} {state}", "give the file that `vggt-deploy bundle` wrote")
    try:
        file = path.open("rb")
    except OSError as error:
        raise BundleError(
            f"{path} can't be read ({error.strerror})", "check the permissions and the disk"
        ) from error
    with file:
        yield _read_head(path, file, public_key)


def check_members(
    bundle: OpenBundle, sink: Sink | None = None, progress: Progress | None = None
) -> None:
    """Read every file and the end, and compare all of it with the index.

    `sink` may give a file to copy a member into; what was copied is worth nothing until this
    returns.
    """
    total = sum(member.bytes for member in bundle.index.files)
    done = 0
    for member in bundle.index.files:
        bundle.file.seek(bundle.offsets[member.path] - BLOCK)
        _expect_header(bundle.path, bundle.file, member.path, member.bytes)
        digest, left = hashlib.sha256(), member.bytes
        with (sink(member) if sink is not None else None) or nullcontext() as target:
            while left and (chunk := bundle.file.read(min(_CHUNK, left))):
                digest.update(chunk)
                if target is not None:
                    target.write(chunk)
                left -= len(chunk)
                done += len(chunk)
                if progress is not None:
                    progress("checking", done, total)
        if digest.hexdigest() != member.sha256:
            raise BundleError(
                f"{bundle.path}: {member.path} was changed: SHA-256 {digest.hexdigest()[:16]}…, "
                f"the index says {member.sha256[:16]}…",
                "do not use it: copy the bundle again from where it was made",
            )
        _expect_zeros(bundle.path, bundle.file, padding(member.bytes))
    _expect_zeros(bundle.path, bundle.file, len(END))


def read_member(bundle: OpenBundle, path: str, limit: int | None = None) -> bytes:
    """The bytes (the first `limit`) of a file; after `check_members`, they are the checked ones."""
    (size,) = (member.bytes for member in bundle.index.files if member.path == path)
    bundle.file.seek(bundle.offsets[path])
    return bundle.file.read(size if limit is None else min(size, limit))


def _read_head(path: Path, file: BinaryIO, public_key: Path | None) -> OpenBundle:
    index_bytes = _read_index(path, file)
    digest = hashlib.sha256(index_bytes).hexdigest()
    expected = f"{digest}  {INDEX}\n".encode()
    _expect_header(path, file, INDEX_SHA256, len(expected))
    if file.read(len(expected)) != expected:
        raise BundleError(
            f"{path}: index.json was changed, its SHA-256 is not that of index.sha256",
            "do not use it: copy the bundle again from where it was made",
        )
    _expect_zeros(path, file, padding(len(expected)))
    stored = _read_signature(path, file)
    signature = signing.check(path, index_bytes, stored, public_key)
    index = from_json(index_bytes, path)
    signing.check_signer(path, index.signed_by, signature)
    offsets, position = {}, file.tell()
    for member in index.files:
        offsets[member.path] = position + BLOCK
        position += BLOCK + member.bytes + padding(member.bytes)
    _check_length(path, file, position + len(END))
    return OpenBundle(path, file, index, signature, offsets)


def _read_index(path: Path, file: BinaryIO) -> bytes:
    block = file.read(BLOCK)
    if block[: len(INDEX) + 1] != INDEX.encode() + b"\0":
        raise BundleError(
            f"{path} is not a bundle", "give the file that `vggt-deploy bundle` wrote"
        )
    return _read_sized(path, file, block, INDEX, MAX_INDEX_BYTES)


def _read_signature(path: Path, file: BinaryIO) -> tuple[bytes, bytes] | None:
    """Signature and public key, if the next file is the signature; else nothing is consumed."""
    position = file.tell()
    block = file.read(BLOCK)
    if not block.startswith(SIGNATURE.encode() + b"\0"):
        file.seek(position)
        return None
    signature = _read_sized(path, file, block, SIGNATURE, signing.SIGNATURE_BYTES)
    key = _read_sized(path, file, file.read(BLOCK), PUBLIC_KEY, _MAX_PUBLIC_KEY_BYTES)
    return signature, key


def _read_sized(path: Path, file: BinaryIO, block: bytes, name: str, limit: int) -> bytes:
    """A file before the index is known: its size is the one thing taken from the header."""
    if len(block) < BLOCK:
        raise _cut_short(path, BLOCK - len(block))
    try:
        size = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape").size
    except tarfile.HeaderError as error:
        raise _wrong_header(path, block, name) from error
    if not 0 <= size <= limit:
        raise BundleError(
            f"{path}: {name} has {size} bytes, at most {limit} make sense",
            "do not use it: it was damaged or made to fill the memory",
        )
    if block != header(name, size):
        raise _wrong_header(path, block, name)
    data = file.read(size)
    if len(data) < size:
        raise _cut_short(path, size - len(data))
    _expect_zeros(path, file, padding(size))
    return data


def _expect_header(path: Path, file: BinaryIO, name: str, size: int) -> None:
    block = file.read(BLOCK)
    if block != header(name, size):
        raise _wrong_header(path, block, name)


def _wrong_header(path: Path, block: bytes, name: str) -> BundleError:
    """What is wrong with a header, as far as it can be read."""
    fix = "do not use this bundle: copy it again from where it was made"
    if len(block) < BLOCK:
        return _cut_short(path, BLOCK - len(block))
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        return BundleError(f"{path}: the header of {name} is damaged ({error})", fix)
    if info.type != tarfile.REGTYPE:
        kind = "a link" if info.issym() or info.islnk() else "no plain file"
        return BundleError(f"{path}: {info.name!r} is {kind}; a bundle holds plain files only", fix)
    if info.name != name:
        return BundleError(f"{path}: {info.name!r} stands where the index has {name!r}", fix)
    return BundleError(f"{path}: the header of {name} was changed (it says {info.size} bytes)", fix)


def _expect_zeros(path: Path, file: BinaryIO, count: int) -> None:
    data = file.read(count)
    if len(data) < count:
        raise _cut_short(path, count - len(data))
    if data.strip(b"\0"):
        raise BundleError(
            f"{path}: there are bytes between or after its files that belong to none of them",
            "do not use it: copy the bundle again from where it was made",
        )


def _check_length(path: Path, file: BinaryIO, expected: int) -> None:
    position = file.tell()
    size = file.seek(0, os.SEEK_END)
    file.seek(position)
    if size < expected:
        raise _cut_short(path, expected - size)
    if size > expected:
        raise BundleError(
            f"{path} has {size - expected} bytes more than its index accounts for",
            "do not use it: copy the bundle again from where it was made",
        )


def _cut_short(path: Path, missing: int) -> BundleError:
    return BundleError(
        f"{path} is cut short: at least {missing} bytes are missing",
        "the copy was interrupted: copy the bundle again",
    )
