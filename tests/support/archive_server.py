"""A file server on this machine that misbehaves as told, for the tests of downloads.

with serving() as server:
    server.files["/a.7z"] = Served(body, cut_after=[1000, 2000])
    ... server.url("/a.7z") ...
    assert [asked.range for asked in server.log] == [None, "bytes=1000-", "bytes=2000-"]
"""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BLOCK = 1 << 16


@dataclass
class Served:
    """One file and how it is served. Lists are used up, one item for each request.

    cut_after: bytes of the body that are sent before the connection is cut
    statuses: answered with these instead
    claimed: Content-Length where it is not the truth; chunked: no Content-Length at all
    range_total, range_tag: what an answer to a range says where it is not the truth
    headers: more of them, as they are
    pause_s: after each block of 64 KiB, so that a test can kill the client in the middle
    silent_s: before the answer
    """

    body: bytes
    cut_after: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    claimed: int | None = None
    chunked: bool = False
    ranges: bool = True
    wrong_range: bool = False
    range_total: str | None = None
    range_tag: str | None = None
    ignores_if_range: bool = False
    headers: dict[str, str] = field(default_factory=dict)
    etag: str | None = "content"
    last_modified: str | None = None
    redirect: str | None = None
    coding: str | None = None
    retry_after: str | None = None
    pause_s: float = 0.0
    silent_s: float = 0.0

    @property
    def tag(self) -> str | None:
        """The ETag: of the content, so that a changed file has another one."""
        if self.etag != "content":
            return self.etag
        return f'"{hashlib.sha256(self.body).hexdigest()[:16]}"'


@dataclass(frozen=True)
class Asked:
    """A request as it came in, and the status of the answer."""

    path: str
    range: str | None
    if_range: str | None
    status: int


class ArchiveServer(ThreadingHTTPServer):
    """Serves `files` by path and logs what was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, Served] = {}
        self.log: list[Asked] = []

    def url(self, path: str = "") -> str:
        """Of a file, or without `path` of the root."""
        return f"http://127.0.0.1:{self.server_address[1]}{path}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that is killed is what some tests do."""


@contextmanager
def serving() -> Iterator[ArchiveServer]:
    """A server with nothing on it yet."""
    server = ArchiveServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ArchiveServer

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Quiet."""

    def do_GET(self) -> None:
        served = self.server.files.get(self.path)
        if served is None:
            self._answer(404, {"Content-Length": "0"})
        elif served.statuses:
            more = {"Retry-After": served.retry_after} if served.retry_after else {}
            self._answer(served.statuses.pop(0), {"Content-Length": "0", **more})
        elif served.redirect is not None:
            self._answer(302, {"Location": served.redirect, "Content-Length": "0"})
        else:
            time.sleep(served.silent_s)
            self._send(served)

    def _send(self, served: Served) -> None:
        start = self._start(served)
        if start is not None and start >= len(served.body):
            headers = {"Content-Range": f"bytes */{len(served.body)}", "Content-Length": "0"}
            self._answer(416, headers)
            return
        body = served.body[start or 0 :]
        headers = dict(served.headers)
        if served.tag is not None:
            headers["ETag"] = served.tag
        if served.last_modified is not None:
            headers["Last-Modified"] = served.last_modified
        if served.coding is not None:
            headers["Content-Encoding"] = served.coding
        if start is not None:
            said = start + 7 if served.wrong_range else start
            total = served.range_total or len(served.body)
            headers["Content-Range"] = f"bytes {said}-{len(served.body) - 1}/{total}"
            if served.range_tag is not None:
                headers["ETag"] = served.range_tag
        if served.chunked:
            headers["Transfer-Encoding"] = "chunked"
        else:
            length = len(body) if served.claimed is None else served.claimed - (start or 0)
            headers["Content-Length"] = str(length)
        self._answer(200 if start is None else 206, headers)
        self._write(served, body)

    def _start(self, served: Served) -> int | None:
        """First byte that was asked for, if the file is still the one that the client means."""
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        version = self.headers.get("If-Range")
        if not served.ranges or asked is None:
            return None
        known = version in (None, served.tag, served.last_modified)
        if not known and not served.ignores_if_range:
            return None
        return int(asked[1])

    def _write(self, served: Served, body: bytes) -> None:
        end = served.cut_after.pop(0) if served.cut_after else None
        body = body if end is None else body[:end]
        for offset in range(0, len(body), BLOCK):
            block = body[offset : offset + BLOCK]
            self.wfile.write(f"{len(block):x}\r\n".encode() if served.chunked else b"")
            self.wfile.write(block)
            self.wfile.write(b"\r\n" if served.chunked else b"")
            time.sleep(served.pause_s)
        if end is None and served.chunked:
            self.wfile.write(b"0\r\n\r\n")
        if end is not None or served.claimed is not None:
            self.close_connection = True

    def _answer(self, status: int, headers: dict[str, str]) -> None:
        asked = Asked(self.path, self.headers.get("Range"), self.headers.get("If-Range"), status)
        self.server.log.append(asked)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
