"""ONNX Runtime, and each of its providers by running a one-node model with it."""

from __future__ import annotations

from typing import Any

from vggt_deploy.doctor.checks import Check
from vggt_deploy.doctor.one_node import one_node_model
from vggt_deploy.doctor.packages import first_line, import_or_reason, installed_version

_PROVIDERS = {
    "CPUExecutionProvider": "pip install 'vggt-deploy[cpu]'",
    "CUDAExecutionProvider": "NVIDIA GPU and driver, then in a fresh environment: "
    "pip install 'vggt-deploy[gpu]' (onnxruntime-gpu, with its CUDA and cuDNN libraries)",
}


def check_onnxruntime() -> list[Check]:
    """ONNX Runtime, and each provider by running a one-node model with it."""
    clash = [n for n in ("onnxruntime", "onnxruntime-gpu") if installed_version(n) is not None]
    ort, problem = import_or_reason("onnxruntime")
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
        return Check(name, "missing", first_line(error), fix)
    return Check(name, "ok", "ran a one-node model")


def _onnxruntime_errors(ort: Any) -> tuple[type[Exception], ...]:
    """ONNX Runtime's own exceptions; they share no base class below Exception."""
    state = ort.capi.onnxruntime_pybind11_state
    candidates = (getattr(state, name) for name in dir(state))
    return tuple(c for c in candidates if isinstance(c, type) and issubclass(c, Exception))


def _ones() -> Any:
    import numpy as np

    return np.ones(1, np.float32)
