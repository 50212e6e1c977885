"""What to do about what a disk says no to."""

from __future__ import annotations

import errno

_FIXES = {
    (errno.ENOSPC, errno.EDQUOT): "free some space on that disk, or give another folder with -o "
    "DIR",
    (errno.EFBIG,): "use a file system that takes files of this size, with -o DIR",
    (errno.EACCES, errno.EPERM, errno.EROFS): "give a folder that you may write to, with -o DIR",
    (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY): "something else lies at that "
    "place: move it away, or give another folder with -o DIR",
    (errno.ENAMETOOLONG,): "give a folder with a shorter name, with -o DIR",
    (errno.ELOOP, errno.EXDEV): "put real folders in the place of links there",
}


def disk_fix(error: OSError) -> str:
    """By the number of the error; every run can be repeated."""
    for numbers, fix in _FIXES.items():
        if error.errno in numbers:
            return f"{fix}; run it again: what is whole is kept"
    return (
        "see that this disk is sound and that you may write there, or give another folder with -o "
        "DIR; run it again: what is whole is kept"
    )
