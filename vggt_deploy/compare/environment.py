"""The machine and the versions that a number was measured with."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from vggt_deploy import __version__

# Everything whose version can move a number of the report.
PACKAGES = (
    "torch",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnx",
    "onnx-ir",
    "onnxscript",
    "tensorrt",
    "tensorrt-rtx",
    "tensorrt_rtx_cu13",
    "cuda-bindings",
    "numpy",
    "pillow",
    "scikit-image",
    "safetensors",
)


@dataclass(frozen=True)
class Environment:
    """Where a comparison ran. `versions` holds installed packages only."""

    system: str
    python: str
    cpu: str
    cpu_flags: tuple[str, ...]
    logical_cpus: int
    usable_cpus: int
    memory_bytes: int | None
    versions: dict[str, str]

    @property
    def machine(self) -> str:
        """The kind of machine, as far as times depend on it: two of one kind can be compared."""
        return f"{self.cpu}, {self.usable_cpus} CPUs"

    def to_json(self) -> dict[str, Any]:
        """A dict for JSON."""
        return asdict(self)


# Instructions that decide how fast integer products are.
_FLAGS = (
    "avx2",
    "avx512f",
    "avx_vnni",
    "avx512_vnni",
    "avx512_bf16",
    "amx_int8",
    "asimddp",
    "i8mm",
)


def usable_cpus() -> int:
    """CPUs that this process may use; the default number of threads."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe_environment() -> Environment:
    """Read the machine; imports none of the packages."""
    model, flags = _cpu()
    return Environment(
        system=platform.platform(),
        python=platform.python_version(),
        cpu=model,
        cpu_flags=tuple(flag for flag in _FLAGS if flag in flags),
        logical_cpus=os.cpu_count() or 1,
        usable_cpus=usable_cpus(),
        memory_bytes=_memory_bytes(),
        versions=package_versions(),
    )


def package_versions() -> dict[str, str]:
    """Versions of the installed packages among PACKAGES, and our own."""
    versions = {"vggt-deploy": __version__}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _cpu() -> tuple[str, frozenset[str]]:
    """Model name and feature flags of the first CPU."""
    cpuinfo = Path("/proc/cpuinfo")
    fields: dict[str, str] = {}
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            key, colon, value = line.partition(":")
            if colon:
                fields.setdefault(key.strip(), value.strip())
    model = fields.get("model name") or platform.processor() or platform.machine()
    return model, frozenset((fields.get("flags") or fields.get("Features") or "").split())


def _memory_bytes() -> int | None:
    """Physical memory; what a container may use can be less."""
    names = getattr(os, "sysconf_names", {})
    if "SC_PHYS_PAGES" in names and "SC_PAGE_SIZE" in names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None
