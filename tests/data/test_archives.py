"""Archives that are damaged, that escape, and that are what they should be."""

from __future__ import annotations

import errno
import os
import random
import stat
import struct
import sys
import time
import zlib
from pathlib import Path

import pytest
from archive_maker import write_archive
from hypothesis import given, settings
from hypothesis import strategies as st

from vggt_deploy.data import archives as module
from vggt_deploy.data.archives import (
    SIGNATURE,
    ArchiveError,
    Contents,
    Member,
    read_contents,
    safe_name,
    unpack,
)
from vggt_deploy.data.disk import disk_fix
from vggt_deploy.errors import ArtifactError
from vggt_deploy.progress import silent

NOISE = random.Random(5).randbytes(20_000)
FILES = {"room/images/a.JPG": NOISE, "room/b.txt": b"text\n" * 100, "room/empty": b""}
HERE = Path("a.7z")


def unpacked(path: Path, folder: Path) -> dict[str, bytes]:
    folder.mkdir()
    unpack(path, read_contents(path), folder)
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def test_files_come_out_as_they_went_in(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "a.7z", FILES, folders=("room/hollow",))
    contents = read_contents(path)
    assert contents.folders == ("room/hollow",)
    assert contents.files[0] == Member("room/images/a.JPG", 20_000, zlib.crc32(NOISE))
    assert contents.bytes == 20_500
    assert unpacked(path, tmp_path / "out") == FILES
    assert (tmp_path / "out/room/hollow").is_dir()


def test_the_usual_compression_too(tmp_path: Path) -> None:
    import py7zr

    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.txt").write_bytes(NOISE + b"0" * 100_000)
    with py7zr.SevenZipFile(tmp_path / "a.7z", "w") as archive:
        archive.writeall(tmp_path / "in", "in")
    assert (tmp_path / "a.7z").stat().st_size < 60_000
    assert unpacked(tmp_path / "a.7z", tmp_path / "out") == {
        "in/a.txt": NOISE + b"0" * 100_000,
    }


def test_progress_ends_at_the_sum(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "a.7z", FILES)
    (tmp_path / "out").mkdir()
    told: list[tuple[str, int, int]] = []
    unpack(
        path,
        read_contents(path),
        tmp_path / "out",
        stage="u",
        progress=lambda *step: told.append(step),
    )
    assert told[-1] == ("u", 20_500, 20_500)


def test_modes_of_the_archive_are_not_taken_over(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "a.7z", {"a": b"x"}, modes={"a": stat.S_IFREG | 0o6777})
    unpacked(path, tmp_path / "out")
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((tmp_path / "out/a").stat().st_mode) == 0o666 & ~mask


@pytest.mark.parametrize(
    "name, why",
    [
        ("../x", "climbs out"),
        ("room/../../x", "climbs out"),
        ("room/..", "climbs out"),
        ("/etc/x", "absolute"),
        ("C:/x", "absolute"),
        ("c:x", "absolute"),
        ("room\\..\\x", "climbs out"),
        ("room/a:stream", "separator"),
        ("room/a\nb", "control"),
        ("./", "empty"),
        (".", "empty"),
        ("room/" + "é" * 200, "too long"),
        ("/".join(["a" * 200] * 6), "more than 1024 bytes or 32 parts"),
        ("/".join(["a"] * 33), "more than 1024 bytes or 32 parts"),
    ],
)
def test_names_that_lead_elsewhere(tmp_path: Path, name: str, why: str) -> None:
    path = write_archive(tmp_path / "a.7z", {"room/good": b"good", name: b"bad"})
    with pytest.raises(ArchiveError, match=why):
        read_contents(path)
    assert list(tmp_path.iterdir()) == [path]


def test_the_longest_names_go(tmp_path: Path) -> None:
    names = ("/".join(["a"] * 32), "/".join(["é" * 100] * 5))
    path = write_archive(tmp_path / "a.7z", dict.fromkeys(names, b"x"))
    assert set(unpacked(path, tmp_path / "out")) == set(names)


def test_names_without_end_are_refused_at_once(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "a.7z", {f"{i}/" + "a/" * 50_000: b"x" for i in range(20)})
    began = time.process_time()
    with pytest.raises(ArchiveError, match="1024 bytes"):
        read_contents(path)
    assert time.process_time() - began < 5.0  # not the square of their parts


@given(st.text(max_size=30))
def test_any_name_stays_below_its_folder_or_is_refused(name: str) -> None:
    try:
        safe = safe_name(name, HERE)
    except ArchiveError:
        return
    target = os.path.normpath(f"/nowhere/out/{safe}")
    assert target.startswith("/nowhere/out/")
    assert safe_name(safe, HERE) == safe


@pytest.mark.parametrize(
    "kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK]
)
def test_links_and_devices(tmp_path: Path, kind: int) -> None:
    files = {"room/link": b"../../outside", "room/link/x": b"bad"}
    path = write_archive(tmp_path / "a.7z", files, modes={"room/link": kind | 0o777})
    with pytest.raises(ArchiveError, match="the link" if kind == stat.S_IFLNK else "neither"):
        read_contents(path)


@pytest.mark.parametrize(
    "names, why",
    [
        (("a/x", "a/x"), "twice"),
        (("a/x", "a//x"), "twice"),
        (("a/x", "./a/x"), "twice"),
        (("a/x", "a/X"), "take for one"),
        (("a/x", "A/y"), "take for one"),
        (("a/é", "a/e\u0301"), "take for one"),
        (("a", "a/x"), "as a file and as a folder"),
        (("a/x", "a"), "as a file and as a folder|twice"),
    ],
)
def test_names_that_fall_together(tmp_path: Path, names: tuple[str, str], why: str) -> None:
    class Twice(dict[str, bytes]):
        def items(self):  # type: ignore[no-untyped-def]
            return [(name, b"body") for name in names]

    with pytest.raises(ArchiveError, match=why):
        read_contents(write_archive(tmp_path / "a.7z", Twice()))


def test_folders_that_are_named_before_and_after_their_files(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "a.7z", {"a/b/x": b"1", "a/y": b"2"}, folders=("a", "a/b"))
    assert unpacked(path, tmp_path / "out") == {"a/b/x": b"1", "a/y": b"2"}


def test_bounds(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "a.7z", FILES)
    assert read_contents(path, max_files=3, max_bytes=20_500).bytes == 20_500
    with pytest.raises(ArchiveError, match="3 entries, more than 2"):
        read_contents(path, max_files=2)
    with pytest.raises(ArchiveError, match="20500 bytes unpacked, more than 20499"):
        read_contents(path, max_bytes=20_499)


def test_no_files_no_password_no_archive(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="holds no files"):
        read_contents(write_archive(tmp_path / "a.7z", {}, folders=("a",)))
    with pytest.raises(ArchiveError, match="encrypted") as raised:
        read_contents(write_archive(tmp_path / "b.7z", {"a": b"x"}, password="p"))
    assert raised.value.whole
    (tmp_path / "c.7z").write_text("<html>Sign in to this network</html>")
    with pytest.raises(ArchiveError, match="no 7-Zip archive") as raised:
        read_contents(tmp_path / "c.7z")
    assert not raised.value.whole


def test_every_damaged_byte_is_noticed(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "a.7z", FILES)
    good = path.read_bytes()
    rng = random.Random(1)
    for index in range(60):
        data = bytearray(good)
        # The first 8 bytes are the signature and a version that readers need not check.
        at = rng.randrange(8, len(data)) if index % 2 else len(data) - 1 - index
        data[at] ^= 1 << rng.randrange(8)
        bad = tmp_path / "bad.7z"
        bad.write_bytes(data)
        with pytest.raises(ArchiveError):
            unpacked(bad, tmp_path / f"out{index}")


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 1, exclude_max=True))
def test_a_cut_archive_is_damaged(tmp_path_factory: pytest.TempPathFactory, kept: float) -> None:
    folder = tmp_path_factory.mktemp("cut")
    path = write_archive(folder / "a.7z", FILES)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(ArchiveError):
        unpacked(path, folder / "out")


def test_what_the_list_did_not_name_is_not_written(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "a.7z", FILES)
    known = read_contents(path)
    (tmp_path / "out").mkdir()
    with pytest.raises(ArchiveError, match="not in the archive's list"):
        unpack(path, Contents(known.files[:1], ()), tmp_path / "out")
    (tmp_path / "more").mkdir()
    with pytest.raises(ArchiveError, match="extra is not whole"):
        unpack(path, Contents((*known.files, Member("extra", 1, 1)), ()), tmp_path / "more")


def test_a_link_in_the_way_is_not_followed(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "a.7z", {"a": b"new"})
    (tmp_path / "precious").write_bytes(b"old")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a").symlink_to(tmp_path / "precious")
    with pytest.raises((ArtifactError, ArchiveError)):
        unpack(path, read_contents(path), tmp_path / "out")
    assert (tmp_path / "precious").read_bytes() == b"old"


@pytest.mark.parametrize(
    "said, whole",
    [
        ([Member("a", len(NOISE), zlib.crc32(NOISE))], True),
        ([Member("a", len(NOISE), 1)], False),
        ([Member("a", len(NOISE) - 1, zlib.crc32(NOISE))], False),
        ([Member("a", len(NOISE), zlib.crc32(NOISE)), Member("b", 0, 0)], False),
    ],
)
def test_what_was_written_is_compared_here_too(
    tmp_path: Path, said: list[Member], whole: bool
) -> None:
    """py7zr compares checksums itself; that is not relied on."""
    sinks = module._Sinks(tmp_path, Contents(tuple(said), ()), "", silent)
    sinks.create(str(tmp_path / "a")).write(NOISE)
    sinks.finish()
    if whole:
        sinks.check_all(HERE)
    else:
        with pytest.raises(ArchiveError, match=f"{said[-1].name} is not whole"):
            sinks.check_all(HERE)


@pytest.mark.parametrize("where", ["SevenZipFile", "extractall"])
def test_too_little_memory_is_not_the_fault_of_the_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    import py7zr

    def full(*arguments: object, **more: object) -> None:
        raise MemoryError

    path = write_archive(tmp_path / "a.7z", FILES)
    contents = read_contents(path)
    owner = py7zr if where == "SevenZipFile" else py7zr.SevenZipFile
    monkeypatch.setattr(owner, where, full)
    with pytest.raises(ArchiveError, match="needs more memory") as raised:
        unpack(path, contents, tmp_path)
    assert raised.value.whole


def test_a_header_beyond_the_end_is_damage_and_not_a_lack_of_memory(tmp_path: Path) -> None:
    where = struct.pack("<QQI", 0, 1 << 40, 0)
    start = SIGNATURE + b"\0\4" + struct.pack("<I", zlib.crc32(where)) + where
    (tmp_path / "a.7z").write_bytes(start + bytes(100))
    with pytest.raises(ArchiveError, match="its end is missing") as raised:
        read_contents(tmp_path / "a.7z")
    assert not raised.value.whole


@pytest.mark.parametrize(
    "number, words",
    [
        (errno.ENOSPC, "free some space"),
        (errno.EROFS, "may write to"),
        (errno.ENOTDIR, "something else lies"),
        (errno.ENAMETOOLONG, "shorter name"),
        (errno.EIO, "is sound"),
    ],
)
def test_what_to_do_follows_from_what_the_disk_says(number: int, words: str) -> None:
    assert words in disk_fix(OSError(number, os.strerror(number)))


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_archive(tmp_path / "a.7z", FILES)
    contents = read_contents(path)
    (tmp_path / "out").mkdir()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ArtifactError, match=os.strerror(errno.ENOSPC)):
        unpack(path, contents, tmp_path / "out")


def test_without_the_package_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_archive(tmp_path / "a.7z", FILES)
    monkeypatch.setitem(sys.modules, "py7zr", None)
    with pytest.raises(ArchiveError, match=r"vggt-deploy\[eth3d\]"):
        read_contents(path)
