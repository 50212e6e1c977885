"""The two kinds of thing that a worker measures: a PyTorch variant and an open artifact or engine.

A subject imports its libraries when it is made, loads in `load`, and can then be called. So memory
and time of the libraries, of loading, and of a call can be told apart.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from vggt_deploy.compare.jobs import MeasureJob
from vggt_deploy.errors import CompareError
from vggt_deploy.outputs import output_groups

if TYPE_CHECKING:
    from vggt_deploy.engines.runtime import Session
    from vggt_deploy.model.vggt import VGGT
    from vggt_deploy.quantize.schemes import Precision
    from vggt_deploy.records import ModelRecord

Arrays = dict[str, NDArray[np.float32]]


class Subject(Protocol):
    """Something to measure."""

    def load(self) -> None:
        """From nothing in memory to ready to run."""

    def run(self, images: NDArray[np.float32]) -> dict[str, Any]:
        """One whole call: images [1, S, 3, H, W] to outputs, as this runtime gives them."""

    def arrays(self, outputs: dict[str, Any]) -> Arrays:
        """The outputs as float32 arrays; not part of the timed call."""

    def held_bytes(self) -> int | None:
        """Bytes of parameters and buffers in memory; None where they can't be counted."""

    def saved_bytes(self, probe: Path) -> int:
        """Bytes of the weights as a file: saved to `probe`, weighed, and deleted."""

    def gpu_times(self, images: NDArray[np.float32], *, repeats: int) -> dict[str, Any] | None:
        """The fields of `GpuMeasure`, from further calls; None for what runs on the CPU."""


def make_subject(job: MeasureJob) -> Subject:
    """Import what the job's runtime needs."""
    return TorchSubject(job) if job.runtime == "torch" else SessionSubject(job)


def wanted_tensors(outputs: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the tensors in these groups of outputs."""
    return tuple(name for group in output_groups(outputs) for name in group.tensors)


class TorchSubject:
    """A PyTorch variant on the CPU, in eager mode.

    FP32 is the plain model with the checkpoint's own weights, no rewrite folded in: the reference
    owes nothing to the code that the other variants go through.
    """

    def __init__(self, job: MeasureJob) -> None:
        import torch

        import vggt_deploy.model.weights
        import vggt_deploy.quantize.apply  # noqa: F401  imported here so that load() does not pay

        torch.set_num_threads(job.threads)
        self._job = job
        self._model: VGGT | None = None

    def load(self) -> None:
        from vggt_deploy.model.fold import FoldedWeights
        from vggt_deploy.model.weights import load_model, open_weights
        from vggt_deploy.quantize.apply import build_quantized
        from vggt_deploy.quantize.plan import keeps_layer_scale
        from vggt_deploy.quantize.prepared import read_prepared
        from vggt_deploy.quantize.schemes import get_scheme
        from vggt_deploy.quantize.statistics import model_record

        job = self._job
        heads = cast(Any, frozenset(group.head for group in output_groups(job.outputs)))
        if job.scheme == "fp32":
            self._model = load_model(
                job.model.spec, config=job.model.config, revision=job.model.revision, heads=heads
            )
            return
        config, source = open_weights(
            job.model.spec, config=job.model.config, revision=job.model.revision
        )
        precision: Precision = cast(Any, job.precision)
        self._model = build_quantized(
            config,
            FoldedWeights(source, config, keep_layer_scale=keeps_layer_scale(precision)),
            get_scheme(job.scheme),
            activations=cast(Any, job.activations),
            input_scales=self._input_scales(model_record(config, source), precision),
            heads=heads,
            include=job.layers.include,
            exclude=job.layers.exclude,
            sensitive=job.layers.sensitive,
            precision=precision,
            prepared=None if job.prepared is None else read_prepared(Path(job.prepared)),
        )

    def _input_scales(self, model: ModelRecord, precision: Precision) -> dict[str, float] | None:
        """Scales of all observed Linears, also of those that stay float; None if not static."""
        from vggt_deploy.quantize.calibration import input_scales
        from vggt_deploy.quantize.methods import parse_method
        from vggt_deploy.quantize.statistics import load_statistics, require_same

        calibration = self._job.calibration
        if calibration is None:
            return None
        statistics = load_statistics(Path(calibration.statistics))
        height, width = np.load(self._job.images, mmap_mode="r").shape[-2:]
        require_same(statistics, model, height, width)
        method = parse_method(calibration.method)
        return input_scales(
            statistics, statistics.layers, method, precision, apart=calibration.apart
        )

    def _loaded(self) -> VGGT:
        if self._model is None:
            raise CompareError("the model is not loaded", "call load() first")
        return self._model

    def run(self, images: NDArray[np.float32]) -> dict[str, Any]:
        import torch

        with torch.inference_mode():
            outputs: dict[str, Any] = self._loaded()(torch.from_numpy(images))
        return outputs

    def arrays(self, outputs: dict[str, Any]) -> Arrays:
        names = wanted_tensors(self._job.outputs)
        return {name: outputs[name].float().numpy().astype(np.float32) for name in names}

    def held_bytes(self) -> int | None:
        state = self._loaded().state_dict(keep_vars=True)
        return sum(int(tensor.nbytes) for tensor in state.values())

    def saved_bytes(self, probe: Path) -> int:
        import torch

        try:
            # torch.save streams one storage after the other; safetensors would copy them all first.
            torch.save(self._loaded().state_dict(), probe)
            return probe.stat().st_size
        finally:
            probe.unlink(missing_ok=True)

    def gpu_times(self, images: NDArray[np.float32], *, repeats: int) -> dict[str, Any] | None:
        return None


class SessionSubject:
    """An artifact in ONNX Runtime on the CPU, or an engine in TensorRT on the GPU."""

    def __init__(self, job: MeasureJob) -> None:
        # Imported here so that load() does not pay.
        import vggt_deploy.engines.runtime  # noqa: F401

        if job.runtime == "onnxruntime":
            import onnxruntime  # noqa: F401
        else:
            from vggt_deploy.engines.tensorrt.cuda import load_cuda
            from vggt_deploy.engines.tensorrt.library import load_library

            load_cuda()  # without a device this is the one error: nothing can be run
            load_library(job.runtime)
        self._job = job
        self._session: Session | None = None

    def load(self) -> None:
        from vggt_deploy.engines.runtime import open_session

        job = self._job
        if job.artifact is None:
            raise CompareError(f"a job for {job.runtime} has no artifact", "export it first")
        cpu: dict[str, Any] = {"provider": "cpu", "threads": job.threads}
        self._session = open_session(
            Path(job.artifact),
            runtime=job.runtime,
            **(cpu if job.runtime == "onnxruntime" else {}),
        )

    def _open(self) -> Session:
        if self._session is None:
            raise CompareError("the session is not open", "call load() first")
        return self._session

    def run(self, images: NDArray[np.float32]) -> dict[str, Any]:
        outputs: dict[str, Any] = self._open().run(images)
        return outputs

    def arrays(self, outputs: dict[str, Any]) -> Arrays:
        names = wanted_tensors(self._job.outputs)
        return {name: np.asarray(outputs[name], dtype=np.float32) for name in names}

    def held_bytes(self) -> int | None:
        return None

    def saved_bytes(self, probe: Path) -> int:
        raise CompareError(f"an artifact is a folder already, not {probe}", "weigh the folder")

    def gpu_times(self, images: NDArray[np.float32], *, repeats: int) -> dict[str, Any] | None:
        if self._job.runtime == "onnxruntime":
            return None
        from vggt_deploy.engines.tensorrt import timing

        session = self._open()
        # The timed calls before these were the warm-up. What opens engines is a TensorRTSession.
        found = timing.measure(cast(Any, session), images, warmup=0, repeats=repeats)
        return {
            "device": session.info.device,
            "n": found.network.n,
            "network_ms": found.network.p50_ms,
            "network_min_ms": found.network.min_ms,
            "to_device_ms": found.to_device.p50_ms,
            "to_host_ms": found.to_host.p50_ms,
            "engine_bytes": found.memory.engine_bytes,
            "buffer_bytes": found.memory.buffer_bytes,
        }
