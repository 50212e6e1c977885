"""What this machine can do, and what to install for the rest.

A row is "ok" only for what was tried: a provider of ONNX Runtime counts when a session with it was
created and ran a one-node model, a package when it was imported, a GPU when the driver answered.
What could not be tried is "unknown" and says why.
"""

from __future__ import annotations

import importlib
import platform
import shutil
import sys
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from vggt_deploy import __version__

State = Literal["ok", "missing", "unknown"]

# VGGT-1B: a checkpoint of 5.0 GB and an artifact of up to 4.8 GB (FP32); PyTorch holds 5.2 GiB of
# weights and activations at the smallest useful size.
_DISK_NEEDED_BYTES = 10 * 10**9
_MEMORY_NEEDED_BYTES = 8 * 2**30

_PROVIDERS = {
    "CPUExecutionProvider": "pip install 'vggt-deploy[cpu]'",
    "CUDAExecutionProvider": "NVIDIA GPU and driver, then in a fresh environment: "
    "pip install 'vggt-deploy[gpu]' (onnxruntime-gpu, with its CUDA and cuDNN libraries)",
}
# Packages by the verb that needs them: (import name, distribution name).
_PACKAGES: dict[str, tuple[tuple[str, str], ...]] = {
    "export": (
        ("torch", "torch"),
        ("onnx", "onnx"),
        ("onnx_ir", "onnx-ir"),
        ("onnxscript", "onnxscript"),
        ("safetensors", "safetensors"),
        ("huggingface_hub", "huggingface_hub"),
    ),
    "compare": (("matplotlib", "matplotlib"), ("skimage", "scikit-image")),
    "run": (("PIL", "pillow"), ("numpy", "numpy"), ("trimesh", "trimesh")),
}


@dataclass(frozen=True)
class Check:
    """One row: what was looked at, what was found, and what would change it ("" if ok)."""

    name: str
    state: State
    found: str
    fix: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """All rows, in the order in which they are printed."""

    version: str
    checks: tuple[Check, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`."""
        return asdict(self)


def diagnose() -> Diagnosis:
    """Look at this machine. Takes seconds: it imports torch and opens ONNX Runtime sessions."""
    checks = [
        check_python(),
        *check_hardware(),
        check_disk(Path.cwd()),
        *(check_packages(verb, packages) for verb, packages in _PACKAGES.items()),
        *check_torch(),
        *check_onnxruntime(),
        check_cuda_driver(),
        check_tensorrt("tensorrt", "tensorrt"),
        check_tensorrt("tensorrt-rtx", "tensorrt_rtx"),
        check_jetson(),
    ]
    return Diagnosis(__version__, tuple(checks))


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


def check_packages(verb: str, packages: tuple[tuple[str, str], ...]) -> Check:
    """Whether the packages that a verb needs are installed (found, not imported)."""
    absent = [name for module, name in packages if find_spec(module) is None]
    found = ", ".join(f"{name} {installed_version(name)}" for m, name in packages if find_spec(m))
    if not absent:
        return Check(f"packages for {verb}", "ok", found)
    extra = "edge" if verb == "run" else "cpu"
    return Check(
        f"packages for {verb}",
        "missing",
        f"not installed: {', '.join(absent)}",
        f"pip install 'vggt-deploy[{extra}]'",
    )


def check_torch() -> list[Check]:
    """PyTorch, imported, and the CUDA devices that it sees."""
    fix = "pip install 'vggt-deploy[cpu]' (not needed to run an exported artifact)"
    torch, problem = _import("torch")
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


def check_onnxruntime() -> list[Check]:
    """ONNX Runtime, and each provider by running a one-node model with it."""
    clash = [n for n in ("onnxruntime", "onnxruntime-gpu") if installed_version(n) is not None]
    ort, problem = _import("onnxruntime")
    if ort is None:
        return [Check("onnxruntime", "missing", problem, "pip install 'vggt-deploy[cpu]'")]
    if len(clash) == 2:
        first = Check(
            "onnxruntime",
            "missing",
            f"{ort.__version__}: onnxruntime and onnxruntime-gpu overwrite each other's files",
            "pip uninstall both, then install one of vggt-deploy[cpu] and vggt-deploy[gpu]",
        )
    else:
        first = Check("onnxruntime", "ok", f"{ort.__version__} ({', '.join(clash)})")
    offered = ort.get_available_providers()
    # Azure's provider calls a remote service and computes nothing here.
    others = [name for name in offered if name not in {*_PROVIDERS, "AzureExecutionProvider"}]
    return [first, *(check_provider(ort, name, offered) for name in [*_PROVIDERS, *others])]


def check_provider(ort: Any, provider: str, offered: list[str]) -> Check:
    """Create a session with exactly this provider, and run it."""
    name = f"onnxruntime {provider.removesuffix('ExecutionProvider')}"
    fix = _PROVIDERS.get(provider, f"see ONNX Runtime's page on {provider}")
    if provider not in offered:
        return Check(name, "missing", "not part of the installed build", fix)
    options = ort.SessionOptions()
    options.log_severity_level = 4  # else a provider that fails writes pages to stderr
    if provider != "CPUExecutionProvider":
        # Else the node may silently be given to the CPU in a session that lists the provider.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    failures: tuple[type[Exception], ...] = (RuntimeError, OSError, *_onnxruntime_errors(ort))
    try:
        session = ort.InferenceSession(one_node_model(), options, providers=[provider])
        used = session.get_providers()[0]
        if used != provider:
            return Check(name, "missing", f"a session falls back to {used}", fix)
        session.run(None, {"x": _ones()})
    except failures as error:
        return Check(name, "missing", _first_line(error), fix)
    return Check(name, "ok", "ran a one-node model")


def one_node_model() -> bytes:
    """A serialized ONNX model, y = Relu(x) with x float [1], made without the onnx package.

    Protocol buffers by hand: a field is (number << 3 | wire type), then a varint (type 0) or a
    length and bytes (type 2). Numbers as in onnx.proto.
    """
    tensor_type = _varint(1, 1) + _bytes(2, _bytes(1, _varint(1, 1)))  # float, shape [1]
    value_type = _bytes(2, _bytes(1, tensor_type))
    node = _bytes(1, b"x") + _bytes(2, b"y") + _bytes(4, b"Relu")
    graph = _bytes(1, node) + _bytes(2, b"probe")
    graph += _bytes(11, _bytes(1, b"x") + value_type) + _bytes(12, _bytes(1, b"y") + value_type)
    opset = _bytes(1, b"") + _varint(2, 14)
    return _varint(1, 8) + _bytes(7, graph) + _bytes(8, opset)


def check_cuda_driver(library: str = "libcuda.so.1") -> Check:
    """The NVIDIA driver and its devices, asked directly, without any CUDA package."""
    import ctypes

    fix = "an NVIDIA GPU and its driver (not needed for export, or to run on the CPU)"
    try:
        cuda = ctypes.CDLL(library)
    except OSError:
        return Check("CUDA device", "missing", f"no NVIDIA driver ({library})", fix)
    count, driver = ctypes.c_int(), ctypes.c_int()
    if (status := cuda.cuInit(0)) != 0:
        return Check("CUDA device", "missing", f"the driver reports error {status} (cuInit)", fix)
    cuda.cuDriverGetVersion(ctypes.byref(driver))
    cuda.cuDeviceGetCount(ctypes.byref(count))
    if count.value == 0:
        return Check("CUDA device", "missing", "a driver, but no device", fix)
    devices = ", ".join(_cuda_device(cuda, index) for index in range(count.value))
    version = f"{driver.value // 1000}.{driver.value % 1000 // 10}"
    return Check("CUDA device", "ok", f"{devices} (driver for CUDA {version})")


def check_tensorrt(name: str, module: str) -> Check:
    """Whether a TensorRT library imports. This version of vggt-deploy builds no engines with it."""
    library, problem = _import(module)
    if library is not None:
        return Check(name, "ok", f"{library.__version__} imports; not used by this version")
    return Check(name, "missing", problem, "not needed: no command of this version uses it")


def check_jetson(root: Path = Path("/")) -> Check:
    """NVIDIA Jetson boards, by their device tree and the release file of Jetson Linux."""
    model = root / "proc/device-tree/model"
    release = root / "etc/nv_tegra_release"
    name = model.read_text(errors="replace").strip("\0\n ") if model.is_file() else ""
    if release.is_file():
        version = release.read_text(errors="replace").splitlines()[0].strip("# ")
        return Check("Jetson", "ok", f"{name or 'Tegra'}, {version}")
    if "jetson" in name.lower():
        return Check("Jetson", "unknown", f"{name}, without Jetson Linux's release file")
    return Check("Jetson", "missing", "this is not a Jetson", "nothing to install")


def installed_version(distribution: str) -> str | None:
    """Version of an installed distribution, None if it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _import(module: str) -> tuple[Any, str]:
    """(module, "") or (None, why not). OSError: a shared library that it loads is absent."""
    try:
        return importlib.import_module(module), ""
    except ModuleNotFoundError as error:
        return None, "not installed" if error.name == module else _first_line(error)
    except (ImportError, OSError) as error:
        return None, f"installed, but does not import: {_first_line(error)}"


def _onnxruntime_errors(ort: Any) -> tuple[type[Exception], ...]:
    """ONNX Runtime's own exceptions; they share no base class below Exception."""
    state = ort.capi.onnxruntime_pybind11_state
    candidates = (getattr(state, name) for name in dir(state))
    return tuple(c for c in candidates if isinstance(c, type) and issubclass(c, Exception))


def _cuda_device(cuda: Any, index: int) -> str:
    """`NVIDIA H200 (compute 9.0, 139.8 GiB)`. 75 and 76: compute capability, major and minor."""
    import ctypes

    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name, size = ctypes.create_string_buffer(256), ctypes.c_size_t()
    cuda.cuDeviceGet(ctypes.byref(device), index)
    cuda.cuDeviceGetName(name, len(name), device)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(size), device)
    cuda.cuDeviceGetAttribute(ctypes.byref(major), 75, device)
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)
    label = name.value.decode(errors="replace")
    return f"{label} (compute {major.value}.{minor.value}, {size.value / 2**30:.1f} GiB)"


def _varint(field: int, value: int) -> bytes:
    return bytes((field << 3, value))


def _bytes(field: int, value: bytes) -> bytes:
    return bytes((field << 3 | 2, len(value))) + value


def _ones() -> Any:
    import numpy as np

    return np.ones(1, np.float32)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
