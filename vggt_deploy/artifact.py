"""Writing a folder so that it is there whole or not at all.

    with writing(Path("vggt-1b-int8_pc_sym")) as folder:
        ...                       # write files into `folder`

The work happens in a hidden folder beside the target, which is synced and renamed when the block
ends. On any exception, Ctrl-C included, the hidden folder is removed. A run that was killed
(SIGKILL, power) leaves a hidden folder that no reader looks at and that the next writer of the same
target removes; that it is stale, and not someone's work, is known because the writer holds a lock
on the target.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from vggt_deploy.errors import ArtifactError
from vggt_deploy.manifest import MANIFEST_NAME

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def writing(
    target: Path,
    *,
    overwrite: bool = False,
    needed_bytes: int = 0,
    marker: str = MANIFEST_NAME,
) -> Iterator[Path]:
    """Yield a fresh folder beside `target` that becomes `target` when the block ends without error.

    An existing empty folder is taken over. An existing folder with content is refused, or, with
    `overwrite`, replaced, but only if it holds `marker`: the file by which this kind of output is
    known. So a slip in `-o` never deletes a folder that something else made. `needed_bytes` are
    checked first.
    """
    target = target.expanduser().resolve()
    if not target.name:
        raise ArtifactError(f"{target} can't be an output folder", "give a folder name with -o DIR")
    with locked(target):
        _clean_after_killed_run(target)
        _check_target(target, overwrite=overwrite, marker=marker)
        require_free_space(target, needed_bytes)
        partial = _sibling(target, "partial")
        try:
            partial.mkdir()
            yield partial
            _sync_tree(partial)
            _publish(partial, target)
        except BaseException as error:
            # BaseException: Ctrl-C must clean up as well. Always re-raised.
            failure = _as_disk_full(error, partial)
            shutil.rmtree(partial, ignore_errors=True)
            if partial.exists():
                error.add_note(f"{partial} could not be removed; the next run into {target} will")
            if failure is not None:
                raise failure from error
            raise


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is either the old one or the whole new one; line ends as they are."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8", newline="")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Hold the right to write `target`; a second holder anywhere on this machine is refused at
    once.

    The lock is an flock on a hidden file beside `target`, so it ends with the process that holds
    it.
    """
    target = target.expanduser().resolve()
    _make_parent(target)
    lock_path = target.parent / f".{target.name}.lock"
    lock = FileLock(lock_path, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise ArtifactError(
            f"{target} is being written by another process",
            "wait until it has finished, or give another folder with -o DIR",
        ) from error
    except (OSError, NotImplementedError) as error:
        raise ArtifactError(
            f"can't take the lock {lock_path} ({error})",
            "write to a local folder that you may write to, with -o DIR",
        ) from error
    try:
        yield
    finally:
        # Removed while held: filelock checks after locking that the file is still the one at this
        # path, so a waiter that opened it before the removal does not end up holding a lock nobody
        # else sees.
        lock_path.unlink(missing_ok=True)
        lock.release()


def require_free_space(path: Path, needed_bytes: int) -> None:
    """Raise an ArtifactError unless the disk of `path` (which need not exist yet) has
    `needed_bytes` free.
    """
    free_bytes = shutil.disk_usage(_existing_parent(path)).free
    if free_bytes < needed_bytes:
        raise ArtifactError(
            f"{_size(needed_bytes)} are needed for {path}, {_size(free_bytes)} are free",
            "free some space on that disk, or write to another one with -o DIR",
        )


def _make_parent(target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError(
            f"can't create {target.parent} ({error.strerror})",
            "give a folder that you may write to, with -o DIR",
        ) from error


def _check_target(target: Path, *, overwrite: bool, marker: str) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise ArtifactError(f"{target} exists and is not a folder", "give another name with -o DIR")
    if not any(target.iterdir()):
        return
    if not overwrite:
        raise ArtifactError(
            f"{target} exists and is not empty",
            "add --overwrite to replace it, or give another folder with -o DIR",
        )
    if not (target / marker).is_file():
        raise ArtifactError(
            f"{target} is not replaced: it holds no {marker}, so vggt-deploy did not make it",
            "delete that folder yourself if you mean it, or give another one with -o DIR",
        )


def _sibling(target: Path, ending: str) -> Path:
    return target.parent / f".{target.name}.{secrets.token_hex(4)}.{ending}"


def _leftovers(target: Path, ending: str) -> list[Path]:
    prefix, suffix = f".{target.name}.", f".{ending}"
    # Exactly what _sibling makes: another target may have a longer name with the same beginning.
    return [
        path
        for path in target.parent.iterdir()
        if path.name.startswith(prefix)
        and path.name.endswith(suffix)
        and len(path.name) == len(prefix) + 8 + len(suffix)
    ]


def _clean_after_killed_run(target: Path) -> None:
    """Remove what a killed writer left. Called with the lock held, so nothing here is in use."""
    for partial in _leftovers(target, "partial"):
        shutil.rmtree(partial)
    for old in _leftovers(target, "old"):
        # Killed between the two renames of _publish: the previous artifact is still whole.
        if target.exists():
            shutil.rmtree(old)
        else:
            old.rename(target)


def _publish(partial: Path, target: Path) -> None:
    """Rename `partial` to `target`; what was there is kept until the new one is in place."""
    if target.exists() and any(target.iterdir()):
        old = _sibling(target, "old")
        target.rename(old)
        try:
            partial.rename(target)
        except BaseException:
            old.rename(target)
            raise
        shutil.rmtree(old)
    else:
        partial.rename(target)
    _sync(target.parent)


def _sync_tree(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        if path.is_file() or path.is_dir():
            _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _as_disk_full(error: BaseException, partial: Path) -> ArtifactError | None:
    """An ArtifactError if a full disk is at the bottom of `error`, with the numbers, else None."""
    cause: BaseException | None = error
    while cause is not None and not (isinstance(cause, OSError) and cause.errno in _DISK_FULL):
        cause = cause.__cause__ or cause.__context__
    if cause is None:
        return None
    written = sum(path.stat().st_size for path in partial.rglob("*") if path.is_file())
    free = shutil.disk_usage(_existing_parent(partial)).free
    return ArtifactError(
        f"no space left for {partial.parent}: {_size(written)} were written before it failed, "
        f"{_size(free)} are free; nothing is kept ({os.strerror(cause.errno or 0)})",
        "free some space on that disk, or write to another one with -o DIR",
    )


def _existing_parent(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 10**8 else f"{count / 1e6:.2f} MB"
