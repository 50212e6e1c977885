"""Whether a device can run an engine: a table of devices and engines, each with its verdict."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vggt_deploy.engines.device import CudaDevice
from vggt_deploy.engines.plan_header import PlanHeader, read_plan_header
from vggt_deploy.manifest import read_manifest
from vggt_deploy.ship.fit import Finding, Fit, fit, installed_version
from vggt_deploy.ship.index import engine_entry

Make = Callable[..., Path]
MakeDevice = Callable[..., CudaDevice]
HERE = (10, 16, 1, 11)


@pytest.fixture
def judge(make_engine: Make, make_device: MakeDevice) -> Callable[..., Fit]:
    """The verdict on an engine (differences from one for an H200) on a device."""

    def make(
        *,
        installed: tuple[int, ...] | str = HERE,
        device: dict[str, Any] | str | None = None,
        **engine: Any,
    ) -> Fit:
        folder = make_engine(**engine)
        header = read_plan_header((folder / "model.engine").read_bytes()[:4096])
        here = device if isinstance(device, str) else make_device(**(device or {}))
        return fit(engine_entry("h200", read_manifest(folder)), header, installed, here)

    return make


def finding(verdict: Fit, what: str) -> Finding:
    (found,) = (f for f in verdict.findings if f.what == what)
    return found


def test_the_device_that_it_was_built_for(judge: Callable[..., Fit]) -> None:
    verdict = judge()
    assert verdict.state == "fits"
    assert len(verdict.findings) == 4
    assert {f.state for f in verdict.findings} == {"fits"}


@pytest.mark.parametrize(
    "engine, installed, state",
    [
        ({}, (10, 16, 1, 11), "fits"),
        ({}, (10, 16, 1), "fits"),
        ({}, (10, 16), "does not fit"),
        ({}, (10, 16, 1, 12), "does not fit"),
        ({}, (10, 16, 2, 11), "does not fit"),
        ({}, "there is no TensorRT", "does not fit"),
        ({"flags": ("VERSION_COMPATIBLE",)}, (10, 17, 0, 1), "fits"),
        ({"flags": ("VERSION_COMPATIBLE",)}, (11, 4, 0, 106), "fits"),
        ({"flags": ("VERSION_COMPATIBLE",)}, (10, 3, 0, 30), "does not fit"),
        ({"flags": ("VERSION_COMPATIBLE",)}, (12, 0, 0, 1), "does not fit"),
        (
            {"flags": ("VERSION_COMPATIBLE",), "runtime_version": "8.6.2.3"},
            (10, 3, 0, 30),
            "does not fit",
        ),
        ({"runtime": "tensorrt-rtx", "runtime_version": "1.7.1.116"}, (1, 7, 1, 116), "fits"),
        (
            {
                "runtime": "tensorrt-rtx",
                "runtime_version": "1.7.1.116",
                "flags": ("VERSION_COMPATIBLE",),
            },
            (1, 8, 0, 1),
            "does not fit",
        ),
    ],
)
def test_versions(
    judge: Callable[..., Fit], engine: dict[str, Any], installed: Any, state: str
) -> None:
    verdict = judge(installed=installed, **engine)
    assert finding(verdict, "TensorRT version").state == state
    assert (verdict.state == "fits") == (state == "fits")


def test_a_header_of_an_unknown_form(make_engine: Make, make_device: MakeDevice) -> None:
    entry = engine_entry("h200", read_manifest(make_engine()))
    verdict = fit(entry, PlanHeader(None, None, 9), HERE, make_device())
    assert verdict.state == "not known"
    assert finding(verdict, "TensorRT version").state == "not known"


@pytest.mark.parametrize(
    "targets, mode, here, state",
    [
        (("9.0",), "NONE", "9.0", "fits"),
        (("9.0",), "NONE", "8.9", "does not fit"),
        (("8.6",), "NONE", "8.9", "does not fit"),
        (("8.6",), "AMPERE_PLUS", "8.9", "fits"),
        (("8.6",), "AMPERE_PLUS", "12.0", "fits"),
        (("8.6",), "AMPERE_PLUS", "7.5", "does not fit"),
        (("8.6",), "SAME_COMPUTE_CAPABILITY", "8.6", "fits"),
        (("8.6",), "SAME_COMPUTE_CAPABILITY", "8.9", "does not fit"),
        (("8.0", "8.6", "12.0"), "NONE", "8.6", "fits"),
        ((), "NONE", "8.6", "not known"),
    ],
)
def test_compute_capabilities(
    judge: Callable[..., Fit], targets: tuple[str, ...], mode: str, here: str, state: str
) -> None:
    verdict = judge(
        compute_capabilities=targets,
        hardware_compatibility=mode,
        device={"compute_capability": here},
    )
    assert finding(verdict, "compute capability").state == state
    assert here in finding(verdict, "compute capability").reason


@pytest.mark.parametrize(
    "built_on, driver, runtime, state",
    [
        ({"cuda": "13.0"}, (13, 0), (13, 0), "fits"),
        ({"cuda": "12.6"}, (13, 0), (12, 6), "fits"),
        ({"cuda": "13.0"}, (12, 6), (12, 6), "not known"),
        ({"cuda": "13.3"}, (13, 0), (13, 0), "not known"),
        ({}, (13, 0), (13, 5), "fits"),
        ({}, (12, 8), (13, 5), "does not fit"),
    ],
)
def test_drivers(
    judge: Callable[..., Fit],
    built_on: dict[str, str],
    driver: tuple[int, int],
    runtime: tuple[int, int],
    state: str,
) -> None:
    verdict = judge(built_on=built_on, device={"driver_cuda": driver, "runtime_cuda": runtime})
    assert finding(verdict, "CUDA driver").state == state


@pytest.mark.parametrize(
    "total, activations, state, said",
    [
        (10**9, (10**6, 8 * 10**6), "fits", "2 to 8 pictures"),
        (5 * 10**6, (10**6, 8 * 10**6), "fits", "not for 2 to 8 pictures"),
        (10**6, (10**6, 8 * 10**6), "does not fit", "1 pictures"),
        (10**9, None, "not known", "only a GPU tells"),
        (1000, None, "does not fit", "weights alone"),
    ],
)
def test_memory(
    judge: Callable[..., Fit], total: int, activations: Any, state: str, said: str
) -> None:
    verdict = judge(activation_bytes=activations, device={"total_bytes": total})
    found = finding(verdict, "memory")
    assert found.state == state
    assert said in found.reason


def test_without_a_device_the_version_still_counts(judge: Callable[..., Fit]) -> None:
    reason = "the driver is asleep"
    unknown = judge(device=reason)
    assert unknown.state == "not known"
    assert reason in finding(unknown, "compute capability").reason
    assert judge(device=reason, name="b", installed=(11, 4, 0, 1)).state == "does not fit"


def test_what_is_installed() -> None:
    assert installed_version("tensorrt-rtx") == (1, 7, 1, 116)


def test_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    found = installed_version("tensorrt")
    assert isinstance(found, str)
    assert "tensorrt" in found
