"""What only a GPU can show. With TensorRT, and with TensorRT-RTX on its own device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vggt_deploy.build import build
from vggt_deploy.engines.device import CudaDevice, cuda_device
from vggt_deploy.engines.kernels import layer_shares
from vggt_deploy.engines.tensorrt.library import load_library
from vggt_deploy.errors import RuntimeUnavailableError

pytestmark = pytest.mark.gpu


@pytest.fixture
def device() -> CudaDevice:
    """The GPU of this machine."""
    found = cuda_device()
    assert isinstance(found, CudaDevice), found
    return found


@pytest.fixture
def profile(device: CudaDevice, tmp_path: Path) -> Path:
    """A device profile for it."""
    path = tmp_path / "here.toml"
    path.write_text(
        'title = "this device"\n'
        'runtimes = ["tensorrt", "tensorrt-rtx"]\n'
        f'compute_capabilities = ["{device.compute_capability}"]\n'
        'frames = ["1", "2:3:5"]\n'
        "tf32 = true\n"
        "timing_cache = true\n"
    )
    return path


@pytest.fixture
def artifact(two_linears: Any, save_artifact: Any, tmp_path: Path) -> Path:
    """Two Linears with static activations."""
    return save_artifact(tmp_path / "artifact", two_linears())  # type: ignore[no-any-return]


def require(runtime: str) -> None:
    try:
        load_library(runtime)
    except RuntimeUnavailableError as error:
        pytest.skip(error.message)


def test_tensorrt_keeps_its_timings_and_is_proven_by_the_inspector(
    artifact: Path, profile: Path, device: CudaDevice, tmp_path: Path
) -> None:
    require("tensorrt")
    for number in range(2):
        manifest = build(
            artifact,
            runtime="tensorrt",
            device=str(profile),
            output_dir=tmp_path / f"engine_{number}",
            timing_cache_dir=tmp_path / "timing",
        ).manifest
    engine = manifest.engine
    assert engine is not None
    assert engine.proof.source == "engine inspector"
    assert layer_shares(engine.proof) == {"int8": 1.0}
    assert engine.compute_capabilities == (device.compute_capability,)
    assert engine.activation_bytes is not None
    assert len(engine.activation_bytes) == 2
    (cache,) = (tmp_path / "timing").glob("*.timing")
    assert cache.name == engine.timing_cache


@pytest.mark.parametrize("runtime", ["tensorrt", "tensorrt-rtx"])
def test_a_stripped_engine_takes_its_weights_back(
    runtime: str, artifact: Path, profile: Path, tmp_path: Path
) -> None:
    require(runtime)
    folders = {}
    for strip in (False, True):
        folders[strip] = build(
            artifact,
            runtime=runtime,
            device=str(profile),
            output_dir=tmp_path / f"engine_{strip}",
            timing_cache_dir=tmp_path / "timing",
            strip=strip,
        ).folder
    assert (folders[True] / "weights.bin").is_file()
    whole, stripped = (folders[strip] / "model.engine" for strip in (False, True))
    assert stripped.stat().st_size < whole.stat().st_size
