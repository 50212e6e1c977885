"""The first bytes of a plan: which TensorRT made it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vggt_deploy.engines.plan_header import HEADER_BYTES, PlanHeader, read_plan_header
from vggt_deploy.errors import ArtifactError


def header(magic: bytes, serialization: int, version: tuple[int, ...]) -> bytes:
    return magic + serialization.to_bytes(4, "little") + bytes(16) + bytes(version)


@pytest.mark.parametrize("magic, runtime", [(b"ftrt", "tensorrt"), (b"vtrt", "tensorrt-rtx")])
def test_it_names_the_builder(magic: bytes, runtime: Any, tmp_path: Path) -> None:
    data = header(magic, 0, (10, 3, 0, 26)) + b"kernels"
    assert read_plan_header(data) == PlanHeader(runtime, (10, 3, 0, 26), 0)
    assert read_plan_header(data).version_text == "10.3.0.26"
    path = tmp_path / "model.engine"
    path.write_bytes(data)
    assert read_plan_header(path) == read_plan_header(data)


def test_a_plan_of_the_installed_builder_says_its_version(tmp_path: Path) -> None:
    trt: Any = pytest.importorskip("tensorrt_rtx")
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(0)
    x = network.add_input("x", trt.float32, (4,))
    network.mark_output(network.add_activation(x, trt.ActivationType.RELU).get_output(0))
    config = builder.create_builder_config()
    plan = bytes(builder.build_serialized_network(network, config))
    found = read_plan_header(plan)
    assert found.runtime == "tensorrt-rtx"
    assert found.version_text == trt.__version__


def test_another_serialization_is_unknown_and_no_error() -> None:
    found = read_plan_header(header(b"ftrt", 7, (10, 3, 0, 26)))
    assert found == PlanHeader("tensorrt", None, 7)
    assert found.version_text == "unknown"


def test_what_is_no_plan(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="begins with b'PK"):
        read_plan_header(b"PK\x03\x04" + bytes(60))
    with pytest.raises(ArtifactError, match="cut short: 27 bytes"):
        read_plan_header(header(b"ftrt", 0, (10, 3, 0)))
    with pytest.raises(ArtifactError, match="can't be read"):
        read_plan_header(tmp_path / "absent")


@given(st.binary(max_size=2 * HEADER_BYTES))
def test_any_bytes_give_a_header_or_one_error(data: bytes) -> None:
    try:
        found = read_plan_header(data)
    except ArtifactError:
        assert len(data) < HEADER_BYTES or data[:4] not in (b"ftrt", b"vtrt")
        return
    assert data[:4] in (b"ftrt", b"vtrt")
    assert (found.version is None) == (data[4:8] != bytes(4))
