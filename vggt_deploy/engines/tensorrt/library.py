"""The TensorRT that is installed, and the few things that every use of it needs.

    library = load_library("tensorrt-rtx")
    log = library.error_log()                      # an ILogger that keeps what went wrong
    builder = library.trt.Builder(log)

TensorRT reports failure by returning None (or False) and writing to the logger. So every call here
goes with an `ErrorLog`, whose lines end in the exception. Enum members moved between versions:
they are always looked up by name.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal, get_args

from vggt_deploy.errors import RuntimeUnavailableError, UsageError

TensorRTRuntime = Literal["tensorrt", "tensorrt-rtx"]
TENSORRT_RUNTIMES: tuple[TensorRTRuntime, ...] = get_args(TensorRTRuntime)
OLDEST = (10, 3)

_MODULES: dict[TensorRTRuntime, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
_INSTALL: dict[TensorRTRuntime, str] = {
    "tensorrt": "pip install 'vggt-deploy[tensorrt]' on a machine with an NVIDIA GPU; a Jetson has "
    "its own (JetPack 7: virtual environment with --system-site-packages; JetPack 6: docker/)",
    "tensorrt-rtx": "pip install 'vggt-deploy[rtx]'",
}
# What TensorRT says on every build without a GPU, and that is not why it failed.
_NOT_A_CAUSE = re.compile(r"catchCudaError|cudaError 35")


@dataclass(frozen=True)
class Library:
    """An imported TensorRT; `version_text` is its own spelling of its version."""

    trt: ModuleType
    runtime: TensorRTRuntime
    version_text: str

    @property
    def version(self) -> tuple[int, ...]:
        """(1, 7, 1, 116); what comes after the numbers is dropped."""
        return tuple(int(number) for number in re.findall(r"\d+", self.version_text)[:4])

    @property
    def is_rtx(self) -> bool:
        """TensorRT-RTX: builds without a GPU, for named targets, and compiles kernels on them."""
        return self.runtime == "tensorrt-rtx"

    @property
    def title(self) -> str:
        """For messages: "TensorRT-RTX 1.7.1.116"."""
        return f"{'TensorRT-RTX' if self.is_rtx else 'TensorRT'} {self.version_text}"

    def error_log(
        self, *, keep_all: bool = False, keep: Callable[[str], bool] | None = None
    ) -> Any:
        """A new ILogger (see `make_error_log`) of this library."""
        return make_error_log(self.trt, keep_all=keep_all, keep=keep)


def load_library(runtime: str) -> Library:
    """Import TensorRT or TensorRT-RTX.

    Raises:
        UsageError: no such runtime.
        RuntimeUnavailableError: not installed, its libraries are missing, or it is too old.
    """
    for known in TENSORRT_RUNTIMES:
        if runtime == known:
            return _load(known)
    raise UsageError(
        f"{runtime!r} is not a TensorRT runtime", f"use one of: {', '.join(TENSORRT_RUNTIMES)}"
    )


def _load(runtime: TensorRTRuntime) -> Library:
    name = _MODULES[runtime]
    try:
        module = importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as error:  # a missing .so is each of the three
        raise RuntimeUnavailableError(
            f"the module {name} can't be imported: {error}", _INSTALL[runtime]
        ) from error
    library = Library(module, runtime, str(module.__version__))
    if not library.is_rtx and library.version[:2] < OLDEST:
        raise RuntimeUnavailableError(
            f"{library.title} is older than {'.'.join(map(str, OLDEST))}, which strongly typed "
            "quantized graphs need",
            "upgrade TensorRT (JetPack 6.1 or newer on a Jetson Orin)",
        )
    return library


def member(enum: Any, name: str) -> Any:
    """`enum.name`, looked up by name.

    Raises:
        RuntimeUnavailableError: this version has no such member.
    """
    found = getattr(enum, name, None)
    if found is None:
        known = ", ".join(sorted(enum.__members__))
        raise RuntimeUnavailableError(
            f"this TensorRT has no {enum.__name__}.{name} (it has {known})",
            "leave the option out of the device profile, or upgrade TensorRT",
        )
    return found


def has_member(enum: Any, name: str) -> bool:
    """Whether this version has `enum.name`."""
    return getattr(enum, name, None) is not None


def make_error_log(
    trt: ModuleType, *, keep_all: bool = False, keep: Callable[[str], bool] | None = None
) -> Any:
    """An ILogger that keeps what TensorRT says.

    `.errors`: tuple of error lines; `.warnings`: of warnings; `.records`: with `keep_all`, every
    line down to VERBOSE (the detailed layer record of a build is one of them), or with `keep` those
    for which it is true;
    `.explain()`: the error lines for an exception's text. The class is made here because its base
    exists only once a TensorRT is imported.
    """
    severity = trt.ILogger.Severity

    class ErrorLog(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._errors: list[str] = []
            self._warnings: list[str] = []
            self._records: list[str] = []

        def log(self, level: Any, message: str) -> None:
            # Called from TensorRT's threads; list.append is atomic.
            if keep_all or (keep is not None and keep(message)):
                self._records.append(message)
            if level in (severity.INTERNAL_ERROR, severity.ERROR):
                self._errors.append(message)
            elif level == severity.WARNING:
                self._warnings.append(message)

        @property
        def errors(self) -> tuple[str, ...]:
            return tuple(line for line in self._errors if not _NOT_A_CAUSE.search(line))

        @property
        def warnings(self) -> tuple[str, ...]:
            return tuple(self._warnings)

        @property
        def records(self) -> tuple[str, ...]:
            return tuple(self._records)

        def explain(self, most: int = 5) -> str:
            # Where the missing GPU is all there is to say, it is the cause.
            said = self.errors or tuple(self._errors)
            lines = [" ".join(line.split()) for line in dict.fromkeys(said)][-most:]
            return "\n    ".join(lines) or "it gave no reason"

    return ErrorLog()
