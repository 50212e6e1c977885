"""The timing cache: how long TensorRT's kernels took on this GPU, kept for the next build.

One file per TensorRT version, GPU, CUDA version and optimization level: a time measured elsewhere
chooses kernels that are slow here, and TensorRT documents that a cache of another device can also
break a build. So caches of two GPUs never meet in a file, and a mismatch is never ignored.

TensorRT-RTX has none: it times nothing at build time, and touching this API makes it ask for a
GPU. (Polygraphy makes a timing cache in every build. That, an environment variable that must be set
before it is imported to choose TensorRT-RTX, and TF32 being off unless asked for are why this
package calls TensorRT itself.)
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, TypeAlias

from filelock import FileLock

from vggt_deploy.engines.device import CudaDevice
from vggt_deploy.engines.tensorrt.library import Library
from vggt_deploy.errors import BuildError

# TensorRT's classes, for readers: the module is known only at run time.
IBuilderConfig: TypeAlias = Any
ITimingCache: TypeAlias = Any


def cache_file(folder: Path, library: Library, device: CudaDevice, level: int) -> Path:
    """The file for this TensorRT, GPU, CUDA and level:
    `10.16.1.11-nvidia-h200-9.0-cuda13.0-level3.timing`.
    """
    gpu = re.sub(r"[^a-z0-9]+", "-", device.name.lower()).strip("-")
    cuda = ".".join(map(str, device.driver_cuda))
    version = library.version_text
    stem = f"{version}-{gpu}-{device.compute_capability}-cuda{cuda}-level{level}"
    return folder / f"{stem}.timing"


def default_folder() -> Path:
    """Where timing caches are kept unless told otherwise."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "vggt-deploy" / "timing"


def attach(config: IBuilderConfig, path: Path) -> ITimingCache:
    """Give the build the times in `path` (none if it does not exist). The result must live as long
    as the build.

    Raises:
        BuildError: the file is damaged, or of another device.
    """
    with _locked(path):
        known = path.read_bytes() if path.is_file() else b""
    cache = config.create_timing_cache(known)
    if cache is None or not config.set_timing_cache(cache, False):
        raise BuildError(
            f"TensorRT does not accept the timing cache {path} ({len(known)} bytes)",
            "delete that file: the next build makes a new one",
        )
    return cache


def save(config: IBuilderConfig, path: Path) -> None:
    """Write what the build knows now to `path`, whole or not at all.

    Another build may have written since `attach`: its times are added first, under the lock.
    """
    cache: ITimingCache = config.get_timing_cache()
    with _locked(path):
        if path.is_file():
            other = config.create_timing_cache(path.read_bytes())
            if other is None or not cache.combine(other, False):
                raise BuildError(
                    f"TensorRT can't add its timings to {path}",
                    "delete that file: another program wrote it while this build ran",
                )
        partial = path.with_name(f".{path.name}.partial")
        with partial.open("wb") as file:
            file.write(cache.serialize())
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)


def _locked(path: Path) -> FileLock:
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path.with_name(f".{path.name}.lock"))
