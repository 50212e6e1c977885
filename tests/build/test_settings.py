from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vggt_deploy.build import settings
from vggt_deploy.build.profiles import DeviceProfile, load_profile
from vggt_deploy.build.settings import check_artifact, choose_frames, make_settings
from vggt_deploy.engines.device import CudaDevice
from vggt_deploy.engines.tensorrt.library import Library
from vggt_deploy.errors import BuildError, RuntimeUnavailableError, UsageError
from vggt_deploy.records import FramesRange

NO_GPU = "cuda-bindings can't be imported"
ACCEPTED = FramesRange(1, 5, 16)


def gpu(name: str = "NVIDIA H200", capability: str = "9.0") -> CudaDevice:
    return CudaDevice(0, name, capability, 2**37, 2**37, (13, 0), (13, 0), "580.65")


class Level:
    """HardwareCompatibilityLevel of TensorRT 10.3."""

    NONE = 0
    AMPERE_PLUS = 1


def enterprise(version: str = "10.3.0") -> Library:
    return Library(SimpleNamespace(HardwareCompatibilityLevel=Level), "tensorrt", version)  # type: ignore[arg-type]


def make(profile: DeviceProfile, library: Library, device: Any, **options: Any) -> Any:
    arguments = {"strip": False, "timing_cache": None, **options}
    return make_settings(profile, (ACCEPTED,), library, device, **arguments)


def test_tensorrt_rtx_gets_targets_and_no_timing_cache(rtx: Library) -> None:
    made = make(load_profile("portable-rtx"), rtx, NO_GPU, timing_cache=Path("t"))
    assert made.targets == ((8, 0), (8, 6), (8, 9), (12, 0))
    assert made.timing_cache is None
    both = make(load_profile("rtx4090"), rtx, NO_GPU, timing_cache=Path("t"))
    assert (both.targets, both.timing_cache) == (((8, 9),), None)


def test_tensorrt_gets_the_device_and_its_timing_cache() -> None:
    made = make(load_profile("h200"), enterprise(), gpu(), timing_cache=Path("t"))
    assert (made.targets, made.timing_cache, made.tf32) == ((), Path("t"), True)
    made = make(load_profile("orin"), enterprise(), gpu("Orin", "8.7"))
    assert made.workspace_bytes == 4096 * 2**20


@pytest.mark.parametrize("name", ["h100", "h200", "orin", "orin-jp72", "thor"])
def test_a_profile_for_the_other_runtime(name: str, rtx: Library) -> None:
    profile = load_profile(name)
    with pytest.raises(UsageError, match=r"not for tensorrt-rtx .*has no name for") as caught:
        make(profile, rtx, NO_GPU)
    assert "--runtime tensorrt" in caught.value.fix


def test_portable_rtx_is_not_for_tensorrt() -> None:
    with pytest.raises(UsageError, match=r"is for tensorrt-rtx, not for tensorrt\n") as caught:
        make(load_profile("portable-rtx"), enterprise(), gpu())
    assert caught.value.fix == "build with --runtime tensorrt-rtx"


def test_tensorrt_rtx_cannot_name_hopper(rtx: Library) -> None:
    profile = dataclasses.replace(load_profile("rtx4090"), compute_capabilities=((8, 9), (9, 0)))
    with pytest.raises(BuildError, match=r"compute capability 9\.0 \(it can for .*SM89"):
        make(profile, rtx, NO_GPU)


def test_an_older_version_than_the_profile_needs() -> None:
    with pytest.raises(BuildError, match=r"needs tensorrt 10\.16 or newer, installed is 10\.3\.0"):
        make(load_profile("orin-jp72"), enterprise(), gpu("Orin", "8.7"))
    assert make(load_profile("orin-jp72"), enterprise("10.16.2.10"), gpu("Orin", "8.7"))


def test_tensorrt_without_a_gpu() -> None:
    with pytest.raises(RuntimeUnavailableError, match=NO_GPU) as caught:
        make(load_profile("h200"), enterprise(), NO_GPU)
    assert "tensorrt-rtx" in caught.value.fix


def test_another_device_than_the_profile_is_for() -> None:
    with pytest.raises(UsageError, match=r"for compute capability 9\.0; this machine has Orin"):
        make(load_profile("h200"), enterprise(), gpu("Orin", "8.7"))
    assert make(load_profile("thor"), enterprise("10.13.3.9"), gpu("Thor", "11.0"))


def test_hardware_compatibility_that_the_version_lacks(rtx: Library) -> None:
    h200 = load_profile("h200")
    profile = dataclasses.replace(h200, hardware_compatibility="SAME_COMPUTE_CAPABILITY")
    with pytest.raises(BuildError, match="has no hardware compatibility 'SAME_COMPUTE_CAPABILITY'"):
        make(profile, enterprise(), gpu())
    profile = dataclasses.replace(h200, hardware_compatibility="AMPERE_PLUS")
    assert make(profile, enterprise(), gpu()).hardware_compatibility == "AMPERE_PLUS"
    profile = dataclasses.replace(load_profile("rtx4090"), hardware_compatibility="AMPERE_PLUS")
    with pytest.raises(BuildError, match="TensorRT-RTX has no hardware_compatibility"):
        make(profile, rtx, NO_GPU)


def test_version_compatible_needs_the_lean_runtime(
    rtx: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = dataclasses.replace(load_profile("rtx4090"), version_compatible=True)
    with pytest.raises(BuildError, match=r"libnvinfer_lean\.so\.1"):
        make(profile, rtx, NO_GPU)
    monkeypatch.setattr(settings, "_loads", lambda name: name == "libnvinfer_lean.so.1")
    assert make(profile, rtx, NO_GPU).version_compatible


def test_stripped_needs_a_gpu_with_tensorrt_rtx(rtx: Library) -> None:
    profile = load_profile("rtx4090")
    with pytest.raises(BuildError, match=f"CUDA device, and there is none here: {NO_GPU}"):
        make(profile, rtx, NO_GPU, strip=True)
    assert make(profile, rtx, gpu("RTX 4090", "8.9"), strip=True).strip


def test_loads_tells_what_is_there() -> None:
    assert settings._loads("libc.so.6")
    assert not settings._loads("libnvinfer_lean.so.1")


def profile_of(*ranges: FramesRange) -> DeviceProfile:
    return dataclasses.replace(load_profile("h200"), frames=ranges)


def test_frames_are_cut_to_what_the_artifact_accepts_and_that_is_said() -> None:
    ranges = (FramesRange(1, 1, 1), FramesRange(2, 4, 8), FramesRange(9, 16, 32))
    chosen, notes = choose_frames(profile_of(*ranges), FramesRange(1, 2, 12), None)
    assert chosen == (*ranges[:2], FramesRange(9, 12, 12))
    assert notes == ("9:16:32 frames cut to 9:12:12: the artifact takes 1 to 12 frames",)
    chosen, notes = choose_frames(profile_of(*ranges), FramesRange(5, 6, 7), None)
    assert chosen == (FramesRange(5, 5, 7),)
    assert len(notes) == 3
    chosen, notes = choose_frames(profile_of(*ranges), FramesRange(1, 5, 40), None)
    assert (chosen, notes) == (ranges, ())


def test_no_frames_are_left() -> None:
    with pytest.raises(UsageError, match="is for 9:16:32 frames, the artifact takes 1 to 8"):
        choose_frames(profile_of(FramesRange(9, 16, 32)), FramesRange(1, 2, 8), None)


def test_frames_that_the_user_asks_for_are_never_cut() -> None:
    profile = load_profile("h200")
    chosen, notes = choose_frames(profile, ACCEPTED, [(4, 5, 6), (1, 2, 3)])
    assert (chosen, notes) == ((FramesRange(1, 2, 3), FramesRange(4, 5, 6)), ())
    with pytest.raises(UsageError, match="4:5:17 does not fit the artifact, which takes 1 to 16"):
        choose_frames(profile, ACCEPTED, [(4, 5, 17)])
    with pytest.raises(UsageError, match="does not fit"):
        choose_frames(profile, ACCEPTED, [(4, 3, 5)])
    with pytest.raises(UsageError, match="overlap"):
        choose_frames(profile, ACCEPTED, [(1, 2, 4), (4, 5, 6)])
    with pytest.raises(UsageError, match="empty"):
        choose_frames(profile, ACCEPTED, [])


def test_an_artifact_that_the_profile_is_not_for() -> None:
    orin = load_profile("orin")
    artifact: Any = SimpleNamespace(height=350, width=518, precision="fp32")
    with pytest.raises(UsageError, match=r"computes in fp32; .* is for fp16 or bf16") as caught:
        check_artifact(orin, artifact)
    assert "--precision fp16" in caught.value.fix
    artifact.precision = "bf16"
    check_artifact(orin, artifact)
    check_artifact(dataclasses.replace(orin, height=350, width=518), artifact)
    with pytest.raises(UsageError, match="280 x 518 pixels, the artifact for 350 x 518"):
        check_artifact(dataclasses.replace(orin, height=280, width=518), artifact)
