"""The Python bindings of a TensorRT that is not installed, imported over empty libraries.

The bindings are ordinary wheels. They want three shared libraries that only NVIDIA's own index has;
for importing them it is enough that nine functions exist.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

SURFACE = Path(__file__).with_name("api_surface.py")
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
FUNCTIONS = (
    "createInferBuilder_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "getBuilderPluginRegistry",
    "getPluginRegistry",
    "getNvOnnxParserVersion",
    "initLibNvInferPlugins",
)


class CannotHave(Exception):
    """The bindings can't be had here; the text says why."""


@dataclass(frozen=True)
class Bindings:
    """A wheel of a package index."""

    package: str
    version: str

    @property
    def major(self) -> int:
        return int(self.version.partition(".")[0])


def surface_of(bindings: Bindings, cache: Path) -> dict[str, Any]:
    """What the bindings offer; downloaded once into `cache`.

    Raises:
        CannotHave: no network, no wheel for this Python, no C compiler.
    """
    folder = cache / f"{bindings.package}-{bindings.version}-{sys.implementation.cache_tag}"
    with FileLock(cache / f"{folder.name}.lock"):
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            _download(bindings, folder)
            _compile(folder / "libraries", bindings.major)
            (folder / "complete").touch()
    return read_surface(
        "tensorrt_bindings",
        {"PYTHONPATH": str(folder / "wheel"), "LD_LIBRARY_PATH": str(folder / "libraries")},
    )


def read_surface(module: str, environment: dict[str, str]) -> dict[str, Any]:
    """What an importable TensorRT module offers, asked in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, str(SURFACE), module],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    surface: dict[str, Any] = json.loads(done.stdout)
    return surface


def _download(bindings: Bindings, folder: Path) -> None:
    if (sys.platform, platform.machine()) not in {("linux", "x86_64"), ("linux", "aarch64")}:
        raise CannotHave(f"no wheels for {sys.platform} {platform.machine()}")
    wanted = f"{bindings.package}=={bindings.version}"
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    options = ["--quiet", "--disable-pip-version-check", "--retries", "1", "--timeout", "15"]
    done = subprocess.run(
        [*pip, *options, "--dest", str(folder), wanted],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        raise CannotHave(f"pip can't download {wanted}: {lines[-1]}")
    with zipfile.ZipFile(wheels[0]) as wheel:
        wheel.extractall(folder / "wheel")


def _compile(folder: Path, major: int) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise CannotHave("no C compiler")
    folder.mkdir()
    source = folder / "empty.c"
    # A pointer of zero is what TensorRT answers when it can't make an object.
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in FUNCTIONS))
    for library in LIBRARIES:
        name = f"lib{library}.so.{major}"
        subprocess.run(
            [compiler, "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", folder / name, source],
            check=True,
            timeout=60,
        )
