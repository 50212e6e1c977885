"""One file over HTTP, resumed where it was cut, and checked before it counts.

A part (data.parts) is continued only if the server confirms that the file is still the same one
(`Range` with `If-Range`, and validators and total length that are the part's); a server that
ignores `Range`, a changed file, or one without a version begins again. What begins again does not
cost a part that may be good: a page of HTML, a body of another length and one without the file's
signature are refused, and the rest is received beside the part until it holds more.
Connections that are cut and servers that are busy are tried again with growing pauses; the count of
attempts starts anew whenever one brought more than any before it, so that a poor line ends and a
dead one does too. Ctrl-C and SIGKILL leave a part that the next call goes on from.

Not done: several connections for one file, passwords, and compression (the bytes on disk are those
that were hashed by whoever published the file).
"""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vggt_deploy import __version__
from vggt_deploy.artifact import require_free_space
from vggt_deploy.data.archives import MAX_BYTES
from vggt_deploy.data.http import (
    AgainError,
    DownloadError,
    answer,
    checked_url,
    content_length,
    content_range,
    load_httpx,
    new_client,
    refusal,
    refuse_page,
)
from vggt_deploy.data.parts import Origin, Part
from vggt_deploy.progress import Progress, silent

if TYPE_CHECKING:
    import httpx

_HASH_CHUNK = 1 << 20
_LOOK_BYTES = 256 << 20  # of a body of unknown length, before free space is looked at again
__all__ = ["DownloadError", "Downloaded", "Patience", "download", "sha256_of", "sync"]

_AGAIN = "run the same command again: what was received is kept and gone on from"


@dataclass(frozen=True)
class Patience:
    """How long to wait for a server, and how often to ask again.

    attempts: in a row, that bring nothing new; the pause before each doubles, up to the longest.
    """

    connect_s: float = 20.0
    read_s: float = 60.0
    attempts: int = 5
    first_pause_s: float = 1.0
    longest_pause_s: float = 60.0

    def pause_s(self, fruitless: int) -> float:
        """Before the attempt after this many without anything new."""
        return float(min(self.first_pause_s * 2.0 ** max(fruitless - 1, 0), self.longest_pause_s))


@dataclass(frozen=True)
class Downloaded:
    """A whole file. resumed_from: bytes that an earlier call had left; requests: made by this
    one.
    """

    path: Path
    url: str
    bytes: int
    sha256: str
    resumed_from: int
    requests: int


@dataclass(frozen=True)
class _Job:
    part: Part
    expected_bytes: int | None
    expected_sha256: str | None
    signature: bytes
    max_bytes: int
    stage: str
    progress: Progress
    beside_bytes: Callable[[int], int]

    @property
    def url(self) -> str:
        """Where the file is."""
        return self.part.url


def _nothing(total: int) -> int:
    """No space needed beside the file itself."""
    del total
    return 0


def _nobody(downloaded: Downloaded) -> None:
    """Nobody is told."""
    del downloaded


def download(
    url: str,
    path: Path,
    *,
    expected_bytes: int | None = None,
    expected_sha256: str | None = None,
    signature: bytes = b"",
    max_bytes: int = MAX_BYTES,
    stage: str | None = None,
    progress: Progress = silent,
    patience: Patience = Patience(),
    beside_bytes: Callable[[int], int] = _nothing,
    whole: Callable[[Downloaded], None] = _nobody,
) -> Downloaded:
    """Fetch `url` to `path`, whose folder exists; a file that lies there is replaced.

    Only one call at a time may write `path`: locking is the caller's. Where the length of the file
    is known, the rest of it and `beside_bytes(length)` more must be free on the disk; where it is
    not, space is looked at again as the file grows. signature: what the file begins with. whole:
    called when the file is known to be right, just before it gets its name.

    Raises:
        DownloadError: no such file, no answer, a page instead, a length, signature or SHA-256 that
            is not the expected one, more than `max_bytes`, a redirect from https to http, a full
            disk, settings of a proxy that can't be used. What was received stays unless it is
            wrong.
        ArtifactError: less free space than that.
    """
    job = _Job(
        part=Part(checked_url(url), path),
        expected_bytes=expected_bytes,
        expected_sha256=expected_sha256,
        signature=signature,
        max_bytes=max_bytes,
        stage=stage or path.name,
        progress=progress,
        beside_bytes=beside_bytes,
    )
    part = job.part
    part.earlier = part.usable()[0]
    requests = _fetch(job, patience)
    sha256 = _hashed(job)
    if expected_sha256 not in (None, sha256) and part.earlier > 0:
        # The earlier part may be what is wrong, say after a power cut: once more, from the start.
        part.drop()
        requests += _fetch(job, patience)
        sha256 = _hashed(job)
    if expected_sha256 not in (None, sha256):
        part.drop()
        raise DownloadError(
            f"{url} has SHA-256 {sha256}, expected {expected_sha256}; it was deleted",
            "fetch it again, from the original server if this was a mirror",
        )
    downloaded = Downloaded(path, url, part.received(), sha256, part.earlier, requests)
    sync(part.path)
    whole(downloaded)
    part.finish()
    sync(path.parent)
    return downloaded


def sha256_of(path: Path, *, stage: str = "hash", progress: Progress = silent) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest, done, total = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while chunk := file.read(_HASH_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            progress(stage, done, total)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Bring a file, or a folder's entries, onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fetch(job: _Job, patience: Patience) -> int:
    """Receive until the part is whole; how many requests it took."""
    httpx, part = load_httpx(), job.part
    timeout = httpx.Timeout(patience.read_s, connect=patience.connect_s)
    # Identity: a coded body could not be continued at a byte of the file.
    headers = {"Accept-Encoding": "identity", "User-Agent": f"vggt-deploy/{__version__}"}
    best, fruitless, requests = part.usable()[0], 0, 0
    with new_client(timeout, headers) as client:
        while True:
            after_s: float | None = None
            try:
                if part.whole():
                    return requests
                requests += 1
                _receive(client, job)
                return requests
            except AgainError as again:
                why, after_s = str(again), again.after_s
            except httpx.TransportError as error:
                why = f"{type(error).__name__}: {error}"
            received = part.received()
            fruitless = 0 if received > best else fruitless + 1
            best = max(best, received)
            if fruitless >= patience.attempts:
                raise DownloadError(
                    f"{job.url}: {patience.attempts} attempts in a row brought nothing new, the "
                    f"last: {why} ({received} bytes are here)",
                    f"check the connection and the address; {_AGAIN}",
                )
            pause_s = patience.pause_s(fruitless)
            time.sleep(min(max(pause_s, after_s or 0.0), patience.longest_pause_s))


def _receive(client: httpx.Client, job: _Job) -> None:
    """One request; returns when the part is whole.

    Raises:
        AgainError, httpx.TransportError: another attempt may help.
    """
    have, origin = job.part.usable()
    headers = {}
    if have and origin is not None and origin.version is not None:
        headers = {"Range": f"bytes={have}-", "If-Range": origin.version}
    with answer(client, job.url, headers) as response:
        if response.status_code in (200, 206):
            refuse_page(response, job.url, _AGAIN)
        if response.status_code == 206 and have and origin is not None:
            total = _continued(job, response, have, origin)
            _pour(job, response.iter_raw(), job.part.path, have, total)
        elif response.status_code == 200:
            _begin(job, response, have, origin)
        else:
            if response.status_code in (206, 416):
                job.part.drop()  # 416: a part longer than the file is; 206 unasked: confused
            raise refusal(response, job.url)


def _begin(job: _Job, response: httpx.Response, have: int, before: Origin | None) -> None:
    """A body from the first byte on: into the part, or beside one that may still be good."""
    part, now = job.part, _origin_of(response, job.url)
    if wrong := _wrong_length(job, now.total):
        raise wrong
    body = _signed(job, response)
    # Of another version, as long as it should be, and of the right kind: the part is of no use.
    known = now.total is not None and job.signature != b""
    changed = known and before is not None and before.differs(now)
    if have == 0 or changed:
        part.begin(now)
        length = _pour(job, body, part.path, 0, now.total)
        part.write_origin(Origin(now.url, length, now.etag, now.last_modified))
        return
    part.fresh.unlink(missing_ok=True)
    length = 0
    try:
        length = _pour(job, body, part.fresh, 0, now.total)
        now = Origin(now.url, length, now.etag, now.last_modified)
    finally:
        # Whole, or cut after more than the part has: worth more than it.
        if part.fresh.exists() and (length > 0 or part.fresh.stat().st_size > have):
            part.promote(now)
        part.fresh.unlink(missing_ok=True)


def _origin_of(response: httpx.Response, url: str) -> Origin:
    headers = response.headers
    return Origin(url, content_length(response), headers.get("etag"), headers.get("last-modified"))


def _signed(job: _Job, response: httpx.Response) -> Iterator[bytes]:
    """The body, if it begins as the file does: looked at here, before anything is written."""
    chunks, beginning = response.iter_raw(), b""
    for chunk in chunks:
        beginning += chunk
        if len(beginning) >= len(job.signature):
            break
    if not beginning:
        raise AgainError("the server sent nothing")
    if not beginning.startswith(job.signature):
        raise DownloadError(
            f"{job.url} sends something else: it begins with {beginning[:16]!r}, not with "
            f"{job.signature!r}",
            f"open it in a browser, the network may want you to sign in; {_AGAIN}",
        )

    def body() -> Iterator[bytes]:
        yield beginning
        yield from chunks

    return body()


def _pour(job: _Job, body: Iterator[bytes], path: Path, have: int, total: int | None) -> int:
    """Append the body to `path`, which holds `have` bytes; its length, if that is right."""
    known = job.expected_bytes if total is None else total
    most = job.max_bytes if known is None else known
    if known is not None:
        require_free_space(path, known - have + job.beside_bytes(known))
    looked = 0
    job.progress(job.stage, have, total or 0)
    try:
        with path.open("ab") as file:
            for chunk in body:
                if known is None and have >= looked:
                    require_free_space(path, _LOOK_BYTES + job.beside_bytes(have))
                    looked = have + _LOOK_BYTES
                file.write(chunk)
                have += len(chunk)
                job.progress(job.stage, have, total or 0)
                if have > most:
                    break  # a body without a stated length may have no end either
    except OSError as error:
        # httpx's errors are no OSErrors, so this is the disk.
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise DownloadError(
            f"no space left for {path} ({os.strerror(error.errno)}); {job.part.received()} bytes "
            "were received and are kept",
            f"free some space on that disk, then {_AGAIN}",
        ) from error
    again = None
    if total is not None and have != total:
        again = AgainError(f"the server said {total} bytes and sent {have}")
    wrong = again or _wrong_length(job, have)
    if wrong is not None:
        if again is None or have > most:
            _discard(job, path)
        raise wrong
    return have


def _discard(job: _Job, path: Path) -> None:
    """What was just received into `path` is wrong."""
    if path == job.part.path:
        job.part.drop()
    else:
        path.unlink()


def _continued(job: _Job, response: httpx.Response, have: int, origin: Origin) -> int:
    """Total length, from a 206 that goes on where the part ends; any other drops the part."""
    start, total = content_range(response)
    if start != have or total is None:
        why = f"asked for the bytes from {have} on, the server sent those from {start}"
    elif origin.total not in (None, total):
        why = f"the file had {origin.total} bytes, now it has {total}"
    elif origin.differs(_origin_of(response, job.url)):
        why = "the file has changed since its first part was received"
    elif wrong := _wrong_length(job, total):
        job.part.drop()
        raise wrong
    else:
        return total
    job.part.drop()
    raise AgainError(why)


def _wrong_length(job: _Job, length: int | None) -> DownloadError | None:
    """What is wrong with a length, if anything is."""
    if length is None or (job.expected_bytes in (None, length) and length <= job.max_bytes):
        return None
    if length > job.max_bytes:
        return DownloadError(
            f"{job.url} has {length} bytes or more; more than {job.max_bytes} are not received",
            "check the address: no file of this kind is so long",
        )
    return DownloadError(
        f"{job.url} has {length} bytes, expected {job.expected_bytes}",
        "this is another file than the known one: use the original server",
    )


def _hashed(job: _Job) -> str:
    return sha256_of(job.part.path, stage=f"{job.stage} hash", progress=job.progress)
