"""Rendered scenes with their truth, and two artifacts of a tiny random network."""

from __future__ import annotations

from pathlib import Path

import pytest

from vggt_deploy.data.scenes import write_scenes
from vggt_deploy.export.pipeline import export

MODEL = "random:vggt-tiny"
HEIGHT, WIDTH = 28, 42
VIEWS = 3


@pytest.fixture(scope="session")
def scenes_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scenes of three views."""
    folder = tmp_path_factory.mktemp("scenes") / "scenes"
    write_scenes(folder, seed=900_000, count=2, views=VIEWS, width=WIDTH, height=HEIGHT)
    return folder


def _exported(label: str, folder: Path, traces: Path) -> Path:
    export(
        MODEL,
        label,
        output_dir=folder,
        height=HEIGHT,
        width=WIDTH,
        frames=(1, VIEWS, VIEWS),
        verify=False,
        trace_cache=traces,
    )
    return folder


@pytest.fixture(scope="session")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("traces")


@pytest.fixture(scope="session")
def artifact_dir(tmp_path_factory: pytest.TempPathFactory, traces: Path) -> Path:
    """Scheme mixed: 4-bit groups, 8 bit per channel, convolutions. Not to be changed."""
    return _exported("mixed", tmp_path_factory.mktemp("artifact") / "mixed", traces)


@pytest.fixture(scope="session")
def rotated_dir(tmp_path_factory: pytest.TempPathFactory, traces: Path) -> Path:
    """8 bit of weights that were rotated before. Not to be changed."""
    folder = tmp_path_factory.mktemp("artifact") / "rotated"
    return _exported("int8_pc_sym+rotate", folder, traces)
