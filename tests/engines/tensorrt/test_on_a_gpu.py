"""On a CUDA device: engines of the TensorRTs that are installed, against ONNX Runtime's numbers."""

from __future__ import annotations

import importlib.util
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vggt_deploy.engines import open_session
from vggt_deploy.engines.device import CudaDevice, cuda_device
from vggt_deploy.engines.tensorrt.library import has_member, load_library
from vggt_deploy.engines.tensorrt.timing import measure

pytestmark = [pytest.mark.gpu, pytest.mark.slow]
HEIGHT, WIDTH = 56, 84
MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}


def profile(runtime: str) -> str:
    device = cuda_device()
    assert isinstance(device, CudaDevice)
    capability = device.compute_capability
    if runtime == "tensorrt-rtx":
        trt = load_library(runtime).trt
        if not has_member(trt.ComputeCapability, f"SM{capability.replace('.', '')}"):
            pytest.skip(f"TensorRT-RTX has no name for compute capability {capability}")
    return (
        f'title = "this device"\nruntimes = ["{runtime}"]\n'
        f'compute_capabilities = ["{capability}"]\nframes = ["1:2:2", "3:4:4"]\ntf32 = false\n'
    )


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from vggt_deploy.api import export

    folder = tmp_path_factory.mktemp("gpu") / "artifact"
    size = {"height": HEIGHT, "width": WIDTH, "frames": (1, 2, 4)}
    export("random:vggt-tiny", "fp32", output_dir=folder, verify=False, **size)  # type: ignore[arg-type]
    return folder


@pytest.mark.parametrize("runtime", MODULES)
@pytest.mark.parametrize("cuda_graph", [False, True])
def test_an_engine_gives_onnx_runtimes_numbers(
    runtime: str, cuda_graph: bool, artifact: Path, tmp_path: Path
) -> None:
    if importlib.util.find_spec(MODULES[runtime]) is None:
        pytest.skip(f"{MODULES[runtime]} is not installed")
    from vggt_deploy.api import build

    (tmp_path / "this.toml").write_text(profile(runtime))
    engine = tmp_path / "engine"
    build(artifact, runtime=runtime, device=str(tmp_path / "this.toml"), output_dir=engine)
    rng = np.random.default_rng(0)
    with (
        closing(open_session(artifact)) as reference,
        closing(open_session(engine, cuda_graph=cuda_graph)) as session,
    ):
        for count in (1, 2, 4, 4, 4, 2):
            images = rng.random((1, count, 3, HEIGHT, WIDTH), dtype=np.float32)
            wanted: dict[str, Any] = reference.run(images)
            found = session.run(images)
            for name, value in wanted.items():
                error = np.linalg.norm(found[name] - value) / np.linalg.norm(value)
                assert error < 1e-3, (name, count)
        latency = measure(session, images, warmup=5, repeats=20)  # type: ignore[arg-type]
    assert 0 < latency.network.p50_ms < latency.end_to_end.p50_ms
    assert latency.memory.buffer_bytes > 0
