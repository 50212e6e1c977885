"""A plan on its way to disk: counted and hashed while it is written, and never held as a whole.

Newer TensorRT hands the plan over in parts while it serializes it: for a plan of 386 MB the build
then takes 1.12 GB at most, against 1.37 GB with the plan in memory first. TensorRT 10.3 can only
give it as a whole, in its own memory, from which it is written without a copy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

from vggt_deploy.records import FileRecord

_PART_BYTES = 64 * 2**20


class PlanFile:
    """An open file that a plan goes to. `failure`: why it can't be written, if it can't."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._bytes = 0
        self.failure: OSError | None = None

    def write(self, part: Any) -> int:
        """Write a part (any buffer); the number of its bytes, or 0 if the file takes no more.

        Raises nothing: TensorRT calls it, and an exception in there would end the process.
        """
        view = memoryview(part).cast("B")
        try:
            for start in range(0, view.nbytes, _PART_BYTES):
                piece = view[start : start + _PART_BYTES]
                self._file.write(piece)
                self._digest.update(piece)
            self._file.flush()
        except OSError as error:
            self.failure = error
            return 0
        self._bytes += view.nbytes
        return view.nbytes

    def record(self) -> FileRecord:
        """Size and SHA-256 of what was written."""
        return FileRecord(self._bytes, self._digest.hexdigest())


@contextmanager
def writing_plan(path: Path) -> Iterator[PlanFile]:
    """Open `path` for a plan; it is removed again if the block ends with an error."""
    with path.open("wb") as file:
        try:
            yield PlanFile(file)
        except BaseException:
            path.unlink(missing_ok=True)
            raise


def make_stream_writer(trt: ModuleType, plan: PlanFile) -> Any | None:
    """An IStreamWriter that writes to `plan`, None where TensorRT has none (10.3). The class is
    made here because its base exists only once a TensorRT is imported.
    """
    if not hasattr(getattr(trt, "IStreamWriter", None), "write"):
        return None

    class Writer(trt.IStreamWriter):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()

        def write(self, data: bytes, size: int = 0) -> int:
            # TensorRT calls it with the bytes alone, as its documentation says; the signature that
            # the binding shows has a size too.
            return plan.write(data)

    return Writer()
