from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vggt_deploy import artifact
from vggt_deploy.artifact import locked, require_free_space, write_text, writing
from vggt_deploy.errors import ArtifactError
from vggt_deploy.manifest import MANIFEST_NAME, read_manifest

# A writer that says when it is inside, then waits until it is told to go on or is killed.
WRITER = """
import sys, time
from pathlib import Path
from vggt_deploy.artifact import writing
from vggt_deploy.errors import DeployError
try:
    with writing(Path(sys.argv[1]), overwrite=True) as folder:
        (folder / "weights.bin").write_bytes(b"x" * 100_000)
        (folder / "manifest.json").write_text("{}")
        print("inside", flush=True)
        sys.stdin.readline()
except DeployError as error:
    print(error.message, flush=True)
    sys.exit(error.exit_code)
except KeyboardInterrupt:
    sys.exit(130)
"""


def start_writer(target: Path, *, wait: bool = True) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(target)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    if wait:
        assert process.stdout is not None
        assert process.stdout.readline() == "inside\n"
    return process


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate("go on\n", timeout=30)
    return process.returncode, output


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(target: Path, text: str = "{}", *, overwrite: bool = False) -> None:
    with writing(target, overwrite=overwrite) as folder:
        (folder / MANIFEST_NAME).write_text(text)


def test_the_folder_appears_at_the_end_and_alone(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "artifact"
    with writing(target) as folder:
        assert folder.parent == target.parent
        (folder / "sub").mkdir()
        (folder / "sub" / "a").write_text("a")
        assert not target.exists()
    assert (target / "sub" / "a").read_text() == "a"
    assert listing(target.parent) == ["artifact"]


def test_an_error_leaves_nothing_and_is_passed_on(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), writing(tmp_path / "a") as folder:
        (folder / "x").write_text("x")
        _ = 1 / 0
    assert listing(tmp_path) == []


def test_kill_leaves_nothing_a_reader_accepts_and_the_next_writer_cleans(tmp_path: Path) -> None:
    target = tmp_path / "artifact"
    process = start_writer(target)
    process.kill()
    process.wait()
    (leftover,) = (name for name in listing(tmp_path) if name.endswith(".partial"))
    with pytest.raises(ArtifactError, match="does not exist"):
        read_manifest(target)
    write(target)
    assert listing(tmp_path) == ["artifact"], f"{leftover} should be gone"


def test_kill_leaves_the_previous_artifact_untouched(tmp_path: Path) -> None:
    target = tmp_path / "artifact"
    write(target, "previous")
    process = start_writer(target)
    process.kill()
    process.wait()
    assert (target / MANIFEST_NAME).read_text() == "previous"


def test_ctrl_c_cleans_up(tmp_path: Path) -> None:
    process = start_writer(tmp_path / "artifact")
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert listing(tmp_path) == []


def test_a_second_writer_is_refused_at_once_and_the_first_goes_on(tmp_path: Path) -> None:
    target = tmp_path / "artifact"
    first = start_writer(target)
    began = time.monotonic()
    code, output = finish(start_writer(target, wait=False))
    assert (code, "is being written by another process" in output) == (1, True)
    assert time.monotonic() - began < 10
    with pytest.raises(ArtifactError, match="being written"):
        write(target)
    assert finish(first)[0] == 0
    assert listing(tmp_path) == ["artifact"]


def test_two_threads_are_two_writers(tmp_path: Path) -> None:
    refused: list[str] = []

    def second() -> None:
        try:
            write(tmp_path / "a")
        except ArtifactError as error:
            refused.append(error.message)

    with writing(tmp_path / "a"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(30)
    assert len(refused) == 1


def test_many_writers_in_turn_each_publish_a_whole_folder(tmp_path: Path) -> None:
    """Lock files are removed on release: no two writers may ever be inside at once."""
    target = tmp_path / "a"
    inside, most, published = [0], [0], [0]
    guard = threading.Lock()

    def work() -> None:
        for _ in range(30):
            try:
                with writing(target, overwrite=True) as folder:
                    with guard:
                        inside[0] += 1
                        most[0] = max(most[0], inside[0])
                    (folder / MANIFEST_NAME).write_text("{}")
                    with guard:
                        inside[0] -= 1
                        published[0] += 1
            except ArtifactError:
                time.sleep(0.001)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert most[0] == 1
    assert published[0] > 1
    assert listing(tmp_path) == ["a"]


def test_targets_with_a_common_beginning_do_not_clean_each_other(tmp_path: Path) -> None:
    with writing(tmp_path / "a.b") as folder:
        write(tmp_path / "a")
        assert folder.is_dir()
    assert listing(tmp_path) == ["a", "a.b"]


def test_an_existing_folder_needs_overwrite_and_our_marker(tmp_path: Path) -> None:
    target = tmp_path / "a"
    write(target, "one")
    with pytest.raises(ArtifactError, match="exists and is not empty") as raised:
        write(target, "two")
    assert "--overwrite" in raised.value.fix
    write(target, "two", overwrite=True)
    assert (target / MANIFEST_NAME).read_text() == "two"

    (target / MANIFEST_NAME).rename(target / "thesis.tex")
    with pytest.raises(ArtifactError, match="vggt-deploy did not make it"):
        write(target, "three", overwrite=True)
    assert (target / "thesis.tex").read_text() == "two"
    with writing(target, overwrite=True, marker="thesis.tex") as folder:
        (folder / "thesis.tex").write_text("four")
    assert (target / "thesis.tex").read_text() == "four"


def test_a_failed_overwrite_keeps_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "a"
    write(target, "one")
    with pytest.raises(ZeroDivisionError), writing(target, overwrite=True):
        _ = 1 / 0
    assert (target / MANIFEST_NAME).read_text() == "one"
    assert listing(tmp_path) == ["a"]


def test_a_failed_rename_puts_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "a"
    write(target, "one")
    rename = Path.rename

    def fail_for_partial(self: Path, other: Path) -> Path:
        if self.name.endswith(".partial"):
            raise OSError(errno.EIO, "simulated")
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", fail_for_partial)
    with pytest.raises(OSError, match="simulated"):
        write(target, "two", overwrite=True)
    assert (target / MANIFEST_NAME).read_text() == "one"
    assert listing(tmp_path) == ["a"]


def test_killed_between_the_two_renames_the_old_one_comes_back(tmp_path: Path) -> None:
    target = tmp_path / "a"
    write(target, "one")
    target.rename(tmp_path / ".a.0123abcd.old")
    with pytest.raises(ArtifactError, match="exists and is not empty"):
        write(target, "two")
    assert (target / MANIFEST_NAME).read_text() == "one"


def test_an_empty_folder_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    write(tmp_path / "a")
    assert listing(tmp_path) == ["a"]


def test_a_file_or_the_root_is_no_target(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("mine")
    with pytest.raises(ArtifactError, match="is not a folder"):
        write(tmp_path / "a", overwrite=True)
    with pytest.raises(ArtifactError, match="can't create"):
        write(tmp_path / "a" / "b")
    with pytest.raises(ArtifactError, match="can't be an output folder"):
        write(Path("/"))
    assert (tmp_path / "a").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(ArtifactError, match="can't take the lock"):
            write(tmp_path / "a")
    finally:
        tmp_path.chmod(0o700)


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write(tmp_path / "link")
    assert (tmp_path / "real" / MANIFEST_NAME).exists()
    assert (tmp_path / "link").is_symlink()


def test_space_is_asked_for_before_the_work(tmp_path: Path) -> None:
    with (
        pytest.raises(ArtifactError, match=r"1000000\.00 GB are needed for .* are free"),
        writing(tmp_path / "a", needed_bytes=10**15),
    ):
        pytest.fail("must not be entered")
    require_free_space(tmp_path / "not" / "there" / "yet", 1)
    assert listing(tmp_path) == []


def test_a_lock_can_be_held_alone(tmp_path: Path) -> None:
    with locked(tmp_path / "a"), pytest.raises(ArtifactError, match="being written"):
        write(tmp_path / "a")
    write(tmp_path / "a")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB, for real; needs root."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = (
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True
        )
        if os.geteuid() == 0
        else None
    )
    if mount is None or mount.returncode != 0:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(small_disk: Path) -> None:
    with (
        pytest.raises(ArtifactError, match=r"no space left .* were written .* are free") as raised,
        writing(small_disk / "a") as folder,
        (folder / "weights.bin").open("wb") as file,
    ):
        for _ in range(40):
            file.write(b"x" * 65536)
    assert "1.0" in raised.value.message or "0.9" in raised.value.message
    assert isinstance(raised.value.__cause__, OSError)
    assert listing(small_disk) == []
    with pytest.raises(ArtifactError, match="are needed"):
        require_free_space(small_disk, 2 * 2**20)


def test_a_full_disk_without_root(tmp_path: Path) -> None:
    """The limit on file sizes fails a write in the kernel, like a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(ArtifactError, match="no space left"), writing(tmp_path / "a") as folder:
            (folder / "weights.bin").write_bytes(b"x" * 200_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert listing(tmp_path) == []


def test_a_full_disk_below_a_library_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no space left"), writing(tmp_path / "a"):
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise RuntimeError("could not serialize") from error


def test_another_os_error_is_not_called_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), writing(tmp_path / "a"):
        raise PermissionError(errno.EACCES, "no")


def test_a_partial_folder_that_can_not_be_removed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifact.shutil, "rmtree", lambda *_, **__: None)
    with pytest.raises(ZeroDivisionError) as raised, writing(tmp_path / "a"):
        _ = 1 / 0
    assert "could not be removed" in raised.value.__notes__[0]


def test_a_text_is_the_old_or_the_whole_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "summary.txt"
    write_text(path, "old\r\n")
    assert path.read_bytes() == b"old\r\n"

    def full(self: Path, *_: object, **__: object) -> int:
        self.write_bytes(b"ne")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        write_text(path, "new")
    assert path.read_bytes() == b"old\r\n"
    assert [found.name for found in tmp_path.iterdir()] == ["summary.txt"]
