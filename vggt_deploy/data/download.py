"""One file over HTTP, resumed where it was cut, and checked before it counts.

    archive.7z.part         what was received so far
    archive.7z.part.json    the address and version (ETag or Last-Modified) that it belongs to
    archive.7z              the whole file: renamed at the end, after its length and SHA-256 fit

A part is continued only if the server confirms that the file is still the same one (`Range` with
`If-Range`); a server that ignores `Range`, a changed file, or one without a version begins again.
Connections that are cut and servers that are busy are tried again with growing pauses; the count of
attempts starts anew whenever one brought more than any before it, so that a poor line ends and a
dead one does too. Ctrl-C and SIGKILL leave a part that the next call goes on from.

Not done: several connections for one file, and compression (the bytes on disk are those that were
hashed by whoever published the file).
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vggt_deploy import __version__
from vggt_deploy.artifact import require_free_space
from vggt_deploy.data.http import (
    AgainError,
    DownloadError,
    answer,
    checked_url,
    content_length,
    content_range,
    load_httpx,
    refusal,
)
from vggt_deploy.progress import Progress, silent
from vggt_deploy.typed_json import decode, parse

if TYPE_CHECKING:
    import httpx

_HASH_CHUNK = 1 << 20
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
class _Origin:
    """What a part belongs to, beside it as JSON."""

    url: str
    total: int | None
    etag: str | None
    last_modified: str | None

    @property
    def version(self) -> str | None:
        """For If-Range, which takes strong validators only (RFC 9110, 13.1.5)."""
        if self.etag is not None and not self.etag.startswith("W/"):
            return self.etag
        return self.last_modified


@dataclass(frozen=True)
class _Job:
    url: str
    path: Path
    expected_bytes: int | None
    expected_sha256: str | None
    stage: str
    progress: Progress
    beside_bytes: Callable[[int], int]

    @property
    def part(self) -> Path:
        return self.path.with_name(f"{self.path.name}.part")

    @property
    def origin_path(self) -> Path:
        return self.path.with_name(f"{self.path.name}.part.json")

    def drop(self) -> None:
        """Forget what was received; the next request begins at 0."""
        self.part.unlink(missing_ok=True)
        self.origin_path.unlink(missing_ok=True)

    def received(self) -> int:
        """Bytes of the part."""
        return self.part.stat().st_size if self.part.exists() else 0


def _nothing(total: int) -> int:
    """No space needed beside the file itself."""
    del total
    return 0


def download(
    url: str,
    path: Path,
    *,
    expected_bytes: int | None = None,
    expected_sha256: str | None = None,
    stage: str | None = None,
    progress: Progress = silent,
    patience: Patience = Patience(),
    beside_bytes: Callable[[int], int] = _nothing,
) -> Downloaded:
    """Fetch `url` to `path`, whose folder exists; a file that lies there is replaced.

    Only one call at a time may write `path`: locking is the caller's. Where the server says how
    long the file is, the rest of it and `beside_bytes(length)` more must be free on the disk.

    Raises:
        DownloadError: no such file, no answer, a length or SHA-256 that is not the expected one, a
            redirect from https to http, a full disk. What was received stays unless it is wrong.
        ArtifactError: less free space than that.
    """
    job = _Job(
        url=checked_url(url),
        path=path,
        expected_bytes=expected_bytes,
        expected_sha256=expected_sha256,
        stage=stage or path.name,
        progress=progress,
        beside_bytes=beside_bytes,
    )
    first = _received_of(job)
    requests = _fetch(job, patience)
    sha256 = _hashed(job)
    if expected_sha256 not in (None, sha256) and first > 0:
        # The earlier part may be what is wrong, say after a power cut: once more, from the start.
        job.drop()
        first = 0
        requests += _fetch(job, patience)
        sha256 = _hashed(job)
    if expected_sha256 not in (None, sha256):
        job.drop()
        raise DownloadError(
            f"{url} has SHA-256 {sha256}, expected {expected_sha256}; it was deleted",
            "fetch it again, from the original server if this was a mirror",
        )
    length = job.received()
    sync(job.part)
    job.part.replace(path)
    job.origin_path.unlink(missing_ok=True)
    sync(path.parent)
    return Downloaded(path, url, length, sha256, first, requests)


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
    httpx = load_httpx()
    timeout = httpx.Timeout(patience.read_s, connect=patience.connect_s)
    # Identity: a coded body could not be continued at a byte of the file.
    headers = {"Accept-Encoding": "identity", "User-Agent": f"vggt-deploy/{__version__}"}
    best, fruitless, requests = _received_of(job), 0, 0
    with httpx.Client(timeout=timeout, headers=headers, follow_redirects=False) as client:
        while True:
            after_s: float | None = None
            try:
                if _is_whole(job):
                    return requests
                requests += 1
                _receive(client, job)
                return requests
            except AgainError as again:
                why, after_s = str(again), again.after_s
            except httpx.TransportError as error:
                why = f"{type(error).__name__}: {error}"
            received = job.received()
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


def _received_of(job: _Job) -> int:
    """Bytes of a part that may be continued; anything else that lies there is dropped."""
    origin = _read_origin(job)
    received = job.received()
    if origin is None or (origin.total is not None and received > origin.total):
        job.drop()
        return 0
    if origin.version is None and received != origin.total:
        job.drop()
        return 0
    return received


def _is_whole(job: _Job) -> bool:
    """Whether all was received before, say by a run that was killed before the rename."""
    origin = _read_origin(job)
    return origin is not None and origin.total is not None and origin.total == job.received() > 0


def _receive(client: httpx.Client, job: _Job) -> None:
    """One request; returns when the part is whole.

    Raises:
        AgainError, httpx.TransportError: another attempt may help.
    """
    have = _received_of(job)
    origin = _read_origin(job)
    headers = {}
    if have and origin is not None and origin.version is not None:
        headers = {"Range": f"bytes={have}-", "If-Range": origin.version}
    with answer(client, job.url, headers) as response:
        if response.status_code == 206 and have and origin is not None:
            total: int | None = _continued(job, response, have, origin)
        elif response.status_code == 200:
            have, total = 0, content_length(response)
            _check_length(job, total)
            job.drop()
            _write_origin(
                job,
                _Origin(
                    job.url,
                    total,
                    response.headers.get("etag"),
                    response.headers.get("last-modified"),
                ),
            )
        else:
            if response.status_code in (206, 416):
                job.drop()  # 416: a part longer than the file is; 206 unasked: a confused server
            raise refusal(response, job.url)
        if total is not None:
            require_free_space(job.path, total - have + job.beside_bytes(total))
        _write(job, response, have, total)


def _write(job: _Job, response: httpx.Response, have: int, total: int | None) -> None:
    """Append the body to the part, which holds `have` bytes, and check where it ends."""
    most = job.expected_bytes if total is None else total
    job.progress(job.stage, have, total or 0)
    try:
        with job.part.open("ab") as file:
            for chunk in response.iter_raw():
                file.write(chunk)
                have += len(chunk)
                job.progress(job.stage, have, total or 0)
                if most is not None and have > most:
                    break  # a body without a stated length may have no end either
    except OSError as error:
        # httpx's errors are no OSErrors, so this is the disk.
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise DownloadError(
            f"no space left for {job.part} ({os.strerror(error.errno)}); {job.received()} bytes "
            "were received and are kept",
            f"free some space on that disk, then {_AGAIN}",
        ) from error
    if total is not None and have != total:
        if have > total:
            job.drop()
        raise AgainError(f"the server said {total} bytes and sent {have}")
    _check_length(job, have)
    if total is None:
        origin = _read_origin(job)
        if origin is not None:
            _write_origin(job, _Origin(origin.url, have, origin.etag, origin.last_modified))


def _continued(job: _Job, response: httpx.Response, have: int, origin: _Origin) -> int:
    """Total length, from a 206 that goes on where the part ends; any other drops the part."""
    start, total = content_range(response)
    if start != have or total is None or origin.total not in (None, total):
        job.drop()
        raise AgainError(f"asked for the bytes from {have} on, the server sent those from {start}")
    _check_length(job, total)
    return total


def _check_length(job: _Job, length: int | None) -> None:
    if length is not None and job.expected_bytes not in (None, length):
        job.drop()
        raise DownloadError(
            f"{job.url} has {length} bytes, expected {job.expected_bytes}",
            "this is another file than the known one: use the original server",
        )


def _hashed(job: _Job) -> str:
    return sha256_of(job.part, stage=f"{job.stage} hash", progress=job.progress)


def _read_origin(job: _Job) -> _Origin | None:
    """None where there is none, it can't be read, or it is of another address."""
    try:
        value = parse(job.origin_path.read_text("utf-8"))
        origin = decode(_Origin, value, "part", ValueError)
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return origin if isinstance(origin, _Origin) and origin.url == job.url else None


def _write_origin(job: _Job, origin: _Origin) -> None:
    temporary = job.origin_path.with_name(f"{job.origin_path.name}.tmp")
    temporary.write_text(json.dumps(asdict(origin), indent=1) + "\n", "utf-8")
    temporary.replace(job.origin_path)
