"""Scenes from a server on this machine: once, resumably, and nothing that an archive may not do."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from archive_maker import write_archive
from archive_server import ArchiveServer, Served, serving

from vggt_deploy.artifact import locked
from vggt_deploy.data import eth3d_fetch as module
from vggt_deploy.data.archives import ArchiveError
from vggt_deploy.data.download import DownloadError, Patience
from vggt_deploy.data.eth3d_archives import DEPTH_BYTES, LICENCE, Known
from vggt_deploy.data.eth3d_fetch import EthFetched, fetch_eth3d
from vggt_deploy.errors import ArtifactError, UsageError

QUICK = Patience(connect_s=5, read_s=5, attempts=3, first_pause_s=0.0)
PICTURES = {
    "images/dslr_images_undistorted/DSC_0001.JPG": b"picture 1",
    "images/dslr_images_undistorted/DSC_0002.JPG": b"picture 2",
    "dslr_calibration_undistorted/cameras.txt": b"# no camera\n",
    "dslr_calibration_undistorted/images.txt": b"# no image\n",
}
DEPTH = {"ground_truth_depth/dslr_images/DSC_0001.JPG": b"\0\0\x80\x7f" * 500}
JPG = {
    "images/dslr_images/DSC_0001.JPG": b"distorted",
    "dslr_calibration_jpg/cameras.txt": b"# no camera\n",
}
NAME = "pipes_dslr_undistorted"


@pytest.fixture(scope="module")
def shared() -> Iterator[ArchiveServer]:
    with serving() as server:
        yield server


@pytest.fixture
def server(shared: ArchiveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ArchiveServer:
    """Serves two scenes, of which nothing is known beforehand; depth maps are small ones."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(module, "KNOWN", {})
    monkeypatch.setattr("vggt_deploy.data.eth3d_archives.DEPTH_BYTES", 2000)
    shared.files.clear()
    shared.log.clear()
    for scene in ("pipes", "office"):
        for kind, files in (("undistorted", PICTURES), ("depth", DEPTH), ("jpg", JPG)):
            put(
                shared,
                tmp_path,
                f"{scene}_dslr_{kind}",
                {f"{scene}/{k}": v for k, v in files.items()},
            )
    return shared


def put(
    server: ArchiveServer, folder: Path, name: str, files: dict[str, bytes], **more: Any
) -> Served:
    path = write_archive(folder / "made" / f"{name}.7z", files, **more)
    served = server.files[f"/data/{name}.7z"] = Served(path.read_bytes())
    return served


def fetch(server: ArchiveServer, output: Path, *kinds: str, **more: Any) -> EthFetched:
    settings: dict[str, Any] = {
        "scenes": ["pipes"],
        "base_url": server.url("/data/"),
        "patience": QUICK,
        **more,
    }
    return fetch_eth3d(output=output, kinds=kinds, **settings)


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".eth3d.json"
    }


def archives_of(output: Path) -> list[str]:
    folder = output / "archives"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def own(server: ArchiveServer, output: Path, body: bytes | None = None) -> Path:
    """The archive, or another one, put there by hand."""
    archive = output / f"archives/{NAME}.7z"
    archive.parent.mkdir(parents=True, exist_ok=True)
    archive.write_bytes(server.files[f"/data/{NAME}.7z"].body if body is None else body)
    return archive


def asked(server: ArchiveServer) -> list[str]:
    return [one.path.removeprefix("/data/").removesuffix(".7z") for one in server.log]


def test_scenes_lie_where_readers_look_with_licence_and_record(
    server: ArchiveServer, tmp_path: Path
) -> None:
    output = tmp_path / "eth3d"
    fetched = fetch(server, output, scenes=["pipes", "office"])
    assert tree(output / "pipes") == PICTURES
    assert fetched.scenes == (output / "pipes", output / "office")
    assert fetched.licence.read_text("utf-8") == LICENCE
    assert sorted(path.name for path in output.iterdir()) == [
        "ETH3D_LICENSE.txt", "office", "pipes",
    ]  # fmt: skip
    served = server.files[f"/data/{NAME}.7z"].body
    record = json.loads((output / "pipes/.eth3d.json").read_text())["archives"][NAME]
    assert record["url"] == server.url(f"/data/{NAME}.7z")
    assert record["bytes"] == len(served)
    assert record["sha256"] == hashlib.sha256(served).hexdigest()
    assert record["sha256_known"] is False
    assert record["files"]["dslr_calibration_undistorted/images.txt"]["bytes"] == 11


def test_nothing_is_fetched_twice(server: ArchiveServer, tmp_path: Path) -> None:
    first = fetch(server, tmp_path / "out")
    server.log.clear()
    again = fetch(server, tmp_path / "out")
    assert server.log == []
    assert [a.origin for a in first.archives + again.archives] == ["downloaded", "there already"]
    assert again.archives[0].sha256 == first.archives[0].sha256
    more = fetch(server, tmp_path / "out", "depth")
    assert asked(server) == ["pipes_dslr_depth", "pipes_dslr_jpg"]
    assert [a.origin for a in more.archives] == ["there already", "downloaded", "downloaded"]
    assert tree(tmp_path / "out/pipes") == {**PICTURES, **DEPTH, **JPG}


def test_depth_brings_the_calibration_of_its_pictures_if_it_is_not_there(
    server: ArchiveServer, tmp_path: Path
) -> None:
    names = [a.name for a in fetch(server, tmp_path / "a", "depth").archives]
    assert names == [NAME, "pipes_dslr_depth", "pipes_dslr_jpg"]
    calibration = {"dslr_calibration_jpg/cameras.txt": b"# no camera\n"}
    put(server, tmp_path, "pipes_dslr_depth", {**DEPTH, **calibration})
    names = [a.name for a in fetch(server, tmp_path / "b", "depth").archives]
    assert names == [NAME, "pipes_dslr_depth"]
    names = [a.name for a in fetch(server, tmp_path / "c").archives]
    assert names == [NAME]


def test_pictures_without_depth_are_told(server: ArchiveServer, tmp_path: Path) -> None:
    fetched = fetch(server, tmp_path / "out", "depth")
    assert fetched.notes == ("pipes: no depth for 1 of 2 pictures (DSC_0002.JPG)",)
    assert fetch(server, tmp_path / "none").notes == ()


def test_archives_with_an_outer_folder_go_to_the_same_place(
    server: ArchiveServer, tmp_path: Path
) -> None:
    put(server, tmp_path, NAME, {f"{NAME}/pipes/{k}": v for k, v in PICTURES.items()})
    put(server, tmp_path, "pipes_dslr_depth", DEPTH)
    fetch(server, tmp_path / "out", "depth")
    assert tree(tmp_path / "out/pipes") == {**PICTURES, **DEPTH, **JPG}


def test_a_missing_or_changed_file_is_noticed_and_done_again(
    server: ArchiveServer, tmp_path: Path
) -> None:
    fetch(server, tmp_path / "out")
    picture = tmp_path / "out/pipes/images/dslr_images_undistorted/DSC_0001.JPG"
    for damage in (picture.unlink, lambda: picture.write_bytes(b"pic")):
        damage()
        fetched = fetch(server, tmp_path / "out")
        assert fetched.archives[0].origin == "downloaded"
        assert "DSC_0001.JPG" in fetched.notes[0]
        assert tree(tmp_path / "out/pipes") == PICTURES


@pytest.mark.parametrize(
    "text", ["", "{", '{"schema": 1}', '{"schema": 1, "schema": 1}', "[" * 10_000]
)
def test_a_damaged_record_is_noticed_and_made_again(
    server: ArchiveServer, tmp_path: Path, text: str
) -> None:
    fetch(server, tmp_path / "out")
    record = tmp_path / "out/pipes/.eth3d.json"
    whole = json.loads(record.read_text())
    record.write_text(text)
    fetched = fetch(server, tmp_path / "out")
    assert "is damaged" in fetched.notes[0]
    again = json.loads(record.read_text())
    assert again["archives"][NAME]["files"] == whole["archives"][NAME]["files"]


def test_a_record_of_another_version(server: ArchiveServer, tmp_path: Path) -> None:
    fetch(server, tmp_path / "out")
    record = tmp_path / "out/pipes/.eth3d.json"
    record.write_text(record.read_text().replace('"schema": 1', '"schema": 2'))
    assert "another version" in fetch(server, tmp_path / "out").notes[0]


def test_kept_archives_are_used_again(server: ArchiveServer, tmp_path: Path) -> None:
    fetch(server, tmp_path / "out", keep_archives=True)
    assert (tmp_path / f"out/archives/{NAME}.7z").is_file()
    shutil.rmtree(tmp_path / "out/pipes")
    server.log.clear()
    fetched = fetch(server, tmp_path / "out")
    assert server.log == []
    assert fetched.archives[0].origin == "archive was there"
    assert archives_of(tmp_path / "out") == [f"{NAME}.7z"]  # kept once, it is never deleted
    fetch(server, tmp_path / "out")
    assert archives_of(tmp_path / "out") == [f"{NAME}.7z"]


def known_of(server: ArchiveServer, monkeypatch: pytest.MonkeyPatch, **changed: Any) -> Known:
    body = server.files[f"/data/{NAME}.7z"].body
    right: dict[str, Any] = {"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}
    known = Known(**{**right, **changed})
    monkeypatch.setattr(module, "KNOWN", {NAME: known})
    return known


def test_the_known_length_and_hash_are_held_to(
    server: ArchiveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known_of(server, monkeypatch)
    assert fetch(server, tmp_path / "a").archives[0].sha256_known
    known_of(server, monkeypatch, sha256="0" * 64)
    with pytest.raises(DownloadError, match="expected 0000"):
        fetch(server, tmp_path / "b")
    known_of(server, monkeypatch, bytes=7)
    with pytest.raises(DownloadError, match="expected 7"):
        fetch(server, tmp_path / "c")
    assert not (tmp_path / "b/pipes").exists()
    assert not (tmp_path / "c/pipes").exists()


def test_an_archive_put_there_by_hand_must_be_the_known_one(
    server: ArchiveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known_of(server, monkeypatch)
    archive = own(server, tmp_path / "out")
    fetched = fetch(server, tmp_path / "out")
    assert fetched.archives[0].origin == "archive was there"
    assert fetched.notes == (f"{NAME}: {archive} stays, this command did not download it",)
    shutil.rmtree(tmp_path / "out/pipes")
    own(server, tmp_path / "out", b"something else")
    with pytest.raises(ArtifactError, match="is not the known archive") as raised:
        fetch(server, tmp_path / "out")
    assert "move it away" in raised.value.fix
    assert archive.read_bytes() == b"something else"
    assert server.log == []


def test_an_archive_that_was_put_there_by_hand_stays(server: ArchiveServer, tmp_path: Path) -> None:
    archive = own(server, tmp_path / "out")
    fetch(server, tmp_path / "out")
    record = json.loads((tmp_path / "out/pipes/.eth3d.json").read_text())["archives"][NAME]
    assert record["url"] is None
    fetch(server, tmp_path / "out")  # a second run finds it there already
    assert archives_of(tmp_path / "out") == [archive.name]
    shutil.rmtree(tmp_path / "out/pipes")
    whole = archive.read_bytes()
    for broken in (whole.replace(b"picture 1", b"pictura 1"), b"<html>"):
        archive.write_bytes(broken)
        with pytest.raises(ArchiveError, match="stays, this command did not download it"):
            fetch(server, tmp_path / "out")
        assert archive.read_bytes() == broken
    assert server.log == []


def test_a_marker_is_of_one_archive(server: ArchiveServer, tmp_path: Path) -> None:
    output = tmp_path / "out"
    marker = output / f"archives/{NAME}.7z.downloaded"

    def copied(stage: str, done: int, total: int) -> None:
        if stage.endswith("unpack"):
            shutil.copy(marker, tmp_path / "marker")

    fetch(server, output, progress=copied)
    shutil.rmtree(output / "pipes")
    files = {f"pipes/{name}": body for name, body in PICTURES.items()}
    mine = write_archive(tmp_path / "mine.7z", {**files, "pipes/more": b"x"}).read_bytes()
    for text in ((tmp_path / "marker").read_text(), "", "{", '{"sha256": 3}'):
        archive = own(server, output, mine)
        marker.write_text(text)
        shutil.rmtree(output / "pipes", ignore_errors=True)
        fetch(server, output)
        fetch(server, output)
        assert archive.read_bytes() == mine


def killed_before_the_archive_was_deleted(
    server: ArchiveServer, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "_delete", killed)
        with pytest.raises(KeyboardInterrupt):
            fetch(server, output)
    assert archives_of(output) == [f"{NAME}.7z", f"{NAME}.7z.downloaded"]
    server.log.clear()


def test_killed_after_the_record_the_archive_is_deleted_by_the_next_run(
    server: ArchiveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    killed_before_the_archive_was_deleted(server, output, monkeypatch)
    assert fetch(server, output).archives[0].origin == "there already"
    assert not (output / "archives").exists()
    (output / "archives").mkdir()
    (output / f"archives/{NAME}.7z.downloaded").write_bytes(
        json.dumps({"url": "", "bytes": 1, "sha256": ""}).encode()
    )  # killed between the two deletions
    fetch(server, output)
    assert not (output / "archives").exists()
    assert server.log == []


@pytest.mark.parametrize("why", ["kept", "another", "changed", "not downloaded"])
def test_what_a_killed_run_left_stays_if_it_may_be_wanted(
    server: ArchiveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    output = tmp_path / "out"
    killed_before_the_archive_was_deleted(server, output, monkeypatch)
    archive = output / f"archives/{NAME}.7z"
    if why == "another":
        archive.write_bytes(b"my own")
    if why == "changed":
        archive.write_bytes(bytes(archive.stat().st_size))
    if why == "not downloaded":
        archive.with_name(f"{NAME}.7z.downloaded").unlink()
    body = archive.read_bytes()
    fetch(server, output, keep_archives=why == "kept")
    assert archive.read_bytes() == body


@pytest.mark.parametrize("where", ["read_contents", "unpack_into"])
def test_an_archive_that_needs_more_memory_is_kept(
    server: ArchiveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    import py7zr

    def full(*arguments: object, **more: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        if where == "read_contents":
            patch.setattr(py7zr, "SevenZipFile", full)
        else:
            patch.setattr(py7zr.SevenZipFile, "extractall", full)
        with pytest.raises(ArchiveError, match="needs more memory"):
            fetch(server, tmp_path / "out")
    server.log.clear()
    assert fetch(server, tmp_path / "out").archives[0].origin == "archive was there"
    assert server.log == []
    assert not (tmp_path / "out/archives").exists()  # downloaded by the run before


def test_a_corrupt_archive_is_deleted_and_leaves_nothing(
    server: ArchiveServer, tmp_path: Path
) -> None:
    served = server.files[f"/data/{NAME}.7z"]
    whole = served.body
    served.body = whole.replace(b"picture 1", b"pictura 1")
    assert served.body != whole
    with pytest.raises(ArchiveError, match=r"damaged.*the archive was deleted"):
        fetch(server, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir() if path.name != "archives"] == [
        "ETH3D_LICENSE.txt"
    ]
    assert not any((tmp_path / "out/archives").iterdir())
    served.body = whole
    fetch(server, tmp_path / "out")
    assert tree(tmp_path / "out/pipes") == PICTURES


@pytest.mark.parametrize(
    "files, modes, why",
    [
        ({"../../x": b"bad"}, {}, "climbs out"),
        ({"/tmp/x": b"bad"}, {}, "absolute"),
        ({"pipes/link": b"../.."}, {"pipes/link": stat.S_IFLNK | 0o777}, "the link"),
    ],
)
def test_an_archive_that_escapes_is_not_unpacked(
    server: ArchiveServer, tmp_path: Path, files: dict[str, bytes], modes: dict[str, int], why: str
) -> None:
    good = {f"pipes/{k}": v for k, v in PICTURES.items()}
    put(server, tmp_path, NAME, {**good, **files}, modes=modes)
    output = tmp_path / "deep/er/out"
    with pytest.raises(ArchiveError, match=why):
        fetch(server, output)
    assert sorted(path.name for path in output.rglob("*")) == ["ETH3D_LICENSE.txt", "archives"]
    assert sorted(path.name for path in (tmp_path / "deep").rglob("*")) == [
        "ETH3D_LICENSE.txt", "archives", "er", "out",
    ]  # fmt: skip


def test_a_page_instead_of_an_archive(server: ArchiveServer, tmp_path: Path) -> None:
    server.files[f"/data/{NAME}.7z"] = Served(b"<html>Sign in to this network</html>")
    with pytest.raises(DownloadError, match="sends something else"):
        fetch(server, tmp_path / "out")
    assert archives_of(tmp_path / "out") == []


def test_what_others_made_is_not_written_over(server: ArchiveServer, tmp_path: Path) -> None:
    mine = tmp_path / "out/pipes/images/dslr_images_undistorted/DSC_0001.JPG"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"my own 01")
    with pytest.raises(ArtifactError, match="in the way"):
        fetch(server, tmp_path / "out")
    assert tree(tmp_path / "out/pipes") == {
        "images/dslr_images_undistorted/DSC_0001.JPG": b"my own 01"
    }
    mine.write_bytes(b"picture 1")  # unpacked by hand before: the same file
    fetch(server, tmp_path / "out")
    assert tree(tmp_path / "out/pipes") == PICTURES


@pytest.mark.parametrize("name", ["ETH3D_LICENSE.txt/x", "pipes", "archives"])
def test_a_disk_that_says_no_is_an_error_with_a_fix(
    server: ArchiveServer, tmp_path: Path, name: str
) -> None:
    blocked = tmp_path / "out" / name
    blocked.parent.mkdir(parents=True)
    blocked.write_bytes(b"in the way")
    with pytest.raises(ArtifactError, match="can't write") as raised:
        fetch(server, tmp_path / "out")
    assert "something else lies at that place" in raised.value.fix
    assert blocked.read_bytes() == b"in the way"


@pytest.fixture
def other_disk(tmp_path: Path) -> Iterator[Path]:
    shared = Path("/dev/shm")
    if not os.access(shared, os.W_OK) or shared.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second disk here")
    with tempfile.TemporaryDirectory(dir=shared) as folder:
        yield Path(folder)


def test_parts_of_a_scene_may_be_links_to_another_disk(
    server: ArchiveServer, tmp_path: Path, other_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out/pipes").mkdir(parents=True)
    (tmp_path / "out/pipes/images").symlink_to(other_disk)
    usage = lambda path: SimpleNamespace(free=0 if Path(path).samefile(other_disk) else 10**12)  # noqa: E731
    with monkeypatch.context() as patch:
        patch.setattr("vggt_deploy.artifact.shutil.disk_usage", usage)
        with pytest.raises(ArtifactError, match=r"are needed for .*pipes/images"):
            fetch(server, tmp_path / "out", progress=not_unpacking)
    fetch(server, tmp_path / "out")
    pictures = other_disk / "dslr_images_undistorted"
    assert tree(pictures) == {"DSC_0001.JPG": b"picture 1", "DSC_0002.JPG": b"picture 2"}
    assert not (tmp_path / "out/pipes/images").is_file()
    assert (tmp_path / "out/pipes/dslr_calibration_undistorted/cameras.txt").is_file()


def not_unpacking(stage: str, done: int, total: int) -> None:
    assert not stage.endswith("unpack")


def test_what_goes_over_disks_is_there_whole_or_not_at_all(
    server: ArchiveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = Path.replace

    def over_disks(path: Path, target: Path) -> Path:
        if ".unpacking" in str(path):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        return replace(path, target)

    def cut(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes()[:3])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    monkeypatch.setattr(Path, "replace", over_disks)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", cut)
        with pytest.raises(ArtifactError, match="can't write") as raised:
            fetch(server, tmp_path / "out")
    assert "free some space" in raised.value.fix
    assert tree(tmp_path / "out/pipes") == {}
    left = tmp_path / "out/pipes/images/dslr_images_undistorted/.eth3d.moving"
    left.symlink_to(tmp_path / "precious")  # as a killed run, or someone else, may leave one
    fetch(server, tmp_path / "out")
    assert tree(tmp_path / "out/pipes") == PICTURES
    assert not (tmp_path / "precious").exists()


def test_scenes_may_be_links_to_another_disk(server: ArchiveServer, tmp_path: Path) -> None:
    (tmp_path / "disk/pipes").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/pipes").symlink_to(tmp_path / "disk/pipes")
    fetch(server, tmp_path / "out")
    assert tree(tmp_path / "disk/pipes") == PICTURES
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["pipes"]


def test_an_archive_that_is_not_there(server: ArchiveServer, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="is not there"):
        fetch(server, tmp_path / "out", "scan_clean")
    assert tree(tmp_path / "out/pipes") == PICTURES  # what was fetched before it stays


def test_a_wrong_name_is_refused_before_anything_is_asked_or_written(
    server: ArchiveServer, tmp_path: Path
) -> None:
    with pytest.raises(UsageError):
        fetch(server, tmp_path / "out", scenes=["pipes", "kitchen"])
    with pytest.raises(UsageError):
        fetch(server, tmp_path / "out", "colour")
    assert server.log == []
    assert not (tmp_path / "out").exists()


def test_two_runs_into_one_folder(server: ArchiveServer, tmp_path: Path) -> None:
    with (
        locked(tmp_path / "out"),
        pytest.raises(ArtifactError, match="being written by another process"),
    ):
        fetch(server, tmp_path / "out")
    assert server.log == []


def test_space_is_asked_for_before_the_first_byte(
    server: ArchiveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known_of(server, monkeypatch)
    length = len(server.files[f"/data/{NAME}.7z"].body)
    free = [2 * length - 1]
    usage = lambda path: SimpleNamespace(free=free[0])  # noqa: E731
    monkeypatch.setattr("vggt_deploy.artifact.shutil.disk_usage", usage)
    with pytest.raises(ArtifactError, match="are free"):
        fetch(server, tmp_path / "out")
    assert server.log == []
    free[0] = 2 * length
    fetch(server, tmp_path / "out")
    monkeypatch.setattr(module, "KNOWN", {})
    free[0] = 14 * DEPTH_BYTES  # the test's depth maps are smaller, the space asked for follows
    monkeypatch.setattr("vggt_deploy.data.eth3d_archives.DEPTH_BYTES", DEPTH_BYTES + 1)
    with pytest.raises(ArtifactError, match="are free"):
        fetch(server, tmp_path / "out", "depth")


def test_space_is_looked_at_again_before_unpacking(
    server: ArchiveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then it is known exactly, and the download has taken its share."""
    needed = sum(map(len, PICTURES.values()))
    free = [10**12]

    def downloaded(stage: str, done: int, total: int) -> None:
        if stage.endswith("hash"):
            free[0] = needed - 1
        not_unpacking(stage, done, total)

    usage = lambda path: SimpleNamespace(free=free[0])  # noqa: E731
    monkeypatch.setattr("vggt_deploy.artifact.shutil.disk_usage", usage)
    with pytest.raises(ArtifactError, match="are free"):
        fetch(server, tmp_path / "out", progress=downloaded)
    free[0] = needed
    assert fetch(server, tmp_path / "out").archives[0].origin == "archive was there"


def test_a_base_address_has_no_query(server: ArchiveServer, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="not an address"):
        fetch(server, tmp_path / "out", base_url=server.url("/data?token=a"))
    assert server.log == []
    assert not (tmp_path / "out").exists()


def test_ctrl_c_leaves_a_part_that_is_gone_on_with(server: ArchiveServer, tmp_path: Path) -> None:
    served = put(server, tmp_path, NAME, {**PICTURES, "noise": os.urandom(200_000)})
    served.cut_after = [70_000]

    def interrupted(stage: str, done: int, total: int) -> None:
        if done >= 70_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(server, tmp_path / "out", progress=interrupted)
    assert (tmp_path / f"out/archives/{NAME}.7z.part").stat().st_size == 70_000
    server.log.clear()
    fetch(server, tmp_path / "out")
    assert [one.range for one in server.log] == ["bytes=70000-"]


def test_killed_while_unpacking_it_is_done_again_without_a_download(
    server: ArchiveServer, tmp_path: Path
) -> None:
    def interrupted(stage: str, done: int, total: int) -> None:
        if stage.endswith("unpack"):
            # What SIGKILL leaves: no handler runs. A child process would not count in coverage.
            shutil.copytree(tmp_path / "out", tmp_path / "killed", dirs_exist_ok=True)

    fetch(server, tmp_path / "out", progress=interrupted)
    left = tmp_path / "killed"
    assert (left / f".{NAME}.unpacking").is_dir()
    assert not (left / "pipes").exists()
    server.log.clear()
    assert fetch(server, left).archives[0].origin == "archive was there"
    assert server.log == []
    assert tree(left / "pipes") == PICTURES
    assert not (left / f".{NAME}.unpacking").exists()


def test_killed_between_renames_it_is_done_again(
    server: ArchiveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    renamed: list[Path] = []
    replace = Path.replace

    def stop_at_third(path: Path, target: Path) -> Path:
        if ".unpacking" in str(path):
            renamed.append(target)
            if len(renamed) == 3:
                raise KeyboardInterrupt
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        fetch(server, tmp_path / "out")
    monkeypatch.undo()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert len(tree(tmp_path / "out/pipes")) == 2
    server.log.clear()
    fetch(server, tmp_path / "out")
    assert server.log == []
    assert tree(tmp_path / "out/pipes") == PICTURES


def test_sigkill_in_the_middle_of_a_download(server: ArchiveServer, tmp_path: Path) -> None:
    served = put(server, tmp_path, NAME, {**PICTURES, "noise": os.urandom(400_000)})
    served.pause_s = 0.3
    code = (
        "import sys; from pathlib import Path; from vggt_deploy.data.eth3d_fetch import *;"
        "fetch_eth3d(['pipes'], Path(sys.argv[2]), base_url=sys.argv[1])"
    )
    command = [sys.executable, "-c", code, server.url("/data"), str(tmp_path / "out")]
    part = tmp_path / f"out/archives/{NAME}.7z.part"
    with subprocess.Popen(command) as process:
        deadline = time.monotonic() + 20
        while not (part.exists() and part.stat().st_size > 65_536):
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    have = part.stat().st_size
    served.pause_s = 0.0
    server.log.clear()
    fetched = fetch(server, tmp_path / "out")
    assert [one.range for one in server.log] == [f"bytes={have}-"]
    assert fetched.archives[0].files == 5
    assert {k: v for k, v in tree(tmp_path / "out/pipes").items() if k != "noise"} == PICTURES
