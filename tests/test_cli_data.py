"""`vggt-deploy data eth3d` from outside: words, exit codes, scenes that can be read."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from archive_maker import write_archive
from archive_server import ArchiveServer, Served, serving
from typer.testing import CliRunner, Result

from vggt_deploy.cli import app
from vggt_deploy.data.eth3d import read_scene, write_scene
from vggt_deploy.data.synthetic import render_views

NAME = "pipes_dslr_undistorted"
VIEWS = 3


@pytest.fixture(scope="module")
def body(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A rendered scene in the archive of an ETH3D scene."""
    folder = tmp_path_factory.mktemp("archive")
    write_scene(folder / "pipes", render_views(4, views=VIEWS, height=84, width=112, family="room"))
    files = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    return write_archive(folder / "pipes.7z", files).read_bytes()


@pytest.fixture
def server(body: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[ArchiveServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as server:
        server.files[f"/{NAME}.7z"] = Served(body)
        yield server


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["data", "eth3d", *arguments])


def test_a_scene_is_fetched_said_and_readable(server: ArchiveServer, tmp_path: Path) -> None:
    out = tmp_path / "eth3d"
    result = call("--scenes", "pipes", "-o", str(out), "--base-url", server.url())
    assert result.exit_code == 0, result.stderr
    assert result.stderr.index("CC BY-NC-SA 4.0") < result.stderr.index(NAME)
    assert f"{NAME}: downloaded" in result.stdout
    assert "SHA-256 not known, found " in result.stdout
    assert str(out / "pipes") in result.stdout
    assert (out / "ETH3D_LICENSE.txt").is_file()
    frames = read_scene(out / "pipes").frames
    assert len(frames) == VIEWS
    assert all(frame.depth is not None for frame in frames)
    again = call("--scenes", "pipes", "-o", str(out), "--base-url", server.url())
    assert f"{NAME}: there already" in again.stdout
    assert len(server.log) == 1


def test_a_fetched_folder_is_a_folder_of_scenes(server: ArchiveServer, tmp_path: Path) -> None:
    from vggt_deploy.data.folders import scene_roots

    out = tmp_path / "eth3d"
    call("--scenes", "pipes", "-o", str(out), "--base-url", server.url(), "--keep-archives")
    assert (out / f"archives/{NAME}.7z").is_file()
    assert scene_roots(out) == (out / "pipes",)


def test_a_known_hash_is_said_to_be_so(
    server: ArchiveServer, body: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hashlib

    from vggt_deploy.data.eth3d_archives import Known

    known = {NAME: Known(len(body), hashlib.sha256(body).hexdigest())}
    monkeypatch.setattr("vggt_deploy.data.eth3d_fetch.KNOWN", known)
    result = call("--scenes", "pipes", "-o", str(tmp_path / "a"), "--base-url", server.url())
    assert "SHA-256 as known" in result.stdout
    server.files[f"/{NAME}.7z"].body = body[:-1] + b"?"
    result = call("--scenes", "pipes", "-o", str(tmp_path / "b"), "--base-url", server.url())
    assert result.exit_code == 1
    assert f"expected {known[NAME].sha256}" in result.stderr
    assert not (tmp_path / "b/pipes").exists()


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("--scenes", "pipe"), "did you mean pipes?"),
        (("--scenes", ","), "--scenes is empty"),
        (("--scenes", "pipes", "--with", "masks"), "'masks' is not one of ETH3D's"),
    ],
)
def test_wrong_words_write_nothing(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    result = call(*arguments, "-o", str(tmp_path / "out"))
    assert result.exit_code == 2
    assert words in result.stderr
    assert not (tmp_path / "out").exists()


def test_failures_say_what_to_do(server: ArchiveServer, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    result = call("--scenes", "office", "-o", out, "--base-url", server.url())
    assert result.exit_code == 1
    assert "HTTP status 404" in result.stderr
    assert "fix: " in result.stderr
    result = call("--scenes", "office", "-o", out, "--base-url", "file:///etc")
    assert result.exit_code == 1
    assert "not an address" in result.stderr


@pytest.mark.parametrize("package", ["httpx", "py7zr"])
def test_a_missing_package_names_the_extra(
    server: ArchiveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    result = call("--scenes", "pipes", "-o", str(tmp_path / "out"), "--base-url", server.url())
    assert result.exit_code == 1
    assert "pip install 'vggt-deploy[eth3d]'" in result.stderr
    assert server.log == []  # not after minutes of downloading


def test_ctrl_c_ends_it_and_a_second_run_waits_for_no_lock(
    server: ArchiveServer, tmp_path: Path
) -> None:
    server.files[f"/{NAME}.7z"].pause_s = 0.5
    out = tmp_path / "out"
    command = [sys.executable, "-m", "vggt_deploy", "data", "eth3d", "--scenes", "pipes"]
    command += ["-o", str(out), "--base-url", server.url()]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        part = out / f"archives/{NAME}.7z.part"
        deadline = time.monotonic() + 30
        while not (part.exists() and part.stat().st_size):
            assert process.poll() is None, "it ended before it could be interrupted"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        second = call("--scenes", "pipes", "-o", str(out), "--base-url", server.url())
        assert second.exit_code == 1
        assert "being written by another process" in second.stderr
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.endswith("interrupted\n")
    assert "Traceback" not in errors
    server.files[f"/{NAME}.7z"].pause_s = 0.0
    result = call("--scenes", "pipes", "-o", str(out), "--base-url", server.url())
    assert result.exit_code == 0
    assert server.log[-1].range is not None
    assert len(read_scene(out / "pipes").frames) == VIEWS
