"""From a bundle to a folder: the right engine, whole or not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vggt_deploy.errors import ArtifactError, BundleError, UsageError
from vggt_deploy.manifest import read_manifest
from vggt_deploy.ship import verify as module
from vggt_deploy.ship.bundle import bundle
from vggt_deploy.ship.verify import unpack


def test_unpacking_gives_the_folder_back(
    packed: Path, h200: Path, onnx: Path, tmp_path: Path
) -> None:
    folder = unpack(packed, tmp_path / "engine", engine="h200")
    assert folder == tmp_path / "engine"
    assert read_manifest(folder) == read_manifest(h200)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {
        p.name: p.read_bytes() for p in h200.iterdir()
    }
    assert read_manifest(unpack(packed, tmp_path / "graph", onnx=True)) == read_manifest(onnx)


def test_unpacking_asks_which_engine(packed: Path, h200: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="h200, rtx4090") as raised:
        unpack(packed, tmp_path / "out")
    assert "--engine" in raised.value.fix
    with pytest.raises(BundleError, match="no engine 'orin'") as missing:
        unpack(packed, tmp_path / "out", engine="orin")
    assert "h200, rtx4090" in missing.value.fix
    one = bundle([h200], tmp_path / "one").path
    assert unpack(one, tmp_path / "out").name == "out"
    with pytest.raises(BundleError, match="holds no ONNX"):
        unpack(one, tmp_path / "out2", onnx=True)


def test_unpacking_takes_the_engine_that_is_for_this_device(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_device: Callable[..., Any]
) -> None:
    monkeypatch.setattr(module, "cuda_device", lambda: make_device(compute_capability="8.9"))
    unpack(packed, tmp_path / "out")
    engine = read_manifest(tmp_path / "out").engine
    assert engine is not None
    assert engine.device == "rtx4090"


def test_unpacking_replaces_only_what_is_ours(packed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    unpack(packed, out, engine="h200")
    with pytest.raises(ArtifactError, match="not empty"):
        unpack(packed, out, engine="h200")
    unpack(packed, out, engine="rtx4090", overwrite=True)
    engine = read_manifest(out).engine
    assert engine is not None
    assert engine.device == "rtx4090"


def test_interrupted_unpacking_leaves_nothing(packed: Path, tmp_path: Path) -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        unpack(packed, tmp_path / "out", engine="h200", progress=interrupt)
        pytest.fail("it was not interrupted")
    assert not [p for p in tmp_path.iterdir() if "out" in p.name]
