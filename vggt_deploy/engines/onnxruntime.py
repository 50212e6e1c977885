"""ONNX Runtime: a session from an artifact folder, with the settings that its manifest names.

The graph file of target "onnxruntime" is opened by its path, so that ONNX Runtime finds the weights
file beside it. ONNX Runtime replaces a provider that fails by another one and says so in a log line
only; here that is switched off, and the session's own list of providers is checked afterwards.
"""

from __future__ import annotations

import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggt_deploy.engines.runtime import SessionInfo, check_images
from vggt_deploy.errors import ArtifactError, DeployError, RuntimeUnavailableError, UsageError
from vggt_deploy.records import GraphRecord, Manifest

TARGET = "onnxruntime"
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_LOG_ERRORS_ONLY = 3
_CAUSE_LENGTH = 400


class OnnxRuntimeSession:
    """One open `InferenceSession`; made by `open_onnxruntime`."""

    def __init__(
        self, session: Any, info: SessionInfo, errors: tuple[type[Exception], ...]
    ) -> None:
        self._session = session
        self._info = info
        self._errors = errors
        self._input: str = session.get_inputs()[0].name

    @property
    def info(self) -> SessionInfo:
        """What was opened and what runs it."""
        return self._info

    def run(self, images: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Images [1, S, 3, H, W] to the outputs of the manifest, named and shaped as upstream."""
        if self._session is None:
            raise UsageError("the session is closed", "open the artifact again")
        check_images(images, self._info)
        feed = {self._input: np.ascontiguousarray(images)}
        try:
            values = self._session.run(list(self._info.outputs), feed)
        except self._errors as error:
            raise DeployError(
                f"ONNX Runtime failed on {images.shape[1]} images: {_cause(error)}",
                "if memory ran out, give fewer images or export a smaller size",
            ) from error
        return dict(zip(self._info.outputs, values, strict=True))

    def close(self) -> None:
        """Give back the memory; a second call does nothing."""
        self._session = None


def open_onnxruntime(
    artifact: Path,
    manifest: Manifest,
    *,
    provider: str,
    threads: int | None,
    cuda_graph: bool = False,
) -> OnnxRuntimeSession:
    """Open the artifact's ONNX Runtime graph on exactly `provider`."""
    if cuda_graph:
        raise UsageError("ONNX Runtime is not run as a CUDA graph here", "leave cuda_graph out")
    graph = manifest.graphs.get(TARGET)
    if graph is None:
        known = ", ".join(sorted(manifest.graphs)) or "none"
        raise ArtifactError(
            f"{artifact} has no graph for ONNX Runtime (it has: {known})", "export it again"
        )
    ort = _import()
    wanted = _require_provider(ort, provider)
    errors = _error_types(ort)
    path = (artifact / graph.file).resolve()
    started = time.perf_counter()
    try:
        session = ort.InferenceSession(
            str(path),
            sess_options=_options(ort, graph, threads),
            providers=[wanted] if provider == "cpu" else [wanted, _PROVIDERS["cpu"]],
            disabled_optimizers=list(graph.disabled_optimizers) or None,
            enable_fallback=False,
        )
    except errors as error:
        raise _load_error(ort, path, graph, provider, error) from error
    load_ms = (time.perf_counter() - started) * 1e3
    _require_same_provider(session, wanted, provider)
    _require_interface(session, manifest, path)
    info = SessionInfo(
        artifact=artifact,
        variant=manifest.variant,
        runtime=TARGET,
        runtime_version=str(ort.__version__),
        provider=provider,
        threads=threads,
        load_ms=load_ms,
        outputs=manifest.outputs,
        height=manifest.height,
        width=manifest.width,
        frames=manifest.frames,
    )
    return OnnxRuntimeSession(session, info, errors)


def _import() -> ModuleType:
    try:
        import onnxruntime
    except ImportError as error:
        raise RuntimeUnavailableError(
            f"ONNX Runtime can't be imported: {error}",
            "pip install 'vggt-deploy[cpu]', or [gpu] on a CUDA machine, or [edge]",
        ) from error
    module: ModuleType = onnxruntime
    return module


def _require_provider(ort: ModuleType, provider: str) -> str:
    wanted = _PROVIDERS[provider]
    available = ort.get_available_providers()
    if wanted not in available:
        raise RuntimeUnavailableError(
            f"this onnxruntime {ort.__version__} has no {wanted} (it has {', '.join(available)})",
            "pip uninstall onnxruntime, then pip install 'vggt-deploy[gpu]'; or use provider cpu",
        )
    return wanted


def _error_types(ort: ModuleType) -> tuple[type[Exception], ...]:
    """ONNX Runtime's exception classes: siblings below Exception, without a common base."""
    state = ort.capi.onnxruntime_pybind11_state
    found = (getattr(state, name) for name in dir(state))
    # Wrong names and shapes of inputs are plain ValueErrors of the Python layer.
    return (
        ValueError,
        MemoryError,
        *(c for c in found if isinstance(c, type) and issubclass(c, Exception)),
    )


def _options(ort: ModuleType, graph: GraphRecord, threads: int | None) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = _LOG_ERRORS_ONLY
    if threads is not None:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
    for key, value in graph.session_options.items():
        options.add_session_config_entry(key, value)
    return options


def _require_same_provider(session: Any, wanted: str, provider: str) -> None:
    running = session.get_providers()
    if not running or running[0] != wanted:
        raise RuntimeUnavailableError(
            f"provider {provider} was asked for, ONNX Runtime opened {', '.join(running)} instead",
            "check driver, CUDA and cuDNN with `vggt-deploy doctor`, or use provider cpu",
        )


def _require_interface(session: Any, manifest: Manifest, path: Path) -> None:
    inputs = session.get_inputs()
    outputs = {o.name for o in session.get_outputs()}
    missing = [name for name in manifest.outputs if name not in outputs]
    if missing:
        raise ArtifactError(
            f"{path} has no output {', '.join(missing)} (it has {', '.join(sorted(outputs))})",
            "the manifest belongs to another graph: export again",
        )
    if len(inputs) != 1 or inputs[0].type != "tensor(float)" or len(inputs[0].shape) != 5:
        found = ", ".join(f"{i.name} {i.type} {i.shape}" for i in inputs)
        raise ArtifactError(
            f"{path} takes {found or 'nothing'}, expected one float32 input [1, S, 3, H, W]",
            "export again",
        )


def _load_error(
    ort: ModuleType, path: Path, graph: GraphRecord, provider: str, error: Exception
) -> DeployError:
    state = ort.capi.onnxruntime_pybind11_state
    cause = _cause(error)
    if isinstance(error, MemoryError) or "bad_alloc" in cause or "Failed to allocate" in cause:
        return DeployError(
            f"not enough memory to load {path}: {cause}", "use a smaller scheme or a larger machine"
        )
    if isinstance(error, state.EPFail):
        return RuntimeUnavailableError(
            f"ONNX Runtime could not start provider {provider}: {cause}",
            "check driver, CUDA and cuDNN with `vggt-deploy doctor`",
        )
    if isinstance(error, state.NotImplemented):
        return RuntimeUnavailableError(
            f"onnxruntime {ort.__version__} has no kernel for an operator of {path}: {cause}",
            f"upgrade onnxruntime, or export another scheme for provider {provider}",
        )
    return ArtifactError(
        f"ONNX Runtime can't load {path}: {cause}",
        f"export it again; if it was made elsewhere (opset {graph.opset}), a newer onnxruntime than"
        f" {ort.__version__} may be needed",
    )


def _cause(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _CAUSE_LENGTH else text[:_CAUSE_LENGTH] + "…"
