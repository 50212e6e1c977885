"""Rendered scenes with their truth, and one artifact of a tiny random network."""

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


@pytest.fixture(scope="session")
def artifact_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scheme mixed: 4-bit groups, 8 bit per channel, convolutions. Not to be changed."""
    folder = tmp_path_factory.mktemp("artifact") / "mixed"
    export(
        MODEL,
        "mixed",
        output_dir=folder,
        height=HEIGHT,
        width=WIDTH,
        frames=(1, VIEWS, VIEWS),
        verify=False,
    )
    return folder
