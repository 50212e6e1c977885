"""The machine itself: interpreter, processor, memory, disk, and whether it is a Jetson."""

from __future__ import annotations

import platform
import re
import shutil
import sys
from pathlib import Path

from vggt_deploy.doctor.checks import Check

# VGGT-1B: a checkpoint of 5.0 GB and an artifact of up to 4.8 GB (FP32); PyTorch holds 5.2 GiB of
# weights and activations at the smallest useful size.
_DISK_NEEDED_BYTES = 10 * 10**9
_MEMORY_NEEDED_BYTES = 8 * 2**30

# Jetson Linux (L4T) release -> JetPack and what it brings. From NVIDIA's release notes and, for
# 39.2, from what two projects read off such boards; not seen here.
_JETPACKS = (
    (
        (36, 0),
        "JetPack 6.0: TensorRT 8.6, too old for vggt-deploy; upgrade to JetPack 6.1 or newer",
    ),
    ((36, 4), "JetPack 6.1 or 6.2: TensorRT 10.3; device profile orin"),
    ((37, 0), "a JetPack between 6 and 7 that is not known here"),
    ((38, 0), "JetPack 7.0 or 7.1: TensorRT 10.13; device profile thor"),
    ((39, 0), "JetPack 7.2: TensorRT 10.16; device profile orin-jp72 or thor"),
)


def check_python(version: tuple[int, int] = sys.version_info[:2]) -> Check:
    """The interpreter against the range that pyproject.toml states."""
    found = f"{platform.python_implementation()} {platform.python_version()}"
    if (3, 11) <= version < (3, 14):
        return Check("python", "ok", found)
    return Check("python", "missing", found, "use Python 3.11, 3.12 or 3.13")


def check_hardware() -> list[Check]:
    """Processor, its instructions for integer products, and memory."""
    from vggt_deploy.compare.environment import describe_environment

    machine = describe_environment()
    checks = [Check("cpu", "ok", f"{machine.cpu}, {machine.usable_cpus} cores usable")]
    flags = ", ".join(machine.cpu_flags)
    dot_products = {"avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm"}
    if dot_products & set(machine.cpu_flags):
        checks.append(Check("int8 instructions", "ok", flags))
    else:
        checks.append(
            Check(
                "int8 instructions",
                "missing",
                f"no VNNI, AMX or dot-product instruction ({flags or 'no flags known'})",
                "nothing to install: dynamic activations gain less speed on this processor",
            )
        )
    checks.append(check_memory(machine.memory_bytes, memory_limit_bytes()))
    return checks


def check_memory(total_bytes: int | None, limit_bytes: int | None) -> Check:
    """Physical memory, or the container's limit where that is lower."""
    if total_bytes is None:
        return Check("memory", "unknown", "this system does not say how much it has")
    usable = min(total_bytes, limit_bytes or total_bytes)
    found = f"{usable / 2**30:.1f} GiB"
    if usable < total_bytes:
        found += f" (limit of this container; the machine has {total_bytes / 2**30:.1f} GiB)"
    if usable >= _MEMORY_NEEDED_BYTES:
        return Check("memory", "ok", found)
    return Check(
        "memory",
        "missing",
        found,
        f"VGGT-1B in PyTorch FP32 needs {_MEMORY_NEEDED_BYTES / 2**30:.0f} GiB; export "
        "elsewhere and run the integer artifact here",
    )


def memory_limit_bytes(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """The memory limit of this container (cgroup v2, then v1), None if there is none."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        path = root / name
        if path.is_file() and (text := path.read_text().strip()).isdigit():
            return int(text)
    return None


def check_disk(folder: Path) -> Check:
    """Free space where a command run here would write."""
    free = shutil.disk_usage(folder).free
    found = f"{free / 1e9:.1f} GB free in {folder}"
    if free >= _DISK_NEEDED_BYTES:
        return Check("disk", "ok", found)
    return Check(
        "disk",
        "missing",
        found,
        f"VGGT-1B and one artifact need up to {_DISK_NEEDED_BYTES / 1e9:.0f} GB: free some space, "
        "or write elsewhere with -o DIR and HF_HOME",
    )


def check_jetson(root: Path = Path("/")) -> Check:
    """NVIDIA Jetson boards, by their device tree and the release file of Jetson Linux.

    In a container the release file is there only if it was mounted.
    """
    model = root / "proc/device-tree/model"
    release = root / "etc/nv_tegra_release"
    name = model.read_text(errors="replace").strip("\0\n ") if model.is_file() else ""
    if release.is_file():
        lines = release.read_text(errors="replace").splitlines()
        text = lines[0].strip("# ") if lines else "an empty release file"
        return Check("Jetson", "ok", f"{name or 'Tegra'}, {text} ({_jetpack(text)})")
    if "jetson" in name.lower():
        return Check("Jetson", "unknown", f"{name}, without Jetson Linux's release file")
    return Check("Jetson", "missing", "this is not a Jetson", "nothing to install")


def _jetpack(release: str) -> str:
    """What a release line such as `R36 (release), REVISION: 4.3, ...` means."""
    match = re.search(r"R(\d+)\b.*?REVISION:\s*(\d+)", release)
    if match is None:
        return "no JetPack known for it"
    number = (int(match[1]), int(match[2]))
    known = [text for first, text in _JETPACKS if first <= number]
    if not known or number >= (40, 0):
        return "no JetPack known for it"
    return known[-1]
