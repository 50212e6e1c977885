"""What is installed: the packages that each verb needs, and PyTorch."""

from __future__ import annotations

import importlib
from importlib import metadata
from importlib.util import find_spec
from typing import Any

from vggt_deploy.doctor.checks import Check

# Packages by the verb that needs them: (import name, distribution name), and the extra with them.
PACKAGES: dict[str, tuple[str, tuple[tuple[str, str], ...]]] = {
    "export": (
        "cpu",
        (
            ("torch", "torch"),
            ("onnx", "onnx"),
            ("onnx_ir", "onnx-ir"),
            ("onnxscript", "onnxscript"),
            ("safetensors", "safetensors"),
            ("huggingface_hub", "huggingface_hub"),
        ),
    ),
    "compare": ("cpu", (("matplotlib", "matplotlib"), ("skimage", "scikit-image"))),
    "build": ("cpu", (("onnx", "onnx"),)),
    "run": ("edge", (("PIL", "pillow"), ("numpy", "numpy"), ("trimesh", "trimesh"))),
    "bundle": ("edge", (("cryptography", "cryptography"),)),
}


def check_packages(verb: str) -> Check:
    """Whether the packages that a verb needs are installed (found, not imported)."""
    extra, packages = PACKAGES[verb]
    absent = [name for module, name in packages if find_spec(module) is None]
    found = ", ".join(f"{name} {installed_version(name)}" for m, name in packages if find_spec(m))
    if not absent:
        return Check(f"packages for {verb}", "ok", found)
    return Check(
        f"packages for {verb}",
        "missing",
        f"not installed: {', '.join(absent)}",
        f"pip install 'vggt-deploy[{extra}]'",
    )


def check_torch() -> list[Check]:
    """PyTorch, imported, and the CUDA devices that it sees."""
    fix = "pip install 'vggt-deploy[cpu]' (not needed to run an exported artifact)"
    torch, problem = import_or_reason("torch")
    if torch is None:
        return [Check("torch", "missing", problem, fix)]
    checks = [Check("torch", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads")]
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return [*checks, Check("torch CUDA", "ok", ", ".join(names))]
    built = torch.version.cuda
    found = f"built for CUDA {built}, sees no device" if built else "a build without CUDA"
    fix = "an NVIDIA GPU, its driver and a CUDA build of torch"
    return [*checks, Check("torch CUDA", "missing", found, fix)]


def installed_version(distribution: str) -> str | None:
    """Version of an installed distribution, None if it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def import_or_reason(module: str) -> tuple[Any, str]:
    """(module, "") or (None, why not). OSError: a shared library that it loads is absent."""
    try:
        return importlib.import_module(module), ""
    except ModuleNotFoundError as error:
        return None, "not installed" if error.name == module else first_line(error)
    except (ImportError, OSError) as error:
        return None, f"installed, but does not import: {first_line(error)}"


def first_line(error: BaseException) -> str:
    """Of its message; its type if it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]
