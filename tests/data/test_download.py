"""Downloads from a server that cuts, lies, changes its mind and forgets what a range is."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from archive_server import ArchiveServer, Served, serving
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vggt_deploy.data import download as module
from vggt_deploy.data.download import Downloaded, DownloadError, Patience, download
from vggt_deploy.data.http import answer, checked_base, content_length, content_range
from vggt_deploy.data.parts import Origin, Part
from vggt_deploy.errors import ArtifactError
from vggt_deploy.progress import silent

BODY = random.Random(3).randbytes(300_000)
SHA256 = hashlib.sha256(BODY).hexdigest()
NOTHING_KNOWN: dict[str, Any] = {"expected_bytes": None, "expected_sha256": None}
QUICK = Patience(connect_s=5, read_s=5, attempts=3, first_pause_s=0.0)


@pytest.fixture(scope="module")
def shared() -> Iterator[ArchiveServer]:
    with serving() as server:
        yield server


@pytest.fixture
def server(shared: ArchiveServer, monkeypatch: pytest.MonkeyPatch) -> ArchiveServer:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    shared.files.clear()
    shared.log.clear()
    return shared


def fetch(server: ArchiveServer, folder: Path, **more: Any) -> Downloaded:
    settings: dict[str, Any] = {
        "expected_bytes": len(BODY),
        "expected_sha256": SHA256,
        "patience": QUICK,
        **more,
    }
    return download(server.url("/a.7z"), folder / "a.7z", **settings)


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_comes_whole_with_its_hash_and_progress(
    server: ArchiveServer, tmp_path: Path
) -> None:
    server.files["/a.7z"] = Served(BODY)
    told: list[tuple[str, int, int]] = []
    got = fetch(server, tmp_path, stage="a", progress=lambda *step: told.append(step))
    assert (tmp_path / "a.7z").read_bytes() == BODY
    assert got == Downloaded(
        tmp_path / "a.7z", server.url("/a.7z"), len(BODY), SHA256, resumed_from=0, requests=1
    )
    assert left(tmp_path) == ["a.7z"]
    assert told[0] == ("a", 0, len(BODY))
    assert ("a", len(BODY), len(BODY)) in told


def test_without_anything_known_the_hash_is_what_was_found(
    server: ArchiveServer, tmp_path: Path
) -> None:
    server.files["/a.7z"] = Served(BODY)
    assert fetch(server, tmp_path, expected_bytes=None, expected_sha256=None).sha256 == SHA256


def test_a_cut_connection_is_gone_on_with_by_range(server: ArchiveServer, tmp_path: Path) -> None:
    served = server.files["/a.7z"] = Served(BODY, cut_after=[100_000, 50_000])
    assert fetch(server, tmp_path).requests == 3
    assert (tmp_path / "a.7z").read_bytes() == BODY
    assert [asked.range for asked in server.log] == [None, "bytes=100000-", "bytes=150000-"]
    assert [asked.if_range for asked in server.log] == [None, served.tag, served.tag]
    assert [asked.status for asked in server.log] == [200, 206, 206]


def test_many_cuts_are_borne_as_long_as_each_brings_something(
    server: ArchiveServer, tmp_path: Path
) -> None:
    server.files["/a.7z"] = Served(BODY, cut_after=[20_000] * 12)
    assert fetch(server, tmp_path).requests == 13  # attempts=3 counts those that bring nothing


def test_a_server_that_never_gets_further_is_given_up_and_the_part_stays(
    server: ArchiveServer, tmp_path: Path
) -> None:
    server.files["/a.7z"] = Served(BODY, cut_after=[100_000, *[0] * 9])
    with pytest.raises(DownloadError, match="3 attempts in a row brought nothing new") as raised:
        fetch(server, tmp_path)
    assert "100000 bytes are here" in raised.value.message
    assert left(tmp_path) == ["a.7z.part", "a.7z.part.json"]
    server.files["/a.7z"] = Served(BODY)
    assert fetch(server, tmp_path).resumed_from == 100_000
    assert server.log[-1].range == "bytes=100000-"


@pytest.mark.parametrize("version", ["etag", "last_modified"])
def test_a_file_that_changed_meanwhile_begins_again(
    server: ArchiveServer, tmp_path: Path, version: str
) -> None:
    if version == "etag":
        old, new = Served(b"x" * 300_000), Served(BODY)
    else:
        dates = ("Mon, 05 Jan 2026 00:00:00 GMT", "Tue, 06 Jan 2026 00:00:00 GMT")
        old = Served(b"x" * 300_000, etag=None, last_modified=dates[0])
        new = Served(BODY, etag=None, last_modified=dates[1])
    old.cut_after = [100_000, *[0] * 9]
    server.files["/a.7z"] = old
    with pytest.raises(DownloadError):
        fetch(server, tmp_path)
    server.files["/a.7z"] = new
    fetch(server, tmp_path)
    assert server.log[-1].range == "bytes=100000-"
    assert server.log[-1].status == 200
    assert (tmp_path / "a.7z").read_bytes() == BODY


@pytest.mark.parametrize("tag", [None, 'W/"weak"'])
def test_without_a_version_to_hold_on_to_a_part_is_not_continued(
    server: ArchiveServer, tmp_path: Path, tag: str | None
) -> None:
    server.files["/a.7z"] = Served(BODY, etag=tag, cut_after=[100_000])
    fetch(server, tmp_path)
    assert [asked.range for asked in server.log] == [None, None]
    assert (tmp_path / "a.7z").read_bytes() == BODY


def test_a_server_that_ignores_ranges_begins_again(server: ArchiveServer, tmp_path: Path) -> None:
    server.files["/a.7z"] = Served(BODY, ranges=False, cut_after=[100_000])
    fetch(server, tmp_path)
    assert [asked.status for asked in server.log] == [200, 200]
    assert (tmp_path / "a.7z").read_bytes() == BODY


def test_ignored_ranges_and_cuts_at_one_place_end(server: ArchiveServer, tmp_path: Path) -> None:
    server.files["/a.7z"] = Served(BODY, ranges=False, cut_after=[100_000] * 20)
    with pytest.raises(DownloadError, match="brought nothing new"):
        fetch(server, tmp_path)
    assert len(server.log) == 4  # the first brought 100 000 bytes, three more nothing beyond


def test_a_range_that_begins_elsewhere_is_not_glued_on(
    server: ArchiveServer, tmp_path: Path
) -> None:
    server.files["/a.7z"] = Served(BODY, wrong_range=True, cut_after=[100_000])
    fetch(server, tmp_path)
    assert [asked.status for asked in server.log] == [200, 206, 200]
    assert (tmp_path / "a.7z").read_bytes() == BODY


@pytest.mark.parametrize("claimed", [len(BODY) + 5, 5 * len(BODY)])
def test_more_promised_than_sent_is_an_error(
    server: ArchiveServer, tmp_path: Path, claimed: int
) -> None:
    server.files["/a.7z"] = Served(BODY, claimed=claimed)
    with pytest.raises(DownloadError, match="brought nothing new"):
        fetch(server, tmp_path, expected_bytes=None, expected_sha256=None)
    assert not (tmp_path / "a.7z").exists()


def test_less_promised_than_sent_is_found_by_the_known_length(
    server: ArchiveServer, tmp_path: Path
) -> None:
    server.files["/a.7z"] = Served(BODY, claimed=1000)
    told: list[int] = []
    with pytest.raises(DownloadError, match="has 1000 bytes, expected 300000"):
        fetch(server, tmp_path, progress=lambda stage, done, total: told.append(done))
    assert told == []  # refused before anything is received
    assert left(tmp_path) == []


def test_less_promised_than_sent_is_found_by_the_known_hash(
    server: ArchiveServer, tmp_path: Path
) -> None:
    server.files["/a.7z"] = Served(BODY, claimed=1000)
    with pytest.raises(DownloadError, match=f"expected {SHA256}; it was deleted"):
        fetch(server, tmp_path, expected_bytes=None)
    assert left(tmp_path) == []


def test_another_content_of_the_same_length_is_deleted(
    server: ArchiveServer, tmp_path: Path
) -> None:
    server.files["/a.7z"] = Served(BODY[::-1])
    with pytest.raises(DownloadError, match="SHA-256"):
        fetch(server, tmp_path)
    assert left(tmp_path) == []


def test_a_damaged_part_is_found_by_the_hash_and_fetched_from_the_start(
    server: ArchiveServer, tmp_path: Path
) -> None:
    server.files["/a.7z"] = Served(BODY, cut_after=[100_000, *[0] * 9])
    with pytest.raises(DownloadError):
        fetch(server, tmp_path)
    with (tmp_path / "a.7z.part").open("r+b") as file:
        file.write(b"\0" * 50)  # as after a power cut
    server.files["/a.7z"] = Served(BODY)
    server.log.clear()
    assert fetch(server, tmp_path).resumed_from == 0
    assert [asked.range for asked in server.log] == ["bytes=100000-", None]
    assert (tmp_path / "a.7z").read_bytes() == BODY


def test_a_part_of_unknown_origin_is_not_used(server: ArchiveServer, tmp_path: Path) -> None:
    (tmp_path / "a.7z.part").write_bytes(b"y" * 1000)
    (tmp_path / "a.7z.part.json").write_text('{"url": 3}')
    server.files["/a.7z"] = Served(BODY)
    fetch(server, tmp_path)
    assert [asked.range for asked in server.log] == [None]


def test_a_part_that_is_whole_needs_no_request(server: ArchiveServer, tmp_path: Path) -> None:
    served = server.files["/a.7z"] = Served(BODY)
    (tmp_path / "a.7z.part").write_bytes(BODY)
    origin = Origin(server.url("/a.7z"), len(BODY), served.tag, None)
    Part(origin.url, tmp_path / "a.7z").write_origin(origin)
    assert fetch(server, tmp_path).requests == 0
    assert server.log == []


def test_chunked_bodies_have_no_length_to_trust(server: ArchiveServer, tmp_path: Path) -> None:
    server.files["/a.7z"] = Served(BODY, chunked=True, cut_after=[100_000])
    fetch(server, tmp_path)
    assert (tmp_path / "a.7z").read_bytes() == BODY
    for body in (BODY + b"more", BODY[:-4]):
        server.files["/a.7z"] = Served(body, chunked=True)
        with pytest.raises(DownloadError, match=f"has {len(body)} bytes, expected 300000"):
            fetch(server, tmp_path)


def test_a_body_without_an_end_is_left(server: ArchiveServer, tmp_path: Path) -> None:
    told: list[int] = []
    server.files["/a.7z"] = Served(BODY * 20, chunked=True)
    with pytest.raises(DownloadError, match="bytes, expected 300000"):
        fetch(server, tmp_path, progress=lambda stage, done, total: told.append(done))
    assert len(BODY) < max(told) < 3 * len(BODY)
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    "status, words", [(404, "is not there"), (403, "not allowed"), (418, "418")]
)
def test_a_refusal_is_not_asked_again(
    server: ArchiveServer, tmp_path: Path, status: int, words: str
) -> None:
    server.files["/a.7z"] = Served(BODY, statuses=[status, 200])
    with pytest.raises(DownloadError, match=words):
        fetch(server, tmp_path)
    assert len(server.log) == 1


def test_a_busy_server_is_asked_again_and_its_wish_is_bounded(
    server: ArchiveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=pauses.append))
    server.files["/a.7z"] = Served(BODY, statuses=[503, 429], retry_after="3")
    patience = Patience(first_pause_s=1.0, longest_pause_s=2.0)
    assert fetch(server, tmp_path, patience=patience).requests == 3
    assert pauses == [2.0, 2.0]


def test_pauses_grow_to_the_longest() -> None:
    patience = Patience(first_pause_s=1.0, longest_pause_s=5.0)
    assert [patience.pause_s(n) for n in range(5)] == [1.0, 1.0, 2.0, 4.0, 5.0]


def test_nobody_there(tmp_path: Path, server: ArchiveServer) -> None:
    with serving() as gone:
        url = gone.url("/a.7z")
    with pytest.raises(DownloadError, match="ConnectError"):
        download(url, tmp_path / "a.7z", patience=QUICK)


def test_a_silent_server_times_out(server: ArchiveServer, tmp_path: Path) -> None:
    server.files["/a.7z"] = Served(BODY, silent_s=0.5)
    patience = Patience(read_s=0.1, attempts=1, first_pause_s=0.0)
    with pytest.raises(DownloadError, match="ReadTimeout"):
        fetch(server, tmp_path, patience=patience)


def test_redirects_are_followed_and_end(server: ArchiveServer, tmp_path: Path) -> None:
    server.files["/b"] = Served(BODY)
    server.files["/a.7z"] = Served(b"", redirect="/b")
    assert fetch(server, tmp_path).bytes == len(BODY)
    server.files["/a.7z"] = Served(b"", redirect="/a.7z")
    with pytest.raises(DownloadError, match="redirected more than"):
        fetch(server, tmp_path)


@pytest.mark.parametrize(
    "first, second, refused",
    [
        ("https://host/a", "http://host/a", True),
        ("https://host/a", "https://other/a", False),
        ("http://host/a", "https://host/a", False),
        ("http://host/a", "http://other/a", False),
        ("https://host/a", "ftp://host/a", True),
    ],
)
def test_https_is_not_left(first: str, second: str, refused: bool) -> None:
    def respond(request: httpx.Request) -> httpx.Response:
        if str(request.url) == first:
            return httpx.Response(302, headers={"Location": second})
        return httpx.Response(200, content=b"body")

    with httpx.Client(transport=httpx.MockTransport(respond)) as client:
        if refused:
            with (
                pytest.raises(DownloadError, match="redirected from https"),
                answer(client, first, {}),
            ):
                pass
        else:
            with answer(client, first, {}) as response:
                assert response.read() == b"body"


def test_coded_bodies_are_refused(server: ArchiveServer, tmp_path: Path) -> None:
    server.files["/a.7z"] = Served(BODY, coding="gzip")
    with pytest.raises(DownloadError, match="Content-Encoding gzip"):
        fetch(server, tmp_path)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/a", "host/a", "http://", ""])
def test_what_is_no_address(url: str, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="not an address"):
        download(url, tmp_path / "a.7z")


def test_a_password_is_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="holds a password") as raised:
        download("https://me:secret@host/a", tmp_path / "a.7z")
    assert "secret" not in str(raised.value)


def test_too_little_space_is_said_before_anything_is_received(
    server: ArchiveServer, tmp_path: Path
) -> None:
    server.files["/a.7z"] = Served(BODY)
    with pytest.raises(ArtifactError, match="are free"):
        fetch(server, tmp_path, beside_bytes=lambda total: total * 10**15)
    assert not (tmp_path / "a.7z").exists()
    assert fetch(server, tmp_path, beside_bytes=lambda total: total).bytes == len(BODY)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_is_said_as_such(server: ArchiveServer, tmp_path: Path) -> None:
    server.files["/a.7z"] = Served(BODY)
    (tmp_path / "a.7z.part").symlink_to("/dev/full")
    part = Part(server.url("/a.7z"), tmp_path / "a.7z")
    job = module._Job(part, None, None, b"", 10**9, "", silent, module._nothing)
    with pytest.raises(DownloadError, match=os.strerror(errno.ENOSPC)):
        module._pour(job, iter([BODY]), part.path, 0, len(BODY))


def test_killed_in_the_middle_it_goes_on_where_it_was(
    server: ArchiveServer, tmp_path: Path
) -> None:
    server.files["/a.7z"] = Served(BODY, pause_s=0.3)
    code = (
        "import sys; from pathlib import Path; from vggt_deploy.data.download import download;"
        "download(sys.argv[1], Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", code, server.url("/a.7z"), str(tmp_path / "a.7z")]
    with subprocess.Popen(command) as process:
        part = tmp_path / "a.7z.part"
        deadline = time.monotonic() + 20
        while not (part.exists() and part.stat().st_size > 65_536):
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    have = part.stat().st_size
    assert 0 < have < len(BODY)
    server.files["/a.7z"].pause_s = 0.0
    server.log.clear()
    assert fetch(server, tmp_path).resumed_from == have
    assert [asked.range for asked in server.log] == [f"bytes={have}-"]
    assert (tmp_path / "a.7z").read_bytes() == BODY


def begun(server: ArchiveServer, folder: Path, received: int = 100_000, **more: Any) -> Served:
    """A part of BODY of which so much was received; how the file was served."""
    served = server.files["/a.7z"] = Served(BODY, cut_after=[received, *[0] * 9], **more)
    with pytest.raises(DownloadError, match="brought nothing new"):
        fetch(server, folder, **NOTHING_KNOWN)
    assert (folder / "a.7z.part").stat().st_size == received
    served.cut_after.clear()
    server.log.clear()
    return served


@pytest.mark.parametrize(
    "page, more, words",
    [
        ({"headers": {"Content-Type": "text/html; charset=utf-8"}}, {}, "a web page"),
        ({"headers": {"Content-Type": "TEXT/HTML"}, "chunked": True}, {}, "a web page"),
        ({}, {"signature": BODY[:6]}, "sends something else"),
        ({"chunked": True}, {"signature": BODY[:6]}, "sends something else"),
        ({}, {"expected_bytes": len(BODY)}, "expected 300000"),
        ({"chunked": True}, {"expected_bytes": len(BODY)}, "expected 300000"),
    ],
)
def test_what_is_sent_instead_does_not_cost_the_part(
    server: ArchiveServer,
    tmp_path: Path,
    page: dict[str, Any],
    more: dict[str, Any],
    words: str,
) -> None:
    begun(server, tmp_path)
    served = server.files["/a.7z"]
    server.files["/a.7z"] = Served(b"<html>Sign in</html>", ranges=False, **page)
    with pytest.raises(DownloadError, match=words):
        fetch(server, tmp_path, **{**NOTHING_KNOWN, **more})
    assert left(tmp_path) == ["a.7z.part", "a.7z.part.json"]
    server.files["/a.7z"] = served
    assert fetch(server, tmp_path, signature=BODY[:6]).resumed_from == 100_000
    assert (tmp_path / "a.7z").read_bytes() == BODY


@pytest.mark.parametrize("chunked", [False, True])
def test_another_version_of_a_wrong_length_does_not_cost_the_part(
    server: ArchiveServer, tmp_path: Path, chunked: bool
) -> None:
    served = begun(server, tmp_path)
    server.files["/a.7z"] = Served(BODY[:200_000], chunked=chunked)
    with pytest.raises(DownloadError, match="has 200000 bytes, expected 300000"):
        fetch(server, tmp_path, signature=BODY[:6])
    server.files["/a.7z"] = served
    assert fetch(server, tmp_path, signature=BODY[:6]).resumed_from == 100_000


def test_what_a_killed_run_left_beside_a_part_goes(server: ArchiveServer, tmp_path: Path) -> None:
    for name, body in (("new", BODY[:10]), ("json.tmp", b"{")):
        (tmp_path / f"a.7z.part.{name}").write_bytes(body)
    begun(server, tmp_path).ranges = False
    (tmp_path / "a.7z.part.new").write_bytes(BODY[:10])
    fetch(server, tmp_path)
    assert (tmp_path / "a.7z").read_bytes() == BODY
    assert left(tmp_path) == ["a.7z"]


def test_nothing_at_all_is_no_file(server: ArchiveServer, tmp_path: Path) -> None:
    served = begun(server, tmp_path)
    server.files["/a.7z"] = Served(b"", ranges=False, chunked=True)
    with pytest.raises(DownloadError, match="the server sent nothing"):
        fetch(server, tmp_path, **NOTHING_KNOWN)
    server.files["/a.7z"] = served
    assert fetch(server, tmp_path).resumed_from == 100_000


@pytest.mark.parametrize("sent, kept", [(50_000, 100_000), (150_000, 150_000)])
def test_a_body_that_begins_anew_is_kept_once_it_holds_more(
    server: ArchiveServer, tmp_path: Path, sent: int, kept: int
) -> None:
    served = begun(server, tmp_path)
    served.ranges, served.cut_after = False, [sent, *[0] * 9]
    with pytest.raises(DownloadError, match=f"{kept} bytes are here"):
        fetch(server, tmp_path)
    assert (tmp_path / "a.7z.part").read_bytes() == BODY[:kept]
    assert left(tmp_path) == ["a.7z.part", "a.7z.part.json"]
    served.ranges, served.cut_after = True, []
    fetch(server, tmp_path)
    assert server.log[-1].range == f"bytes={kept}-"


def test_a_changed_file_begins_again_and_is_gone_on_with(
    server: ArchiveServer, tmp_path: Path
) -> None:
    begun(server, tmp_path)
    changed = BODY[:6] + BODY[:5:-1]
    server.files["/a.7z"] = Served(changed, cut_after=[50_000])
    fetched = fetch(server, tmp_path, signature=BODY[:6], **NOTHING_KNOWN)
    assert [asked.range for asked in server.log] == ["bytes=100000-", "bytes=50000-"]
    assert (tmp_path / "a.7z").read_bytes() == changed
    assert fetched.resumed_from == 0


def test_what_was_left_is_not_claimed_where_the_server_began_again(
    server: ArchiveServer, tmp_path: Path
) -> None:
    begun(server, tmp_path).ranges = False
    assert fetch(server, tmp_path).resumed_from == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"range_tag": '"another"'},
        {"headers": {"Last-Modified": "Tue, 06 Jan 2026 00:00:00 GMT"}},
        {"range_total": "300001"},
        {"range_total": "9" * 5000},
    ],
)
def test_two_versions_are_not_glued_together(
    server: ArchiveServer, tmp_path: Path, wrong: dict[str, Any]
) -> None:
    date = {"Last-Modified": "Mon, 05 Jan 2026 00:00:00 GMT"}
    begun(server, tmp_path, headers=date)
    tag = Served(BODY).tag
    changed = Served(BODY[::-1], etag=tag, ignores_if_range=True)
    for name, value in {"headers": date, **wrong}.items():
        setattr(changed, name, value)
    server.files["/a.7z"] = changed
    fetch(server, tmp_path, **NOTHING_KNOWN)
    assert [asked.status for asked in server.log] == [206, 200]
    assert (tmp_path / "a.7z").read_bytes() == BODY[::-1]


def test_lengths_of_too_many_digits_are_none() -> None:
    for digits, known in ((18, True), (19, False), (5000, False)):
        number = "9" * digits
        response = httpx.Response(206, headers={"Content-Length": number})
        assert content_length(response) == (int(number) if known else None)
        for text in (f"bytes 0-1/{number}", f"bytes {number}-9/10", f"bytes 0-{number}/10"):
            response = httpx.Response(206, headers={"Content-Range": text})
            assert (content_range(response) != (None, None)) is known


@pytest.mark.parametrize("tag", ['"\xe9"', '"' + "x" * 300 + '"', '"\u1234"', '"v"\r\nEvil: 1'])
def test_a_version_that_can_not_be_sent_back_is_none(
    server: ArchiveServer, tmp_path: Path, tag: str
) -> None:
    origin = Origin(server.url("/a.7z"), len(BODY), tag, None)
    assert origin.version is None
    assert Origin(origin.url, None, tag, "Mon").version == "Mon"
    Part(origin.url, tmp_path / "a.7z").write_origin(origin)  # as an earlier release kept it
    (tmp_path / "a.7z.part").write_bytes(BODY[:1000])
    server.files["/a.7z"] = Served(BODY)
    assert fetch(server, tmp_path).resumed_from == 0
    assert [asked.range for asked in server.log] == [None]


def test_a_version_that_is_not_ascii_does_not_end_a_download(
    server: ArchiveServer, tmp_path: Path
) -> None:
    server.files["/a.7z"] = Served(BODY, etag='"\xe9"', cut_after=[1000])
    assert fetch(server, tmp_path).requests == 2
    assert (tmp_path / "a.7z").read_bytes() == BODY


def test_a_body_of_unknown_length_has_a_bound(server: ArchiveServer, tmp_path: Path) -> None:
    told: list[int] = []
    server.files["/a.7z"] = Served(BODY * 20, chunked=True)
    with pytest.raises(DownloadError, match="more than 1000000 are not received"):
        fetch(
            server,
            tmp_path,
            max_bytes=1_000_000,
            progress=lambda stage, done, total: told.append(done),
            **NOTHING_KNOWN,
        )
    assert max(told) < 2_000_000
    assert left(tmp_path) == []
    server.files["/a.7z"] = Served(BODY)
    with pytest.raises(DownloadError, match="more than 299999 are not"):
        fetch(server, tmp_path, max_bytes=299_999, **NOTHING_KNOWN)
    assert fetch(server, tmp_path, max_bytes=300_000, **NOTHING_KNOWN).bytes == 300_000


def test_space_is_looked_at_again_as_a_body_of_unknown_length_grows(
    server: ArchiveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed: list[int] = []

    def looked(path: Path, bytes_: int) -> None:
        needed.append(bytes_)
        if len(needed) == 3:
            raise ArtifactError("are free", "")

    monkeypatch.setattr(module, "require_free_space", looked)
    monkeypatch.setattr(module, "_LOOK_BYTES", 100_000)
    server.files["/a.7z"] = Served(BODY, chunked=True)
    with pytest.raises(ArtifactError, match="are free"):
        fetch(server, tmp_path, beside_bytes=lambda total: total, **NOTHING_KNOWN)
    assert needed[0] == 100_000  # before the first byte
    assert 200_000 <= needed[1] < needed[2] - 100_000 < 400_000


@pytest.mark.parametrize(
    "variable, value, words",
    [
        ("ALL_PROXY", "socks5://127.0.0.1:9", r"ALL_PROXY speaks SOCKS"),
        ("HTTPS_PROXY", "socks4://me:secret@host:1", "address of a proxy.*HTTPS_PROXY"),
        ("http_proxy", "http://me:sec/ret@host:x", "address of a proxy.*http_proxy"),
        ("SSL_CERT_FILE", "/nope.pem", "certificates can't be read.*SSL_CERT_FILE"),
        ("SSL_CERT_FILE", __file__, "certificates can't be read.*SSL_CERT_FILE"),
    ],
)
def test_settings_that_can_not_be_used_are_named(
    server: ArchiveServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    value: str,
    words: str,
) -> None:
    monkeypatch.setitem(sys.modules, "socksio", None)
    for name in ("ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv(variable, value)
    server.files["/a.7z"] = Served(BODY)
    with pytest.raises(DownloadError, match=words) as raised:
        fetch(server, tmp_path)
    assert "unset it" in raised.value.fix
    assert "sec" not in str(raised.value)
    monkeypatch.delenv(variable)
    assert fetch(server, tmp_path).bytes == len(BODY)


@pytest.mark.parametrize("url", ["http://m/x?token=a", "http://m/x#a", "http://m/?", "ftp://m"])
def test_a_base_takes_names(url: str) -> None:
    with pytest.raises(DownloadError, match="not an address"):
        checked_base(url)
    assert checked_base("http://m/x/") == "http://m/x"


def test_who_waits_for_the_whole_file_is_told_before_it_has_its_name(
    server: ArchiveServer, tmp_path: Path
) -> None:
    server.files["/a.7z"] = Served(BODY)
    told: list[tuple[Downloaded, bool]] = []
    got = fetch(server, tmp_path, whole=lambda it: told.append((it, it.path.exists())))
    assert told == [(got, False)]
    server.files["/a.7z"] = Served(BODY[::-1])
    with pytest.raises(DownloadError, match="SHA-256"):
        fetch(server, tmp_path, whole=lambda it: told.append((it, True)))
    assert len(told) == 1


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    cuts=st.lists(st.integers(0, 60_000), max_size=6),
    ranges=st.booleans(),
    chunked=st.booleans(),
    etag=st.sampled_from(["content", None, 'W/"weak"']),
)
def test_whatever_happens_the_file_is_right_or_not_there(
    server: ArchiveServer,
    tmp_path_factory: pytest.TempPathFactory,
    cuts: list[int],
    ranges: bool,
    chunked: bool,
    etag: str | None,
) -> None:
    folder = tmp_path_factory.mktemp("any")
    body = BODY[:100_000]
    server.files["/a.7z"] = Served(
        body, cut_after=list(cuts), ranges=ranges, chunked=chunked, etag=etag
    )
    try:
        download(server.url("/a.7z"), folder / "a.7z", patience=QUICK)
    except DownloadError:
        assert not (folder / "a.7z").exists()
        assert len(cuts) >= QUICK.attempts
    else:
        assert (folder / "a.7z").read_bytes() == body
